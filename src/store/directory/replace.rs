//! Replaces the files beside the objects.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::run::{DirectoryRun, write_new};
use crate::file::read_regular_up_to;
use crate::store::{NewFile, StoreError, WritableStore as _};

impl DirectoryRun {
    /// Replaces files, see [`StoreRun::replace_files`](crate::store::StoreRun::replace_files).
    pub(super) fn replace(&self, files: &[NewFile<'_>], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError> {
        let replaced = self.write_files(files).and_then(|()| self.move_files(files, revision));
        // Only after an error there is something to delete.
        files.iter().for_each(|file| drop(fs::remove_file(self.directory.join(file.name))));
        replaced
    }

    /// Writes the new files under their temporary names, and makes them durable.
    fn write_files(&self, files: &[NewFile<'_>]) -> Result<(), StoreError> {
        files.iter().try_for_each(|file| {
            let path = self.directory.join(file.name);
            let written = write_new(&path, file.bytes)?;
            self.store.cancellation().syncing(|| written.sync_all()).map_err(StoreError::io("sync", &path))
        })
    }

    fn move_files(&self, files: &[NewFile<'_>], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError> {
        let root = &self.store.root;
        // Opened before the first rename, because opening may fail when the process has too many open files.
        let directory = File::open(root).map_err(StoreError::io("open", root))?;
        let cancellation = self.store.cancellation();
        let mut late = {
            let _temporary = cancellation.temporary_files();
            match revision {
                Some(revision) => cancellation.publishing(revision, || self.rename_files(files))?,
                None => self.rename_files(files)?,
            }
        };
        // The renames themselves become durable only with their directory.
        late.extend(cancellation.syncing(|| directory.sync_all()).map_err(StoreError::io("sync", root)).err());
        Ok(late)
    }

    fn rename_files(&self, files: &[NewFile<'_>]) -> Result<Vec<StoreError>, StoreError> {
        // The lock excludes other publishers between this and the renames, but not programs that ignore the lock.
        files.iter().try_for_each(|file| file.check_replaced(&self.store))?;
        let mut late = Vec::new();
        for (number, NewFile { name, bytes, .. }) in files.iter().enumerate() {
            let path = self.store.path(name);
            if let Err(error) = fs::rename(self.directory.join(name), &path) {
                let is_last = number + 1 == files.len();
                late = despite_failure(&path, bytes, error, is_last)?;
            }
        }
        Ok(late)
    }
}

/// Finds out whether a file was replaced although the system reported an error. A network file system reports an error when the
/// server's reply is lost. Returns the errors to report if the file has its new content, or may have it.
///
/// An error for any file but the last is returned at once, because then the last file is not touched.
fn despite_failure(path: &Path, bytes: &[u8], error: io::Error, is_last: bool) -> Result<Vec<StoreError>, StoreError> {
    let error = StoreError::io("replace", path)(error);
    match read_regular_up_to(bytes.len() as u64, path) {
        Ok(Some(content)) if is_last && content == bytes => Ok(vec![error]),
        Err(source) if is_last && source.kind() != io::ErrorKind::NotFound => {
            Ok(vec![error, StoreError::Unknown { address: path.display().to_string(), source }])
        }
        _ => Err(error),
    }
}
