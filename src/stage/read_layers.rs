//! Reads the layers of one image from its source into the store.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::plan::BuildPlan;
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
    /// Reads the layers of the plan from their blobs, stores their content, and records the verified blobs. Returns the layers
    /// that were read and those from the cache, by index.
    ///
    /// A layer with an index less than `plan.untouched(image)` is only verified: the build does not need it, so it is not returned. If
    /// a layer fails, returns the first error.
    pub(super) fn read_layers(
        &self,
        image: &Image,
        plan: &mut BuildPlan,
        source: &dyn Source,
        progress: &Progress,
    ) -> Result<BTreeMap<usize, IngestedLayer>, StageError> {
        let layers_to_read: Vec<usize> = plan.layers_to_read(image).collect();
        progress.expected.fetch_add(plan.summary(image).bytes_to_read, Ordering::Relaxed);
        let ingest = Ingest {
            staging: &self.staging,
            index: &self.index,
            compression: self.settings().compression,
            chunk_sizes: ChunkSizes::default(),
            threads: self.engine.resources().threads,
            memory: self.options.memory,
            limits: self.options.limits,
        };
        let untouched = plan.untouched(image);
        let layer = |&index: &usize| {
            layer_to_read(&image.layers[index], index < untouched, source, progress, self.engine.cancellation())
        };
        let results = ingest.run(layers_to_read.iter().map(layer).collect(), &|index, layer| {
            // A layer from a local source is not added to the cache, because reading it again is as fast as reading the cache.
            let is_cached = source.is_remote() && layers_to_read[index] >= untouched;
            if let Some(cache) = self.layer_cache.as_ref().filter(|_| is_cached) {
                cache.insert(image.layers[layers_to_read[index]].digest, layer);
            }
        });
        let mut read = std::mem::take(&mut plan.cached);
        let mut failure: Option<(Digest, IngestError)> = None;
        let mut verified = Vec::new();
        for (&index, result) in layers_to_read.iter().zip(results) {
            match result {
                Ok(layer) => {
                    let LayerSummary { blob_size: size, diff_id, .. } = layer.summary;
                    verified.push(VerifiedBlob { digest: image.layers[index].digest, size, diff_id });
                    if index >= untouched {
                        read.insert(index, layer);
                    }
                }
                // Reading ended because another layer failed. The error of that layer is returned.
                Err(IngestError::GivenUp) => {}
                Err(error) => failure = failure.or(Some((image.layers[index].digest, error))),
            }
        }
        // The verified blobs are recorded even if another layer failed, so that a later attempt need not read them again only to
        // verify them.
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
        // After a cancellation, the layer counts as ready, so that it is read and the reader fails. Otherwise the operation
        // would wait for a registry that sends nothing.
        let cancellation = cancellation.clone();
        Ok(Some(LayerBlob::remote(reader, move || cancellation.is_cancelled() || is_ready())))
    };
    LayerToRead { open: Box::new(open), is_remote: source.is_remote(), is_verified_only, expected }
}
