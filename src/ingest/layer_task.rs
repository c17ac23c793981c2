//! A layer that threads read step by step.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::mem;
use std::ops::Range;
use std::time::Instant;

use super::block_list::BlockList;
use super::buffers::Buffers;
use super::object_writer::{Job, ObjectWriter, PendingObject, PlainContent};
use super::{IngestError, IngestedLayer, LayerToRead, POLL_INTERVAL};
use crate::layer::{
    self, EntryKind, ExpectedLayer, LayerEntry, LayerError, LayerReader, LayerSummary, Limits, NodeKind,
};
use crate::object::{Chunk, ChunkSizes, Chunker, Content, ContentObjects};
use crate::source::{LayerBlob, Readiness, SourceError};
use crate::span::span;

/// Total size in bytes at which the content of several small files becomes a job.
pub(super) const BATCH_BYTES: u64 = 1 << 20;

/// Minimum size of an entry in a tar archive in bytes: one header.
const MIN_ENTRY_SIZE: u64 = 512;

/// Maximum number of small files in one job.
const MAX_BATCH_FILES: usize = 512;

/// A layer that is being read. One thread at a time reads a part of it.
pub(super) struct LayerTask<'a> {
    pub(super) index: usize,
    pub(super) is_remote: bool,
    is_verified_only: bool,
    /// Whether a second thread unpacks ahead.
    unpack_ahead: bool,
    /// The blob is not opened before this time. Set after an attempt has found that the blob cannot be opened yet.
    pub(super) not_before: Instant,
    source: LayerSource<'a>,
    expected: ExpectedLayer,
    limits: Limits,
    sizes: ChunkSizes,
    entries: BlockList<LayerEntry<Range<usize>>>,
    /// Number of objects so far.
    object_count: usize,
    /// Offset and size of each part of a large file, by the number of its object.
    spans: HashMap<usize, (u64, u64)>,
    batch: Job,
    large: Option<LargeFile>,
    /// Sizes of small files that consist of one hole. The zeros of each size are written out only once.
    hole_sizes: HashSet<u64>,
}

/// State of the blob. A blob is opened only shortly before it is read, because an image may have more layers than there is memory
/// for readers.
enum LayerSource<'a> {
    Closed(Box<dyn FnMut() -> Result<Option<LayerBlob>, SourceError> + Send + 'a>),
    /// Open, but nothing was read yet.
    Open(LayerBlob),
    Reading(Box<LayerReader<BlobReader>>, Readiness),
    /// Set while the state changes; remains after an error.
    Gone,
}

/// The bytes of a layer's blob.
type BlobReader = Box<dyn Read + Send>;

/// A file that is being cut into chunks.
struct LargeFile {
    size: u64,
    /// Offset of the current chunk in the file.
    start: u64,
    chunker: Chunker,
    chunk: Vec<u8>,
    /// Remaining zero bytes of the current hole.
    hole: u64,
    /// Data after the last cut that is not in a chunk yet.
    rest: Vec<u8>,
}

/// Result of reading a part of a layer.
pub(super) enum ReadProgress {
    /// There is nothing to store: the blob has not arrived, or the layer is only verified.
    NoContent,
    /// Content to store.
    Job(Job),
    /// The last content; the layer was read to its end.
    End(Job),
}

/// A layer that was read to its end. Some of its content may not be stored yet.
pub(super) struct ReadLayer {
    pub(super) index: usize,
    entries: BlockList<LayerEntry<Range<usize>>>,
    spans: HashMap<usize, (u64, u64)>,
    summary: LayerSummary,
}

