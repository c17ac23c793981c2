//! Determines which trees of an image must be built, and from which existing trees the build can start.

use std::collections::{BTreeMap, BTreeSet};

use super::completeness::MissingObjects;
use super::known_trees::{KnownLayer, published_record};
use super::{ImageOptions, StageError, Stager};
use crate::catalog::StoredTree;
use crate::image::{ChainId, Digest};
use crate::ingest::IngestedLayer;
use crate::inventory::our_tree;
use crate::layout::{self, LayerRecord};
use crate::path::EntryPath;
use crate::repository::Repository;
use crate::source::{Image, ImageLayer};
use crate::state::VerifiedBlob;

/// Amount of work for an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlanSummary {
    /// Number of layers of the image.
    pub layers: usize,
    /// Number of layers that must be read from their blobs.
    pub layers_to_read: usize,
    /// Total size of those blobs in bytes.
    pub bytes_to_read: u64,
    /// Number of lowest layers that are not applied again, because a stored chain contains them.
    pub base_layers: usize,
}

/// The trees of an image that must be built, and the data that is reused for that.
#[derive(Default)]
pub(super) struct BuildPlan {
    /// Indexes of the layers to store.
    pub(super) layers: Vec<usize>,
    /// Chains to store, by their number of layers.
    pub(super) chains: Vec<usize>,
    /// Whether to store the flat tree.
    pub(super) flat: bool,
    /// Number of layers of the chain from which the build starts: the longest known chain that contains no layer and no chain to
    /// store.
    pub(super) base: usize,
    /// Layers above the base that are stored, so that their catalogs are read instead of their blobs.
    pub(super) known: BTreeMap<usize, KnownLayer>,
    /// Layers above the base that an interrupted run has read from their blobs.
    pub(super) cached: BTreeMap<usize, IngestedLayer>,
    /// Layers whose blobs must be read in any case, because they were never compared with their diff IDs.
    pub(super) unverified: BTreeSet<usize>,
    /// Published trees with missing objects. They are also among the trees to store, until the missing objects are stored again.
    pub(super) incomplete: Vec<(ImageTree, MissingObjects)>,
}

/// A tree that is published for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageTree {
    /// A layer, by its index.
    Layer(usize),
    /// A chain, by its number of layers.
    Chain(usize),
    /// The flat tree: the root file system.
    Flat,
}

impl ImageTree {
    /// Returns the path at which the tree is published.
    pub(super) fn path(self, image: &Image, chains: &[ChainId]) -> EntryPath {
        match self {
            Self::Layer(index) => layout::layer_root(image.layers[index].digest),
            Self::Chain(length) => layout::chain_root(chains[length - 1]),
            Self::Flat => layout::flat_root(image.config.digest),
        }
    }
}

/// Trees of an image whose catalogs are stored, and which are not published.
#[derive(Default)]
pub(crate) struct StoredTrees {
    /// Layers, with the record that is published beside each.
    pub(crate) layers: BTreeMap<Digest, (StoredTree, LayerRecord)>,
    /// Chains and the flat tree.
    pub(crate) trees: BTreeMap<EntryPath, StoredTree>,
    /// Paths of the trees that replace a published tree, because an object of the published tree is missing and cannot be stored
    /// again.
    pub(crate) replaced: BTreeSet<EntryPath>,
}

