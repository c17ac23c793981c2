//! Trees that were published, read back into memory.

use std::collections::HashMap;
use std::sync::Arc;

use super::RepositoryError;
use crate::catalog::{Catalog, CatalogReference, FACTS, MARKER, Nesting, StoredTree};
use crate::layer::EntryPath;
use crate::object::ObjectHash;
use crate::store::StoreError;
use crate::tree::{Directory, Leaf, Node};

/// A tree that was read back from its catalogs.
#[derive(Debug, Clone)]
pub struct ReadTree {
    /// The tree, without the markers that were put there for its nested catalogs.
    pub tree: Arc<Directory>,
    /// Its catalogs, ready to be hung in.
    pub stored: StoredTree,
    /// What its rows cannot tell, in JSON.
    pub facts: Option<String>,
}

/// Reads the tree whose root catalog is `reference`, published at `path` or stored for it.
///
/// `read` returns the SQLite file of a catalog.
pub fn read_tree(
    read: &dyn Fn(ObjectHash) -> Result<Vec<u8>, StoreError>,
    path: &EntryPath,
    reference: CatalogReference,
) -> Result<ReadTree, RepositoryError> {
    let catalog = read_catalog(read, path, reference.hash)?;
    let fault = "it is no folder";
    let root = catalog.get(path)?.ok_or_else(|| RepositoryError::Unreadable { path: path.clone(), fault })?;
    let folder = root.directory().ok_or_else(|| RepositoryError::Unreadable { path: path.clone(), fault })?;
    let transition_point = root.with_nesting(Nesting::TransitionPoint);
    let stored = StoredTree { reference, transition_point, totals: catalog.total_counters() };
    let facts = catalog.property(FACTS).map(str::to_owned);
    Ok(ReadTree { tree: read_folder(read, &catalog, path, folder)?, stored, facts })
}

fn read_catalog(
    read: &dyn Fn(ObjectHash) -> Result<Vec<u8>, StoreError>,
    path: &EntryPath,
    hash: ObjectHash,
) -> Result<Catalog, RepositoryError> {
    let bytes = read(hash).map_err(|error| RepositoryError::of_catalog(path, error))?;
    Ok(Catalog::parse(&bytes, path)?)
}

fn read_folder(
    read: &dyn Fn(ObjectHash) -> Result<Vec<u8>, StoreError>,
    catalog: &Catalog,
    path: &EntryPath,
    mut folder: Directory,
) -> Result<Arc<Directory>, RepositoryError> {
    let mut groups: HashMap<u32, Arc<Leaf>> = HashMap::new();
    for (name, entry) in catalog.list(path)? {
        let path = path.join(&name);
        let node = if let Some(child) = entry.directory() {
            Node::Directory(match catalog.nested(&path)? {
                Some(reference) => {
                    let below = read_catalog(read, &path, reference.hash)?;
                    read_folder(read, &below, &path, child)?
                }
                None => read_folder(read, catalog, &path, child)?,
            })
        } else if name == MARKER && entry.is_hidden() {
            continue;
        } else {
            let fault = "it is nothing that an image can hold";
            let leaf = entry.leaf().ok_or(RepositoryError::Unreadable { path, fault })?;
            Node::Leaf(match entry.link_group {
                0 => Arc::new(leaf),
                group => Arc::clone(groups.entry(group).or_insert_with(|| Arc::new(leaf))),
            })
        };
        folder.children.insert(name.into(), node);
    }
    Ok(Arc::new(folder))
}
