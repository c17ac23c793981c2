//! Lays layers over each other a second time, naively, to judge what the rest of the program makes of them.
//!
//! A file system is a flat map from path to node here; paths are followed name by name through that map, and removing a
//! folder is a scan over all of it. Nothing is shared with `tree`, which obeys the same rules in another way.
//!
//! A layer is laid in three rounds: removals, all of them looked up in what was there before any; then nodes, in the
//! order of the archive; then hard links, whose targets may lie anywhere in the archive or in lower layers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use crate::layer::{EntryKind, EntryPath, LayerEntry, NodeKind};
use crate::metadata::Metadata;

/// How many symbolic links one path may lead through, as in Linux.
const MOST_LINKS: usize = 40;

/// The longest name, in bytes, that Linux and CVMFS hold.
const LONGEST_NAME: usize = 255;

/// Why a layer cannot be laid over a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// No file system here has two names for a folder.
    #[error("hard link '{path}' leads to '{target}', which is a folder")]
    HardLinkToFolder {
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
    /// The symbolic links in the folders of an entry, or of the target of a hard link, go round in circles.
    #[error("entry '{0}' leads through more than {MOST_LINKS} symbolic links")]
    TooManyLinks(EntryPath),
    /// A symbolic link in the folders of an entry leads to a missing folder that cannot be made.
    #[error("entry '{0}' leads through a symbolic link to a folder whose name is too long or has a NUL byte in it")]
    UnusableName(EntryPath),
    /// The entry of the root is a file, a link or a device.
    #[error("the layer has something other than a folder at '/'")]
    RootIsNoFolder,
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
/// The root is always in it, and the parent of every path is in it and a folder. Two trees are equal when every path
/// has the same metadata and kind in both, and the same paths are hard links to each other; inode numbers may differ.
#[derive(Debug, Clone)]
pub struct NaiveTree<C> {
    paths: BTreeMap<EntryPath, NaiveNode<C>>,
    next_inode: usize,
    /// Nodes with smaller numbers are those of the layers below, where this tree is a layer by itself.
    first_inode: usize,
    /// The attributes that folders take which nobody names, where they are not those of a new folder.
    inherited: BTreeMap<EntryPath, Metadata>,
    /// Folders that were made because something lies in them, and were not named since.
    pub(super) implied: BTreeSet<EntryPath>,
    /// Hard links to nodes of the layers below, by the words of their layer.
    pub(super) linked_below: BTreeSet<EntryPath>,
}

impl<C: Clone> NaiveTree<C> {
    /// Returns the tree of no layer at all: the root alone.
    pub fn new() -> Self {
        Self::with_root(Metadata::of_implied_folder(), 0, BTreeMap::new())
    }

    fn with_root(root: Metadata, first_inode: usize, inherited: BTreeMap<EntryPath, Metadata>) -> Self {
        let (paths, implied, linked_below) = Default::default();
        let mut tree = Self { paths, next_inode: first_inode, first_inode, inherited, implied, linked_below };
        tree.put_new(EntryPath::ROOT, root, NodeKind::Directory);
        tree
    }

    /// Returns what `layer` itself brings, without anything of this tree that it is laid over.
    ///
    /// Folders that it does not name have the attributes that they have in this tree, and hard links into this tree its
    /// nodes.
    pub(super) fn layer_alone(&self, layer: &Statements<C>) -> Result<Self, ApplyError> {
        let mut below = self.clone();
        below.remove(layer);
        let folders = below.paths.into_iter().filter(|(_, node)| is_folder(&node.kind));
        let inherited = folders.map(|(path, node)| (path, node.metadata)).collect();
        let mut alone = Self::with_root(self.paths[&EntryPath::ROOT].metadata.clone(), self.next_inode, inherited);
        alone.add(layer)?;
        alone.link(layer, self)?;
        Ok(alone)
    }

    /// Returns every path with what is there, sorted by the bytes of the path, the root first.
    pub fn entries(&self) -> impl Iterator<Item = (&EntryPath, &NaiveNode<C>)> {
        self.paths.iter()
    }

    /// Returns what is at `path` itself: no link is followed.
    pub fn get(&self, path: &EntryPath) -> Option<&NaiveNode<C>> {
        self.paths.get(path)
    }

    /// Lays `layer`, whose entries are in the order of its archive, over this tree.
    ///
    /// After an error the tree is as it was.
    pub fn apply(&mut self, layer: &[LayerEntry<C>]) -> Result<(), ApplyError> {
        let layer = Statements::of(layer)?;
        let mut upper = self.clone();
        upper.remove(&layer);
        upper.add(&layer)?;
        upper.link(&layer, self)?;
        *self = upper;
        Ok(())
    }

    /// Returns the node that a hard link's target stands for, following links in the folders that it lies in.
    pub(super) fn linked(&self, target: &EntryPath) -> Option<&NaiveNode<C>> {
        let (folder, name) = target.split()?;
        self.paths.get(&self.folder(&folder)?.join(name))
    }

    /// Returns the folder that `path` leads to, following links inside the root.
    pub(super) fn folder(&self, path: &EntryPath) -> Option<EntryPath> {
        self.resolve(path, &HashSet::new()).ok().flatten()
    }

    /// Removes what is at `path` and below.
    pub(super) fn take_out(&mut self, path: &EntryPath) {
        self.paths.retain(|other, _| !other.is_in(path));
    }

    /// Changes what is at `path`, if anything is.
    pub(super) fn change(&mut self, path: &EntryPath, change: impl FnOnce(&mut NaiveNode<C>)) {
        if let Some(node) = self.paths.get_mut(path) {
            change(node);
        }
    }

    /// Makes a folder that nobody names.
    pub(super) fn imply(&mut self, path: EntryPath) {
        let metadata = self.inherited.get(&path).cloned().unwrap_or_else(Metadata::of_implied_folder);
        self.put_new(path.clone(), metadata, NodeKind::Directory);
        self.implied.insert(path);
    }

    /// Removes what the layer's whiteouts and opaque markers hide.
    fn remove(&mut self, layer: &Statements<C>) {
        let hidden: HashSet<EntryPath> =
            layer.whiteouts.iter().filter_map(|path| self.hidden_by(path, layer)).collect();
        let emptied: HashSet<EntryPath> = layer
            .opaque_folders
            .iter()
            .filter_map(|folder| self.resolve(folder, &layer.named_folders).ok().flatten())
            .collect();
        self.paths.retain(|path, _| {
            let is_gone = hidden.contains(path)
                || folders_above(path).any(|folder| hidden.contains(&folder) || emptied.contains(&folder));
            !is_gone
        });
    }

    /// Returns where the path that a whiteout names really is, if the folder that it lies in is there.
    fn hidden_by(&self, whiteout: &EntryPath, layer: &Statements<C>) -> Option<EntryPath> {
        let (folder, name) = whiteout.split()?;
        let folder = self.resolve(&folder, &layer.named_folders).ok()??;
        Some(folder.join(name))
    }

    /// Puts the layer's own nodes in their places.
    fn add(&mut self, layer: &Statements<C>) -> Result<(), ApplyError> {
        for &(path, metadata, kind) in &layer.nodes {
            let place = self.find_or_make_place(path, layer)?;
            match self.paths.get_mut(&place) {
                Some(there) if is_folder(&there.kind) && is_folder(kind) => {
                    there.metadata = metadata.clone();
                    self.implied.remove(&place);
                }
                _ => self.put_new(place, metadata.clone(), kind.clone()),
            }
        }
        Ok(())
    }

    /// Gives the layer's hard links the nodes of their targets, in rounds, until none is left.
    fn link(&mut self, layer: &Statements<C>, lower: &Self) -> Result<(), ApplyError> {
        let mut links = layer.links.clone();
        while !links.is_empty() {
            let before = links.len();
            links = self.link_one_round(links, layer, lower)?;
            if links.len() == before {
                // Some links may wait for each other, so the first that waits does so no longer.
                let undone = links.iter().map(|link| link.path).collect();
                match links.iter().position(|link| link.waits_for_one_of(&undone)) {
                    Some(first) if self.link_one(links[first], layer, lower)? => links.remove(first),
                    _ => return Err(links[0].without_target()),
                };
            }
        }
        Ok(())
    }

    /// Makes those of `links` that do not wait for others and whose targets are there. Returns the rest.
    fn link_one_round<'l>(
        &mut self,
        links: Vec<HardLink<'l>>,
        layer: &Statements<C>,
        lower: &Self,
    ) -> Result<Vec<HardLink<'l>>, ApplyError> {
        let mut undone = links.iter().map(|link| link.path).collect();
        let mut rest = Vec::new();
        for link in links {
            if !link.waits_for_one_of(&undone) && self.link_one(link, layer, lower)? {
                undone.remove(link.path);
            } else {
                rest.push(link);
            }
        }
        Ok(rest)
    }

    /// Puts the target's node at the link's path too. Returns whether there is such a target, here or in `lower`.
    fn link_one(&mut self, link: HardLink, layer: &Statements<C>, lower: &Self) -> Result<bool, ApplyError> {
        let node = match self.target_of(link)? {
            Some(node) => node,
            None => match lower.target_of(link)? {
                Some(node) => node,
                None => return Ok(false),
            },
        };
        if is_folder(&node.kind) {
            return Err(link.to_folder());
        }
        if node.inode < self.first_inode {
            self.linked_below.insert(link.path.clone());
        }
        let place = self.find_or_make_place(link.path, layer)?;
        if self.paths.get(&place).is_none_or(|there| there.inode != node.inode) {
            self.put(place, node);
        }
        Ok(true)
    }

    /// Returns what is at the target of `link`, following links in the folders that it lies in.
    fn target_of(&self, link: HardLink) -> Result<Option<NaiveNode<C>>, ApplyError> {
        let place = match link.target.split() {
            None => Some(EntryPath::ROOT),
            Some((folder, name)) => {
                let folder = self.resolve(&folder, &HashSet::new());
                folder.map_err(|_| ApplyError::TooManyLinks(link.path.clone()))?.map(|folder| folder.join(name))
            }
        };
        Ok(place.and_then(|place| self.paths.get(&place).cloned()))
    }

    /// Returns the folder that `path` leads to, if there is one. Links at the paths in `not_followed` lead nowhere.
    pub(super) fn resolve(
        &self,
        path: &EntryPath,
        not_followed: &HashSet<&EntryPath>,
    ) -> Result<Option<EntryPath>, TooManyLinks> {
        let mut walk = Walk::along(path, not_followed);
        Ok(match walk.go_on(self)? {
            Stop::AtTheEnd => Some(walk.folder),
            Stop::NoFolder(_) => None,
        })
    }

    /// Returns where an entry's path really is, after making folders of whatever is on the way and is none.
    fn find_or_make_place(&mut self, path: &EntryPath, layer: &Statements<C>) -> Result<EntryPath, ApplyError> {
        let Some((folder, name)) = path.split() else {
            return Ok(EntryPath::ROOT);
        };
        let mut walk = Walk::along(&folder, &layer.named_folders);
        loop {
            match walk.go_on(self).map_err(|_| ApplyError::TooManyLinks(path.clone()))? {
                Stop::AtTheEnd => return Ok(walk.folder.join(name)),
                Stop::NoFolder(missing) if missing.len() > LONGEST_NAME || missing.contains(&0) => {
                    return Err(ApplyError::UnusableName(path.clone()));
                }
                Stop::NoFolder(missing) => {
                    walk.folder = walk.folder.join(&missing);
                    self.imply(walk.folder.clone());
                }
            }
        }
    }

    /// Puts a node that there has not been yet at `path`, in place of whatever is there.
    pub(super) fn put_new(&mut self, path: EntryPath, metadata: Metadata, kind: NodeKind<C>) {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.put(path, NaiveNode { inode, metadata, kind });
    }

    /// Puts `node` at `path`, in place of whatever is there and below.
    fn put(&mut self, path: EntryPath, node: NaiveNode<C>) {
        if self.paths.get(&path).is_some_and(|there| is_folder(&there.kind)) {
            self.paths.retain(|other, _| folders_above(other).all(|folder| folder != path));
        }
        self.implied.remove(&path);
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
}

