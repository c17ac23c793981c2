//! The threads that stage images: the one driver behind `convert` and `sync`.
//!
//! Images that need the same layer or root file system are staged one after the other, so that it is fetched and stored once. All others
//! are staged side by side.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::ConvertError;
use super::artifacts::{artifact_type, note_artifact};
use super::claims::{Claims, Ticket};
use super::operation::Operation;
use super::queue::TaskQueue;
use crate::image::{Digest, ImageName};
use crate::inventory::foreign_manifest;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::stage::{Request, ResolvedImage, StagedImage, is_layer_published};
use crate::wishlist::WantedImage;

/// Staged images of one name, or the reason why there are none.
pub(super) type StageResult = Result<Vec<StagedImage>, ConvertError>;

/// What stages the images of one operation.
pub(super) struct Workers<'a> {
    pub(super) operation: &'a Operation<'a>,
    /// Images to be staged.
    pub(super) tasks: TaskQueue<Task>,
    /// The head as this operation last read or published it.
    head: Mutex<Repository>,
    claims: Claims,
    /// Locked while a task is taken and gets its ticket, so that tickets are in the order of the tasks.
    order: Mutex<()>,
    /// Images that are being staged, by the number of their task.
    running: Mutex<HashMap<usize, Running>>,
}

/// An image to be staged.
pub(super) struct Task {
    /// Its number in the operation.
    pub(super) number: usize,
    /// What is to be staged.
    pub(super) request: Request,
    /// The registry that the image comes from; empty for an image on this machine.
    pub(super) host: String,
    /// What a wishlist wants, and the digest that the registry has under the name of the image.
    pub(super) wanted: Option<(Arc<WantedImage>, Digest)>,
}

/// An image that is being staged.
struct Running {
    phase: Phase,
    /// When it last made progress.
    moved: Instant,
    host: String,
    /// Bytes that were read by then.
    read: u64,
    progress: Arc<Progress>,
    ticket: usize,
}

/// What an image that is being staged waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its manifest.
    Manifest,
    /// Another image that stores the same layer or root file system.
    Claim,
    /// The content of its layers, or this machine.
    Content,
}

/// The images that are being staged, as seen at one time.
#[derive(Debug, Default)]
pub(super) struct Lagging {
    /// Tickets of those whose registries send nothing.
    pub(super) tickets: HashSet<usize>,
    /// Whether any other makes progress.
    pub(super) any_moves: bool,
}

