//! Rows together with the catalog of their children, so that a walk does not search for the same catalog twice.

use std::sync::Arc;

use super::{CatalogLocation, Repository, RepositoryError};
use crate::catalog::{Catalog, CatalogEntry};
use crate::path::EntryPath;

/// A directory and the location of its children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedDirectory<P = CatalogLocation> {
    /// Path of the directory, from the root of the repository.
    pub path: EntryPath,
    /// Where the rows of its children are stored. In a repository, this is a catalog.
    pub location: P,
}

/// A row, and for a directory the location of its children.
#[derive(Debug, Clone)]
pub struct Row<P = CatalogLocation> {
    /// The row; for a transition point, the one in the parent catalog.
    pub entry: Arc<CatalogEntry>,
    /// The location of its children; `None` if the row is not a directory.
    pub directory: Option<Arc<LocatedDirectory<P>>>,
}

/// A row and its name.
#[derive(Debug, Clone)]
pub struct NamedRow<P = CatalogLocation> {
    /// Name within the directory.
    pub name: Arc<[u8]>,
    /// The row.
    pub row: Row<P>,
}

impl Repository {
    /// Returns the row at `path` without following links.
    pub fn row(&self, path: &EntryPath) -> Result<Option<Row>, RepositoryError> {
        let Some((parent, name)) = path.split() else {
            let location = self.root_location();
            let entry = self.open_catalog(&location)?.get(path)?;
            let directory = Some(Arc::new(LocatedDirectory { path: EntryPath::ROOT, location }));
            return Ok(entry.map(|entry| Row { entry: Arc::new(entry), directory }));
        };
        let location = self.location_of(&parent)?;
        self.row_in(&LocatedDirectory { path: parent, location }, name)
    }

    /// Returns the child with this name, or `None` if the directory has no such child. The directory may be of another revision.
    pub fn row_in(&self, directory: &LocatedDirectory, name: &[u8]) -> Result<Option<Row>, RepositoryError> {
        let catalog = self.open_catalog(&directory.location)?;
        let path = directory.path.join(name);
        let Some(entry) = catalog.get(&path)? else { return Ok(None) };
        complete(&catalog, &directory.location, path, entry).map(Some)
    }

    /// Returns all children of a directory by name, including hidden rows. The directory may be of another revision.
    pub fn rows(&self, directory: &LocatedDirectory) -> Result<Vec<NamedRow>, RepositoryError> {
        let catalog = self.open_catalog(&directory.location)?;
        let rows = catalog.list(&directory.path)?.into_iter();
        rows.map(|(name, entry)| {
            let path = directory.path.join(&name);
            Ok(NamedRow { name: name.into(), row: complete(&catalog, &directory.location, path, entry)? })
        })
        .collect()
    }
}

/// Returns the row `entry`. If the row is a directory, adds the location of its children.
fn complete(
    catalog: &Catalog,
    location: &CatalogLocation,
    path: EntryPath,
    entry: CatalogEntry,
) -> Result<Row, RepositoryError> {
    let directory = if entry.is_directory() {
        let nested = if entry.is_transition_point() { catalog.nested(&path)? } else { None };
        let location =
            nested.map_or_else(|| location.clone(), |reference| CatalogLocation { root: path.clone(), reference });
        Some(Arc::new(LocatedDirectory { path, location }))
    } else {
        None
    };
    Ok(Row { entry: Arc::new(entry), directory })
}
