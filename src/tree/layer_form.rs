//! One layer by itself, as overlay mounts take it: whiteouts are character devices 0:0, opaque folders carry an attribute.
//!
//! The form says less than the archive did: it cannot tell an implied folder from a named one, nor a hard link into lower
//! layers from a file, and where lower layers have links, its marks stand elsewhere. Only together with what else is in a
//! [`LayerForm`], which is published beside the tree, can the layer be applied again without its blob.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::node::{Directory, Leaf, LeafKind, Node};
use super::overlay::{ApplyError, Layer, Overlay, names, path_of, without_removed};
use crate::layer::{DeviceNumber, EntryKind, EntryPath, LayerEntry, NodeKind};
use crate::metadata::{Metadata, Timestamp, Xattrs};
use crate::object::Content;

/// What marks an opaque folder: overlay mounts of root read the first, those of user namespaces the second.
pub const OPAQUE_XATTRS: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];

const WHITEOUT: DeviceNumber = DeviceNumber { major: 0, minor: 0 };

/// One layer in overlay form, with what the form itself cannot say.
#[derive(Debug, Clone)]
pub struct LayerForm {
    /// The tree that is published.
    pub tree: Arc<Directory>,
    /// Folders that the archive never named; their attributes come from the layers below.
    pub implied: BTreeSet<EntryPath>,
    /// Hard links whose inode lies in lower layers, by path.
    pub links_below: BTreeMap<EntryPath, EntryPath>,
    /// What the archive hides of lower layers, by its own words.
    pub whiteouts: BTreeSet<EntryPath>,
    /// Folders in which the archive hides everything of lower layers.
    pub opaques: BTreeSet<EntryPath>,
}

impl LayerForm {
    /// Tells whether [`layer_entries`] says all that the layer does.
    ///
    /// It does not where the target of a link into lower layers is a folder in this one: that link would lead to the folder.
    pub fn can_be_read_back(&self) -> bool {
        !self.links_below.values().any(|target| matches!(self.tree.get(target), Some(Node::Directory(_))))
    }

    /// Builds the overlay form of a layer that is laid over `lower`.
    ///
    /// `lower` gives implied folders their attributes and hard links into lower layers their content.
    pub fn build(lower: &Arc<Directory>, entries: &[LayerEntry<Content>]) -> Result<Self, ApplyError> {
        let layer = Layer::sort(entries)?;
        let remaining = without_removed(lower, &layer);
        let root = Arc::new(Directory::new(lower.metadata.clone()));
        let mut overlay = Overlay::new(root, Some(&remaining));
        overlay.add_nodes(&layer)?;
        overlay.add_links(&layer, lower)?;
        // From the root down: what is hidden as a whole needs no marks in it, and an opaque folder hides all by itself.
        let opaques: BTreeSet<&EntryPath> = layer.opaques.iter().copied().collect();
        let is_in_opaque = |path: &EntryPath| path.ancestors().any(|folder| opaques.contains(&folder));
        let whiteouts: BTreeSet<&EntryPath> = layer.whiteouts.iter().copied().collect();
        for path in whiteouts.into_iter().filter(|path| !is_in_opaque(path)) {
            add_whiteout(&mut overlay, path, &layer, lower)?;
        }
        for path in &opaques {
            add_opaque(&mut overlay, path, &layer, lower)?;
        }
        let is_folder = |path: &EntryPath| overlay.tree.directory(path.components()).is_some();
        let mut implied: BTreeSet<EntryPath> = overlay.implied.iter().filter(|path| is_folder(path)).cloned().collect();
        if !layer.named.contains(&EntryPath::ROOT) {
            implied.insert(EntryPath::ROOT);
        }
        Ok(Self {
            implied,
            links_below: overlay.links_below.into_iter().collect(),
            whiteouts: layer.whiteouts.iter().map(|&path| path.clone()).collect(),
            opaques: opaques.into_iter().cloned().collect(),
            tree: overlay.tree,
        })
    }
}

/// Hides `path` of lower layers. A folder that the layer itself has there becomes opaque instead.
fn add_whiteout(
    overlay: &mut Overlay<'_>,
    path: &EntryPath,
    layer: &Layer<'_>,
    lower: &Directory,
) -> Result<(), ApplyError> {
    let (parent, name) = path.split().expect("no whiteout hides the root");
    let Some(parent) = hiding_folder(&parent, &overlay.tree, layer, lower) else { return Ok(()) };
    let place = overlay.make_folder(&parent, path, &layer.named)?;
    let folder = Arc::make_mut(&mut overlay.tree).directory_mut(names(&place)).expect("was made just now");
    match folder.children.get_mut(name) {
        None => drop(folder.children.insert(name.into(), whiteout())),
        Some(Node::Leaf(_)) => {}
        Some(Node::Directory(own)) => mark_opaque(&mut Arc::make_mut(own).metadata),
    }
    Ok(())
}

