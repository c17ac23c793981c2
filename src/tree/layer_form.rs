//! The form of a single layer that overlay mounts need. A whiteout is a character device 0:0, and an opaque directory has an
//! extended attribute.
//!
//! The tree in this form contains less information than the archive. It does not show whether the archive names a directory
//! or only implies it, and whether a file is a hard link into lower layers. If lower layers have symbolic links, the
//! whiteouts and opaque directories of the tree are at other paths than in the archive. Therefore a [`LayerForm`] also lists
//! these facts, which are published next to the tree. With the facts, the layer can be applied again without its blob.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::edits::{ApplyError, Replaced, create_directories};
use super::node::{Directory, Leaf, LeafKind, Node};
use super::walk::look_up;
use crate::layer::{DeviceNumber, EntryKind, LayerEntry, NodeKind};
use crate::metadata::{Metadata, Timestamp, Xattrs};
use crate::object::Content;
use crate::path::EntryPath;

/// Extended attributes that mark an opaque directory. Overlay mounts by root read the first, mounts in user namespaces the
/// second.
pub const OPAQUE_XATTRS: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];

// Of all forms of whiteouts, only this one works in the kernel's overlay and in fuse-overlayfs, as root and in user
// namespaces.
const WHITEOUT: DeviceNumber = DeviceNumber { major: 0, minor: 0 };

/// One layer in overlay form, with the facts about its archive that the tree cannot express.
#[derive(Debug, Clone)]
pub struct LayerForm {
    /// The tree that is published.
    pub tree: Arc<Directory>,
    /// Directories that the archive implies but does not name. Their metadata are those in the merged tree.
    pub implied: BTreeSet<EntryPath>,
    /// Hard links to inodes of lower layers: path of the link, and path of the inode.
    pub links_below: BTreeMap<EntryPath, EntryPath>,
    /// Paths that the whiteouts of the archive hide. Symbolic links in these paths are not resolved.
    pub whiteouts: BTreeSet<EntryPath>,
    /// Directories that the archive marks as opaque.
    pub opaques: BTreeSet<EntryPath>,
}

/// The tree of a layer by itself, while the layer is being applied. In its paths, symbolic links of the layer itself are
/// followed, and those of lower layers are not.
pub(super) struct SingleLayer {
    pub(super) tree: Arc<Directory>,
    pub(super) notes: ArchiveNotes,
    /// Hard links to inodes of lower layers: path of the link, path of the inode, and the inode.
    pub(super) links_below: Vec<(EntryPath, EntryPath, Arc<Leaf>)>,
    pub(super) whiteouts: BTreeSet<EntryPath>,
    opaques: BTreeSet<EntryPath>,
    /// Masked links: symbolic links of the merged tree whose path is a directory in this layer. For each link, the paths of the
    /// merged tree that the layer changes through the link.
    pub(super) masked_links: BTreeMap<EntryPath, BTreeSet<EntryPath>>,
    /// Directories in which the archive has a whiteout or an opaque marker, each with the state of the directory and its
    /// ancestors when the marker was read.
    marked: Vec<(EntryPath, Vec<AncestorState>)>,
}

/// Facts about an archive that the resulting tree does not contain.
pub(super) struct ArchiveNotes {
    /// Directories that no entry has named so far.
    implied: BTreeSet<EntryPath>,
    /// Whether the result may depend on the order of the entries.
    pub(super) is_irregular: bool,
}

impl ArchiveNotes {
    pub(super) fn mark_irregular_if(&mut self, is_irregular: bool) {
        self.is_irregular |= is_irregular;
    }

    /// Records implied directories that were created, each with the node that it replaced.
    pub(super) fn note_implied(&mut self, created: Vec<(EntryPath, Replaced)>) {
        for (directory, replaced) in created {
            self.mark_irregular_if(replaced == Replaced::Leaf);
            self.implied.insert(directory);
        }
    }

