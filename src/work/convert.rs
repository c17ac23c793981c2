//! Converts the given images, and publishes them together.

use super::operation::Operation;
use super::worker::Workers;
use super::{ConvertError, ConvertOptions, retried};
use std::sync::Arc;

use crate::engine::Engine;
use crate::image::ImageName;
use crate::progress::Progress;
use crate::publish::Revision;
use crate::revise::Changes;
use crate::source::ImageArgument;
use crate::stage::{ImageOutcome, Request, StagedImage};
use crate::store::{StoreError, WrittenObjects};

/// The result for one image.
#[derive(Debug)]
pub struct ImageReport {
    /// The argument that named the image.
    pub argument: ImageArgument,
    /// One outcome for each requested platform, or the error.
    pub outcomes: Result<Vec<ImageOutcome>, ConvertError>,
}

/// The result of a conversion.
#[derive(Debug)]
pub struct ConvertReport {
    /// The result for each image, in the given order.
    pub images: Vec<ImageReport>,
    /// The published revision; `None` if all images were published before or failed.
    pub revision: Option<Revision>,
    /// Errors of steps after the publication.
    pub late_errors: Vec<StoreError>,
    /// The objects that were added to the store.
    pub written: WrittenObjects,
    /// Number of files and chunks that were not compressed, because the content index has their objects.
    pub index_hits: u64,
}

/// Converts images and publishes the successful ones as one revision.
///
/// A failed image is reported, and the others are converted nevertheless. An error means that nothing was published.
pub fn convert(
    engine: &Engine,
    requests: &[Request],
    options: &ConvertOptions,
    progress: &Arc<Progress>,
) -> Result<ConvertReport, ConvertError> {
    retried(engine.reporter(), || attempt(engine, requests, options, progress), ConvertError::vanished)
}

fn attempt(
    engine: &Engine,
    requests: &[Request],
    options: &ConvertOptions,
    progress: &Arc<Progress>,
) -> Result<ConvertReport, ConvertError> {
    let operation = Operation::start(
        engine,
        options.stage(engine.resources().memory),
        engine.registries().clone(),
        options.publish,
    )?;
    let staging = operation.stager.staging();
    if requests.iter().any(|request| request.image.force) {
        staging.compare_bytes();
    }
    let head = operation.head()?;
    let workers = Workers::new(&operation, head, 1);
    let (mut images, mut staged) = (Vec::new(), Vec::<StagedImage>::new());
    for request in requests {
        operation.cancellation().check()?;
        let is_taken = |name: &ImageName| staged.iter().any(|image| image.outcome.place.name == *name);
        let result = workers.stage_alone(request, progress, is_taken);
        let outcomes = result.map(|platforms| {
            let outcomes = platforms.iter().map(|image| image.outcome.clone()).collect();
            staged.extend(platforms);
            outcomes
        });
        images.push(ImageReport { argument: request.argument.clone(), outcomes });
    }
    operation.cancellation().check()?;
    // The objects are kept even if no image is published, so that a later conversion can use them.
    staging.flush()?;
    let is_to_be_published = !options.dry_run && !options.only_store && !staged.is_empty();
    let changes = Changes { images: &staged, ..Changes::default() };
    let publication = if is_to_be_published { operation.publish(&changes)? } else { None };
    let (revision, late_errors) =
        publication.map(|publication| (publication.revision, publication.late_errors)).unzip();
    let (written, index_hits) = (operation.written(), operation.stager.index_hits());
    Ok(ConvertReport { images, revision, late_errors: late_errors.unwrap_or_default(), written, index_hits })
}
