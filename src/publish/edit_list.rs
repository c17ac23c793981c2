//! The edits that turn the head into the next revision.

use std::collections::BTreeMap;

use super::Edit;
use crate::catalog::StoredTree;
use crate::inventory::InventoryError;
use crate::object::{Compression, Content};
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};
use crate::store::{Staging, StoreError};

/// Errors from determining the edits of the head.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The head cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The images in the head cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A small file cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Edits of the head, by path. There are no edits for entries that the head already has.
pub struct EditList<'a> {
    head: &'a Repository,
    staging: &'a Staging,
    compression: Compression,
    /// Sorted by path, so that a directory comes before its entries.
    edits: BTreeMap<EntryPath, Edit>,
}

impl<'a> EditList<'a> {
    /// Creates an empty list. New files are stored in `staging`.
    pub fn new(head: &'a Repository, staging: &'a Staging, compression: Compression) -> Self {
        Self { head, staging, compression, edits: BTreeMap::new() }
    }

    /// Returns the revision to which the edits are applied.
    pub fn head(&self) -> &'a Repository {
        self.head
    }

    /// Returns the edits.
    pub fn edits(&self) -> &BTreeMap<EntryPath, Edit> {
        &self.edits
    }

    /// Returns whether there are no edits.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// Adds an edit, or replaces the one at its path.
    pub fn insert(&mut self, path: EntryPath, edit: Edit) {
        self.edits.insert(path, edit);
    }

    /// Puts a file at `path` unless the head has the same file there. If `bytes` is `None`, removes any existing entry. Returns whether
    /// this changes the head.
    ///
    /// Files with the same object are equal, so that most are not read.
    pub fn put_file(&mut self, path: EntryPath, bytes: Option<&[u8]>) -> Result<bool, EditError> {
        let before = self.head.get(&path)?;
        let Some(bytes) = bytes else {
            if before.is_some() {
                self.edits.insert(path, Edit::Remove);
            }
            return Ok(before.is_some());
        };
        let content = self.staging.put_file(self.compression, bytes)?;
        if let Some(before) = before {
            // Content that cannot be read, such as that of another compression, is replaced.
            let is_comparable = before.size == bytes.len() as i64 && before.file_content().is_ok();
            // Another object may have the same content, if the compression setting has changed.
            if before.file_content().as_ref() == Ok(&content)
                || is_comparable && self.head.read_if_intact(&path, bytes.len() as u64)?.as_deref() == Some(bytes)
            {
                return Ok(false);
            }
        }
        self.edits.insert(path, file(bytes, content));
        Ok(true)
    }

    /// Puts a file at `path` and replaces any existing entry.
    pub fn add_file(&mut self, path: EntryPath, bytes: &[u8]) -> Result<(), EditError> {
        let content = self.staging.put_file(self.compression, bytes)?;
        self.edits.insert(path, file(bytes, content));
        Ok(())
    }

    /// Puts a large file at `path` that changes little from one revision to the next.
    pub fn add_changing_file(&mut self, path: EntryPath, bytes: &[u8]) -> Result<(), EditError> {
        let content = self.staging.put_changing_file(bytes)?;
        self.edits.insert(path, file(bytes, content));
        Ok(())
    }

    /// Puts a symbolic link at `path`, unless the head has the same link there.
    pub fn add_link(&mut self, path: EntryPath, target: &[u8]) -> Result<(), EditError> {
        let is_there = self.head.get(&path)?.is_some_and(|entry| entry.is_symlink() && entry.target() == target);
        if !is_there {
            self.edits.insert(path, Edit::Symlink(target.to_vec()));
        }
        Ok(())
    }

    /// Puts a symbolic link at `path`, unless the head has the same link there. Clients expand the variables in its target.
    pub fn add_variant_link(&mut self, path: EntryPath, target: Vec<u8>) -> Result<(), EditError> {
        let is_there = self.head.get(&path)?.is_some_and(|entry| entry.is_symlink() && entry.symlink == target);
        if !is_there {
            self.edits.insert(path, Edit::VariantLink(target));
        }
        Ok(())
    }

    /// Puts a tree at `path`. The catalogs of the tree must already be in the store.
    pub fn add_tree(&mut self, path: EntryPath, stored: &StoredTree) {
        self.edits.insert(path, Edit::Tree(Box::new(stored.clone())));
    }

    /// Replaces a tree with missing objects. If the new tree has the same root catalog, the missing objects were stored again, and
    /// no edit is needed.
    pub fn replace_tree(&mut self, path: EntryPath, stored: &StoredTree) -> Result<(), EditError> {
        if self.head.nested_catalog(&path)? != Some(stored.reference) {
            self.add_tree(path, stored);
        }
        Ok(())
    }

    /// Returns the edits in the order in which they must be applied. The first ones make each of `catalogs` a nested catalog.
    pub fn finish(self, catalogs: impl IntoIterator<Item = EntryPath>) -> Vec<(EntryPath, Edit)> {
        catalogs.into_iter().map(|path| (path, Edit::Catalog)).chain(self.edits).collect()
    }
}

fn file(bytes: &[u8], content: Content) -> Edit {
    Edit::File { size: bytes.len() as u64, content }
}
