//! Checks which files and directories exist in the storage directory.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Check;
use super::finding::{Location, escape};
use super::name::ObjectName;
use crate::file::is_absence;

/// The file of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StoredObject {
    pub(super) name: ObjectName,
    /// Size of the file in bytes.
    pub(super) bytes: u64,
}

impl Check<'_> {
    /// Checks that all directories below `data` exist and that `data` contains nothing else. Returns the number of files that
    /// remain from killed runs.
    pub(super) fn check_layout(&self) -> u64 {
        let directories: Vec<String> = (0..=255).map(|byte| format!("{byte:02x}")).chain(["txn".to_owned()]).collect();
        for (name, metadata) in self.list("data") {
            // `cvmfs_swissknife scrub` accepts nothing else in `data`.
            let is_directory = metadata.is_dir() && directories.iter().any(|directory| name == directory.as_str());
            if !is_directory {
                let location = Location::file(format!("data/{}", escape(name.as_bytes())));
                self.findings.note(&location, "only the directories 00 to ff and txn", "another entry");
            }
        }
        for directory in directories {
            // The uploader of CVMFS never creates these directories, and `cvmfs_server import` requires all of them.
            if let Err(error) = fs::metadata(self.store.root().join("data").join(&directory)) {
                self.note_unreadable(&Location::file(format!("data/{directory}")), "a directory", &error);
            }
        }
        self.count_leftovers()
    }

    fn count_leftovers(&self) -> u64 {
        let names = |path: &str| {
            let listed = fs::read_dir(self.store.root().join(path)).and_then(|entries| {
                let names = entries.map(|entry| Ok(entry?.file_name()));
                names.collect::<io::Result<Vec<OsString>>>()
            });
            listed.unwrap_or_else(|error| {
                // A missing directory is reported where the directory is required.
                if !is_absence(&error) {
                    self.note_unreadable(&Location::file(path), "a directory that can be listed", &error);
                }
                Vec::new()
            })
        };
        // The receiver of a repository gateway uses a separate directory in `data/txn`.
        let unfinished =
            names("data/txn").iter().filter(|name| *name != "receiver").count() + names("data/txn/receiver").len();
        let temporary = names("").iter().filter(|name| name.as_bytes().starts_with(b".strata-")).count();
        (unfinished + temporary) as u64
    }

    /// Returns the objects in one of the 256 directories, sorted, and reports every other entry as a finding. Returns
    /// `None`, and adds a finding, if the directory cannot be listed.
    pub(super) fn list_objects(&self, directory: u8) -> Option<Vec<StoredObject>> {
        let path = format!("data/{directory:02x}");
        let mut objects = Vec::new();
        let listed = fs::metadata(self.store.root().join(&path)).and_then(|own| {
            Ok(self.visit_objects(directory, &path, own.permissions().mode() & 0o444, &mut objects)?)
        });
        match listed {
            // A missing directory is reported by `check_layout`. Its missing objects are reported with the rows that refer
            // to them.
            Err(error) if !is_absence(&error) => {
                self.note_unreadable(&Location::file(path), "a directory that can be listed", &error);
                return None;
            }
            _ => objects.sort_unstable(),
        }
        Some(objects)
    }

    /// Appends the objects of a directory. A directory may contain many thousands of objects, so each object costs one
    /// `statat` call and no separate allocation.
    fn visit_objects(
        &self,
        directory: u8,
        path: &str,
        readers: u32,
        objects: &mut Vec<StoredObject>,
    ) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(self.store.root().join(path), flags, Mode::empty())?;
        let mut entries = Dir::read_from(&opened)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let file = entry.file_name();
            if matches!(file.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&opened, file, AtFlags::SYMLINK_NOFOLLOW) {
                // Renamed or deleted after the directory was listed.
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let location = || Location::file(format!("{path}/{}", escape(file.to_bytes())));
            let name = file.to_str().ok().and_then(|file| ObjectName::of_file(directory, file));
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            let Some(name) = name.filter(|_| is_file) else {
                self.findings.note(&location(), "a file whose name is a hash", "another entry");
                continue;
            };
            let mode = stat.st_mode & 0o7777;
            if mode & readers != readers {
                let expected = format!("a file with the read permissions of its directory ({readers:03o})");
                self.findings.note(&location(), expected, format_args!("mode {mode:03o}"));
            }
            objects.push(StoredObject { name, bytes: stat.st_size.max(0).cast_unsigned() });
        }
        Ok(())
    }

    fn list(&self, path: &str) -> Vec<(OsString, Metadata)> {
        let read = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            match entry.metadata() {
                // Renamed or deleted after the directory was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                metadata => Ok(Some((entry.file_name(), metadata?))),
            }
        };
        let listed = fs::read_dir(self.store.root().join(path))
            .and_then(|entries| entries.filter_map(|entry| read(entry).transpose()).collect());
        listed.unwrap_or_else(|error: io::Error| {
            self.note_unreadable(&Location::file(path), "a directory that can be listed", &error);
            Vec::new()
        })
    }
}
