//! Invariants of every image, tested on generated images.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::layer::EntryKind;
use crate::verify::tests_generate::image;

type Layer = Vec<LayerEntry<u8>>;

/// Returns the tree of the layers up to the first one that cannot be applied.
fn tree_of(layers: &[Layer]) -> NaiveTree<u8> {
    let mut tree = NaiveTree::new();
    let _error = layers.iter().try_for_each(|layer| tree.apply(layer));
    tree
}

/// Returns the tree after `layer` is applied to `lower`.
fn applied(lower: &NaiveTree<u8>, layer: &[LayerEntry<u8>]) -> Result<NaiveTree<u8>, ApplyError> {
    let mut tree = lower.clone();
    tree.apply(layer).map(|()| tree)
}

fn is_mark(entry: &LayerEntry<u8>) -> bool {
    matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque)
}

fn is_node(entry: &LayerEntry<u8>) -> bool {
    matches!(entry.kind, EntryKind::Node(..))
}

/// Replaces every symbolic link by a regular file, so that all paths are literal.
fn without_symlinks(image: Vec<Layer>) -> Vec<Layer> {
    let mut image = image;
    for entry in image.iter_mut().flatten() {
        if let EntryKind::Node(_, kind @ NodeKind::Symlink(_)) = &mut entry.kind {
            *kind = NodeKind::File { size: 9, content: 9 };
        }
    }
    image
}

/// Returns the nodes of a layer, with only the last node at each path.
fn plain_nodes(layer: &[LayerEntry<u8>]) -> Layer {
    let mut seen = HashSet::new();
    let mut nodes: Layer =
        layer.iter().rev().filter(|entry| is_node(entry) && seen.insert(&entry.path)).cloned().collect();
    nodes.reverse();
    nodes
}

proptest! {
    #[test]
    fn every_tree_is_a_file_system(image in image()) {
        let tree = tree_of(&image);
        let mut nodes: HashMap<usize, &NaiveNode<u8>> = HashMap::new();
        for (path, node) in tree.entries() {
            match path.split() {
                None => prop_assert_eq!(&node.kind, &NodeKind::Directory),
                Some((directory, _)) => prop_assert_eq!(&tree.get(&directory).unwrap().kind, &NodeKind::Directory),
            }
            // No name is that of a whiteout, or `..`.
            prop_assert!(path.components().all(|name| !name.starts_with(b".")), "{:?}", path);
            let other = nodes.insert(node.inode, node);
            prop_assert!(other.is_none_or(|other| other == node && node.kind != NodeKind::Directory), "{:?}", path);
        }
        prop_assert!(tree.get(&EntryPath::ROOT).is_some());
    }

    #[test]
    fn empty_layer_changes_nothing(image in image()) {
        let tree = tree_of(&image);
        prop_assert_eq!(applied(&tree, &[]), Ok(tree));
    }

    #[test]
    fn layer_that_fails_changes_nothing(image in image()) {
        let mut tree = NaiveTree::new();
        for layer in &image {
            let before = tree.clone();
            if tree.apply(layer).is_err() {
                prop_assert_eq!(&tree, &before);
            }
        }
    }

    #[test]
    fn marks_hide_the_same_entries_at_any_position_in_the_archive(image in image().prop_map(without_symlinks)) {
        let (layer, lower) = image.split_last().unwrap();
        let layer: Layer = layer.iter().filter(|entry| is_mark(entry) || is_node(entry)).cloned().collect();
        let (marks, others): (Layer, Layer) = layer.iter().cloned().partition(is_mark);
        let lower = tree_of(lower);
        let kinds = |layer: &[LayerEntry<u8>]| {
            let tree = applied(&lower, layer)?;
            Ok(tree.entries().map(|(path, node)| (path.clone(), node.kind.clone())).collect::<Vec<_>>())
        };
        let result: Result<_, ApplyError> = kinds(&layer);
        prop_assert_eq!(&kinds(&[marks.clone(), others.clone()].concat()), &result);
        prop_assert_eq!(&kinds(&[others, marks].concat()), &result);
    }

    #[test]
    fn nodes_without_marks_and_links_may_be_applied_twice(image in image().prop_map(without_symlinks)) {
        let (layer, lower) = image.split_last().unwrap();
        let nodes = plain_nodes(layer);
        let Ok(once) = applied(&tree_of(lower), &nodes) else { return Ok(()) };
        prop_assert_eq!(&applied(&once, &nodes), &Ok(once));
    }

    #[test]
    fn nodes_without_marks_and_links_may_be_split_into_two_layers(
        image in image().prop_map(without_symlinks),
        cut in 0..=20_usize,
    ) {
        let (layer, lower) = image.split_last().unwrap();
        let nodes = plain_nodes(layer);
        let (first, second) = nodes.split_at(cut.min(nodes.len()));
        let lower = tree_of(lower);
        let in_two = applied(&lower, first).and_then(|tree| applied(&tree, second));
        prop_assert_eq!(in_two, applied(&lower, &nodes));
    }

    #[test]
    fn entries_that_a_layer_hides_and_does_not_add_are_gone(image in image().prop_map(without_symlinks)) {
        let (layer, lower) = image.split_last().unwrap();
        let (marks, others): (Layer, Layer) = layer.iter().cloned().partition(is_mark);
        let is_brought = |path: &EntryPath| {
            others.iter().any(|entry| entry.path == *path || directories_above(&entry.path).any(|directory| directory == *path))
        };
        let Ok(tree) = applied(&tree_of(lower), layer) else { return Ok(()) };
        for (path, _) in tree.entries().filter(|(path, _)| !is_brought(path)) {
            let is_hidden = |mark: &LayerEntry<u8>| match mark.kind {
                EntryKind::Opaque => directories_above(path).any(|directory| directory == mark.path),
                _ => *path == mark.path || directories_above(path).any(|directory| directory == mark.path),
            };
            prop_assert!(!marks.iter().any(is_hidden), "{:?} is still there", path);
        }
    }
}
