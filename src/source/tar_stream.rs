//! Reads the bytes of a tar file, uncompressed or compressed.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::compression::Compression;
use super::error::ArchiveError;
use crate::tar_archive::{BLOCK_SIZE, BlockStream};

/// Maximum uncompressed size of an archive, or of a layer in it, in bytes. A decompression bomb costs time up to this limit, but
/// no memory.
pub(super) const MAX_UNPACKED: u64 = 1 << 40;

/// A range of a file. It is read with `pread`, so that several readers can share one file descriptor.
#[derive(Debug, Clone)]
pub(super) struct FileSpan {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl FileSpan {
    /// Returns the range of a whole file with its current size.
    pub(super) fn whole(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), position: 0, end })
    }

    /// Detects the compression of the file.
    pub(super) fn detect(&self) -> io::Result<Compression> {
        let mut start = Vec::new();
        self.clone().take(Compression::MAGIC as u64).read_to_end(&mut start)?;
        Ok(Compression::detect(&start))
    }
}

impl Read for FileSpan {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let remaining = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(remaining);
        let count = self.file.read_at(&mut buffer[..length], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// The uncompressed archive.
pub(super) enum ArchiveStream {
    Plain(FileSpan),
    Unpacked(Box<dyn Read + Send>),
}

impl ArchiveStream {
    /// Decompresses `file` from its start.
    pub(super) fn new(file: &FileSpan, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(file.clone()),
            packed => Self::Unpacked(packed.unpack(file.clone())?),
        })
    }

    /// Skips `count` bytes, or all that remain if these are fewer. Returns the number of skipped bytes.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<u64> {
        match self {
            Self::Plain(span) => {
                let count = count.min(span.end - span.position);
                span.position += count;
                Ok(count)
            }
            Self::Unpacked(stream) => io::copy(&mut stream.take(count), &mut io::sink()),
        }
    }
}

impl Read for ArchiveStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(span) => span.read(buffer),
            Self::Unpacked(stream) => stream.read(buffer),
        }
    }
}

/// Reads one member. Fails if the archive ends inside it.
pub(super) struct MemberReader {
    stream: ArchiveStream,
    remaining: u64,
}

impl MemberReader {
    /// Reads the next `size` bytes of `stream`.
    pub(super) fn new(stream: ArchiveStream, size: u64) -> Self {
        Self { stream, remaining: size }
    }
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        let count = self.stream.read(&mut buffer[..length])?;
        if count == 0 && length > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside this member"));
        }
        self.remaining -= count as u64;
        Ok(count)
    }
}

/// Size of the buffer in bytes. It is a multiple of [`BLOCK_SIZE`], and each refill is of whole blocks, so that a block is never split.
const BUFFER_SIZE: usize = 32 << 10;

const _: () = assert!(BUFFER_SIZE.is_multiple_of(BLOCK_SIZE));

/// The archive with a buffer, to scan it for headers. Bytes outside of the buffer are skipped without reading them if the archive is
/// uncompressed.
pub(super) struct ScannedStream {
    stream: ArchiveStream,
    buffer: Box<[u8]>,
    /// Range of the bytes in `buffer` that were read, but not taken.
    start: usize,
    end: usize,
    /// Offset in the uncompressed archive of the next byte to take.
    offset: u64,
}

impl ScannedStream {
    pub(super) fn new(stream: ArchiveStream) -> Self {
        Self { stream, buffer: vec![0; BUFFER_SIZE].into_boxed_slice(), start: 0, end: 0, offset: 0 }
    }

    /// Returns whether the archive is compressed. To read bytes of a compressed archive again, all earlier bytes must be
    /// decompressed.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.stream, ArchiveStream::Unpacked(_))
    }

    /// Reads at least one block, or the incomplete block at the end of the archive.
    fn fill(&mut self) -> Result<(), ArchiveError> {
        if self.offset > MAX_UNPACKED {
            return Err(ArchiveError::TooLarge { limit: MAX_UNPACKED });
        }
        (self.start, self.end) = (0, 0);
        // Not filled completely, because the compressed stream may be damaged after the end of the archive.
        while self.end == 0 || !self.end.is_multiple_of(BLOCK_SIZE) {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                // Not a failure: `Read` allows this error at any time, and the call may be repeated.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Takes `count` bytes that are in the buffer.
    fn advance(&mut self, count: usize) -> Range<usize> {
        self.start += count;
        self.offset += count as u64;
        self.start - count..self.start
    }

    fn failed(&self, source: io::Error) -> ArchiveError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => ArchiveError::Read { position: self.offset, source },
        }
    }
}

impl BlockStream for ScannedStream {
    type Error = ArchiveError;

    fn take(&mut self, max: u64) -> Result<Range<usize>, ArchiveError> {
        if self.start == self.end {
            self.fill()?;
        }
        let count = usize::try_from(max).unwrap_or(usize::MAX).min(self.end - self.start);
        Ok(self.advance(count))
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn skip(&mut self, count: u64) -> Result<u64, ArchiveError> {
        // Checked in advance: skipping the bytes of a compressed archive takes as long as decompressing them.
        if self.offset.saturating_add(count) > MAX_UNPACKED {
            return Err(ArchiveError::TooLarge { limit: MAX_UNPACKED });
        }
        let buffered = usize::try_from(count).unwrap_or(usize::MAX).min(self.end - self.start);
        let buffered = self.advance(buffered).len() as u64;
        let skipped = self.stream.skip(count - buffered).map_err(|source| self.failed(source))?;
        self.offset += skipped;
        Ok(buffered + skipped)
    }
}