fn add_opaque(
    overlay: &mut Overlay<'_>,
    path: &EntryPath,
    layer: &Layer<'_>,
    lower: &Directory,
) -> Result<(), ApplyError> {
    let Some(folder) = hiding_folder(path, &overlay.tree, layer, lower) else { return Ok(()) };
    let place = overlay.make_folder(&folder, path, &layer.named)?;
    let folder = Arc::make_mut(&mut overlay.tree).directory_mut(names(&place)).expect("was made just now");
    mark_opaque(&mut folder.metadata);
    if place.is_empty() {
        // Overlay mounts never ask whether the root of a layer is opaque.
        for name in lower.children.keys() {
            match folder.children.entry(name.clone()).or_insert_with(whiteout) {
                Node::Directory(own) => mark_opaque(&mut Arc::make_mut(own).metadata),
                Node::Leaf(_) => {}
            }
        }
    }
    Ok(())
}

/// Returns the folder in which a mark hides what lower layers have in `folder`, or `None` where nothing needs hiding.
///
/// A mark behind a link of lower layers goes where the link leads: a folder in the place of the link would hide that. Below
/// something that is no folder there is nothing to hide, nor in a folder that hides all of its own.
fn hiding_folder(folder: &EntryPath, own: &Directory, layer: &Layer<'_>, lower: &Directory) -> Option<EntryPath> {
    let folder = match layer.find_below(lower, folder) {
        Some(place) => path_of(&place),
        None if is_blocked(lower, folder) => return None,
        None => folder.clone(),
    };
    (!is_blocked(own, &folder) && !is_in_opaque(own, &folder)).then_some(folder)
}

/// Tells whether a folder of the layer or one above it is marked as opaque. The root's mark is not obeyed by mounts.
fn is_in_opaque(own: &Directory, path: &EntryPath) -> bool {
    let mut folder = own;
    for name in path.components() {
        match folder.children.get(name) {
            Some(Node::Directory(child)) if without_mark(&child.metadata).1 => return true,
            Some(Node::Directory(child)) => folder = child,
            _ => return false,
        }
    }
    false
}

/// Tells whether a tree has something else than a folder on the way to one.
fn is_blocked(tree: &Directory, path: &EntryPath) -> bool {
    let mut folder = tree;
    for name in path.components() {
        match folder.children.get(name) {
            Some(Node::Directory(child)) => folder = child,
            Some(Node::Leaf(_)) => return true,
            None => return false,
        }
    }
    false
}

fn whiteout() -> Node {
    let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None };
    Node::Leaf(Arc::new(Leaf { metadata, kind: LeafKind::CharacterDevice(WHITEOUT) }))
}

fn mark_opaque(metadata: &mut Metadata) {
    let xattrs = Arc::make_mut(metadata.xattrs.get_or_insert_default());
    xattrs.extend(OPAQUE_XATTRS.map(|name| (name.into(), b"y".as_slice().into())));
}

/// Returns the entries of a layer that was read back in overlay form: applied, they give what the archive gave.
pub fn layer_entries(form: &LayerForm) -> Vec<LayerEntry<Content>> {
    let mark = |kind: EntryKind<Content>| move |path: &EntryPath| LayerEntry { path: path.clone(), kind: kind.clone() };
    let whiteouts = form.whiteouts.iter().map(mark(EntryKind::Whiteout));
    let mut entries: Vec<_> = whiteouts.chain(form.opaques.iter().map(mark(EntryKind::Opaque))).collect();
    push_folder(&mut entries, form, &EntryPath::ROOT, &form.tree);
    let mut first_names: HashMap<*const Leaf, EntryPath> = HashMap::new();
    form.tree.walk(&EntryPath::ROOT, &mut |path, node| match node {
        Node::Directory(folder) => push_folder(&mut entries, form, path, folder),
        Node::Leaf(leaf) => {
            let kind = match (form.links_below.get(path), first_names.get(&Arc::as_ptr(leaf))) {
                (Some(target), _) | (None, Some(target)) => Some(EntryKind::HardLink(target.clone())),
                (None, None) => {
                    first_names.insert(Arc::as_ptr(leaf), path.clone());
                    leaf_entry(leaf)
                }
            };
            entries.extend(kind.map(|kind| LayerEntry { path: path.clone(), kind }));
        }
    });
    entries
}

fn push_folder(entries: &mut Vec<LayerEntry<Content>>, form: &LayerForm, path: &EntryPath, folder: &Directory) {
    if !form.implied.contains(path) {
        let metadata = without_mark(&folder.metadata).0;
        entries.push(LayerEntry { path: path.clone(), kind: EntryKind::Node(metadata, NodeKind::Directory) });
    }
}

fn without_mark(metadata: &Metadata) -> (Metadata, bool) {
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

/// Returns what the archive said of an inode; nothing of a whiteout, which is listed elsewhere.
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