impl<'a> LayerTask<'a> {
    pub(super) fn new(
        index: usize,
        layer: LayerToRead<'a>,
        sizes: ChunkSizes,
        limits: Limits,
        unpack_ahead: bool,
    ) -> Self {
        let LayerToRead { open, is_remote, is_verified_only, expected } = layer;
        // A thread does not wait for a remote blob while it can do other work, so unpacking ahead would not help.
        let unpack_ahead = unpack_ahead && !is_remote;
        let source = LayerSource::Closed(open);
        let (entries, spans, hole_sizes) = Default::default();
        let batch = Job::new(index);
        let not_before = Instant::now();
        Self {
            index,
            is_remote,
            is_verified_only,
            unpack_ahead,
            not_before,
            source,
            expected,
            limits,
            sizes,
            entries,
            object_count: 0,
            spans,
            batch,
            large: None,
            hole_sizes,
        }
    }

    /// Returns the number of blob bytes that are not read yet.
    pub(super) fn unread_bytes(&self) -> u64 {
        let read = if let LayerSource::Reading(reader, _) = &self.source { reader.blob_bytes_read() } else { 0 };
        self.expected.size.saturating_sub(read)
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.source, LayerSource::Closed(_))
    }

    /// Returns whether the layer can probably be read without waiting for bytes.
    pub(super) fn is_ready(&self) -> bool {
        match &self.source {
            LayerSource::Open(blob) => blob.is_ready(),
            LayerSource::Reading(_, is_ready) => is_ready(),
            LayerSource::Closed(_) | LayerSource::Gone => true,
        }
    }

    /// Opens the blob if possible, and creates its reader if the first bytes have arrived. Returns whether the reader exists.
    fn prepare(&mut self) -> Result<bool, IngestError> {
        match mem::replace(&mut self.source, LayerSource::Gone) {
            LayerSource::Closed(mut open) => {
                let Some(blob) = open()? else {
                    self.source = LayerSource::Closed(open);
                    self.not_before = Instant::now() + POLL_INTERVAL;
                    return Ok(false);
                };
                let goes_on = blob.is_ready();
                self.source = LayerSource::Open(blob);
                Ok(goes_on && self.prepare()?)
            }
            LayerSource::Open(blob) => {
                let (reader, is_ready) = blob.into_parts();
                let reader = match self.unpack_ahead {
                    true => LayerReader::ahead(reader, self.expected, self.limits)?,
                    false => LayerReader::new(reader, self.expected, self.limits)?,
                };
                self.source = LayerSource::Reading(Box::new(reader), is_ready);
                Ok(true)
            }
            reading => {
                self.source = reading;
                Ok(true)
            }
        }
    }

    /// Reads until there is content to store: many small files, or one chunk of a large file.
    pub(super) fn read_some(&mut self, buffers: &Buffers) -> Result<ReadProgress, IngestError> {
        let _parsing = span!("parse");
        if !self.prepare()? {
            return Ok(ReadProgress::NoContent);
        }
        let LayerSource::Reading(reader, _) = &mut self.source else { unreachable!("the layer was opened just now") };
        if self.is_verified_only {
            return Ok(if skip_some(reader)? { ReadProgress::End(self.take_batch()) } else { ReadProgress::NoContent });
        }
        loop {
            if let Some(file) = &mut self.large {
                let Some(content) = file.next_chunk(reader, &self.sizes, buffers)? else {
                    self.large = None;
                    continue;
                };
                let (start, length) = (file.start, content.len());
                file.start += length;
                // As in CVMFS, a file with a single chunk becomes an ordinary object, which deduplicates against whole
                // files.
                let is_chunk = length < file.size;
                return Ok(ReadProgress::Job(self.job_of_large_file(start, content, is_chunk)));
            }
            let Some(entry) = reader.next_entry()? else { return Ok(ReadProgress::End(self.take_batch())) };
            let file_size = match &entry.kind {
                EntryKind::Node(_, NodeKind::File { size, .. }) => Some(*size),
                _ => None,
            };
            let first = self.object_count;
            match file_size {
                // The rule of CVMFS: only files larger than the minimum chunk size are cut.
                Some(size) if size > self.sizes.minimum => self.large = Some(LargeFile::new(size, self.sizes)),
                Some(size) => {
                    self.object_count += 1;
                    if self.batch.buffer.capacity() == 0 {
                        self.batch.buffer = buffers.take(BATCH_BYTES as usize);
                    }
                    self.batch.read_small_file(reader, first, size, &mut self.hole_sizes)?;
                }
                None => {}
            }
            let is_large = self.large.is_some();
            // The number of chunks of a large file is not known yet. Its range grows with each chunk.
            self.entries.push(entry.map_content(|()| first..first + usize::from(!is_large)));
            if self.batch.bytes() >= BATCH_BYTES || self.batch.objects.len() >= MAX_BATCH_FILES {
                return Ok(ReadProgress::Job(self.take_batch()));
            }
        }
    }

    fn job_of_large_file(&mut self, start: u64, content: LargeContent, is_chunk: bool) -> Job {
        let id = self.object_count;
        self.object_count += 1;
        self.spans.insert(id, (start, content.len()));
        if let Some(EntryKind::Node(_, NodeKind::File { content, .. })) =
            self.entries.last_mut().map(|entry| &mut entry.kind)
        {
            content.end = id + 1;
        }
        let mut job = Job::new(self.index);
        let content = match content {
            LargeContent::Zeros(length) => PlainContent::Zeros(length),
            LargeContent::Bytes(bytes) => {
                job.buffer = bytes;
                PlainContent::Bytes(0..job.buffer.len())
            }
        };
        job.objects.push(PendingObject { id, is_chunk, content });
        job
    }

    fn take_batch(&mut self) -> Job {
        mem::replace(&mut self.batch, Job::new(self.index))
    }

    /// Verifies the layer as a whole.
    pub(super) fn finish(self) -> Result<ReadLayer, IngestError> {
        let LayerSource::Reading(reader, _) = self.source else {
            unreachable!("only a layer that was read is finished")
        };
        let summary = reader.finish()?;
        Ok(ReadLayer { index: self.index, entries: self.entries, spans: self.spans, summary })
    }
}

