//! What can be mounted: paths with rows, and the content of files.

use std::fmt::Debug;
use std::sync::Arc;

use super::content::ShowError;
use crate::object::Content;
use crate::path::EntryPath;
use crate::repository::{CatalogLocation, LocatedDirectory, NamedRow, Repository, RepositoryError, Row};

/// A tree as it is at one moment. Clones are cheap and show the same.
pub(crate) trait Shown: Debug + Send + Sync + 'static {
    /// Where the rows of a directory stand. In equal places, they are the same.
    type Place: Debug + Clone + PartialEq + Send + Sync;

    /// Returns what is at `path`; links are not followed.
    fn row(&self, path: &EntryPath) -> Result<Option<Row<Self::Place>>, RepositoryError>;

    /// Returns what has the name in a directory, of this tree or of one before it.
    fn row_in(
        &self,
        directory: &LocatedDirectory<Self::Place>,
        name: &[u8],
    ) -> Result<Option<Row<Self::Place>>, RepositoryError>;

    /// Returns everything that lies in a directory, of this tree or of one before it, by name; hidden rows, too.
    fn rows(&self, directory: &LocatedDirectory<Self::Place>) -> Result<Vec<NamedRow<Self::Place>>, RepositoryError>;
}

impl Shown for Repository {
    type Place = CatalogLocation;

    fn row(&self, path: &EntryPath) -> Result<Option<Row>, RepositoryError> {
        Self::row(self, path)
    }

    fn row_in(&self, directory: &LocatedDirectory, name: &[u8]) -> Result<Option<Row>, RepositoryError> {
        Self::row_in(self, directory, name)
    }

    fn rows(&self, directory: &LocatedDirectory) -> Result<Vec<NamedRow>, RepositoryError> {
        Self::rows(self, directory)
    }
}

/// Where the content of files is.
pub(crate) trait ContentSource: Debug + Send + Sync + 'static {
    /// Reads up to `length` bytes at `offset` of a file of `size` bytes: fewer only at its end.
    fn read(&self, content: &Content, size: u64, offset: u64, length: usize) -> Result<Vec<u8>, ShowError>;
}

/// Content of which nobody needs to know where it is.
pub(crate) type AnyContent = Arc<dyn ContentSource>;

/// How much there is, for those who ask the file system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extent {
    /// Entries.
    pub(crate) entries: u64,
    /// Bytes of files.
    pub(crate) bytes: u64,
}
