//! The images of a round: their results, and the staged ones that wait for publication.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::artifacts::artifact_type;
use super::round::Round;
use super::sync::UNPOISONED;
use super::worker::StageResult;
use super::{ConvertError, Event, ImageState, SyncError};
use crate::image::ImageName;
use crate::ingest::IngestError;
use crate::message::causes;
use crate::publish::Publication;
use crate::revise::{Changes, WishlistChange};
use crate::shortage::is_from_shortage;
use crate::source::SourceError;
use crate::stage::{StageError, StagedImage};
use crate::wishlist::{ImagePosition, WantedImage};

/// An image of a round.
pub(super) struct RoundImage {
    pub(super) wanted: Arc<WantedImage>,
    /// Its position in the wishlist.
    pub(super) position: ImagePosition,
    /// Its result, as soon as it is known.
    pub(super) state: Option<ImageState>,
}

/// Results of the images of a round.
pub(super) struct Publications<'a> {
    round: &'a Round<'a>,
    pub(super) images: Vec<RoundImage>,
    /// Staged images that wait for publication, with the index of each in `images`.
    pub(super) unpublished: Vec<(usize, Vec<StagedImage>)>,
}

impl<'a> Publications<'a> {
    pub(super) fn new(round: &'a Round<'a>) -> Self {
        Self { round, images: Vec::new(), unpublished: Vec::new() }
    }

    /// Adds the result of staging an image.
    pub(super) fn add(&mut self, number: usize, result: StageResult) -> Result<(), SyncError> {
        let image = &self.images[number];
        match result {
            Ok(staged) if staged.iter().all(|image| image.is_foreign) => {
                self.round.observer.note(Event::Unchanged(&image.wanted));
                self.record_success(&image.wanted)?;
                self.images[number].state = Some(ImageState::Unchanged);
            }
            Ok(staged) => {
                let outcomes: Vec<_> = staged.iter().map(|image| image.outcome.clone()).collect();
                self.round.observer.note(match self.round.options.convert.dry_run {
                    true => Event::Planned(&image.wanted),
                    false => Event::Ready(&image.wanted, &outcomes),
                });
                self.unpublished.push((number, staged));
            }
            Err(error) => self.images[number].state = Some(self.record_error(&image.wanted, &error)?),
        }
        Ok(())
    }

    /// Records that an image failed, or that it is an artifact.
    pub(super) fn record_error(&self, image: &WantedImage, error: &ConvertError) -> Result<ImageState, SyncError> {
        match artifact_type(error).filter(|_| image.is_found) {
            Some(artifact_type) => self.record_artifact(image, artifact_type.to_owned()),
            None => self.record_failure(image, error),
        }
    }

    /// Records that a tag that a rule selected refers to an artifact.
    pub(super) fn record_artifact(&self, image: &WantedImage, artifact_type: String) -> Result<ImageState, SyncError> {
        self.round.observer.note(Event::Artifact(image, &artifact_type));
        self.record_success(image)?;
        Ok(ImageState::Artifact(artifact_type))
    }

    fn record_failure(&self, image: &WantedImage, error: &ConvertError) -> Result<ImageState, SyncError> {
        let reason = causes(error);
        self.round.observer.note(Event::Failed(image, &reason));
        // Only a fault of the image or its registry leads to quarantine. A fault of this machine does not, nor does a registry
        // to which no requests are sent for now: neither says anything about the image. An artifact is recorded separately and
        // is not quarantined, because another wish may select the same tag by a rule.
        if !is_local(error)
            && !is_postponed(error)
            && artifact_type(error).is_none()
            && !self.round.options.convert.dry_run
        {
            self.round.quarantine.record_failure(image.name(), &reason, self.round.now())?;
        }
        Ok(ImageState::Failed(reason))
    }

    /// Ends the quarantine of an image.
    pub(super) fn record_success(&self, image: &WantedImage) -> Result<(), SyncError> {
        if !self.round.options.convert.dry_run {
            self.round.quarantine.record_success(image.name())?;
        }
        Ok(())
    }