/// What a layer says, with one statement a path.
pub(super) struct Statements<'l, C> {
    pub(super) whiteouts: Vec<&'l EntryPath>,
    pub(super) opaque_folders: Vec<&'l EntryPath>,
    nodes: Vec<(&'l EntryPath, &'l Metadata, &'l NodeKind<C>)>,
    links: Vec<HardLink<'l>>,
    /// Where the layer says itself that there is a folder: a symbolic link there is replaced, not followed.
    pub(super) named_folders: HashSet<&'l EntryPath>,
}

impl<'l, C> Statements<'l, C> {
    /// Sorts the entries of a layer by what they do. Of several nodes and hard links at one path the last counts.
    pub(super) fn of(layer: &'l [LayerEntry<C>]) -> Result<Self, ApplyError> {
        let is_mark = |kind: &EntryKind<C>| matches!(kind, EntryKind::Whiteout | EntryKind::Opaque);
        let positions = layer.iter().enumerate().filter(|(_, entry)| !is_mark(&entry.kind));
        let last: HashMap<&EntryPath, usize> = positions.map(|(position, entry)| (&entry.path, position)).collect();

        let (mut whiteouts, mut opaque_folders, mut nodes, mut links) = (vec![], vec![], vec![], vec![]);
        for (position, LayerEntry { path, kind }) in layer.iter().enumerate() {
            let counts = last.get(path) == Some(&position);
            match kind {
                EntryKind::Whiteout => whiteouts.push(path),
                EntryKind::Opaque => opaque_folders.push(path),
                EntryKind::Node(metadata, kind) if counts => nodes.push((path, metadata, kind)),
                EntryKind::HardLink(target) if counts => links.push(HardLink { path, target }),
                EntryKind::Node(..) | EntryKind::HardLink(_) => {}
            }
        }
        let root_is_folder = nodes.iter().all(|(path, _, kind)| !path.is_root() || is_folder(kind))
            && links.iter().all(|link| !link.path.is_root());
        if !root_is_folder {
            return Err(ApplyError::RootIsNoFolder);
        }
        let named_folders = nodes.iter().filter(|(_, _, kind)| is_folder(kind)).map(|(path, ..)| *path).collect();
        Ok(Self { whiteouts, opaque_folders, nodes, links, named_folders })
    }
}

