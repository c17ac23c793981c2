//! What can be mounted: paths with rows, and the content of files.

use std::fmt::Debug;
use std::sync::Arc;

use super::content::ShowError;
use crate::layer::EntryPath;
use crate::object::Content;
use crate::repository::{CatalogPlace, Folder, NamedRow, Repository, RepositoryError, Row};

/// A tree as it is at one moment. Clones are cheap and show the same.
pub(crate) trait Shown: Debug + Send + Sync + 'static {
    /// Where the rows of a folder stand. In equal places, they are the same.
    type Place: Debug + Clone + PartialEq + Send + Sync;

    /// Returns what is at `path`; links are not followed.
    fn row(&self, path: &EntryPath) -> Result<Option<Row<Self::Place>>, RepositoryError>;

    /// Returns what has the name in a folder, of this tree or of one before it.
    fn row_in(&self, folder: &Folder<Self::Place>, name: &[u8]) -> Result<Option<Row<Self::Place>>, RepositoryError>;

    /// Returns everything that lies in a folder, of this tree or of one before it, by name; hidden rows, too.
    fn rows(&self, folder: &Folder<Self::Place>) -> Result<Vec<NamedRow<Self::Place>>, RepositoryError>;
}

impl Shown for Repository {
    type Place = CatalogPlace;

    fn row(&self, path: &EntryPath) -> Result<Option<Row>, RepositoryError> {
        Self::row(self, path)
    }

    fn row_in(&self, folder: &Folder, name: &[u8]) -> Result<Option<Row>, RepositoryError> {
        Self::row_in(self, folder, name)
    }

    fn rows(&self, folder: &Folder) -> Result<Vec<NamedRow>, RepositoryError> {
        Self::rows(self, folder)
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
