//! All that is published for one image, compared with what its layers say.

use std::collections::BTreeSet;

use super::compare::Comparison;
use super::content::ContentDigest;
use super::naive_layer::NaiveLayer;
use super::naive_tree::NaiveTree;
use super::records::{ExpectedLosses, compare_facts, compare_layer_record, links_across_folders};
use super::root::{root_file_system, take_stray_markers};
use super::{ApplyError, ReadLayer, VerifyError};
use crate::image::{ChainId, Digest};
use crate::layer::{EntryPath, LossKind};
use crate::layout::{self, ImagePlace, ImageRecord, LossList};
use crate::message::causes;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::settings::Modes;
use crate::source::Image;

/// An image and what the repository says that it has of it.
pub(super) struct Published<'a> {
    pub(super) repository: &'a Repository,
    pub(super) image: &'a Image,
    pub(super) place: &'a ImagePlace,
    pub(super) record: ImageRecord,
    pub(super) modes: Modes,
}

/// Hard links into lower layers, which a published layer may show as they are above another image's.
#[derive(Default)]
struct LinksBelow {
    /// In layers that were compared, by their paths in the repository.
    compared: BTreeSet<EntryPath>,
    /// In layers that were not, by their paths in the image.
    others: BTreeSet<EntryPath>,
}

impl Published<'_> {
    /// Compares everything and returns how much of the image CVMFS cannot hold.
    pub(super) fn compare(
        &self,
        layers: &[ReadLayer],
        comparison: &mut Comparison<'_>,
        progress: &Progress,
    ) -> Result<u64, VerifyError> {
        self.compare_record(comparison);
        self.compare_documents(comparison);
        let mut tree = NaiveTree::new();
        let (mut losses, mut links) = (ExpectedLosses::default(), LinksBelow::default());
        for (number, (layer, chain)) in layers.iter().zip(self.image.chains()).enumerate() {
            let failed = |source| VerifyError::Apply { digest: layer.digest, source };
            // A layer that an image has twice is published as it is above those below its first place.
            let is_first = layers[..number].iter().all(|other| other.digest != layer.digest);
            let is_compared = is_first && self.record.layers.contains(&layer.digest);
            compare_layer(layer, &tree, is_compared, &mut links, comparison).map_err(failed)?;
            tree.apply(&layer.entries).map_err(failed)?;
            losses.add_layer(&layer.summary.losses, take_stray_markers(&mut tree));
            self.compare_chain(chain, &tree, &losses, comparison);
        }
        if self.record.flat {
            self.compare_flat(&tree, &losses, comparison);
        }
        comparison.compare_contents(progress);
        let listed = self.listed_losses(comparison);
        allow_other_parents(&listed, &links, &mut losses, comparison);
        losses.compare(&self.metadata(b"losses.json"), &listed, comparison);
        Ok(losses.total())
    }

    fn metadata(&self, name: &[u8]) -> EntryPath {
        self.place.metadata().join(name)
    }

    /// Compares what the record says about the image, but not yet whether it is true.
    fn compare_record(&self, comparison: &mut Comparison<'_>) {
        let (image, record, path) = (self.image, &self.record, self.metadata(b"strata.json"));
        let index = |digest: Option<_>| digest.map_or_else(|| "none".to_owned(), |digest| format!("{digest}"));
        comparison.require(&path, "config", image.config.digest, record.config);
        comparison.require(&path, "index", index(image.index.as_ref().map(|index| index.digest)), index(record.index));
        comparison.require(&path, "manifest-is-made", image.manifest_is_made, record.manifest_is_made);
        if !record.layers.is_empty() {
            let expected: BTreeSet<_> = image.layers.iter().map(|layer| layer.digest).collect();
            comparison.require_set(&path, "layers", &expected, &record.layers.iter().copied().collect());
        }
        let known = image.chains();
        for chain in record.chains.iter().filter(|chain| !known.contains(chain)) {
            comparison.note(&path, "chains", "chains of the image", chain);
        }
    }

    /// Compares the image's own documents, to the byte, and looks for files that no image has.
    fn compare_documents(&self, comparison: &mut Comparison<'_>) {
        let index = self.image.index.as_ref().map(|index| ("index.json", index));
        let documents = [("manifest.json", &self.image.manifest), ("config.json", &self.image.config)];
        for (name, document) in documents.into_iter().chain(index) {
            let path = self.metadata(name.as_bytes());
            if let Some(bytes) = comparison.file(&path)
                && bytes != document.bytes
            {
                comparison.note(&path, "content", document.digest, Digest::of(&bytes));
            }
        }
        let mut known = vec!["manifest.json", "config.json", "strata.json", "losses.json"];
        known.extend(index.map(|(name, _)| name));
        let folder = self.place.metadata();
        for name in self.repository.list(&folder).unwrap_or_default().keys() {
            if !known.iter().any(|known| known.as_bytes() == name) {
                comparison.note(&folder.join(name), "path", "nothing", "something");
            }
        }
    }

    /// Compares a chain that is there, and notes one that the record names and that is not.
    fn compare_chain(
        &self,
        chain: ChainId,
        tree: &NaiveTree<ContentDigest>,
        losses: &ExpectedLosses,
        comparison: &mut Comparison<'_>,
    ) {
        let root = layout::chain_root(chain);
        // What cannot be looked up is found wherever it is compared.
        let is_there = !matches!(self.repository.get(&root), Ok(None));
        if is_there || self.record.chains.contains(&chain) {
            comparison.tree(&root, tree);
            compare_facts(self.repository, &root, tree, losses, comparison);
        }
    }

    fn compare_flat(&self, chain: &NaiveTree<ContentDigest>, losses: &ExpectedLosses, comparison: &mut Comparison<'_>) {
        let config = self.image.config.digest;
        let tree = root_file_system(chain, &self.image.parsed_config.config, self.modes);
        let root = layout::flat_root(config);
        comparison.tree(&root, &tree);
        compare_facts(self.repository, &root, &tree, losses, comparison);
        let (link, target) = (self.place.link(), self.place.link_target(config));
        let show = |target: &[u8]| format!("a link to '{}'", target.escape_ascii());
        let found = match self.repository.get(&link) {
            Ok(Some(entry)) if entry.is_symlink() => show(&entry.target()),
            Ok(Some(_)) => "something else".to_owned(),
            Ok(None) => "nothing".to_owned(),
            Err(error) => causes(&error),
        };
        comparison.require(&link, "target", show(&target), found);
    }

    /// Reads `losses.json`, which is only there when something was lost.
    fn listed_losses(&self, comparison: &mut Comparison<'_>) -> LossList {
        let path = self.metadata(b"losses.json");
        if matches!(self.repository.get(&path), Ok(None)) {
            return LossList::default();
        }
        let Some(json) = comparison.file(&path) else { return LossList::default() };
        LossList::parse(&json).unwrap_or_else(|| {
            comparison.note(&path, "content", "a list of losses", "something else");
            LossList::default()
        })
    }
}

