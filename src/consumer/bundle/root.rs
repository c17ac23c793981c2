//! The root file system that a container gets, as far as a bundle depends on what is in it.

use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

/// No file of accounts is read that has more bytes.
const LARGEST_FILE: u64 = 16 << 20;

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// Nothing.
    Nothing,
    /// Nothing but directories that hold nothing.
    EmptyDirectories,
    /// Something else.
    Something,
}

/// The root file system of a container. Paths are followed in it as processes of the container see them.
pub(super) trait Root {
    /// Returns where a path leads, if it leads to a directory.
    fn directory(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError>;

    /// Returns where a path leads, if it leads to a regular file.
    fn file(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError>;

    /// Tells whether a path leads to anything.
    fn has(&self, path: &[u8]) -> Result<bool, RepositoryError>;

    /// Returns what a directory holds.
    fn holds(&self, directory: &EntryPath) -> Result<Holds, RepositoryError>;

    /// Returns the content of a regular file; nothing where there is none.
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, RepositoryError>;
}

/// A root file system that is published.
pub(super) struct PublishedRoot<'a> {
    pub(super) repository: &'a Repository,
    /// Where it lies.
    pub(super) path: EntryPath,
}

impl PublishedRoot<'_> {
    /// Returns the path in the repository.
    fn whole(&self, path: &EntryPath) -> EntryPath {
        path.components().fold(self.path.clone(), |path, name| path.join(name))
    }

    fn children(&self, directory: &EntryPath) -> Result<Vec<(EntryPath, bool)>, RepositoryError> {
        let children =
            self.repository.list(&self.whole(directory))?.into_iter().filter(|(_, entry)| !entry.is_hidden());
        Ok(children.map(|(name, entry)| (directory.join(&name), entry.is_directory())).collect())
    }
}

impl Root for PublishedRoot<'_> {
    fn directory(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError> {
        let found = self.repository.follow_inside(&self.path, path)?;
        Ok(found.filter(|(_, entry)| entry.is_directory()).map(|(path, _)| path))
    }

    fn file(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError> {
        let found = self.repository.follow_inside(&self.path, path)?;
        Ok(found.filter(|(_, entry)| entry.is_regular()).map(|(path, _)| path))
    }

    fn has(&self, path: &[u8]) -> Result<bool, RepositoryError> {
        Ok(self.repository.follow_inside(&self.path, path)?.is_some())
    }

    fn holds(&self, directory: &EntryPath) -> Result<Holds, RepositoryError> {
        let children = self.children(directory)?;
        for (child, is_directory) in &children {
            if !is_directory || !self.children(child)?.is_empty() {
                return Ok(Holds::Something);
            }
        }
        Ok(if children.is_empty() { Holds::Nothing } else { Holds::EmptyDirectories })
    }

    fn read(&self, path: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let Some(path) = self.file(path)? else { return Ok(Vec::new()) };
        Ok(self.repository.read(&self.whole(&path), LARGEST_FILE)?.unwrap_or_default())
    }
}