impl Stager<'_> {
    /// Determines which trees of an image must be built, and returns the stored trees that only need to be published.
    pub(super) fn build_plan(
        &self,
        image: &Image,
        chains: &[ChainId],
        options: &ImageOptions,
        head: &Repository,
    ) -> Result<(BuildPlan, StoredTrees), StageError> {
        let (mut plan, mut stored_trees) = (BuildPlan::default(), StoredTrees::default());
        plan.unverified = self.unverified_layers(image, options, head)?;
        self.find_needed_layers(&mut plan, image, options, head, &mut stored_trees)?;
        for index in options.chains.indexes(chains.len()) {
            let tree = ImageTree::Chain(index + 1);
            if self.is_needed(&mut plan, tree, tree.path(image, chains), options, head, &mut stored_trees)? {
                plan.chains.push(index + 1);
            }
        }
        let path = ImageTree::Flat.path(image, chains);
        plan.flat =
            !options.skip_flat && self.is_needed(&mut plan, ImageTree::Flat, path, options, head, &mut stored_trees)?;
        if plan.builds_anything() && !options.force {
            self.find_base(&mut plan, chains, head)?;
            self.find_known_layers(&mut plan, image, head)?;
        }
        Ok((plan, stored_trees))
    }

    /// Returns the indexes of the layers whose blobs were never verified. Compares the others with the size and diff ID of their blobs.
    fn unverified_layers(
        &self,
        image: &Image,
        options: &ImageOptions,
        head: &Repository,
    ) -> Result<BTreeSet<usize>, StageError> {
        let mut unverified = BTreeSet::new();
        for (index, layer) in image.layers.iter().enumerate() {
            if options.force || !self.is_verified(layer, head)? {
                unverified.insert(index);
            }
        }
        Ok(unverified)
    }

    /// Returns whether the blob of a layer was verified before. Returns an error if it has another size or diff ID than the image states.
    fn is_verified(&self, layer: &ImageLayer, head: &Repository) -> Result<bool, StageError> {
        if let Some(blob) = self.engine.state().blob(layer.digest)? {
            return compare(layer, &blob).map(|()| true);
        }
        let Some(record) = published_record(head, layer.digest)? else { return Ok(false) };
        let blob = verified(layer.digest, &record);
        self.engine.state().add_blobs(&[blob])?;
        compare(layer, &blob).map(|()| true)
    }

    /// Finds the layers that must be stored. Adds those that an earlier run stored to `stored_trees`.
    fn find_needed_layers(
        &self,
        plan: &mut BuildPlan,
        image: &Image,
        options: &ImageOptions,
        head: &Repository,
        stored_trees: &mut StoredTrees,
    ) -> Result<(), StageError> {
        for (index, layer) in image.layers.iter().enumerate() {
            let is_repeated = image.layers[..index].iter().any(|other| other.digest == layer.digest);
            // The same layer may occur several times in an image, but has one directory in `.layers`.
            if options.skip_layers || is_repeated {
                continue;
            }
            let path = layout::layer_root(layer.digest);
            // With `force`, a lost catalog is repaired and must not be an error here, as it is in `get`.
            let is_published = if options.force { head.has(&path)? } else { head.get(&path)?.is_some() };
            if is_published {
                let missing = self.missing_of_layer(head, layer.digest)?;
                if !missing.is_empty() {
                    plan.layers.push(index);
                    plan.incomplete.push((ImageTree::Layer(index), missing));
                }
                continue;
            }
            match self.stored_tree(&path, options)? {
                Some((stored, facts)) if LayerRecord::parse(facts.as_bytes()).is_some() => {
                    let record = LayerRecord::parse(facts.as_bytes())
                        .expect("the condition of this branch has parsed the record");
                    compare(layer, &verified(layer.digest, &record))?;
                    stored_trees.layers.insert(layer.digest, (stored, record));
                }
                _ => plan.layers.push(index),
            }
        }
        Ok(())
    }

    /// Returns whether a chain or flat tree must be built. A tree that an earlier run stored is added to `stored_trees`.
    fn is_needed(
        &self,
        plan: &mut BuildPlan,
        tree: ImageTree,
        path: EntryPath,
        options: &ImageOptions,
        head: &Repository,
        stored_trees: &mut StoredTrees,
    ) -> Result<bool, StageError> {
        if !options.force
            && let Some(reference) = our_tree(head, &path)?
        {
            let missing = self.missing_of_tree(&path, reference)?;
            let is_needed = !missing.is_empty();
            if is_needed {
                plan.incomplete.push((tree, missing));
            }
            return Ok(is_needed);
        }
        let stored = self.stored_tree(&path, options)?;
        let is_needed = stored.is_none();
        stored_trees.trees.extend(stored.map(|(stored, _)| (path, stored)));
        Ok(is_needed)
    }

    fn find_base(&self, plan: &mut BuildPlan, chains: &[ChainId], head: &Repository) -> Result<(), StageError> {
        let lowest_layer = plan.layers.first().copied();
        let lowest_chain = plan.chains.first().map(|length| length - 1);
        // A layer or chain that is to be stored must be built, so the build starts below the lowest of them.
        let limit = lowest_layer.into_iter().chain(lowest_chain).min().unwrap_or(chains.len());
        for length in (1..=limit).rev() {
            if self.known_tree(head, &layout::chain_root(chains[length - 1]))?.is_some() {
                plan.base = length;
                break;
            }
        }
        Ok(())
    }

    fn find_known_layers(&self, plan: &mut BuildPlan, image: &Image, head: &Repository) -> Result<(), StageError> {
        for (index, layer) in image.layers.iter().enumerate().skip(plan.base) {
            let is_to_be_stored = plan.layers.contains(&index);
            let known = if is_to_be_stored { None } else { self.known_layer(head, layer.digest)? };
            let Some(known) = known.filter(|known| known.record.is_complete) else {
                let cached = self.layer_cache.as_ref().map(|cache| cache.get(layer)).transpose()?.flatten();
                if let Some(cached) = cached {
                    plan.cached.insert(index, cached);
                    plan.unverified.remove(&index);
                }
                continue;
            };
            compare(layer, &verified(layer.digest, &known.record))?;
            plan.known.insert(index, known);
            plan.unverified.remove(&index);
        }
        Ok(())
    }

    /// Removes from the plan the published trees whose missing objects were stored again while layers were read. The other
    /// incomplete trees stay in the plan and will be replaced.
    pub(super) fn skip_completed_trees(
        &self,
        plan: &mut BuildPlan,
        image: &Image,
        chains: &[ChainId],
        head: &Repository,
        stored_trees: &mut StoredTrees,
    ) -> Result<(), StageError> {
        if plan.incomplete.is_empty() {
            return Ok(());
        }
        // The object of `.cvmfscatalog` markers, which are empty files, is in no layer.
        self.staging.put_file(self.settings().compression, b"")?;
        for (tree, missing) in std::mem::take(&mut plan.incomplete) {
            let path = tree.path(image, chains);
            if !self.are_stored(&missing)? {
                stored_trees.replaced.insert(path);
                continue;
            }
            self.assume_complete(head, path)?;
            match tree {
                ImageTree::Layer(index) => plan.layers.retain(|other| *other != index),
                ImageTree::Chain(length) => plan.chains.retain(|other| *other != length),
                ImageTree::Flat => plan.flat = false,
            }
        }
        Ok(())
    }
}

