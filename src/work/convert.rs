//! Converts images that are named one by one, and publishes them together.

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
use crate::stage::{Outcome, Request, StagedImage};
use crate::store::{StoreError, WrittenObjects};

/// What became of one image.
#[derive(Debug)]
pub struct ImageReport {
    /// The image as it was named.
    pub argument: ImageArgument,
    /// The result: one outcome for each platform that was wanted.
    pub outcomes: Result<Vec<Outcome>, ConvertError>,
}

/// What a conversion did.
#[derive(Debug)]
pub struct ConvertReport {
    /// Each image, in the order given.
    pub images: Vec<ImageReport>,
    /// The revision that was published, unless everything was there already or everything failed.
    pub revision: Option<Revision>,
    /// What failed once it was published.
    pub late: Vec<StoreError>,
    /// What was added to the store.
    pub written: WrittenObjects,
    /// Pieces of content that were known and therefore not compressed again.
    pub index_hits: u64,
}

/// Converts images and publishes those that succeed, as one revision.
///
/// An image that fails is reported and does not hold up the others. An error means that nothing was published.
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
    // Objects are kept even if no image is published now.
    staging.flush()?;
    let is_to_be_published = !options.dry_run && !options.only_store && !staged.is_empty();
    let changes = Changes { images: &staged, ..Changes::default() };
    let publication = if is_to_be_published { operation.publish(&changes)? } else { None };
    let (revision, late) = publication.map(|publication| (publication.revision, publication.late)).unzip();
    let (written, index_hits) = (operation.written(), operation.stager.index_hits());
    Ok(ConvertReport { images, revision, late: late.unwrap_or_default(), written, index_hits })
}
