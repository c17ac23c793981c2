//! Makes trees in memory mountable.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::catalog::CatalogEntry;
use crate::mount::MountableTree;
use crate::path::EntryPath;
use crate::repository::{LocatedDirectory, NamedRow, RepositoryError, Row};
use crate::tree::{Directory, Leaf, Node};

/// A tree in memory.
#[derive(Debug)]
pub(super) struct TreeView(pub(super) Arc<Directory>);

/// A directory of such a tree. Two values are equal if they are the same directory in memory.
#[derive(Clone)]
pub(super) struct TreeDirectory(Arc<Directory>);

impl PartialEq for TreeDirectory {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for TreeDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a directory with {} entries", self.0.children.len())
    }
}

impl MountableTree for TreeView {
    type RowsLocation = TreeDirectory;

    fn row(&self, path: &EntryPath) -> Result<Option<Row<TreeDirectory>>, RepositoryError> {
        let Some((parent, name)) = path.split() else {
            return Ok(Some(directory_row(path.clone(), &self.0)));
        };
        let directory =
            parent.components().try_fold(&self.0, |directory, name| match directory.children.get(name)? {
                Node::Directory(child) => Some(child),
                Node::Leaf(_) => None,
            });
        let node = directory.and_then(|directory| Some((directory, directory.children.get(name)?)));
        Ok(node.map(|(directory, node)| row(path.clone(), node, group(directory, node))))
    }

    fn row_in(
        &self,
        directory: &LocatedDirectory<TreeDirectory>,
        name: &[u8],
    ) -> Result<Option<Row<TreeDirectory>>, RepositoryError> {
        let node = directory.location.0.children.get(name);
        Ok(node.map(|node| row(directory.path.join(name), node, group(&directory.location.0, node))))
    }

    fn rows(
        &self,
        directory: &LocatedDirectory<TreeDirectory>,
    ) -> Result<Vec<NamedRow<TreeDirectory>>, RepositoryError> {
        let children = &directory.location.0.children;
        let mut groups: HashMap<*const Leaf, (u32, u32)> = HashMap::new();
        for (place, leaf) in children.values().enumerate().filter_map(|(place, node)| Some((place, shared(node)?))) {
            groups.entry(Arc::as_ptr(leaf)).or_insert((place as u32 + 1, 0)).1 += 1;
        }
        let rows = children.iter().map(|(name, node)| {
            let group = shared(node).map_or((0, 1), |leaf| linked(groups[&Arc::as_ptr(leaf)]));
            NamedRow { name: Arc::from(&**name), row: row(directory.path.join(name), node, group) }
        });
        Ok(rows.collect())
    }
}

/// Returns the row of a node, given its hard link group (0 for none) and its number of names.
fn row(path: EntryPath, node: &Node, (link_group, link_count): (u32, u32)) -> Row<TreeDirectory> {
    match node {
        Node::Directory(child) => directory_row(path, child),
        Node::Leaf(leaf) => {
            let entry = CatalogEntry { link_group, link_count, ..CatalogEntry::of_leaf(leaf) };
            Row { entry: Arc::new(entry), directory: None }
        }
    }
}

fn directory_row(path: EntryPath, directory: &Arc<Directory>) -> Row<TreeDirectory> {
    let entry = CatalogEntry::of_directory(&directory.metadata, directory.subdirectories());
    Row {
        entry: Arc::new(entry),
        directory: Some(Arc::new(LocatedDirectory { path, location: TreeDirectory(Arc::clone(directory)) })),
    }
}

/// Returns the inode of a node that may have several names. A node with a reference count of 1 has only one name.
fn shared(node: &Node) -> Option<&Arc<Leaf>> {
    match node {
        Node::Leaf(leaf) if Arc::strong_count(leaf) > 1 => Some(leaf),
        _ => None,
    }
}

/// Returns the hard link group of a node in its directory, which is the position of its first name, starting from 1.
///
/// Names in other directories do not count, because they become separate inodes when they are published.
fn group(directory: &Directory, node: &Node) -> (u32, u32) {
    let Some(leaf) = shared(node) else { return (0, 1) };
    let is_link = |node: &Node| matches!(node, Node::Leaf(other) if Arc::ptr_eq(other, leaf));
    let mut places = directory.children.values().enumerate().filter(|(_, node)| is_link(node)).map(|(place, _)| place);
    let first = places.next().map_or(0, |place| place as u32 + 1);
    linked((first, 1 + places.count() as u32))
}

/// Returns the group and its number of names, or no group (0) for a node with a single name.
fn linked(group: (u32, u32)) -> (u32, u32) {
    if group.1 > 1 { group } else { (0, 1) }
}