    /// Publishes the staged images. The last call has a `change`: it also records the names of the wishlist and removes images.
    pub(super) fn publish(&mut self, change: Option<&WishlistChange>) -> Result<(), SyncError> {
        let mut unpublished = std::mem::take(&mut self.unpublished);
        if unpublished.is_empty() && change.is_none() {
            return Ok(());
        }
        if self.round.options.convert.dry_run {
            for (number, platforms) in unpublished {
                let outcomes = platforms.into_iter().map(|image| image.outcome).collect();
                self.images[number].state = Some(ImageState::Planned(outcomes));
            }
            return Ok(());
        }
        // The revision must not depend on which image was staged first.
        unpublished.sort_by_key(|(number, _)| self.images[*number].position);
        let (numbers, staged): (Vec<usize>, Vec<Vec<StagedImage>>) = unpublished.into_iter().unzip();
        let staged: Vec<StagedImage> = staged.into_iter().flatten().collect();
        let is_published =
            |image: &&RoundImage| matches!(image.state, Some(ImageState::Unchanged | ImageState::Published(_)));
        let published_images =
            self.images.iter().filter(is_published).chain(numbers.iter().map(|&number| &self.images[number]));
        let published: BTreeSet<ImageName> = published_images.map(|image| image.wanted.name().clone()).collect();
        let recorded_names = change.map(|change| change.recorded_names(&published));
        let changes = Changes {
            images: &staged,
            removed: change.map_or(&[], WishlistChange::removed),
            wished: change.zip(recorded_names.as_ref()).map(|(change, names)| (change.wishlist.as_str(), names)),
        };
        let publication = self.round.workers.operation.publish(&changes)?;
        let images: Vec<&WantedImage> = numbers.iter().map(|&number| &*self.images[number].wanted).collect();
        if let Some(Publication { revision, late_errors }) = publication {
            // This comes before anything that can fail, because an error must not claim that nothing was published.
            let mut published = self.round.published.lock().expect(UNPOISONED);
            published.revisions.push(revision);
            published.late_errors.extend(late_errors);
            drop(published);
            self.round.observer.note(Event::Published(revision, &images));
            self.round.workers.renew_head()?;
        }
        for (number, platforms) in numbers.into_iter().zip(platforms(&staged)) {
            let outcomes = platforms.iter().map(|image| image.outcome.clone()).collect();
            self.record_success(&self.images[number].wanted)?;
            self.images[number].state = Some(ImageState::Published(outcomes));
        }
        Ok(())
    }
}

/// Returns whether no requests are sent to the registry for now.
fn is_postponed(error: &ConvertError) -> bool {
    matches!(error, ConvertError::Stage(StageError::Source(SourceError::Registry(error))) if error.is_postponed())
}

/// Returns whether the cause of an error is this machine, and not the image or its registry.
fn is_local(error: &ConvertError) -> bool {
    match error {
        _ if is_from_shortage(error) => true,
        ConvertError::Stage(StageError::Source(SourceError::Registry(error))) => error.is_local(),
        ConvertError::Losses(_) | ConvertError::SameName(_) => false,
        ConvertError::Stage(error) => match error {
            StageError::Layer { source, .. } => !matches!(source, IngestError::Layer(_) | IngestError::Source(_)),
            StageError::Source(_)
            | StageError::Naming(_)
            | StageError::Apply { .. }
            | StageError::OtherDiffId { .. }
            | StageError::OtherSize { .. } => false,
            _ => true,
        },
        _ => true,
    }
}

/// Groups images by name. `staged` contains one image for each platform of a name, and the images of one name are adjacent.
fn platforms(staged: &[StagedImage]) -> impl Iterator<Item = &[StagedImage]> {
    staged.chunk_by(|a, b| a.outcome.place.name == b.outcome.place.name)
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;
    use crate::http::HttpError;
    use crate::image::Digest;
    use crate::layer::LayerError;
    use crate::registry::RegistryError;

    #[test]
    fn shortage_of_resources_counts_as_a_fault_of_this_machine_in_all_errors() {
        let registry = |errno: Errno| {
            let source = io::Error::from(errno).into();
            let error = RegistryError::Http(HttpError::Unreachable { url: "https://h.org/v2/".to_owned(), source });
            ConvertError::from(StageError::from(SourceError::from(error)))
        };
        let layer = |errno: Errno| {
            let source = IngestError::Layer(LayerError::Read(io::Error::other(io::Error::from(errno))));
            ConvertError::from(StageError::Layer { digest: Digest::of(b""), mirror: None, source })
        };
        let thread = RegistryError::Http(HttpError::Thread(io::Error::from(Errno::AGAIN).into()));
        assert!(is_local(&StageError::from(SourceError::from(thread)).into()));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN] {
            assert!(is_local(&registry(errno)) && is_local(&layer(errno)), "{errno}");
        }
        assert!(!is_local(&registry(Errno::CONNREFUSED)) && !is_local(&layer(Errno::CONNRESET)));
    }
}
