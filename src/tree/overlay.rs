//! Applies one layer to the tree of its lower layers, by the OCI rules for change sets (image-spec, layer.md).
//!
//! Entries are applied in the order of the archive, as umoci does on disk. Each entry sees the result of the previous
//! entries: its path is resolved through the symbolic links that exist at that point, and a hard link refers to the inode
//! that its target path has at that point. Two rules do not depend on the order:
//!
//! - A whiteout hides entries of lower layers, never entries of its own layer, wherever it is in the archive.
//! - A hard link whose target does not exist at that point refers to the inode that the lower layers have at the target
//!   path, even if a whiteout of this layer hides that inode. If the lower layers have none, the link refers to the inode
//!   that a later entry of this layer adds there.
//!
//! Some archives that umoci refuses are accepted: if an implied directory is needed at the path of another node, the
//! directory replaces that node. Adding or removing entries never changes the metadata of their directory.
//!
//! The same pass builds the layer by itself ([`LayerForm`]), in which paths are literal.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::edits::{
    ApplyError, Replaced, create_directories, directory_mut, leaf_kind, put_directory, put_leaf, replace_leaf,
};
use super::layer_form::{LayerForm, SingleLayer};
use super::node::{Directory, Leaf, LeafKind, Node};
use super::walk::{look_up, names, path_of, resolve};
use crate::layer::{EntryKind, LayerEntry, NodeKind, is_bookkeeping};
use crate::metadata::Metadata;
use crate::object::Content;
use crate::path::EntryPath;

/// Result of applying a layer.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The merged tree: the lower layers with this one on top.
    pub tree: Arc<Directory>,
    /// The layer by itself.
    pub form: LayerForm,
    /// Symbolic links of the merged tree at whose paths the layer by itself has a directory that no entry names. Each link
    /// has the paths of the merged tree that the layer changes through the link.
    pub masked_links: BTreeMap<EntryPath, BTreeSet<EntryPath>>,
    /// Whether the entries that [`super::layer_entries`] returns for the form have the same effect as the archive, on top of
    /// any lower layers.
    pub can_be_read_back: bool,
}

/// Applies the entries of one layer, in the order of its archive, to `lower`.
pub fn apply(lower: &Arc<Directory>, entries: &[LayerEntry<Content>]) -> Result<Applied, ApplyError> {
    let mut application = Application::new(lower, entries);
    // Archives usually have the entries of one directory in a row, so the directory is looked up once for all of them.
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
    own: SingleLayer,
    /// Whether the merged tree and the layer by itself are the same, because there is no lower layer and this layer removes
    /// nothing. Then `own` contains only notes until the end, when its tree is set.
    is_lowest: bool,
    /// Real paths at which the layer added a node, or below which it has entries. A leaf is included only if its inode comes
    /// from lower layers, because other leaves are recognised by their inodes. `None` for a layer that removes nothing: only
    /// removals need these paths.
    touched: Option<HashSet<EntryPath>>,
    /// Real paths that the layer hides in lower layers.
    hidden: BTreeSet<EntryPath>,
    /// Real paths of directories in which the layer hides all entries of lower layers.
    emptied: BTreeSet<EntryPath>,
    /// Internal files of AUFS, by their literal paths.
    bookkeeping: HashMap<EntryPath, Arc<Leaf>>,
    pending: Vec<PendingLink>,
    /// Inodes of lower layers that hard links of this layer refer to, with their real paths in the lower layers.
    inodes_below: HashMap<*const Leaf, EntryPath>,
}

