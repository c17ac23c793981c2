//! Reads the bytes of a tar file, uncompressed or compressed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::compression::Compression;
use super::error::ArchiveError;

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

    /// Skips `count` bytes. Fails if the archive has fewer bytes.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<()> {
        let is_there = match self {
            Self::Plain(span) => {
                let is_there = count <= span.end - span.position;
                span.position += if is_there { count } else { 0 };
                is_there
            }
            Self::Unpacked(stream) => io::copy(&mut stream.take(count), &mut io::sink())? == count,
        };
        if is_there { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
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

/// The next bytes of an archive, for a parser that needs all headers of a member in one buffer.
pub(super) struct HeaderWindow {
    stream: ArchiveStream,
    /// Bytes that have been read but not skipped.
    pub(super) buffer: Vec<u8>,
    /// Offset of the buffer in the uncompressed archive.
    pub(super) position: u64,
}

impl HeaderWindow {
    pub(super) fn new(stream: ArchiveStream) -> Self {
        Self { stream, buffer: Vec::new(), position: 0 }
    }

    /// Returns whether the archive is compressed. To read bytes of a compressed archive again, all earlier bytes must be
    /// decompressed.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.stream, ArchiveStream::Unpacked(_))
    }

    /// Fills the buffer up to `length` bytes. Returns false if the archive has fewer bytes.
    pub(super) fn fill(&mut self, length: usize) -> Result<bool, ArchiveError> {
        let missing = length.saturating_sub(self.buffer.len());
        let read = self.stream.by_ref().take(missing as u64).read_to_end(&mut self.buffer);
        read.map(|count| count == missing).map_err(|source| self.failed(source))
    }

    /// Skips `count` bytes, first those in the buffer.
    pub(super) fn advance(&mut self, count: u64) -> Result<(), ArchiveError> {
        let end = self.position.saturating_add(count);
        if end > MAX_UNPACKED {
            return Err(ArchiveError::TooLarge { limit: MAX_UNPACKED });
        }
        let buffered = self.buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        self.buffer.drain(..buffered);
        self.stream.skip(count - buffered as u64).map_err(|source| self.failed(source))?;
        self.position = end;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> ArchiveError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
            _ => ArchiveError::Read { position: self.position, source },
        }
    }
}
