//! Applies a layer with the second, naive implementation: on top of the lower layers, and by itself in the form that overlay
//! mounts need.
//!
//! Entries are applied one by one, in the order of the archive, to two flat maps. In the merged map, paths follow symbolic
//! links as umoci follows them on disk. In the map of the layer itself, paths are literal. Every path that the layer adds is
//! recorded, because the whiteouts of a layer do not hide its own entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::layer_reader::is_bookkeeping;
use super::naive_tree::{ApplyError, NaiveNode, NaiveTree, directories_above, is_directory};
use crate::layer::{DeviceNumber, EntryKind, LayerEntry, NodeKind};
use crate::metadata::{Metadata, Timestamp};
use crate::path::EntryPath;

/// Extended attributes of an opaque directory: for mounts by root, and for mounts in user namespaces.
const OPAQUE_MARKS: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];

/// A layer in the form in which it is published, and the content of its record.
#[derive(Debug, Clone)]
pub struct NaiveLayer<C> {
    /// The tree of the layer.
    pub tree: NaiveTree<C>,
    /// Directories that the archive implies but does not contain as entries.
    pub implied: BTreeSet<EntryPath>,
    /// Hard links to files of lower layers.
    pub linked_below: BTreeSet<EntryPath>,
    /// Paths of the whiteouts in the archive.
    pub whiteouts: BTreeSet<EntryPath>,
    /// Directories with an opaque marker in the archive.
    pub opaque_directories: BTreeSet<EntryPath>,
}

impl<C: Clone> NaiveLayer<C> {
    /// Returns the published form of `layer`, whose entries are in the order of its archive, on top of `lower`.
    pub fn of(lower: &NaiveTree<C>, layer: &[LayerEntry<C>]) -> Result<Self, ApplyError> {
        Ok(apply_layer(lower, layer)?.layer)
    }
}

/// The result of applying a layer.
pub(super) struct AppliedLayer<C> {
    /// The tree of the lower layers and this one.
    pub(super) merged: NaiveTree<C>,
    pub(super) layer: NaiveLayer<C>,
    /// Symbolic links of lower layers in whose place the published layer has a directory, each with the paths that the layer
    /// changes through the link.
    pub(super) masked: BTreeMap<EntryPath, BTreeSet<EntryPath>>,
}

/// Applies `layer` to `lower`.
pub(super) fn apply_layer<C: Clone>(
    lower: &NaiveTree<C>,
    layer: &[LayerEntry<C>],
) -> Result<AppliedLayer<C>, ApplyError> {
    let mut application = LayerApplication::new(lower);
    for entry in layer {
        application.add(entry)?;
        application.resolve_pending(|pending| pending.target.name() == entry.path.name())?;
    }
    application.resolve_all_pending()?;
    Ok(application.finish())
}

struct LayerApplication<'l, C> {
    lower: &'l NaiveTree<C>,
    merged: NaiveTree<C>,
    own: NaiveTree<C>,
    /// Resolved paths of all entries that the layer adds, and of the directories above them.
    touched: BTreeSet<EntryPath>,
    /// Resolved paths at which the layer hides entries of lower layers.
    hidden: BTreeSet<EntryPath>,
    /// Resolved paths of directories in which the layer hides all entries of lower layers.
    emptied: BTreeSet<EntryPath>,
    implied: BTreeSet<EntryPath>,
    whiteouts: BTreeSet<EntryPath>,
    opaque_directories: BTreeSet<EntryPath>,
    masked: BTreeMap<EntryPath, BTreeSet<EntryPath>>,
    bookkeeping: BTreeMap<EntryPath, NaiveNode<C>>,
    pending: Vec<PendingHardLink>,
}

/// A hard link whose target has not been added yet. Until then, the trees contain a placeholder: a named pipe with a new
/// inode.
struct PendingHardLink {
    path: EntryPath,
    target: EntryPath,
    inode: usize,
}