    /// Records a directory that an entry names.
    pub(super) fn note_directory(&mut self, path: &EntryPath, replaced: Replaced) {
        // If the directory was implied, the archive has an entry in the directory before the entry of the directory itself.
        // A layer that is read back has these entries in the reverse order.
        let was_implied = !self.implied.is_empty() && self.implied.remove(path);
        self.mark_irregular_if(was_implied || replaced == Replaced::Leaf);
    }

    pub(super) fn note_leaf(&mut self, replaced: Replaced) {
        self.mark_irregular_if(replaced == Replaced::Directory);
    }
}

/// State of one ancestor of a path in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AncestorState {
    /// Missing, or a directory that no entry has named.
    Unnamed,
    Directory,
    Leaf,
}

impl SingleLayer {
    pub(super) fn new(root: Metadata) -> Self {
        Self {
            tree: Arc::new(Directory::new(root)),
            notes: ArchiveNotes { implied: BTreeSet::from([EntryPath::ROOT]), is_irregular: false },
            links_below: Vec::new(),
            whiteouts: BTreeSet::new(),
            opaques: BTreeSet::new(),
            masked_links: BTreeMap::new(),
            marked: Vec::new(),
        }
    }

    pub(super) fn set_root_metadata(&mut self, metadata: &Metadata) {
        Arc::make_mut(&mut self.tree).metadata = metadata.clone();
        // The root always exists as a directory, so the position of its entry in the archive does not matter.
        self.notes.implied.remove(&EntryPath::ROOT);
    }

    /// Returns an existing directory of the layer, and the notes. With `notes_alone`, returns only the notes; callers set it
    /// as long as the layer has no tree.
    pub(super) fn parts(&mut self, path: &EntryPath, notes_alone: bool) -> (Option<&mut Directory>, &mut ArchiveNotes) {
        if notes_alone {
            return (None, &mut self.notes);
        }
        let directory = Arc::make_mut(&mut self.tree).directory_mut(path.components());
        (Some(directory.expect("the directory was found or created just now")), &mut self.notes)
    }

    /// Creates the missing directories of `parent`, which is the parent of `path`, and returns its resolved path. `merged` is the
    /// merged tree.
    pub(super) fn create_directories(
        &mut self,
        parent: &EntryPath,
        path: &EntryPath,
        merged: &Directory,
    ) -> Result<EntryPath, ApplyError> {
        let mut created = Vec::new();
        let note = |directory, replaced| created.push((directory, replaced));
        let real_path = create_directories(&mut self.tree, parent, path, note)?;
        // The path contains a symbolic link of this layer. If the layer is applied to other lower layers, the target of that
        // link may be another symbolic link.
        self.notes.mark_irregular_if(real_path != *parent);
        for (directory, _) in &created {
            if let Ok(Some((_, Node::Leaf(leaf)))) = look_up(merged, directory)
                && let LeafKind::Symlink(_) = leaf.kind
            {
                self.masked_links.entry(directory.clone()).or_default();
            }
        }
        self.notes.note_implied(created);
        Ok(real_path)
    }

    /// Records that an entry in `directory` changes the path `changed` of the merged tree, because the lower layers have a
    /// symbolic link where this layer has a directory. The change is recorded for the topmost directory, among `directory`
    /// and its ancestors, that is already recorded as masking a link, or else for `directory`.
    pub(super) fn note_masked_change(&mut self, directory: &EntryPath, changed: &EntryPath) {
        let above = std::iter::once(directory.clone()).chain(directory.ancestors());
        let masked = above.filter(|path| self.masked_links.contains_key(path)).last();
        self.masked_links.entry(masked.unwrap_or_else(|| directory.clone())).or_default().insert(changed.clone());
    }

    /// Marks the result as dependent on the order of entries if the directory is implied. When the layer is read back, it has a
    /// whiteout instead of the archive's entry in this directory. Unlike that entry, a whiteout does not create its directory.
    pub(super) fn mark_irregular_if_implied(&mut self, directory: &EntryPath) {
        self.notes.mark_irregular_if(!directory.is_root() && self.notes.implied.contains(directory));
    }

