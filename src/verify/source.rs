//! Reads the layers of an image from its source again.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::VerifyError;
use super::layer_reader::{self, ReadLayer, is_bookkeeping};
use crate::layer::{EntryKind, LayerEntry, Limits, Loss, LossKind};
use crate::path::EntryPath;
use crate::progress::Progress;
use crate::source::{Image, ImageLayer, Source};

/// Reads all layers in parallel and returns them lowest first. If several layers fail, returns the error of the lowest.
pub(super) fn read_layers(
    source: &dyn Source,
    image: &Image,
    limits: Limits,
    progress: &Progress,
) -> Result<Vec<ReadLayer>, VerifyError> {
    let results: Vec<_> = image.layers.par_iter().map(|layer| read_layer(source, layer, limits, progress)).collect();
    results.into_iter().collect()
}

fn read_layer(
    source: &dyn Source,
    layer: &ImageLayer,
    limits: Limits,
    progress: &Progress,
) -> Result<ReadLayer, VerifyError> {
    let digest = layer.digest;
    let blob = source.open_layer(layer).map_err(|source| VerifyError::OpenLayer { digest, source })?;
    let mut read = layer_reader::read(progress.counted(blob), layer, limits)
        .map_err(|source| VerifyError::ReadLayer { digest, source })?;
    for path in links_across_directories(&read.entries) {
        read.losses.add(Loss { path, kind: LossKind::LinkAcrossDirectories });
    }
    Ok(read)
}

/// Returns the hard links whose target is in another directory. A link to an AUFS bookkeeping file has no published target,
/// so the first of several links to that file counts as the target.
fn links_across_directories<C>(entries: &[LayerEntry<C>]) -> Vec<EntryPath> {
    let mut stand_ins: BTreeMap<EntryPath, EntryPath> = BTreeMap::new();
    let mut across = Vec::new();
    for LayerEntry { path, kind } in entries.iter().filter(|entry| !is_bookkeeping(&entry.path)) {
        let EntryKind::HardLink(target) = kind else { continue };
        let target = match is_bookkeeping(target) {
            true => stand_ins.entry(target.clone()).or_insert_with(|| path.clone()).clone(),
            false => target.clone(),
        };
        if path.split().map(|(directory, _)| directory) != target.split().map(|(directory, _)| directory) {
            across.push(path.clone());
        }
    }
    across
}
