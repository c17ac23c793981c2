//! The files of a `cvmfs_server` on this machine that manages the same repository: its locks, and a checksum of the reflog.
//!
//! Two of its locks are `flock`s on files that exist only while the lock is held. The third, `in_transaction`, is the
//! presence of a file, from `cvmfs_server transaction` until `publish` or `abort`. Our `in_transaction` file therefore
//! contains a mark and is `flock`ed as long as its owner runs, so that the file of a killed run differs from an open
//! transaction of the server.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Cancellation;
use crate::file::{is_absence, read_regular_text};
use crate::manifest::RepositoryName;
use crate::object::{HashAlgorithm, ObjectHash};
use crate::observer::Reporter;

use super::{LOCK_RETRY_INTERVAL, StoreError};
use crate::message::causes;

/// A `cvmfs_server` that manages the same storage.
#[derive(Debug)]
pub struct LocalServer {
    /// The server's spool directory for this repository, by default `/var/spool/cvmfs/<fqrn>`.
    spool: PathBuf,
    hash_algorithm: HashAlgorithm,
    reporter: Reporter,
    cancellation: Cancellation,
}

impl LocalServer {
    /// Returns the server that manages `storage`, if the file `<fqrn>/server.conf` below `settings` says that it does.
    pub fn find(
        settings: &Path,
        name: &RepositoryName,
        storage: &Path,
        reporter: &Reporter,
        cancellation: &Cancellation,
    ) -> Result<Option<Self>, StoreError> {
        let path = settings.join(name.to_string()).join("server.conf");
        let text = match read_regular_text(&path) {
            Ok(text) => text,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        // Formats: `local,<directory for unfinished files>,<storage>`, `S3,…` and `gw,…`. Only the first can name our
        // storage.
        let upstream = shell_value(&text, "CVMFS_UPSTREAM_STORAGE").unwrap_or_default();
        let managed = upstream.strip_prefix("local,").and_then(|rest| rest.rsplit(',').next()).map(Path::new);
        let is_ours = match managed {
            Some(managed) => match managed.canonicalize() {
                Ok(managed) => managed == storage.canonicalize().map_err(StoreError::io("find", storage))?,
                Err(error) if is_absence(&error) => false,
                Err(error) => return Err(StoreError::io("find", managed)(error)),
            },
            None => false,
        };
        let spool = shell_value(&text, "CVMFS_SPOOL_DIR")
            .map_or_else(|| Path::new("/var/spool/cvmfs").join(name.to_string()), PathBuf::from);
        // As in `cvmfs_server`: it uses SHA-1 if the variable is not set, even if the head has another algorithm.
        let algorithm = shell_value(&text, "CVMFS_HASH_ALGORITHM").filter(|name| !name.is_empty());
        let hash_algorithm = algorithm
            .map_or(Ok(HashAlgorithm::Sha1), str::parse)
            .map_err(|source| StoreError::io("use", &path)(io::Error::new(io::ErrorKind::InvalidData, source)));
        if !is_ours {
            return Ok(None);
        }
        let (reporter, cancellation) = (reporter.clone(), cancellation.clone());
        Ok(Some(Self { spool, hash_algorithm: hash_algorithm?, reporter, cancellation }))
    }

    /// Returns the hash algorithm that the server uses for the names of new objects.
    pub fn hash_algorithm(&self) -> HashAlgorithm {
        self.hash_algorithm
    }

    /// Takes the server's three locks, and waits up to `wait` for their present holders.
    pub fn lock(&self, wait: Duration) -> Result<ServerLock, StoreError> {
        let start = Instant::now();
        let mut held = Vec::new();
        for (name, take) in
            [("in_transaction", take_flag as TakeFile), ("is_publishing", take_lock), ("is_collecting", take_lock)]
        {
            let path = self.spool.join(format!("{name}.lock"));
            let file = loop {
                self.cancellation.check()?;
                match take_noted(take, &path, self)? {
                    Some(file) => break file,
                    None if start.elapsed() < wait => thread::sleep(LOCK_RETRY_INTERVAL),
                    None => return Err(StoreError::in_use(path.display(), start.elapsed())),
                }
            };
            held.push(HeldFile {
                path,
                _file: file,
                is_released: false,
                reporter: self.reporter.clone(),
                cancellation: self.cancellation.clone(),
            });
        }
        Ok(ServerLock { held })
    }

    /// Returns the hash of the reflog that the server accepts, if the server has recorded one.
    pub fn reflog_checksum(&self) -> Result<Option<ObjectHash>, StoreError> {
        let path = self.spool.join("reflog.chksum");
        match read_regular_text(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Records the hash of the reflog that the server accepts. The server refuses any other reflog.
    pub fn write_reflog_checksum(&self, reflog: ObjectHash) -> Result<(), StoreError> {
        let path = self.spool.join("reflog.chksum");
        let owner = fs::metadata(&self.spool).map_err(StoreError::io("read", &self.spool))?;
        // An interruption waits for this, so that no temporary file remains.
        let written = self.cancellation.uninterrupted(|| {
            let mut temporary = temporary_in(&self.spool)?;
            writeln!(temporary, "{reflog}")?;
            self.cancellation.syncing(|| temporary.as_file().sync_all())?;
            // The server rewrites this file as the owner of the spool directory.
            std::os::unix::fs::chown(temporary.path(), Some(owner.uid()), Some(owner.gid()))?;
            temporary.persist(&path).map_err(|error| error.error)
        });
        written.map(drop).map_err(StoreError::io("replace", &path))
    }
}

/// Prevents the server from publishing and collecting until it is dropped.
#[derive(Debug)]
#[must_use = "the locks are released when they are dropped"]
pub struct ServerLock {
    held: Vec<HeldFile>,
}

impl ServerLock {
    /// Releases the locks, and returns the errors of those that still block the server.
    pub fn release(self) -> Vec<StoreError> {
        self.held.into_iter().filter_map(|mut held| held.release().err()).collect()
    }
}

#[derive(Debug)]
struct HeldFile {
    path: PathBuf,
    _file: File,
    is_released: bool,
    reporter: Reporter,
    cancellation: Cancellation,
}

impl HeldFile {
    /// Removes the file before its lock is released, as the server does: the server's user may be unable to open a file that
    /// remains.
    fn release(&mut self) -> Result<(), StoreError> {
        self.is_released = true;
        let mut temporary = self.cancellation.temporary_files();
        temporary.unlock(&self.path);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        if self.is_released {
            return;
        }
        if let Err(error) = self.release() {
            self.reporter
                .warn(format_args!("{}; cvmfs_server cannot publish until the file is removed", causes(&error)));
        }
    }
}

/// Tries to take a file, and records in the same step that it must be removed when the process ends, so that an interruption
/// sees either both or neither.
fn take_noted(take: TakeFile, path: &Path, server: &LocalServer) -> Result<Option<File>, StoreError> {
    let mut temporary = server.cancellation.temporary_files();
    let taken = take(path, &server.reporter)?;
    if taken.is_some() {
        temporary.lock(path);
    }
    Ok(taken)
}

/// Tries to take the lock that `path` stands for. Returns `None` if another process holds it.
type TakeFile = fn(&Path, &Reporter) -> Result<Option<File>, StoreError>;

fn take_flag(path: &Path, reporter: &Reporter) -> Result<Option<File>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if is_absence(&error) => return create_flag(path),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    }
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        // The file was removed in the meantime, or it belongs to the server's user and strata may not write it.
        Err(error) if is_absence(&error) || error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    if !lock_file(&file, path)? {
        return Ok(None);
    }
    let mut mark = Vec::new();
    // Bounded: the file may be anything that another program put there.
    (&file).take(64).read_to_end(&mut mark).map_err(StoreError::io("read", path))?;
    if mark != FLAG_MARK {
        return Ok(None);
    }
    reporter.warn(format_args!("'{}' was left by a strata run that was killed; it is taken over", path.display()));
    Ok(Some(file))
}

/// Creates our flag file, which has its mark and its lock from the first moment. Returns `None` if the file exists.
fn create_flag(path: &Path) -> Result<Option<File>, StoreError> {
    let spool = path.parent().unwrap_or(Path::new("/"));
    let created = (|| {
        let mut temporary = temporary_in(spool)?;
        temporary.write_all(FLAG_MARK)?;
        // Locked before it gets its name, so that no other run can take it for the file of a killed one.
        temporary.as_file().lock()?;
        match temporary.persist_noclobber(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error.error),
        }
    })();
    created.map_err(StoreError::io("create", path))
}

