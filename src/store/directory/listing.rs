//! Lists the files of a storage directory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::DirectoryStore;
use crate::file::is_absence;
use crate::store::{EntryForm, ListedEntry, StoreError, StoreListing};

/// Permission bits of an entry.
const PERMISSIONS: u32 = 0o7777;

impl StoreListing for DirectoryStore {
    /// A directory may contain many thousands of objects, so each object costs one `statat` call and no separate allocation.
    fn list(&self, directory: &str, visit: &mut dyn FnMut(ListedEntry<'_>)) -> Result<Option<u32>, StoreError> {
        let path = self.path(directory);
        let metadata = match fs::metadata(&path) {
            Err(error) if is_absence(&error) => return Ok(None),
            found => found.map_err(StoreError::io("list", &path))?,
        };
        visit_entries(&path, visit).map_err(|errno| StoreError::io("list", &path)(errno.into()))?;
        Ok(Some(metadata.permissions().mode() & PERMISSIONS))
    }

    fn has_directory(&self, directory: &str) -> Result<bool, StoreError> {
        let path = self.path(directory);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_dir()),
            Err(error) if is_absence(&error) => Ok(false),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }
}

fn visit_entries(path: &Path, visit: &mut dyn FnMut(ListedEntry<'_>)) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty())?;
    let mut entries = Dir::read_from(&opened)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Renamed or deleted after the directory was listed.
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        let form = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryForm::File,
            FileType::Directory => EntryForm::Directory,
            _ => EntryForm::Other,
        };
        let bytes = stat.st_size.max(0).cast_unsigned();
        visit(ListedEntry { name: name.to_bytes(), form, bytes, mode: stat.st_mode & PERMISSIONS });
    }
    Ok(())
}
