//! Unpacks the deflate stream of a gzip member with ISA-L's igzip, which is nearly twice as fast as zlib-rs.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use isal_sys::igzip_lib as z;

use super::{Damage, InflateProgress, WRONG_CHECKSUM};
use crate::avx::clear_upper_halves;

/// Decompressor for the part of a member after its header. Reused for all members.
pub(super) struct Member {
    /// Boxed, because the state contains 90 KB of buffers.
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

    /// Resets the state for the next member.
    pub(super) fn reset(&mut self) {
        // SAFETY: `new` made the state valid.
        unsafe { z::isal_inflate_reset(&mut *self.state) };
        // ISA-L then also verifies checksum and size after the deflate stream.
        self.state.crc_flag = z::ISAL_GZIP_NO_HDR_VER;
    }

    /// Unpacks from `input` to `out`. Empty input means the end of the blob.
    pub(super) fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<InflateProgress, Damage> {
        let state = &mut *self.state;
        state.next_in = input.as_ptr().cast_mut();
        state.avail_in = u32::try_from(input.len()).expect("buffers are smaller than 4 GiB");
        state.next_out = out.as_mut_ptr();
        state.avail_out = u32::try_from(out.len()).expect("buffers are smaller than 4 GiB");
        // SAFETY: input and output outlive the call, have the stated lengths, and ISA-L only reads the input.
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
            z::ISAL_INVALID_LOOKBACK => Err("reference to data before the start of the stream".to_owned()),
            _ => Err("not a valid deflate stream".to_owned()),
        }
    }
}
