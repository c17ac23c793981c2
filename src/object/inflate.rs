//! Unpacks a zlib stream in one call and returns the position of its end, which the crate `libdeflater` does not return.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use libdeflate_sys as z;

/// A decompressor that is reused for many streams.
pub(super) struct Inflater(NonNull<z::libdeflate_decompressor>);

// SAFETY: the decompressor belongs to this value alone, and libdeflate keeps no thread-local state.
unsafe impl Send for Inflater {}

/// Sizes of an unpacked stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inflated {
    /// Size of the stream in bytes, without any bytes that follow it.
    pub(super) read: usize,
    /// Size of the content in bytes.
    pub(super) written: usize,
}

/// Errors from unpacking a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InflateError {
    /// The stream is damaged, truncated, or not a zlib stream.
    Damaged,
    /// The content does not fit into the output buffer.
    OutputFull,
}

impl Inflater {
    pub(super) fn new() -> Self {
        // SAFETY: the function takes nothing and returns a new value or null.
        let decompressor = unsafe { z::libdeflate_alloc_decompressor() };
        Self(NonNull::new(decompressor).expect("libdeflate lacks memory"))
    }

    /// Unpacks the stream at the start of `stored` into `plain`.
    pub(super) fn inflate(&mut self, stored: &[u8], plain: &mut [u8]) -> Result<Inflated, InflateError> {
        let mut inflated = Inflated { read: 0, written: 0 };
        // SAFETY: both pointers are to live buffers of the given lengths, and libdeflate writes only to the second.
        let result = unsafe {
            z::libdeflate_zlib_decompress_ex(
                self.0.as_ptr(),
                stored.as_ptr().cast(),
                stored.len(),
                plain.as_mut_ptr().cast(),
                plain.len(),
                &raw mut inflated.read,
                &raw mut inflated.written,
            )
        };
        match result {
            z::libdeflate_result_LIBDEFLATE_SUCCESS => Ok(inflated),
            z::libdeflate_result_LIBDEFLATE_INSUFFICIENT_SPACE => Err(InflateError::OutputFull),
            _ => Err(InflateError::Damaged),
        }
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the decompressor was allocated by `new` and is freed once.
        unsafe { z::libdeflate_free_decompressor(self.0.as_ptr()) };
    }
}
