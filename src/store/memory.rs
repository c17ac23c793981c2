//! The storage of a repository in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Cursor, Read};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::{
    EntryForm, KeepsExisting, LOCK_RETRY_INTERVAL, ListedEntry, NewFile, ObjectName, ObjectsVersion, PublishLock,
    SharedStore, SharedWritableStore, Store, StoreError, StoreListing, StoreRun, WritableStore, is_object_size,
};
use crate::cancel::Cancellation;
use crate::object::{ObjectHash, ObjectKind};
use crate::observer::Reporter;

/// A repository's storage in memory, for tests. Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    content: Arc<Mutex<Content>>,
    is_locked: Arc<Mutex<bool>>,
    reporter: Reporter,
    cancellation: Cancellation,
}

#[derive(Debug, Default)]
struct Content {
    files: BTreeMap<String, StoredFile>,
    /// Number of objects that were deleted so far.
    deletions: u64,
}

#[derive(Debug)]
struct StoredFile {
    bytes: Arc<[u8]>,
    renewed: Instant,
}

impl Content {
    fn put(&mut self, name: &str, bytes: &[u8]) {
        let file = StoredFile { bytes: bytes.into(), renewed: Instant::now() };
        self.files.insert(name.to_owned(), file);
    }

    /// Returns an object. An empty file is no object, see [`Store::stored_size`].
    fn object(&mut self, (hash, kind): ObjectName) -> Option<&mut StoredFile> {
        self.files.get_mut(&hash.path(kind)).filter(|file| is_object_size(file.bytes.len() as u64, hash))
    }

    fn version(&self) -> ObjectsVersion {
        ObjectsVersion(self.deletions.to_le_bytes().to_vec())
    }
}

impl MemoryStore {
    /// Writes a file of any name, also one that is damaged.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        self.content().put(name, bytes);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no thread panics while it changes a store in memory")
    }

    fn bytes(&self, name: &str) -> Option<Arc<[u8]>> {
        self.content().files.get(name).map(|file| Arc::clone(&file.bytes))
    }
}

impl From<MemoryStore> for SharedStore {
    fn from(store: MemoryStore) -> Self {
        Arc::new(store)
    }
}

impl From<MemoryStore> for SharedWritableStore {
    fn from(store: MemoryStore) -> Self {
        Arc::new(store)
    }
}

impl Store for MemoryStore {
    fn address(&self, name: &str) -> String {
        format!("memory:/{name}")
    }

    fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match self.bytes(name) {
            Some(bytes) if bytes.len() as u64 > limit => {
                Err(StoreError::TooLarge { address: self.address(name), limit })
            }
            found => Ok(found.map(|bytes| bytes.to_vec())),
        }
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        Ok(self.bytes(name).map(|bytes| Box::new(Cursor::new(bytes)) as _))
    }

    fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.bytes(name).map(|bytes| bytes.len() as u64))
    }

    fn listing(&self) -> Option<&dyn StoreListing> {
        Some(self)
    }

    fn reporter(&self) -> &Reporter {
        &self.reporter
    }
}

impl StoreListing for MemoryStore {
    fn list(&self, directory: &str, visit: &mut dyn FnMut(ListedEntry<'_>)) -> Result<Option<u32>, StoreError> {
        let content = self.content();
        let mut directories = BTreeSet::new();
        for (name, file) in &content.files {
            let below = match directory {
                "" => Some(name.as_str()),
                directory => name.strip_prefix(directory).and_then(|rest| rest.strip_prefix('/')),
            };
            let Some(below) = below else { continue };
            match below.split_once('/') {
                Some((name, _)) => drop(directories.insert(name)),
                None => visit(ListedEntry {
                    name: below.as_bytes(),
                    form: EntryForm::File,
                    bytes: file.bytes.len() as u64,
                    mode: ALL_PERMISSIONS,
                }),
            }
        }
        for name in directories {
            visit(ListedEntry { name: name.as_bytes(), form: EntryForm::Directory, bytes: 0, mode: ALL_PERMISSIONS });
        }
        Ok(Some(ALL_PERMISSIONS))
    }

    fn has_directory(&self, _directory: &str) -> Result<bool, StoreError> {
        Ok(true)
    }
}

/// Permission bits of all entries.
const ALL_PERMISSIONS: u32 = 0o7777;

impl WritableStore for MemoryStore {
    fn start_run(&self) -> Result<Box<dyn StoreRun>, StoreError> {
        let version = self.objects_version();
        Ok(Box::new(MemoryRun { store: self.clone(), written: Mutex::default(), version }))
    }

