//! The directories of runs, and the unfinished files of this process, which an interruption deletes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::StoreError;
use crate::observer::Reporter;

/// Prefix of the names of run directories in `data/txn`.
const DIRECTORY_PREFIX: &str = "strata-";

/// Everything that this process must delete when it is interrupted.
#[derive(Debug)]
pub(super) struct Runs {
    /// Run directories, which are deleted when the process ends.
    directories: Vec<PathBuf>,
    /// Files and directories that are deleted unless their [`UnfinishedFiles`] value finishes, in the order of creation, each
    /// with the number of that value.
    unfinished: Vec<(u64, UnfinishedFile)>,
    /// Number of [`UnfinishedFiles`] values that were created so far.
    owners: u64,
    /// Lock files that exclude a `cvmfs_server` as long as they exist.
    locks: Vec<PathBuf>,
    /// The last revision that this process has published.
    published: Option<u64>,
}

/// A file or directory to delete if the work that it belongs to does not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
enum UnfinishedFile {
    /// Deleted with everything in it.
    Whole(PathBuf),
    /// Deleted only if it is empty: another process may have put a file into it.
    IfEmpty(PathBuf),
}

/// Number of threads of this process that are inside a sync, and the time when the last thread left one.
static SYNCS: Mutex<(usize, Option<Instant>)> = Mutex::new((0, None));

static RUNS: Mutex<Runs> =
    Mutex::new(Runs { directories: Vec::new(), unfinished: Vec::new(), owners: 0, locks: Vec::new(), published: None });

/// Returns the runs, locked. While the lock is held, an interruption waits; therefore it is held for short steps only.
pub(super) fn runs() -> MutexGuard<'static, Runs> {
    RUNS.lock().expect("no thread panics while it holds the list of runs")
}

/// Runs a short step that would leave a temporary file if the process ended in the middle of it. An interruption waits for
/// the step.
pub(crate) fn uninterrupted<T>(step: impl FnOnce() -> T) -> T {
    let _runs = runs();
    step()
}

fn syncs() -> MutexGuard<'static, (usize, Option<Instant>)> {
    SYNCS.lock().expect("no thread panics while it counts syncs")
}

/// Runs a sync, which may block in the kernel for a long time. The deadline of an interruption does not count this time,
/// because a process cannot end inside a sync anyway.
pub(crate) fn syncing<T>(sync: impl FnOnce() -> T) -> T {
    syncs().0 += 1;
    let result = sync();
    let mut syncs = syncs();
    *syncs = (syncs.0 - 1, Some(Instant::now()));
    result
}

/// A deadline that starts again after every sync of this process, because every other disk operation hangs while the kernel
/// syncs.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    end: Instant,
    patience: Duration,
}

impl Deadline {
    /// Returns the deadline that ends after `patience`.
    pub fn after(patience: Duration) -> Self {
        Self { end: Instant::now() + patience, patience }
    }

    /// Returns whether the deadline has passed.
    pub fn is_over(self) -> bool {
        let now = Instant::now();
        let last_sync = match *syncs() {
            (0, last) => last,
            _ => Some(now),
        };
        now >= last_sync.map_or(self.end, |sync| self.end.max(sync + self.patience))
    }
}

impl Runs {
    pub(super) fn start(&mut self, directory: &Path) {
        self.directories.push(directory.to_owned());
    }

    /// Records that clients can see a revision.
    pub(super) fn publish(&mut self, revision: u64) {
        self.published = Some(revision);
    }

    pub(super) fn end(&mut self, directory: &Path) {
        self.directories.retain(|other| other != directory);
    }

    pub(super) fn lock(&mut self, file: &Path) {
        self.locks.push(file.to_owned());
    }

    pub(super) fn unlock(&mut self, file: &Path) {
        self.locks.retain(|other| other != file);
    }

    fn remove_unfinished(&mut self, owner: u64) -> Vec<UnfinishedFile> {
        let taken = self.unfinished.extract_if(.., |(of, _)| *of == owner);
        taken.map(|(_, leftover)| leftover).collect()
    }
}

/// Files and directories outside of any run directory that are useless until all of them exist. They are deleted if this
/// value is dropped, or the process interrupted, before [`Self::finish`].
#[derive(Debug)]
#[must_use = "the created files are deleted when this is dropped"]
pub struct UnfinishedFiles {
    number: u64,
}

