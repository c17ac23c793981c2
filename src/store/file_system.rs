//! What the file system of a repository has to do, and how what is written there becomes durable.

use std::fs::{self, File, FileTimes, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use super::StoreError;
use super::runs::syncing;

/// The type that Linux gives for file systems of programs, such as ceph-fuse, gluster and mergerfs.
const FUSE: i64 = 0x6573_5546;

/// How many files are synced side by side: each may be a question to a server.
const AT_ONCE: usize = 16;

/// Tells whether one `syncfs` makes all durable that was written below `directory`. For file systems of programs Linux takes the
/// call and does nothing, so that each file and each directory has to be synced by itself.
pub(super) fn is_synced_as_a_whole(directory: &Path) -> Result<bool, StoreError> {
    let found = rustix::fs::statfs(directory).map_err(|error| StoreError::io("read", directory)(error.into()))?;
    Ok(found.f_type as i64 != FUSE)
}

/// Makes files and directories durable, each by itself.
pub(super) fn sync_each(paths: &[PathBuf]) -> Result<(), StoreError> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = syncing(|| File::open(path).and_then(|file| file.sync_all())) {
                *failure.lock().expect("no thread panics while it syncs") = Some(StoreError::io("sync", path)(error));
                next.store(paths.len(), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work);
        // With fewer threads it takes longer.
        let _helpers: Vec<_> = (1..AT_ONCE.min(paths.len())).map_while(|number| spawn(number).ok()).collect();
        work();
    });
    failure.into_inner().expect("no thread panics while it syncs").map_or(Ok(()), Err)
}

/// Tries in an empty `directory` what a repository needs of its file system: locks that keep others out, and a rename that
/// replaces a file. Where modification times cannot be set, it warns.
pub(super) fn probe(directory: &Path) -> Result<(), StoreError> {
    let unfit = |fault, source| StoreError::Unfit { path: directory.to_owned(), fault, source };
    let (old, new) = (directory.join("probe-old"), directory.join("probe-new"));
    for (path, content) in [(&old, "old"), (&new, "new")] {
        fs::write(path, content).map_err(StoreError::io("write", path))?;
    }
    let open = || File::open(&old).map_err(StoreError::io("open", &old));
    let (first, second) = (open()?, open()?);
    match (first.try_lock(), second.try_lock()) {
        (Ok(()), Err(TryLockError::WouldBlock)) => {}
        (Err(TryLockError::Error(source)), _) => return Err(unfit(NO_LOCKS, source)),
        _ => return Err(unfit(NO_LOCKS, io::Error::other("what one holds another one gets, too"))),
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set = File::options().write(true).open(&new).and_then(|file| {
        file.set_times(FileTimes::new().set_modified(time))?;
        file.metadata()?.modified()
    });
    let distance = |is: SystemTime| is.duration_since(time).unwrap_or_else(|error| error.duration());
    if !matches!(&set, Ok(is) if distance(*is) < Duration::from_secs(3)) {
        let why = set.map_or_else(|error| error.to_string(), |_| "they stay as they were".to_owned());
        tracing::warn!(
            "the file system of '{}' does not let times of files be set ({why}): a garbage collection of cvmfs_server may \
             delete old objects while a publication begins to use them",
            directory.display()
        );
    }
    fs::rename(&new, &old).map_err(|source| unfit(NO_RENAME, source))?;
    match fs::read(&old) {
        Ok(content) if content == b"new" && !new.exists() => {}
        Ok(_) => return Err(unfit(NO_RENAME, io::Error::other("the file has its old content"))),
        Err(source) => return Err(unfit(NO_RENAME, source)),
    }
    fs::remove_file(&old).map_err(StoreError::io("delete", &old))
}

const NO_LOCKS: &str = "has no locks (`flock`) that keep other publishers out";
const NO_RENAME: &str = "does not replace a file by renaming another one";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_of_this_machine_is_fit_and_nothing_is_left_of_the_probe() {
        let directory = tempfile::tempdir().unwrap();
        probe(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(is_synced_as_a_whole(directory.path()).unwrap());
    }

    #[test]
    fn file_that_cannot_be_synced_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..100).map(|number| directory.path().join(number.to_string())).collect();
        paths.iter().for_each(|path| fs::write(path, "").unwrap());
        sync_each(&paths).unwrap();
        sync_each(&[]).unwrap();
        fs::remove_file(&paths[50]).unwrap();
        assert!(sync_each(&paths).unwrap_err().to_string().contains("50'"));
    }
}
