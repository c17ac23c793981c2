//! Applies one layer to the tree below it, by the OCI rules for change sets (image-spec, layer.md).
//!
//! Entries are applied one by one in the order of the archive, as umoci does it on disk, so that each sees what the ones before it
//! left: a path is resolved through the symbolic links that are there at that point, and a hard link takes what is at its target
//! at that point. Two things do not depend on the order. A whiteout hides what lower layers brought and never what its own layer
//! brings, wherever it stands. And a hard link whose target is not there takes what the lower layers had there before any
//! whiteout of this layer, else what a later entry of the layer puts there.
//!
//! Where umoci refuses an archive: what stands in the way of an implied directory is replaced. A directory's attributes never
//! change by what happens inside it.
//!
//! The same pass builds the layer by itself ([`LayerForm`]), in which paths are taken literally.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::layer_form::{LayerForm, OwnLayer};
use super::node::{Directory, Leaf, LeafKind, Node};
use super::walk::{MAX_SYMLINKS, ResolvedPath, TooManyLinks, look_up, names, path_of, resolve};
use crate::layer::{EntryKind, LayerEntry, NodeKind, is_bookkeeping};
use crate::metadata::Metadata;
use crate::object::Content;
use crate::path::EntryPath;

/// Why a layer cannot be applied to the tree below it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Directories cannot be linked.
    #[error("hard link {} names the directory {}", path.shown(), target.shown())]
    HardLinkToDirectory {
        /// The link.
        path: EntryPath,
        /// What it names.
        target: EntryPath,
    },
    /// The target is neither in the layer nor below it.
    #[error("hard link {} names {}, which neither this layer nor one below it has", path.shown(), target.shown())]
    MissingHardLinkTarget {
        /// The link.
        path: EntryPath,
        /// What it names.
        target: EntryPath,
    },
    /// The symbolic links on the way to an entry, or to the target of a hard link, lead in a circle or are too many.
    #[error("more than {MAX_SYMLINKS} symbolic links on the way to {}", .0.shown())]
    TooManyLinks(EntryPath),
    /// Symbolic links lead deeper than any path may.
    #[error("{} would lie below more than {MAX_DEPTH} directories", .0.shown())]
    TooDeep(EntryPath),
    /// A symbolic link on the way has a target that cannot be the name of a directory.
    #[error("a symbolic link on the way to {} has a name in its target that is longer than 255 bytes or has a NUL", .0.shown())]
    UnusableName(EntryPath),
    /// The root of an image is a directory.
    #[error("the layer has something other than a directory at the root")]
    RootIsNoDirectory,
}

/// A layer that was applied.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The lower layers with this one on top.
    pub tree: Arc<Directory>,
    /// The layer by itself.
    pub form: LayerForm,
    /// Symbolic links that the layer by itself has a directory in place of, though no entry of the layer names it, and the places in
    /// the tree that the layer changes through each of them.
    pub masked_links: BTreeMap<EntryPath, BTreeSet<EntryPath>>,
    /// Whether [`super::layer_entries`] of the form says all that the archive does, above any lower layers.
    pub can_be_read_back: bool,
}

/// Maximum number of directories that lie in one another: as many as an archive may name, wherever symbolic links lead.
pub(super) const MAX_DEPTH: usize = 1_000;

/// Applies the entries of one layer, in the order of its archive, to `lower`.
pub fn apply(lower: &Arc<Directory>, entries: &[LayerEntry<Content>]) -> Result<Applied, ApplyError> {
    let mut application = Application::new(lower, entries);
    // Archives have the entries of one directory in a row, so that it is looked up once for all of them.
    let is_node = |entry: &LayerEntry<Content>| matches!(entry.kind, EntryKind::Node(..));
    for run in entries.chunk_by(|one, other| is_node(one) && is_node(other) && one.path.is_sibling_of(&other.path)) {
        application.add_siblings(run)?;
    }
    application.finish()
}

/// A layer that is being applied.
struct Application<'a> {
    lower: &'a Arc<Directory>,
    tree: Arc<Directory>,
    own: OwnLayer,
    /// Whether the layer by itself is what it gives, because nothing is below and it only adds: then one tree is both, and
    /// [`Self::own`] has its notes alone until the end.
    is_lowest: bool,
    /// Real paths that the layer brought or put something below. Of leaves, only those that cannot be told from the lower layers'
    /// by their inode. `None` for a layer that only adds, where nothing asks.
    touched: Option<HashSet<EntryPath>>,
    /// Real paths at which the layer hides what lower layers have.
    hidden: BTreeSet<EntryPath>,
    /// Real paths of directories in which the layer hides all that lower layers have.
    emptied: BTreeSet<EntryPath>,
    /// Files that AUFS kept for itself, by their literal paths.
    bookkeeping: HashMap<EntryPath, Arc<Leaf>>,
    pending: Vec<PendingLink>,
    /// Inodes of lower layers that the layer links to, with their paths there.
    inodes_below: HashMap<*const Leaf, EntryPath>,
}