/// A hard link whose target does not exist yet.
struct PendingLink {
    path: EntryPath,
    target: EntryPath,
    /// Represents the inode in both trees until the target exists.
    placeholder: Arc<Leaf>,
    /// Paths of the placeholder: in the merged tree, and in the layer by itself.
    placed_at: Vec<(EntryPath, EntryPath)>,
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
            own: SingleLayer::new(lower.metadata.clone()),
            touched: (!only_adds).then(HashSet::new),
            hidden: BTreeSet::new(),
            emptied: BTreeSet::new(),
            bookkeeping: HashMap::new(),
            pending: Vec::new(),
            inodes_below: HashMap::new(),
        }
    }

    /// Adds consecutive entries. If there are several, all are in the same directory.
    fn add_siblings(&mut self, mut entries: &[LayerEntry<Content>]) -> Result<(), ApplyError> {
        while let Some((entry, others)) = entries.split_first() {
            // Each entry may change where a path through a symbolic link leads. The path of a real directory does not
            // change.
            if !others.is_empty() && self.add_to_real_directory(entries) {
                return Ok(());
            }
            self.add(entry)?;
            entries = others;
        }
        Ok(())
    }

    /// If the directory of the nodes exists in both trees, and no symbolic link is on its path, adds the nodes and returns
    /// true. Otherwise adds nothing and returns false.
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
            let EntryKind::Node(metadata, kind) = &entry.kind else { unreachable!("`apply` groups only nodes") };
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
            // A directory at the root was handled above. Without this arm, the root could become a file.
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

    /// Adds a leaf at a path.
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
            pending.placed_at.push((real_path.clone(), own_path.clone()));
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
                // Any kind would do: `finish` refuses a tree that still has a placeholder.
                let kind = LeafKind::Fifo;
                let placeholder = Arc::new(Leaf { metadata: Metadata::of_implied_directory(), kind });
                let link = PendingLink {
                    path: path.clone(),
                    target: target.clone(),
                    placeholder: Arc::clone(&placeholder),
                    placed_at: Vec::new(),
                };
                self.pending.push(link);
                placeholder
            }
        };
        self.add_leaf(path, leaf)
    }

    /// Returns the inode that a hard link refers to at this point, or `None` if its target does not exist yet.
    fn find_target(&mut self, path: &EntryPath, target: &EntryPath) -> Result<Option<Arc<Leaf>>, ApplyError> {
        if let Some(leaf) = self.bookkeeping.get(target) {
            return Ok(Some(Arc::clone(leaf)));
        }
        match look_up(&self.tree, target).map_err(|_| ApplyError::TooManyLinks(path.clone()))? {
            // `look_up` returns nothing for the root, which would then count as a missing target.
            _ if target.is_root() => Err(link_to_directory(path, target)),
            Some((_, Node::Directory(_))) => Err(link_to_directory(path, target)),
            Some((real_path, Node::Leaf(leaf))) => {
                let leaf = Arc::clone(leaf);
                self.note_target(&real_path, target, &leaf);
                Ok(Some(leaf))
            }
            // The link refers to the target even if a whiteout of this layer has hidden the target.
            None => self.leaf_below(path, target),
        }
    }

    /// Records whether the inode of a hard link comes from lower layers, and whether the link depends on the order of
    /// entries.
    fn note_target(&mut self, real_path: &EntryPath, target: &EntryPath, leaf: &Arc<Leaf>) {
        let is_at =
            |tree: &Directory, path| matches!(tree.get(path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, leaf));
        if is_at(self.lower, real_path) {
            // If the layer is applied to other lower layers, symbolic links on the target's path may lead to other paths.
            self.own.notes.mark_irregular_if(real_path != target);
            self.inodes_below.insert(Arc::as_ptr(leaf), real_path.clone());
        } else if !self.inodes_below.contains_key(&Arc::as_ptr(leaf)) {
            let own = if self.is_lowest { &self.tree } else { &self.own.tree };
            self.own.notes.mark_irregular_if(!is_at(own, target));
        }
    }

    /// Returns the inode that the lower layers have at the target of a hard link.
    fn leaf_below(&mut self, path: &EntryPath, target: &EntryPath) -> Result<Option<Arc<Leaf>>, ApplyError> {
        match look_up(self.lower, target).map_err(|_| ApplyError::TooManyLinks(path.clone()))? {
            None => Ok(None),
            Some((_, Node::Directory(_))) => Err(link_to_directory(path, target)),
            Some((real_path, Node::Leaf(leaf))) => {
                self.own.notes.mark_irregular_if(real_path != *target);
                self.inodes_below.insert(Arc::as_ptr(leaf), real_path);
                Ok(Some(Arc::clone(leaf)))
            }
        }
    }

    /// Resolves pending hard links whose target may be `path`, where an entry was just added.
    fn link_pending_to(&mut self, path: &EntryPath) -> Result<(), ApplyError> {
        for index in (0..self.pending.len()).rev() {
            // Only the last component is compared, because the directories on the way may be symbolic links.
            if self.pending[index].target.name() == path.name() {
                self.link_pending(index)?;
            }
        }
        Ok(())
    }

    /// Replaces the placeholder of a pending hard link if its target exists by now.
    fn link_pending(&mut self, index: usize) -> Result<(), ApplyError> {
        let PendingLink { path, target, placeholder, .. } = &self.pending[index];
        let found = match self.bookkeeping.get(target) {
            Some(leaf) => Some((target.clone(), leaf)),
            None => match look_up(&self.tree, target).map_err(|_| ApplyError::TooManyLinks(path.clone()))? {
                // A later entry may also create a directory at the target, and Linux refuses a hard link to a directory
                // (link(2)).
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
        for (real_path, own_path) in &link.placed_at {
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
            other.placed_at.extend(link.placed_at);
        }
    }

    /// Applies an entry that cannot be published: removes any existing node at its path, and records a whiteout for the
    /// layer by itself.
    fn add_unpublished(&mut self, path: &EntryPath) -> Result<(), ApplyError> {
        let (parent, own_parent) = self.create_parents(path)?;
        directory_mut(&mut self.tree, &parent).children.remove(path.name());
        self.hidden.insert(parent.join(path.name()));
        // When the layer is read back, this entry is a whiteout. A whiteout creates no directories, and does not remove
        // nodes of its own layer.
        self.own.mark_irregular_if_implied(&own_parent);
        self.own.notes.mark_irregular_if(self.is_touched(&parent.join(path.name())));
        let (own, notes) = self.own.parts(&own_parent, false);
        notes.mark_irregular_if(own.is_some_and(|own| own.children.remove(path.name()).is_some()));
        self.own.whiteouts.insert(path.clone());
        Ok(())
    }

    /// Hides the node of lower layers at a path. Nodes that this layer has added remain.
    fn hide(&mut self, path: &EntryPath) {
        self.own.note_whiteout(path);
        let (parent, name) = path.split().expect("no whiteout hides the root");
        let Ok(parent) = resolve(&self.tree, &parent) else {
            self.mark_unresolved();
            return;
        };
        let real_path = path_of(&parent).join(name);
        self.own.notes.mark_irregular_if(real_path != *path || self.is_touched(&real_path));
        let node = self.tree.directory(names(&parent)).and_then(|directory| directory.children.get(name)).cloned();
        if let Some(node) = node {
            let kept = self.without_lower(&real_path, node);
            let directory = Arc::make_mut(&mut self.tree).directory_mut(names(&parent));
            let children = &mut directory.expect("its entry was found above").children;
            match kept {
                Some(node) => drop(children.insert(name.into(), node)),
                None => drop(children.remove(name)),
            }
        }
        self.hidden.insert(real_path);
    }

    /// Hides the entries of lower layers in a directory. Entries that this layer has added remain.
    fn hide_all_in(&mut self, path: &EntryPath) {
        self.own.note_opaque(path);
        let Ok(real_path) = resolve(&self.tree, path) else {
            self.mark_unresolved();
            return;
        };
        let real_path = path_of(&real_path);
        self.own.notes.mark_irregular_if(real_path != *path);
        if let Some(directory) = self.tree.directory(real_path.components()) {
            let kept = self.children_without_lower(&real_path, directory);
            self.own.notes.mark_irregular_if(!kept.is_empty());
            directory_mut(&mut self.tree, &real_path).children = kept;
        }
        self.emptied.insert(real_path);
    }

    /// Records that a whiteout or opaque marker hides nothing, because its path leads through a cycle of symbolic links. When the layer
    /// is read back, its marks come before the entry that may have closed the cycle.
    fn mark_unresolved(&mut self) {
        self.own.notes.mark_irregular_if(true);
    }

    /// Returns the part of `node` that this layer added, or `None` if it added nothing. `real_path` is the path of `node`.
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
        let mut kept = BTreeMap::new();
        for (name, node) in &directory.children {
            if let Some(node) = self.without_lower(&real_path.join(name), node.clone()) {
                kept.insert(name.clone(), node);
            }
        }
        kept
    }

    /// Creates the missing directories above `path`. Returns two real paths of its parent: in the merged tree, and in the
    /// layer by itself.
    fn create_parents(&mut self, path: &EntryPath) -> Result<(EntryPath, EntryPath), ApplyError> {
        let (parent, _) = path.split().expect("the root has no parent");
        let mut created = Vec::new();
        let real_path = create_directories(&mut self.tree, &parent, path, |directory, replaced| {
            created.push((directory, replaced))
        })?;
        self.touch(&real_path);
        if self.is_lowest {
            self.own.notes.mark_irregular_if(real_path != parent);
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

    /// Records that the layer has an entry in a directory.
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
        // A later symbolic link may have made a target reachable. A link that is resolved now may itself be the target of
        // another link.
        let mut waiting = usize::MAX;
        while self.pending.len() < waiting {
            waiting = self.pending.len();
            for index in (0..waiting).rev() {
                self.link_pending(index)?;
            }
        }
        for PendingLink { path, target, placeholder, placed_at } in &self.pending {
            let still_exists = |real_path: &EntryPath| matches!(self.tree.get(real_path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, placeholder));
            if placed_at.iter().any(|(real_path, _)| still_exists(real_path)) {
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

fn missing_target(path: &EntryPath, target: &EntryPath) -> ApplyError {
    ApplyError::MissingHardLinkTarget { path: path.clone(), target: target.clone() }
}

fn link_to_directory(path: &EntryPath, target: &EntryPath) -> ApplyError {
    ApplyError::HardLinkToDirectory { path: path.clone(), target: target.clone() }
}
