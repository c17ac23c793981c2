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

/// References by the folder that their objects lie in.
pub(super) struct References(Vec<Mutex<Vec<Reference>>>);

impl Default for References {
    fn default() -> Self {
        Self((0..256).map(|_| Mutex::default()).collect())
    }
}

impl References {
    pub(super) fn add(&self, reference: Reference) {
        self.folder(reference.name.folder()).push(reference);
    }

    /// Adds many, with few locks.
    pub(super) fn extend(&self, mut references: Vec<Reference>) {
        references.sort_unstable_by_key(|reference| reference.name.folder());
        for of_folder in references.chunk_by(|a, b| a.name.folder() == b.name.folder()) {
            self.folder(of_folder[0].name.folder()).extend_from_slice(of_folder);
        }
    }

    /// Takes those of one folder, in order.
    pub(super) fn take(&self, folder: u8) -> Vec<Reference> {
        let mut references = std::mem::take(&mut *self.folder(folder));
        references.sort_unstable();
        references
    }

    fn folder(&self, folder: u8) -> std::sync::MutexGuard<'_, Vec<Reference>> {
        self.0[usize::from(folder)].lock().expect("no thread panics while it adds references")
    }
}