/// A hard link whose target is still to come.
struct PendingLink {
    path: EntryPath,
    target: EntryPath,
    /// Stands in the trees for the inode.
    placeholder: Arc<Leaf>,
    /// Where the placeholder was put: in the tree, and in the layer by itself.
    real_paths: Vec<(EntryPath, EntryPath)>,
}

impl<'a> Application<'a> {
    fn new(lower: &'a Arc<Directory>, entries: &[LayerEntry<Content>]) -> Self {
        let removes = |entry: &LayerEntry<Content>| {
            matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque | EntryKind::Unpublished)
        };
        let only_adds = !entries.iter().any(removes);
        Self {
            lower,
            is_lowest: only_adds && lower.children.is_empty(),
            tree: Arc::clone(lower),
            own: OwnLayer::new(lower.metadata.clone()),
            touched: (!only_adds).then(HashSet::new),
            hidden: BTreeSet::new(),
            emptied: BTreeSet::new(),
            bookkeeping: HashMap::new(),
            pending: Vec::new(),
            inodes_below: HashMap::new(),
        }
    }

    /// Adds entries that lie in one directory if there are several.
    fn add_siblings(&mut self, mut entries: &[LayerEntry<Content>]) -> Result<(), ApplyError> {
        while let Some((entry, others)) = entries.split_first() {
            // Only a real directory stays where it is while entries are added to it.
            if !others.is_empty() && self.add_to_real_directory(entries) {
                return Ok(());
            }
            self.add(entry)?;
            entries = others;
        }
        Ok(())
    }

    /// Adds files, directories and the like to the directory that they lie in, if that is a real one in both trees.
    fn add_to_real_directory(&mut self, entries: &[LayerEntry<Content>]) -> bool {
        let Some((parent, _)) = entries[0].path.split() else { return false };
        let is_real = |tree: &Directory| tree.directory(parent.components()).is_some();
        let is_real_in_both = is_real(&self.tree) && (self.is_lowest || is_real(&self.own.tree));
        if !self.pending.is_empty() || is_bookkeeping(&parent) || !is_real_in_both {
            return false;
        }
        if entries.iter().any(|entry| is_bookkeeping(&entry.path)) {
            return false;
        }
        self.touch(&parent);
        let tree = directory_mut(&mut self.tree, &parent);
        let (mut own, notes) = self.own.parts(&parent, self.is_lowest);
        for entry in entries {
            let EntryKind::Node(metadata, kind) = &entry.kind else { unreachable!("only nodes come in a row") };
            let name = entry.path.name();
            if let NodeKind::Directory = kind {
                if let Some(touched) = &mut self.touched {
                    touched.insert(entry.path.clone());
                }
                let replaced = put_directory(tree, name, metadata);
                let replaced = own.as_deref_mut().map_or(replaced, |own| put_directory(own, name, metadata));
                notes.note_directory(&entry.path, replaced);
            } else {
                let leaf = Arc::new(Leaf { metadata: metadata.clone(), kind: leaf_kind(kind) });
                let replaced = put_leaf(tree, name, Arc::clone(&leaf));
                if replaced == Replaced::Directory {
                    self.hidden.insert(entry.path.clone());
                }
                notes.note_leaf(own.as_deref_mut().map_or(replaced, |own| put_leaf(own, name, leaf)));
            }
        }
        true
    }

    fn add(&mut self, entry: &LayerEntry<Content>) -> Result<(), ApplyError> {
        let path = &entry.path;
        match &entry.kind {
            EntryKind::Whiteout => self.hide(path),
            EntryKind::Opaque => self.hide_all_in(path),
            EntryKind::Node(metadata, NodeKind::Directory) if path.is_root() => {
                Arc::make_mut(&mut self.tree).metadata = metadata.clone();
                self.own.set_root_metadata(metadata);
            }
            _ if path.is_root() => return Err(ApplyError::RootIsNoDirectory),
            EntryKind::Node(metadata, NodeKind::Directory) => self.add_directory(path, metadata)?,
            EntryKind::Node(metadata, kind) => {
                let leaf = Arc::new(Leaf { metadata: metadata.clone(), kind: leaf_kind(kind) });
                self.add_leaf(path, leaf)?;
            }
            EntryKind::HardLink(target) => self.add_hard_link(path, target)?,
            EntryKind::Unpublished => self.add_unpublished(path)?,
        }
        self.link_pending_to(path)
    }

    fn add_directory(&mut self, path: &EntryPath, metadata: &Metadata) -> Result<(), ApplyError> {
        let (parent, own_parent) = self.create_parents(path)?;
        let real_path = parent.join(path.name());
        if let Some(touched) = &mut self.touched {
            touched.insert(real_path);
        }
        let replaced = put_directory(directory_mut(&mut self.tree, &parent), path.name(), metadata);
        let (own, notes) = self.own.parts(&own_parent, self.is_lowest);
        let replaced = own.map_or(replaced, |own| put_directory(own, path.name(), metadata));
        notes.note_directory(&own_parent.join(path.name()), replaced);
        Ok(())
    }

    /// Puts an inode at a path.
    fn add_leaf(&mut self, path: &EntryPath, leaf: Arc<Leaf>) -> Result<(), ApplyError> {
        if is_bookkeeping(path) {
            self.bookkeeping.insert(path.clone(), leaf);
            return Ok(());
        }
        let (parent, own_parent) = self.create_parents(path)?;
        let (real_path, own_path) = (parent.join(path.name()), own_parent.join(path.name()));
        let below = self.inodes_below.get(&Arc::as_ptr(&leaf)).cloned();
        if let Some(touched) = self.touched.as_mut().filter(|_| below.is_some()) {
            touched.insert(real_path.clone());
        }
        if let Some(pending) = self.pending.iter_mut().find(|pending| Arc::ptr_eq(&pending.placeholder, &leaf)) {
            pending.real_paths.push((real_path.clone(), own_path.clone()));
        }
        let replaced = put_leaf(directory_mut(&mut self.tree, &parent), path.name(), Arc::clone(&leaf));
        if replaced == Replaced::Directory {
            self.hidden.insert(real_path);
        }
        if let Some(below) = below {
            self.own.links_below.push((own_path, below, Arc::clone(&leaf)));
        }
        let (own, notes) = self.own.parts(&own_parent, self.is_lowest);
        notes.note_leaf(own.map_or(replaced, |own| put_leaf(own, path.name(), leaf)));
        Ok(())
    }

    fn add_hard_link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<(), ApplyError> {
        let leaf = match self.find_target(path, target)? {
            Some(leaf) => leaf,
            None => {
                self.own.notes.is_irregular = true;
                let kind = LeafKind::Fifo;
                let placeholder = Arc::new(Leaf { metadata: Metadata::of_implied_directory(), kind });
                let link = PendingLink {
                    path: path.clone(),
                    target: target.clone(),
                    placeholder: Arc::clone(&placeholder),
                    real_paths: Vec::new(),
                };
                self.pending.push(link);
                placeholder
            }
        };
        self.add_leaf(path, leaf)
    }

    /// Returns the inode that a hard link takes now; `None` where its target is still to come.
    fn find_target(&mut self, path: &EntryPath, target: &EntryPath) -> Result<Option<Arc<Leaf>>, ApplyError> {
        if let Some(leaf) = self.bookkeeping.get(target) {
            return Ok(Some(Arc::clone(leaf)));
        }
        match look_up(&self.tree, target).map_err(|_| ApplyError::TooManyLinks(path.clone()))? {
            _ if target.is_root() => Err(link_to_directory(path, target)),
            Some((_, Node::Directory(_))) => Err(link_to_directory(path, target)),
            Some((real_path, Node::Leaf(leaf))) => {
                let leaf = Arc::clone(leaf);
                self.note_target(&real_path, target, &leaf);
                Ok(Some(leaf))
            }
            None => self.leaf_below(path, target),
        }
    }

    /// Notes where the inode of a hard link comes from.
    fn note_target(&mut self, real_path: &EntryPath, target: &EntryPath, leaf: &Arc<Leaf>) {
        let is_at =
            |tree: &Directory, path| matches!(tree.get(path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, leaf));
        if is_at(self.lower, real_path) {
            // Above other lower layers, the links on the way may lead elsewhere.
            self.own.notes.note_if(real_path != target);
            self.inodes_below.insert(Arc::as_ptr(leaf), real_path.clone());
        } else if !self.inodes_below.contains_key(&Arc::as_ptr(leaf)) {
            let own = if self.is_lowest { &self.tree } else { &self.own.tree };
            self.own.notes.note_if(!is_at(own, target));
        }
    }

    /// Returns what the lower layers had at the target of a hard link.
    fn leaf_below(&mut self, path: &EntryPath, target: &EntryPath) -> Result<Option<Arc<Leaf>>, ApplyError> {
        match look_up(self.lower, target).map_err(|_| ApplyError::TooManyLinks(path.clone()))? {
            None => Ok(None),
            Some((_, Node::Directory(_))) => Err(link_to_directory(path, target)),
            Some((real_path, Node::Leaf(leaf))) => {
                self.own.notes.note_if(real_path != *target);
                self.inodes_below.insert(Arc::as_ptr(leaf), real_path);
                Ok(Some(Arc::clone(leaf)))
            }
        }
    }

    /// Gives the pending links to `path`, at which an entry was put just now, their inodes.
    fn link_pending_to(&mut self, path: &EntryPath) -> Result<(), ApplyError> {
        for index in (0..self.pending.len()).rev() {
            if self.pending[index].target.name() == path.name() {
                self.link_pending(index)?;
            }
        }
        Ok(())
    }

    /// Gives a pending link its inode if its target is there by now.
    fn link_pending(&mut self, index: usize) -> Result<(), ApplyError> {
        let PendingLink { path, target, placeholder, .. } = &self.pending[index];
        let found = match self.bookkeeping.get(target) {
            Some(leaf) => Some((target.clone(), leaf)),
            None => match look_up(&self.tree, target).map_err(|_| ApplyError::TooManyLinks(path.clone()))? {
                Some((_, Node::Directory(_))) => return Err(link_to_directory(path, target)),
                Some((real_path, Node::Leaf(leaf))) => Some((real_path, leaf)),
                None => None,
            },
        };
        let Some((real_path, leaf)) = found.filter(|(_, leaf)| !Arc::ptr_eq(leaf, placeholder)) else { return Ok(()) };
        let leaf = Arc::clone(leaf);
        let link = self.pending.remove(index);
        self.note_target(&real_path, &link.target, &leaf);
        self.replace_placeholder(link, &leaf);
        Ok(())
    }

    fn replace_placeholder(&mut self, link: PendingLink, leaf: &Arc<Leaf>) {
        for kept in self.bookkeeping.values_mut().filter(|kept| Arc::ptr_eq(kept, &link.placeholder)) {
            *kept = Arc::clone(leaf);
        }
        let below = self.inodes_below.get(&Arc::as_ptr(leaf));
        for (real_path, own_path) in &link.real_paths {
            replace_leaf(&mut self.tree, real_path, &link.placeholder, leaf);
            if !self.is_lowest {
                replace_leaf(&mut self.own.tree, own_path, &link.placeholder, leaf);
            }
            if let Some(below) = below {
                self.own.links_below.push((own_path.clone(), below.clone(), Arc::clone(leaf)));
                self.touched.iter_mut().for_each(|touched| touched.extend([real_path.clone()]));
            }
        }
        if let Some(other) = self.pending.iter_mut().find(|pending| Arc::ptr_eq(&pending.placeholder, leaf)) {
            other.real_paths.extend(link.real_paths);
        }
    }

    /// Removes any existing node at the path of an entry that cannot be published.
    fn add_unpublished(&mut self, path: &EntryPath) -> Result<(), ApplyError> {
        let (parent, own_parent) = self.create_parents(path)?;
        directory_mut(&mut self.tree, &parent).children.remove(path.name());
        self.hidden.insert(parent.join(path.name()));
        // Read back, it is a whiteout, which creates no directories and removes nothing of its own layer.
        self.own.note_if_implied(&own_parent);
        self.own.notes.note_if(self.is_touched(&parent.join(path.name())));
        let (own, notes) = self.own.parts(&own_parent, false);
        notes.note_if(own.is_some_and(|own| own.children.remove(path.name()).is_some()));
        self.own.whiteouts.insert(path.clone());
        Ok(())
    }

    /// Hides what lower layers have at a path, and nothing of this layer.
    fn hide(&mut self, path: &EntryPath) {
        self.own.note_whiteout(path);
        let (parent, name) = path.split().expect("no whiteout hides the root");
        let Ok(parent) = resolve(&self.tree, &parent) else { return };
        let real_path = path_of(&parent).join(name);
        self.own.notes.note_if(real_path != *path || self.is_touched(&real_path));
        let node = self.tree.directory(names(&parent)).and_then(|directory| directory.children.get(name)).cloned();
        if let Some(node) = node {
            let left = self.without_lower(&real_path, node);
            let directory = Arc::make_mut(&mut self.tree).directory_mut(names(&parent));
            let children = &mut directory.expect("the directory was seen just now").children;
            match left {
                Some(node) => drop(children.insert(name.into(), node)),
                None => drop(children.remove(name)),
            }
        }
        self.hidden.insert(real_path);
    }

    /// Hides what lower layers have in a directory, and nothing of this layer.
    fn hide_all_in(&mut self, path: &EntryPath) {
        self.own.note_opaque(path);
        let Ok(real_path) = resolve(&self.tree, path) else { return };
        let real_path = path_of(&real_path);
        self.own.notes.note_if(real_path != *path);
        if let Some(directory) = self.tree.directory(real_path.components()) {
            let left = self.children_without_lower(&real_path, directory);
            self.own.notes.note_if(!left.is_empty());
            directory_mut(&mut self.tree, &real_path).children = left;
        }
        self.emptied.insert(real_path);
    }

    /// Returns what this layer has at a real path, of what is there: `None` where that is nothing.
    fn without_lower(&self, real_path: &EntryPath, node: Node) -> Option<Node> {
        let is_touched = self.is_touched(real_path);
        match node {
            Node::Directory(_) if !is_touched => None,
            Node::Directory(directory) => {
                let children = self.children_without_lower(real_path, &directory);
                Some(Node::Directory(Arc::new(Directory { metadata: directory.metadata.clone(), children })))
            }
            Node::Leaf(leaf) => {
                let is_of_lower =
                    matches!(self.lower.get(real_path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, &leaf));
                (is_touched || !is_of_lower).then_some(Node::Leaf(leaf))
            }
        }
    }

    fn children_without_lower(&self, real_path: &EntryPath, directory: &Directory) -> BTreeMap<Box<[u8]>, Node> {
        let mut left = BTreeMap::new();
        for (name, node) in &directory.children {
            if let Some(node) = self.without_lower(&real_path.join(name), node.clone()) {
                left.insert(name.clone(), node);
            }
        }
        left
    }

    /// Returns where the directory of `path` is in the tree and in the layer by itself, after creating what is missing.
    fn create_parents(&mut self, path: &EntryPath) -> Result<(EntryPath, EntryPath), ApplyError> {
        let (parent, _) = path.split().expect("the root has no parent");
        let mut created = Vec::new();
        let real_path = create_directories(&mut self.tree, &parent, path, |directory, replaced| {
            created.push((directory, replaced))
        })?;
        self.touch(&real_path);
        if self.is_lowest {
            self.own.notes.note_if(real_path != parent);
            self.own.notes.note_implied(created);
            return Ok((real_path.clone(), real_path));
        }
        let first = created.first().map(|(directory, _)| directory);
        let own_path = self.own.create_directories(&parent, path, &self.tree)?;
        if own_path != real_path {
            let changed = first.filter(|created| real_path.is_in(created)).unwrap_or(&real_path);
            self.own.note_masked_change(&own_path, changed);
        }
        Ok((real_path, own_path))
    }

    fn is_touched(&self, real_path: &EntryPath) -> bool {
        self.touched.as_ref().is_some_and(|touched| touched.contains(real_path))
    }

    /// Notes that the layer has something in a directory.
    fn touch(&mut self, directory: &EntryPath) {
        if let Some(touched) = &mut self.touched
            && touched.insert(directory.clone())
        {
            for above in directory.ancestors() {
                if !touched.insert(above) {
                    break;
                }
            }
        }
    }

    fn finish(mut self) -> Result<Applied, ApplyError> {
        // A symbolic link may have made a target reachable since, which may be the target of another link.
        let mut waiting = usize::MAX;
        while self.pending.len() < waiting {
            waiting = self.pending.len();
            for index in (0..waiting).rev() {
                self.link_pending(index)?;
            }
        }
        for PendingLink { path, target, placeholder, real_paths } in &self.pending {
            let is_left = |real_path: &EntryPath| matches!(self.tree.get(real_path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, placeholder));
            if real_paths.iter().any(|(real_path, _)| is_left(real_path)) {
                return Err(missing_target(path, target));
            }
        }
        if self.is_lowest {
            self.own.tree = Arc::clone(&self.tree);
        }
        let masked_links = self.own.masked_links.clone();
        let can_be_read_back = self.own.can_be_read_back();
        let form = self.own.into_form(self.lower, &self.tree, &self.hidden, &self.emptied);
        Ok(Applied { tree: self.tree, form, masked_links, can_be_read_back })
    }
}