/// A path that is to be another name for what is at its target.
#[derive(Clone, Copy)]
struct HardLink<'l> {
    path: &'l EntryPath,
    target: &'l EntryPath,
}

impl HardLink<'_> {
    /// Tells whether the target is itself a hard link that is still to be made.
    fn waits_for_one_of(self, undone: &HashSet<&EntryPath>) -> bool {
        self.target != self.path && undone.contains(self.target)
    }

    fn without_target(self) -> ApplyError {
        ApplyError::MissingHardLinkTarget { path: self.path.clone(), target: self.target.clone() }
    }

    fn to_folder(self) -> ApplyError {
        ApplyError::HardLinkToFolder { path: self.path.clone(), target: self.target.clone() }
    }
}

/// A walk from the root along a path, name by name and through symbolic links.
struct Walk {
    /// Where the walk has come to: a path without links in it.
    folder: EntryPath,
    ahead: VecDeque<Step>,
    links: usize,
}

/// One name of a path to walk along.
struct Step {
    name: Vec<u8>,
    follows_link: bool,
}

/// Where a walk stops.
enum Stop {
    /// The whole path leads to a folder.
    AtTheEnd,
    /// There is no folder of this name to go into. The walk may go on in another folder.
    NoFolder(Vec<u8>),
}

/// A walk led through too many links.
pub(super) struct TooManyLinks;

