//! ContentObjects of content on their way into objects.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use super::{Ingest, IngestError};
use crate::object::{Encoder, ObjectHash, ObjectKind};
use crate::span::span;
use crate::state::{ContentKey, KnownObject};

/// Content of one layer that one thread stores.
pub(super) struct Job {
    pub(super) layer: usize,
    pub(super) buffer: Vec<u8>,
    pub(super) objects: Vec<PendingObject>,
}

/// One object to be.
pub(super) struct PendingObject {
    /// Its number in the layer.
    pub(super) id: usize,
    pub(super) is_chunk: bool,
    pub(super) content: PlainContent,
}

pub(super) enum PlainContent {
    /// A part of the job's buffer.
    Bytes(Range<usize>),
    /// So many zeros, which nobody wrote out.
    Zeros(u64),
}

impl Job {
    pub(super) fn new(layer: usize) -> Self {
        Self { layer, buffer: Vec::new(), objects: Vec::new() }
    }

    /// Returns how much memory the content takes.
    pub(super) fn bytes(&self) -> u64 {
        self.buffer.len() as u64
    }
}

/// Turns pieces into objects and remembers which became which.
pub(super) struct ObjectWriter<'a> {
    ingest: &'a Ingest<'a>,
    /// The objects of the pieces of each layer.
    hashes: Vec<Mutex<Vec<Option<ObjectHash>>>>,
    /// The objects of zeros, by their number: sparse files have the same one thousands of times.
    zeros: Mutex<HashMap<(u64, bool), ObjectHash>>,
}

impl<'a> ObjectWriter<'a> {
    pub(super) fn new(ingest: &'a Ingest<'a>, layers: usize) -> Self {
        Self { ingest, hashes: (0..layers).map(|_| Mutex::default()).collect(), zeros: Mutex::default() }
    }

    pub(super) fn encoder(&self) -> Encoder {
        Encoder::new(self.ingest.compression)
    }

    /// Stores the pieces of a job.
    pub(super) fn store(&self, job: &Job, encoder: &mut Encoder) -> Result<(), IngestError> {
        let mut stored = Vec::with_capacity(job.objects.len());
        let mut content = Vec::with_capacity(job.objects.len());
        for object in &job.objects {
            match &object.content {
                PlainContent::Bytes(range) => content.push((object, &job.buffer[range.clone()])),
                PlainContent::Zeros(length) => {
                    stored.push((object.id, self.store_zeros(*length, object.is_chunk, encoder)?));
                }
            }
        }
        let keys: Vec<_> = content.iter().map(|(object, plain)| self.key(plain, object.is_chunk)).collect();
        let recalled = self.ingest.index.recall(&keys)?;
        for (((object, plain), key), recalled) in content.into_iter().zip(keys).zip(recalled) {
            stored.push((object.id, self.store_bytes(plain, key, recalled, encoder)?));
        }
        let mut hashes = self.hashes(job.layer);
        for (id, hash) in stored {
            if hashes.len() <= id {
                hashes.resize(id + 1, None);
            }
            hashes[id] = Some(hash);
        }
        Ok(())
    }

    pub(super) fn hashes(&self, layer: usize) -> MutexGuard<'_, Vec<Option<ObjectHash>>> {
        self.hashes[layer].lock().expect("no thread panics while it notes a hash")
    }

    fn key(&self, plain: &[u8], is_chunk: bool) -> ContentKey {
        let _identifying = span!("content hash", plain.len());
        let encoder = self.ingest.compression.encoder_id().0;
        ContentKey { blake3: *blake3::hash(plain).as_bytes(), size: plain.len() as u64, is_chunk, encoder }
    }

    fn store_bytes(
        &self,
        plain: &[u8],
        key: ContentKey,
        recalled: Option<KnownObject>,
        encoder: &mut Encoder,
    ) -> Result<ObjectHash, IngestError> {
        let Ingest { staging, index, .. } = *self.ingest;
        if let Some(hash) = index.find(&key, recalled, staging)? {
            return Ok(hash);
        }
        let stored = {
            let _compressing = span!("compress", plain.len());
            encoder.encode(plain)
        };
        let kind = if key.is_chunk { ObjectKind::Chunk } else { ObjectKind::File };
        let length = stored.len();
        let hash = staging.put_stored(kind, stored)?;
        index.add(key, KnownObject::new(hash, length))?;
        Ok(hash)
    }

    fn store_zeros(&self, length: u64, is_chunk: bool, encoder: &mut Encoder) -> Result<ObjectHash, IngestError> {
        let zeros = || self.zeros.lock().expect("no thread panics while it notes a hash");
        if let Some(&hash) = zeros().get(&(length, is_chunk)) {
            return Ok(hash);
        }
        let plain = vec![0; usize::try_from(length).expect("a chunk fits into memory")];
        let key = self.key(&plain, is_chunk);
        let recalled = self.ingest.index.recall(&[key])?.pop().flatten();
        let hash = self.store_bytes(&plain, key, recalled, encoder)?;
        zeros().insert((length, is_chunk), hash);
        Ok(hash)
    }
}
