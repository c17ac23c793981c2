//! Hashes, counts and limits the bytes of a blob while they are read.

use std::cell::Cell;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::within;
use crate::image::Digest;
use crate::layer::{LayerError, Limit, Limits};

/// Passes on the bytes of a reader, and hashes and counts them.
pub(super) struct Summed<'c, R> {
    reader: R,
    hasher: Sha256,
    count: &'c Cell<u64>,
}

impl<'c, R> Summed<'c, R> {
    /// Starts to read. Adds the number of bytes to `count` as they are read.
    pub(super) fn new(reader: R, count: &'c Cell<u64>) -> Self {
        Self { reader, hasher: Sha256::new(), count }
    }

    /// Returns the digest of all bytes that were read.
    pub(super) fn digest(self) -> Digest {
        Digest::from(<[u8; 32]>::from(self.hasher.finalize()))
    }
}

impl<R: Read> Read for Summed<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(out)?;
        self.hasher.update(&out[..count]);
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Passes on the bytes of an unpacked archive, and fails if it is too large.
pub(super) struct Limited<'c, R> {
    pub(super) reader: R,
    /// Number of unpacked bytes so far.
    pub(super) unpacked: &'c Cell<u64>,
    /// Number of bytes of the blob that were read so far.
    pub(super) packed: &'c Cell<u64>,
    pub(super) limits: Limits,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(out)?;
        self.check().map_err(io::Error::other)?;
        Ok(count)
    }
}

impl<R> Limited<'_, R> {
    fn check(&self) -> Result<(), LayerError> {
        let unpacked = self.unpacked.get();
        within(Limit::UnpackedSize, unpacked, self.limits.unpacked_size)?;
        if unpacked > self.limits.ratio_applies_above {
            within(Limit::Ratio, unpacked.div_ceil(self.packed.get().max(1)), self.limits.ratio)?;
        }
        Ok(())
    }
}

/// Returns the error of a layer that a reader passed on as an I/O error.
pub(super) fn layer_error(error: io::Error) -> LayerError {
    error.downcast::<LayerError>().unwrap_or_else(LayerError::Read)
}
