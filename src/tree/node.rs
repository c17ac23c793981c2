//! The nodes of a tree: directories and leaves.
//!
//! Directories are reference-counted. To change one, it and its parents up to the root are copied first (copy on write), so the
//! trees before and after a layer share every directory that the layer leaves unchanged. Two names in one tree that hold the
//! *same* [`Leaf`] (by address, not by value) are hard links to one inode.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::layer::DeviceNumber;
use crate::metadata::Metadata;
use crate::object::Content;
use crate::path::EntryPath;

/// A directory.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Metadata of the directory itself.
    pub metadata: Metadata,
    /// Entries of the directory, by name.
    pub children: BTreeMap<Box<[u8]>, Node>,
}

/// An entry of a directory.
#[derive(Debug, Clone)]
pub enum Node {
    /// A directory.
    Directory(Arc<Directory>),
    /// Any other inode.
    Leaf(Arc<Leaf>),
}

/// An inode that is not a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Metadata of the inode.
    pub metadata: Metadata,
    /// Type of the inode, with what is specific to the type.
    pub kind: LeafKind,
}

/// Type of an inode that is not a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeafKind {
    /// A regular file.
    File {
        /// Size in bytes, including holes.
        size: u64,
        /// The objects that store the content.
        content: Content,
    },
    /// A symbolic link, with its target exactly as in the image.
    Symlink(Box<[u8]>),
    /// A character device; 0:0 is a whiteout in the overlay form of a layer.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

impl Directory {
    /// Returns an empty directory.
    pub fn new(metadata: Metadata) -> Self {
        Self { metadata, children: BTreeMap::new() }
    }

    /// Returns the tree below the lowest layer: an empty root directory with the metadata of an implied directory.
    pub fn empty_root() -> Arc<Self> {
        Arc::new(Self::new(Metadata::of_implied_directory()))
    }

    /// Returns the node at `path` below this directory. Symbolic links in `path` are not followed.
    pub fn get(&self, path: &EntryPath) -> Option<&Node> {
        let (parent, name) = path.split()?;
        self.directory(parent.components())?.children.get(name)
    }

    /// Returns the directory that `names` lead to. Symbolic links are not followed.
    pub fn directory<'a>(&self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<&Directory> {
        names.into_iter().try_fold(self, |directory, name| match directory.children.get(name)? {
            Node::Directory(child) => Some(&**child),
            Node::Leaf(_) => None,
        })
    }

    /// Returns the directory that `names` lead to for changing it. Shared directories along `names` are copied.
    pub fn directory_mut<'a>(&mut self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<&mut Directory> {
        names.into_iter().try_fold(self, |directory, name| match directory.children.get_mut(name)? {
            Node::Directory(child) => Some(Arc::make_mut(child)),
            Node::Leaf(_) => None,
        })
    }

    /// Returns the number of entries that are directories.
    pub fn subdirectories(&self) -> usize {
        self.children.values().filter(|node| matches!(node, Node::Directory(_))).count()
    }

    /// Calls `visit` for each node below this directory, in the order of names and each directory before its entries. `path` is
    /// the path of this directory.
    pub fn walk<'a>(&'a self, path: &EntryPath, visit: &mut impl FnMut(&EntryPath, &'a Node)) {
        for (name, node) in &self.children {
            let path = path.join(name);
            visit(&path, node);
            if let Node::Directory(directory) = node {
                directory.walk(&path, visit);
            }
        }
    }
}

/// Returns the names of each inode that has names in several directories. Catalogs cannot express such hard links.
pub fn links_across_directories(tree: &Directory) -> Vec<Vec<EntryPath>> {
    // A reference count above 1 is not enough, because other trees may share the inode. So first find the inodes with several
    // names in this tree, and then build paths only for those.
    let mut referred = Vec::new();
    visit_leaves(tree, &mut |leaf| {
        if Arc::strong_count(leaf) > 1 {
            referred.push(Arc::as_ptr(leaf));
        }
    });
    referred.sort_unstable();
    let linked = referred.chunk_by(|one, other| one == other).filter(|names| names.len() > 1);
    let mut names: HashMap<*const Leaf, Vec<EntryPath>> = linked.map(|names| (names[0], Vec::new())).collect();
    drop(referred);
    if !names.is_empty() {
        tree.walk(&EntryPath::ROOT, &mut |path, node| {
            if let Node::Leaf(leaf) = node
                && let Some(names) = names.get_mut(&Arc::as_ptr(leaf))
            {
                names.push(path.clone());
            }
        });
    }
    let directory = |path: &EntryPath| path.split().map(|(parent, _)| parent);
    let is_across = |names: &Vec<EntryPath>| names.iter().any(|name| directory(name) != directory(&names[0]));
    let mut groups: Vec<Vec<EntryPath>> = names.into_values().filter(is_across).collect();
    // Addresses differ between runs, but the published list must not.
    groups.sort();
    groups
}

fn visit_leaves(directory: &Directory, visit: &mut impl FnMut(&Arc<Leaf>)) {
    for node in directory.children.values() {
        match node {
            Node::Directory(directory) => visit_leaves(directory, visit),
            Node::Leaf(leaf) => visit(leaf),
        }
    }
}

/// Restores hard links in a tree that was read from catalogs: the names of each group share one inode again.
pub fn join_links(tree: &mut Arc<Directory>, groups: &[Vec<EntryPath>]) {
    for group in groups {
        let Some((first, others)) = group.split_first() else { continue };
        let Some(Node::Leaf(leaf)) = tree.get(first).cloned() else { continue };
        for path in others {
            let Some((parent, name)) = path.split() else { continue };
            if let Some(directory) = Arc::make_mut(tree).directory_mut(parent.components())
                && let Some(Node::Leaf(other)) = directory.children.get_mut(name)
                && **other == *leaf
            {
                *other = Arc::clone(&leaf);
            }
        }
    }
}
