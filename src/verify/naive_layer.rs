//! One layer by itself as overlay mounts take it, made naively to judge what is published below `.layers`.
//!
//! A whiteout is a character device 0:0, and a folder that hides all of lower layers carries two attributes. Where lower
//! layers have a link on the way to what is hidden, the mark stands where the link leads; where they have no folder
//! there, nothing needs hiding and there is no mark. Mounts do not obey a mark at the root, so that there each name of
//! lower layers is hidden by itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::naive_tree::{ApplyError, NaiveTree, Statements, folders_above, is_folder};
use crate::layer::{DeviceNumber, EntryPath, LayerEntry, NodeKind};
use crate::metadata::{Metadata, Timestamp};

/// What marks an opaque folder: for mounts of root, and for those of user namespaces.
const OPAQUE_MARKS: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];

/// A layer as it is to be published, and what the record beside it has to say.
#[derive(Debug, Clone)]
pub struct NaiveLayer<C> {
    /// The layer itself.
    pub tree: NaiveTree<C>,
    /// Folders that the archive never names.
    pub implied: BTreeSet<EntryPath>,
    /// Hard links to what lower layers have.
    pub linked_below: BTreeSet<EntryPath>,
    /// What the archive hides, by its own words.
    pub whiteouts: BTreeSet<EntryPath>,
    /// Folders in which the archive hides everything.
    pub opaque_folders: BTreeSet<EntryPath>,
}

impl<C: Clone> NaiveLayer<C> {
    /// Returns the form of `layer`, whose entries are in the order of its archive, above `lower`.
    pub fn of(lower: &NaiveTree<C>, layer: &[LayerEntry<C>]) -> Result<Self, ApplyError> {
        let layer = Statements::of(layer)?;
        let mut form = Form { own: lower.layer_alone(&layer)?, lower, layer: &layer };
        let whiteouts: BTreeSet<EntryPath> = layer.whiteouts.iter().map(|&path| path.clone()).collect();
        let opaque_folders: BTreeSet<EntryPath> = layer.opaque_folders.iter().map(|&path| path.clone()).collect();
        // Folders come before what lies in them, and hide it.
        for path in &whiteouts {
            if !folders_above(path).any(|folder| opaque_folders.contains(&folder)) {
                form.hide(path);
            }
        }
        opaque_folders.iter().for_each(|folder| form.hide_all_in(folder));
        let tree = form.own;
        let is_there = |path: &EntryPath| tree.get(path).is_some_and(|node| is_folder(&node.kind));
        let mut implied: BTreeSet<EntryPath> = tree.implied.iter().filter(|path| is_there(path)).cloned().collect();
        if !layer.named_folders.contains(&EntryPath::ROOT) {
            implied.insert(EntryPath::ROOT);
        }
        Ok(Self { linked_below: tree.linked_below.clone(), tree, implied, whiteouts, opaque_folders })
    }
}

/// A layer that is getting its marks.
struct Form<'l, C> {
    own: NaiveTree<C>,
    lower: &'l NaiveTree<C>,
    layer: &'l Statements<'l, C>,
}

impl<C: Clone> Form<'_, C> {
    /// Hides `path` of lower layers.
    fn hide(&mut self, path: &EntryPath) {
        let Some((folder, name)) = path.split() else { return };
        let Some(folder) = self.where_to_hide(&folder) else { return };
        self.make_folder(&folder);
        self.mark(folder.join(name));
    }

    /// Hides everything that lower layers have in `folder`.
    fn hide_all_in(&mut self, folder: &EntryPath) {
        let Some(folder) = self.where_to_hide(folder) else { return };
        self.make_folder(&folder);
        self.mark(folder.clone());
        if folder.is_root() {
            let at_the_root = |path: &&EntryPath| path.components().count() == 1;
            let paths: Vec<EntryPath> =
                self.lower.entries().map(|(path, _)| path).filter(at_the_root).cloned().collect();
            paths.into_iter().for_each(|path| self.mark(path));
        }
    }

    /// Puts a mark at `path`: a folder becomes opaque, nothing a whiteout, and anything else hides by itself.
    fn mark(&mut self, path: EntryPath) {
        match self.own.get(&path).map(|node| is_folder(&node.kind)) {
            Some(true) => self.own.change(&path, |node| {
                let xattrs = Arc::make_mut(node.metadata.xattrs.get_or_insert_default());
                xattrs.extend(OPAQUE_MARKS.map(|name| (name.into(), b"y".as_slice().into())));
            }),
            Some(false) => {}
            None => {
                let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None };
                let number = DeviceNumber { major: 0, minor: 0 };
                self.own.put_new(path, metadata, NodeKind::CharacterDevice(number));
            }
        }
    }

    /// Returns the folder of the layer in which marks hide what `folder` has in lower layers, if marks are needed.
    fn where_to_hide(&self, folder: &EntryPath) -> Option<EntryPath> {
        let below = self.lower.resolve(folder, &self.layer.named_folders).ok().flatten();
        let folder = match below {
            Some(real) => real,
            None if is_blocked(self.lower, folder) => return None,
            None => folder.clone(),
        };
        let is_hidden = || with_folders_above(&folder).any(|path| !path.is_root() && self.is_opaque(&path));
        (!is_blocked(&self.own, &folder) && !is_hidden()).then_some(folder)
    }

    fn is_opaque(&self, path: &EntryPath) -> bool {
        let xattrs =
            self.own.get(path).filter(|node| is_folder(&node.kind)).and_then(|node| node.metadata.xattrs.as_ref());
        xattrs.is_some_and(|xattrs| OPAQUE_MARKS.iter().any(|&name| xattrs.contains_key(name)))
    }

    /// Makes the folder and those above it, where they are missing.
    fn make_folder(&mut self, folder: &EntryPath) {
        let mut folders: Vec<EntryPath> = with_folders_above(folder).collect();
        folders.reverse();
        for folder in folders {
            if self.own.get(&folder).is_none() {
                self.own.imply(folder);
            }
        }
    }
}

fn with_folders_above(path: &EntryPath) -> impl Iterator<Item = EntryPath> {
    std::iter::once(path.clone()).chain(folders_above(path))
}

/// Tells whether something other than a folder is at `path` or above.
fn is_blocked<C: Clone>(tree: &NaiveTree<C>, path: &EntryPath) -> bool {
    with_folders_above(path).any(|path| tree.get(&path).is_some_and(|node| !is_folder(&node.kind)))
}
