//! File systems as flat maps from path to node, to judge what the rest of the program makes of layers.
//!
//! Paths are followed name by name through that map, and removing a directory is a scan over all of it. Nothing is shared with
//! `tree`, which obeys the same rules in another way.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::naive_layer::lay;
use crate::layer::{LayerEntry, NodeKind};
use crate::metadata::Metadata;
use crate::path::EntryPath;

/// Maximum number of symbolic links that one path may lead through, as in umoci.
const MAXIMUM_LINKS: usize = 255;

/// Bytes of the longest name that Linux and CVMFS hold.
const LONGEST_NAME: usize = 255;

/// Why a layer cannot be applied to a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// No file system here has two names for a directory.
    #[error("hard link '{path}' leads to '{target}', which is a directory")]
    HardLinkToDirectory {
        /// Where the link was to be.
        path: EntryPath,
        /// What it leads to.
        target: EntryPath,
    },
    /// Neither the layer nor anything below it has the target.
    #[error("hard link '{path}' leads to '{target}', which is neither in its layer nor below it")]
    MissingHardLinkTarget {
        /// Where the link was to be.
        path: EntryPath,
        /// What it leads to.
        target: EntryPath,
    },
    /// The symbolic links on the way to an entry, or to the target of a hard link, lead in a circle or are too many.
    #[error("entry '{0}' leads through more than {MAXIMUM_LINKS} symbolic links")]
    TooManyLinks(EntryPath),
    /// A symbolic link on the way to an entry leads to a missing directory that cannot be created.
    #[error("entry '{0}' leads through a symbolic link to a directory whose name is too long or has a NUL byte in it")]
    UnusableName(EntryPath),
    /// The entry of the root is a file, a link or a device.
    #[error("the layer has something other than a directory at '/'")]
    RootIsNoDirectory,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NaiveNode<C> {
    /// Names the node: the same for two paths exactly when they are hard links to each other.
    pub inode: usize,
    /// Permissions, owner, time and extended attributes.
    pub metadata: Metadata,
    /// What kind of thing it is.
    pub kind: NodeKind<C>,
}

/// The file system that a stack of layers gives, as a flat map from path to what is there.
///
/// The root is always in it, and the parent of every path is in it and a directory. Two trees are equal when every path has the
/// same metadata and kind in both, and the same paths are hard links to each other; inode numbers may differ.
#[derive(Debug, Clone)]
pub struct NaiveTree<C> {
    paths: BTreeMap<EntryPath, NaiveNode<C>>,
    pub(super) next_inode: usize,
}

impl<C: Clone> NaiveTree<C> {
    /// Returns the tree of no layer at all: the root alone.
    pub fn new() -> Self {
        Self::with_root(Metadata::of_implied_directory(), 0)
    }

    /// Returns a tree of the root alone, whose inode has the number that is given.
    pub(super) fn with_root(metadata: Metadata, inode: usize) -> Self {
        let root = NaiveNode { inode, metadata, kind: NodeKind::Directory };
        Self { paths: BTreeMap::from([(EntryPath::ROOT, root)]), next_inode: inode + 1 }
    }

    /// Returns every path with what is there, in the order of [`EntryPath`], the root first.
    pub fn entries(&self) -> impl Iterator<Item = (&EntryPath, &NaiveNode<C>)> {
        self.paths.iter()
    }

    /// Returns what is at `path` itself: no link is followed.
    pub fn get(&self, path: &EntryPath) -> Option<&NaiveNode<C>> {
        self.paths.get(path)
    }

    /// Applies `layer`, whose entries are in the order of its archive, to this tree.
    ///
    /// After an error the tree is as it was.
    pub fn apply(&mut self, layer: &[LayerEntry<C>]) -> Result<(), ApplyError> {
        *self = lay(self, layer)?.merged;
        Ok(())
    }

    /// Returns the node that a hard link's target stands for, following links in the directories that it lies in.
    pub(super) fn linked(&self, target: &EntryPath) -> Option<&NaiveNode<C>> {
        self.look_up(target).ok().flatten()
    }

    /// Returns what is at `path`, following links in the directories that it lies in.
    pub(super) fn look_up(&self, path: &EntryPath) -> Result<Option<&NaiveNode<C>>, TooManyLinks> {
        let Some((parent, name)) = path.split() else { return Ok(self.paths.get(path)) };
        Ok(self.paths.get(&self.resolve(&parent)?.join(name)))
    }

