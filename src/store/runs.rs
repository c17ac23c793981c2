//! The runs of this process, for the case that it is told to end.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

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
