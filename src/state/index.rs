//! The content index: finds the object of content that was compressed before.
//!
//! Objects are named by the hash of their compressed bytes. Without the index, a file would have to be compressed to find out that it
//! is already in the store. A hit counts only if the store has the object, with the length that it had when it was stored.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{ContentKey, KnownObject, StateDatabase, StateError};
use crate::object::{ObjectHash, ObjectKind};
use crate::span::span;
use crate::store::{Staging, StoreError};

/// Errors from using the content index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The content index of a repository: the entries of earlier runs and the new ones of this run.
#[derive(Debug)]
pub struct ContentIndex {
    state: Arc<StateDatabase>,
    /// Whether the database had entries when the run began.
    has_past: bool,
    fresh: Mutex<Fresh>,
    hits: AtomicU64,
}

/// Entries that this run added. A layer may add millions of entries, so saved ones are kept only in the database.
#[derive(Debug, Default)]
struct Fresh {
    unsaved: Objects,
    /// Batches that a thread is writing to the database.
    saving: Vec<Arc<Objects>>,
    /// Prefixes of the keys that this run has saved, to avoid database lookups of unknown keys.
    saved: HashSet<u64>,
}

type Objects = HashMap<ContentKey, KnownObject>;

/// Number of new entries that are saved together. Each batch changes most pages of the table, whatever its size.
const BATCH: usize = 50_000;

impl ContentIndex {
    /// Opens the index of a state database.
    pub fn open(state: Arc<StateDatabase>) -> Result<Self, IndexError> {
        let has_past = !state.is_empty()?;
        Ok(Self { state, has_past, fresh: Mutex::default(), hits: AtomicU64::new(0) })
    }

    /// Looks up content in the database. The result is not verified; [`Self::find`] checks that the object still exists.
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

    /// Returns the object of some content: that of a new entry of this run, or else `recalled`, the result of [`Self::recall`]. Returns
    /// `None` if the store does not have the object with the right length.
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

    /// Looks up content in the new entries of this run.
    fn find_fresh(&self, key: &ContentKey) -> Result<Option<KnownObject>, IndexError> {
        let fresh = self.fresh();
        let unsaved = fresh.unsaved.get(key).or_else(|| fresh.saving.iter().find_map(|batch| batch.get(key)));
        if unsaved.is_some() || !fresh.saved.contains(&part_of(key)) {
            return Ok(unsaved.copied());
        }
        drop(fresh);
        Ok(self.state.objects(&[*key])?[0])
    }

    /// Adds an entry.
    pub fn add(&self, key: ContentKey, object: KnownObject) -> Result<(), IndexError> {
        let _noting = span!("index");
        {
            let mut fresh = self.fresh();
            fresh.unsaved.insert(key, object);
            // A read-only database would discard the entries.
            if fresh.unsaved.len() < BATCH || self.state.is_fixed() {
                return Ok(());
            }
        }
        self.write()
    }

    /// Saves the new entries of this run, and frees memory that lookups used.
    pub fn save(&self) -> Result<(), IndexError> {
        let _noting = span!("index");
        if !self.state.is_fixed() {
            self.write()?;
        }
        Ok(self.state.free_memory()?)
    }

    /// Writes unsaved entries to the database. Meanwhile, other threads find them in `saving`.
    fn write(&self) -> Result<(), IndexError> {
        let batch = {
            let mut fresh = self.fresh();
            let batch = Arc::new(std::mem::take(&mut fresh.unsaved));
            fresh.saving.push(Arc::clone(&batch));
            batch
        };
        let mut objects: Vec<(ContentKey, KnownObject)> = batch.iter().map(|(key, object)| (*key, *object)).collect();
        // In the order of the table, so that each of its pages is changed only once.
        objects.sort_unstable_by_key(|(key, _)| key.blake3);
        self.state.add_objects(&objects)?;
        let mut fresh = self.fresh();
        fresh.saving.retain(|other| !Arc::ptr_eq(other, &batch));
        fresh.saved.extend(batch.keys().map(part_of));
        Ok(())
    }

    /// Returns the number of lookups that found an object.
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

/// Returns the first eight bytes of a key's hash.
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
    fn entries_are_found_in_memory_and_in_the_database() {
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