    pub(super) fn note_whiteout(&mut self, path: &EntryPath) {
        let (parent, _) = path.split().expect("no whiteout hides the root");
        self.note_mark(parent, path, self.tree.get(path).is_some());
        self.whiteouts.insert(path.clone());
    }

    pub(super) fn note_opaque(&mut self, path: &EntryPath) {
        let directory = self.tree.directory(path.components());
        self.note_mark(path.clone(), path, directory.is_some_and(|directory| !directory.children.is_empty()));
        self.opaques.insert(path.clone());
    }

    /// Records a whiteout or opaque marker for `path`, whose file is in `directory`. `has_own` states whether earlier
    /// entries of the layer exist at the path (whiteout) or in the directory (opaque marker).
    fn note_mark(&mut self, directory: EntryPath, path: &EntryPath, has_own: bool) {
        let states = self.ancestor_states(&directory);
        let follows_one_below =
            |marks: &BTreeSet<EntryPath>| marks.range(path..).next().is_some_and(|mark| mark.is_in(path));
        let is_late = follows_one_below(&self.whiteouts) || follows_one_below(&self.opaques);
        self.notes.mark_irregular_if(has_own || is_late || states.contains(&AncestorState::Leaf));
        self.marked.push((directory, states));
    }

    /// Returns the state of each ancestor of a path, including the path itself, from the root down.
    fn ancestor_states(&self, path: &EntryPath) -> Vec<AncestorState> {
        let (mut directory, mut at) = (Some(&*self.tree), EntryPath::ROOT);
        let mut visit = |name: &[u8]| {
            at = at.join(name);
            let node = directory.and_then(|directory| directory.children.get(name));
            directory = None;
            match node {
                Some(Node::Directory(child)) => {
                    directory = Some(child);
                    if self.notes.implied.contains(&at) { AncestorState::Unnamed } else { AncestorState::Directory }
                }
                Some(Node::Leaf(_)) => AncestorState::Leaf,
                None => AncestorState::Unnamed,
            }
        };
        path.components().map(&mut visit).collect()
    }

    /// Returns whether the entries that [`layer_entries`] returns for the form have the same effect as the archive, on top
    /// of any lower layers.
    pub(super) fn can_be_read_back(&self) -> bool {
        // If the layer is applied to lower layers without the target of a hard link, the link would refer to a later entry of
        // this layer at the target's path. A leaf of this layer at an ancestor of that path would remove the target.
        let is_only_below = |(_, below, _): &(EntryPath, EntryPath, Arc<Leaf>)| {
            self.tree.get(below).is_none() && !self.ancestor_states(below).contains(&AncestorState::Leaf)
        };
        let is_as_before =
            |(directory, before): &(EntryPath, Vec<AncestorState>)| self.ancestor_states(directory) == *before;
        !self.notes.is_irregular
            && self.links_below.iter().all(is_only_below)
            && self.marked.iter().all(is_as_before)
            // Entries that change paths through a masked link would have to be applied in the order of the archive.
            && self.masked_links.is_empty()
    }

