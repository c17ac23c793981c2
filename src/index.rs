//! The content index: which object holds a piece of content that was compressed before.
//!
//! Objects are named by their compressed bytes, so without it a file would have to be compressed to learn that it is in
//! the store already. A hit counts only when the object is seen there, with the length that it had when it was stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::catalog::{ContentKey, KnownObject, StateDatabase, StateError};
use crate::object::{ObjectHash, ObjectKind};
use crate::stage::stage;
use crate::store::{Staging, StoreError};

/// Why the index could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The content index of a repository: what earlier runs left, and what this one adds.
#[derive(Debug)]
pub struct ContentIndex {
    state: Arc<StateDatabase>,
    /// Whether earlier runs left anything to look for.
    has_past: bool,
    fresh: Mutex<Fresh>,
    hits: AtomicU64,
}

#[derive(Debug, Default)]
struct Fresh {
    objects: HashMap<ContentKey, KnownObject>,
    unsaved: Vec<(ContentKey, KnownObject)>,
}

/// New pieces gather up to this number before they are written, which changes most pages of the table.
const BATCH: usize = 50_000;

impl ContentIndex {
    /// Opens the index.
    pub fn open(state: Arc<StateDatabase>) -> Result<Self, IndexError> {
        let has_past = !state.is_empty()?;
        Ok(Self { state, has_past, fresh: Mutex::default(), hits: AtomicU64::new(0) })
    }

    /// Returns the objects that held pieces of content when this run began. Whether they still do is for [`Self::find`] to say.
    pub fn recall(&self, keys: &[ContentKey]) -> Result<Vec<Option<KnownObject>>, IndexError> {
        let _looking = stage!("index");
        if self.has_past { Ok(self.state.objects(keys)?) } else { Ok(vec![None; keys.len()]) }
    }

    /// Returns the object that holds a piece of content, if the store has it, and of the right length: one of this run, or
    /// the one that was recalled.
    pub fn find(
        &self,
        key: &ContentKey,
        recalled: Option<KnownObject>,
        staging: &Staging,
    ) -> Result<Option<ObjectHash>, IndexError> {
        let _looking = stage!("index");
        let fresh = self.fresh().objects.get(key).copied();
        let found = fresh.or(recalled);
        let kind = if key.is_chunk { ObjectKind::Chunk } else { ObjectKind::File };
        match found {
            Some(object) if staging.has_of_length(object.hash, kind, object.length())? => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                Ok(Some(object.hash))
            }
            _ => Ok(None),
        }
    }

    /// Notes which object holds a piece of content.
    pub fn add(&self, key: ContentKey, object: KnownObject) -> Result<(), IndexError> {
        let _noting = stage!("index");
        let batch = {
            let mut fresh = self.fresh();
            fresh.objects.insert(key, object);
            fresh.unsaved.push((key, object));
            if fresh.unsaved.len() < BATCH {
                return Ok(());
            }
            std::mem::take(&mut fresh.unsaved)
        };
        self.write(batch)
    }

    /// Writes down what this run added, and frees the memory that looking things up took.
    pub fn save(&self) -> Result<(), IndexError> {
        let _noting = stage!("index");
        let batch = std::mem::take(&mut self.fresh().unsaved);
        self.write(batch)?;
        Ok(self.state.free_memory()?)
    }

    fn write(&self, mut batch: Vec<(ContentKey, KnownObject)>) -> Result<(), IndexError> {
        // In the order of the table, each of its pages is changed once.
        batch.sort_unstable_by_key(|(key, _)| key.blake3);
        Ok(self.state.add_objects(&batch)?)
    }

    /// Returns how often a piece of content was known.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    fn fresh(&self) -> std::sync::MutexGuard<'_, Fresh> {
        self.fresh.lock().expect("no thread panics while it holds the index")
    }
}
