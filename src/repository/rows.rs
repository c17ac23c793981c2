//! Rows together with the catalog of their children, so that a walk does not search for the same catalog twice.

use std::sync::Arc;

use super::{CatalogPlace, Repository, RepositoryError};
use crate::catalog::{Catalog, CatalogEntry};
use crate::path::EntryPath;

/// A directory and the place where the rows of its children are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedDirectory<P = CatalogPlace> {
    /// Path of the directory, from the root of the repository.
    pub path: EntryPath,
    /// Where the rows of its children are: in a repository, a catalog.
    pub place: P,
}

/// A row, and for a directory the place where the rows of its children are stored.
#[derive(Debug, Clone)]
pub struct Row<P = CatalogPlace> {
    /// The row; for a transition point, the one in the parent catalog.
    pub entry: Arc<CatalogEntry>,
    /// The place of its children; `None` if the row is not a directory.
    pub directory: Option<Arc<PlacedDirectory<P>>>,
}

/// A row and its name.
#[derive(Debug, Clone)]
pub struct NamedRow<P = CatalogPlace> {
    /// Name within the directory.
    pub name: Arc<[u8]>,
    /// The row.
    pub row: Row<P>,
}

impl Repository {
    /// Returns the row at `path` without following links.
    pub fn row(&self, path: &EntryPath) -> Result<Option<Row>, RepositoryError> {
        let Some((parent, name)) = path.split() else {
            let place = self.root_place();
            let entry = self.open_catalog(&place)?.get(path)?;
            let directory = Some(Arc::new(PlacedDirectory { path: EntryPath::ROOT, place }));
            return Ok(entry.map(|entry| Row { entry: Arc::new(entry), directory }));
        };
        let place = self.place_of(&parent)?;
        self.row_in(&PlacedDirectory { path: parent, place }, name)
    }

    /// Returns the child of a directory with this name. The directory may be of another revision.
    pub fn row_in(&self, directory: &PlacedDirectory, name: &[u8]) -> Result<Option<Row>, RepositoryError> {
        let catalog = self.open_catalog(&directory.place)?;
        let path = directory.path.join(name);
        let Some(entry) = catalog.get(&path)? else { return Ok(None) };
        complete(&catalog, &directory.place, path, entry).map(Some)
    }

    /// Returns all children of a directory by name, including hidden rows. The directory may be of another revision.
    pub fn rows(&self, directory: &PlacedDirectory) -> Result<Vec<NamedRow>, RepositoryError> {
        let catalog = self.open_catalog(&directory.place)?;
        let rows = catalog.list(&directory.path)?.into_iter();
        rows.map(|(name, entry)| {
            let path = directory.path.join(&name);
            Ok(NamedRow { name: name.into(), row: complete(&catalog, &directory.place, path, entry)? })
        })
        .collect()
    }
}

/// Adds to the row of a directory the place of its children.
fn complete(
    catalog: &Catalog,
    place: &CatalogPlace,
    path: EntryPath,
    entry: CatalogEntry,
) -> Result<Row, RepositoryError> {
    let directory = if entry.is_directory() {
        let nested = if entry.is_transition_point() { catalog.nested(&path)? } else { None };
        let place = nested.map_or_else(|| place.clone(), |reference| CatalogPlace { root: path.clone(), reference });
        Some(Arc::new(PlacedDirectory { path, place }))
    } else {
        None
    };
    Ok(Row { entry: Arc::new(entry), directory })
}