    /// Returns the form of the layer, with its whiteouts and opaque directories. `hidden` contains the real paths that the
    /// layer hides in `lower`. `emptied` contains the real directories in which the layer hides all entries of `lower`.
    /// `merged` is the result of applying the layer to `lower`.
    pub(super) fn into_form(
        mut self,
        lower: &Directory,
        merged: &Directory,
        hidden: &BTreeSet<EntryPath>,
        emptied: &BTreeSet<EntryPath>,
    ) -> LayerForm {
        let tree = &mut self.tree;
        let mut implied = self.notes.implied;
        implied.retain(|path| tree.directory(path.components()).is_some());
        // An overlay mount shows the metadata of the directory in the topmost layer, so an implied directory must repeat the
        // metadata of the lower layers.
        for path in implied.iter().filter(|path| !path.is_root()) {
            let metadata = metadata_in(merged, path);
            if tree.directory(path.components()).is_some_and(|directory| directory.metadata != metadata) {
                let directory = Arc::make_mut(tree).directory_mut(path.components());
                directory.expect("the metadata of the directory were compared above").metadata = metadata;
            }
        }
        let mut marks = Marks { tree, implied: &mut implied, lower, merged };
        // Sorted from the root down. Nothing below a hidden path needs a mark, and the opaque mark of an emptied directory
        // hides all of its entries.
        hidden
            .iter()
            .filter(|path| path.ancestors().all(|above| !emptied.contains(&above)))
            .for_each(|path| marks.hide(path));
        emptied.iter().for_each(|path| marks.hide_all_in(path));
        let still_exists = |real_path: &EntryPath, leaf: &Arc<Leaf>| matches!(self.tree.get(real_path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, leaf));
        let links_below = self.links_below.into_iter().filter(|(real_path, _, leaf)| still_exists(real_path, leaf));
        LayerForm {
            links_below: links_below.map(|(real_path, below, _)| (real_path, below)).collect(),
            implied,
            whiteouts: self.whiteouts,
            opaques: self.opaques,
            tree: self.tree,
        }
    }
}

/// Returns the metadata of a directory in a tree, or those of an implied directory if the tree has no such directory.
fn metadata_in(tree: &Directory, path: &EntryPath) -> Metadata {
    tree.directory(path.components())
        .map_or_else(Metadata::of_implied_directory, |directory| directory.metadata.clone())
}

/// Adds whiteouts and opaque marks to the tree of a layer.
///
/// A mark is added at the real path that it hides: if lower layers have a symbolic link on the path in the archive, the mark
/// is at the target of the link. If lower layers do not have the directory of the mark, no mark is added, because there is
/// nothing to hide, and Linux lists a whiteout in a directory that only one layer has.
///
/// In one case, Linux may still list a whiteout: the merged lower layers have its directory only at the target of a masked
/// link. In an overlay mount, the lower layers have that directory at the path of the link instead. A tree that is read back
/// from its catalogs does not show which directories these are, and the whiteouts of a layer must not depend on whether its
/// lower layers were read or reused. The masked link is listed among the losses of the image.
struct Marks<'a> {
    tree: &'a mut Arc<Directory>,
    implied: &'a mut BTreeSet<EntryPath>,
    lower: &'a Directory,
    merged: &'a Directory,
}

impl Marks<'_> {
    /// Hides a real path of lower layers. A directory of the layer at this path becomes opaque; if the layer has no node there, a
    /// whiteout is added.
    fn hide(&mut self, path: &EntryPath) {
        let (parent, name) = path.split().expect("the root is never hidden");
        if self.lower.directory(parent.components()).is_none() || !self.can_be_marked(&parent) {
            return;
        }
        match self.directory(&parent).children.get_mut(name) {
            None => drop(self.directory(&parent).children.insert(name.into(), whiteout())),
            // A leaf hides the lower node by itself, because overlay mounts merge only directories.
            Some(Node::Leaf(_)) => {}
            // Overlay mounts merge directories of the same path, so the lower entries would show through.
            Some(Node::Directory(own)) => mark_opaque(&mut Arc::make_mut(own).metadata),
        }
    }

    /// Hides all entries of lower layers in a real directory.
    fn hide_all_in(&mut self, path: &EntryPath) {
        let is_there = |tree: &Directory| tree.directory(path.components()).is_some();
        // Otherwise the mark would create a directory in which there is nothing to hide.
        if !(is_there(self.lower) || is_there(self.tree)) || !self.can_be_marked(path) {
            return;
        }
        mark_opaque(&mut self.directory(path).metadata);
        if path.is_root() {
            // Overlay mounts ignore the attribute at the root of a layer, so each name in the lower root needs a separate
            // mark.
            let names: Vec<Box<[u8]>> = self.lower.children.keys().cloned().collect();
            names.iter().for_each(|name| self.hide(&EntryPath::ROOT.join(name)));
        }
    }

    /// Returns whether a mark in this directory of the layer is possible and needed.
    fn can_be_marked(&self, path: &EntryPath) -> bool {
        !is_blocked(self.tree, path) && !is_in_opaque(self.tree, path)
    }

    /// Returns a directory of the layer, and creates the missing directories on its path.
    fn directory(&mut self, path: &EntryPath) -> &mut Directory {
        let (mut directory, mut at) = (Arc::make_mut(self.tree), EntryPath::ROOT);
        for name in path.components() {
            at = at.join(name);
            let child = directory.children.entry(name.into()).or_insert_with(|| {
                self.implied.insert(at.clone());
                Node::Directory(Arc::new(Directory::new(metadata_in(self.merged, &at))))
            });
            let Node::Directory(child) = child else { unreachable!("`can_be_marked` excludes other nodes") };
            directory = Arc::make_mut(child);
        }
        directory
    }
}

