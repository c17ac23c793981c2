//! The unpacked tar stream: hashed, counted, and handed out in place.

use std::io::Read;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::feed::Feed;
use super::{BlobCompression, LayerError, Limit, Limits};
use crate::image::{DiffId, Digest};
use crate::span::{BYTES, span};

/// Tar counts in blocks of this many bytes.
pub(super) const BLOCK_SIZE: usize = 512;

/// A multiple of [`BLOCK_SIZE`], and always filled to the end, so that no block is ever split by a refill.
///
/// Hashing and the reader of the content find it in the second-level cache.
pub(super) const BUFFER_SIZE: usize = 256 << 10;

/// Reads the tar stream of a layer.
pub(super) struct TarStream<R> {
    feed: Feed<R>,
    buffer: Box<[u8]>,
    /// The part of `buffer` that is unpacked, but not taken.
    start: usize,
    end: usize,
    /// Nothing where the blob is not compressed: then its digest is the diff ID.
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

    /// Takes up to `most` bytes: none only at the end of the stream. [`Self::bytes`] shows them until the next call.
    pub(super) fn take(&mut self, most: u64) -> Result<Range<usize>, LayerError> {
        if self.start == self.end {
            self.fill()?;
        }
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.end - self.start);
        self.start += count;
        Ok(self.start - count..self.start)
    }

    /// Returns bytes that [`Self::take`] took last.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Takes one block; an incomplete one is as short as it is, and none at all is empty.
    ///
    /// To be called on a block boundary of the stream only.
    pub(super) fn take_block(&mut self) -> Result<&[u8], LayerError> {
        let range = self.take(BLOCK_SIZE as u64)?;
        Ok(self.bytes(range))
    }

    /// Returns the position in the stream of the next byte to take.
    pub(super) fn offset(&self) -> u64 {
        self.size - (self.end - self.start) as u64
    }

    /// Reads on to the end of the blob and shows no one what it reads.
    pub(super) fn drain(&mut self) -> Result<(), LayerError> {
        while !self.take(u64::MAX)?.is_empty() {}
        Ok(())
    }

    /// Returns the size of what was unpacked.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of what was unpacked.
    pub(super) fn diff_id(&self) -> DiffId {
        match &self.hasher {
            Some(hasher) => DiffId(Digest::from(<[u8; 32]>::from(hasher.clone().finalize()))),
            None => DiffId(self.feed.blob_digest()),
        }
    }

    /// Returns how many bytes of the blob were read for what was unpacked so far.
    pub(super) fn blob_bytes_read(&self) -> u64 {
        self.feed.blob_size()
    }

    /// Returns the size and the digest of what was read of the blob, and how that is compressed.
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
