//! Cancels operations, and deletes their temporary files when a process must end at once.
//!
//! A [`Cancellation`] is a token that all operations on one repository share. There are two ways to use it.
//! [`Cancellation::cancel`] requests that the operations end: each soon deletes its temporary files and returns an error. The
//! process goes on. [`Cancellation::abandon`] is for a process that is about to end: it deletes the temporary files itself,
//! without waiting for the threads that write them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The operation was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operation was cancelled")]
pub struct Cancelled;

/// Ends the operations on a repository, and records what they must delete. Clones are the same token.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_cancelled: AtomicBool,
    temporary: Mutex<TemporaryFiles>,
    syncs: Mutex<Syncs>,
    /// The fields of [`Publications`]; 0 means none.
    last_published: AtomicU64,
    in_progress: AtomicU64,
}

/// Revisions that operations have published. They can be read at any time: also while a rename of the store blocks forever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publications {
    /// The last revision that was published.
    pub last: Option<u64>,
    /// The revision that a thread is publishing: clients may see it already.
    pub in_progress: Option<u64>,
}

/// Number of threads that are inside a sync, and the time when the last thread left one.
#[derive(Debug, Default)]
struct Syncs {
    running: usize,
    last: Option<Instant>,
}

/// Everything that must be deleted when the process is interrupted.
#[derive(Debug, Default)]
pub(crate) struct TemporaryFiles {
    /// Run directories, which are deleted when the process ends.
    directories: Vec<PathBuf>,
    /// Files and directories that are deleted unless their [`UnfinishedFiles`] value finishes, in the order of creation, each
    /// with the number of that value.
    unfinished: Vec<(u64, UnfinishedFile)>,
    /// Number of [`UnfinishedFiles`] values that were created so far.
    owners: u64,
    /// Lock files that exclude a `cvmfs_server` as long as they exist.
    locks: Vec<PathBuf>,
}

/// A file or directory to delete if the work that it belongs to does not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
enum UnfinishedFile {
    /// Deleted with everything in it.
    Whole(PathBuf),
    /// Deleted only if it is empty: another process may have put a file into it.
    IfEmpty(PathBuf),
    /// Deleted unless a revision was published in it.
    Repository(NewRepository),
}

/// A repository that contains only its first revision.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NewRepository {
    directory: PathBuf,
    /// Whether an empty directory existed at its path.
    was_directory: bool,
    /// The file that every publication replaces, and its original content.
    manifest: PathBuf,
    content: Vec<u8>,
}

impl Cancellation {
    /// Requests that all operations with this token end. Each operation finishes its current step and then returns an error that
    /// reports the cancellation. The longest step is a network request without progress, which ends at its time limit. After this
    /// function returns, nothing is published, unless the manifest was already being replaced.
    pub fn cancel(&self) {
        self.0.is_cancelled.store(true, Ordering::SeqCst);
    }

