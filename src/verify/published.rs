//! Compares everything that is published for one image with the layers of the image.

use std::collections::{BTreeSet, HashSet};

use super::VerifyError;
use super::compare::Comparison;
use super::content::ContentDigest;
use super::file_bundles::file_bundles;
use super::layer_reader::ReadLayer;
use super::layer_stack::LayerStack;
use super::naive_layer::{AppliedLayer, NaiveLayer, apply_layer};
use super::naive_tree::NaiveTree;
use super::other_parents::OtherParents;
use super::records::{ExpectedLosses, compare_facts, compare_layer_record, links_across_directories};
use super::root::{StrayMarkers, remove_stray_markers, remove_stray_markers_of_layer, root_file_system};
use crate::image::{ChainId, Digest};
use crate::layer::LossKind;
use crate::layout::{self, ImagePlace, ImageRecord, LayerRecord, LossList};
use crate::message::causes;
use crate::path::EntryPath;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::settings::Modes;
use crate::source::Image;

/// Maximum size of a layer record in bytes.
const MAX_RECORD_SIZE: u64 = 256 << 20;

/// An image, and the record of it in the repository.
pub(super) struct VerifiedImage<'a> {
    pub(super) repository: &'a Repository,
    pub(super) image: &'a Image,
    pub(super) place: &'a ImagePlace,
    pub(super) record: ImageRecord,
    pub(super) modes: Modes,
}

impl VerifiedImage<'_> {
    /// Compares everything, and returns the number of losses: properties of the image that CVMFS cannot represent.
    pub(super) fn compare(
        &self,
        layers: &[ReadLayer],
        comparison: &mut Comparison<'_>,
        progress: &Progress,
    ) -> Result<u64, VerifyError> {
        self.compare_record(comparison);
        self.compare_documents(comparison);
        let mut tree = NaiveTree::new();
        let listed = self.listed_losses(comparison);
        let (mut losses, mut parents) = (ExpectedLosses::default(), OtherParents::new(&listed));
        let (mut stack, mut descriptions) = (LayerStack::default(), HashSet::new());
        for (number, (layer, chain)) in layers.iter().zip(self.image.chains()).enumerate() {
            let failed = |source| VerifyError::Apply { digest: layer.digest, source };
            // A layer that an image contains twice is published on top of the layers below its first occurrence.
            let is_first = layers[..number].iter().all(|other| other.digest != layer.digest);
            let is_compared = is_first && self.record.layers.contains(&layer.digest);
            let AppliedLayer { mut merged, layer: form, masked } =
                apply_layer(&tree, &layer.entries).map_err(failed)?;
            let (form, stray_of_layer) = self.compare_layer(layer, &tree, form, is_compared, &mut parents, comparison);
            let stray = remove_stray_markers(&mut merged);
            losses.add_layer(&layer.losses, stray.paths);
            descriptions.extend(&layer.descriptions);
            losses.add_unlisted(LossKind::FileBundle, file_bundles(&merged, &descriptions));
            losses.add_unlisted(LossKind::StrayMarker, stray_of_layer.paths);
            losses.add_unlisted(LossKind::MaskedLink, masked.keys().cloned());
            stack.add(&form, masked);
            stack.explain(stray.too_many.into_iter().chain(stray_of_layer.too_many));
            tree = merged;
            self.compare_chain(chain, &tree, &losses, comparison);
        }
        if !self.record.layers.is_empty() {
            stack.compare(&tree, &self.root_of_stack(), comparison);
        }
        if self.record.flat {
            self.compare_flat(&tree, &losses, comparison);
        }
        if self.record.podman {
            self.compare_podman_store(comparison);
        }
        comparison.compare_contents(progress);
        parents.accept_listed(&mut losses, comparison);
        if self.record.layers.is_empty() {
            // A masked link is a loss only in published layers.
            losses.remove_kind(LossKind::MaskedLink);
        }
        losses.compare(&self.metadata(b"losses.json"), &listed, comparison);
        Ok(losses.total())
    }

    fn metadata(&self, name: &[u8]) -> EntryPath {
        self.place.metadata().join(name)
    }

    /// Compares the record with the image. Whether the record matches the published trees is compared later.
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

    /// Compares the image's documents byte by byte, and reports unknown files beside them.
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
        let directory = self.place.metadata();
        match self.repository.list(&directory) {
            Ok(names) => {
                for name in names.keys().filter(|name| !known.iter().any(|known| known.as_bytes() == **name)) {
                    comparison.note(&directory.join(name), "path", "nothing", "something");
                }
            }
            Err(error) => comparison.note(&directory, "catalog", "a readable catalog", causes(&error)),
        }
    }

    /// Compares a chain if it is published, or if the record lists it.
    fn compare_chain(
        &self,
        chain: ChainId,
        tree: &NaiveTree<ContentDigest>,
        losses: &ExpectedLosses,
        comparison: &mut Comparison<'_>,
    ) {
        let root = layout::chain_root(chain);
        // After a lookup error, the comparison of the tree reports the error.
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

    /// Reads `losses.json`, which exists only if the image has losses.
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

    /// Compares a published layer and its record, or, if `is_compared` is false, only records what depends on the lower
    /// layers. Returns the layer in the form that it would have if no other image had published it first, and the stray
    /// markers that were removed from it.
    fn compare_layer(
        &self,
        layer: &ReadLayer,
        lower: &NaiveTree<ContentDigest>,
        mut form: NaiveLayer<ContentDigest>,
        is_compared: bool,
        parents: &mut OtherParents,
        comparison: &mut Comparison<'_>,
    ) -> (NaiveLayer<ContentDigest>, StrayMarkers) {
        let groups = links_across_directories(&form.tree);
        let stray = remove_stray_markers_of_layer(&mut form.tree, lower);
        let root = layout::layer_root(layer.digest);
        let record = self.layer_record(layer.digest);
        parents.add_implied(&root, &form, record.as_ref());
        if is_compared {
            comparison.tree(&root, &form.tree);
            parents.add_compared(&root, &form);
            compare_layer_record(layer, lower, &form, &groups, &stray.paths, parents, comparison);
        } else {
            let mut aside = Comparison::new(self.repository);
            if parents.is_listed() && matches!(self.repository.get(&root), Ok(Some(_))) {
                aside.tree(&root, &form.tree);
            }
            parents.add_other(&form, &aside.into_differences());
        }
        (form, stray)
    }

    /// Returns the root of the published tree that an overlay mount of all layers must equal.
    fn root_of_stack(&self) -> EntryPath {
        match self.image.chains().last() {
            Some(&chain) if !self.record.flat => layout::chain_root(chain),
            _ => layout::flat_root(self.image.config.digest),
        }
    }

    fn layer_record(&self, digest: Digest) -> Option<LayerRecord> {
        // An unreadable record is reported where it is compared.
        let json = self.repository.read(&layout::layer_record(digest), MAX_RECORD_SIZE).ok().flatten();
        json.and_then(|json| LayerRecord::parse(&json))
    }
}
