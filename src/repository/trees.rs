//! Reads published trees back into memory.

use std::collections::HashMap;
use std::sync::Arc;

use super::RepositoryError;
use crate::catalog::{Catalog, CatalogReference, FACTS, MARKER, Nesting, StoredTree};
use crate::path::EntryPath;
use crate::store::StoreError;
use crate::tree::{Directory, Leaf, Node};

/// A tree that was read back from its catalogs.
#[derive(Debug, Clone)]
pub struct ReadTree {
    /// The tree, without the hidden markers that strata added for nested catalogs.
    pub tree: Arc<Directory>,
    /// Its catalogs, ready to be referenced from a parent catalog.
    pub stored: StoredTree,
    /// The tree's [`FACTS`], as JSON.
    pub facts: Option<String>,
}

/// Reads the SQLite file of a catalog.
pub type ReadCatalog<'r> = &'r dyn Fn(CatalogReference) -> Result<Vec<u8>, StoreError>;

/// Reads the tree whose root catalog is `reference` and whose path is `path`. The tree need not be published.
pub fn read_tree(
    read: ReadCatalog<'_>,
    path: &EntryPath,
    reference: CatalogReference,
) -> Result<ReadTree, RepositoryError> {
    let catalog = read_catalog(read, path, reference)?;
    let fault = "it is not a directory";
    let root = catalog.get(path)?.ok_or_else(|| RepositoryError::Unreadable { path: path.clone(), fault })?;
    let directory = root.directory().ok_or_else(|| RepositoryError::Unreadable { path: path.clone(), fault })?;
    let transition_point = root.with_nesting(Nesting::TransitionPoint);
    let stored = StoredTree { reference, transition_point, totals: catalog.total_counters() };
    let facts = catalog.property(FACTS).map(str::to_owned);
    Ok(ReadTree { tree: read_directory(read, &catalog, path, directory)?, stored, facts })
}

fn read_catalog(
    read: ReadCatalog<'_>,
    path: &EntryPath,
    reference: CatalogReference,
) -> Result<Catalog, RepositoryError> {
    let bytes = read(reference).map_err(|error| RepositoryError::of_catalog(path, error))?;
    Ok(Catalog::parse_owned(bytes, path)?)
}

fn read_directory(
    read: ReadCatalog<'_>,
    catalog: &Catalog,
    path: &EntryPath,
    mut directory: Directory,
) -> Result<Arc<Directory>, RepositoryError> {
    let mut groups: HashMap<u32, Arc<Leaf>> = HashMap::new();
    for (name, entry) in catalog.list(path)? {
        let path = path.join(&name);
        let node = if let Some(child) = entry.directory() {
            Node::Directory(match catalog.nested(&path)? {
                Some(reference) => {
                    let below = read_catalog(read, &path, reference)?;
                    read_directory(read, &below, &path, child)?
                }
                None => read_directory(read, catalog, &path, child)?,
            })
        } else if name == MARKER && entry.is_hidden() {
            continue;
        } else {
            let fault = "images cannot contain a file of its type";
            let leaf = entry.leaf().map_err(|reason| RepositoryError::without_content(&path, reason, fault))?;
            Node::Leaf(match entry.link_group {
                0 => Arc::new(leaf),
                group => Arc::clone(groups.entry(group).or_insert_with(|| Arc::new(leaf))),
            })
        };
        directory.children.insert(name.into(), node);
    }
    Ok(Arc::new(directory))
}