/// Records the files and directories that a step creates.
pub struct FileRecorder<'r> {
    runs: &'r mut Runs,
    owner: u64,
}

impl FileRecorder<'_> {
    /// Records a file or directory that is about to be created, unless one exists at its path.
    pub fn record_new(&mut self, path: &Path) {
        if is_missing(path) {
            self.note(UnfinishedFile::Whole(path.to_owned()));
        }
    }

    /// Records those parent directories of `path` that do not exist.
    pub fn record_missing_parents(&mut self, path: &Path) {
        let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|above| is_missing(above)).collect();
        missing.into_iter().rev().for_each(|above| self.note(UnfinishedFile::IfEmpty(above.to_owned())));
    }

    /// Records a directory that was just created.
    pub fn record_created(&mut self, path: &Path) {
        self.note(UnfinishedFile::Whole(path.to_owned()));
    }

    fn note(&mut self, leftover: UnfinishedFile) {
        self.runs.unfinished.push((self.owner, leftover));
    }
}

/// Returns whether no file exists at a path. The empty path is the current directory.
fn is_missing(path: &Path) -> bool {
    let metadata = path.symlink_metadata();
    !path.as_os_str().is_empty() && metadata.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

impl UnfinishedFiles {
    /// Starts without any created file.
    pub fn start() -> Self {
        let mut runs = runs();
        runs.owners += 1;
        Self { number: runs.owners }
    }

    /// Runs a step that creates files. An interruption waits for the step.
    pub fn make<T>(&self, step: impl FnOnce(&mut FileRecorder<'_>) -> T) -> T {
        let mut runs = runs();
        step(&mut FileRecorder { runs: &mut runs, owner: self.number })
    }

    /// Runs the last step. If it succeeds, all created files stay, and the repository has the given revision.
    pub fn finish<E>(self, revision: u64, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut runs = runs();
        let finished = step();
        if finished.is_ok() {
            runs.remove_unfinished(self.number);
            runs.publish(revision);
        }
        drop(runs);
        finished
    }
}

impl Drop for UnfinishedFiles {
    fn drop(&mut self) {
        let leftovers = runs().remove_unfinished(self.number);
        leftovers.iter().rev().for_each(|leftover| leftover.delete(None));
    }
}

impl UnfinishedFile {
    /// Deletes the file or directory, as far as possible until the deadline.
    fn delete(&self, deadline: Option<Deadline>) {
        // Best effort: the error that led here, or the interruption, is more useful than an error from cleaning up.
        match self {
            Self::Whole(path) if path.symlink_metadata().is_ok_and(|found| found.is_dir()) => match deadline {
                Some(deadline) => delete_until(path, deadline),
                None => drop(fs::remove_dir_all(path)),
            },
            Self::Whole(path) => drop(fs::remove_file(path)),
            Self::IfEmpty(path) => drop(fs::remove_dir(path)),
        }
    }
}

/// Deletes a directory with its content, as far as possible until the deadline.
fn delete_until(directory: &Path, deadline: Deadline) {
    while !deadline.is_over() && directory.exists() {
        delete_content(directory, deadline);
        if fs::remove_dir(directory).is_err() {
            // A thread that had opened the directory before has created a file in it in the meantime.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn delete_content(directory: &Path, deadline: Deadline) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if deadline.is_over() {
            return;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            delete_content(&entry.path(), deadline);
            fs::remove_dir(entry.path()).ok();
        } else {
            fs::remove_file(entry.path()).ok();
        }
    }
}

/// Deletes the unfinished files of this process and the locks that it holds, and returns the last revision that this process
/// has published. Files that are not deleted within `patience` are left to the next run.
///
/// Call this only when the process is about to end: the directories of its runs disappear, and every thread that tries to
/// publish, to create files or to clean up blocks forever.
pub fn abandon_runs(patience: Duration) -> Option<u64> {
    let runs = runs();
    // The deadline starts here, because the previous holder of the lock may have been inside a sync.
    let deadline = Deadline::after(patience);
    for lock in &runs.locks {
        fs::remove_file(lock).ok();
    }
    // The directories are renamed first, so that no thread can add files while they are emptied. The next run deletes
    // renamed directories, too.
    let abandoned = runs.directories.iter().filter_map(|directory| {
        let mut abandoned = directory.clone().into_os_string();
        abandoned.push("-abandoned");
        fs::rename(directory, &abandoned).is_ok().then_some(abandoned)
    });
    let abandoned: Vec<_> = abandoned.collect();
    for (_, leftover) in runs.unfinished.iter().rev() {
        leftover.delete(Some(deadline));
    }
    abandoned.iter().for_each(|directory| delete_until(Path::new(directory), deadline));
    let published = runs.published;
    std::mem::forget(runs);
    published
}

/// Creates a directory for a run of this process, and locks it.
pub(super) fn create_run_directory(transactions: &Path) -> Result<(PathBuf, File), StoreError> {
    let process = std::process::id();
    for number in 0_u32.. {
        let directory = transactions.join(format!("{DIRECTORY_PREFIX}{process}-{number}"));
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(StoreError::io("create", &directory)(error)),
        }
        // Another run may take the directory for that of a dead run before it is locked. Then the next number is tried.
        let Ok(alive) = File::open(&directory) else { continue };
        match alive.try_lock() {
            Ok(()) if directory.exists() => return Ok((directory, alive)),
            Ok(()) | Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => {
                fs::remove_dir(&directory).ok();
                return Err(StoreError::io("lock", &directory)(error));
            }
        }
    }
    unreachable!("there are more numbers than directories")
}

/// Deletes the directories of runs whose process has ended.
pub(super) fn delete_dead_runs(transactions: &Path, reporter: &Reporter) -> Result<(), StoreError> {
    for entry in fs::read_dir(transactions).map_err(StoreError::io("list", transactions))? {
        let path = entry.map_err(StoreError::io("list", transactions))?.path();
        let is_ours =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(DIRECTORY_PREFIX.as_bytes()));
        let is_dead = || File::open(&path).is_ok_and(|directory| directory.try_lock().is_ok());
        if is_ours && is_dead() {
            reporter.info(format_args!("deleting the files of a dead run in '{}'", path.display()));
            let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            deleted.map_err(StoreError::io("delete", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_not_deleted_in_time_are_deleted_by_the_next_run() {
        let transactions = tempfile::tempdir().unwrap();
        let (directory, alive) = create_run_directory(transactions.path()).unwrap();
        fs::create_dir(directory.join("0")).unwrap();
        fs::write(directory.join("0/object"), "bytes").unwrap();
        delete_until(&directory, Deadline::after(Duration::ZERO));
        assert!(directory.join("0/object").exists(), "there was no time");
        drop(alive);
        delete_dead_runs(transactions.path(), &Reporter::silent()).unwrap();
        assert_eq!(fs::read_dir(transactions.path()).unwrap().count(), 0);
        let (directory, _alive) = create_run_directory(transactions.path()).unwrap();
        fs::create_dir(directory.join("0")).unwrap();
        fs::write(directory.join("0/object"), "bytes").unwrap();
        delete_until(&directory, Deadline::after(Duration::from_secs(60)));
        assert!(!directory.exists());
    }

    #[test]
    fn deadline_starts_again_after_a_sync() {
        let deadline = Deadline::after(Duration::from_millis(1));
        let hour = Deadline { end: deadline.end, patience: Duration::from_secs(3600) };
        syncing(|| {
            while deadline.end > Instant::now() {
                thread::yield_now();
            }
            assert!(!deadline.is_over() && !hour.is_over());
        });
        assert!(!hour.is_over());
        assert!(Deadline::after(Duration::ZERO).is_over());
    }

    #[test]
    fn unfinished_files_are_deleted_and_no_others() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        fs::write(path("before"), "").unwrap();
        let make = |unfinished: &UnfinishedFiles| {
            unfinished.make(|recorder| {
                recorder.record_new(&path("before"));
                recorder.record_missing_parents(&path("a/b/file"));
                recorder.record_new(&path("a/b/file"));
                fs::create_dir_all(path("a/b")).unwrap();
                fs::write(path("a/b/file"), "").unwrap();
            });
        };
        let unfinished = UnfinishedFiles::start();
        make(&unfinished);
        fs::write(path("a/other"), "").unwrap();
        drop(unfinished);
        assert!(path("before").exists() && path("a/other").exists() && !path("a/b").exists());
        fs::remove_file(path("a/other")).unwrap();
        fs::remove_dir(path("a")).unwrap();
        let unfinished = UnfinishedFiles::start();
        make(&unfinished);
        unfinished.finish(1, || Ok::<_, io::Error>(())).unwrap();
        assert!(path("a/b/file").exists());
    }
}
