//! Queries about the root file system of a container. The content of a bundle depends on the answers.

use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

/// Maximum size of `/etc/passwd` and `/etc/group` in bytes.
const MAX_ACCOUNT_FILE_SIZE: u64 = 16 << 20;

/// Content of a directory, as far as mounts depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectoryContent {
    /// The directory is empty.
    Nothing,
    /// It contains only empty directories.
    EmptyDirectories,
    /// It contains anything else.
    Something,
}

/// The root file system of a container. Paths are resolved as for a process in the container.
pub(super) trait Root {
    /// Resolves a path; `None` if it is not a directory.
    fn directory(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError>;

    /// Resolves a path; `None` if it is not a regular file.
    fn file(&self, path: &[u8]) -> Result<Option<EntryPath>, RepositoryError>;

    /// Returns whether a path exists, following links.
    fn has(&self, path: &[u8]) -> Result<bool, RepositoryError>;

    /// Returns the kind of content of a directory.
    fn holds(&self, directory: &EntryPath) -> Result<DirectoryContent, RepositoryError>;

    /// Returns the content of a regular file; empty if the path is not a regular file.
    fn read(&self, path: &[u8]) -> Result<Vec<u8>, RepositoryError>;
}

/// A published flat tree.
pub(super) struct PublishedRoot<'a> {
    pub(super) repository: &'a Repository,
    /// Path of the flat tree in the repository.
    pub(super) path: EntryPath,
}

impl PublishedRoot<'_> {
    /// Returns the path in the repository for a path in the root file system.
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

    fn holds(&self, directory: &EntryPath) -> Result<DirectoryContent, RepositoryError> {
        let children = self.children(directory)?;
        for (child, is_directory) in &children {
            if !is_directory || !self.children(child)?.is_empty() {
                return Ok(DirectoryContent::Something);
            }
        }
        Ok(if children.is_empty() { DirectoryContent::Nothing } else { DirectoryContent::EmptyDirectories })
    }

    fn read(&self, path: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let Some(path) = self.file(path)? else { return Ok(Vec::new()) };
        Ok(self.repository.read(&self.whole(&path), MAX_ACCOUNT_FILE_SIZE)?.unwrap_or_default())
    }
}