impl Walk {
    /// Returns a walk that starts at the root. It follows no link at the paths in `not_followed`.
    fn along(path: &EntryPath, not_followed: &HashSet<&EntryPath>) -> Self {
        let mut prefix = EntryPath::ROOT;
        let mut ahead = VecDeque::new();
        for name in path.components() {
            prefix = prefix.join(name);
            ahead.push_back(Step { name: name.to_vec(), follows_link: !not_followed.contains(&prefix) });
        }
        Self { folder: EntryPath::ROOT, ahead, links: 0 }
    }

    /// Walks on as far as there are folders.
    fn go_on<C>(&mut self, tree: &NaiveTree<C>) -> Result<Stop, TooManyLinks> {
        while let Some(step) = self.ahead.pop_front() {
            match step.name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    self.folder = self.folder.split().map_or(EntryPath::ROOT, |(above, _)| above);
                    continue;
                }
                _ => {}
            }
            let next = self.folder.join(&step.name);
            match tree.paths.get(&next).map(|node| &node.kind) {
                Some(NodeKind::Directory) => self.folder = next,
                Some(NodeKind::Symlink(target)) if step.follows_link => self.follow(target)?,
                _ => return Ok(Stop::NoFolder(step.name)),
            }
        }
        Ok(Stop::AtTheEnd)
    }

    /// Puts the names of a link's target before those that are still ahead.
    fn follow(&mut self, target: &[u8]) -> Result<(), TooManyLinks> {
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(TooManyLinks);
        }
        if target.starts_with(b"/") {
            self.folder = EntryPath::ROOT;
        }
        for name in target.split(|&b| b == b'/').rev() {
            self.ahead.push_front(Step { name: name.to_vec(), follows_link: true });
        }
        Ok(())
    }
}

pub(super) fn is_folder<C>(kind: &NodeKind<C>) -> bool {
    matches!(kind, NodeKind::Directory)
}

/// Returns the folders that `path` lies in, from its own folder up to the root.
pub(super) fn folders_above(path: &EntryPath) -> impl Iterator<Item = EntryPath> {
    let parent = |path: &EntryPath| path.split().map(|(folder, _)| folder);
    std::iter::successors(parent(path), parent)
}

#[cfg(test)]
mod tests_hard_links;
#[cfg(test)]
mod tests_invariants;
#[cfg(test)]
mod tests_rules;