/// What an entry took the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    Nothing,
    Leaf,
    Directory,
}

/// Puts a directory into another one, or gives the one that is there new attributes.
fn put_directory(parent: &mut Directory, name: &[u8], metadata: &Metadata) -> Replaced {
    match parent.children.get_mut(name) {
        Some(Node::Directory(there)) => {
            Arc::make_mut(there).metadata = metadata.clone();
            Replaced::Directory
        }
        _ => {
            let new = Node::Directory(Arc::new(Directory::new(metadata.clone())));
            if parent.children.insert(name.into(), new).is_some() { Replaced::Leaf } else { Replaced::Nothing }
        }
    }
}

fn put_leaf(parent: &mut Directory, name: &[u8], leaf: Arc<Leaf>) -> Replaced {
    match parent.children.insert(name.into(), Node::Leaf(leaf)) {
        None => Replaced::Nothing,
        Some(Node::Leaf(_)) => Replaced::Leaf,
        Some(Node::Directory(_)) => Replaced::Directory,
    }
}

fn leaf_kind(kind: &NodeKind<Content>) -> LeafKind {
    match kind {
        NodeKind::Directory => unreachable!("directories are no leaves"),
        NodeKind::File { size, content } => LeafKind::File { size: *size, content: content.clone() },
        NodeKind::Symlink(target) => LeafKind::Symlink(target.clone()),
        NodeKind::CharacterDevice(number) => LeafKind::CharacterDevice(*number),
        NodeKind::BlockDevice(number) => LeafKind::BlockDevice(*number),
        NodeKind::Fifo => LeafKind::Fifo,
    }
}