    /// Returns the directory that `path` leads to, following links inside the root.
    pub(super) fn directory(&self, path: &EntryPath) -> Option<EntryPath> {
        self.resolve(path).ok().filter(|place| self.is_directory(place))
    }

    /// Returns where `path` leads to when all links are followed; what is missing is taken as it stands.
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
                if links > MAXIMUM_LINKS {
                    return Err(TooManyLinks);
                }
                place = if target.starts_with(b"/") { EntryPath::ROOT } else { parent(&place).unwrap_or_default() };
                target.split(|&b| b == b'/').rev().for_each(|name| ahead.push_front(name.to_vec()));
            }
        }
        Ok(place)
    }

    /// Returns where the directory of `path` really is, after creating what is missing; each directory that is created is added
    /// to `created`.
    pub(super) fn make_parent(
        &mut self,
        path: &EntryPath,
        created: &mut Vec<EntryPath>,
    ) -> Result<EntryPath, ApplyError> {
        let parent = parent(path).unwrap_or_default();
        let place = self.resolve(&parent).map_err(|_| ApplyError::TooManyLinks(path.clone()))?;
        let is_unusable = |name: &[u8]| name.len() > LONGEST_NAME || name.contains(&0);
        if place.components().any(is_unusable) {
            return Err(ApplyError::UnusableName(path.clone()));
        }
        self.make(&place, created);
        Ok(place)
    }

    /// Creates the directory at `path` and those above it, where there are none.
    pub(super) fn make(&mut self, path: &EntryPath, created: &mut Vec<EntryPath>) {
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

    /// Removes what is at `path` and below.
    pub(super) fn take_out(&mut self, path: &EntryPath) {
        self.paths.retain(|other, _| !other.is_in(path));
    }

    /// Removes all paths for which `is_gone`.
    pub(super) fn remove(&mut self, is_gone: impl Fn(&EntryPath) -> bool) {
        self.paths.retain(|path, _| !is_gone(path));
    }

    /// Changes what is at `path`, if anything is.
    pub(super) fn change(&mut self, path: &EntryPath, change: impl FnOnce(&mut NaiveNode<C>)) {
        if let Some(node) = self.paths.get_mut(path) {
            change(node);
        }
    }

    /// Gives every path of the inode `old` another node.
    pub(super) fn replace_inode(&mut self, old: usize, new: &NaiveNode<C>) {
        self.paths.values_mut().filter(|node| node.inode == old).for_each(|node| *node = new.clone());
    }

    /// Puts a node that there has not been yet at `path`, in place of whatever is there.
    pub(super) fn put_new(&mut self, path: EntryPath, metadata: Metadata, kind: NodeKind<C>) {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.put(path, NaiveNode { inode, metadata, kind });
    }

    /// Puts `node` at `path`, in place of whatever is there and below.
    pub(super) fn put(&mut self, path: EntryPath, node: NaiveNode<C>) {
        if self.is_directory(&path) {
            self.take_out(&path);
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
    /// Returns the first path of every node, by inode.
    fn first_names(&self) -> HashMap<usize, &EntryPath> {
        self.paths.iter().rev().map(|(path, node)| (node.inode, path)).collect()
    }

    /// Returns the paths of everything but directories whose inode has a smaller number.
    pub(super) fn paths_of_inodes_below(&self, inode: usize) -> BTreeSet<EntryPath> {
        let is_below = |node: &NaiveNode<C>| node.inode < inode && !is_directory(&node.kind);
        self.paths.iter().filter(|(_, node)| is_below(node)).map(|(path, _)| path.clone()).collect()
    }
}

/// A path leads through too many links.
#[derive(Debug)]
pub(super) struct TooManyLinks;

pub(super) fn is_directory<C>(kind: &NodeKind<C>) -> bool {
    matches!(kind, NodeKind::Directory)
}

fn parent(path: &EntryPath) -> Option<EntryPath> {
    path.split().map(|(parent, _)| parent)
}

/// Returns the directories that `path` lies in, from its own up to the root.
pub(super) fn directories_above(path: &EntryPath) -> impl Iterator<Item = EntryPath> {
    std::iter::successors(parent(path), parent)
}

#[cfg(test)]
mod tests_hard_links;
#[cfg(test)]
mod tests_invariants;
#[cfg(test)]
mod tests_rules;
