//! The directories in which runs write new objects.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::observer::Reporter;
use crate::store::StoreError;

/// Prefix of the names of run directories in `data/txn`.
const DIRECTORY_PREFIX: &str = "strata-";

/// Creates a directory for a run of this process, and locks it.
pub(super) fn create_run_directory(transactions: &Path) -> Result<(PathBuf, File), StoreError> {
    // An earlier process, or a process in another container, may have the same ID. Therefore a lock shows whether the
    // process of a run is alive.
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
        // The lock ends with its process, also when the process is killed.
        let is_dead = || File::open(&path).is_ok_and(|directory| directory.try_lock().is_ok());
        if is_ours && is_dead() {
            reporter.info(format_args!("deleting the files that a killed run left in '{}'", path.display()));
            let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            deleted.map_err(StoreError::io("delete", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cancel::{Cancellation, delete_until};

    #[test]
    fn files_that_were_not_deleted_in_time_are_deleted_by_the_next_run() {
        let (cancellation, transactions) = (Cancellation::default(), tempfile::tempdir().unwrap());
        let (directory, alive) = create_run_directory(transactions.path()).unwrap();
        fs::create_dir(directory.join("0")).unwrap();
        fs::write(directory.join("0/object"), "bytes").unwrap();
        delete_until(&directory, &cancellation.deadline(Duration::ZERO));
        assert!(directory.join("0/object").exists(), "the deadline had passed");
        drop(alive);
        delete_dead_runs(transactions.path(), &Reporter::silent()).unwrap();
        assert_eq!(fs::read_dir(transactions.path()).unwrap().count(), 0);
        let (directory, _alive) = create_run_directory(transactions.path()).unwrap();
        fs::create_dir(directory.join("0")).unwrap();
        fs::write(directory.join("0/object"), "bytes").unwrap();
        delete_until(&directory, &cancellation.deadline(Duration::from_secs(60)));
        assert!(!directory.exists());
    }
}
