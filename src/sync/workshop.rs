//! Converts images, several side by side, and publishes what is ready.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rsa::rand_core::CryptoRng;

use super::artifacts::{artifact_type, note_artifact, request};
use super::lanes::Lanes;
use super::prune::Wishes;
use super::quarantine::Quarantine;
use super::survey::Survey;
use super::turns::{Ticket, Turns};
use super::{Event, ImageState, Observer, Options, Published, SyncError, UNPOISONED};
use crate::convert::{Changes, ConvertError, Run, StagedImage, foreign_manifest};
use crate::image::{Digest, ImageName};
use crate::ingest::IngestError;
use crate::message::causes;
use crate::progress::Progress;
use crate::publish::Publication;
use crate::repository::Repository;
use crate::source::SourceError;
use crate::wishlist::{Order, WantedImage};

/// Everything that a round converts with.
pub(super) struct Workshop<'a> {
    pub(super) run: &'a Run,
    pub(super) survey: &'a Survey<'a>,
    /// The head as this round last saw or made it.
    pub(super) head: Mutex<Repository>,
    pub(super) options: &'a Options,
    pub(super) quarantine: &'a Quarantine<'a>,
    pub(super) observer: &'a dyn Observer,
    pub(super) published: &'a Mutex<Published>,
    /// Images to be converted.
    pub(super) works: Lanes<Work>,
    pub(super) turns: Turns,
    /// Kept while an image is taken and lines up, so that the line is in the order in which images are taken.
    pub(super) order: Mutex<()>,
    /// Images that are being converted, by their numbers.
    pub(super) running: Mutex<HashMap<usize, Running>>,
}

/// An image to be converted.
pub(super) struct Work {
    /// Its number in this round.
    pub(super) number: usize,
    pub(super) image: Arc<WantedImage>,
    /// What its registry has under its name.
    pub(super) digest: Digest,
}

/// An image that is being converted.
pub(super) struct Running {
    phase: Phase,
    /// When it was seen to move last.
    moved: Instant,
    host: String,
    /// How many bytes were read then.
    read: u64,
    progress: Arc<Progress>,
    ticket: usize,
}

/// What an image that is being converted waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its manifest.
    Asking,
    /// Another image that makes the same.
    Waiting,
    /// The content of its layers, or this machine.
    Reading,
}

/// The images that are being converted, as seen at one time.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    /// Tickets of those whose registries send nothing.
    pub(super) tickets: HashSet<usize>,
    /// Whether any other moves.
    pub(super) any_moves: bool,
}

/// An image by its number, and what came of it.
pub(super) type Staged = (usize, Result<Vec<StagedImage>, ConvertError>);

/// An image of the round.
pub(super) struct Item {
    pub(super) image: Arc<WantedImage>,
    /// Its place in the wishlist.
    pub(super) order: Order,
    /// What became of it, once that is known.
    pub(super) state: Option<ImageState>,
}

/// What is ready and what is out.
#[derive(Default)]
pub(super) struct Publications {
    pub(super) items: Vec<Item>,
    /// Images that wait to be published.
    pub(super) waiting: Vec<(usize, Vec<StagedImage>)>,
}

impl Work {
    fn host(&self) -> &str {
        self.image.host()
    }
}

