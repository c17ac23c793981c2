//! The storage of a repository in a local directory, in the layout that web servers deliver to CVMFS clients.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::directory_states::ObjectDirectoryStates;
use super::file_system::{is_synced_as_a_whole, sync_each};
use crate::cancel::{Cancellation, Cancelled};
use crate::file::{is_absence, open_regular, read_regular_up_to};
use crate::object::{DecodeError, ObjectHash, ObjectKind, SizeLimit, decode};
use crate::observer::Reporter;

/// Errors from reading and changing the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// The attempted action: "read", "write"…
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The directory lacks a file or directory that every repository has.
    #[error("'{}' is not the storage of a CVMFS repository: it has no {missing}", path.display())]
    NoRepository {
        /// The directory.
        path: PathBuf,
        /// The missing entry, relative to the directory.
        missing: &'static str,
    },
    /// The file is longer than any valid file of this name.
    #[error("'{}' is longer than the maximum of {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Maximum number of bytes that are read.
        limit: u64,
    },
    /// The bytes of an object do not match its name.
    #[error("object '{}' is damaged: its bytes hash to {actual}", path.display())]
    WrongHash {
        /// Path of the object.
        path: PathBuf,
        /// The hash of the bytes.
        actual: ObjectHash,
    },
    /// The bytes of an object match its name, but are not a valid zlib stream.
    #[error("object '{}' cannot be decompressed", path.display())]
    Undecodable {
        /// Path of the object.
        path: PathBuf,
        /// The error of the decompressor.
        source: DecodeError,
    },
    /// The file system lacks a function that publishing needs.
    #[error("the file system of '{}' {fault}", path.display())]
    Unfit {
        /// A directory on this file system.
        path: PathBuf,
        /// The missing function, as the predicate of a sentence.
        fault: &'static str,
        /// How the probe failed.
        source: io::Error,
    },
    /// The operation was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Another publisher holds the lock.
    #[error("{0}")]
    InUse(#[source] RepositoryInUse),
    /// Replacing a file failed, and the file cannot be read to find out whether it was replaced all the same.
    #[error("cannot tell whether '{}' was replaced, because it cannot be read", path.display())]
    Unknown {
        /// The file that was to be replaced.
        path: PathBuf,
        /// The error from reading it.
        source: io::Error,
    },
}

/// Another publisher holds the lock of the repository.
///
/// This is always the last error in the chain of causes, and never wrapped as `transparent`: a transparent wrapper would
/// hide it from the search through the chain that chooses the exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another publisher has held '{}' for {} s; --wait sets how long strata waits for it", path.display(), waited.as_secs())]
pub struct RepositoryInUse {
    /// The locked file or directory.
    pub path: PathBuf,
    /// How long this process waited.
    pub waited: Duration,
}

impl StoreError {
    /// Returns whether an object is missing, or its bytes do not match its name.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::WrongHash { .. } | Self::Undecodable { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

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

    /// Returns the reporter to the observer of this store.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
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

    /// Returns the content of a small file beside the objects, such as `.cvmfspublished`, or `None` if it does not exist.
    pub fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_file_of_up_to(MAX_SMALL_FILE, name)
    }

    /// Returns the content of a file of at most `limit` bytes beside the objects, or `None` if it does not exist.
    pub fn read_file_of_up_to(&self, limit: u64, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.seen_path(name);
        match read_regular_up_to(limit, &path) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => Err(StoreError::TooLarge { path, limit }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Returns the stored size of an object in bytes, or `None` if it does not exist.
    ///
    /// An empty file counts as missing, because other tools leave empty files after a crash. The only valid empty object is
    /// that of an empty file which is stored uncompressed.
    pub fn stored_size(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        Ok(self.find(hash, kind)?.map(|(_, metadata)| metadata.len()))
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
        let is_object = metadata.is_file() && (metadata.len() > 0 || hash == ObjectHash::of(b""));
        Ok(is_object.then_some((path, metadata)))
    }

    /// Returns the states of the object directories. In a layered store these are the directories of the lower store.
    pub(super) fn directory_states(&self) -> ObjectDirectoryStates {
        ObjectDirectoryStates::read(self.below.as_deref().unwrap_or(&self.root))
    }

    /// Returns the stored size of an object in bytes.
    pub fn size(&self, hash: ObjectHash, kind: ObjectKind) -> Result<u64, StoreError> {
        let path = self.seen_path(&hash.path(kind));
        Ok(fs::metadata(&path).map_err(StoreError::io("read", &path))?.len())
    }

    /// Opens an object's file. The caller must compare the bytes with the name.
    pub fn open_object(&self, hash: ObjectHash, kind: ObjectKind) -> Result<File, StoreError> {
        let path = self.seen_path(&hash.path(kind));
        open_regular(&path).map_err(StoreError::io("read", &path))
    }

    /// Returns the error for an object whose bytes hash to `actual`.
    pub fn damaged(&self, hash: ObjectHash, kind: ObjectKind, actual: ObjectHash) -> StoreError {
        StoreError::WrongHash { path: self.object_path(hash, kind), actual }
    }

    /// Returns the stored bytes of an object, after comparing them with its name.
    pub fn read(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Vec<u8>, StoreError> {
        self.read_up_to(u64::MAX, hash, kind)
    }

    fn read_up_to(&self, limit: u64, hash: ObjectHash, kind: ObjectKind) -> Result<Vec<u8>, StoreError> {
        let path = self.seen_path(&hash.path(kind));
        let bytes = match read_regular_up_to(limit, &path).map_err(StoreError::io("read", &path))? {
            Some(bytes) => bytes,
            None => return Err(StoreError::TooLarge { path, limit }),
        };
        match ObjectHash::of(&bytes) {
            actual if actual == hash => Ok(bytes),
            actual => Err(StoreError::WrongHash { path, actual }),
        }
    }

    /// Returns the decompressed content of an object that is a zlib stream.
    pub fn read_decoded(&self, hash: ObjectHash, kind: ObjectKind, limit: SizeLimit) -> Result<Vec<u8>, StoreError> {
        let undecodable = |source| StoreError::Undecodable { path: self.object_path(hash, kind), source };
        decode(&self.read_up_to(limit.stored(), hash, kind)?, limit).map_err(undecodable)
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

/// Modification times of objects are renewed when they are older than this.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Maximum size in bytes of every file beside the objects, except the reflog.
const MAX_SMALL_FILE: u64 = 64 << 10;

/// Interval between two attempts to take a lock.
pub(super) const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Excludes other publishers until it is dropped.
#[derive(Debug)]
#[must_use = "the lock is released when it is dropped"]
pub struct PublishLock {
    _directory: File,
}
