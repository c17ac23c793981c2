//! Converts what has changed, several images side by side, and publishes what is ready.

use std::collections::HashSet;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rsa::rand_core::CryptoRng;

use super::artifacts::{artifact_type, note_artifact, request};
use super::prune::Wishes;
use super::quarantine::Quarantine;
use super::queue::Queue;
use super::survey::{Finding, Survey, parked_until};
use super::turns::{Ticket, Turns};
use super::{Event, ImageState, Observer, Options, Published, SyncError, UNPOISONED};
use crate::convert::{Changes, ConvertError, Run, StagedImage, foreign_manifest};
use crate::image::Digest;
use crate::ingest::IngestError;
use crate::message::causes;
use crate::progress::Progress;
use crate::publish::Publication;
use crate::repository::Repository;
use crate::threads::STACK_BYTES;
use crate::wishlist::WantedImage;

/// Everything that a round converts with.
pub(super) struct Workshop<'a> {
    pub(super) run: &'a Run,
    pub(super) survey: &'a Survey<'a>,
    /// The head as this round last saw or made it.
    pub(super) head: Mutex<Repository>,
    pub(super) images: &'a [WantedImage],
    pub(super) options: &'a Options,
    pub(super) quarantine: &'a Quarantine<'a>,
    pub(super) observer: &'a dyn Observer,
    pub(super) published: &'a Mutex<Published>,
}

/// An image to be converted.
#[derive(Clone, Copy)]
struct Work {
    /// Its place in the wishlist.
    index: usize,
    /// What its registry has under its name, if that is known.
    digest: Option<Digest>,
    /// How often its registry asked to wait.
    waits: u32,
}

/// So often a registry may ask to wait before the image is given up.
const MOST_WAITS: u32 = 20;

/// An image by its place in the wishlist, and what came of it: nothing for one that is as it is published.
type Staged = (usize, Result<Vec<StagedImage>, ConvertError>);

/// What is ready and what is out.
struct Publications<'a> {
    /// Images that wait to be published.
    waiting: Vec<(usize, Vec<StagedImage>)>,
    states: Vec<Option<ImageState>>,
    wishes: &'a Wishes,
}

/// No clock counts on for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

