//! Cuts the content of a layer's files into objects.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::ops::Range;

use super::block_list::BlockList;
use super::buffers::Buffers;
use super::large_file::{ChunkContent, FileChunk, LargeFile};
use super::object_writer::{Job, PendingObject, PlainContent};
use super::{BATCH_BYTES, BlobReader};
use crate::layer::{ContentPart, EntryKind, LayerEntry, LayerError, NodeKind};
use crate::object::{Chunk, ChunkSizes, Content, ContentObjects, ObjectHash};

/// Maximum number of small files in one job.
const MAX_BATCH_FILES: usize = 512;

/// Collects the entries of a layer, and cuts the content of its files into objects. It stops at each job, so that the caller
/// can limit the content in memory.
pub(super) struct FileCutter {
    layer: usize,
    sizes: ChunkSizes,
    /// Number of objects so far.
    object_count: usize,
    entries: CutEntries,
    batch: Job,
    large: Option<LargeFile>,
    /// Sizes of small files that consist of one hole. The zeros of each size are written out only once.
    hole_sizes: HashSet<u64>,
}

/// The entries of a layer. The content of a file is a range of object numbers.
#[derive(Default)]
pub(super) struct CutEntries {
    entries: BlockList<LayerEntry<Range<usize>>>,
    /// Offset and size of each part of a large file, by the number of its object.
    spans: HashMap<usize, (u64, u64)>,
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

impl FileCutter {
    pub(super) fn new(layer: usize, sizes: ChunkSizes) -> Self {
        let (object_count, entries, large, hole_sizes) = Default::default();
        Self { layer, sizes, object_count, entries, batch: Job::new(layer), large, hole_sizes }
    }

    /// Reads until there is content to store: many small files, or one chunk of a large file.
    pub(super) fn read_some(&mut self, reader: &mut BlobReader, buffers: &Buffers) -> Result<ReadProgress, LayerError> {
        loop {
            if let Some(job) = self.read_chunk(reader, buffers)? {
                return Ok(ReadProgress::Job(job));
            }
            let Some(entry) = reader.next_entry()? else { return Ok(ReadProgress::End(self.take_batch())) };
            self.add(entry, reader, buffers)?;
            if self.batch.bytes() >= BATCH_BYTES || self.batch.objects.len() >= MAX_BATCH_FILES {
                return Ok(ReadProgress::Job(self.take_batch()));
            }
        }
    }

    pub(super) fn into_entries(self) -> CutEntries {
        self.entries
    }

    /// Returns the next chunk of the large file that is being read, or `None` if there is no such file or chunk.
    fn read_chunk(&mut self, reader: &mut BlobReader, buffers: &Buffers) -> Result<Option<Job>, LayerError> {
        let Some(file) = &mut self.large else { return Ok(None) };
        let Some(chunk) = file.next_chunk(reader, buffers)? else {
            self.large = None;
            return Ok(None);
        };
        let id = self.object_count;
        self.object_count += 1;
        self.entries.add_chunk(id, &chunk);
        Ok(Some(Job::of_chunk(self.layer, id, chunk)))
    }

    /// Adds an entry, and the content of a small file to the batch.
    fn add(&mut self, entry: LayerEntry, reader: &mut BlobReader, buffers: &Buffers) -> Result<(), LayerError> {
        let first = self.object_count;
        match entry.file_size() {
            // The rule of CVMFS: only files larger than the minimum chunk size are cut. The number of chunks is not known
            // yet, so the file's range is empty and grows with each chunk.
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
        self.entries.entries.push(entry.map_content(|()| first..self.object_count));
        Ok(())
    }

    fn take_batch(&mut self) -> Job {
        mem::replace(&mut self.batch, Job::new(self.layer))
    }
}

impl CutEntries {
    /// Adds a chunk, the object with this number, to the latest file.
    fn add_chunk(&mut self, id: usize, chunk: &FileChunk) {
        self.spans.insert(id, (chunk.start, chunk.content.len()));
        let latest = self.entries.last_mut().map(|entry| &mut entry.kind);
        if let Some(EntryKind::Node(_, NodeKind::File { content, .. })) = latest {
            content.end = id + 1;
        }
    }

    /// Returns the entries with the hashes of their objects, given by object number.
    pub(super) fn with_content(self, hashes: &[Option<ObjectHash>], raw: bool) -> Vec<LayerEntry<Content>> {
        let spans = self.spans;
        let hash = |id: usize| hashes[id].expect("every object was stored before the layer was completed");
        let chunk = |id: usize| {
            let (offset, size) = spans[&id];
            Chunk { offset, size, hash: hash(id) }
        };
        let content = |range: Range<usize>| {
            let objects = match range.len() {
                1 => ContentObjects::Whole(hash(range.start)),
                _ => ContentObjects::Chunks(range.map(chunk).collect()),
            };
            Content { raw, objects }
        };
        // Exactly the needed capacity, because there may be millions of entries.
        let mut entries = Vec::with_capacity(self.entries.len());
        entries.extend(self.entries.into_iter().map(|entry| entry.map_content(content)));
        entries
    }
}

impl Job {
    fn of_chunk(layer: usize, id: usize, chunk: FileChunk) -> Self {
        // As in CVMFS, a file with a single chunk becomes an ordinary object, which deduplicates against whole files.
        let is_chunk = !chunk.is_whole_file;
        let (buffer, content) = match chunk.content {
            ChunkContent::Zeros(length) => (Vec::new(), PlainContent::Zeros(length)),
            ChunkContent::Bytes(bytes) => {
                let all = 0..bytes.len();
                (bytes, PlainContent::Bytes(all))
            }
        };
        Self { layer, buffer, objects: vec![PendingObject { id, is_chunk, content }] }
    }

    fn read_small_file(
        &mut self,
        reader: &mut BlobReader,
        id: usize,
        size: u64,
        hole_sizes: &mut HashSet<u64>,
    ) -> Result<(), LayerError> {
        let start = self.buffer.len();
        let mut all_hole = None;
        while let Some(part) = reader.next_part()? {
            match part {
                ContentPart::Data(data) => self.buffer.extend_from_slice(data),
                ContentPart::Hole(length) if length == size => {
                    all_hole = Some(length);
                    if hole_sizes.insert(length) {
                        reader.count_filled_hole(length)?;
                    }
                }
                ContentPart::Hole(length) => {
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

fn extend_with_zeros(buffer: &mut Vec<u8>, length: u64) {
    let length = usize::try_from(length).expect("small files fit into memory");
    buffer.resize(buffer.len() + length, 0);
}
