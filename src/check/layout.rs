//! Checks which files and directories exist in the storage.

use super::Check;
use super::finding::{Location, escape};
use super::name::ObjectName;
use super::reader::NOTHING;
use crate::store::{EntryForm, ListedEntry, StoreListing};

/// The file of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StoredObject {
    pub(super) name: ObjectName,
    /// Size of the file in bytes.
    pub(super) bytes: u64,
}

/// Finding text: the expected state of a directory.
const LISTABLE: &str = "a directory that can be listed";

/// Read permission of owner, group and others.
const READERS: u32 = 0o444;

impl Check<'_> {
    /// Checks that all directories below `data` exist and that `data` contains nothing else. Returns the number of files that
    /// remain from killed runs.
    pub(super) fn check_layout(&self, listing: &dyn StoreListing) -> u64 {
        let directories: Vec<String> = (0..=255).map(|byte| format!("{byte:02x}")).chain(["txn".to_owned()]).collect();
        let listed = listing.list("data", &mut |entry| {
            // `cvmfs_swissknife scrub` accepts nothing else in `data`.
            let is_expected = directories.iter().any(|directory| entry.name == directory.as_bytes());
            if entry.form != EntryForm::Directory || !is_expected {
                let location = Location::file(format!("data/{}", escape(entry.name)));
                self.findings.note(&location, "only the directories 00 to ff and txn", "another entry");
            }
        });
        match listed {
            Ok(Some(_)) => {}
            Ok(None) => self.findings.note(&Location::file("data"), LISTABLE, NOTHING),
            Err(error) => self.note_unreadable(&Location::file("data"), LISTABLE, error),
        }
        for directory in directories {
            // The uploader of CVMFS never creates these directories, and `cvmfs_server import` requires all of them.
            let location = Location::file(format!("data/{directory}"));
            match listing.has_directory(&location.file) {
                Ok(true) => {}
                Ok(false) => self.findings.note(&location, "a directory", NOTHING),
                Err(error) => self.note_unreadable(&location, "a directory", error),
            }
        }
        self.count_leftovers(listing)
    }

    fn count_leftovers(&self, listing: &dyn StoreListing) -> u64 {
        let count = |directory: &str, is_leftover: fn(&[u8]) -> bool| {
            let mut count = 0;
            let listed = listing.list(directory, &mut |entry| count += u64::from(is_leftover(entry.name)));
            // A missing directory is reported where the directory is required.
            if let Err(error) = listed {
                self.note_unreadable(&Location::file(directory), LISTABLE, error);
            }
            count
        };
        // The receiver of a repository gateway uses a separate directory in `data/txn`.
        count("data/txn", |name| name != b"receiver")
            + count("data/txn/receiver", |_| true)
            + count("", |name| name.starts_with(b".strata-"))
    }

    /// Returns the objects in one of the 256 directories, sorted, and reports every other entry as a finding. Returns
    /// `None`, and adds a finding, if the directory cannot be listed.
    pub(super) fn list_objects(&self, listing: &dyn StoreListing, directory: u8) -> Option<Vec<StoredObject>> {
        let path = format!("data/{directory:02x}");
        let (mut objects, mut restricted) = (Vec::new(), Vec::new());
        let listed = listing.list(&path, &mut |entry| match object_of(directory, &entry) {
            Some(object) => {
                objects.push(object);
                if entry.mode & READERS != READERS {
                    restricted.push((object.name, entry.mode));
                }
            }
            None => {
                let location = Location::file(format!("{path}/{}", escape(entry.name)));
                self.findings.note(&location, "a file whose name is a hash", "another entry");
            }
        });
        // A missing directory is reported by `check_layout`. Its missing objects are reported with the rows that refer to
        // them.
        let mode = match listed {
            Ok(mode) => mode.unwrap_or_default(),
            Err(error) => {
                self.note_unreadable(&Location::file(path), LISTABLE, error);
                return None;
            }
        };
        self.report_restricted(&restricted, mode & READERS);
        objects.sort_unstable();
        Some(objects)
    }

    /// Reports objects that lack a read permission that their directory has.
    fn report_restricted(&self, objects: &[(ObjectName, u32)], readers: u32) {
        for (name, mode) in objects.iter().filter(|(_, mode)| mode & readers != readers) {
            let expected = format!("a file with the read permissions of its directory ({readers:03o})");
            self.findings.note(&Location::file(name.to_string()), expected, format_args!("mode {mode:03o}"));
        }
    }
}

/// Returns the object whose file an entry of the directory `data/<directory>` is.
fn object_of(directory: u8, entry: &ListedEntry<'_>) -> Option<StoredObject> {
    let name = std::str::from_utf8(entry.name).ok().filter(|_| entry.form == EntryForm::File)?;
    Some(StoredObject { name: ObjectName::of_file(directory, name)?, bytes: entry.bytes })
}