impl Workshop<'_> {
    /// Converts the images that changed and publishes them; returns what became of each image.
    pub(super) fn work(
        &self,
        findings: Vec<Finding>,
        wishes: &Wishes,
        rng: &mut (impl CryptoRng + Send),
    ) -> Result<Vec<ImageState>, SyncError> {
        let (mut changed, mut later) = (Vec::new(), Vec::new());
        let mut states = Vec::new();
        for (index, finding) in findings.into_iter().enumerate() {
            states.push(match finding {
                Finding::Unchanged => {
                    self.note_success(index)?;
                    Some(ImageState::Unchanged)
                }
                Finding::Quarantined(reason) => Some(ImageState::Failed(reason)),
                Finding::Failed(error) => Some(self.not_converted(index, &error)?),
                Finding::Changed(digest) => {
                    changed.push(Work { index, digest: Some(digest), waits: 0 });
                    None
                }
                Finding::Later(until) => {
                    later.push((until, Work { index, digest: None, waits: 1 }));
                    None
                }
            });
        }
        let mut publications = Publications { waiting: Vec::new(), states, wishes };
        let count = changed.len() + later.len();
        let (queue, turns, order) = (Queue::new(changed, later), Turns::default(), Mutex::new(()));
        let (sender, receiver) = mpsc::channel();
        let published = thread::scope(|scope| {
            for _ in 0..self.options.side_by_side.clamp(1, count.max(1)) {
                let (queue, turns, order, sender) = (&queue, &turns, &order, sender.clone());
                let work = move || self.stage_images(queue, turns, order, &sender);
                // With fewer threads it takes longer; with none at all there is this error.
                let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
                spawned.map_err(SyncError::Thread)?;
            }
            drop(sender);
            let published = self.publish_all(&receiver, &mut publications, rng);
            queue.abandon();
            published
        });
        published?;
        let states = publications.states.into_iter();
        Ok(states.map(|state| state.expect("every image that changed was converted, or failed")).collect())
    }

    /// Converts image after image until none is left.
    fn stage_images(&self, queue: &Queue<Work>, turns: &Turns, order: &Mutex<()>, sender: &Sender<Staged>) {
        loop {
            let (next, ticket) = {
                // The line is in the order of the queue.
                let _order = order.lock().expect("no thread panics while it takes an image");
                let Some(next) = queue.take() else { return };
                (next, turns.line_up())
            };
            let index = next.index;
            let result = self.stage(next, ticket);
            if let Err(error) = &result
                && let Some(until) = parked_until(error)
                && next.waits < MOST_WAITS
            {
                let image = &self.images[index];
                self.observer.note(Event::Waits(image, until.saturating_duration_since(Instant::now())));
                queue.postpone(Work { waits: next.waits + 1, ..next }, until);
                continue;
            }
            let is_wanted = sender.send((index, result)).is_ok();
            queue.done();
            if !is_wanted {
                return;
            }
        }
    }

    fn stage(&self, Work { index, digest, .. }: Work, ticket: Ticket<'_>) -> Result<Vec<StagedImage>, ConvertError> {
        let image = &self.images[index];
        let digest = match digest {
            Some(digest) => digest,
            None => match self.survey.look(image)? {
                Some(digest) => digest,
                None => return Ok(Vec::new()),
            },
        };
        let progress = Arc::new(Progress::default());
        progress.set_stage("asking for the manifest".to_owned());
        self.observer.note(Event::Started(image, &progress));
        let resolved = self.run.resolve(&request(image));
        if let Some(artifact_type) = resolved.as_ref().err().and_then(|error| artifact_type(image, error)) {
            note_artifact(self.run.state(), image, digest, artifact_type)?;
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
        let _claim = ticket.claim(made);
        // Whoever had the claim before may have published.
        let head = self.head();
        let staged = self.run.stage(resolved, &head, &progress)?;
        if staged.iter().any(StagedImage::is_foreign)
            && let Some(published) = foreign_manifest(&head, &staged[0].outcome.place)?
        {
            self.run.state().add_seen(&image.name().to_string(), published, &digest.to_string())?;
        }
        Ok(staged)
    }

    fn head(&self) -> Repository {
        self.head.lock().expect("no thread panics while it holds the head").clone()
    }

    /// Publishes what becomes ready, from time to time and at the end.
    fn publish_all(
        &self,
        receiver: &Receiver<Staged>,
        publications: &mut Publications<'_>,
        rng: &mut (impl CryptoRng + Send),
    ) -> Result<(), SyncError> {
        let every = self.options.publish_every;
        let mut next = Instant::now() + every.min(LONGEST);
        loop {
            let pause = next.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(pause) {
                Ok((index, result)) => self.take(index, result, publications)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.publish(publications, true, rng),
            }
            if Instant::now() >= next {
                self.publish(publications, false, rng)?;
                next = Instant::now() + every.min(LONGEST);
            }
        }
    }

    fn take(
        &self,
        index: usize,
        result: Result<Vec<StagedImage>, ConvertError>,
        publications: &mut Publications<'_>,
    ) -> Result<(), SyncError> {
        match result {
            Ok(staged) if staged.iter().all(StagedImage::is_foreign) => {
                self.observer.note(Event::Unchanged(&self.images[index]));
                self.note_success(index)?;
                publications.states[index] = Some(ImageState::Unchanged);
            }
            Ok(staged) => {
                let outcomes: Vec<_> = staged.iter().map(|image| image.outcome.clone()).collect();
                let image = &self.images[index];
                self.observer.note(match self.options.convert.dry_run {
                    true => Event::Planned(image),
                    false => Event::Ready(image, &outcomes),
                });
                publications.waiting.push((index, staged));
            }
            Err(error) => publications.states[index] = Some(self.not_converted(index, &error)?),
        }
        Ok(())
    }

    /// Takes note of an image that was not converted: one that failed, or that is none.
    fn not_converted(&self, index: usize, error: &ConvertError) -> Result<ImageState, SyncError> {
        let image = &self.images[index];
        let Some(artifact_type) = artifact_type(image, error) else { return self.failed(index, error) };
        self.observer.note(Event::Artifact(image, artifact_type));
        self.note_success(index)?;
        Ok(ImageState::Artifact(artifact_type.to_owned()))
    }

    fn failed(&self, index: usize, error: &ConvertError) -> Result<ImageState, SyncError> {
        let (image, reason) = (&self.images[index], causes(error));
        self.observer.note(Event::Failed(image, &reason));
        // What went wrong here says nothing about the image.
        if !is_local(error) && !self.options.convert.dry_run {
            self.quarantine.note_failure(image.name(), &reason, self.run.now())?;
        }
        Ok(ImageState::Failed(reason))
    }

    fn note_success(&self, index: usize) -> Result<(), SyncError> {
        if !self.options.convert.dry_run {
            self.quarantine.note_success(self.images[index].name())?;
        }
        Ok(())
    }

    /// Publishes what is ready. The last time, what the wishlist holds and what goes is published, too.
    fn publish(
        &self,
        publications: &mut Publications<'_>,
        is_last: bool,
        rng: &mut (impl CryptoRng + Send),
    ) -> Result<(), SyncError> {
        let mut waiting = std::mem::take(&mut publications.waiting);
        if waiting.is_empty() && !is_last {
            return Ok(());
        }
        if self.options.convert.dry_run {
            for (index, platforms) in waiting {
                let outcomes = platforms.into_iter().map(|image| image.outcome).collect();
                publications.states[index] = Some(ImageState::Planned(outcomes));
            }
            return Ok(());
        }
        waiting.sort_by_key(|(index, _)| *index);
        let (indexes, staged): (Vec<usize>, Vec<Vec<StagedImage>>) = waiting.into_iter().unzip();
        let staged: Vec<StagedImage> = staged.into_iter().flatten().collect();
        let wishes = publications.wishes;
        let is_out =
            |state: &Option<ImageState>| matches!(state, Some(ImageState::Unchanged | ImageState::Published(_)));
        let out = publications.states.iter().enumerate().filter(|(_, state)| is_out(state)).map(|(index, _)| index);
        let published = out.chain(indexes.iter().copied()).map(|index| self.images[index].name().clone()).collect();
        let noted = wishes.noted(&published);
        let changes = Changes {
            images: &staged,
            removed: if is_last { wishes.removed() } else { &[] },
            wished: is_last.then_some((wishes.wishlist.as_str(), &noted)),
        };
        let publication = self.run.publish(&changes, rng)?;
        let images: Vec<&WantedImage> = indexes.iter().map(|&index| &self.images[index]).collect();
        if let Some(Publication { revision, late }) = publication {
            // Before anything else can fail: nobody may be told that nothing was published.
            let mut published = self.published.lock().expect(UNPOISONED);
            published.revisions.push(revision);
            published.late.extend(late);
            drop(published);
            self.observer.note(Event::Published(revision, &images));
            *self.head.lock().expect("no thread panics while it holds the head") = self.run.head()?;
        }
        for (index, platforms) in indexes.into_iter().zip(platforms(&staged)) {
            self.note_success(index)?;
            let outcomes = platforms.iter().map(|image| image.outcome.clone()).collect();
            publications.states[index] = Some(ImageState::Published(outcomes));
        }
        Ok(())
    }
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
