//! A naive model of overlayfs: the directory tree that a Linux overlay mount of several layers presents.
//!
//! The input is layers in published form: every directory exists, whiteouts are character devices 0:0, and opaque
//! directories have an extended attribute. Linux 6.18 agrees with the model on generated images (`tests/it/layer_rules`).
//! Linux lists a whiteout in a directory that exists in only one layer, although opening the whiteout fails. The model lists
//! it, too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::layer::{DeviceNumber, NodeKind};
use crate::metadata::{Metadata, Xattrs};
use crate::path::EntryPath;

/// Device number of the character device that overlayfs treats as a whiteout.
pub const WHITEOUT: DeviceNumber = DeviceNumber { major: 0, minor: 0 };

/// Extended attribute of an opaque directory, which hides the entries of lower layers, if its value is `y`.
pub const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// All paths of a published layer or of a mount, including the root, with their nodes.
pub type MountedTree<C> = BTreeMap<EntryPath, (Metadata, NodeKind<C>)>;

/// Returns the tree that a mount of the layers presents, without overlayfs's own attributes. The lowest layer comes first.
pub fn overlay_mount<C: Clone>(lower_to_upper: &[MountedTree<C>]) -> MountedTree<C> {
    let upper_to_lower: Vec<&MountedTree<C>> = lower_to_upper.iter().rev().collect();
    let paths: BTreeSet<&EntryPath> = upper_to_lower.iter().flat_map(|layer| layer.keys()).collect();
    let mut mounted = MountedTree::new();
    let mut merged_from: HashMap<EntryPath, Vec<&MountedTree<C>>> = HashMap::new();
    // In this order, a directory comes before its entries.
    for path in paths {
        let candidates = match path.split() {
            None => &upper_to_lower,
            Some((directory, _)) => merged_from.entry(directory).or_default(),
        };
        let (directories, other) = look_up(path, candidates);
        // Linux lists a directory of a single layer unchanged. The root is always a merged directory, because a container
        // adds an upper layer.
        let is_at_the_root = path.split().is_some_and(|(parent, _)| parent.is_root());
        let ghost = match candidates.as_slice() {
            [only] if !is_at_the_root => only.get(path).filter(|(_, kind)| is_whiteout(kind)),
            _ => None,
        };
        let other = other.or(ghost);
        if let Some((metadata, kind)) = other.or_else(|| directories.first().map(|layer| &layer[path])) {
            mounted.insert(path.clone(), (without_marks(metadata), kind.clone()));
        }
        merged_from.insert(path.clone(), directories);
    }
    mounted
}

/// Returns the layers whose directories at `path` are merged, or the node of another type that the mount presents there.
#[expect(clippy::type_complexity, reason = "a pair is all that the caller needs")]
fn look_up<'l, C>(
    path: &EntryPath,
    upper_to_lower: &[&'l MountedTree<C>],
) -> (Vec<&'l MountedTree<C>>, Option<&'l (Metadata, NodeKind<C>)>) {
    let mut directories = Vec::new();
    for &layer in upper_to_lower {
        match layer.get(path) {
            None => {}
            Some((_, NodeKind::CharacterDevice(WHITEOUT))) => break,
            Some((metadata, NodeKind::Directory)) => {
                directories.push(layer);
                // Linux ignores the opaque attribute of the root of a layer.
                if is_opaque(metadata) && !path.is_root() {
                    break;
                }
            }
            Some(other) if directories.is_empty() => return (directories, Some(other)),
            Some(_) => break,
        }
    }
    (directories, None)
}

/// Returns whether a node is a whiteout.
pub fn is_whiteout<C>(kind: &NodeKind<C>) -> bool {
    matches!(kind, NodeKind::CharacterDevice(WHITEOUT))
}

fn is_opaque(metadata: &Metadata) -> bool {
    metadata.xattrs.as_ref().and_then(|xattrs| xattrs.get(OPAQUE)).is_some_and(|value| **value == *b"y")
}

