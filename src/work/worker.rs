//! Threads that stage images, for `convert` and `sync`.
//!
//! Images that need the same new layer or flat tree are staged one after the other, so that it is fetched and stored once. All others
//! are staged in parallel.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::ConvertError;
use super::artifacts::{artifact_type, record_artifact};
use super::digest_locks::{DigestLocks, LockRequest};
use super::operation::Operation;
use super::queue::TaskQueue;
use crate::image::{Digest, ImageName};
use crate::inventory::foreign_manifest;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::stage::{Request, ResolvedImage, StagedImage, is_layer_published};
use crate::wishlist::WantedImage;

/// The staged images of one name, one for each platform, or the error.
pub(super) type StageResult = Result<Vec<StagedImage>, ConvertError>;

/// Stages the images of one operation.
pub(super) struct Workers<'a> {
    pub(super) operation: &'a Operation<'a>,
    /// Images to be staged.
    pub(super) tasks: TaskQueue<Task>,
    /// The head as this operation last read or published it.
    head: Mutex<Repository>,
    locks: DigestLocks,
    /// Locked while a task is taken and its digest locks are requested, so that requests are in the order of the tasks.
    order: Mutex<()>,
    /// Images that are being staged, by the number of their task.
    running: Mutex<HashMap<usize, RunningImage>>,
}

/// An image to be staged.
pub(super) struct Task {
    /// The number of the image in the operation.
    pub(super) number: usize,
    /// The image and its options.
    pub(super) request: Request,
    /// The registry of the image; empty for an image on this machine.
    pub(super) host: String,
    /// The image of a wishlist, and the digest of its tag at the registry; `None` for an image of `convert`.
    pub(super) wanted: Option<(Arc<WantedImage>, Digest)>,
}

/// An image that is being staged.
struct RunningImage {
    phase: Phase,
    /// Time at which the image last made progress.
    last_progress: Instant,
    host: String,
    /// Number of bytes of its layers that were read at `last_progress`.
    bytes_read: u64,
    progress: Arc<Progress>,
    lock_number: usize,
}

/// The phase of staging, which determines what the image waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The manifest is read.
    Manifest,
    /// The image waits for another one that stores the same layer or flat tree.
    Lock,
    /// Layers are read, and trees are built.
    Content,
}

/// The running images that make no progress.
#[derive(Debug, Default)]
pub(super) struct StalledImages {
    /// Numbers of their digest locks.
    pub(super) numbers: HashSet<usize>,
    /// Whether at least one running image makes progress.
    pub(super) others_progress: bool,
}

impl<'a> Workers<'a> {
    /// Prepares to stage up to `side_by_side` images at the same time.
    pub(super) fn new(operation: &'a Operation<'a>, head: Repository, side_by_side: usize) -> Self {
        Self {
            operation,
            tasks: TaskQueue::new(side_by_side.max(1)),
            head: Mutex::new(head),
            locks: DigestLocks::default(),
            order: Mutex::default(),
            running: Mutex::default(),
        }
    }

    /// Stages images in this thread until the queue is closed, or until `send` returns `false` because nothing receives results.
    ///
    /// `start` is called before each image and returns the counters of its progress.
    pub(super) fn run(&self, start: &dyn Fn(&Task) -> Arc<Progress>, send: &dyn Fn(usize, StageResult) -> bool) {
        loop {
            let (task, lock_request) = {
                let _order = self.order.lock().expect("no thread panics while it takes a task");
                let Some(task) = self.tasks.take() else { return };
                let lock_request = self.locks.request(&task.host);
                (task, lock_request)
            };
            let result = self.stage(&task, lock_request, &start(&task), |_| Ok(()));
            // The task must count as running until its result is sent: otherwise the round could seem idle in between.
            let is_received = send(task.number, result);
            self.running().remove(&task.number);
            if !is_received {
                return;
            }
        }
    }

