//! What may lie in the storage directory, and where.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Check;
use super::finding::{Place, escape};
use super::name::ObjectName;
use super::reader::read_failure;
use crate::file::is_absence;

/// An object's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StoredObject {
    pub(super) name: ObjectName,
    /// Bytes of the file.
    pub(super) bytes: u64,
}

impl Check<'_> {
    /// Checks that the directories are there and nothing strays between them; returns how many leftovers there are.
    pub(super) fn check_layout(&self) -> u64 {
        let directories: Vec<String> = (0..=255).map(|byte| format!("{byte:02x}")).chain(["txn".to_owned()]).collect();
        for (name, metadata) in self.list("data") {
            let is_directory = metadata.is_dir() && directories.iter().any(|directory| name == directory.as_str());
            if !is_directory {
                let place = Place::file(format!("data/{}", escape(name.as_bytes())));
                self.findings.note(&place, "only the directories 00 to ff and txn", "another entry");
            }
        }
        for directory in directories {
            if let Err(error) = fs::metadata(self.store.root().join("data").join(&directory)) {
                self.findings.note(&Place::file(format!("data/{directory}")), "a directory", read_failure(&error));
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
                // That a directory is missing is found elsewhere, where it has to be there.
                if !is_absence(&error) {
                    self.findings.note(&Place::file(path), "a directory that can be listed", read_failure(&error));
                }
                Vec::new()
            })
        };
        // The receiver of a gateway has a directory of its own there.
        let unfinished =
            names("data/txn").iter().filter(|name| *name != "receiver").count() + names("data/txn/receiver").len();
        let temporary = names("").iter().filter(|name| name.as_bytes().starts_with(b".strata-")).count();
        (unfinished + temporary) as u64
    }

    /// Returns the objects in one of the 256 directories, in order, and notes what else lies there. `None` where it cannot be listed,
    /// which is a finding.
    pub(super) fn list_objects(&self, directory: u8) -> Option<Vec<StoredObject>> {
        let path = format!("data/{directory:02x}");
        let mut objects = Vec::new();
        let listed = fs::metadata(self.store.root().join(&path)).and_then(|own| {
            Ok(self.visit_objects(directory, &path, own.permissions().mode() & 0o444, &mut objects)?)
        });
        match listed {
            // That it is missing is found with the directories, and all that should be there with what refers to it.
            Err(error) if !is_absence(&error) => {
                self.findings.note(&Place::file(path), "a directory that can be listed", read_failure(&error));
                return None;
            }
            _ => objects.sort_unstable(),
        }
        Some(objects)
    }

    /// Adds the objects in an open directory: there may be thousands, so each costs one question and no memory of its own.
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
                // Moved or collected meanwhile.
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let place = || Place::file(format!("{path}/{}", escape(file.to_bytes())));
            let name = file.to_str().ok().and_then(|file| ObjectName::of_file(directory, file));
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            let Some(name) = name.filter(|_| is_file) else {
                self.findings.note(&place(), "a file that is named by a hash", "another entry");
                continue;
            };
            let mode = stat.st_mode & 0o7777;
            if mode & readers != readers {
                let expected = format!("a file that all may read who may list its directory ({readers:03o})");
                self.findings.note(&place(), expected, format_args!("mode {mode:03o}"));
            }
            objects.push(StoredObject { name, bytes: stat.st_size.max(0).cast_unsigned() });
        }
        Ok(())
    }

    fn list(&self, path: &str) -> Vec<(OsString, Metadata)> {
        let read = |entry: io::Result<fs::DirEntry>| {
            let entry = entry?;
            match entry.metadata() {
                // Moved or collected meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                metadata => Ok(Some((entry.file_name(), metadata?))),
            }
        };
        let listed = fs::read_dir(self.store.root().join(path))
            .and_then(|entries| entries.filter_map(|entry| read(entry).transpose()).collect());
        listed.unwrap_or_else(|error: io::Error| {
            self.findings.note(&Place::file(path), "a directory that can be listed", read_failure(&error));
            Vec::new()
        })
    }
}
