//! Stock zlib at its default level, whose output CVMFS's own tools give as well.
//!
//! This is the only compressor here that is called through its C interface: two back ends of one binding cannot be had in
//! one build, and the fast inflate of the layer reader is the other one.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};
use std::mem::{MaybeUninit, size_of};

use libz_sys as z;

use super::encode::grow;

/// A compressor that is set up once and reset for each object.
pub(super) struct StockZlib {
    /// Boxed, because zlib's inner state points back at it.
    stream: Box<z::z_stream>,
}

// SAFETY: the stream and everything it points to belong to this value alone, and zlib keeps no thread-local state.
unsafe impl Send for StockZlib {}

impl StockZlib {
    pub(super) fn new() -> Self {
        let mut stream = Box::new(MaybeUninit::<z::z_stream>::zeroed());
        // SAFETY: zlib asks for a zeroed stream, in which null allocators mean its own; `deflateInit_` makes it valid.
        let (result, stream) = unsafe {
            let size = size_of::<z::z_stream>() as c_int;
            let result = z::deflateInit_(stream.as_mut_ptr(), z::Z_DEFAULT_COMPRESSION, z::zlibVersion(), size);
            (result, Box::from_raw(Box::into_raw(stream).cast::<z::z_stream>()))
        };
        assert_eq!(result, z::Z_OK, "zlib lacks memory");
        Self { stream }
    }

    /// Compresses `plain` into `out`, which grows where it is too short, and returns how many bytes there are.
    pub(super) fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> usize {
        // SAFETY: the stream was initialised by `new` and is never moved out of its box.
        let bound = unsafe {
            z::deflateReset(&mut *self.stream);
            z::deflateBound(&mut *self.stream, plain.len() as z::uLong)
        };
        grow(out, usize::try_from(bound).expect("objects are smaller than memory"));
        self.stream.next_in = plain.as_ptr().cast_mut();
        self.stream.avail_in = c_uint::try_from(plain.len()).expect("pieces are smaller than 4 GiB");
        self.stream.next_out = out.as_mut_ptr();
        self.stream.avail_out = c_uint::try_from(out.len()).expect("pieces are smaller than 4 GiB");
        // SAFETY: `next_in` and `next_out` point to live buffers of the lengths given, and zlib only reads the former.
        let result = unsafe { z::deflate(&mut *self.stream, z::Z_FINISH) };
        assert_eq!(result, z::Z_STREAM_END, "deflateBound promises that one call is enough");
        usize::try_from(self.stream.total_out).expect("objects are smaller than memory")
    }
}

impl Drop for StockZlib {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised by `new` and is freed once.
        unsafe { z::deflateEnd(&mut *self.stream) };
    }
}
