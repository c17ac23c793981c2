//! The layers of one image, from wherever it lies into the store.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::need::Need;
use super::{StageError, Stager};
use crate::cancel::Cancellation;
use crate::image::Digest;
use crate::ingest::{Ingest, IngestError, IngestedLayer, LayerToRead};
use crate::layer::{ExpectedLayer, LayerSummary};
use crate::object::ChunkSizes;
use crate::progress::Progress;
use crate::source::{Image, ImageLayer, LayerBlob, Source};
use crate::state::VerifiedBlob;

impl Stager<'_> {
    /// Reads the layers that have to be read from their blobs; returns them with those that were kept, by their place. Layers
    /// that are not built upon are only verified.
    pub(super) fn read_layers(
        &self,
        image: &Image,
        need: &mut Need,
        source: &dyn Source,
        progress: &Progress,
    ) -> Result<BTreeMap<usize, IngestedLayer>, StageError> {
        let to_read: Vec<usize> = need.to_read(image).collect();
        progress.expected.fetch_add(need.plan(image).bytes_to_read, Ordering::Relaxed);
        let ingest = Ingest {
            staging: &self.staging,
            index: &self.index,
            compression: self.settings().compression,
            chunk_sizes: ChunkSizes::default(),
            threads: self.engine.resources().threads,
            memory: self.options.memory,
            limits: self.options.limits,
        };
        let untouched = need.untouched(image);
        let layer = |&index: &usize| {
            layer_to_read(&image.layers[index], index < untouched, source, progress, self.engine.cancellation())
        };
        let results = ingest.run(to_read.iter().map(layer).collect(), &|index, layer| {
            // What lies on this machine is read again as fast.
            let is_of_use = source.is_remote() && to_read[index] >= untouched;
            if let Some(kept) = self.kept.as_ref().filter(|_| is_of_use) {
                kept.keep(image.layers[to_read[index]].digest, layer);
            }
        });
        let mut read = std::mem::take(&mut need.kept);
        let mut failure: Option<(Digest, IngestError)> = None;
        let mut verified = Vec::new();
        for (&index, result) in to_read.iter().zip(results) {
            match result {
                Ok(layer) => {
                    let LayerSummary { blob_size: size, diff_id, .. } = layer.summary;
                    verified.push(VerifiedBlob { digest: image.layers[index].digest, size, diff_id });
                    if index >= untouched {
                        read.insert(index, layer);
                    }
                }
                // The first error is the cause; the others were given up for it.
                Err(IngestError::GivenUp) => {}
                Err(error) => failure = failure.or(Some((image.layers[index].digest, error))),
            }
        }
        self.engine.state().add_blobs(&verified)?;
        if let Some((digest, error)) = failure {
            return Err(StageError::Layer { digest, mirror: source.mirror_of(&digest), source: error });
        }
        Ok(read)
    }
}

fn layer_to_read<'s>(
    layer: &'s ImageLayer,
    is_verified_only: bool,
    source: &'s dyn Source,
    progress: &'s Progress,
    cancellation: &'s Cancellation,
) -> LayerToRead<'s> {
    let expected = ExpectedLayer { digest: layer.digest, size: layer.size, diff_id: Some(layer.diff_id) };
    let open = move || {
        let Some(blob) = source.try_open_layer(layer)? else { return Ok(None) };
        let (reader, is_ready) = blob.into_parts();
        let reader = cancellation.reader(progress.counted(reader));
        // A layer whose registry sends nothing must not hold up the cancellation.
        let cancellation = cancellation.clone();
        Ok(Some(LayerBlob::remote(reader, move || cancellation.is_cancelled() || is_ready())))
    };
    LayerToRead { open: Box::new(open), is_remote: source.is_remote(), is_verified_only, expected }
}
