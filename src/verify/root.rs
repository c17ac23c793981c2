//! What becomes of a stack of layers besides laying them over one another: markers that cannot be held, and the root file
//! system that Apptainer runs.

use super::content::ContentDigest;
use super::naive_layer::{is_opaque, put_whiteout};
use super::naive_tree::{NaiveTree, directories_above, is_directory};
use super::overlay_model::is_whiteout;
use crate::catalog::MARKER;
use crate::consumer::apptainer::{Addition, Rule, additions};
use crate::image::ExecutionConfig;
use crate::layer::NodeKind;
use crate::metadata::{Metadata, Timestamp};
use crate::path::EntryPath;
use crate::settings::Modes;

/// How many markers of nested catalogs a tree may bring.
const MOST_MARKERS: usize = 1_000;

/// What has the name of a marker, cannot be one, and was taken out of a tree.
#[derive(Debug, Default)]
pub(super) struct StrayMarkers {
    pub(super) paths: Vec<EntryPath>,
    /// Those of them beyond the maximum number, in whose place no whiteout can be either.
    pub(super) too_many: Vec<EntryPath>,
}

/// Takes out of a tree what has the name of a marker and cannot be one.
pub(super) fn take_stray_markers<C: Clone>(tree: &mut NaiveTree<C>) -> StrayMarkers {
    let mut stray = StrayMarkers::default();
    for (number, (path, kind)) in named_as_markers(tree).into_iter().enumerate() {
        if number >= MOST_MARKERS || !is_file(&kind) {
            tree.take_out(&path);
            stray.too_many.extend((number >= MOST_MARKERS).then(|| path.clone()));
            stray.paths.push(path);
        }
    }
    stray
}

/// Does the same for a layer in overlay form. Below the root, whiteouts stay or come in its place where `lower` has something that
/// the layer hides; other whiteouts go, and are not stray.
pub(super) fn take_stray_markers_of_layer<C: Clone>(layer: &mut NaiveTree<C>, lower: &NaiveTree<C>) -> StrayMarkers {
    let (mut stray, named) = (StrayMarkers::default(), named_as_markers(layer));
    for (number, (path, kind)) in named.into_iter().enumerate() {
        let fits = number < MOST_MARKERS;
        let hides = path.components().count() > 1
            && lower.get(&path).is_some()
            && !directories_above(&path).any(|directory| !directory.is_root() && is_opaque(layer, &directory));
        if fits && (is_file(&kind) || is_whiteout(&kind) && hides) {
            continue;
        }
        layer.take_out(&path);
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

/// Returns everything that has the name of a marker, by path.
fn named_as_markers<C: Clone>(tree: &NaiveTree<C>) -> Vec<(EntryPath, NodeKind<C>)> {
    let named = tree.entries().filter(|(path, _)| path.name() == MARKER);
    named.map(|(path, node)| (path.clone(), node.kind.clone())).collect()
}

fn is_file<C>(kind: &NodeKind<C>) -> bool {
    matches!(kind, NodeKind::File { .. })
}

/// Returns the root file system of an image whose layers give `chain`.
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
        // Where there is no such directory, nothing can be added to it.
        if let Some(directory) = tree.directory(&directory) {
            add(&mut tree, directory.join(name), &addition);
        }
    }
    tree
}

/// Gives owners what they need to read all files and to use all directories.
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
        Addition::Directory { mode, .. } => (*mode, NodeKind::Directory, Rule::IfAbsent),
        Addition::File { mode, content, rule, .. } => (*mode, file(content), *rule),
        Addition::Symlink { target, rule, .. } => (0o777, NodeKind::Symlink(target.as_slice().into()), *rule),
    };
    let gives_way = match rule {
        Rule::IfAbsent => there.is_none(),
        Rule::IfAbsentOrLink => there.is_none_or(|kind| matches!(kind, NodeKind::Symlink(_))),
        Rule::Replace => true,
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
