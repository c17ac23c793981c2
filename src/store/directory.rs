//! A repository in a directory, exactly as web servers serve it to clients.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::file_system::{is_synced_as_a_whole, sync_each};
use super::marks::Marks;
use super::runs::syncing;
use crate::file::{is_absence, open_regular, read_regular_up_to};
use crate::object::{DecodeError, ObjectHash, ObjectKind, SizeLimit, decode};

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused something.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// What was tried: "read", "write"…
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory lacks what every repository has.
    #[error("'{}' is not the storage of a CVMFS repository: it has no {missing}", path.display())]
    NoRepository {
        /// The directory.
        path: PathBuf,
        /// What it lacks.
        missing: &'static str,
    },
    /// The file is none that any repository has.
    #[error("'{}' is longer than the {limit} bytes that it may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Up to how many bytes are read.
        limit: u64,
    },
    /// An object's bytes do not give its name.
    #[error("object '{}' is damaged: its bytes hash to {actual}", path.display())]
    WrongHash {
        /// Where the object lies.
        path: PathBuf,
        /// What its bytes hash to.
        actual: ObjectHash,
    },
    /// An object's bytes give its name, but no content.
    #[error("object '{}' cannot be unpacked", path.display())]
    Undecodable {
        /// Where the object lies.
        path: PathBuf,
        /// Why.
        source: DecodeError,
    },
    /// The file system does not do what publishing needs.
    #[error("the file system of '{}' {fault}", path.display())]
    Unfit {
        /// A directory there.
        path: PathBuf,
        /// What it does not do.
        fault: &'static str,
        /// How that was noticed.
        source: io::Error,
    },
    /// Somebody else publishes.
    #[error("{0}")]
    Held(#[source] Held),
    /// A file was to be replaced, that failed, and whether it failed cannot be found out.
    #[error("cannot tell whether '{}' was replaced, as it cannot be read", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
}

/// Another publisher holds the repository.
///
/// This is the last cause of every error that comes of it. So it is found in the chain of causes however the others wrap it,
/// which an error that wraps another one transparently would hide.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another publisher has held '{}' for {} s; --wait sets how long to wait for it", path.display(), waited.as_secs())]
pub struct Held {
    /// What both want to lock.
    pub path: PathBuf,
    /// For how long this one waited.
    pub waited: Duration,
}

impl StoreError {
    /// Tells whether an object is missing or has other bytes than its name promises.
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
    /// Another store, whose objects and files are seen where this one has none, and which is never changed.
    below: Option<PathBuf>,
}

impl DirectoryStore {
    /// Creates the directories of an empty store. Nothing of an existing one may be in the way.
    pub fn create(root: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(root).map_err(StoreError::io("create", root))?;
        let data = root.join("data");
        fs::create_dir(&data).map_err(StoreError::io("create", &data))?;
        let mut directories = vec![root.to_owned(), data.clone()];
        for name in (0..=255).map(|byte| format!("{byte:02x}")).chain(["txn".to_owned()]) {
            let path = data.join(name);
            fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
            directories.push(path);
        }
        if !is_synced_as_a_whole(root)? {
            sync_each(&directories)?;
        }
        Ok(Self { root: root.to_owned(), below: None })
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
        Ok(Self { root: root.to_owned(), below: None })
    }

