//! References from catalog rows to objects, in few bytes each.

use std::sync::Mutex;

use super::name::ObjectName;
use crate::object::UnsupportedCompression;

/// How the content of an object is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StoredForm {
    /// Not relevant, because the object was read and verified before.
    Known,
    /// Uncompressed.
    Raw,
    /// As a zlib stream.
    Packed,
    /// In a form that strata cannot read, so that only the hash can be checked.
    Unsupported(UnsupportedCompression),
}

/// A reference to an object. Many millions of these are in memory at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    pub(super) name: ObjectName,
    pub(super) form: StoredForm,
    /// Size of the content in bytes, or [`Reference::ANY_SIZE`] if no row states it.
    pub(super) size: u64,
    /// The number of the catalog that contains the reference.
    pub(super) catalog: u32,
    /// The row in that catalog.
    pub(super) row: i64,
}

const _: () = assert!(size_of::<Reference>() <= 48, "a growing list needs up to twice this size per entry");

impl Reference {
    pub(super) const ANY_SIZE: u64 = u64::MAX;

    /// Creates a reference to an object that was read before.
    pub(super) fn known(name: ObjectName) -> Self {
        Self { name, form: StoredForm::Known, size: Self::ANY_SIZE, catalog: 0, row: 0 }
    }
}

/// References, grouped by the directory of the object.
pub(super) struct References(Vec<Mutex<Vec<Reference>>>);

impl Default for References {
    fn default() -> Self {
        Self((0..256).map(|_| Mutex::default()).collect())
    }
}

impl References {
    pub(super) fn add(&self, reference: Reference) {
        self.directory(reference.name.directory()).push(reference);
    }

    /// Adds many references with few lock operations.
    pub(super) fn extend(&self, mut references: Vec<Reference>) {
        references.sort_unstable_by_key(|reference| reference.name.directory());
        for of_directory in references.chunk_by(|a, b| a.name.directory() == b.name.directory()) {
            self.directory(of_directory[0].name.directory()).extend_from_slice(of_directory);
        }
    }

    /// Removes and returns the references to objects in one directory, sorted.
    pub(super) fn take(&self, directory: u8) -> Vec<Reference> {
        let mut references = std::mem::take(&mut *self.directory(directory));
        references.sort_unstable();
        references
    }

    fn directory(&self, directory: u8) -> std::sync::MutexGuard<'_, Vec<Reference>> {
        self.0[usize::from(directory)].lock().expect("no thread panics while it adds references")
    }
}
