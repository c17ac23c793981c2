//! Directories and what lies in them.
//!
//! A clone of a directory costs a counter: whoever changes one copies it first, and its parents up to the root, so that the
//! trees before and after a layer share all that the layer left alone. Two names of one tree that hold the *same*
//! [`Leaf`] (by address, not by value) are hard links to one inode.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::layer::DeviceNumber;
use crate::metadata::Metadata;
use crate::object::Content;
use crate::path::EntryPath;

/// A directory.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Attributes of the directory itself.
    pub metadata: Metadata,
    /// What lies in it, by name.
    pub children: BTreeMap<Box<[u8]>, Node>,
}

/// Something in a directory.
#[derive(Debug, Clone)]
pub enum Node {
    /// A directory.
    Directory(Arc<Directory>),
    /// Anything else.
    Leaf(Arc<Leaf>),
}

/// An inode that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Attributes of the inode.
    pub metadata: Metadata,
    /// What it is.
    pub kind: LeafKind,
}

/// What an inode is that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeafKind {
    /// A regular file.
    File {
        /// Bytes, holes counted.
        size: u64,
        /// The objects that hold them.
        content: Content,
    },
    /// A symbolic link, with its target as the image has it.
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

    /// Returns the tree that the lowest layer is laid on: a root directory that nobody named yet.
    pub fn empty_root() -> Arc<Self> {
        Arc::new(Self::new(Metadata::of_implied_directory()))
    }

    /// Returns what is at `path` below this directory; links on the way are not followed.
    pub fn get(&self, path: &EntryPath) -> Option<&Node> {
        let (parent, name) = path.split()?;
        self.directory(parent.components())?.children.get(name)
    }

    /// Returns the directory at the end of `names`; links on the way are not followed.
    pub fn directory<'a>(&self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<&Directory> {
        names.into_iter().try_fold(self, |directory, name| match directory.children.get(name)? {
            Node::Directory(child) => Some(&**child),
            Node::Leaf(_) => None,
        })
    }

    /// Returns the directory at the end of `names` to change it, copying those on the way that other trees share.
    pub fn directory_mut<'a>(&mut self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<&mut Directory> {
        names.into_iter().try_fold(self, |directory, name| match directory.children.get_mut(name)? {
            Node::Directory(child) => Some(Arc::make_mut(child)),
            Node::Leaf(_) => None,
        })
    }

    /// Returns how many of its entries are directories.
    pub fn subdirectories(&self) -> usize {
        self.children.values().filter(|node| matches!(node, Node::Directory(_))).count()
    }

    /// Calls `visit` for everything below this directory: a directory before what lies in it, by name.
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

/// Returns the names of each inode of a tree that has some in several directories, which catalogs cannot hold.
pub fn links_across_directories(tree: &Directory) -> Vec<Vec<EntryPath>> {
    // Other trees may refer to an inode that has one name in this one, so that the paths of few are needed.
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

/// Makes the names in each group one inode again, after the tree was read from catalogs.
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
