//! What a `cvmfs_server` on this machine keeps of a repository that it manages: locks, and a checksum of the reflog.
//!
//! Two of its locks are `flock`s on files that exist only while they are held. The third, `in_transaction`, is the mere
//! presence of a file, from `cvmfs_server transaction` until `publish` or `abort`. So ours says whose it is, and is locked as
//! long as its owner lives: what a killed run leaves behind does not look like somebody's open transaction.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::manifest::RepositoryName;
use crate::object::ObjectHash;

use super::directory::RETRY;
use super::runs::{runs, syncing, uninterrupted};
use super::{Held, StoreError};
use crate::file::{is_absence, read_regular_text};
use crate::message::causes;

/// A `cvmfs_server` that manages the same storage.
#[derive(Debug)]
pub struct LocalServer {
    /// Its spool directory of this repository, `/var/spool/cvmfs/<fqrn>` as a rule.
    spool: PathBuf,
}

impl LocalServer {
    /// Looks whether the server whose settings lie in `settings`, as `<fqrn>/server.conf`, manages `storage`.
    pub fn find(settings: &Path, name: &RepositoryName, storage: &Path) -> Result<Option<Self>, StoreError> {
        let path = settings.join(name.to_string()).join("server.conf");
        let text = match read_regular_text(&path) {
            Ok(text) => text,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        // Of the forms `local,<directory for unfinished files>,<storage>`, `S3,…` and `gw,…` only the first can be ours.
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
        Ok(is_ours.then_some(Self { spool }))
    }

    /// Takes the server's three locks, waiting up to `wait` for whoever has them.
    pub fn lock(&self, wait: Duration) -> Result<ServerLock, StoreError> {
        let start = Instant::now();
        let mut held = Vec::new();
        for (name, take) in
            [("in_transaction", take_flag as Take), ("is_publishing", take_lock), ("is_collecting", take_lock)]
        {
            let path = self.spool.join(format!("{name}.lock"));
            let file = loop {
                match take_noted(take, &path)? {
                    Some(file) => break file,
                    None if start.elapsed() < wait => thread::sleep(RETRY),
                    None => return Err(StoreError::Held(Held { path, waited: start.elapsed() })),
                }
            };
            held.push(HeldFile { path, _file: file, is_given_back: false });
        }
        Ok(ServerLock { held })
    }

    /// Returns which reflog the server takes for the right one, if it says so.
    pub fn reflog_checksum(&self) -> Result<Option<ObjectHash>, StoreError> {
        let path = self.spool.join("reflog.chksum");
        match read_regular_text(&path) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Tells the server which reflog is the right one; it refuses any other.
    pub fn write_reflog_checksum(&self, reflog: ObjectHash) -> Result<(), StoreError> {
        let path = self.spool.join("reflog.chksum");
        let owner = fs::metadata(&self.spool).map_err(StoreError::io("read", &self.spool))?;
        // A temporary file must not stay behind.
        let written = uninterrupted(|| {
            let mut temporary = temporary_in(&self.spool)?;
            writeln!(temporary, "{reflog}")?;
            syncing(|| temporary.as_file().sync_all())?;
            // The server writes to the file itself, as the owner of the directory.
            std::os::unix::fs::chown(temporary.path(), Some(owner.uid()), Some(owner.gid()))?;
            temporary.persist(&path).map_err(|error| error.error)
        });
        written.map(drop).map_err(StoreError::io("replace", &path))
    }
}

/// Keeps the server from publishing and collecting until it is dropped.
#[derive(Debug)]
#[must_use = "the locks are given back when they are dropped"]
pub struct ServerLock {
    held: Vec<HeldFile>,
}

impl ServerLock {
    /// Gives the locks back, and returns why one still keeps the server out.
    pub fn release(self) -> Vec<StoreError> {
        self.held.into_iter().filter_map(|mut held| held.give_back().err()).collect()
    }
}

#[derive(Debug)]
struct HeldFile {
    path: PathBuf,
    _file: File,
    is_given_back: bool,
}

impl HeldFile {
    /// Removes the file, as the server does, before the lock on it goes: a file of ours could be closed to the server's user.
    fn give_back(&mut self) -> Result<(), StoreError> {
        self.is_given_back = true;
        let mut runs = runs();
        runs.unlock(&self.path);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        if self.is_given_back {
            return;
        }
        if let Err(error) = self.give_back() {
            tracing::warn!("{}, which keeps cvmfs_server out", causes(&error));
        }
    }
}

/// Tries to take a file and notes that it has to go with the process, in one step: an interruption finds both or neither.
fn take_noted(take: Take, path: &Path) -> Result<Option<File>, StoreError> {
    let mut runs = runs();
    let taken = take(path)?;
    if taken.is_some() {
        runs.lock(path);
    }
    Ok(taken)
}

/// Tries to take what `path` stands for; `None` where somebody else has it.
type Take = fn(&Path) -> Result<Option<File>, StoreError>;

fn take_flag(path: &Path) -> Result<Option<File>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if is_absence(&error) => return create_flag(path),
        Err(error) => return Err(StoreError::io("read", path)(error)),
    }
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        // Gone since, or a file of the server's user that is not for us to write to.
        Err(error) if is_absence(&error) || error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    if !lock_file(&file, path)? {
        return Ok(None);
    }
    let mut mark = Vec::new();
    (&file).take(64).read_to_end(&mut mark).map_err(StoreError::io("read", path))?;
    if mark != OUR_MARK {
        return Ok(None);
    }
    tracing::warn!("'{}' was left by a run of strata that was killed", path.display());
    Ok(Some(file))
}

