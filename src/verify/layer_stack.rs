//! Compares an overlay mount of the published layers of an image with its root file system.
//!
//! Each layer is published literally, as containerd and podman unpack it. Therefore, a layer with entries below a symbolic
//! link of lower layers has a directory in place of the link. This is listed among the losses of the image (`masked-link`).
//! The listed link explains differences below the link and below its target, and the existence of the directories above
//! these. Any other difference is reported.

use std::collections::{BTreeMap, BTreeSet};

use super::compare::Comparison;
use super::content::ContentDigest;
use super::naive_layer::NaiveLayer;
use super::naive_tree::NaiveTree;
use super::overlay_model::{MountedTree, overlay_mount};
use crate::catalog::MARKER;
use crate::path::EntryPath;

/// The layers of an image, lowest first.
#[derive(Default)]
pub(super) struct LayerStack {
    layers: Vec<MountedTree<ContentDigest>>,
    /// Paths below which a listed loss explains differences.
    explained: BTreeSet<EntryPath>,
}

impl LayerStack {
    /// Adds the next layer, with the links that it masks and, for each link, the paths that the layer changes through it.
    pub(super) fn add(&mut self, layer: &NaiveLayer<ContentDigest>, masked: BTreeMap<EntryPath, BTreeSet<EntryPath>>) {
        self.layers.push(without_inodes(&layer.tree));
        self.explained.extend(masked.into_iter().flat_map(|(link, places)| std::iter::once(link).chain(places)));
    }

    /// Adds paths below which a listed loss explains differences.
    pub(super) fn explain(&mut self, places: impl IntoIterator<Item = EntryPath>) {
        self.explained.extend(places);
    }

    /// Compares an overlay mount of the layers with the merged tree, whose root is published at `root`.
    pub(super) fn compare(self, merged: &NaiveTree<ContentDigest>, root: &EntryPath, comparison: &mut Comparison<'_>) {
        for MountDifference { path, merged, mounted } in self.differences(merged) {
            let path = path.components().fold(root.clone(), |path, name| path.join(name));
            comparison.note(&path, "overlay mount of the layers", merged, mounted);
        }
    }

    /// Returns the differences that no listed loss explains.
    fn differences(&self, merged: &NaiveTree<ContentDigest>) -> Vec<MountDifference> {
        // An image without layers cannot be mounted.
        if self.layers.is_empty() {
            return Vec::new();
        }
        let (mounted, merged) = (overlay_mount(&self.layers), without_inodes(merged));
        let paths: BTreeSet<&EntryPath> = mounted.keys().chain(merged.keys()).collect();
        let differ = paths.into_iter().filter(|path| mounted.get(path) != merged.get(path));
        differ
            .filter(|path| !self.is_explained(path))
            .map(|path| {
                let show = |tree: &MountedTree<ContentDigest>| {
                    tree.get(path)
                        .map_or_else(|| "nothing".to_owned(), |(metadata, kind)| format!("{kind:?} {metadata:?}"))
                };
                MountDifference { path: path.clone(), merged: show(&merged), mounted: show(&mounted) }
            })
            .collect()
    }

    fn is_explained(&self, path: &EntryPath) -> bool {
        // At the root, the marker of each published tree replaces any file of that name.
        path.components().next() == Some(MARKER)
            || self.explained.iter().any(|place| path.is_in(place) || !path.is_root() && place.is_in(path))
    }
}

/// A path at which an overlay mount of the layers differs from the merged tree.
#[derive(Debug, PartialEq, Eq)]
struct MountDifference {
    path: EntryPath,
    merged: String,
    mounted: String,
}

fn without_inodes(tree: &NaiveTree<ContentDigest>) -> MountedTree<ContentDigest> {
    tree.entries().map(|(path, node)| (path.clone(), (node.metadata.clone(), node.kind.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{EntryKind, LayerEntry, NodeKind};
    use crate::metadata::Metadata;
    use crate::verify::naive_layer::{AppliedLayer, apply_layer};
    use crate::verify::root::{remove_stray_markers, remove_stray_markers_of_layer};

    fn path(text: &str) -> EntryPath {
        EntryPath::normalise(text.as_bytes()).unwrap()
    }

    fn entry(text: &str, kind: EntryKind<ContentDigest>) -> LayerEntry<ContentDigest> {
        LayerEntry { path: path(text), kind }
    }

    fn file(text: &str) -> LayerEntry<ContentDigest> {
        let kind = NodeKind::File { size: 1, content: ContentDigest::of(b"x") };
        entry(text, EntryKind::Node(Metadata::of_implied_directory(), kind))
    }

    /// Returns the paths at which an overlay mount of the layers differs, after `damage` was applied to the uppermost layer.
    fn differences(
        layers: &[Vec<LayerEntry<ContentDigest>>],
        damage: impl Fn(&mut NaiveLayer<ContentDigest>),
    ) -> Vec<String> {
        let (mut tree, mut stack) = (NaiveTree::new(), LayerStack::default());
        for (number, entries) in layers.iter().enumerate() {
            let AppliedLayer { mut merged, mut layer, masked } = apply_layer(&tree, entries).unwrap();
            remove_stray_markers_of_layer(&mut layer.tree, &tree);
            remove_stray_markers(&mut merged);
            if number + 1 == layers.len() {
                damage(&mut layer);
            }
            stack.add(&layer, masked);
            tree = merged;
        }
        stack.differences(&tree).iter().map(|difference| difference.path.to_string()).collect()
    }

    #[test]
    fn missing_whiteout_of_a_payload_marker_is_reported() {
        let lower = || vec![file("d/.cvmfscatalog"), file("d/x"), file(".cvmfscatalog")];
        let symlink = EntryKind::Node(Metadata::of_implied_directory(), NodeKind::Symlink((*b"x").into()));
        for upper in [EntryKind::Whiteout, EntryKind::Unpublished, symlink] {
            let layers = [lower(), vec![entry("d/.cvmfscatalog", upper.clone()), entry(".cvmfscatalog", upper)]];
            assert_eq!(differences(&layers, |_| {}), [""; 0]);
            let removed = differences(&layers, |layer| layer.tree.remove_subtree(&path("d/.cvmfscatalog")));
            assert_eq!(removed, ["/d/.cvmfscatalog"]);
        }
    }
}
