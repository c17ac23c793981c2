//! What refers to which object, in few bytes for each.

use std::sync::Mutex;

use super::name::ObjectName;

/// How an object holds its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// Somehow: it was read already.
    Known,
    /// As it is.
    Raw,
    /// As a zlib stream.
    Packed,
}

/// A reference to an object. Many millions of them are in memory together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    pub(super) name: ObjectName,
    pub(super) form: Form,
    /// Bytes of content; [`Reference::ANY_SIZE`] where nothing says it.
    pub(super) size: u64,
    /// The catalog that refers, by its number.
    pub(super) catalog: u32,
    /// The row in it.
    pub(super) row: i64,
}

const _: () = assert!(size_of::<Reference>() <= 48, "a list that grows takes up to twice of it for each entry");

impl Reference {
    pub(super) const ANY_SIZE: u64 = u64::MAX;

    /// Refers to an object that was read already.
    pub(super) fn known(name: ObjectName) -> Self {
        Self { name, form: Form::Known, size: Self::ANY_SIZE, catalog: 0, row: 0 }
    }
}

/// References by the directory that their objects lie in.
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

    /// Adds many, with few locks.
    pub(super) fn extend(&self, mut references: Vec<Reference>) {
        references.sort_unstable_by_key(|reference| reference.name.directory());
        for of_directory in references.chunk_by(|a, b| a.name.directory() == b.name.directory()) {
            self.directory(of_directory[0].name.directory()).extend_from_slice(of_directory);
        }
    }

    /// Takes those of one directory, in order.
    pub(super) fn take(&self, directory: u8) -> Vec<Reference> {
        let mut references = std::mem::take(&mut *self.directory(directory));
        references.sort_unstable();
        references
    }

    fn directory(&self, directory: u8) -> std::sync::MutexGuard<'_, Vec<Reference>> {
        self.0[usize::from(directory)].lock().expect("no thread panics while it adds references")
    }
}
