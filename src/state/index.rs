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
    had_entries: bool,
    new_entries: Mutex<NewEntries>,
    hits: AtomicU64,
}

/// Entries that this run added. A layer may add millions of entries, so saved entries are kept only in the database.
#[derive(Debug, Default)]
struct NewEntries {
    unsaved: Objects,
    /// Batches that a thread is writing to the database.
    saving: Vec<Arc<Objects>>,
    /// Prefixes of the keys that this run has saved, to avoid database lookups of unknown keys.
    saved: HashSet<u64>,
}

type Objects = HashMap<ContentKey, KnownObject>;

/// Number of new entries that are saved together. Each batch changes most pages of the table, regardless of the size of the batch.
const BATCH_SIZE: usize = 50_000;

impl ContentIndex {
    /// Opens the index of a state database.
    pub fn open(state: Arc<StateDatabase>) -> Result<Self, IndexError> {
        let had_entries = !state.is_empty()?;
        Ok(Self { state, had_entries, new_entries: Mutex::default(), hits: AtomicU64::new(0) })
    }

    /// Looks up content in the database. The result is not verified; [`Self::find`] checks that the object still exists.
    pub fn recall(&self, keys: &[ContentKey]) -> Result<Vec<Option<KnownObject>>, IndexError> {
        let _looking = span!("index");
        if self.had_entries {
            return Ok(self.state.objects(keys)?);
        }
        let saved: Vec<usize> = {
            let new_entries = self.new_entries();
            (0..keys.len()).filter(|&index| new_entries.saved.contains(&key_prefix(&keys[index]))).collect()
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
        let found = match self.find_new(key)? {
            Some(new_entries) => Some(new_entries),
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
    fn find_new(&self, key: &ContentKey) -> Result<Option<KnownObject>, IndexError> {
        let new_entries = self.new_entries();
        let unsaved =
            new_entries.unsaved.get(key).or_else(|| new_entries.saving.iter().find_map(|batch| batch.get(key)));
        if unsaved.is_some() || !new_entries.saved.contains(&key_prefix(key)) {
            return Ok(unsaved.copied());
        }
        // The database is read without this lock, so that other threads can add entries meanwhile.
        drop(new_entries);
        Ok(self.state.objects(&[*key])?[0])
    }

    /// Adds an entry.
    pub fn add(&self, key: ContentKey, object: KnownObject) -> Result<(), IndexError> {
        let _noting = span!("index");
        {
            let mut new_entries = self.new_entries();
            new_entries.unsaved.insert(key, object);
            // The entries stay in memory if the database is read-only, because it would discard them.
            if new_entries.unsaved.len() < BATCH_SIZE || self.state.is_read_only() {
                return Ok(());
            }
        }
        self.write()
    }

    /// Saves the new entries of this run, and frees memory that lookups used.
    pub fn save(&self) -> Result<(), IndexError> {
        let _noting = span!("index");
        if !self.state.is_read_only() {
            self.write()?;
        }
        Ok(self.state.free_memory()?)
    }

    /// Writes unsaved entries to the database. Meanwhile, other threads find them in `saving`.
    fn write(&self) -> Result<(), IndexError> {
        let batch = {
            let mut new_entries = self.new_entries();
            let batch = Arc::new(std::mem::take(&mut new_entries.unsaved));
            new_entries.saving.push(Arc::clone(&batch));
            batch
        };
        let mut objects: Vec<(ContentKey, KnownObject)> = batch.iter().map(|(key, object)| (*key, *object)).collect();
        // In the order of the table, so that each of its pages is changed only once.
        objects.sort_unstable_by_key(|(key, _)| key.blake3);
        self.state.add_objects(&objects)?;
        let mut new_entries = self.new_entries();
        new_entries.saving.retain(|other| !Arc::ptr_eq(other, &batch));
        new_entries.saved.extend(batch.keys().map(key_prefix));
        Ok(())
    }

    /// Returns the number of lookups that found an object.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    fn in_memory(&self) -> usize {
        self.new_entries().unsaved.len()
    }

    fn new_entries(&self) -> std::sync::MutexGuard<'_, NewEntries> {
        self.new_entries.lock().expect("no thread panics while it holds the index")
    }
}

/// Returns the first eight bytes of a key's hash.
fn key_prefix(key: &ContentKey) -> u64 {
    // Eight of 32 bytes are enough: two keys with the same prefix cost one lookup in the database.
    u64::from_le_bytes(*key.blake3.first_chunk().expect("32 bytes begin with 8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::HashAlgorithm;
    use crate::observer::Reporter;
    use crate::store::DirectoryStore;

    fn key(number: u64) -> ContentKey {
        let blake3 = *blake3::hash(&number.to_le_bytes()).as_bytes();
        ContentKey { blake3, size: 8, is_chunk: false, encoder: 1, algorithm: HashAlgorithm::Sha1 }
    }

    #[test]
    fn entries_are_found_in_memory_and_in_the_database() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::create(&directory.path().join("storage")).unwrap();
        let staging = Staging::start(&store).unwrap();
        let hash = staging.put_stored(ObjectKind::File, b"stored").unwrap();
        for had_entries in [false, true] {
            let state = Arc::new(StateDatabase::open(&directory.path().join("state.db"), &Reporter::silent()).unwrap());
            let index = ContentIndex::open(state).unwrap();
            assert_eq!(index.had_entries, had_entries);
            let first = if had_entries { BATCH_SIZE as u64 * 3 } else { 0 };
            let last = first + 2 * BATCH_SIZE as u64 + 10;
            let object = KnownObject::new(hash, b"stored".len());
            (first..last).for_each(|number| index.add(key(number), object).unwrap());
            assert_eq!(index.in_memory(), 10, "what was written is in memory no more");
            for number in [first, first + 1, first + BATCH_SIZE as u64, last - 1] {
                let recalled = index.recall(&[key(number)]).unwrap()[0];
                assert_eq!(index.find(&key(number), recalled, &staging).unwrap(), Some(hash), "{number}");
            }
            assert_eq!(index.recall(&[key(u64::MAX)]).unwrap(), [None]);
            assert_eq!(index.find(&key(u64::MAX), None, &staging).unwrap(), None);
            index.save().unwrap();
        }
    }
}