/// Reads a part of the layer and discards it. Returns whether the last entry was reached.
fn skip_some(reader: &mut LayerReader<BlobReader>) -> Result<bool, LayerError> {
    let mut skipped = 0;
    while skipped < BATCH_BYTES {
        if let Some(part) = reader.next_part()? {
            skipped += if let layer::ContentPart::Data(data) = part { data.len() as u64 } else { 0 };
            continue;
        }
        if reader.next_entry()?.is_none() {
            return Ok(true);
        }
        // Entries without content count, too: otherwise one call could read a whole layer of empty files.
        skipped += MIN_ENTRY_SIZE;
    }
    Ok(false)
}

impl Job {
    fn read_small_file(
        &mut self,
        reader: &mut LayerReader<BlobReader>,
        id: usize,
        size: u64,
        hole_sizes: &mut HashSet<u64>,
    ) -> Result<(), LayerError> {
        let start = self.buffer.len();
        let mut all_hole = None;
        while let Some(part) = reader.next_part()? {
            match part {
                layer::ContentPart::Data(data) => self.buffer.extend_from_slice(data),
                layer::ContentPart::Hole(length) if length == size => {
                    all_hole = Some(length);
                    if hole_sizes.insert(length) {
                        reader.count_filled_hole(length)?;
                    }
                }
                layer::ContentPart::Hole(length) => {
                    extend_with_zeros(&mut self.buffer, length);
                    reader.count_filled_hole(length)?;
                }
            }
        }
        let content = match all_hole {
            Some(length) => PlainContent::Zeros(length),
            None => PlainContent::Bytes(start..self.buffer.len()),
        };
        self.objects.push(PendingObject { id, is_chunk: false, content });
        Ok(())
    }
}

enum LargeContent {
    Bytes(Vec<u8>),
    Zeros(u64),
}

impl LargeContent {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(length) => *length,
        }
    }
}

