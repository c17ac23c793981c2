//! A store on top of another one, which is only read.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use super::{
    KeepsExisting, NewFile, ObjectName, ObjectsVersion, PublishLock, SharedWritableStore, Store, StoreError,
    StoreListing, StoreRun, WritableStore,
};
use crate::cancel::Cancellation;
use crate::object::{ObjectHash, ObjectKind};
use crate::observer::Reporter;

/// Two stores: a file that does not exist in the upper one is read from the lower one. Only the upper one is written.
#[derive(Debug, Clone)]
pub struct LayeredStore {
    upper: SharedWritableStore,
    lower: SharedWritableStore,
}

impl LayeredStore {
    /// Returns `upper`, which is written, on top of `lower`.
    pub fn new(upper: impl Into<SharedWritableStore>, lower: impl Into<SharedWritableStore>) -> Self {
        Self { upper: upper.into(), lower: lower.into() }
    }

    /// Returns what `read` finds in the upper store, or else in the lower one. An error of the upper store is returned: the lower store
    /// must not take the place of a file whose state is unknown.
    fn find<T>(
        &self,
        read: impl Fn(&dyn WritableStore) -> Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match read(&*self.upper)? {
            Some(found) => Ok(Some(found)),
            None => read(&*self.lower),
        }
    }
}

impl From<LayeredStore> for SharedWritableStore {
    fn from(store: LayeredStore) -> Self {
        Arc::new(store)
    }
}

impl Store for LayeredStore {
    fn address(&self, name: &str) -> String {
        let is_only_below = matches!((self.upper.head(name), self.lower.head(name)), (Ok(None), Ok(Some(_))));
        if is_only_below { self.lower.address(name) } else { self.upper.address(name) }
    }

    fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.find(|store| store.get(name, limit))
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        self.find(|store| store.open(name))
    }

    fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.find(|store| store.head(name))
    }

    fn listing(&self) -> Option<&dyn StoreListing> {
        None
    }

    fn reporter(&self) -> &Reporter {
        self.upper.reporter()
    }
}

impl WritableStore for LayeredStore {
    fn start_run(&self) -> Result<Box<dyn StoreRun>, StoreError> {
        let version = self.lower.objects_version();
        Ok(Box::new(LayeredRun { upper: self.upper.start_run()?, lower: Arc::clone(&self.lower), version }))
    }

    /// An object of the lower store keeps its age.
    fn renew(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        match self.upper.renew(hash, kind)? {
            Some(size) => Ok(Some(size)),
            None => self.lower.stored_size(hash, kind),
        }
    }

    fn age(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<Duration>, StoreError> {
        self.find(|store| store.age(hash, kind))
    }

    /// Objects of the lower store stay.
    fn delete(&self, objects: &[ObjectName]) -> Result<(), StoreError> {
        self.upper.delete(objects)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.upper.sync()
    }

    fn lock(&self, wait: Duration) -> Result<PublishLock, StoreError> {
        self.upper.lock(wait)
    }

    /// Returns the version of the lower store.
    fn objects_version(&self) -> ObjectsVersion {
        self.lower.objects_version()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.upper.free_bytes()
    }

    fn cancellation(&self) -> &Cancellation {
        self.upper.cancellation()
    }
}

/// A run in the upper store.
#[derive(Debug)]
struct LayeredRun {
    upper: Box<dyn StoreRun>,
    lower: SharedWritableStore,
    /// The version of the lower store at the start of the run.
    version: ObjectsVersion,
}

impl StoreRun for LayeredRun {
    fn write(&self, object: ObjectName, stored: &[u8]) -> Result<(), StoreError> {
        self.upper.write(object, stored)
    }

    fn name_objects(&self, objects: &[ObjectName], keeps_existing: &KeepsExisting<'_>) -> Result<(), StoreError> {
        self.upper.name_objects(objects, keeps_existing)
    }

    fn discard(&self, objects: &[ObjectName]) {
        self.upper.discard(objects);
    }

    /// The upper store does not notice the objects of the lower one.
    fn overwrites_unnoticed(&self) -> bool {
        true
    }

    fn objects_version(&self) -> ObjectsVersion {
        self.version.clone()
    }

    fn final_objects_version(&self) -> Option<ObjectsVersion> {
        Some(self.lower.objects_version()).filter(|version| *version == self.version)
    }

    fn replace_files(&self, files: &[NewFile<'_>], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError> {
        self.upper.replace_files(files, revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;
    use crate::store::contract::{assert_reads, files};

    #[test]
    fn files_of_both_stores_are_read() {
        let (upper, lower) = (MemoryStore::default(), MemoryStore::default());
        let layered = LayeredStore::new(upper.clone(), lower.clone());
        for (number, (name, bytes)) in files().iter().enumerate() {
            let store = if number % 2 == 0 { &upper } else { &lower };
            store.put(name, bytes);
        }
        assert_reads(&layered);
    }

    #[test]
    fn lower_store_is_never_changed() {
        let lower = MemoryStore::default();
        lower.put(".cvmfspublished", b"old");
        let layered = LayeredStore::new(MemoryStore::default(), lower.clone());
        let run = layered.start_run().unwrap();
        let _ = run.replace_files(&[NewFile::new(".cvmfspublished", b"new")], None).unwrap();
        assert_eq!(layered.read_file(".cvmfspublished").unwrap().unwrap(), b"new");
        assert_eq!(lower.read_file(".cvmfspublished").unwrap().unwrap(), b"old");
    }
}