/// Makes a flag of ours that has its mark and its lock from the start, unless there is one.
fn create_flag(path: &Path) -> Result<Option<File>, StoreError> {
    let spool = path.parent().unwrap_or(Path::new("/"));
    let created = (|| {
        let mut temporary = temporary_in(spool)?;
        temporary.write_all(OUR_MARK)?;
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

fn take_lock(path: &Path) -> Result<Option<File>, StoreError> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = opened.map_err(StoreError::io("open", path))?;
    Ok(lock_file(&file, path)?.then_some(file))
}

/// Tries to lock a file, and makes sure that nobody removed it before it was locked.
fn lock_file(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(false),
        Err(fs::TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
    }
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let locked = file.metadata().map(identity).map_err(StoreError::io("read", path))?;
    match fs::metadata(path) {
        Ok(named) => Ok(identity(named) == locked),
        Err(error) if is_absence(&error) => Ok(false),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}

/// What a flag of ours says; the server's own are empty.
const OUR_MARK: &[u8] = b"strata publishes\n";

/// Returns what a file of shell assignments sets a variable to: its last plain assignment, without quotes.
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
        take_flag(path).unwrap().is_some()
    }

    #[test]
    fn flag_of_a_living_run_or_of_the_server_is_respected_and_that_of_a_dead_run_taken_over() {
        let spool = tempfile::tempdir().unwrap();
        let path = spool.path().join("in_transaction.lock");
        let held = take_flag(&path).unwrap().expect("nobody has it");
        assert!(!is_free(&path));
        drop(held);
        assert!(path.exists() && is_free(&path));
        fs::write(&path, "").unwrap();
        assert!(!is_free(&path));
    }

    #[test]
    fn lock_on_a_file_that_was_removed_meanwhile_counts_for_nothing() {
        let spool = tempfile::tempdir().unwrap();
        let path = spool.path().join("is_publishing.lock");
        let file = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!lock_file(&file, &path).unwrap());
        assert!(take_lock(&path).unwrap().is_some());
    }

    #[test]
    fn settings_are_read_as_the_shell_would() {
        let text = "A=first\n  export A=\"local,/srv/x/data/txn,/srv/x\" # why\nB='b c'\nC=plain # note\nAB=no\n";
        assert_eq!(shell_value(text, "A"), Some("local,/srv/x/data/txn,/srv/x"));
        assert_eq!(shell_value(text, "B"), Some("b c"));
        assert_eq!(shell_value(text, "C"), Some("plain"));
        assert_eq!(shell_value(text, "D"), None);
    }
}
