//! What publishing requires of the file system of a repository, and how written files become durable.

use std::fs::{self, File, FileTimes, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::cancel::Cancellation;
use crate::observer::Reporter;
use crate::store::StoreError;

/// File system type in `statfs` of every FUSE file system, such as ceph-fuse, gluster and mergerfs.
// `FUSE_SUPER_MAGIC` of Linux.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// Number of files that are synced in parallel, because each sync may need a round trip to a server.
const PARALLEL_SYNCS: usize = 16;

/// Returns whether one `syncfs` makes everything below `directory` durable. On FUSE file systems Linux accepts the call and
/// does nothing, so each file and each directory needs its own `fsync`.
pub(super) fn is_synced_as_a_whole(directory: &Path) -> Result<bool, StoreError> {
    let found = rustix::fs::statfs(directory).map_err(|error| StoreError::io("read", directory)(error.into()))?;
    Ok(found.f_type as i64 != FUSE_MAGIC)
}

/// Makes each of these files and directories durable with an `fsync` of its own.
pub(super) fn sync_each(paths: &[PathBuf], cancellation: &Cancellation) -> Result<(), StoreError> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = cancellation.syncing(|| File::open(path).and_then(|file| file.sync_all())) {
                *failure.lock().expect("no thread panics while it syncs") = Some(StoreError::io("sync", path)(error));
                // After a failure, the other threads find nothing left to do.
                next.store(paths.len(), Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, work);
        // If the system refuses a thread, the remaining threads do the work.
        let _helpers: Vec<_> = (1..PARALLEL_SYNCS.min(paths.len())).map_while(|number| spawn(number).ok()).collect();
        work();
    });
    failure.into_inner().expect("no thread panics while it syncs").map_or(Ok(()), Err)
}

/// Tests, in an empty `directory`, what a repository requires of its file system: exclusive locks, and a rename that
/// replaces a file. Reports a warning if modification times cannot be set.
pub(super) fn probe(directory: &Path, reporter: &Reporter) -> Result<(), StoreError> {
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
        _ => return Err(unfit(NO_LOCKS, io::Error::other("two open files hold the lock at the same time"))),
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set = File::options().write(true).open(&new).and_then(|file| {
        file.set_times(FileTimes::new().set_modified(time))?;
        file.metadata()?.modified()
    });
    let distance = |is: SystemTime| is.duration_since(time).unwrap_or_else(|error| error.duration());
    if !matches!(&set, Ok(is) if distance(*is) < Duration::from_secs(3)) {
        let why = set.map_or_else(|error| error.to_string(), |_| "they do not change".to_owned());
        reporter.warn(format_args!(
            "the file system of '{}' cannot set modification times of files ({why}): a garbage collection of cvmfs_server may \
             delete old objects while a publication begins to use them",
            directory.display()
        ));
    }
    fs::rename(&new, &old).map_err(|source| unfit(NO_RENAME, source))?;
    match fs::read(&old) {
        Ok(content) if content == b"new" && !new.exists() => {}
        Ok(_) => return Err(unfit(NO_RENAME, io::Error::other("the file has its old content"))),
        Err(source) => return Err(unfit(NO_RENAME, source)),
    }
    fs::remove_file(&old).map_err(StoreError::io("delete", &old))
}

const NO_LOCKS: &str = "does not support locks (`flock`) that exclude other publishers";
const NO_RENAME: &str = "does not replace a file by renaming another one";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_of_this_machine_passes_the_probe_which_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        probe(directory.path(), &Reporter::silent()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(is_synced_as_a_whole(directory.path()).unwrap());
    }

    #[test]
    fn error_names_the_file_that_cannot_be_synced() {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..100).map(|number| directory.path().join(number.to_string())).collect();
        paths.iter().for_each(|path| fs::write(path, "").unwrap());
        let cancellation = Cancellation::default();
        sync_each(&paths, &cancellation).unwrap();
        sync_each(&[], &cancellation).unwrap();
        fs::remove_file(&paths[50]).unwrap();
        assert!(sync_each(&paths, &cancellation).unwrap_err().to_string().contains("50'"));
    }
}