    fn renew(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        let mut content = self.content();
        Ok(content.object((hash, kind)).map(|file| {
            file.renewed = Instant::now();
            file.bytes.len() as u64
        }))
    }

    fn age(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<Duration>, StoreError> {
        Ok(self.content().object((hash, kind)).map(|file| file.renewed.elapsed()))
    }

    fn delete(&self, objects: &[ObjectName]) -> Result<(), StoreError> {
        let mut content = self.content();
        for (hash, kind) in objects {
            content.deletions += u64::from(content.files.remove(&hash.path(*kind)).is_some());
        }
        Ok(())
    }

    /// Memory is never durable.
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn lock(&self, wait: Duration) -> Result<PublishLock, StoreError> {
        let start = Instant::now();
        loop {
            self.cancellation.check()?;
            let mut is_locked = self.is_locked.lock().expect("no thread panics while it takes the lock");
            if !*is_locked {
                *is_locked = true;
                return Ok(PublishLock::new(HeldLock(Arc::clone(&self.is_locked))));
            }
            drop(is_locked);
            if start.elapsed() >= wait {
                return Err(StoreError::in_use("memory", start.elapsed()));
            }
            thread::sleep(LOCK_RETRY_INTERVAL);
        }
    }

    fn objects_version(&self) -> ObjectsVersion {
        self.content().version()
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }
}

/// The lock of a store, until this is dropped.
#[derive(Debug)]
struct HeldLock(Arc<Mutex<bool>>);

impl Drop for HeldLock {
    fn drop(&mut self) {
        *self.0.lock().expect("no thread panics while it takes the lock") = false;
    }
}

/// The new objects of a run.
#[derive(Debug)]
struct MemoryRun {
    store: MemoryStore,
    /// Objects that have no name yet.
    written: Mutex<HashMap<ObjectName, Vec<u8>>>,
    /// The version of the store's objects at the start of the run.
    version: ObjectsVersion,
}

impl MemoryRun {
    fn written(&self) -> MutexGuard<'_, HashMap<ObjectName, Vec<u8>>> {
        self.written.lock().expect("no thread panics while it adds an object")
    }
}

impl StoreRun for MemoryRun {
    fn write(&self, object: ObjectName, stored: &[u8]) -> Result<(), StoreError> {
        self.written().insert(object, stored.to_vec());
        Ok(())
    }

    fn name_objects(&self, objects: &[ObjectName], keeps_existing: &KeepsExisting<'_>) -> Result<(), StoreError> {
        for &(hash, kind) in objects {
            let (name, bytes) = (hash.path(kind), self.written().remove(&(hash, kind)));
            let bytes = bytes.ok_or_else(|| StoreError::Missing { address: self.store.address(&name) })?;
            let exists = self.store.bytes(&name).is_some();
            if !exists || !keeps_existing((hash, kind), bytes.len() as u64)? {
                self.store.put(&name, &bytes);
            }
        }
        Ok(())
    }

    fn discard(&self, objects: &[ObjectName]) {
        let mut written = self.written();
        objects.iter().for_each(|object| drop(written.remove(object)));
    }

    fn overwrites_unnoticed(&self) -> bool {
        false
    }

    fn objects_version(&self) -> ObjectsVersion {
        self.version.clone()
    }

    fn final_objects_version(&self) -> Option<ObjectsVersion> {
        Some(self.store.objects_version()).filter(|version| *version == self.version)
    }

    fn replace_files(&self, files: &[NewFile<'_>], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError> {
        let replace = || {
            files.iter().try_for_each(|file| file.check_replaced(&self.store))?;
            files.iter().for_each(|file| self.store.put(file.name, file.bytes));
            Ok(Vec::new())
        };
        match revision {
            Some(revision) => self.store.cancellation.publishing(revision, replace),
            None => replace(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{assert_reads, assert_writes, files};

    #[test]
    fn store_in_memory_satisfies_the_contract() {
        let store = MemoryStore::default();
        files().iter().for_each(|(name, bytes)| store.put(name, bytes));
        assert_reads(&store);
        assert_writes(&MemoryStore::default().into());
    }
}
