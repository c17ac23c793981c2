//! Reads the bytes of a blob, hashes and counts them, and fails if there are more than expected.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::LayerError;
use crate::image::Digest;
use crate::span::{BYTES, span};

/// Size of the buffer in bytes: large enough for hashing and inflating long runs at once, small enough for the second-level
/// cache.
const BUFFER_SIZE: usize = 256 << 10;

/// Reads a blob through a buffer, and hashes and counts the bytes read.
pub(super) struct Blob<R> {
    source: R,
    buffer: Box<[u8]>,
    /// Range of the bytes in `buffer` that were read, but not consumed.
    start: usize,
    end: usize,
    hasher: Sha256,
    size: u64,
    expected_size: u64,
}

impl<R: Read> Blob<R> {
    pub(super) fn new(source: R, expected_size: u64) -> Self {
        let buffer = vec![0; BUFFER_SIZE].into_boxed_slice();
        Self { source, buffer, start: 0, end: 0, hasher: Sha256::new(), size: 0, expected_size }
    }

    /// Returns bytes that were read and not consumed: empty only at the end of the blob.
    pub(super) fn available(&mut self) -> Result<&[u8], LayerError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.append()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Marks the first `count` available bytes as consumed.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "only what is available can be consumed");
    }

    /// Returns the first bytes of the blob, up to `count`, without consuming them. Must be called before any other read.
    pub(super) fn peek(&mut self, count: usize) -> Result<&[u8], LayerError> {
        // A pipe or socket may return fewer bytes than requested, even at the start.
        while self.end < count && self.append()? > 0 {}
        Ok(&self.buffer[..self.end.min(count)])
    }

    /// Consumes exactly `N` bytes, or returns `None` if fewer bytes remain.
    pub(super) fn array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, LayerError> {
        let mut bytes = [0; N];
        let mut filled = 0;
        while filled < N {
            let available = self.available()?;
            if available.is_empty() {
                return Ok(None);
            }
            let count = available.len().min(N - filled);
            bytes[filled..filled + count].copy_from_slice(&available[..count]);
            self.consume(count);
            filled += count;
        }
        Ok(Some(bytes))
    }

    /// Moves bytes to `out`, bypassing the buffer when it is empty. Returns 0 only at the end of the blob.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, LayerError> {
        if self.start == self.end {
            return self.read_source(out);
        }
        let count = out.len().min(self.end - self.start);
        out[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.consume(count);
        Ok(count)
    }

    /// Returns the number of bytes read so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the expected size of the whole blob in bytes.
    pub(super) fn expected_size(&self) -> u64 {
        self.expected_size
    }

    /// Returns the position in the blob of the next byte to consume.
    pub(super) fn offset(&self) -> u64 {
        self.size - (self.end - self.start) as u64
    }

    /// Returns the digest of the bytes read so far.
    pub(super) fn digest(&self) -> Digest {
        Digest::from(<[u8; 32]>::from(self.hasher.clone().finalize()))
    }

    fn append(&mut self) -> Result<usize, LayerError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let count = self.read_source(&mut buffer[self.end..]);
        self.buffer = buffer;
        let count = count?;
        self.end += count;
        Ok(count)
    }

    fn read_source(&mut self, out: &mut [u8]) -> Result<usize, LayerError> {
        let reading = span!("read");
        let count = loop {
            match self.source.read(out) {
                // Not a failure: `Read` allows this error at any time, and the call may be repeated.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(LayerError::Read)?,
            }
        };
        reading.record(BYTES, count as u64);
        drop(reading);
        let _digest = span!("digest", count);
        self.hasher.update(&out[..count]);
        self.size += count as u64;
        // Checked at each read, so that a response that never ends is stopped at its first excess byte.
        if self.size > self.expected_size {
            return Err(LayerError::TooLarge { expected: self.expected_size });
        }
        Ok(count)
    }
}
