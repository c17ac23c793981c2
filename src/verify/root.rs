//! The steps after all layers are applied: removing marker files that CVMFS cannot represent, and adding the files that Apptainer
//! needs.

use super::content::ContentDigest;
use super::naive_layer::{is_opaque, put_whiteout};
use super::naive_tree::{NaiveTree, directories_above, is_directory};
use super::overlay_model::is_whiteout;
use crate::catalog::MARKER;
use crate::consumer::apptainer::{Addition, ReplaceRule, additions};
use crate::image::ExecutionConfig;
use crate::layer::NodeKind;
use crate::metadata::{Metadata, Timestamp};
use crate::path::EntryPath;
use crate::settings::Modes;

/// Maximum number of nested catalog markers in the tree of an image.
const MAX_MARKERS: usize = 1_000;

/// Entries with the name of a marker that cannot be markers, and were removed from a tree.
#[derive(Debug, Default)]
pub(super) struct StrayMarkers {
    pub(super) paths: Vec<EntryPath>,
    /// Entries beyond the maximum number of markers. No whiteout may replace them, because even a whiteout would count as a
    /// marker.
    pub(super) too_many: Vec<EntryPath>,
}

/// Removes the entries that have the name of a marker and cannot be markers.
pub(super) fn remove_stray_markers<C: Clone>(tree: &mut NaiveTree<C>) -> StrayMarkers {
    let mut stray = StrayMarkers::default();
    for (number, (path, kind)) in named_as_markers(tree).into_iter().enumerate() {
        if number >= MAX_MARKERS || !is_file(&kind) {
            tree.remove_subtree(&path);
            stray.too_many.extend((number >= MAX_MARKERS).then(|| path.clone()));
            stray.paths.push(path);
        }
    }
    stray
}

/// Removes the entries of a layer in overlay form that have the name of a marker and cannot be markers. Below the root, if
/// the layer hides an entry of `lower` at such a path, a whiteout is kept there or replaces the removed entry. All other
/// whiteouts of that name are removed, but do not count as stray markers.
pub(super) fn remove_stray_markers_of_layer<C: Clone>(layer: &mut NaiveTree<C>, lower: &NaiveTree<C>) -> StrayMarkers {
    let (mut stray, named) = (StrayMarkers::default(), named_as_markers(layer));
    for (number, (path, kind)) in named.into_iter().enumerate() {
        let fits = number < MAX_MARKERS;
        let hides = path.components().count() > 1
            && lower.get(&path).is_some()
            && !directories_above(&path).any(|directory| !directory.is_root() && is_opaque(layer, &directory));
        if fits && (is_file(&kind) || is_whiteout(&kind) && hides) {
            continue;
        }
        layer.remove_subtree(&path);
        if hides && fits {
            put_whiteout(layer, &path);
        }
        if hides || !is_whiteout(&kind) {
            stray.too_many.extend((!fits).then(|| path.clone()));
            stray.paths.push(path);
        }
    }
    stray
}

/// Returns all entries that have the name of a marker, sorted by path.
fn named_as_markers<C: Clone>(tree: &NaiveTree<C>) -> Vec<(EntryPath, NodeKind<C>)> {
    let named = tree.entries().filter(|(path, _)| path.name() == MARKER);
    named.map(|(path, node)| (path.clone(), node.kind.clone())).collect()
}

fn is_file<C>(kind: &NodeKind<C>) -> bool {
    matches!(kind, NodeKind::File { .. })
}

/// Returns the root file system of an image, given the tree of its final chain.
pub(super) fn root_file_system(
    chain: &NaiveTree<ContentDigest>,
    config: &ExecutionConfig,
    modes: Modes,
) -> NaiveTree<ContentDigest> {
    let mut tree = chain.clone();
    if modes == Modes::Widened {
        widen(&mut tree);
    }
    for addition in additions(config) {
        let (directory, name) = addition.path().split().expect("nothing is added at the root itself");
        // Without that directory, the file is not added.
        if let Some(directory) = tree.directory(&directory) {
            add(&mut tree, directory.join(name), &addition);
        }
    }
    tree
}

/// Adds the permissions that owners need to read all files and to use all directories.
fn widen(tree: &mut NaiveTree<ContentDigest>) {
    let paths: Vec<EntryPath> = tree.entries().map(|(path, _)| path.clone()).collect();
    for path in paths {
        tree.change(&path, |node| match node.kind {
            NodeKind::Directory => node.metadata.mode |= 0o700,
            NodeKind::File { .. } => node.metadata.mode |= 0o600,
            _ => {}
        });
    }
}

fn add(tree: &mut NaiveTree<ContentDigest>, place: EntryPath, addition: &Addition) {
    let there = tree.get(&place).map(|node| &node.kind);
    let (mode, kind, rule) = match addition {
        Addition::Directory { mode, .. } => (*mode, NodeKind::Directory, ReplaceRule::IfAbsent),
        Addition::File { mode, content, rule, .. } => (*mode, file(content), *rule),
        Addition::Symlink { target, rule, .. } => (0o777, NodeKind::Symlink(target.as_slice().into()), *rule),
    };
    let gives_way = match rule {
        ReplaceRule::IfAbsent => there.is_none(),
        ReplaceRule::IfAbsentOrLink => there.is_none_or(|kind| matches!(kind, NodeKind::Symlink(_))),
        ReplaceRule::Replace => true,
    };
    debug_assert!(!(gives_way && is_directory(&kind) && there.is_some()), "a directory is only added where nothing is");
    if gives_way {
        let metadata = Metadata { mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None };
        tree.put_new(place, metadata, kind);
    }
}

fn file(content: &[u8]) -> NodeKind<ContentDigest> {
    NodeKind::File { size: content.len() as u64, content: ContentDigest::of(content) }
}
