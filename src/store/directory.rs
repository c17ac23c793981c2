//! The storage of a repository in a local directory, in the layout that web servers deliver to CVMFS clients.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::directory_states::ObjectDirectoryStates;
use super::file_system::{is_synced_as_a_whole, sync_each};
use super::{FileVersion, RepositoryInUse, SharedStore, Store, StoreError, StoreListing};
use crate::cancel::Cancellation;
use crate::file::{is_absence, open_regular, read_regular_up_to};
use crate::object::{ObjectHash, ObjectKind};
use crate::observer::Reporter;

/// A repository's storage on a local file system.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    root: PathBuf,
    /// A second store. A file that does not exist in this store is read from there. The second store is never changed.
    below: Option<PathBuf>,
    reporter: Reporter,
    cancellation: Cancellation,
}

impl DirectoryStore {
    /// Returns the same store, with the token `cancellation`, which cancels its operations.
    #[must_use]
    pub fn with_cancellation(self, cancellation: &Cancellation) -> Self {
        Self { cancellation: cancellation.clone(), ..self }
    }

    /// Returns the token that cancels the operations on this store.
    pub(crate) fn cancellation(&self) -> &Cancellation {
        &self.cancellation
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
        Self { root: root.to_owned(), below: None, reporter: Reporter::silent(), cancellation: Cancellation::default() }
    }

    /// Returns the store with an observer. Without it, messages are dropped.
    pub fn with_reporter(self, reporter: &Reporter) -> Self {
        Self { reporter: reporter.clone(), ..self }
    }

    /// Creates an empty store in `root` on top of this one: both are read, and only `root` is written.
    pub fn layered(&self, root: &Path) -> Result<Self, StoreError> {
        let created = Self::create(root)?.with_reporter(&self.reporter).with_cancellation(&self.cancellation);
        Ok(Self { below: Some(self.root.clone()), ..created })
    }

    /// Returns whether a second store is read below this one.
    pub(super) fn is_layered(&self) -> bool {
        self.below.is_some()
    }

    /// Returns the storage directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn object_path(&self, hash: ObjectHash, kind: ObjectKind) -> PathBuf {
        self.root.join(hash.path(kind))
    }

    /// Returns the path of a file, which is in the lower store only if the file exists there and not in this one.
    fn seen_path(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        match &self.below {
            // If the state of the upper path is unknown, for example for lack of permission, the lower store must not
            // replace it.
            Some(below) if fs::metadata(&path).is_err_and(|error| is_absence(&error)) => {
                let path_below = below.join(name);
                if fs::metadata(&path_below).is_err_and(|error| is_absence(&error)) { path } else { path_below }
            }
            _ => path,
        }
    }

    /// Returns the stored size of an object like [`Self::stored_size`], and sets its modification time to now, which protects the
    /// object from garbage collection for days. A time within the last hour is left as it is.
    pub fn renew(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        let Some((path, metadata)) = self.find(hash, kind)? else { return Ok(None) };
        let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < RENEWAL_INTERVAL) || !path.starts_with(&self.root) {
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

    fn find(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<(PathBuf, fs::Metadata)>, StoreError> {
        let path = self.seen_path(&hash.path(kind));
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        // A zlib stream of no content still has 8 bytes, so only an uncompressed object can be empty.
        let is_object = metadata.is_file() && (metadata.len() > 0 || hash == hash.algorithm().hash(b""));
        Ok(is_object.then_some((path, metadata)))
    }

    /// Returns the states of the object directories. In a layered store these are the directories of the lower store.
    pub(super) fn directory_states(&self) -> ObjectDirectoryStates {
        ObjectDirectoryStates::read(self.below.as_deref().unwrap_or(&self.root))
    }

    /// Locks the repository against other publishers, and waits up to `wait` for a publisher that holds the lock.
    ///
    /// The lock is released when the returned value is dropped, or when the process ends.
    pub fn lock(&self, wait: Duration) -> Result<PublishLock, StoreError> {
        let directory = File::open(&self.root).map_err(StoreError::io("open", &self.root))?;
        let start = Instant::now();
        loop {
            self.cancellation.check()?;
            match directory.try_lock() {
                Ok(()) => return Ok(PublishLock { _directory: directory }),
                // Tried repeatedly, because a blocking lock could neither time out nor be cancelled.
                Err(fs::TryLockError::WouldBlock) if start.elapsed() < wait => thread::sleep(LOCK_RETRY_INTERVAL),
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(StoreError::InUse(RepositoryInUse {
                        path: self.root.clone(),
                        waited: start.elapsed(),
                    }));
                }
                Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", &self.root)(error)),
            }
        }
    }

    /// Returns the free space of the file system in bytes, or `None` if the file system does not report it.
    pub fn free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(&self.root).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }

    /// Waits until everything that was written so far is on disk. On FUSE file systems this has no effect.
    pub fn sync(&self) -> Result<(), StoreError> {
        let directory = File::open(&self.root).map_err(StoreError::io("open", &self.root))?;
        self.cancellation
            .syncing(|| rustix::fs::syncfs(&directory))
            .map_err(|error| StoreError::io("sync", &self.root)(error.into()))
    }
}

impl From<DirectoryStore> for SharedStore {
    fn from(store: DirectoryStore) -> Self {
        Arc::new(store)
    }
}

impl Store for DirectoryStore {
    fn address(&self, name: &str) -> String {
        self.seen_path(name).display().to_string()
    }

    fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.seen_path(name);
        match read_regular_up_to(limit, &path) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => Err(StoreError::TooLarge { address: path.display().to_string(), limit }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        let path = self.seen_path(name);
        match open_regular(&path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let path = self.seen_path(name);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    fn version(&self, name: &str) -> Option<FileVersion> {
        let file = fs::metadata(self.seen_path(name)).ok()?;
        let numbers = [file.ino().cast_signed(), file.mtime(), file.mtime_nsec(), file.size().cast_signed()];
        Some(FileVersion(numbers.iter().flat_map(|number| number.to_le_bytes()).collect()))
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

/// Interval between two attempts to take a lock.
pub(super) const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Excludes other publishers until it is dropped.
#[derive(Debug)]
#[must_use = "the lock is released when it is dropped"]
pub struct PublishLock {
    _directory: File,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::{assert_reads, files};

    fn store_in(root: &Path) -> DirectoryStore {
        let store = DirectoryStore::create(root).unwrap();
        files().iter().for_each(|(name, bytes)| fs::write(root.join(name), bytes).unwrap());
        store
    }

    #[test]
    fn files_are_read_from_a_directory() {
        let home = tempfile::tempdir().unwrap();
        let store = store_in(&home.path().join("storage"));
        assert_reads(&store);
        let upper = store.layered(&home.path().join("upper")).unwrap();
        assert_reads(&upper);
    }
}
