//! What follows the header of a gzip member, unpacked by ISA-L's igzip: nearly twice as fast as zlib-rs.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use isal_sys::igzip_lib as z;

use super::{Damage, InflateProgress, WRONG_CHECKSUM};
use crate::avx::clear_upper_halves;

/// What follows the header of a member. It is used for one member after the other.
pub(super) struct Member {
    /// Boxed, because it has 90 KB of inner buffers.
    state: Box<z::inflate_state>,
}

// SAFETY: the state and everything it points to belong to this value alone, and ISA-L keeps no thread-local state.
unsafe impl Send for Member {}

impl Member {
    pub(super) fn new() -> Self {
        let mut state = Box::new(MaybeUninit::<z::inflate_state>::zeroed());
        // SAFETY: the state consists of numbers, raw pointers and arrays of them, for all of which zeros are valid.
        let state = unsafe {
            z::isal_inflate_init(state.as_mut_ptr());
            Box::from_raw(Box::into_raw(state).cast::<z::inflate_state>())
        };
        let mut member = Self { state };
        member.reset();
        member
    }

    /// Makes this ready for the next member.
    pub(super) fn reset(&mut self) {
        // SAFETY: `new` made the state valid.
        unsafe { z::isal_inflate_reset(&mut *self.state) };
        // Checksum and size behind the deflate stream are verified, too.
        self.state.crc_flag = z::ISAL_GZIP_NO_HDR_VER;
    }

    /// Unpacks from `input` to `out`. Empty input says that no more will come.
    pub(super) fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<InflateProgress, Damage> {
        let state = &mut *self.state;
        state.next_in = input.as_ptr().cast_mut();
        state.avail_in = u32::try_from(input.len()).expect("buffers are smaller than 4 GiB");
        state.next_out = out.as_mut_ptr();
        state.avail_out = u32::try_from(out.len()).expect("buffers are smaller than 4 GiB");
        // SAFETY: input and output live as long as the call, are as long as is said, and ISA-L only reads the former.
        let result = unsafe { z::isal_inflate(state) };
        clear_upper_halves();
        let used = input.len() - state.avail_in as usize;
        let written = out.len() - state.avail_out as usize;
        match result {
            0 => Ok(InflateProgress {
                used,
                written,
                is_end: state.block_state == z::isal_block_state_ISAL_BLOCK_FINISH,
            }),
            z::ISAL_INCORRECT_CHECKSUM => Err(WRONG_CHECKSUM.to_owned()),
            z::ISAL_INVALID_LOOKBACK => Err("it refers to what lies before its beginning".to_owned()),
            _ => Err("it is not a deflate stream".to_owned()),
        }
    }
}
