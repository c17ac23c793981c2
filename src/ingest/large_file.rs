//! Cuts a large file into chunks while it is read.

use std::mem;

use super::BlobReader;
use super::buffers::Buffers;
use crate::layer::{ContentPart, LayerError};
use crate::object::{ChunkSizes, Chunker};

/// Number of zero bytes that are written at once when a hole is filled.
const ZERO_BLOCK: usize = 64 << 10;

/// A file that is being cut into chunks.
pub(super) struct LargeFile {
    size: u64,
    sizes: ChunkSizes,
    /// Offset of the current chunk in the file.
    start: u64,
    chunker: Chunker,
    chunk: Vec<u8>,
    /// Remaining zero bytes of the current hole.
    hole: u64,
    /// Data after the last cut that is not in a chunk yet.
    rest: Vec<u8>,
}

/// A chunk of a file.
pub(super) struct FileChunk {
    /// Offset of the chunk in the file.
    pub(super) start: u64,
    pub(super) content: ChunkContent,
    /// Whether the file has no other chunk.
    pub(super) is_whole_file: bool,
}

/// Plain content of a chunk.
pub(super) enum ChunkContent {
    Bytes(Vec<u8>),
    /// A number of zero bytes that are not in memory.
    Zeros(u64),
}

impl ChunkContent {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(length) => *length,
        }
    }
}

impl LargeFile {
    pub(super) fn new(size: u64, sizes: ChunkSizes) -> Self {
        Self { size, sizes, start: 0, chunker: Chunker::new(sizes), chunk: Vec::new(), hole: 0, rest: Vec::new() }
    }

    /// Reads to the next cut, and returns the chunk, or `None` at the end of the file.
    pub(super) fn next_chunk(
        &mut self,
        reader: &mut BlobReader,
        buffers: &Buffers,
    ) -> Result<Option<FileChunk>, LayerError> {
        let Some(content) = self.next_content(reader, buffers)? else { return Ok(None) };
        let (start, length) = (self.start, content.len());
        self.start += length;
        Ok(Some(FileChunk { start, content, is_whole_file: length == self.size }))
    }

    fn next_content(&mut self, reader: &mut BlobReader, buffers: &Buffers) -> Result<Option<ChunkContent>, LayerError> {
        loop {
            if self.chunker.is_at_chunk_start() && self.rest.is_empty() && self.hole >= self.sizes.maximum {
                self.hole -= self.sizes.maximum;
                return Ok(Some(ChunkContent::Zeros(self.sizes.maximum)));
            }
            if self.chunk.capacity() == 0 {
                // Allocated at its full size at once, because growing to it would copy the chunk several times.
                let room = self.sizes.maximum.min(self.size - self.start);
                self.chunk = buffers.take(usize::try_from(room).expect("a chunk fits into memory"));
            }
            if self.extend_chunk(reader)? {
                let chunk = mem::take(&mut self.chunk);
                return Ok((!chunk.is_empty()).then_some(ChunkContent::Bytes(chunk)));
            }
        }
    }

    /// Appends the next data to the chunk. Returns whether the chunk ends there, at a cut or the end of the file.
    fn extend_chunk(&mut self, reader: &mut BlobReader) -> Result<bool, LayerError> {
        if !self.rest.is_empty() {
            let rest = mem::take(&mut self.rest);
            return Ok(self.append(&rest));
        }
        if self.hole > 0 {
            return self.append_zeros(reader);
        }
        match reader.next_part()? {
            Some(ContentPart::Data(data)) => Ok(self.append(data)),
            Some(ContentPart::Hole(length)) => {
                self.hole = length;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Appends zeros of the current hole to the chunk. Returns whether there is a cut.
    fn append_zeros(&mut self, reader: &mut BlobReader) -> Result<bool, LayerError> {
        let zeros = [0; ZERO_BLOCK];
        let length = self.hole.min(ZERO_BLOCK as u64);
        reader.count_filled_hole(length)?;
        self.hole -= length;
        let was_cut = self.append(&zeros[..length as usize]);
        // Zeros after a cut become part of a hole again, because the whole next chunk may be a hole.
        self.hole += mem::take(&mut self.rest).len() as u64;
        Ok(was_cut)
    }

    /// Appends data to the chunk up to the next cut, and keeps the rest. Returns whether there is a cut.
    fn append(&mut self, data: &[u8]) -> bool {
        let cut = self.chunker.cut(data);
        let (before, after) = data.split_at(cut.unwrap_or(data.len()));
        self.chunk.extend_from_slice(before);
        self.rest = after.to_vec();
        cut.is_some()
    }
}