    /// Stages one image in this thread. Returns an error if its name `is_taken` by another image.
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
        self.stage(&task, self.locks.request(""), progress, accept)
    }

    /// Stages one image, which `accept` may refuse by its name. Waits for its digest locks.
    ///
    /// Records in the state database that a tag refers to an artifact, or that an image of another program is up to date.
    fn stage(
        &self,
        task: &Task,
        lock_request: LockRequest<'_>,
        progress: &Arc<Progress>,
        accept: impl FnOnce(&ResolvedImage) -> Result<(), ConvertError>,
    ) -> StageResult {
        let running = RunningImage {
            phase: Phase::Manifest,
            last_progress: Instant::now(),
            host: task.host.clone(),
            bytes_read: 0,
            progress: Arc::clone(progress),
            lock_number: lock_request.number(),
        };
        self.running().insert(task.number, running);
        let _reported = self.operation.reporter().start(task.request.argument.to_string(), progress);
        progress.set_activity("requesting the manifest".to_owned());
        let resolved = self.operation.stager.resolve(&task.request).map_err(ConvertError::from);
        if let Some((image, digest)) = &task.wanted
            && let Some(artifact_type) = resolved.as_ref().err().and_then(artifact_type)
        {
            record_artifact(self.operation.state(), image, *digest, artifact_type)?;
        }
        let resolved = resolved?;
        accept(&resolved)?;
        progress.set_activity("waiting for an image that has the same layers".to_owned());
        let digests = self.digests_to_lock(&resolved)?;
        self.set_phase(task.number, Phase::Lock);
        let _lock = lock_request.lock(digests);
        self.set_phase(task.number, Phase::Content);
        // While this image waited for the lock, an image with the same digests may have been published.
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

    /// Returns the digests of the config and of the unpublished layers: those of the trees that the image may store.
    fn digests_to_lock(&self, resolved: &ResolvedImage) -> Result<HashSet<Digest>, ConvertError> {
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

    fn set_phase(&self, number: usize, phase: Phase) {
        if let Some(running) = self.running().get_mut(&number) {
            (running.phase, running.last_progress) = (phase, Instant::now());
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<usize, RunningImage>> {
        self.running.lock().expect("no thread panics while it changes the list of running images")
    }

    /// Finds the images that have made no progress for `duration`, and lets the same number of other images be staged in addition.
    pub(super) fn find_stalled(&self, duration: Duration) -> StalledImages {
        let (mut found, mut running) = (StalledImages::default(), self.running());
        let mut hosts = HashSet::new();
        for running in running.values_mut().filter_map(|running| running.is_stalled(duration).then_some(running)) {
            found.numbers.insert(running.lock_number);
            hosts.insert(running.host.clone());
        }
        // An image of the same registry that waits for a lock is stalled, too. Images of other registries do not wait for stalled ones.
        let waiting = running.values().filter(|running| running.phase == Phase::Lock);
        found
            .numbers
            .extend(waiting.filter(|running| hosts.contains(&running.host)).map(|running| running.lock_number));
        drop(running);
        // The number comes from the task queue, because a task that was just taken is not in `running` yet.
        found.others_progress = found.numbers.len() < self.tasks.running();
        self.tasks.set_stalled(found.numbers.len());
        self.locks.set_stalled(found.numbers.clone());
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

impl RunningImage {
    /// Returns whether the image has waited for its registry for `duration` without receiving anything.
    fn is_stalled(&mut self, duration: Duration) -> bool {
        let expected = self.progress.expected.load(Ordering::Relaxed);
        let read = self.progress.read.load(Ordering::Relaxed);
        if read != self.bytes_read {
            (self.bytes_read, self.last_progress) = (read, Instant::now());
        }
        let waits_for_registry = match self.phase {
            Phase::Manifest => true,
            Phase::Lock => false,
            // After all bytes are received, this machine builds the trees.
            Phase::Content => read < expected,
        };
        waits_for_registry && self.last_progress.elapsed() >= duration
    }
}
