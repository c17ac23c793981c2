//! The bytes of an archive in blocks, and why a member cannot be read.

use std::io::BufRead;

use super::error::{EntryProblem, ReadLayerError};
use crate::layer::LimitExceeded;

/// Size of a block in bytes.
pub(super) const BLOCK_SIZE: usize = 512;

/// Reads an archive in order.
pub(super) struct Blocks<R> {
    stream: R,
    offset: u64,
}

/// Why a member cannot be read: because of the blob, or because of the member itself.
pub(super) enum Problem {
    Blob(ReadLayerError),
    Member(EntryProblem),
}

impl From<ReadLayerError> for Problem {
    fn from(error: ReadLayerError) -> Self {
        Self::Blob(error)
    }
}

impl From<EntryProblem> for Problem {
    fn from(error: EntryProblem) -> Self {
        Self::Member(error)
    }
}

impl From<LimitExceeded> for Problem {
    fn from(error: LimitExceeded) -> Self {
        Self::Member(error.into())
    }
}

impl<R: BufRead> Blocks<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, offset: 0 }
    }

    /// Returns the position in the archive in bytes.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next block. It is shorter, or empty, only at the end of the stream.
    pub(super) fn block(&mut self) -> Result<Vec<u8>, ReadLayerError> {
        let mut block = Vec::with_capacity(BLOCK_SIZE);
        self.take(BLOCK_SIZE as u64, |bytes| block.extend_from_slice(bytes))?;
        Ok(block)
    }

    /// Returns the next block, or an error if the stream ends before or inside it.
    pub(super) fn whole_block(&mut self) -> Result<[u8; BLOCK_SIZE], Problem> {
        Ok(self.block()?.try_into().map_err(|_| EntryProblem::Truncated)?)
    }

    /// Passes on exactly `length` bytes to `sink`, or fails.
    pub(super) fn take_all(&mut self, length: u64, sink: impl FnMut(&[u8])) -> Result<(), Problem> {
        let taken = self.take(length, sink)?;
        if taken == length { Ok(()) } else { Err(EntryProblem::Truncated.into()) }
    }

    /// Skips the padding after `stored` bytes of content. Some programs omit the padding at the end of the archive.
    pub(super) fn skip_padding(&mut self, stored: u64) -> Result<(), ReadLayerError> {
        self.take(stored.next_multiple_of(BLOCK_SIZE as u64) - stored, |_| {})?;
        Ok(())
    }

    /// Reads to the end of the stream, and returns it.
    pub(super) fn into_drained(mut self) -> Result<R, ReadLayerError> {
        self.take(u64::MAX, |_| {})?;
        Ok(self.stream)
    }

    /// Passes on up to `length` bytes, and returns their number, which is lower only at the end of the stream.
    fn take(&mut self, length: u64, mut sink: impl FnMut(&[u8])) -> Result<u64, ReadLayerError> {
        let mut taken = 0;
        while taken < length {
            let available = self.stream.fill_buf()?;
            let count = available.len().min(usize::try_from(length - taken).unwrap_or(usize::MAX));
            if count == 0 {
                break;
            }
            sink(&available[..count]);
            self.stream.consume(count);
            taken += count as u64;
        }
        self.offset += taken;
        Ok(taken)
    }
}
