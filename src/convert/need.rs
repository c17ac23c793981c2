//! Finds out what of an image is neither published nor stored, and what its trees can start from.

use std::collections::BTreeMap;

use super::run::Run;
use super::trees::KnownLayer;
use super::{ConvertError, ImageOptions};
use crate::catalog::StoredTree;
use crate::image::{ChainId, Digest};
use crate::ingest::IngestedLayer;
use crate::layer::EntryPath;
use crate::layout::{self, LayerRecord};
use crate::repository::Repository;
use crate::source::Image;

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
}

/// Trees of an image that are stored and wait to be published.
#[derive(Default)]
pub(super) struct Ready {
    /// Layers, with what is published beside them.
    pub(super) layers: BTreeMap<Digest, (StoredTree, LayerRecord)>,
    /// Chains and root file system.
    pub(super) trees: BTreeMap<EntryPath, StoredTree>,
}

impl Run {
    /// Sorts what an image consists of into published, ready to be published, and still to be built.
    pub(super) fn need(
        &self,
        image: &Image,
        chains: &[ChainId],
        options: &ImageOptions,
        head: &Repository,
    ) -> Result<(Need, Ready), ConvertError> {
        let mut ready = Ready::default();
        let layers = self.needed_layers(image, options, head, &mut ready)?;
        let mut needed_chains = Vec::new();
        for index in options.chains.of(chains.len()) {
            if self.is_needed(layout::chain_root(chains[index]), options, head, &mut ready)? {
                needed_chains.push(index + 1);
            }
        }
        let flat = layout::flat_root(image.config.digest);
        let flat = !options.skip_flat && self.is_needed(flat, options, head, &mut ready)?;
        let mut need =
            Need { layers, chains: needed_chains, flat, base: 0, known: BTreeMap::new(), kept: BTreeMap::new() };
        if need.is_anything() && !options.force {
            self.find_base(&mut need, chains, head)?;
            self.find_known_layers(&mut need, image, head)?;
        }
        Ok((need, ready))
    }

    /// Returns the layers that have to be stored; those that an earlier run stored become ready.
    fn needed_layers(
        &self,
        image: &Image,
        options: &ImageOptions,
        head: &Repository,
        ready: &mut Ready,
    ) -> Result<Vec<usize>, ConvertError> {
        let mut needed = Vec::new();
        for (index, layer) in image.layers.iter().enumerate() {
            let is_repeated = image.layers[..index].iter().any(|other| other.digest == layer.digest);
            if options.skip_layers || is_repeated || Self::is_layer_published(head, layer.digest)? {
                continue;
            }
            let path = layout::layer_root(layer.digest);
            match self.recall(&path, options)? {
                Some((stored, facts)) if LayerRecord::parse(facts.as_bytes()).is_some() => {
                    let record = LayerRecord::parse(facts.as_bytes()).expect("it was parsed just now");
                    ready.layers.insert(layer.digest, (stored, record));
                }
                _ => needed.push(index),
            }
        }
        Ok(needed)
    }

    /// Tells whether the chain or root file system at `path` has to be built; one that an earlier run stored becomes ready.
    fn is_needed(
        &self,
        path: EntryPath,
        options: &ImageOptions,
        head: &Repository,
        ready: &mut Ready,
    ) -> Result<bool, ConvertError> {
        if !options.force && Self::is_our_tree(head, &path)? {
            return Ok(false);
        }
        let stored = self.recall(&path, options)?;
        let is_needed = stored.is_none();
        ready.trees.extend(stored.map(|(stored, _)| (path, stored)));
        Ok(is_needed)
    }

    fn find_base(&self, need: &mut Need, chains: &[ChainId], head: &Repository) -> Result<(), ConvertError> {
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

    fn find_known_layers(&self, need: &mut Need, image: &Image, head: &Repository) -> Result<(), ConvertError> {
        for (index, layer) in image.layers.iter().enumerate().skip(need.base) {
            let known = self.known_layer(head, layer.digest)?.filter(|known| known.record.is_complete);
            let Some(known) = known else {
                let kept = self.kept.as_ref().map(|kept| kept.recall(layer)).transpose()?.flatten();
                need.kept.extend(kept.map(|kept| (index, kept)));
                continue;
            };
            if known.record.diff_id != layer.diff_id {
                let (expected, actual) = (layer.diff_id, known.record.diff_id);
                return Err(ConvertError::OtherDiffId { digest: layer.digest, expected, actual });
            }
            need.known.insert(index, known);
        }
        Ok(())
    }
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
        (self.untouched(image)..image.layers.len())
            .filter(|index| !self.known.contains_key(index) && !self.kept.contains_key(index))
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
