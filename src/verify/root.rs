//! What becomes of a stack of layers besides laying them over one another: markers that cannot be held, and the root file
//! system that Apptainer runs.

use super::content::ContentDigest;
use super::naive_tree::{NaiveTree, is_folder};
use crate::catalog::MARKER;
use crate::image::ExecutionConfig;
use crate::layer::{EntryPath, NodeKind};
use crate::layout::apptainer::{Addition, Rule, additions};
use crate::metadata::{Metadata, Timestamp};
use crate::settings::Modes;

/// How many markers of nested catalogs a tree may bring.
const MOST_MARKERS: usize = 1_000;

/// Takes out of a tree what has the name of a marker and cannot be one, and returns its paths.
pub(super) fn take_stray_markers<C: Clone>(tree: &mut NaiveTree<C>) -> Vec<EntryPath> {
    let markers = tree.entries().filter(|(path, _)| path.name() == MARKER).enumerate();
    let stray: Vec<EntryPath> = markers
        .filter(|(number, (_, node))| *number >= MOST_MARKERS || !matches!(node.kind, NodeKind::File { .. }))
        .map(|(_, (path, _))| path.clone())
        .collect();
    stray.iter().for_each(|path| tree.take_out(path));
    stray
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
        let (folder, name) = addition.path().split().expect("nothing is added at the root itself");
        // Where there is no such folder, nothing can be added to it.
        if let Some(folder) = tree.folder(&folder) {
            add(&mut tree, folder.join(name), &addition);
        }
    }
    tree
}

/// Gives owners what they need to read all files and to use all folders.
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
    debug_assert!(!(gives_way && is_folder(&kind) && there.is_some()), "a folder is only added where nothing is");
    if gives_way {
        let metadata = Metadata { mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None };
        tree.put_new(place, metadata, kind);
    }
}

fn file(content: &[u8]) -> NodeKind<ContentDigest> {
    NodeKind::File { size: content.len() as u64, content: ContentDigest::of(content) }
}
