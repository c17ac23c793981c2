//! The images of a round: what became of each, and what waits to be published.

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
use crate::revise::{Changes, Wishes};
use crate::source::SourceError;
use crate::stage::{StageError, StagedImage};
use crate::wishlist::{ImagePosition, WantedImage};

/// An image of the round.
pub(super) struct Item {
    pub(super) image: Arc<WantedImage>,
    /// Its place in the wishlist.
    pub(super) order: ImagePosition,
    /// What became of it, once that is known.
    pub(super) state: Option<ImageState>,
}

/// What was published and what waits to be.
pub(super) struct Publications<'a> {
    round: &'a Round<'a>,
    pub(super) items: Vec<Item>,
    /// Staged images that wait to be published, by the number of their item.
    pub(super) waiting: Vec<(usize, Vec<StagedImage>)>,
}

impl<'a> Publications<'a> {
    pub(super) fn new(round: &'a Round<'a>) -> Self {
        Self { round, items: Vec::new(), waiting: Vec::new() }
    }

    /// Takes in what came of an image.
    pub(super) fn take(&mut self, number: usize, result: StageResult) -> Result<(), SyncError> {
        let item = &self.items[number];
        match result {
            Ok(staged) if staged.iter().all(|image| image.is_foreign) => {
                self.round.observer.note(Event::Unchanged(&item.image));
                self.note_success(&item.image)?;
                self.items[number].state = Some(ImageState::Unchanged);
            }
            Ok(staged) => {
                let outcomes: Vec<_> = staged.iter().map(|image| image.outcome.clone()).collect();
                self.round.observer.note(match self.round.options.convert.dry_run {
                    true => Event::Planned(&item.image),
                    false => Event::Ready(&item.image, &outcomes),
                });
                self.waiting.push((number, staged));
            }
            Err(error) => self.items[number].state = Some(self.not_converted(&item.image, &error)?),
        }
        Ok(())
    }

    /// Notes that an image failed, or that it was found to be an artifact.
    pub(super) fn not_converted(&self, image: &WantedImage, error: &ConvertError) -> Result<ImageState, SyncError> {
        match artifact_type(error).filter(|_| image.is_found) {
            Some(artifact_type) => self.skipped(image, artifact_type.to_owned()),
            None => self.failed(image, error),
        }
    }

    /// Notes that what a rule found is no image, but an artifact of a type.
    pub(super) fn skipped(&self, image: &WantedImage, artifact_type: String) -> Result<ImageState, SyncError> {
        self.round.observer.note(Event::Artifact(image, &artifact_type));
        self.note_success(image)?;
        Ok(ImageState::Artifact(artifact_type))
    }

    fn failed(&self, image: &WantedImage, error: &ConvertError) -> Result<ImageState, SyncError> {
        let reason = causes(error);
        self.round.observer.note(Event::Failed(image, &reason));
        // What went wrong here says nothing about the image, nor does a registry that is left alone for now. An artifact that a
        // wish names is remembered as one, which spares its registry as much, and another wish for it may be a rule.
        if !is_local(error)
            && !is_postponed(error)
            && artifact_type(error).is_none()
            && !self.round.options.convert.dry_run
        {
            self.round.quarantine.note_failure(image.name(), &reason, self.round.now())?;
        }
        Ok(ImageState::Failed(reason))
    }

    /// Notes that nothing is wrong with an image.
    pub(super) fn note_success(&self, image: &WantedImage) -> Result<(), SyncError> {
        if !self.round.options.convert.dry_run {
            self.round.quarantine.note_success(image.name())?;
        }
        Ok(())
    }

    /// Publishes what is ready. The last time, with `wishes`, what the wishlist holds and what goes is published, too.
    pub(super) fn publish(&mut self, wishes: Option<&Wishes>) -> Result<(), SyncError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() && wishes.is_none() {
            return Ok(());
        }
        if self.round.options.convert.dry_run {
            for (number, platforms) in waiting {
                let outcomes = platforms.into_iter().map(|image| image.outcome).collect();
                self.items[number].state = Some(ImageState::Planned(outcomes));
            }
            return Ok(());
        }
        waiting.sort_by_key(|(number, _)| self.items[*number].order);
        let (numbers, staged): (Vec<usize>, Vec<Vec<StagedImage>>) = waiting.into_iter().unzip();
        let staged: Vec<StagedImage> = staged.into_iter().flatten().collect();
        let is_out = |item: &&Item| matches!(item.state, Some(ImageState::Unchanged | ImageState::Published(_)));
        let out = self.items.iter().filter(is_out).chain(numbers.iter().map(|&number| &self.items[number]));
        let published: BTreeSet<ImageName> = out.map(|item| item.image.name().clone()).collect();
        let noted = wishes.map(|wishes| wishes.noted(&published));
        let changes = Changes {
            images: &staged,
            removed: wishes.map_or(&[], Wishes::removed),
            wished: wishes.zip(noted.as_ref()).map(|(wishes, noted)| (wishes.wishlist.as_str(), noted)),
        };
        let publication = self.round.workers.operation.publish(&changes)?;
        let images: Vec<&WantedImage> = numbers.iter().map(|&number| &*self.items[number].image).collect();
        if let Some(Publication { revision, late }) = publication {
            // Before anything else can fail: an error must not report that nothing was published.
            let mut published = self.round.published.lock().expect(UNPOISONED);
            published.revisions.push(revision);
            published.late.extend(late);
            drop(published);
            self.round.observer.note(Event::Published(revision, &images));
            self.round.workers.renew_head()?;
        }
        for (number, platforms) in numbers.into_iter().zip(platforms(&staged)) {
            let outcomes = platforms.iter().map(|image| image.outcome.clone()).collect();
            self.note_success(&self.items[number].image)?;
            self.items[number].state = Some(ImageState::Published(outcomes));
        }
        Ok(())
    }
}

/// Tells whether a registry wants to be left alone, or is left alone.
fn is_postponed(error: &ConvertError) -> bool {
    matches!(error, ConvertError::Stage(StageError::Source(SourceError::Registry(error))) if error.is_postponed())
}

/// Returns whether this machine failed, and not an image or a registry.
fn is_local(error: &ConvertError) -> bool {
    match error {
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

/// Returns the images of each name.
fn platforms(staged: &[StagedImage]) -> impl Iterator<Item = &[StagedImage]> {
    staged.chunk_by(|a, b| a.outcome.place.name == b.outcome.place.name)
}