/// Returns the size and diff ID that the blob of a layer had when its record was written.
fn verified(digest: Digest, record: &LayerRecord) -> VerifiedBlob {
    VerifiedBlob { digest, size: record.blob_size, diff_id: record.diff_id }
}

/// Returns an error if the size or diff ID of a blob differs from those that the image states.
fn compare(layer: &ImageLayer, blob: &VerifiedBlob) -> Result<(), StageError> {
    let digest = layer.digest;
    if blob.size != layer.size {
        return Err(StageError::OtherSize { digest, expected: layer.size, actual: blob.size });
    }
    if blob.diff_id != layer.diff_id {
        return Err(StageError::OtherDiffId { digest, expected: layer.diff_id, actual: blob.diff_id });
    }
    Ok(())
}

impl BuildPlan {
    /// Returns whether any tree must be built.
    pub(super) fn builds_anything(&self) -> bool {
        self.flat || !self.layers.is_empty() || !self.chains.is_empty()
    }

    /// Returns the number of lowest layers that the build does not need.
    pub(super) fn untouched(&self, image: &Image) -> usize {
        if self.builds_anything() { self.base } else { image.layers.len() }
    }

    /// Returns the indexes of the layers that must be read from their blobs.
    pub(super) fn layers_to_read(&self, image: &Image) -> impl Iterator<Item = usize> {
        (0..image.layers.len()).filter(|index| self.is_read(*index, image))
    }

    fn is_read(&self, index: usize, image: &Image) -> bool {
        let is_known = self.known.contains_key(&index) || self.cached.contains_key(&index);
        self.unverified.contains(&index) || index >= self.untouched(image) && !is_known
    }

    pub(super) fn summary(&self, image: &Image) -> PlanSummary {
        PlanSummary {
            layers: image.layers.len(),
            layers_to_read: self.layers_to_read(image).count(),
            bytes_to_read: self.layers_to_read(image).map(|index| image.layers[index].size).sum(),
            base_layers: self.untouched(image),
        }
    }
}
