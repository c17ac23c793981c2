//! File systems as flat maps from path to node, as an independent reference for the results of `tree`.
//!
//! Paths are resolved name by name through the map, and removing a directory scans the whole map. The module shares no code
//! with `tree`, which implements the same rules in another way.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::naive_layer::apply_layer;
use crate::layer::{LayerEntry, NodeKind};
use crate::metadata::Metadata;
use crate::path::EntryPath;

/// Maximum number of symbolic links in the resolution of one path, as in umoci.
const MAX_SYMLINKS: usize = 255;

/// Maximum length in bytes of a file name in Linux and CVMFS.
const MAX_NAME_LENGTH: usize = 255;

/// Errors from applying a layer to a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Linux file systems do not support hard links to directories.
    #[error("hard link '{path}' refers to '{target}', which is a directory")]
    HardLinkToDirectory {
        /// The path of the link.
        path: EntryPath,
        /// The target of the link.
        target: EntryPath,
    },
    /// Neither the layer nor a lower layer contains the target.
    #[error("hard link '{path}' refers to '{target}', which exists neither in its layer nor in a lower one")]
    MissingHardLinkTarget {
        /// The path of the link.
        path: EntryPath,
        /// The target of the link.
        target: EntryPath,
    },
    /// The path of an entry, or the target of a hard link, contains a loop of symbolic links, or too many of them.
    #[error("the path of entry '{0}' contains more than {MAX_SYMLINKS} symbolic links")]
    TooManyLinks(EntryPath),
    /// A symbolic link above an entry leads to a missing directory that cannot be created.
    #[error(
        "a symbolic link in the path of entry '{0}' leads to a directory whose name is too long or contains a NUL byte"
    )]
    UnusableName(EntryPath),
    /// The entry of the root directory is a file, a link or a device.
    #[error("the layer has an entry for '/' that is not a directory")]
    RootIsNoDirectory,
}

/// The node at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NaiveNode<C> {
    /// Number of the inode: two paths have the same number if they are hard links to each other.
    pub inode: usize,
    /// Permissions, owner, modification time and extended attributes.
    pub metadata: Metadata,
    /// File type, with the content or target.
    pub kind: NodeKind<C>,
}

/// The file system that results from a stack of layers, as a flat map from path to node.
///
/// The map always contains the root, and the parent of every path as a directory. Two trees are equal if every path has the
/// same metadata and kind in both, and the same paths are hard links to each other. Inode numbers may differ.
#[derive(Debug, Clone)]
pub struct NaiveTree<C> {
    paths: BTreeMap<EntryPath, NaiveNode<C>>,
    pub(super) next_inode: usize,
}

impl<C: Clone> NaiveTree<C> {
    /// Returns the tree of an image without layers, which contains only the root.
    pub fn new() -> Self {
        Self::with_root(Metadata::of_implied_directory(), 0)
    }

    /// Returns a tree that contains only the root, with the given inode number.
    pub(super) fn with_root(metadata: Metadata, inode: usize) -> Self {
        let root = NaiveNode { inode, metadata, kind: NodeKind::Directory };
        Self { paths: BTreeMap::from([(EntryPath::ROOT, root)]), next_inode: inode + 1 }
    }

    /// Returns every path with its node, in the order of [`EntryPath`], starting with the root.
    pub fn entries(&self) -> impl Iterator<Item = (&EntryPath, &NaiveNode<C>)> {
        self.paths.iter()
    }

    /// Returns the node at `path`. Symbolic links are not followed.
    pub fn get(&self, path: &EntryPath) -> Option<&NaiveNode<C>> {
        self.paths.get(path)
    }

    /// Applies `layer`, whose entries are in the order of its archive, to this tree.
    ///
    /// The tree does not change if an error is returned.
    pub fn apply(&mut self, layer: &[LayerEntry<C>]) -> Result<(), ApplyError> {
        *self = apply_layer(self, layer)?.merged;
        Ok(())
    }

    /// Returns the node at the target of a hard link, following symbolic links in the directories of the target.
    pub(super) fn linked(&self, target: &EntryPath) -> Option<&NaiveNode<C>> {
        self.look_up(target).ok().flatten()
    }

    /// Returns the node at `path`, following symbolic links in the directories of `path`.
    pub(super) fn look_up(&self, path: &EntryPath) -> Result<Option<&NaiveNode<C>>, TooManyLinks> {
        let Some((parent, name)) = path.split() else { return Ok(self.paths.get(path)) };
        Ok(self.paths.get(&self.resolve(&parent)?.join(name)))
    }

    /// Resolves all symbolic links in `path`, and returns the result if it is a directory. Links cannot leave the root.
    pub(super) fn directory(&self, path: &EntryPath) -> Option<EntryPath> {
        self.resolve(path).ok().filter(|place| self.is_directory(place))
    }

