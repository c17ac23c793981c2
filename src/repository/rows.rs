//! Rows with the place of what lies in them: a walk that never looks for a catalog twice.

use std::sync::Arc;

use super::{CatalogPlace, Repository, RepositoryError};
use crate::catalog::{Catalog, CatalogEntry};
use crate::layer::EntryPath;

/// Where the content of a folder stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder<P = CatalogPlace> {
    /// Its path from the root of the whole.
    pub path: EntryPath,
    /// What has the rows of what lies in it: in a repository, a catalog.
    pub place: P,
}

/// What is at a path: a row, and for a folder where its content stands.
#[derive(Debug, Clone)]
pub struct Row<P = CatalogPlace> {
    /// The row; of a transition point, the one in the catalog above.
    pub entry: Arc<CatalogEntry>,
    /// Where to go on, if it is a folder.
    pub folder: Option<Arc<Folder<P>>>,
}

/// A row and the name that it has in its folder.
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
            let folder = Some(Arc::new(Folder { path: EntryPath::ROOT, place }));
            return Ok(entry.map(|entry| Row { entry: Arc::new(entry), folder }));
        };
        let place = self.place_of(&parent)?;
        self.row_in(&Folder { path: parent, place }, name)
    }

    /// Returns what has the name in a folder, of this or any other revision.
    pub fn row_in(&self, folder: &Folder, name: &[u8]) -> Result<Option<Row>, RepositoryError> {
        let catalog = self.open_catalog(&folder.place)?;
        let path = folder.path.join(name);
        let Some(entry) = catalog.get(&path)? else { return Ok(None) };
        complete(&catalog, &folder.place, path, entry).map(Some)
    }

    /// Returns everything that lies in a folder, of this or any other revision, by name; hidden rows, too.
    pub fn rows(&self, folder: &Folder) -> Result<Vec<NamedRow>, RepositoryError> {
        let catalog = self.open_catalog(&folder.place)?;
        let rows = catalog.list(&folder.path)?.into_iter();
        rows.map(|(name, entry)| {
            let path = folder.path.join(&name);
            Ok(NamedRow { name: name.into(), row: complete(&catalog, &folder.place, path, entry)? })
        })
        .collect()
    }
}

/// Adds to a row of a catalog where the folder's content stands.
fn complete(
    catalog: &Catalog,
    place: &CatalogPlace,
    path: EntryPath,
    entry: CatalogEntry,
) -> Result<Row, RepositoryError> {
    let folder = if entry.is_directory() {
        let nested = if entry.is_transition_point() { catalog.nested(&path)? } else { None };
        let place = nested.map_or_else(|| place.clone(), |reference| CatalogPlace { root: path.clone(), reference });
        Some(Arc::new(Folder { path, place }))
    } else {
        None
    };
    Ok(Row { entry: Arc::new(entry), folder })
}
