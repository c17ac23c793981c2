//! The interface between a mount and the tree that it presents.

use std::fmt::Debug;
use std::sync::Arc;

use super::content::ReadContentError;
use crate::object::Content;
use crate::path::EntryPath;
use crate::repository::{CatalogLocation, LocatedDirectory, NamedRow, Repository, RepositoryError, Row};

/// A tree at one point in time. A clone is cheap and represents the same tree.
pub(crate) trait MountableTree: Debug + Send + Sync + 'static {
    /// Identifies the stored rows of a directory. Directories with equal values have equal rows.
    type RowsLocation: Debug + Clone + PartialEq + Send + Sync;

    /// Returns the row at `path`. Symbolic links are not followed.
    fn row(&self, path: &EntryPath) -> Result<Option<Row<Self::RowsLocation>>, RepositoryError>;

    /// Returns the row of a name in a directory of this tree or an earlier one.
    fn row_in(
        &self,
        directory: &LocatedDirectory<Self::RowsLocation>,
        name: &[u8],
    ) -> Result<Option<Row<Self::RowsLocation>>, RepositoryError>;

    /// Returns all rows in a directory of this tree or an earlier one, sorted by name, including hidden rows.
    fn rows(
        &self,
        directory: &LocatedDirectory<Self::RowsLocation>,
    ) -> Result<Vec<NamedRow<Self::RowsLocation>>, RepositoryError>;

    /// Fetches what [`Self::rows`] will read for a directory. A tree that is not read over a network does nothing.
    fn load(&self, _directory: &LocatedDirectory<Self::RowsLocation>) -> Result<(), RepositoryError> {
        Ok(())
    }
}

impl MountableTree for Repository {
    type RowsLocation = CatalogLocation;

    fn row(&self, path: &EntryPath) -> Result<Option<Row>, RepositoryError> {
        Self::row(self, path)
    }

    fn row_in(&self, directory: &LocatedDirectory, name: &[u8]) -> Result<Option<Row>, RepositoryError> {
        Self::row_in(self, directory, name)
    }

    fn rows(&self, directory: &LocatedDirectory) -> Result<Vec<NamedRow>, RepositoryError> {
        Self::rows(self, directory)
    }

    fn load(&self, directory: &LocatedDirectory) -> Result<(), RepositoryError> {
        self.open_catalog(&directory.location).map(drop)
    }
}

/// Reads the content of files.
pub(crate) trait ContentSource: Debug + Send + Sync + 'static {
    /// Reads up to `length` bytes at `offset` of a file with `size` bytes. Returns fewer bytes only at the end of the file.
    fn read(&self, content: &Content, size: u64, offset: u64, length: usize) -> Result<Vec<u8>, ReadContentError>;
}

/// A shared content source of any type.
pub(crate) type SharedContentSource = Arc<dyn ContentSource>;

/// The totals that `statfs` reports.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TreeTotals {
    /// Number of entries.
    pub(crate) entries: u64,
    /// Size of all files in bytes.
    pub(crate) bytes: u64,
}