impl Workshop<'_> {
    /// Returns how many images are being converted.
    pub(super) fn busy(&self) -> usize {
        self.works.running()
    }

    /// Converts image after image until there is no more work; `send` tells whether anybody still wants to know of it.
    pub(super) fn stage_images(&self, send: &dyn Fn(Staged) -> bool) {
        loop {
            let (work, ticket) = {
                let _order = self.order.lock().expect("no thread panics while it takes an image");
                let Some(work) = self.works.take() else { return };
                let ticket = self.turns.line_up(work.host());
                (work, ticket)
            };
            let result = self.stage(&work, ticket);
            // It counts as being converted until the news of it are there.
            let is_wanted = send((work.number, result));
            self.running().remove(&work.number);
            if !is_wanted {
                return;
            }
        }
    }

    fn stage(&self, work: &Work, ticket: Ticket<'_>) -> Result<Vec<StagedImage>, ConvertError> {
        let image = &*work.image;
        let progress = Arc::new(Progress::default());
        progress.set_stage("asking for the manifest".to_owned());
        let (phase, moved, ticket_number) = (Phase::Asking, Instant::now(), ticket.number());
        let (host, read) = (work.host().to_owned(), 0);
        let running = Running { phase, moved, host, read, progress: Arc::clone(&progress), ticket: ticket_number };
        self.running().insert(work.number, running);
        self.observer.note(Event::Started(image, &progress));
        let resolved = self.run.resolve(&request(image));
        if let Some(artifact_type) = resolved.as_ref().err().and_then(artifact_type) {
            note_artifact(self.run.state(), image, work.digest, artifact_type)?;
        }
        let resolved = resolved?;
        let head = self.head();
        let mut made = HashSet::new();
        for image in resolved.images() {
            made.insert(image.config.digest);
            for layer in &image.layers {
                if !Run::is_layer_published(&head, layer.digest)? {
                    made.insert(layer.digest);
                }
            }
        }
        progress.set_stage("waiting for an image that has the same layers".to_owned());
        self.enter(work.number, Phase::Waiting);
        let _claim = ticket.claim(made);
        self.enter(work.number, Phase::Reading);
        // Whoever had the claim before may have published.
        let head = self.head();
        let staged = self.run.stage(resolved, &head, &progress)?;
        if staged.iter().any(StagedImage::is_foreign)
            && let Some(published) = foreign_manifest(&head, &staged[0].outcome.place)?
        {
            self.run.state().add_seen(&image.name().to_string(), published, &work.digest.to_string())?;
        }
        Ok(staged)
    }

    fn enter(&self, number: usize, phase: Phase) {
        if let Some(running) = self.running().get_mut(&number) {
            (running.phase, running.moved) = (phase, Instant::now());
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Running>> {
        self.running.lock().expect("no thread panics while it notes what it does")
    }

    /// Looks which of the images that are being converted have not moved for `length`, and lends their places to others.
    pub(super) fn look_who_lags(&self, length: Duration) -> Lagging {
        let (mut found, mut running) = (Lagging::default(), self.running());
        let mut hosts = HashSet::new();
        for running in running.values_mut().filter_map(|running| running.lags(length).then_some(running)) {
            found.tickets.insert(running.ticket);
            hosts.insert(running.host.clone());
        }
        // What waits for another image of such a registry gets no further, either. Others wait for what moves.
        let waiting = running.values().filter(|running| running.phase == Phase::Waiting);
        found.tickets.extend(waiting.filter(|running| hosts.contains(&running.host)).map(|running| running.ticket));
        drop(running);
        // An image that is taken may not be among those that are looked at yet.
        found.any_moves = found.tickets.len() < self.works.running();
        self.works.lend(found.tickets.len());
        self.turns.set_lagging(found.tickets.clone());
        found
    }

    pub(super) fn head(&self) -> Repository {
        self.head.lock().expect("no thread panics while it holds the head").clone()
    }

    /// Takes in what came of an image.
    pub(super) fn take(&self, (number, result): Staged, publications: &mut Publications) -> Result<(), SyncError> {
        let item = &mut publications.items[number];
        match result {
            Ok(staged) if staged.iter().all(StagedImage::is_foreign) => {
                self.observer.note(Event::Unchanged(&item.image));
                self.note_success(&item.image)?;
                item.state = Some(ImageState::Unchanged);
            }
            Ok(staged) => {
                let outcomes: Vec<_> = staged.iter().map(|image| image.outcome.clone()).collect();
                self.observer.note(match self.options.convert.dry_run {
                    true => Event::Planned(&item.image),
                    false => Event::Ready(&item.image, &outcomes),
                });
                publications.waiting.push((number, staged));
            }
            Err(error) => item.state = Some(self.not_converted(&item.image, &error)?),
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
        self.observer.note(Event::Artifact(image, &artifact_type));
        self.note_success(image)?;
        Ok(ImageState::Artifact(artifact_type))
    }

    fn failed(&self, image: &WantedImage, error: &ConvertError) -> Result<ImageState, SyncError> {
        let reason = causes(error);
        self.observer.note(Event::Failed(image, &reason));
        // What went wrong here says nothing about the image, nor does a registry that is left alone for now. An artifact that a
        // wish names is remembered as one, which spares its registry as much, and another wish for it may be a rule.
        if !is_local(error) && !is_postponed(error) && artifact_type(error).is_none() && !self.options.convert.dry_run {
            self.quarantine.note_failure(image.name(), &reason, self.run.now())?;
        }
        Ok(ImageState::Failed(reason))
    }

    /// Notes that nothing is wrong with an image.
    pub(super) fn note_success(&self, image: &WantedImage) -> Result<(), SyncError> {
        if !self.options.convert.dry_run {
            self.quarantine.note_success(image.name())?;
        }
        Ok(())
    }

    /// Publishes what is ready. The last time, with `wishes`, what the wishlist holds and what goes is published, too.
    pub(super) fn publish(
        &self,
        publications: &mut Publications,
        wishes: Option<&Wishes>,
        rng: &mut (impl CryptoRng + Send),
    ) -> Result<(), SyncError> {
        let mut waiting = std::mem::take(&mut publications.waiting);
        if waiting.is_empty() && wishes.is_none() {
            return Ok(());
        }
        let items = &mut publications.items;
        if self.options.convert.dry_run {
            for (number, platforms) in waiting {
                let outcomes = platforms.into_iter().map(|image| image.outcome).collect();
                items[number].state = Some(ImageState::Planned(outcomes));
            }
            return Ok(());
        }
        waiting.sort_by_key(|(number, _)| items[*number].order);
        let (numbers, staged): (Vec<usize>, Vec<Vec<StagedImage>>) = waiting.into_iter().unzip();
        let staged: Vec<StagedImage> = staged.into_iter().flatten().collect();
        let is_out = |item: &&Item| matches!(item.state, Some(ImageState::Unchanged | ImageState::Published(_)));
        let out = items.iter().filter(is_out).chain(numbers.iter().map(|&number| &items[number]));
        let published: BTreeSet<ImageName> = out.map(|item| item.image.name().clone()).collect();
        let noted = wishes.map(|wishes| wishes.noted(&published));
        let changes = Changes {
            images: &staged,
            removed: wishes.map_or(&[], Wishes::removed),
            wished: wishes.zip(noted.as_ref()).map(|(wishes, noted)| (wishes.wishlist.as_str(), noted)),
        };
        let publication = self.run.publish(&changes, rng)?;
        let images: Vec<&WantedImage> = numbers.iter().map(|&number| &*items[number].image).collect();
        if let Some(Publication { revision, late }) = publication {
            // Before anything else can fail: an error must not report that nothing was published.
            let mut published = self.published.lock().expect(UNPOISONED);
            published.revisions.push(revision);
            published.late.extend(late);
            drop(published);
            self.observer.note(Event::Published(revision, &images));
            *self.head.lock().expect("no thread panics while it holds the head") = self.run.head()?;
        }
        for (number, platforms) in numbers.into_iter().zip(platforms(&staged)) {
            let item = &mut items[number];
            self.note_success(&item.image)?;
            let outcomes = platforms.iter().map(|image| image.outcome.clone()).collect();
            item.state = Some(ImageState::Published(outcomes));
        }
        Ok(())
    }
}

impl Running {
    /// Tells whether the registry of the image has sent nothing for `length`.
    fn lags(&mut self, length: Duration) -> bool {
        let expected = self.progress.expected.load(Ordering::Relaxed);
        let read = self.progress.read.load(Ordering::Relaxed);
        if read != self.read {
            (self.read, self.moved) = (read, Instant::now());
        }
        let waits_for_registry = match self.phase {
            Phase::Asking => true,
            Phase::Waiting => false,
            // Otherwise this machine is at work.
            Phase::Reading => read < expected,
        };
        waits_for_registry && self.moved.elapsed() >= length
    }
}

/// Tells whether a registry wants to be left alone, or is left alone.
fn is_postponed(error: &ConvertError) -> bool {
    matches!(error, ConvertError::Source(SourceError::Registry(error)) if error.is_postponed())
}

/// Tells whether it was this machine that failed, and not an image or a registry.
fn is_local(error: &ConvertError) -> bool {
    match error {
        ConvertError::Layer { source, .. } => !matches!(source, IngestError::Layer(_) | IngestError::Source(_)),
        ConvertError::Source(_)
        | ConvertError::Naming(_)
        | ConvertError::Apply { .. }
        | ConvertError::OtherDiffId { .. }
        | ConvertError::OtherSize { .. }
        | ConvertError::Losses(_)
        | ConvertError::SameName(_) => false,
        _ => true,
    }
}

/// Returns the images of each name.
fn platforms(staged: &[StagedImage]) -> impl Iterator<Item = &[StagedImage]> {
    staged.chunk_by(|a, b| a.outcome.place.name == b.outcome.place.name)
}