impl<'l, C: Clone> LayerApplication<'l, C> {
    fn new(lower: &'l NaiveTree<C>) -> Self {
        let root = lower.get(&EntryPath::ROOT).expect("every tree has a root");
        let mut merged = lower.clone();
        let own = NaiveTree::with_root(root.metadata.clone(), merged.next_inode);
        merged.next_inode += 1;
        Self {
            lower,
            merged,
            own,
            touched: BTreeSet::new(),
            hidden: BTreeSet::new(),
            emptied: BTreeSet::new(),
            implied: BTreeSet::from([EntryPath::ROOT]),
            whiteouts: BTreeSet::new(),
            opaque_directories: BTreeSet::new(),
            masked: BTreeMap::new(),
            bookkeeping: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    fn add(&mut self, LayerEntry { path, kind }: &LayerEntry<C>) -> Result<(), ApplyError> {
        match kind {
            EntryKind::Whiteout => self.hide(path),
            EntryKind::Opaque => self.hide_all_in(path),
            EntryKind::Node(metadata, NodeKind::Directory) => self.add_directory(path, metadata)?,
            _ if path.is_root() => return Err(ApplyError::RootIsNoDirectory),
            EntryKind::Node(metadata, kind) => {
                let node = self.new_node(metadata.clone(), kind.clone());
                self.add_node(path, node)?;
            }
            EntryKind::HardLink(target) => {
                let node = match self.target_of(path, target)? {
                    Some(node) => node,
                    None => self.add_pending(path, target),
                };
                self.add_node(path, node)?;
            }
            EntryKind::Unpublished => {
                let (place, own_place) = self.create_parents(path)?;
                // An entry that cannot be published still hides the entry that it replaces.
                self.merged.remove_subtree(&place);
                self.own.remove_subtree(&own_place);
                self.hidden.insert(place);
                self.whiteouts.insert(path.clone());
            }
        }
        Ok(())
    }

    fn new_node(&mut self, metadata: Metadata, kind: NodeKind<C>) -> NaiveNode<C> {
        self.merged.next_inode += 1;
        NaiveNode { inode: self.merged.next_inode - 1, metadata, kind }
    }

    fn add_directory(&mut self, path: &EntryPath, metadata: &Metadata) -> Result<(), ApplyError> {
        let (place, own_place) = self.create_parents(path)?;
        self.touched.insert(place.clone());
        self.implied.remove(&own_place);
        let node = self.new_node(metadata.clone(), NodeKind::Directory);
        for (tree, place) in [(&mut self.merged, place), (&mut self.own, own_place)] {
            if tree.is_directory(&place) {
                tree.change(&place, |there| there.metadata = metadata.clone());
            } else {
                tree.put(place, node.clone());
            }
        }
        Ok(())
    }

    fn add_node(&mut self, path: &EntryPath, node: NaiveNode<C>) -> Result<(), ApplyError> {
        // Files of AUFS such as those below `.wh..wh.plnk` are not published, but hard links may refer to them.
        if is_bookkeeping(path) {
            self.bookkeeping.insert(path.clone(), node);
            return Ok(());
        }
        let (place, own_place) = self.create_parents(path)?;
        self.touched.insert(place.clone());
        if self.merged.is_directory(&place) {
            self.hidden.insert(place.clone());
        }
        self.merged.put(place, node.clone());
        self.own.put(own_place, node);
        Ok(())
    }

    /// Returns the resolved parent and path of `path` in both trees, after creating the missing directories above it.
    fn create_parents(&mut self, path: &EntryPath) -> Result<(EntryPath, EntryPath), ApplyError> {
        let mut created_there = Vec::new();
        let directory = self.merged.create_parent(path, &mut created_there)?;
        let place = directory.join(path.name());
        self.touched.insert(directory.clone());
        self.touched.extend(directories_above(&place));
        let mut created = Vec::new();
        self.own.next_inode = self.merged.next_inode;
        let own_directory = self.own.create_parent(path, &mut created)?;
        self.merged.next_inode = self.own.next_inode;
        for directory in created {
            if let Some(NodeKind::Symlink(_)) = self.merged.linked(&directory).map(|node| &node.kind) {
                self.masked.entry(directory.clone()).or_default();
            }
            self.implied.insert(directory);
        }
        if path.is_root() {
            return Ok((EntryPath::ROOT, EntryPath::ROOT));
        }
        if own_directory != directory {
            let mut links =
                std::iter::once(own_directory.clone()).chain(directories_above(&own_directory)).collect::<Vec<_>>();
            links.retain(|path| self.masked.contains_key(path));
            let link = links.pop().unwrap_or_else(|| own_directory.clone());
            let changed =
                created_there.into_iter().next().filter(|created| directory.is_in(created)).unwrap_or(directory);
            self.masked.entry(link).or_default().insert(changed);
        }
        Ok((place, own_directory.join(path.name())))
    }

    fn hide(&mut self, path: &EntryPath) {
        self.whiteouts.insert(path.clone());
        let Some((directory, name)) = path.split() else { return };
        let Ok(directory) = self.merged.resolve(&directory) else { return };
        let place = directory.join(name);
        let touched = &self.touched;
        // image-spec, layer.md, "Whiteouts": they apply to lower layers only, wherever they are in the archive.
        self.merged.remove(|path| path.is_in(&place) && !touched.contains(path));
        self.hidden.insert(place);
    }

    fn hide_all_in(&mut self, path: &EntryPath) {
        self.opaque_directories.insert(path.clone());
        let Ok(place) = self.merged.resolve(path) else { return };
        let touched = &self.touched;
        // image-spec, layer.md, "Opaque Whiteout": it hides the entries of lower layers only.
        self.merged.remove(|path| path.is_in(&place) && *path != place && !touched.contains(path));
        self.emptied.insert(place);
    }

    /// Returns the node to which a hard link refers at this point of the archive.
    fn target_of(&self, path: &EntryPath, target: &EntryPath) -> Result<Option<NaiveNode<C>>, ApplyError> {
        // Next come the lower layers as they were before the whiteouts of this layer.
        match self.target_in_layer(path, target)? {
            Some(node) => Ok(Some(node)),
            None => find_target(self.lower, path, target),
        }
    }

    fn target_in_layer(&self, path: &EntryPath, target: &EntryPath) -> Result<Option<NaiveNode<C>>, ApplyError> {
        match self.bookkeeping.get(target) {
            Some(node) => Ok(Some(node.clone())),
            None => find_target(&self.merged, path, target),
        }
    }

    fn add_pending(&mut self, path: &EntryPath, target: &EntryPath) -> NaiveNode<C> {
        let node = self.new_node(Metadata::of_implied_directory(), NodeKind::Fifo);
        self.pending.push(PendingHardLink { path: path.clone(), target: target.clone(), inode: node.inode });
        node
    }

    /// Replaces pending hard links, the last one first, by the nodes that their targets have now.
    fn resolve_pending(&mut self, is_wanted: impl Fn(&PendingHardLink) -> bool) -> Result<(), ApplyError> {
        for index in (0..self.pending.len()).rev() {
            let PendingHardLink { path, target, inode } = &self.pending[index];
            if is_wanted(&self.pending[index])
                && let Some(node) = self.target_in_layer(path, target)?
                && node.inode != *inode
            {
                self.merged.replace_inode(*inode, &node);
                self.own.replace_inode(*inode, &node);
                self.bookkeeping.values_mut().filter(|kept| kept.inode == *inode).for_each(|kept| *kept = node.clone());
                self.pending.remove(index);
            }
        }
        Ok(())
    }

    fn resolve_all_pending(&mut self) -> Result<(), ApplyError> {
        loop {
            let before = self.pending.len();
            self.resolve_pending(|_| true)?;
            if self.pending.len() == before {
                break;
            }
        }
        for PendingHardLink { path, target, inode } in &self.pending {
            if self.merged.entries().any(|(_, node)| node.inode == *inode) {
                return Err(ApplyError::MissingHardLinkTarget { path: path.clone(), target: target.clone() });
            }
        }
        Ok(())
    }

    fn finish(mut self) -> AppliedLayer<C> {
        self.own.next_inode = self.merged.next_inode;
        let own = &self.own;
        self.implied.retain(|path| own.is_directory(path));
        let implied: Vec<EntryPath> = self.implied.iter().filter(|path| !path.is_root()).cloned().collect();
        implied.iter().for_each(|path| self.copy_merged_attributes(path));
        // In this order, a directory comes before its entries. If the directory is hidden, its entries are hidden with it.
        for path in self.hidden.clone() {
            let directory = directories_above(&path).next().unwrap_or_default();
            if directories_above(&path).all(|directory| !self.emptied.contains(&directory))
                && self.lower.is_directory(&directory)
            {
                self.mark_in(&directory, &path);
            }
        }
        for directory in self.emptied.clone() {
            if self.lower.is_directory(&directory) || self.own.is_directory(&directory) {
                self.mark_in(&directory, &directory);
                if directory.is_root() {
                    self.mark_lower_entries_of_root();
                }
            }
        }
        let linked_below = self.own.paths_of_inodes_below(self.lower.next_inode);
        let Self { own, implied, whiteouts, opaque_directories, .. } = self;
        let layer = NaiveLayer { tree: own, implied, linked_below, whiteouts, opaque_directories };
        AppliedLayer { merged: self.merged, layer, masked: self.masked }
    }

    /// Sets the attributes of an implied directory to those that it has in the merged tree.
    fn copy_merged_attributes(&mut self, path: &EntryPath) {
        let there = self.merged.get(path).filter(|node| is_directory(&node.kind));
        let metadata = there.map_or_else(Metadata::of_implied_directory, |node| node.metadata.clone());
        self.own.change(path, |node| node.metadata = metadata);
    }

    fn mark_lower_entries_of_root(&mut self) {
        let at_the_root = |path: &&EntryPath| path.components().count() == 1;
        let paths: Vec<EntryPath> = self.lower.entries().map(|(path, _)| path).filter(at_the_root).cloned().collect();
        paths.into_iter().for_each(|path| self.mark_in(&EntryPath::ROOT, &path));
    }

    /// Marks `path`, which is `directory` or an entry in `directory`. Does nothing if the mark would have no effect, or is
    /// not needed.
    fn mark_in(&mut self, directory: &EntryPath, path: &EntryPath) {
        let with_above = || std::iter::once(directory.clone()).chain(directories_above(directory));
        let is_blocked = with_above().any(|path| self.own.get(&path).is_some_and(|node| !is_directory(&node.kind)));
        let is_hidden = with_above().any(|path| !path.is_root() && self.is_opaque(&path));
        if is_blocked || is_hidden {
            return;
        }
        let mut created = Vec::new();
        self.own.create_directories(directory, &mut created);
        created.iter().for_each(|path| self.copy_merged_attributes(path));
        self.implied.extend(created);
        self.mark(path);
    }

    /// Adds a mark for `path`: an existing directory becomes opaque, and a missing entry becomes a whiteout. Any other entry
    /// needs no mark, because it hides lower entries itself.
    fn mark(&mut self, path: &EntryPath) {
        match self.own.get(path).map(|node| is_directory(&node.kind)) {
            Some(true) => self.own.change(path, |node| {
                let xattrs = Arc::make_mut(node.metadata.xattrs.get_or_insert_default());
                xattrs.extend(OPAQUE_MARKS.map(|name| (name.into(), b"y".as_slice().into())));
            }),
            Some(false) => {}
            None => put_whiteout(&mut self.own, path),
        }
    }

    fn is_opaque(&self, path: &EntryPath) -> bool {
        is_opaque(&self.own, path)
    }
}

/// Adds a whiteout to a layer in overlay form.
pub(super) fn put_whiteout<C: Clone>(layer: &mut NaiveTree<C>, path: &EntryPath) {
    let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None };
    let number = DeviceNumber { major: 0, minor: 0 };
    layer.put_new(path.clone(), metadata, NodeKind::CharacterDevice(number));
}

/// Returns whether a layer in overlay form has an opaque directory at a path.
pub(super) fn is_opaque<C: Clone>(layer: &NaiveTree<C>, path: &EntryPath) -> bool {
    let xattrs = layer.get(path).filter(|node| is_directory(&node.kind)).and_then(|node| node.metadata.xattrs.as_ref());
    xattrs.is_some_and(|xattrs| OPAQUE_MARKS.iter().any(|&name| xattrs.contains_key(name)))
}

/// Returns the node at the target of a hard link, following symbolic links in the directories of the target.
fn find_target<C: Clone>(
    tree: &NaiveTree<C>,
    path: &EntryPath,
    target: &EntryPath,
) -> Result<Option<NaiveNode<C>>, ApplyError> {
    let node = tree.look_up(target).map_err(|_| ApplyError::TooManyLinks(path.clone()))?;
    if node.is_some_and(|node| is_directory(&node.kind)) {
        return Err(ApplyError::HardLinkToDirectory { path: path.clone(), target: target.clone() });
    }
    Ok(node.cloned())
}