impl<'a> Workers<'a> {
    /// Prepares to stage up to `side_by_side` images at a time.
    pub(super) fn new(operation: &'a Operation<'a>, head: Repository, side_by_side: usize) -> Self {
        Self {
            operation,
            tasks: TaskQueue::new(side_by_side.max(1)),
            head: Mutex::new(head),
            claims: Claims::default(),
            order: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// Stages one image after another until the queue is closed, or `send` returns that nothing waits for the results any more.
    ///
    /// `start` is called before each image, and returns where its progress is counted.
    pub(super) fn run(&self, start: &dyn Fn(&Task) -> Arc<Progress>, send: &dyn Fn(usize, StageResult) -> bool) {
        loop {
            let (task, ticket) = {
                let _order = self.order.lock().expect("no thread panics while it takes a task");
                let Some(task) = self.tasks.take() else { return };
                let ticket = self.claims.enter(&task.host);
                (task, ticket)
            };
            let result = self.stage(&task, ticket, &start(&task), |_| Ok(()));
            // The task counts as running until its result is sent.
            let is_wanted = send(task.number, result);
            self.running().remove(&task.number);
            if !is_wanted {
                return;
            }
        }
    }

    /// Stages one image in this thread. Fails if its name `is_taken`.
    pub(super) fn stage_alone(
        &self,
        request: &Request,
        progress: &Arc<Progress>,
        is_taken: impl Fn(&ImageName) -> bool,
    ) -> StageResult {
        let task = Task { number: 0, request: request.clone(), host: String::new(), wanted: None };
        let accept = |resolved: &ResolvedImage| match is_taken(resolved.name()) {
            true => Err(ConvertError::SameName(resolved.name().clone())),
            false => Ok(()),
        };
        self.stage(&task, self.claims.enter(""), progress, accept)
    }

    fn stage(
        &self,
        task: &Task,
        ticket: Ticket<'_>,
        progress: &Arc<Progress>,
        accept: impl FnOnce(&ResolvedImage) -> Result<(), ConvertError>,
    ) -> StageResult {
        let running = Running {
            phase: Phase::Manifest,
            moved: Instant::now(),
            host: task.host.clone(),
            read: 0,
            progress: Arc::clone(progress),
            ticket: ticket.number(),
        };
        self.running().insert(task.number, running);
        let _reported = self.operation.reporter().start(task.request.argument.to_string(), progress);
        progress.set_activity("asking for the manifest".to_owned());
        let resolved = self.operation.stager.resolve(&task.request).map_err(ConvertError::from);
        if let Some((image, digest)) = &task.wanted
            && let Some(artifact_type) = resolved.as_ref().err().and_then(artifact_type)
        {
            note_artifact(self.operation.state(), image, *digest, artifact_type)?;
        }
        let resolved = resolved?;
        accept(&resolved)?;
        progress.set_activity("waiting for an image that has the same layers".to_owned());
        let stored = self.digests_to_store(&resolved)?;
        self.enter(task.number, Phase::Claim);
        let _claim = ticket.claim(stored);
        self.enter(task.number, Phase::Content);
        // The image that had the claim before may be published by now.
        let head = self.head();
        let staged = self.operation.stage(resolved, &head, progress)?;
        if let Some((image, digest)) = &task.wanted
            && staged.iter().any(|staged| staged.is_foreign)
            && let Some(published) = foreign_manifest(&head, &staged[0].outcome.place)?
        {
            self.operation.state().add_seen(&image.name().to_string(), published, &digest.to_string())?;
        }
        Ok(staged)
    }

    /// Returns the config and layer digests of the trees that an image may have to store.
    fn digests_to_store(&self, resolved: &ResolvedImage) -> Result<HashSet<Digest>, ConvertError> {
        let head = self.head();
        let mut digests = HashSet::new();
        for image in resolved.images() {
            digests.insert(image.config.digest);
            for layer in &image.layers {
                if !is_layer_published(&head, layer.digest)? {
                    digests.insert(layer.digest);
                }
            }
        }
        Ok(digests)
    }

    fn enter(&self, number: usize, phase: Phase) {
        if let Some(running) = self.running().get_mut(&number) {
            (running.phase, running.moved) = (phase, Instant::now());
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<usize, Running>> {
        self.running.lock().expect("no thread panics while it notes what it does")
    }

    /// Finds the images that have made no progress for `length`, and lets as many others be staged in their place.
    pub(super) fn look_who_lags(&self, length: Duration) -> Lagging {
        let (mut found, mut running) = (Lagging::default(), self.running());
        let mut hosts = HashSet::new();
        for running in running.values_mut().filter_map(|running| running.lags(length).then_some(running)) {
            found.tickets.insert(running.ticket);
            hosts.insert(running.host.clone());
        }
        // What waits for another image of such a registry gets no further, either. Others wait for what moves.
        let waiting = running.values().filter(|running| running.phase == Phase::Claim);
        found.tickets.extend(waiting.filter(|running| hosts.contains(&running.host)).map(|running| running.ticket));
        drop(running);
        // An image that is taken may not be among those that are looked at yet.
        found.any_moves = found.tickets.len() < self.tasks.running();
        self.tasks.lend(found.tickets.len());
        self.claims.set_lagging(found.tickets.clone());
        found
    }

    /// Returns the head as this operation last read or published it.
    pub(super) fn head(&self) -> Repository {
        self.head.lock().expect("no thread panics while it holds the head").clone()
    }

    /// Reads the head again, after a publication.
    pub(super) fn renew_head(&self) -> Result<(), ConvertError> {
        *self.head.lock().expect("no thread panics while it holds the head") = self.operation.head()?;
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
            Phase::Manifest => true,
            Phase::Claim => false,
            // Otherwise this machine is at work.
            Phase::Content => read < expected,
        };
        waits_for_registry && self.moved.elapsed() >= length
    }
}
