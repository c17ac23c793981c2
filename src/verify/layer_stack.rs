//! Whether the published layers of an image, mounted over each other, show its root file system.
//!
//! Layers are published literally, as containerd and podman unpack them, so that a layer with entries below a symbolic link of
//! lower layers has a directory in the link's place. That is listed among the losses of the image and explains differences below
//! the link and below what it leads to, and whether the directories on the way there exist. Any other difference is a finding.

use std::collections::{BTreeMap, BTreeSet};

use super::compare::Comparison;
use super::content::ContentDigest;
use super::naive_layer::NaiveLayer;
use super::naive_tree::NaiveTree;
use super::overlay_model::{MountedTree, overlay_mount};
use crate::catalog::MARKER;
use crate::layer::EntryPath;

/// The layers of an image, the lowest first.
#[derive(Default)]
pub(super) struct LayerStack {
    layers: Vec<MountedTree<ContentDigest>>,
    /// Where a listed loss explains differences.
    explained: BTreeSet<EntryPath>,
}

impl LayerStack {
    /// Adds the next layer, and the links that it masks with the places that it changes through them.
    pub(super) fn add(&mut self, layer: &NaiveLayer<ContentDigest>, masked: BTreeMap<EntryPath, BTreeSet<EntryPath>>) {
        self.layers.push(without_inodes(&layer.tree));
        self.explained.extend(masked.into_iter().flat_map(|(link, places)| std::iter::once(link).chain(places)));
    }

    /// Compares what a mount of the layers shows with the merged tree, whose root is published at `root`.
    pub(super) fn compare(self, merged: &NaiveTree<ContentDigest>, root: &EntryPath, comparison: &mut Comparison<'_>) {
        // An image without layers has nothing to mount.
        if self.layers.is_empty() {
            return;
        }
        let (mounted, merged) = (overlay_mount(&self.layers), without_inodes(merged));
        let paths: BTreeSet<&EntryPath> = mounted.keys().chain(merged.keys()).collect();
        for path in paths.into_iter().filter(|path| mounted.get(path) != merged.get(path)) {
            // What has the name of a marker and is none cannot be published, nor can a whiteout of it.
            let is_explained = path.components().any(|name| name == MARKER)
                || self.explained.iter().any(|place| path.is_in(place) || !path.is_root() && place.is_in(path));
            if !is_explained {
                let show = |tree: &MountedTree<ContentDigest>| {
                    tree.get(path)
                        .map_or_else(|| "nothing".to_owned(), |(metadata, kind)| format!("{kind:?} {metadata:?}"))
                };
                let path = path.components().fold(root.clone(), |path, name| path.join(name));
                comparison.note(&path, "overlay mount of the layers", show(&merged), show(&mounted));
            }
        }
    }
}

fn without_inodes(tree: &NaiveTree<ContentDigest>) -> MountedTree<ContentDigest> {
    tree.entries().map(|(path, node)| (path.clone(), (node.metadata.clone(), node.kind.clone()))).collect()
}
