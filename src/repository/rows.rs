//! Rows with the place of what lies in them: a walk that never looks for a catalog twice.

use std::sync::Arc;

use super::{CatalogPlace, Repository, RepositoryError};
use crate::catalog::{Catalog, CatalogEntry};
use crate::path::EntryPath;

/// Where the content of a directory stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedDirectory<P = CatalogPlace> {
    /// Its path from the root of the whole.
    pub path: EntryPath,
    /// What has the rows of what lies in it: in a repository, a catalog.
    pub place: P,
}

/// What is at a path: a row, and for a directory where its content stands.
#[derive(Debug, Clone)]
pub struct Row<P = CatalogPlace> {
    /// The row; of a transition point, the one in the catalog above.
    pub entry: Arc<CatalogEntry>,
    /// Where to go on, if it is a directory.
    pub directory: Option<Arc<PlacedDirectory<P>>>,
}

/// A row and the name that it has in its directory.
#[derive(Debug, Clone)]
pub struct NamedRow<P = CatalogPlace> {
    /// The name.
    pub name: Arc<[u8]>,
    /// What it is.
    pub row: Row<P>,
}

impl Repository {
    /// Returns what is at `path`; links are not followed.
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

    /// Returns what has the name in a directory, of this or any other revision.
    pub fn row_in(&self, directory: &PlacedDirectory, name: &[u8]) -> Result<Option<Row>, RepositoryError> {
        let catalog = self.open_catalog(&directory.place)?;
        let path = directory.path.join(name);
        let Some(entry) = catalog.get(&path)? else { return Ok(None) };
        complete(&catalog, &directory.place, path, entry).map(Some)
    }

    /// Returns everything that lies in a directory, of this or any other revision, by name; hidden rows, too.
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

/// Adds to a row of a catalog where the directory's content stands.
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