fn temporary_in(spool: &Path) -> io::Result<tempfile::NamedTempFile> {
    let permissions = fs::Permissions::from_mode(0o644);
    tempfile::Builder::new().prefix(".strata-").permissions(permissions).tempfile_in(spool)
}

fn take_lock(path: &Path, _: &Reporter) -> Result<Option<File>, StoreError> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(StoreError::io("open", path))?;
    Ok(lock_file(&file, path)?.then_some(file))
}

/// Tries to lock a file. Returns `false` if the file was removed from `path` before it was locked.
fn lock_file(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(false),
        Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
    }
    // The holder removes the file before it releases the lock, so that the lock may be on a file that no longer has a name.
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let locked = file.metadata().map(identity).map_err(StoreError::io("read", path))?;
    match fs::metadata(path) {
        Ok(named) => Ok(identity(named) == locked),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// Content of our flag file. The server's flag file is empty.
const FLAG_MARK: &[u8] = b"strata publishes\n";

/// Returns the value of a variable in a file of shell assignments: its last plain assignment, without quotes.
fn shell_value<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let value = text.lines().rev().find_map(|line| {
        let line = line.trim().strip_prefix("export ").unwrap_or(line.trim());
        line.strip_prefix(name)?.strip_prefix('=')
    })?;
    let unquoted = |quote| value.strip_prefix(quote)?.split(quote).next();
    Some(unquoted('"').or_else(|| unquoted('\'')).unwrap_or_else(|| value.split_whitespace().next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_free(path: &Path) -> bool {
        take_flag(path, &Reporter::silent()).unwrap().is_some()
    }

    #[test]
    fn flag_of_a_running_process_or_of_the_server_is_respected_and_flag_of_a_killed_run_is_taken_over() {
        let spool = tempfile::tempdir().unwrap();
        let path = spool.path().join("in_transaction.lock");
        let held = take_flag(&path, &Reporter::silent()).unwrap().expect("no process holds it");
        assert!(!is_free(&path));
        drop(held);
        assert!(path.exists() && is_free(&path));
        fs::write(&path, "").unwrap();
        assert!(!is_free(&path));
    }

    #[test]
    fn lock_on_a_file_that_was_removed_in_the_meantime_is_invalid() {
        let spool = tempfile::tempdir().unwrap();
        let path = spool.path().join("is_publishing.lock");
        let file = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!lock_file(&file, &path).unwrap());
        assert!(take_lock(&path, &Reporter::silent()).unwrap().is_some());
    }

    #[test]
    fn settings_are_read_as_the_shell_reads_them() {
        let text = "A=first\n  export A=\"local,/srv/x/data/txn,/srv/x\" # why\nB='b c'\nC=plain # note\nAB=no\n";
        assert_eq!(shell_value(text, "A"), Some("local,/srv/x/data/txn,/srv/x"));
        assert_eq!(shell_value(text, "B"), Some("b c"));
        assert_eq!(shell_value(text, "C"), Some("plain"));
        assert_eq!(shell_value(text, "D"), None);
    }
}