    /// Returns whether [`Self::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::SeqCst)
    }

    /// Fails if [`Self::cancel`] was called.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }

    /// Returns a reader that fails once the token is cancelled.
    pub(crate) fn reader<R: Read>(&self, reader: R) -> CancellableReader<R> {
        CancellableReader { reader, cancellation: self.clone() }
    }

    /// Returns the temporary files, locked. While the lock is held, an interruption waits; therefore it is held for short steps
    /// only.
    pub(crate) fn temporary_files(&self) -> MutexGuard<'_, TemporaryFiles> {
        self.0.temporary.lock().expect("no thread panics while it holds the list of temporary files")
    }

    /// Runs a short step that would leave a temporary file if the process ended in the middle of it. An interruption waits for
    /// the step.
    pub(crate) fn uninterrupted<T>(&self, step: impl FnOnce() -> T) -> T {
        let _temporary = self.temporary_files();
        step()
    }

    /// Runs a sync, which may block in the kernel for a long time. The deadline of an interruption does not count this time,
    /// because a process cannot end inside a sync anyway.
    pub(crate) fn syncing<T>(&self, sync: impl FnOnce() -> T) -> T {
        self.syncs().running += 1;
        let result = sync();
        let mut syncs = self.syncs();
        *syncs = Syncs { running: syncs.running - 1, last: Some(Instant::now()) };
        result
    }

    fn syncs(&self) -> MutexGuard<'_, Syncs> {
        self.0.syncs.lock().expect("no thread panics while it counts syncs")
    }

    /// Runs the step that makes a revision visible to clients.
    pub(crate) fn publishing<T, E>(&self, revision: u64, step: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.0.in_progress.store(revision, Ordering::SeqCst);
        let result = step();
        if result.is_ok() {
            // In this order, so that a reader finds the revision in one of the two at any moment.
            self.0.last_published.store(revision, Ordering::SeqCst);
        }
        self.0.in_progress.store(0, Ordering::SeqCst);
        result
    }

    /// Returns the revisions that operations have published so far.
    pub fn publications(&self) -> Publications {
        let revision = |number: &AtomicU64| Some(number.load(Ordering::SeqCst)).filter(|&number| number != 0);
        Publications { last: revision(&self.0.last_published), in_progress: revision(&self.0.in_progress) }
    }

    /// Starts a set of files that are deleted unless the set is finished or kept.
    pub fn unfinished_files(&self) -> UnfinishedFiles {
        let mut temporary = self.temporary_files();
        temporary.owners += 1;
        UnfinishedFiles { cancellation: self.clone(), number: temporary.owners }
    }

    /// Returns a deadline that passes after `patience`.
    pub fn deadline(&self, patience: Duration) -> Deadline {
        Deadline { end: Instant::now() + patience, patience, cancellation: self.clone() }
    }

    /// Deletes the unfinished files and locks of all operations. The next run deletes the files that remain after `patience`.
    ///
    /// Call this only when the process is about to end: the directories of runs disappear, and every thread that tries to publish,
    /// to create files or to clean up blocks forever.
    pub fn abandon(&self, patience: Duration) {
        self.cancel();
        let temporary = self.temporary_files();
        // The deadline starts here, because the previous holder of the lock may have been inside a sync.
        let deadline = self.deadline(patience);
        for lock in &temporary.locks {
            fs::remove_file(lock).ok();
        }
        // The directories are renamed first, so that no thread can add files while they are emptied. The next run deletes
        // renamed directories, too.
        let abandoned = temporary.directories.iter().filter_map(|directory| {
            let mut abandoned = directory.clone().into_os_string();
            abandoned.push("-abandoned");
            fs::rename(directory, &abandoned).is_ok().then_some(abandoned)
        });
        let abandoned: Vec<_> = abandoned.collect();
        // The last one first, so that directories are empty when they are removed.
        for (_, leftover) in temporary.unfinished.iter().rev() {
            leftover.delete(Some(&deadline));
        }
        abandoned.iter().for_each(|directory| delete_until(Path::new(directory), &deadline));
        // The lock is never released: a thread that waits for it must not publish or create files any more.
        std::mem::forget(temporary);
    }
}

/// A reader that fails once its operation is cancelled.
pub(crate) struct CancellableReader<R> {
    reader: R,
    cancellation: Cancellation,
}

impl<R: Read> Read for CancellableReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancellation.check().map_err(io::Error::other)?;
        self.reader.read(buffer)
    }
}

/// A deadline that starts again after every sync of this process, because every other disk operation hangs while the kernel
/// syncs.
#[derive(Debug, Clone)]
pub struct Deadline {
    end: Instant,
    patience: Duration,
    cancellation: Cancellation,
}

impl Deadline {
    /// Returns whether the deadline has passed.
    pub fn is_over(&self) -> bool {
        let now = Instant::now();
        let last_sync = match *self.cancellation.syncs() {
            Syncs { running: 0, last } => last,
            // A sync is running, so the deadline has not begun to count.
            _ => Some(now),
        };
        now >= last_sync.map_or(self.end, |sync| self.end.max(sync + self.patience))
    }
}

impl TemporaryFiles {
    pub(crate) fn start(&mut self, directory: &Path) {
        self.directories.push(directory.to_owned());
    }

    pub(crate) fn end(&mut self, directory: &Path) {
        self.directories.retain(|other| other != directory);
    }

    pub(crate) fn lock(&mut self, file: &Path) {
        self.locks.push(file.to_owned());
    }

    pub(crate) fn unlock(&mut self, file: &Path) {
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
    cancellation: Cancellation,
    number: u64,
}

/// Records the files and directories that a step creates.
pub struct FileRecorder<'r> {
    temporary: &'r mut TemporaryFiles,
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
        self.temporary.unfinished.push((self.owner, leftover));
    }
}