/// Returns `metadata` without overlayfs's attributes, neither those of `trusted` nor those of `userxattr` mounts.
fn without_marks(metadata: &Metadata) -> Metadata {
    let is_mark = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let mut xattrs: Xattrs = metadata.xattrs.as_deref().cloned().unwrap_or_default();
    xattrs.retain(|name, _| !is_mark(name));
    Metadata { xattrs: (!xattrs.is_empty()).then(|| Arc::new(xattrs)), ..metadata.clone() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::layer::{EntryKind, LayerEntry};
    use crate::verify::NaiveTree;
    use crate::verify::tests_generate::{directory, file, image, node, opaque, path, whiteout};

    #[test]
    fn whiteout_in_a_directory_of_a_single_layer_is_listed() {
        let mounted =
            mount(&[vec![directory("", 0o755)], vec![directory("", 0o755), directory("a", 0o755), whiteout("a/b")]]);
        assert_eq!(paths(&mounted), ["/", "/a", "/a/b"]);
        assert!(is_whiteout(&mounted[&path("a/b")].1));
    }

    /// Converts a layer into published form. This simple conversion requires that the layer contains an entry for each
    /// directory.
    fn published(layer: &[LayerEntry<u8>]) -> MountedTree<u8> {
        let mut tree = MountedTree::new();
        for entry in layer {
            if let EntryKind::Node(metadata, kind) = &entry.kind {
                tree.insert(entry.path.clone(), (metadata.clone(), kind.clone()));
            }
        }
        for entry in layer {
            let mark = (Metadata::of_implied_directory(), NodeKind::CharacterDevice(WHITEOUT));
            match (&entry.kind, tree.get_mut(&entry.path)) {
                (EntryKind::Whiteout, None) => drop(tree.insert(entry.path.clone(), mark)),
                (EntryKind::Whiteout | EntryKind::Opaque, Some((metadata, NodeKind::Directory))) => {
                    let xattrs = metadata.xattrs.get_or_insert_default();
                    Arc::make_mut(xattrs).insert(OPAQUE.into(), (*b"y").into());
                }
                _ => {}
            }
        }
        tree
    }

    fn mount(layers: &[Vec<LayerEntry<u8>>]) -> MountedTree<u8> {
        let published: Vec<MountedTree<u8>> = layers.iter().map(|layer| published(layer)).collect();
        overlay_mount(&published)
    }

    fn paths(tree: &MountedTree<u8>) -> Vec<String> {
        tree.keys().map(EntryPath::to_string).collect()
    }

    #[test]
    fn whiteout_hides_lower_entries_and_is_not_listed() {
        let mounted = mount(&[
            vec![directory("", 0o755), file("a", 1), directory("b", 0o700), file("b/a", 1), file("bb", 1)],
            vec![directory("", 0o755), whiteout("a"), whiteout("b"), whiteout("ab")],
        ]);
        assert_eq!(paths(&mounted), ["/", "/bb"]);
    }

    #[test]
    fn directories_are_merged_with_the_attributes_of_the_upper_one() {
        let mounted = mount(&[
            vec![directory("", 0o755), directory("a", 0o700), file("a/a", 1), file("a/b", 1)],
            vec![directory("", 0o711), directory("a", 0o500), file("a/b", 2)],
        ]);
        assert_eq!(paths(&mounted), ["/", "/a", "/a/a", "/a/b"]);
        assert_eq!([mounted[&path("")].0.mode, mounted[&path("a")].0.mode], [0o711, 0o500]);
        assert_eq!(mounted[&path("a/b")].1, NodeKind::File { size: 2, content: 2 });
    }

    #[test]
    fn opaque_directory_hides_its_lower_entries_and_has_no_opaque_attribute() {
        let lower = || vec![directory("", 0o755), directory("a", 0o700), file("a/a", 1)];
        let mounted = mount(&[lower(), vec![directory("", 0o755), directory("a", 0o500), opaque("a"), file("a/b", 2)]]);
        assert_eq!(paths(&mounted), ["/", "/a", "/a/b"]);
        assert_eq!(mounted[&path("a")].0, Metadata { mode: 0o500, ..Metadata::of_implied_directory() });
    }

    #[test]
    fn opaque_attribute_of_the_root_is_ignored() {
        let mounted = mount(&[vec![directory("", 0o755), file("a", 1)], vec![directory("", 0o755), opaque("")]]);
        assert_eq!(paths(&mounted), ["/", "/a"]);
    }

    #[test]
    fn directories_are_not_merged_across_a_file() {
        let in_directory = |name| vec![directory("", 0o755), directory("a", 0o755), file(name, 1)];
        let between = vec![directory("", 0o755), node("a", NodeKind::Fifo)];
        assert_eq!(paths(&mount(&[in_directory("a/a"), between, in_directory("a/b")])), ["/", "/a", "/a/b"]);
    }

    /// Changes a layer so that overlayfs and our rules agree on its meaning: one entry for each directory, and no hard
    /// links.
    fn made_plain(layer: Vec<LayerEntry<u8>>) -> Vec<LayerEntry<u8>> {
        let root_is_opaque = |entry: &LayerEntry<u8>| entry.path.is_root() && entry.kind == EntryKind::Opaque;
        let is_other = |entry: &LayerEntry<u8>| matches!(entry.kind, EntryKind::HardLink(_) | EntryKind::Unpublished);
        let layer: Vec<_> = layer.into_iter().filter(|entry| !root_is_opaque(entry) && !is_other(entry)).collect();
        let mut needed = BTreeSet::from([EntryPath::ROOT]);
        for entry in &layer {
            needed.extend(crate::verify::naive_tree::directories_above(&entry.path));
            needed.extend((entry.kind == EntryKind::Opaque).then(|| entry.path.clone()));
        }
        let mut plain: Vec<LayerEntry<u8>> = needed.iter().map(|path| directory(&path.to_string(), 0o711)).collect();
        let mut seen = HashSet::new();
        plain.extend(layer.into_iter().filter(|entry| match &entry.kind {
            EntryKind::Node(_, kind) if *kind != NodeKind::Directory && needed.contains(&entry.path) => false,
            EntryKind::Node(..) => seen.insert(entry.path.clone()),
            _ => true,
        }));
        plain
    }

    proptest! {
        #[test]
        fn stack_of_plain_layers_equals_its_overlay_mount(image in image()) {
            let layers: Vec<Vec<LayerEntry<u8>>> = image.into_iter().map(made_plain).collect();
            let mut tree = NaiveTree::new();
            for layer in &layers {
                prop_assert_eq!(tree.apply(layer), Ok(()));
            }
            let applied = tree.entries().map(|(path, node)| (path.clone(), (node.metadata.clone(), node.kind.clone())));
            let mut mounted = mount(&layers);
            // These layers contain whiteouts even where there is no lower entry.
            mounted.retain(|_, (_, kind)| !is_whiteout(kind));
            prop_assert_eq!(applied.collect::<MountedTree<u8>>(), mounted);
        }
    }
}
