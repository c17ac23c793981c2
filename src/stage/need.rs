//! Finds out what of an image is neither published nor stored, and what its trees can start from.

use std::collections::{BTreeMap, BTreeSet};

use super::trees::{KnownLayer, published_record};
use super::whole::Holes;
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

/// What there is to do for an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Layers of the image.
    pub layers: usize,
    /// Layers that have to be read from their blobs.
    pub layers_to_read: usize,
    /// Bytes of those blobs.
    pub bytes_to_read: u64,
    /// How many of the lowest layers are taken from a chain that is known already.
    pub base_layers: usize,
}

/// What of an image has to be built.
#[derive(Default)]
pub(super) struct Need {
    /// Layers to be stored, by their place in the image.
    pub(super) layers: Vec<usize>,
    /// Chains to be stored, by the number of their layers.
    pub(super) chains: Vec<usize>,
    /// Whether the root file system is to be stored.
    pub(super) flat: bool,
    /// The longest known chain that everything to be stored lies above, as a number of layers.
    pub(super) base: usize,
    /// Layers above the base that are stored and need not be read from their blobs.
    pub(super) known: BTreeMap<usize, KnownLayer>,
    /// Layers above the base that were read from their blobs already.
    pub(super) kept: BTreeMap<usize, IngestedLayer>,
    /// Layers that nobody vouches for, so that their blobs are read whatever else is known.
    pub(super) unverified: BTreeSet<usize>,
    /// Published trees that lack something. They are among those to be stored until that is there.
    pub(super) holes: Vec<(Part, Holes)>,
}

/// A tree of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// A layer, by its place in the image.
    Layer(usize),
    /// A chain, by the number of its layers.
    Chain(usize),
    /// The root file system.
    Flat,
}

impl Part {
    /// Returns where it is published.
    pub(super) fn path(self, image: &Image, chains: &[ChainId]) -> EntryPath {
        match self {
            Self::Layer(index) => layout::layer_root(image.layers[index].digest),
            Self::Chain(length) => layout::chain_root(chains[length - 1]),
            Self::Flat => layout::flat_root(image.config.digest),
        }
    }
}

/// Trees of an image that are stored and wait to be published.
#[derive(Default)]
pub(crate) struct Ready {
    /// Layers, with what is published beside them.
    pub(crate) layers: BTreeMap<Digest, (StoredTree, LayerRecord)>,
    /// Chains and root file system.
    pub(crate) trees: BTreeMap<EntryPath, StoredTree>,
    /// Those of them that take the place of published ones, which lack something that cannot be made again.
    pub(crate) replaced: BTreeSet<EntryPath>,
}

