//! Compresses with ISA-L's igzip at level 2: two to three times as fast as libdeflate at level 1, with a few per cent more bytes.
//!
//! Levels 0 to 2 have the same output on every processor. Level 3 does not: its search for matches differs between the variants
//! for SSE, AVX2 and AVX-512. It must not be used, because equal content has to become equal objects.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use isal_sys::igzip_lib as z;

use super::encode::grow;
use crate::avx::clear_upper_halves;

// 2.4 GB of programs and documents took 7 to 8 s on one core at level 1 or 2, and 9 s at level 3.
const LEVEL: u32 = 2;

/// A compressor that is reused for many objects.
pub(super) struct Igzip {
    /// Boxed, because the stream contains 60 KB of buffers.
    stream: Box<z::isal_zstream>,
    level_buffer: Box<[u8]>,
}

// SAFETY: the stream and everything it points to belong to this value alone, and ISA-L keeps no thread-local state.
unsafe impl Send for Igzip {}

impl Igzip {
    pub(super) fn new() -> Self {
        let mut stream = Box::new(MaybeUninit::<z::isal_zstream>::zeroed());
        // SAFETY: the stream consists of numbers, raw pointers and arrays of them, for all of which zeros are valid.
        let stream = unsafe {
            z::isal_deflate_init(stream.as_mut_ptr());
            Box::from_raw(Box::into_raw(stream).cast::<z::isal_zstream>())
        };
        let level_buffer = vec![0; z::ISAL_DEF_LVL2_DEFAULT as usize].into_boxed_slice();
        Self { stream, level_buffer }
    }

    /// Compresses `plain` into `out`, which is enlarged if necessary, and returns the compressed size. Returns `None` if the
    /// result would be more than 64 bytes larger than `plain`.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        // Space for header, checksum, and writes of eight bytes at once. Never pass more space, even if `out` is larger,
        // because the output of ISA-L depends on the available space.
        let room = plain.len() + 64;
        grow(out, room);
        let stream = &mut *self.stream;
        // SAFETY: `new` made the stream valid; this call resets it.
        unsafe { z::isal_deflate_init(stream) };
        stream.level = LEVEL;
        stream.level_buf = self.level_buffer.as_mut_ptr();
        stream.level_buf_size = z::ISAL_DEF_LVL2_DEFAULT;
        stream.gzip_flag = z::IGZIP_ZLIB as u16;
        stream.end_of_stream = 1;
        stream.next_in = plain.as_ptr().cast_mut();
        stream.avail_in = u32::try_from(plain.len()).expect("objects are smaller than 4 GiB");
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = u32::try_from(room).expect("objects are smaller than 4 GiB");
        // SAFETY: input, output and level buffer outlive the call and have the stated lengths, and ISA-L only reads the input.
        let result = unsafe { z::isal_deflate(stream) };
        clear_upper_halves();
        assert_eq!(result, z::COMP_OK as i32, "ISA-L supports this level and buffer size");
        let is_complete = stream.internal_state.state == z::isal_zstate_state_ZSTATE_END;
        is_complete.then_some(stream.total_out as usize)
    }
}