/// Puts `new` at a real path if `old` is still there.
fn replace_leaf(tree: &mut Arc<Directory>, path: &EntryPath, old: &Arc<Leaf>, new: &Arc<Leaf>) {
    if matches!(tree.get(path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, old)) {
        let (parent, name) = path.split().expect("a leaf is not the root");
        directory_mut(tree, &parent).children.insert(name.into(), Node::Leaf(Arc::clone(new)));
    }
}

/// Returns a directory of `tree` that is known to be there.
fn directory_mut<'t>(tree: &'t mut Arc<Directory>, path: &EntryPath) -> &'t mut Directory {
    Arc::make_mut(tree).directory_mut(path.components()).expect("the directory was found or created just now")
}

/// Returns where the directory `parent` of `path` really is in `tree`, after creating what is missing; `note` is told of each
/// directory that is created, and what it replaced.
///
/// Anything else than a directory in the way is replaced.
pub(super) fn create_directories(
    tree: &mut Arc<Directory>,
    parent: &EntryPath,
    path: &EntryPath,
    mut note: impl FnMut(EntryPath, Replaced),
) -> Result<EntryPath, ApplyError> {
    if tree.directory(parent.components()).is_some() {
        return Ok(parent.clone());
    }
    let real_path: ResolvedPath =
        resolve(tree, parent).map_err(|TooManyLinks| ApplyError::TooManyLinks(path.clone()))?;
    if real_path.len() > MAX_DEPTH {
        return Err(ApplyError::TooDeep(path.clone()));
    }
    if real_path.iter().any(|name| name.len() > 255 || name.contains(&0)) {
        return Err(ApplyError::UnusableName(path.clone()));
    }
    let (mut directory, mut at) = (Arc::make_mut(tree), EntryPath::ROOT);
    for name in &real_path {
        at = at.join(name);
        if !matches!(directory.children.get(name), Some(Node::Directory(_))) {
            note(at.clone(), put_directory(directory, name, &Metadata::of_implied_directory()));
        }
        let Some(Node::Directory(child)) = directory.children.get_mut(name) else {
            unreachable!("it was made one just now")
        };
        directory = Arc::make_mut(child);
    }
    Ok(at)
}

fn missing_target(path: &EntryPath, target: &EntryPath) -> ApplyError {
    ApplyError::MissingHardLinkTarget { path: path.clone(), target: target.clone() }
}

fn link_to_directory(path: &EntryPath, target: &EntryPath) -> ApplyError {
    ApplyError::HardLinkToDirectory { path: path.clone(), target: target.clone() }
}