    /// Resolves all symbolic links in `path`. Components that do not exist are kept as they are.
    pub(super) fn resolve(&self, path: &EntryPath) -> Result<EntryPath, TooManyLinks> {
        let mut ahead: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
        let (mut place, mut links) = (EntryPath::ROOT, 0);
        while let Some(name) = ahead.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    place = parent(&place).unwrap_or_default();
                    continue;
                }
                _ => place = place.join(&name),
            }
            if let Some(NodeKind::Symlink(target)) = self.paths.get(&place).map(|node| &node.kind) {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(TooManyLinks);
                }
                place = if target.starts_with(b"/") { EntryPath::ROOT } else { parent(&place).unwrap_or_default() };
                target.split(|&b| b == b'/').rev().for_each(|name| ahead.push_front(name.to_vec()));
            }
        }
        Ok(place)
    }

    /// Resolves the parent directory of `path`, creates it if it is missing, and appends each created directory to
    /// `created`.
    pub(super) fn create_parent(
        &mut self,
        path: &EntryPath,
        created: &mut Vec<EntryPath>,
    ) -> Result<EntryPath, ApplyError> {
        let parent = parent(path).unwrap_or_default();
        let place = self.resolve(&parent).map_err(|_| ApplyError::TooManyLinks(path.clone()))?;
        let is_unusable = |name: &[u8]| name.len() > MAX_NAME_LENGTH || name.contains(&0);
        if place.components().any(is_unusable) {
            return Err(ApplyError::UnusableName(path.clone()));
        }
        self.create_directories(&place, created);
        Ok(place)
    }

    /// Creates the directory at `path` and all missing directories above it.
    pub(super) fn create_directories(&mut self, path: &EntryPath, created: &mut Vec<EntryPath>) {
        let mut place = EntryPath::ROOT;
        for name in path.components() {
            place = place.join(name);
            if !self.is_directory(&place) {
                self.put_new(place.clone(), Metadata::of_implied_directory(), NodeKind::Directory);
                created.push(place.clone());
            }
        }
    }

    pub(super) fn is_directory(&self, path: &EntryPath) -> bool {
        self.paths.get(path).is_some_and(|node| is_directory(&node.kind))
    }

    /// Removes `path` and everything below it.
    pub(super) fn remove_subtree(&mut self, path: &EntryPath) {
        self.paths.retain(|other, _| !other.is_in(path));
    }

    /// Removes all paths for which `is_gone` is true.
    pub(super) fn remove(&mut self, is_gone: impl Fn(&EntryPath) -> bool) {
        self.paths.retain(|path, _| !is_gone(path));
    }

    /// Changes the node at `path`, if it exists.
    pub(super) fn change(&mut self, path: &EntryPath, change: impl FnOnce(&mut NaiveNode<C>)) {
        if let Some(node) = self.paths.get_mut(path) {
            change(node);
        }
    }

    /// Replaces the nodes of all paths with the inode `old`.
    pub(super) fn replace_inode(&mut self, old: usize, new: &NaiveNode<C>) {
        self.paths.values_mut().filter(|node| node.inode == old).for_each(|node| *node = new.clone());
    }

    /// Adds a node with a new inode at `path`, replacing any existing entry.
    pub(super) fn put_new(&mut self, path: EntryPath, metadata: Metadata, kind: NodeKind<C>) {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.put(path, NaiveNode { inode, metadata, kind });
    }

    /// Adds `node` at `path`, replacing any existing entry and everything below it.
    pub(super) fn put(&mut self, path: EntryPath, node: NaiveNode<C>) {
        if self.is_directory(&path) {
            self.remove_subtree(&path);
        }
        self.paths.insert(path, node);
    }
}

impl<C: Clone> Default for NaiveTree<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Clone + PartialEq> PartialEq for NaiveTree<C> {
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.first_names(), other.first_names());
        self.paths.len() == other.paths.len()
            && self.entries().zip(other.entries()).all(|((path, node), (other_path, other_node))| {
                path == other_path
                    && node.metadata == other_node.metadata
                    && node.kind == other_node.kind
                    && ours[&node.inode] == theirs[&other_node.inode]
            })
    }
}

impl<C: Clone> NaiveTree<C> {
    /// Returns the first path of every inode.
    fn first_names(&self) -> HashMap<usize, &EntryPath> {
        self.paths.iter().rev().map(|(path, node)| (node.inode, path)).collect()
    }

    /// Returns all paths, except directories, whose inode number is smaller than `inode`.
    pub(super) fn paths_of_inodes_below(&self, inode: usize) -> BTreeSet<EntryPath> {
        let is_below = |node: &NaiveNode<C>| node.inode < inode && !is_directory(&node.kind);
        self.paths.iter().filter(|(_, node)| is_below(node)).map(|(path, _)| path.clone()).collect()
    }
}

/// The resolution of a path needs too many symbolic links.
#[derive(Debug)]
pub(super) struct TooManyLinks;

pub(super) fn is_directory<C>(kind: &NodeKind<C>) -> bool {
    matches!(kind, NodeKind::Directory)
}

fn parent(path: &EntryPath) -> Option<EntryPath> {
    path.split().map(|(parent, _)| parent)
}

/// Returns the directories above `path`, from its parent up to the root.
pub(super) fn directories_above(path: &EntryPath) -> impl Iterator<Item = EntryPath> {
    std::iter::successors(parent(path), parent)
}

#[cfg(test)]
mod tests_hard_links;
#[cfg(test)]
mod tests_invariants;
#[cfg(test)]
mod tests_rules;
