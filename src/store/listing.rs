//! Lists the files of a store.

use super::StoreError;

/// Lists the files of a store, which not every kind of storage allows.
pub trait StoreListing {
    /// Passes each entry of a directory, in any order, to `visit`. Returns the permission bits of the directory, or `None` if it
    /// does not exist. A storage without permissions returns 0.
    fn list(&self, directory: &str, visit: &mut dyn FnMut(ListedEntry<'_>)) -> Result<Option<u32>, StoreError>;

    /// Returns whether a directory exists. In a storage without directories, each exists.
    fn has_directory(&self, directory: &str) -> Result<bool, StoreError>;
}

/// An entry of a directory of a store.
#[derive(Debug, Clone, Copy)]
pub struct ListedEntry<'e> {
    /// Name in the directory, in any encoding.
    pub name: &'e [u8],
    /// Type of the entry. A symbolic link is not followed.
    pub form: EntryForm,
    /// Size in bytes.
    pub bytes: u64,
    /// Permission bits; all bits if the storage has no permissions.
    pub mode: u32,
}

/// Type of an entry in a directory of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryForm {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}
