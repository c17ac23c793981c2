//! Compresses with stock zlib at its default level, as CVMFS's own tools do.
//!
//! zlib is called through its C interface, because one build cannot contain two back ends of the crate `flate2`, and the layer
//! reader needs the other one for fast unpacking.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::mem::{MaybeUninit, size_of};

use libz_sys as z;

use super::encode::grow;

/// A compressor that is reused for many objects.
pub(super) struct StockZlib {
    /// Boxed, because zlib's internal state contains a pointer to the stream.
    stream: Box<z::z_stream>,
}

// SAFETY: the stream and everything it points to belong to this value alone, and zlib keeps no thread-local state.
unsafe impl Send for StockZlib {}

impl StockZlib {
    pub(super) fn new() -> Self {
        let mut stream = Box::new(MaybeUninit::<z::z_stream>::zeroed());
        // SAFETY: zlib requires a zeroed stream, in which null allocators mean zlib's default ones; `deflateInit_` makes it
        // valid.
        let (result, stream) = unsafe {
            let size = size_of::<z::z_stream>() as c_int;
            // The level of CVMFS's own tools. Another level already changes the second byte of the stream, and so the
            // object's name.
            let result = z::deflateInit_(stream.as_mut_ptr(), z::Z_DEFAULT_COMPRESSION, z::zlibVersion(), size);
            (result, Box::from_raw(Box::into_raw(stream).cast::<z::z_stream>()))
        };
        assert_eq!(result, z::Z_OK, "zlib lacks memory");
        Self { stream }
    }

    /// Compresses `plain` into `out`, which is enlarged if necessary, and returns the compressed size.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> usize {
        // SAFETY: the stream was initialised by `new` and is never moved out of its box.
        let bound = unsafe {
            z::deflateReset(&mut *self.stream);
            z::deflateBound(&mut *self.stream, plain.len() as z::uLong)
        };
        grow(out, usize::try_from(bound).expect("objects are smaller than memory"));
        self.stream.next_in = plain.as_ptr().cast_mut();
        self.stream.avail_in = c_uint::try_from(plain.len()).expect("objects are smaller than 4 GiB");
        self.stream.next_out = out.as_mut_ptr();
        self.stream.avail_out = c_uint::try_from(out.len()).expect("objects are smaller than 4 GiB");
        // SAFETY: `next_in` and `next_out` point to live buffers of the stated lengths, and zlib only reads the input.
        let result = unsafe { z::deflate(&mut *self.stream, z::Z_FINISH) };
        assert_eq!(result, z::Z_STREAM_END, "a buffer of deflateBound's size needs only one call");
        usize::try_from(self.stream.total_out).expect("objects are smaller than memory")
    }
}

impl Drop for StockZlib {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `new` and is freed once.
        unsafe { z::deflateEnd(&mut *self.stream) };
    }
}