impl LargeFile {
    fn new(size: u64, sizes: ChunkSizes) -> Self {
        Self { size, start: 0, chunker: Chunker::new(sizes), chunk: Vec::new(), hole: 0, rest: Vec::new() }
    }

    /// Reads to the next cut, and returns the chunk, or `None` at the end of the file.
    fn next_chunk(
        &mut self,
        reader: &mut LayerReader<BlobReader>,
        sizes: &ChunkSizes,
        buffers: &Buffers,
    ) -> Result<Option<LargeContent>, LayerError> {
        loop {
            if self.chunker.is_at_chunk_start() && self.rest.is_empty() && self.hole >= sizes.maximum {
                self.hole -= sizes.maximum;
                return Ok(Some(LargeContent::Zeros(sizes.maximum)));
            }
            if self.chunk.capacity() == 0 {
                // Allocated at its full size at once, because growing to it would copy the chunk several times.
                let room = sizes.maximum.min(self.size - self.start);
                self.chunk = buffers.take(usize::try_from(room).expect("a chunk fits into memory"));
            }
            let was_cut = if !self.rest.is_empty() {
                let rest = mem::take(&mut self.rest);
                self.take(&rest)
            } else if self.hole > 0 {
                let zeros = [0; ZERO_BLOCK];
                let length = self.hole.min(ZERO_BLOCK as u64);
                reader.count_filled_hole(length)?;
                self.hole -= length;
                let was_cut = self.take(&zeros[..length as usize]);
                // Zeros after a cut become part of a hole again, because the whole next chunk may be a hole.
                self.hole += mem::take(&mut self.rest).len() as u64;
                was_cut
            } else {
                match reader.next_part()? {
                    Some(layer::ContentPart::Data(data)) => self.take(data),
                    Some(layer::ContentPart::Hole(length)) => {
                        self.hole = length;
                        false
                    }
                    None => {
                        let last = mem::take(&mut self.chunk);
                        return Ok((!last.is_empty()).then_some(LargeContent::Bytes(last)));
                    }
                }
            };
            if was_cut {
                return Ok(Some(LargeContent::Bytes(mem::take(&mut self.chunk))));
            }
        }
    }

    /// Appends data to the chunk up to the next cut, and returns whether there is a cut.
    fn take(&mut self, data: &[u8]) -> bool {
        let cut = self.chunker.cut(data);
        let (before, after) = data.split_at(cut.unwrap_or(data.len()));
        self.chunk.extend_from_slice(before);
        self.rest = after.to_vec();
        cut.is_some()
    }
}

/// Number of zero bytes that are written at once when a hole is filled.
const ZERO_BLOCK: usize = 64 << 10;

fn extend_with_zeros(buffer: &mut Vec<u8>, length: u64) {
    let length = usize::try_from(length).expect("small files fit into memory");
    buffer.resize(buffer.len() + length, 0);
}

impl ReadLayer {
    /// Returns the entries with the hashes of their stored objects.
    pub(super) fn with_content(self, writer: &ObjectWriter<'_>, raw: bool) -> IngestedLayer {
        let hashes = mem::take(&mut *writer.hashes(self.index));
        let spans = self.spans;
        let content = |range: Range<usize>| {
            let hash = |id: usize| hashes[id].expect("every object was stored before the layer was completed");
            let chunk = |id: usize| {
                let (offset, size) = spans[&id];
                Chunk { offset, size, hash: hash(id) }
            };
            let objects = match range.len() {
                1 => ContentObjects::Whole(hash(range.start)),
                _ => ContentObjects::Chunks(range.map(chunk).collect()),
            };
            Content { raw, objects }
        };
        // Exactly the needed capacity, because there may be millions of entries.
        let mut entries = Vec::with_capacity(self.entries.len());
        entries.extend(self.entries.into_iter().map(|entry| entry.map_content(content)));
        IngestedLayer { entries, summary: self.summary }
    }
}