    /// Names a store without looking whether it is one, for a check to do so.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), below: None }
    }

    /// Creates an empty store in `root` that shows what is in this one, too. Whatever is added or replaced lies in `root`.
    pub fn layered(&self, root: &Path) -> Result<Self, StoreError> {
        Ok(Self { below: Some(self.root.clone()), ..Self::create(root)? })
    }

    /// Tells whether another store is seen where this one has nothing.
    pub(super) fn is_layered(&self) -> bool {
        self.below.is_some()
    }

    /// Returns the directory that the store lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn object_path(&self, hash: ObjectHash, kind: ObjectKind) -> PathBuf {
        self.root.join(hash.path(kind))
    }

    /// Returns where something lies: in the store below only if it is there and not here.
    fn seen_path(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        match &self.below {
            // What cannot be looked at here is not taken from there.
            Some(below) if fs::metadata(&path).is_err_and(|error| is_absence(&error)) => {
                let path_below = below.join(name);
                if fs::metadata(&path_below).is_err_and(|error| is_absence(&error)) { path } else { path_below }
            }
            _ => path,
        }
    }

    /// Returns a small file beside the objects, such as `.cvmfspublished`, or `None` where there is none.
    pub fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read_file_of_up_to(SMALL_FILE, name)
    }

    /// Returns a file beside the objects that has up to `limit` bytes, or `None` where there is none.
    pub fn read_file_of_up_to(&self, limit: u64, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.seen_path(name);
        match read_regular_up_to(limit, &path) {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => Err(StoreError::TooLarge { path, limit }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Returns how many bytes an object has as it is stored, or `None` where it is not there.
    ///
    /// An empty file counts as missing: no object but that of an empty file stored as it is has no bytes, and a crash of
    /// other tools leaves such.
    pub fn look(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        Ok(self.find(hash, kind)?.map(|(_, metadata)| metadata.len()))
    }

    /// Does the same, and renews the object's time, which spares it from garbage collection for days. A time of within the
    /// last hour is left as it is.
    pub fn renew(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        let Some((path, metadata)) = self.find(hash, kind)? else { return Ok(None) };
        let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < RENEWED_FOR) || !path.starts_with(&self.root) {
            return Ok(Some(metadata.len()));
        }
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
        match rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()) {
            Ok(()) => Ok(Some(metadata.len())),
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
        let is_object = metadata.is_file() && (metadata.len() > 0 || hash == ObjectHash::of(b""));
        Ok(is_object.then_some((path, metadata)))
    }

    /// Returns the states of the directories of objects, in the store below where there is one.
    pub(super) fn marks(&self) -> Marks {
        Marks::read(self.below.as_deref().unwrap_or(&self.root))
    }

    /// Returns how many bytes an object has as it is stored.
    pub fn size(&self, hash: ObjectHash, kind: ObjectKind) -> Result<u64, StoreError> {
        let path = self.seen_path(&hash.path(kind));
        Ok(fs::metadata(&path).map_err(StoreError::io("read", &path))?.len())
    }

    /// Opens an object's file, whose bytes nobody compared with its name yet.
    pub fn open_object(&self, hash: ObjectHash, kind: ObjectKind) -> Result<File, StoreError> {
        let path = self.seen_path(&hash.path(kind));
        open_regular(&path).map_err(StoreError::io("read", &path))
    }

    /// Returns the error that says that an object's bytes hash to `actual` instead.
    pub fn damaged(&self, hash: ObjectHash, kind: ObjectKind, actual: ObjectHash) -> StoreError {
        StoreError::WrongHash { path: self.object_path(hash, kind), actual }
    }

    /// Returns an object's bytes as they are stored, after comparing them with its name.
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

    /// Returns the content of an object that is a zlib stream.
    pub fn read_decoded(&self, hash: ObjectHash, kind: ObjectKind, limit: SizeLimit) -> Result<Vec<u8>, StoreError> {
        let undecodable = |source| StoreError::Undecodable { path: self.object_path(hash, kind), source };
        decode(&self.read_up_to(limit.stored(), hash, kind)?, limit).map_err(undecodable)
    }

    /// Locks the repository against other publishers, waiting up to `wait` for one that is at it.
    ///
    /// The lock goes with the value, or with the process.
    pub fn lock(&self, wait: Duration) -> Result<Lock, StoreError> {
        let directory = File::open(&self.root).map_err(StoreError::io("open", &self.root))?;
        let start = Instant::now();
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Lock { _directory: directory }),
                Err(fs::TryLockError::WouldBlock) if start.elapsed() < wait => thread::sleep(RETRY),
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(StoreError::Held(Held { path: self.root.clone(), waited: start.elapsed() }));
                }
                Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", &self.root)(error)),
            }
        }
    }

    /// Returns how many bytes may still be written, if the file system tells.
    pub fn bytes_left(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(&self.root).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }

    /// Waits until everything that was written so far is on disk. File systems of programs (FUSE) do nothing here.
    pub fn sync(&self) -> Result<(), StoreError> {
        let directory = File::open(&self.root).map_err(StoreError::io("open", &self.root))?;
        syncing(|| rustix::fs::syncfs(&directory)).map_err(|error| StoreError::io("sync", &self.root)(error.into()))
    }
}

/// An object's time is renewed when it is older than this.
const RENEWED_FOR: Duration = Duration::from_secs(60 * 60);

/// Bytes that every file beside the objects keeps below, but the log of references.
const SMALL_FILE: u64 = 64 << 10;

/// How often a waiting publisher looks whether the other one is done.
pub(super) const RETRY: Duration = Duration::from_millis(50);

/// Keeps other publishers out until it is dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when it is dropped"]
pub struct Lock {
    _directory: File,
}
