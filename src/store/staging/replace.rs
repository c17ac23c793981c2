//! Replaces the files beside the objects.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::{Staging, write_new};
use crate::file::read_regular_up_to;
use crate::store::StoreError;

impl Staging {
    /// Replaces files beside the objects, such as `.cvmfspublished`, each atomically and in the given order.
    ///
    /// All new files are on disk before the first one is renamed. Therefore each file has either its old or its new content, also
    /// after an error or a crash. When the last file is replaced, clients see `revision`; it is `None` if no client can see the
    /// store yet. Errors after this replacement are returned as values, because the revision is published.
    pub fn replace_files(&self, files: &[(&str, &[u8])], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError> {
        for (name, bytes) in files {
            let path = self.directory.join(name);
            let written = write_new(&path, bytes)?;
            self.store.cancellation().syncing(|| written.sync_all()).map_err(StoreError::io("sync", &path))?;
        }
        let root = self.store.root();
        // Opened before the first rename, because opening may fail when the process has too many open files.
        let directory = File::open(root).map_err(StoreError::io("open", root))?;
        let rename_all = || {
            let mut late = Vec::new();
            for (number, (name, bytes)) in files.iter().enumerate() {
                let path = root.join(name);
                if let Err(error) = fs::rename(self.directory.join(name), &path) {
                    let is_last = number + 1 == files.len();
                    late = despite_failure(&path, bytes, error, is_last)?;
                }
            }
            Ok::<_, StoreError>(late)
        };
        let cancellation = self.store.cancellation();
        let mut late = {
            let _temporary = cancellation.temporary_files();
            match revision {
                Some(revision) => cancellation.publishing(revision, rename_all)?,
                None => rename_all()?,
            }
        };
        // The renames themselves become durable only with their directory.
        late.extend(cancellation.syncing(|| directory.sync_all()).map_err(StoreError::io("sync", root)).err());
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
            Ok(vec![error, StoreError::Unknown { path: path.to_owned(), source }])
        }
        _ => Err(error),
    }
}