impl Stager<'_> {
    /// Sorts what an image consists of into published, ready to be published, and still to be built.
    pub(super) fn need(
        &self,
        image: &Image,
        chains: &[ChainId],
        options: &ImageOptions,
        head: &Repository,
    ) -> Result<(Need, Ready), StageError> {
        let (mut need, mut ready) = (Need::default(), Ready::default());
        need.unverified = self.unverified_layers(image, options, head)?;
        self.find_needed_layers(&mut need, image, options, head, &mut ready)?;
        for index in options.chains.of(chains.len()) {
            let part = Part::Chain(index + 1);
            if self.is_needed(&mut need, part, part.path(image, chains), options, head, &mut ready)? {
                need.chains.push(index + 1);
            }
        }
        let path = Part::Flat.path(image, chains);
        need.flat = !options.skip_flat && self.is_needed(&mut need, Part::Flat, path, options, head, &mut ready)?;
        if need.is_anything() && !options.force {
            self.find_base(&mut need, chains, head)?;
            self.find_known_layers(&mut need, image, head)?;
        }
        Ok((need, ready))
    }

    /// Compares each layer with what is known of its blob; returns those of which nothing is.
    fn unverified_layers(
        &self,
        image: &Image,
        options: &ImageOptions,
        head: &Repository,
    ) -> Result<BTreeSet<usize>, StageError> {
        let mut unverified = BTreeSet::new();
        for (index, layer) in image.layers.iter().enumerate() {
            if options.force || !self.is_vouched_for(layer, head)? {
                unverified.insert(index);
            }
        }
        Ok(unverified)
    }

    /// Tells whether a layer's blob is known to be what the image says; an error where it is known to be something else.
    fn is_vouched_for(&self, layer: &ImageLayer, head: &Repository) -> Result<bool, StageError> {
        if let Some(blob) = self.engine.state().blob(layer.digest)? {
            return compare(layer, &blob).map(|()| true);
        }
        let Some(record) = published_record(head, layer.digest)? else { return Ok(false) };
        let blob = verified(layer.digest, &record);
        self.engine.state().add_blobs(&[blob])?;
        compare(layer, &blob).map(|()| true)
    }

    /// Finds the layers that have to be stored; those that an earlier run stored become ready.
    fn find_needed_layers(
        &self,
        need: &mut Need,
        image: &Image,
        options: &ImageOptions,
        head: &Repository,
        ready: &mut Ready,
    ) -> Result<(), StageError> {
        for (index, layer) in image.layers.iter().enumerate() {
            let is_repeated = image.layers[..index].iter().any(|other| other.digest == layer.digest);
            if options.skip_layers || is_repeated {
                continue;
            }
            let path = layout::layer_root(layer.digest);
            // A catalog that is lost is repaired or an error.
            let is_published = if options.force { head.has(&path)? } else { head.get(&path)?.is_some() };
            if is_published {
                let holes = self.holes_of_layer(head, layer.digest)?;
                if !holes.is_empty() {
                    need.layers.push(index);
                    need.holes.push((Part::Layer(index), holes));
                }
                continue;
            }
            match self.recall(&path, options)? {
                Some((stored, facts)) if LayerRecord::parse(facts.as_bytes()).is_some() => {
                    let record = LayerRecord::parse(facts.as_bytes()).expect("it was parsed just now");
                    compare(layer, &verified(layer.digest, &record))?;
                    ready.layers.insert(layer.digest, (stored, record));
                }
                _ => need.layers.push(index),
            }
        }
        Ok(())
    }

    /// Tells whether a chain or root file system has to be built; one that an earlier run stored becomes ready.
    fn is_needed(
        &self,
        need: &mut Need,
        part: Part,
        path: EntryPath,
        options: &ImageOptions,
        head: &Repository,
        ready: &mut Ready,
    ) -> Result<bool, StageError> {
        if !options.force
            && let Some(reference) = our_tree(head, &path)?
        {
            let holes = self.holes(&path, reference)?;
            let is_needed = !holes.is_empty();
            if is_needed {
                need.holes.push((part, holes));
            }
            return Ok(is_needed);
        }
        let stored = self.recall(&path, options)?;
        let is_needed = stored.is_none();
        ready.trees.extend(stored.map(|(stored, _)| (path, stored)));
        Ok(is_needed)
    }

    fn find_base(&self, need: &mut Need, chains: &[ChainId], head: &Repository) -> Result<(), StageError> {
        let lowest_layer = need.layers.first().copied();
        let lowest_chain = need.chains.first().map(|length| length - 1);
        let limit = lowest_layer.into_iter().chain(lowest_chain).min().unwrap_or(chains.len());
        for length in (1..=limit).rev() {
            if self.known_tree(head, &layout::chain_root(chains[length - 1]))?.is_some() {
                need.base = length;
                break;
            }
        }
        Ok(())
    }

    fn find_known_layers(&self, need: &mut Need, image: &Image, head: &Repository) -> Result<(), StageError> {
        for (index, layer) in image.layers.iter().enumerate().skip(need.base) {
            let is_to_be_stored = need.layers.contains(&index);
            let known = if is_to_be_stored { None } else { self.known_layer(head, layer.digest)? };
            let Some(known) = known.filter(|known| known.record.is_complete) else {
                let kept = self.kept.as_ref().map(|kept| kept.recall(layer)).transpose()?.flatten();
                if let Some(kept) = kept {
                    need.kept.insert(index, kept);
                    need.unverified.remove(&index);
                }
                continue;
            };
            compare(layer, &verified(layer.digest, &known.record))?;
            need.known.insert(index, known);
            need.unverified.remove(&index);
        }
        Ok(())
    }

    /// Takes published trees off the list once the content of the layers that were read fills their holes.
    pub(super) fn fill_holes(
        &self,
        need: &mut Need,
        image: &Image,
        chains: &[ChainId],
        head: &Repository,
        ready: &mut Ready,
    ) -> Result<(), StageError> {
        if need.holes.is_empty() {
            return Ok(());
        }
        // That of markers is in no layer.
        self.staging.put_file(self.settings().compression, b"")?;
        for (part, holes) in std::mem::take(&mut need.holes) {
            let path = part.path(image, chains);
            if !self.are_filled(&holes)? {
                ready.replaced.insert(path);
                continue;
            }
            self.count_as_whole(head, path)?;
            match part {
                Part::Layer(index) => need.layers.retain(|other| *other != index),
                Part::Chain(length) => need.chains.retain(|other| *other != length),
                Part::Flat => need.flat = false,
            }
        }
        Ok(())
    }
}

/// Returns what the blob of a layer was found to be when its record was written.
fn verified(digest: Digest, record: &LayerRecord) -> VerifiedBlob {
    VerifiedBlob { digest, size: record.blob_size, diff_id: record.diff_id }
}

/// Makes sure that an image says of a layer what its blob was found to be.
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

impl Need {
    /// Tells whether there is anything to build.
    pub(super) fn is_anything(&self) -> bool {
        self.flat || !self.layers.is_empty() || !self.chains.is_empty()
    }

    /// Returns how many of the lowest layers need not be looked at.
    pub(super) fn untouched(&self, image: &Image) -> usize {
        if self.is_anything() { self.base } else { image.layers.len() }
    }

    /// Returns the layers that have to be read from their blobs.
    pub(super) fn to_read(&self, image: &Image) -> impl Iterator<Item = usize> {
        (0..image.layers.len()).filter(|index| self.is_read(*index, image))
    }

    fn is_read(&self, index: usize, image: &Image) -> bool {
        let is_known = self.known.contains_key(&index) || self.kept.contains_key(&index);
        self.unverified.contains(&index) || index >= self.untouched(image) && !is_known
    }

    /// Returns the need in numbers.
    pub(super) fn plan(&self, image: &Image) -> Plan {
        Plan {
            layers: image.layers.len(),
            layers_to_read: self.to_read(image).count(),
            bytes_to_read: self.to_read(image).map(|index| image.layers[index].size).sum(),
            base_layers: self.untouched(image),
        }
    }
}