/// Returns whether no file exists at a path. The empty path is the current directory.
fn is_missing(path: &Path) -> bool {
    let metadata = path.symlink_metadata();
    !path.as_os_str().is_empty() && metadata.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

impl UnfinishedFiles {
    /// Runs a step that creates files. An interruption waits for the step.
    pub fn make<T>(&self, step: impl FnOnce(&mut FileRecorder<'_>) -> T) -> T {
        let mut temporary = self.cancellation.temporary_files();
        step(&mut FileRecorder { temporary: &mut temporary, owner: self.number })
    }

    /// Runs the last step. If it succeeds, all created files stay, and the repository has the given revision.
    pub fn finish<E>(self, revision: u64, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut temporary = self.cancellation.temporary_files();
        let finished = self.cancellation.publishing(revision, step);
        if finished.is_ok() {
            temporary.remove_unfinished(self.number);
        }
        drop(temporary);
        finished
    }

    /// Runs the last step, which creates a repository in `directory`. When this value is dropped, or the process interrupted, the
    /// repository and its new parent directories are deleted, unless another revision was published in it.
    pub(crate) fn finish_provisionally<E>(
        &self,
        directory: &Path,
        manifest: &Path,
        step: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut temporary = self.cancellation.temporary_files();
        let was_directory = directory.is_dir();
        step()?;
        let created = temporary.remove_unfinished(self.number);
        let mut left: Vec<_> = created.into_iter().filter(|file| matches!(file, UnfinishedFile::IfEmpty(_))).collect();
        // A repository whose manifest cannot be read is kept.
        if let Ok(content) = fs::read(manifest) {
            let (directory, manifest) = (directory.to_owned(), manifest.to_owned());
            left.push(UnfinishedFile::Repository(NewRepository { directory, was_directory, manifest, content }));
        }
        temporary.unfinished.extend(left.into_iter().map(|leftover| (self.number, leftover)));
        Ok(())
    }

    /// Keeps all created files.
    pub fn keep(self) {
        self.cancellation.temporary_files().remove_unfinished(self.number);
    }
}

impl Drop for UnfinishedFiles {
    fn drop(&mut self) {
        let leftovers = self.cancellation.temporary_files().remove_unfinished(self.number);
        // The last one first, so that directories are empty when they are removed.
        leftovers.iter().rev().for_each(|leftover| leftover.delete(None));
    }
}

impl UnfinishedFile {
    /// Deletes the file or directory, as far as possible until the deadline.
    fn delete(&self, deadline: Option<&Deadline>) {
        // Best effort: the error that led here, or the interruption, is more useful than an error from cleaning up.
        match self {
            Self::Whole(path) if path.symlink_metadata().is_ok_and(|found| found.is_dir()) => {
                delete_directory(path, deadline);
            }
            Self::Whole(path) => drop(fs::remove_file(path)),
            Self::IfEmpty(path) => drop(fs::remove_dir(path)),
            Self::Repository(new) if fs::read(&new.manifest).is_ok_and(|content| content == new.content) => {
                delete_directory(&new.directory, deadline);
                if new.was_directory {
                    fs::create_dir(&new.directory).ok();
                }
            }
            // Another revision was published, or the manifest cannot be read: the repository may be in use.
            Self::Repository(_) => {}
        }
    }
}

fn delete_directory(path: &Path, deadline: Option<&Deadline>) {
    match deadline {
        Some(deadline) => delete_until(path, deadline),
        None => drop(fs::remove_dir_all(path)),
    }
}

/// Deletes a directory with its content, as far as possible until the deadline.
pub(crate) fn delete_until(directory: &Path, deadline: &Deadline) {
    while !deadline.is_over() && directory.exists() {
        delete_content(directory, deadline);
        if fs::remove_dir(directory).is_err() {
            // A thread that already had the directory open has created a file in it in the meantime.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn delete_content(directory: &Path, deadline: &Deadline) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_starts_again_after_a_sync() {
        let cancellation = Cancellation::default();
        let deadline = cancellation.deadline(Duration::from_millis(1));
        let hour = Deadline { patience: Duration::from_secs(3600), ..deadline.clone() };
        cancellation.syncing(|| {
            while deadline.end > Instant::now() {
                thread::yield_now();
            }
            assert!(!deadline.is_over() && !hour.is_over());
        });
        assert!(!hour.is_over());
        assert!(cancellation.deadline(Duration::ZERO).is_over());
    }

    #[test]
    fn unfinished_files_are_deleted_and_no_others() {
        let cancellation = Cancellation::default();
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
        let unfinished = cancellation.unfinished_files();
        make(&unfinished);
        fs::write(path("a/other"), "").unwrap();
        drop(unfinished);
        assert!(path("before").exists() && path("a/other").exists() && !path("a/b").exists());
        fs::remove_file(path("a/other")).unwrap();
        fs::remove_dir(path("a")).unwrap();
        let unfinished = cancellation.unfinished_files();
        make(&unfinished);
        unfinished.finish(1, || Ok::<_, io::Error>(())).unwrap();
        assert!(path("a/b/file").exists());
    }
}