/// Returns the whiteout that hides the node of `lower` at a path where the layer has no node. Returns `None` if no whiteout
/// is needed: `lower` has no node there, or an opaque directory of the layer hides that node.
pub fn needed_whiteout(own: &Directory, lower: &Directory, path: &EntryPath) -> Option<Node> {
    let (parent, _) = path.split()?;
    (lower.get(path).is_some() && !is_in_opaque(own, &parent)).then(whiteout)
}

/// Returns whether a directory of the layer, or one of its ancestors, is marked as opaque. The mark of the root does not
/// count, because overlay mounts ignore it.
fn is_in_opaque(own: &Directory, path: &EntryPath) -> bool {
    let mut directory = own;
    for name in path.components() {
        match directory.children.get(name) {
            Some(Node::Directory(child)) if without_mark(&child.metadata).1 => return true,
            Some(Node::Directory(child)) => directory = child,
            _ => return false,
        }
    }
    false
}

/// Returns whether the node at `path`, or at one of its ancestors, exists and is not a directory.
fn is_blocked(tree: &Directory, path: &EntryPath) -> bool {
    let mut directory = tree;
    for name in path.components() {
        match directory.children.get(name) {
            Some(Node::Directory(child)) => directory = child,
            Some(Node::Leaf(_)) => return true,
            None => return false,
        }
    }
    false
}

fn whiteout() -> Node {
    // Overlay mounts look at the device number alone. Constant metadata keep the catalog the same for the same layer.
    let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None };
    Node::Leaf(Arc::new(Leaf { metadata, kind: LeafKind::CharacterDevice(WHITEOUT) }))
}

fn mark_opaque(metadata: &mut Metadata) {
    let xattrs = Arc::make_mut(metadata.xattrs.get_or_insert_default());
    xattrs.extend(OPAQUE_XATTRS.map(|name| (name.into(), b"y".as_slice().into())));
}

/// Returns the entries of a layer that was read back in overlay form. Applying them has the same result as applying the
/// archive.
///
/// As in archives, a directory comes before its marks, and the marks come before the other entries of the directory.
pub fn layer_entries(form: &LayerForm) -> Vec<LayerEntry<Content>> {
    let mut marks: HashMap<EntryPath, Vec<(&EntryPath, EntryKind<Content>)>> = HashMap::new();
    let whiteouts = form.whiteouts.iter().map(|path| (path, EntryKind::Whiteout));
    for mark in whiteouts.chain(form.opaques.iter().map(|path| (path, EntryKind::Opaque))) {
        // A mark is added after the directory that contains it. If the layer has no such directory, the mark is added after
        // the nearest ancestor that the layer has.
        let is_own = |path: &EntryPath| form.tree.directory(path.components()).is_some();
        let real_path =
            std::iter::once(mark.0.clone()).filter(|_| mark.1 == EntryKind::Opaque).chain(mark.0.ancestors());
        let anchor = { real_path }.find(is_own).unwrap_or_default();
        marks.entry(anchor).or_default().push(mark);
    }
    marks.values_mut().for_each(|marks| marks.sort_by_key(|(path, _)| *path));
    let mut reading = ReadingBack { form, marks, first_names: HashMap::new(), entries: Vec::new() };
    reading.push_directory(&EntryPath::ROOT, &form.tree);
    form.tree.walk(&EntryPath::ROOT, &mut |path, node| match node {
        Node::Directory(directory) => reading.push_directory(path, directory),
        Node::Leaf(leaf) => reading.push_leaf(path, leaf),
    });
    reading.entries
}

