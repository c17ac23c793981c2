//! Reads the layers of an image from its source again.

use std::collections::BTreeMap;
use std::io::Read;

use rayon::prelude::*;

use super::VerifyError;
use super::content::{ContentDigest, ContentHasher};
use crate::image::Digest;
use crate::layer::{
    ContentPart, EntryKind, ExpectedLayer, LayerEntry, LayerError, LayerReader, LayerSummary, Limits, Loss, LossKind,
    NodeKind, is_bookkeeping,
};
use crate::path::EntryPath;
use crate::progress::Progress;
use crate::source::{Image, ImageLayer, Source};

/// A layer whose digest, size and diff ID match the image.
pub(super) struct ReadLayer {
    pub(super) digest: Digest,
    pub(super) entries: Vec<LayerEntry<ContentDigest>>,
    /// Sizes and digests, and the losses: what CVMFS cannot represent.
    pub(super) summary: LayerSummary,
}

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
    let expected = ExpectedLayer { digest, size: layer.size, diff_id: Some(layer.diff_id) };
    let (entries, mut summary) = read_entries(progress.counted(blob), expected, limits)
        .map_err(|source| VerifyError::ReadLayer { digest, source })?;
    for path in links_across_directories(&entries) {
        summary.losses.add(Loss { path, kind: LossKind::LinkAcrossDirectories });
    }
    Ok(ReadLayer { digest, entries, summary })
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

fn read_entries(
    blob: impl Read,
    expected: ExpectedLayer,
    limits: Limits,
) -> Result<(Vec<LayerEntry<ContentDigest>>, LayerSummary), LayerError> {
    let mut reader = LayerReader::new(blob, expected, limits)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let is_file = matches!(entry.kind, EntryKind::Node(_, NodeKind::File { .. }));
        let content = if is_file { read_content(&mut reader)? } else { ContentDigest::of(b"") };
        entries.push(entry.map_content(|()| content));
    }
    Ok((entries, reader.finish()?))
}

fn read_content(reader: &mut LayerReader<impl Read>) -> Result<ContentDigest, LayerError> {
    let mut hasher = ContentHasher::new();
    while let Some(part) = reader.next_part()? {
        match part {
            ContentPart::Data(bytes) => hasher.data(bytes),
            ContentPart::Hole(length) => hasher.zeros(length),
        }
    }
    Ok(hasher.finish())
}
