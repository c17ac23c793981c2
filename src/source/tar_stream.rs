//! The bytes of a tar file, plain or packed, from any place on.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::compression::Compression;
use super::error::ArchiveError;

/// How far an archive, or a layer in it, is unpacked, in bytes. A bomb costs time up to here, never memory.
pub(super) const MAX_UNPACKED: u64 = 1 << 40;

/// A part of a file, read without moving the file's own position, so that several readers share one handle.
#[derive(Debug, Clone)]
pub(super) struct FileSpan {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl FileSpan {
    /// Covers a whole file as long as it is now.
    pub(super) fn whole(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), position: 0, end })
    }

    /// Recognises how the file is packed.
    pub(super) fn detect(&self) -> io::Result<Compression> {
        let mut start = Vec::new();
        self.clone().take(Compression::MAGIC as u64).read_to_end(&mut start)?;
        Ok(Compression::detect(&start))
    }
}

impl Read for FileSpan {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..length], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// The unpacked archive from its start on.
pub(super) enum ArchiveStream {
    Plain(FileSpan),
    Unpacked(Box<dyn Read + Send>),
}

impl ArchiveStream {
    /// Unpacks `file` from its start on.
    pub(super) fn new(file: &FileSpan, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(file.clone()),
            packed => Self::Unpacked(packed.unpack(file.clone())?),
        })
    }

    /// Passes over `count` bytes, which must be there.
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

/// Reads a member to its end and no further.
pub(super) struct MemberReader {
    stream: ArchiveStream,
    left: u64,
}

impl MemberReader {
    /// Reads the next `size` bytes of `stream`.
    pub(super) fn new(stream: ArchiveStream, size: u64) -> Self {
        Self { stream, left: size }
    }
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.stream.read(&mut buffer[..length])?;
        if count == 0 && length > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside of this member"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// The next bytes of an archive, for a parser that wants headers in one piece.
pub(super) struct HeaderWindow {
    stream: ArchiveStream,
    /// The bytes that have been read but not passed over.
    pub(super) buffer: Vec<u8>,
    /// Where the buffer begins in the unpacked archive.
    pub(super) position: u64,
}

impl HeaderWindow {
    pub(super) fn new(stream: ArchiveStream) -> Self {
        Self { stream, buffer: Vec::new(), position: 0 }
    }

    /// Tells whether reading the same bytes again means unpacking everything before them again.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.stream, ArchiveStream::Unpacked(_))
    }

    /// Lengthens the buffer to `length` bytes; tells whether the archive has as many.
    pub(super) fn fill(&mut self, length: usize) -> Result<bool, ArchiveError> {
        let missing = length.saturating_sub(self.buffer.len());
        let read = self.stream.by_ref().take(missing as u64).read_to_end(&mut self.buffer);
        read.map(|count| count == missing).map_err(|source| self.failed(source))
    }

    /// Passes over `count` bytes, of which the first may lie in the buffer.
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
