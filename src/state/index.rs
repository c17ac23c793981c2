//! The content index: which object holds a piece of content that was compressed before.
//!
//! Objects are named by their compressed bytes, so without it a file would have to be compressed to learn that it is in
//! the store already. A hit counts only when the object is seen there, with the length that it had when it was stored.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{ContentKey, KnownObject, StateDatabase, StateError};
use crate::object::{ObjectHash, ObjectKind};
use crate::span::span;
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

/// What this run added. A layer may bring millions of pieces, so those that the database has are looked up there.
#[derive(Debug, Default)]
struct Fresh {
    unsaved: Objects,
    /// Batches that threads are writing to the database.
    saving: Vec<Arc<Objects>>,
    /// Parts of the keys that this run has written, so that few others are looked up in vain.
    saved: HashSet<u64>,
}

type Objects = HashMap<ContentKey, KnownObject>;

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
        let _looking = span!("index");
        if self.has_past {
            return Ok(self.state.objects(keys)?);
        }
        let saved: Vec<usize> = {
            let fresh = self.fresh();
            (0..keys.len()).filter(|&index| fresh.saved.contains(&part_of(&keys[index]))).collect()
        };
        let mut found = vec![None; keys.len()];
        if !saved.is_empty() {
            let keys: Vec<ContentKey> = saved.iter().map(|&index| keys[index]).collect();
            saved.into_iter().zip(self.state.objects(&keys)?).for_each(|(index, object)| found[index] = object);
        }
        Ok(found)
    }

    /// Returns the object that holds a piece of content, if the store has it, and of the right length: one of this run, or
    /// the one that was recalled.
    pub fn find(
        &self,
        key: &ContentKey,
        recalled: Option<KnownObject>,
        staging: &Staging,
    ) -> Result<Option<ObjectHash>, IndexError> {
        let _looking = span!("index");
        let found = match self.find_fresh(key)? {
            Some(fresh) => Some(fresh),
            None => recalled,
        };
        let kind = if key.is_chunk { ObjectKind::Chunk } else { ObjectKind::File };
        match found {
            Some(object) if staging.has_of_length(object.hash, kind, object.length())? => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                Ok(Some(object.hash))
            }
            _ => Ok(None),
        }
    }

    /// Returns the object that this run noted for a piece of content.
    fn find_fresh(&self, key: &ContentKey) -> Result<Option<KnownObject>, IndexError> {
        let fresh = self.fresh();
        let unsaved = fresh.unsaved.get(key).or_else(|| fresh.saving.iter().find_map(|batch| batch.get(key)));
        if unsaved.is_some() || !fresh.saved.contains(&part_of(key)) {
            return Ok(unsaved.copied());
        }
        drop(fresh);
        Ok(self.state.objects(&[*key])?[0])
    }

    /// Notes which object holds a piece of content.
    pub fn add(&self, key: ContentKey, object: KnownObject) -> Result<(), IndexError> {
        let _noting = span!("index");
        {
            let mut fresh = self.fresh();
            fresh.unsaved.insert(key, object);
            // What a database that does not change is given would be lost.
            if fresh.unsaved.len() < BATCH || self.state.is_fixed() {
                return Ok(());
            }
        }
        self.write()
    }

    /// Writes down what this run added, and frees the memory that looking things up took.
    pub fn save(&self) -> Result<(), IndexError> {
        let _noting = span!("index");
        if !self.state.is_fixed() {
            self.write()?;
        }
        Ok(self.state.free_memory()?)
    }

    /// Writes what is unsaved to the database. Until it is there, others find it here.
    fn write(&self) -> Result<(), IndexError> {
        let batch = {
            let mut fresh = self.fresh();
            let batch = Arc::new(std::mem::take(&mut fresh.unsaved));
            fresh.saving.push(Arc::clone(&batch));
            batch
        };
        let mut objects: Vec<(ContentKey, KnownObject)> = batch.iter().map(|(key, object)| (*key, *object)).collect();
        // In the order of the table, each of its pages is changed once.
        objects.sort_unstable_by_key(|(key, _)| key.blake3);
        self.state.add_objects(&objects)?;
        let mut fresh = self.fresh();
        fresh.saving.retain(|other| !Arc::ptr_eq(other, &batch));
        fresh.saved.extend(batch.keys().map(part_of));
        Ok(())
    }

    /// Returns how often a piece of content was known.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    fn in_memory(&self) -> usize {
        self.fresh().unsaved.len()
    }

    fn fresh(&self) -> std::sync::MutexGuard<'_, Fresh> {
        self.fresh.lock().expect("no thread panics while it holds the index")
    }
}

/// Returns the first bytes of a key's hash.
fn part_of(key: &ContentKey) -> u64 {
    u64::from_le_bytes(*key.blake3.first_chunk().expect("32 bytes begin with 8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DirectoryStore;

    fn key(number: u64) -> ContentKey {
        let blake3 = *blake3::hash(&number.to_le_bytes()).as_bytes();
        ContentKey { blake3, size: 8, is_chunk: false, encoder: 1 }
    }

    #[test]
    fn pieces_are_found_whether_they_are_still_in_memory_or_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::create(&directory.path().join("storage")).unwrap();
        let staging = Staging::start(&store).unwrap();
        let hash = staging.put_stored(ObjectKind::File, b"stored").unwrap();
        for has_past in [false, true] {
            let state = Arc::new(StateDatabase::open(&directory.path().join("state.db")).unwrap());
            let index = ContentIndex::open(state).unwrap();
            assert_eq!(index.has_past, has_past);
            let first = if has_past { BATCH as u64 * 3 } else { 0 };
            let last = first + 2 * BATCH as u64 + 10;
            let object = KnownObject::new(hash, b"stored".len());
            (first..last).for_each(|number| index.add(key(number), object).unwrap());
            assert_eq!(index.in_memory(), 10, "what was written is in memory no more");
            for number in [first, first + 1, first + BATCH as u64, last - 1] {
                let recalled = index.recall(&[key(number)]).unwrap()[0];
                assert_eq!(index.find(&key(number), recalled, &staging).unwrap(), Some(hash), "{number}");
            }
            assert_eq!(index.recall(&[key(u64::MAX)]).unwrap(), [None]);
            assert_eq!(index.find(&key(u64::MAX), None, &staging).unwrap(), None);
            index.save().unwrap();
        }
    }
}
