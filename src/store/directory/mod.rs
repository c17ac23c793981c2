//! The storage of a repository in a local directory, in the layout that web servers deliver to CVMFS clients.

mod file_system;
mod listing;
mod replace;
mod run;
mod runs;
mod states;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use file_system::{is_synced_as_a_whole, sync_each};
use run::DirectoryRun;
use states::ObjectDirectoryStates;

use super::{
    LOCK_RETRY_INTERVAL, ObjectName, ObjectsVersion, PublishLock, SharedStore, SharedWritableStore, Store, StoreError,
    StoreListing, StoreRun, WritableStore, is_object_size,
};
use crate::cancel::Cancellation;
use crate::file::{is_absence, open_regular, read_regular_up_to};
use crate::object::{ObjectHash, ObjectKind};
use crate::observer::Reporter;

/// A repository's storage on a local file system.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    root: PathBuf,
    reporter: Reporter,
    cancellation: Cancellation,
}

impl DirectoryStore {
    /// Returns the same store, with the token `cancellation`, which cancels its operations.
    #[must_use]
    pub fn with_cancellation(self, cancellation: &Cancellation) -> Self {
        Self { cancellation: cancellation.clone(), ..self }
    }

    /// Creates the directories of an empty store. Fails if `root` already contains `data`.
    pub fn create(root: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(StoreError::io("create", root))?;
        let data = root.join("data");
        fs::create_dir(&data).map_err(StoreError::io("create", &data))?;
        let mut directories = vec![root.to_owned(), data.clone()];
        // CVMFS's own tools never create these directories later, and `cvmfs_server import` refuses a store that lacks one.
        for name in (0..=255).map(|byte| format!("{byte:02x}")).chain(["txn".to_owned()]) {
            let path = data.join(name);
            fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
            directories.push(path);
        }
        if !is_synced_as_a_whole(root)? {
            sync_each(&directories, &Cancellation::default())?;
        }
        Ok(Self::at(root))
    }

    /// Opens a store that holds a repository.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for missing in [".cvmfspublished", "data", "data/txn"] {
            let path = root.join(missing);
            match fs::metadata(&path) {
                Ok(_) => {}
                Err(error) if is_absence(&error) => {
                    return Err(StoreError::NoRepository { path: root.to_owned(), missing });
                }
                Err(error) => return Err(StoreError::io("read", &path)(error)),
            }
        }
        Ok(Self::at(root))
    }

    /// Returns a store without testing whether the directory contains one. The repository check uses this, because it reports
    /// what is missing.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), reporter: Reporter::silent(), cancellation: Cancellation::default() }
    }

    /// Returns the store with an observer. Without it, messages are dropped.
    pub fn with_reporter(self, reporter: &Reporter) -> Self {
        Self { reporter: reporter.clone(), ..self }
    }

    /// Returns the path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn object_path(&self, (hash, kind): ObjectName) -> PathBuf {
        self.path(&hash.path(kind))
    }

    /// Returns path and metadata of an object, or `None` if it does not exist. An empty file is no object, see
    /// [`Store::stored_size`].
    fn find(&self, object: ObjectName) -> Result<Option<(PathBuf, fs::Metadata)>, StoreError> {
        let path = self.object_path(object);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        let is_object = metadata.is_file() && is_object_size(metadata.len(), object.0);
        Ok(is_object.then_some((path, metadata)))
    }
}

/// Returns the time since a file was modified. A file from the future has no age.
fn age(metadata: &fs::Metadata) -> Option<Duration> {
    metadata.modified().ok().and_then(|time| time.elapsed().ok())
}

impl WritableStore for DirectoryStore {
    /// Deletes the directories of dead runs, and creates a new one below `data/txn`. The objects are there until they have their names.
    /// A killed run leaves its directory, which the next run deletes.
    fn start_run(&self) -> Result<Box<dyn StoreRun>, StoreError> {
        Ok(Box::new(DirectoryRun::start(self)?))
    }

    /// Sets the modification time to now.
    fn renew(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        let Some((path, metadata)) = self.find((hash, kind))? else { return Ok(None) };
        if age(&metadata).is_some_and(|age| age < RENEWAL_INTERVAL) {
            return Ok(Some(metadata.len()));
        }
        // `UTIME_NOW` needs only write permission, an explicit time would require that we own the file (utimensat(2)).
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
        match rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()) {
            Ok(()) => Ok(Some(metadata.len())),
            // A garbage collection has deleted the object since it was found.
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(StoreError::io("renew", &path)(error.into())),
        }
    }

    fn age(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<Duration>, StoreError> {
        let found = self.find((hash, kind))?;
        Ok(found.map(|(_, metadata)| age(&metadata).unwrap_or_default()))
    }

    fn delete(&self, objects: &[ObjectName]) -> Result<(), StoreError> {
        for &object in objects {
            let path = self.object_path(object);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("delete", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// On FUSE file systems this has no effect: there, every file is durable before this is called.
    fn sync(&self) -> Result<(), StoreError> {
        let directory = File::open(&self.root).map_err(StoreError::io("open", &self.root))?;
        self.cancellation
            .syncing(|| rustix::fs::syncfs(&directory))
            .map_err(|error| StoreError::io("sync", &self.root)(error.into()))
    }

    fn lock(&self, wait: Duration) -> Result<PublishLock, StoreError> {
        let directory = File::open(&self.root).map_err(StoreError::io("open", &self.root))?;
        let start = Instant::now();
        loop {
            self.cancellation.check()?;
            match directory.try_lock() {
                Ok(()) => return Ok(PublishLock::new(directory)),
                // Tried repeatedly, because a blocking lock could neither time out nor be cancelled.
                Err(fs::TryLockError::WouldBlock) if start.elapsed() < wait => thread::sleep(LOCK_RETRY_INTERVAL),
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(StoreError::in_use(self.root.display(), start.elapsed()));
                }
                Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", &self.root)(error)),
            }
        }
    }

    fn objects_version(&self) -> ObjectsVersion {
        ObjectDirectoryStates::read(&self.root).version()
    }

    fn free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(&self.root).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }

    fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }
}

impl From<DirectoryStore> for SharedWritableStore {
    fn from(store: DirectoryStore) -> Self {
        Arc::new(store)
    }
}

impl From<&DirectoryStore> for SharedWritableStore {
    fn from(store: &DirectoryStore) -> Self {
        Arc::new(store.clone())
    }
}

impl From<DirectoryStore> for SharedStore {
    fn from(store: DirectoryStore) -> Self {
        Arc::new(store)
    }
}

impl Store for DirectoryStore {
    fn address(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(name);
        match read_regular_up_to(limit, &path) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => Err(StoreError::TooLarge { address: path.display().to_string(), limit }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        let path = self.path(name);
        match open_regular(&path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    fn listing(&self) -> Option<&dyn StoreListing> {
        Some(self)
    }

    fn reporter(&self) -> &Reporter {
        &self.reporter
    }
}

/// Modification times of objects are renewed when they are older than this.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{assert_reads, assert_writes, files};

    fn store_in(root: &Path) -> DirectoryStore {
        let store = DirectoryStore::create(root).unwrap();
        files().iter().for_each(|(name, bytes)| fs::write(root.join(name), bytes).unwrap());
        store
    }

    #[test]
    fn directory_satisfies_the_contract() {
        let home = tempfile::tempdir().unwrap();
        let store = store_in(&home.path().join("storage"));
        assert_reads(&store);
        assert_writes(&DirectoryStore::create(&home.path().join("empty")).unwrap().into());
    }
}