/// Compares a layer by itself and its record, or only notes its links into lower layers.
fn compare_layer(
    layer: &ReadLayer,
    lower: &NaiveTree<ContentDigest>,
    is_compared: bool,
    links: &mut LinksBelow,
    comparison: &mut Comparison<'_>,
) -> Result<(), ApplyError> {
    let mut form = NaiveLayer::of(lower, &layer.entries)?;
    if !is_compared {
        links.others.extend(form.linked_below);
        return Ok(());
    }
    let groups = links_across_folders(&form.tree);
    let stray = take_stray_markers(&mut form.tree);
    let root = layout::layer_root(layer.digest);
    comparison.tree(&root, &form.tree);
    links.compared.extend(form.linked_below.iter().map(|path| join(&root, path)));
    compare_layer_record(layer, lower, &form, &groups, stray, comparison);
    Ok(())
}

/// Forgives differences at hard links into lower layers that are listed as losses, and expects them to be listed.
fn allow_other_parents(
    listed: &LossList,
    links: &LinksBelow,
    losses: &mut ExpectedLosses,
    comparison: &mut Comparison<'_>,
) {
    let of_kind = |(kind, _): &(LossKind, _)| *kind == LossKind::LinkIntoOtherParents;
    let listed = listed.kinds().find(of_kind).map(|(_, losses)| losses.paths.as_slice()).unwrap_or_default();
    let is_listed = |path: &EntryPath| listed.iter().any(|listed| is_below_layer(path, listed));
    let different = comparison.found_at(&links.compared);
    let forgiven: BTreeSet<EntryPath> = different.into_iter().filter(is_listed).collect();
    comparison.forgive(&forgiven);
    let is_true = |path: &&EntryPath| {
        links.others.contains(*path) || forgiven.iter().any(|forgiven| is_below_layer(forgiven, path))
    };
    losses.add_links_into_other_parents(listed.iter().filter(is_true).cloned());
}

/// Tells whether `path` of the repository is `inside` of a layer.
fn is_below_layer(path: &EntryPath, inside: &EntryPath) -> bool {
    // `.layers`, the first digits, the digest and `layerfs` stand before.
    path.components().skip(4).eq(inside.components())
}

fn join(root: &EntryPath, path: &EntryPath) -> EntryPath {
    path.components().fold(root.clone(), |path, name| path.join(name))
}
