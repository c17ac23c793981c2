//! Tests of the reader: known archives with their entries, and generated archives that `convert`'s reader must read alike.

mod agreement;
mod archives;
mod forms;

use super::{ReadLayer, ReadLayerError};
use crate::image::{DiffId, Digest};
use crate::layer::Limits;
use crate::source::ImageLayer;

/// Returns what an image with this blob and this archive states about the layer.
fn layer_of(blob: &[u8], archive: &[u8]) -> ImageLayer {
    ImageLayer {
        digest: Digest::of(blob),
        size: blob.len() as u64,
        diff_id: DiffId(Digest::of(archive)),
        media_type: String::new(),
        urls: Vec::new(),
    }
}

/// Reads an archive that is not compressed.
fn read(archive: &[u8]) -> Result<ReadLayer, ReadLayerError> {
    super::read(archive, &layer_of(archive, archive), Limits::default())
}
