//! The folders of runs, and what this process has under way, for the case that it is told to end.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::StoreError;

/// What the names of the folders of runs begin with, in `data/txn`.
const FOLDER_PREFIX: &str = "strata-";

/// What this process has under way.
#[derive(Debug)]
pub(super) struct Runs {
    /// Folders that go when the process does.
    folders: Vec<PathBuf>,
    /// Files that keep a `cvmfs_server` out as long as they are there.
    locks: Vec<PathBuf>,
    /// Whether the run that was started last has replaced files that clients see.
    published: bool,
}

static RUNS: Mutex<Runs> = Mutex::new(Runs { folders: Vec::new(), locks: Vec::new(), published: false });

/// Returns the runs, locked: while it holds this, a run is not abandoned.
pub(super) fn runs() -> MutexGuard<'static, Runs> {
    RUNS.lock().expect("no thread panics while it holds the list of runs")
}

impl Runs {
    pub(super) fn start(&mut self, folder: &Path) {
        self.folders.push(folder.to_owned());
        self.published = false;
    }

    pub(super) fn publish(&mut self) {
        self.published = true;
    }

    pub(super) fn end(&mut self, folder: &Path) {
        self.folders.retain(|other| other != folder);
    }

    pub(super) fn lock(&mut self, file: &Path) {
        self.locks.push(file.to_owned());
    }

    pub(super) fn unlock(&mut self, file: &Path) {
        self.locks.retain(|other| other != file);
    }
}

/// Deletes what the runs of this process have not finished and the locks that they hold, and tells whether the last one has published its revision.
///
/// This is for a process that is about to end: runs find their folders gone, and whoever is about to publish or to clean up
/// waits forever.
pub fn abandon_runs() -> bool {
    let runs = runs();
    for folder in &runs.folders {
        // Under another name nobody adds to the folder while it is emptied. The next run takes it for a dead one's, too.
        let mut abandoned = folder.clone().into_os_string();
        abandoned.push("-abandoned");
        if fs::rename(folder, &abandoned).is_ok() {
            fs::remove_dir_all(&abandoned).ok();
        }
    }
    for lock in &runs.locks {
        fs::remove_file(lock).ok();
    }
    let published = runs.published;
    std::mem::forget(runs);
    published
}

/// Makes a folder for a run of this process, and holds it locked.
pub(super) fn make_run_folder(transactions: &Path) -> Result<(PathBuf, File), StoreError> {
    let process = std::process::id();
    for number in 0_u32.. {
        let folder = transactions.join(format!("{FOLDER_PREFIX}{process}-{number}"));
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(StoreError::io("create", &folder)(error)),
        }
        // Another run may take the folder for a dead one's before it is locked; then the next number has its turn.
        let Ok(alive) = File::open(&folder) else { continue };
        match alive.try_lock() {
            Ok(()) if folder.exists() => return Ok((folder, alive)),
            Ok(()) | Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => {
                fs::remove_dir(&folder).ok();
                return Err(StoreError::io("lock", &folder)(error));
            }
        }
    }
    unreachable!("there are more numbers than folders")
}

/// Deletes the folders of runs that no longer live.
pub(super) fn delete_leftovers(transactions: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(transactions).map_err(StoreError::io("list", transactions))? {
        let path = entry.map_err(StoreError::io("list", transactions))?.path();
        let is_ours =
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(FOLDER_PREFIX.as_bytes()));
        let is_dead = || File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok());
        if is_ours && is_dead() {
            tracing::info!("deleting what a dead run left in '{}'", path.display());
            let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            deleted.map_err(StoreError::io("delete", &path))?;
        }
    }
    Ok(())
}
