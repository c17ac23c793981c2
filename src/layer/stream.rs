//! The unpacked tar stream, hashed and counted. Callers read the bytes in the buffer, without a copy.

use std::io::Read;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::feed::Feed;
use super::{BlobCompression, LayerError, Limit, Limits};
use crate::image::{DiffId, Digest};
use crate::span::{BYTES, span};
use crate::tar_archive::{BLOCK_SIZE, BlockStream};

/// Size of a buffer in bytes. It is a multiple of [`BLOCK_SIZE`], and each buffer is filled completely, so that a refill never
/// splits a block.
///
/// A buffer of this size is still in the second-level cache when it is hashed and when its content is read.
pub(super) const BUFFER_SIZE: usize = 256 << 10;

const _: () = assert!(BUFFER_SIZE.is_multiple_of(BLOCK_SIZE));

/// Reads the tar stream of a layer.
pub(super) struct TarStream<R> {
    feed: Feed<R>,
    buffer: Box<[u8]>,
    /// Range of the bytes in `buffer` that are unpacked, but not taken.
    start: usize,
    end: usize,
    /// `None` if the blob is not compressed: then the digest of the blob is also the diff ID.
    hasher: Option<Sha256>,
    size: u64,
    limits: Limits,
}

impl<R: Read> TarStream<R> {
    pub(super) fn new(feed: Feed<R>, limits: Limits) -> Self {
        let hasher = (feed.compression() != BlobCompression::None).then(Sha256::new);
        let buffer = vec![0; BUFFER_SIZE].into_boxed_slice();
        Self { feed, buffer, start: 0, end: 0, hasher, size: 0, limits }
    }

    /// Reads and discards the rest of the blob.
    pub(super) fn drain(&mut self) -> Result<(), LayerError> {
        while !self.take(u64::MAX)?.is_empty() {}
        Ok(())
    }

    /// Returns the number of bytes unpacked so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of the bytes unpacked so far.
    pub(super) fn diff_id(&self) -> DiffId {
        match &self.hasher {
            Some(hasher) => DiffId(Digest::from(<[u8; 32]>::from(hasher.clone().finalize()))),
            None => DiffId(self.feed.blob_digest()),
        }
    }

    /// Returns the number of blob bytes that were read to produce the unpacked bytes so far.
    pub(super) fn blob_bytes_read(&self) -> u64 {
        self.feed.blob_size()
    }

    /// Returns size, digest and compression of the blob. Must be called only at its end.
    pub(super) fn blob(&self) -> (u64, Digest, BlobCompression) {
        (self.feed.blob_size(), self.feed.blob_digest(), self.feed.compression())
    }

    fn fill(&mut self) -> Result<(), LayerError> {
        self.start = 0;
        self.end = 0;
        let unpacking = span!("unpack");
        self.end = self.feed.fill(&mut self.buffer)?;
        unpacking.record(BYTES, self.end as u64);
        drop(unpacking);
        if let Some(hasher) = &mut self.hasher {
            let _digest = span!("diff ID", self.end);
            hasher.update(&self.buffer[..self.end]);
        }
        self.size += self.end as u64;
        self.check_limits()
    }

    fn check_limits(&self) -> Result<(), LayerError> {
        Limit::UnpackedSize.check(self.size, self.limits.unpacked_size)?;
        if self.size > self.limits.ratio_applies_above {
            let blob_size = self.feed.blob_size().max(1);
            Limit::Ratio.check(self.size.div_ceil(blob_size), self.limits.ratio)?;
        }
        Ok(())
    }
}

impl<R: Read> BlockStream for TarStream<R> {
    type Error = LayerError;

    fn take(&mut self, max: u64) -> Result<Range<usize>, LayerError> {
        if self.start == self.end {
            self.fill()?;
        }
        let count = usize::try_from(max).unwrap_or(usize::MAX).min(self.end - self.start);
        self.start += count;
        Ok(self.start - count..self.start)
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    fn offset(&self) -> u64 {
        self.size - (self.end - self.start) as u64
    }
}