struct ReadingBack<'f> {
    form: &'f LayerForm,
    /// The marks to add after each directory.
    marks: HashMap<EntryPath, Vec<(&'f EntryPath, EntryKind<Content>)>>,
    /// The first name of each inode.
    first_names: HashMap<*const Leaf, EntryPath>,
    entries: Vec<LayerEntry<Content>>,
}

impl ReadingBack<'_> {
    fn push(&mut self, path: &EntryPath, kind: EntryKind<Content>) {
        self.entries.push(LayerEntry { path: path.clone(), kind });
    }

    /// Adds a directory, if the archive named it, and the marks that follow it.
    fn push_directory(&mut self, path: &EntryPath, directory: &Directory) {
        if !self.form.implied.contains(path) {
            let metadata = without_mark(&directory.metadata).0;
            self.push(path, EntryKind::Node(metadata, NodeKind::Directory));
        }
        for (path, kind) in self.marks.remove(path).into_iter().flatten() {
            self.push(path, kind);
        }
    }

    fn push_leaf(&mut self, path: &EntryPath, leaf: &Arc<Leaf>) {
        if let Some(target) = self.form.links_below.get(path) {
            self.push(path, EntryKind::HardLink(target.clone()));
        } else if let Some(first) = self.first_names.get(&Arc::as_ptr(leaf)).cloned() {
            self.push(path, EntryKind::HardLink(first));
        } else if let Some(kind) = leaf_entry(leaf) {
            // A count of 1 means that the inode has no other name. This keeps most paths out of the map.
            if Arc::strong_count(leaf) > 1 {
                self.first_names.insert(Arc::as_ptr(leaf), path.clone());
            }
            self.push(path, kind);
        }
    }
}

fn without_mark(metadata: &Metadata) -> (Metadata, bool) {
    // Only strata writes these attributes: the layer reader removes those that an archive has.
    let mut metadata = metadata.clone();
    let mut xattrs = metadata.xattrs.as_deref().cloned().unwrap_or_default();
    let before = xattrs.len();
    xattrs.retain(|name, _| !OPAQUE_XATTRS.contains(&&**name));
    let is_opaque = xattrs.len() < before;
    metadata.xattrs = some_unless_empty(xattrs);
    (metadata, is_opaque)
}

fn some_unless_empty(xattrs: Xattrs) -> Option<Arc<Xattrs>> {
    (!xattrs.is_empty()).then(|| Arc::new(xattrs))
}

/// Returns the entry of an inode, or `None` for a whiteout, which the form lists separately.
fn leaf_entry(leaf: &Leaf) -> Option<EntryKind<Content>> {
    let kind = match &leaf.kind {
        LeafKind::CharacterDevice(WHITEOUT) => return None,
        LeafKind::CharacterDevice(number) => NodeKind::CharacterDevice(*number),
        LeafKind::BlockDevice(number) => NodeKind::BlockDevice(*number),
        LeafKind::File { size, content } => NodeKind::File { size: *size, content: content.clone() },
        LeafKind::Symlink(target) => NodeKind::Symlink(target.clone()),
        LeafKind::Fifo => NodeKind::Fifo,
    };
    Some(EntryKind::Node(leaf.metadata.clone(), kind))
}
