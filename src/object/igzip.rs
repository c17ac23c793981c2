//! ISA-L's igzip at level 2: two to three times as fast as libdeflate at its lowest level, for some per cent more bytes.
//!
//! Levels 0 to 2 give the same bytes on every processor. Level 3 does not: its search for matches differs between the
//! variants for SSE, AVX2 and AVX-512, so it is of no use where equal content has to become equal objects.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use isal_sys::igzip_lib as z;

use super::encode::grow;
use crate::avx::clear_upper_halves;

const LEVEL: u32 = 2;

/// A compressor whose buffers are kept from one object to the next.
pub(super) struct Igzip {
    /// Boxed, because it has 60 KB of inner buffers.
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

    /// Compresses `plain` into `out`, which grows where it is too short, and returns how many bytes there are: nothing where
    /// that would be more than `plain` has.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        // Room for header, checksum, and what is written eight bytes at a time. Never more, however large the buffer is by now:
        // what ISA-L writes depends on it.
        let room = plain.len() + 64;
        grow(out, room);
        let stream = &mut *self.stream;
        // SAFETY: `new` made the stream valid; this makes it as new.
        unsafe { z::isal_deflate_init(stream) };
        stream.level = LEVEL;
        stream.level_buf = self.level_buffer.as_mut_ptr();
        stream.level_buf_size = z::ISAL_DEF_LVL2_DEFAULT;
        stream.gzip_flag = z::IGZIP_ZLIB as u16;
        stream.end_of_stream = 1;
        stream.next_in = plain.as_ptr().cast_mut();
        stream.avail_in = u32::try_from(plain.len()).expect("pieces are smaller than 4 GiB");
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = u32::try_from(room).expect("pieces are smaller than 4 GiB");
        // SAFETY: input, output and level buffer live as long as the call, are as long as is said, and ISA-L only reads the
        // first of them.
        let result = unsafe { z::isal_deflate(stream) };
        clear_upper_halves();
        assert_eq!(result, z::COMP_OK as i32, "level and buffers are as ISA-L wants them");
        let is_complete = stream.internal_state.state == z::isal_zstate_state_ZSTATE_END;
        is_complete.then_some(stream.total_out as usize)
    }
}
