//! The byte stream that an archive is read from.

use std::ops::Range;

use super::TarError;

/// Size of a tar block in bytes.
pub(crate) const BLOCK_SIZE: usize = 512;

/// The unpacked bytes of an archive. The reader looks at the bytes in the buffer of the stream, without a copy.
pub(crate) trait BlockStream {
    /// Error from reading the stream or the archive in it.
    type Error: From<TarError>;

    /// Takes up to `max` bytes, and returns their range for [`Self::bytes`], which is valid until the next call. The range
    /// is empty only at the end of the stream.
    ///
    /// A range that starts at a block boundary of the stream contains that whole block, unless `max` is less or the stream ends.
    fn take(&mut self, max: u64) -> Result<Range<usize>, Self::Error>;

    /// Returns the bytes of a range that the last [`Self::take`] returned.
    fn bytes(&self, range: Range<usize>) -> &[u8];

    /// Returns the position in the stream of the next byte to take.
    fn offset(&self) -> u64;

    /// Skips `count` bytes, or all that remain if these are fewer. Returns the number of skipped bytes.
    fn skip(&mut self, count: u64) -> Result<u64, Self::Error> {
        let mut skipped = 0;
        while skipped < count {
            match self.take(count - skipped)?.len() {
                0 => break,
                taken => skipped += taken as u64,
            }
        }
        Ok(skipped)
    }

    /// Takes one block. The last block may be incomplete; at the end of the stream the slice is empty.
    ///
    /// Must be called only at a block boundary of the stream.
    fn take_block(&mut self) -> Result<&[u8], Self::Error> {
        let range = self.take(BLOCK_SIZE as u64)?;
        Ok(self.bytes(range))
    }
}
