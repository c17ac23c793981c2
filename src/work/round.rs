//! One round: one pass over the wishlist that queries registries, stages images and publishes revisions at the same time.
//!
//! Query threads send requests to registries, from one queue for each registry. Staging threads stage the images that have changed.
//! The thread that started the round is the coordinator: it receives the results of all threads, adds new tasks to the queues, and
//! publishes. If a registry is slow, only its own images wait.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::artifacts::{NewestRules, artifact_type, request};
use super::change_detector::{ChangeDetector, CheckResult};
use super::listing::TimedLister;
use super::publications::{Publications, RoundImage};
use super::quarantine::Quarantine;
use super::queue::TaskQueue;
use super::sync::PublishedRevisions;
use super::worker::{StageResult, Task, Workers};
use super::{ConvertError, Event, ImageState, SyncError, SyncObserver, SyncOptions};
use crate::http::HttpError;
use crate::image::ImageName;
use crate::metadata::Timestamp;
use crate::observer::Reporter;
use crate::progress::Progress;
use crate::registry::{DEFAULT_CONNECTIONS, DEFAULT_REQUEST_TIMEOUT, RegistryError};
use crate::revise::{Prune, WishlistChange};
use crate::settings::Settings;
use crate::threads;
use crate::wishlist::{
    CachingLister, Expansion, ImagePosition, IncrementalExpansion, ListingFailure, RegistryLister, WantedImage,
    Wishlist, expand_one,
};

/// An image is stalled if its registry has sent nothing for this time. For each stalled image, one more image is staged.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Staged images are published early if no query has succeeded for this time.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Time after which an event reports that all remaining work waits for slow registries.
const WAIT_EVENT_DELAY: Duration = Duration::from_secs(2);
/// Interval of the search for stalled images.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum number of queries in progress per registry, in addition to its connections. A query needs no connection while it compares
/// the response with the published image.
const EXTRA_QUERIES: usize = 4;
/// Maximum number of query threads.
const MAX_QUERY_THREADS: usize = 256;
/// Maximum number of staging threads, as a multiple of the maximum number of images that make progress at the same time.
const MAX_STAGING_THREADS_PER_IMAGE: usize = 16;
/// Maximum time for all pages of a list, as a multiple of the timeout of a single request.
const LIST_TIMEOUT_FACTOR: u32 = 10;
/// Maximum interval between two revisions. A larger one could overflow `Instant`.
const MAX_INTERVAL: Duration = Duration::from_secs(365 * 24 * 3600);

/// A task of a query thread.
enum RegistryQuery {
    /// Expand the wish with this index.
    ExpandWish(usize),
    /// Compare the image at this index with the published image.
    CheckImage(usize, Arc<WantedImage>),
}

/// The result of a task, with the index of its wish or image.
enum RoundMessage {
    Expanded(usize, Expansion),
    Checked(usize, CheckResult),
    Staged(usize, StageResult),
}

impl RoundMessage {
    /// Returns whether the task failed.
    fn is_failure(&self) -> bool {
        match self {
            Self::Expanded(_, expansion) => !expansion.failures.is_empty(),
            Self::Checked(_, result) => matches!(result, CheckResult::Failed(_)),
            Self::Staged(_, result) => result.is_err(),
        }
    }
}

/// The parameters of a round.
pub(super) struct Round<'a> {
    pub(super) workers: &'a Workers<'a>,
    pub(super) detector: &'a ChangeDetector<'a>,
    pub(super) quarantine: &'a Quarantine<'a>,
    pub(super) observer: &'a dyn SyncObserver,
    pub(super) options: &'a SyncOptions,
    /// The revisions that all attempts of the round have published.
    pub(super) published: &'a Mutex<PublishedRevisions>,
    pub(super) wishlist: &'a Wishlist,
    pub(super) lister: &'a dyn RegistryLister,
    pub(super) settings: &'a Settings,
}

/// The result of a round.
pub(super) struct RoundResult {
    pub(super) images: Vec<RoundImage>,
    pub(super) failures: Vec<ListingFailure>,
    pub(super) wishlist_change: WishlistChange,
    /// Whether a part of the wishlist is invalid or could not be expanded.
    pub(super) is_incomplete: bool,
}

/// The state of the coordinator.
struct Coordinator<'a> {
    round: &'a Round<'a>,
    queries: &'a TaskQueue<RegistryQuery>,
    expansion: IncrementalExpansion<'a>,
    rules: NewestRules,
    publications: Publications<'a>,
    /// Number of tasks without a result.
    unfinished: usize,
    /// Time of the next regular publication.
    next_publication: Instant,
    /// Whether this round has not published a revision yet.
    has_published_nothing: bool,
    /// Time since which all remaining work has waited for slow registries; `None` if some work makes progress.
    stalled_since: Option<Instant>,
    is_wait_reported: bool,
}

impl Round<'_> {
    /// Returns the time for records.
    pub(super) fn now(&self) -> Timestamp {
        self.options.convert.publish.now
    }

    fn reporter(&self) -> &Reporter {
        self.workers.operation.reporter()
    }

    /// Reports that the staging of an image starts. Returns the counters of its progress.
    fn start_progress(&self, task: &Task) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        if let Some((image, _)) = &task.wanted {
            self.observer.note(Event::Started(image, &progress));
        }
        progress
    }

    /// Runs the round. Images that the wishlist no longer contains are removed as `prune` states, if the wishlist was expanded
    /// completely.
    pub(super) fn run(&self, prune: Prune) -> Result<RoundResult, SyncError> {
        let queries = TaskQueue::new(usize::MAX);
        let lister = CachingLister::new(self.lister);
        let (sender, receiver) = mpsc::channel();
        let mut coordinator = Coordinator::new(self, &queries);
        let result = thread::scope(|scope| {
            let result = self.start_query_threads(scope, &queries, &lister, &sender).and_then(|query_threads| {
                let sender = sender.clone();
                let mut threads =
                    RoundThreads { scope, round: self, sender, query_threads, staging_threads: Vec::new() };
                coordinator.run(&receiver, &mut threads)
            });
            // Closing the queues ends the threads. Requests in progress end within their timeouts.
            queries.close();
            self.workers.tasks.close();
            result
        });
        result?;
        coordinator.finish(prune)
    }

    fn start_query_threads<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        queries: &'s TaskQueue<RegistryQuery>,
        lister: &'s CachingLister<'s>,
        sender: &Sender<RoundMessage>,
    ) -> Result<Vec<ScopedJoinHandle<'s, ()>>, SyncError> {
        // Each HTTP client has a thread. It is started before the query threads, which may use up the threads of the process.
        for host in self.wishlist.wishes.iter().map(|wish| wish.host()).collect::<BTreeSet<_>>() {
            // Any other error concerns one host only, and is reported for its images.
            if let Err(error @ RegistryError::Http(HttpError::Thread(_))) = self.detector.registries.prepare(host) {
                return Err(error.into());
            }
        }
        let (limit, mut started) = (self.query_thread_count(), Vec::new());
        while started.len() < limit {
            let sender = sender.clone();
            let work = move || self.run_queries(queries, lister, &sender);
            match thread::Builder::new().name("ask".to_owned()).spawn_scoped(scope, work) {
                Ok(thread) => started.push(thread),
                Err(error) if started.is_empty() => return Err(SyncError::Thread(error)),
                Err(error) => {
                    let count = started.len();
                    self.reporter().warn(format_args!(
                        "only {count} of {limit} threads for registry queries can be started: {error}"
                    ));
                    break;
                }
            }
        }
        Ok(started)
    }

    /// Returns the number of query threads that is needed to reach the limit of every registry.
    fn query_thread_count(&self) -> usize {
        let mut queries: BTreeMap<&str, usize> = BTreeMap::new();
        for wish in &self.wishlist.wishes {
            match wish.listed_host() {
                Some(host) => drop(queries.insert(host, usize::MAX)),
                None => {
                    let count = queries.entry(wish.host()).or_default();
                    *count = count.saturating_add(1);
                }
            }
        }
        let sum: usize = queries.into_iter().map(|(host, count)| count.min(self.query_limit(host))).sum();
        sum.min(MAX_QUERY_THREADS)
    }

    /// Returns the maximum number of queries for one registry at the same time.
    fn query_limit(&self, host: &str) -> usize {
        let connections = self.settings.registries.get(host).and_then(|registry| registry.connections);
        connections.unwrap_or(DEFAULT_CONNECTIONS) + EXTRA_QUERIES
    }

    /// Runs queries until the queue is closed.
    fn run_queries(
        &self,
        queries: &TaskQueue<RegistryQuery>,
        lister: &CachingLister<'_>,
        sender: &Sender<RoundMessage>,
    ) {
        while let Some(query) = queries.take() {
            let message = match &*query {
                RegistryQuery::ExpandWish(wish) => {
                    let timeout = self.settings.requests.timeout.unwrap_or(DEFAULT_REQUEST_TIMEOUT);
                    let lister = TimedLister::new(lister, timeout * LIST_TIMEOUT_FACTOR);
                    RoundMessage::Expanded(*wish, expand_one(&self.wishlist.wishes[*wish], &lister))
                }
                RegistryQuery::CheckImage(number, image) => {
                    RoundMessage::Checked(*number, self.detector.check(image, self.quarantine, self.observer))
                }
            };
            if !message.is_failure() {
                query.record_success();
            }
            if sender.send(message).is_err() {
                return;
            }
        }
    }
}

/// The threads of a round. They end when their queues are closed.
struct RoundThreads<'s, 'e> {
    scope: &'s Scope<'s, 'e>,
    round: &'s Round<'s>,
    sender: Sender<RoundMessage>,
    query_threads: Vec<ScopedJoinHandle<'s, ()>>,
    staging_threads: Vec<ScopedJoinHandle<'s, ()>>,
}

impl RoundThreads<'_, '_> {
    /// Returns whether a thread has panicked: a thread that has ended. The caller must call this only while the queues are open,
    /// because threads also end when they are closed.
    fn any_panicked(&self) -> bool {
        self.query_threads.iter().chain(&self.staging_threads).any(ScopedJoinHandle::is_finished)
    }

    /// Starts another staging thread if a task could run and all existing threads are busy.
    fn start_staging_thread(&mut self) -> Result<(), SyncError> {
        let round = self.round;
        let tasks = &round.workers.tasks;
        let limit = round.options.side_by_side.max(1) * MAX_STAGING_THREADS_PER_IMAGE;
        let count = self.staging_threads.len();
        if count >= limit || tasks.running() < count || !tasks.has_next() {
            return Ok(());
        }
        let sender = self.sender.clone();
        let work = move || {
            let send = |number, result| sender.send(RoundMessage::Staged(number, result)).is_ok();
            round.workers.run(&|task| round.start_progress(task), &send);
        };
        match threads::spawn_in(self.scope, work) {
            Ok(thread) => self.staging_threads.push(thread),
            Err(error) if count == 0 => return Err(SyncError::Thread(error)),
            // Not an error: the existing threads stage the remaining images, which only takes longer.
            Err(error) => round.reporter().debug(format_args!("cannot start another staging thread: {error}")),
        }
        Ok(())
    }
}

impl<'a> Coordinator<'a> {
    fn new(round: &'a Round<'a>, queries: &'a TaskQueue<RegistryQuery>) -> Self {
        let every = round.options.publish_every.min(MAX_INTERVAL);
        Self {
            round,
            queries,
            expansion: IncrementalExpansion::new(&round.wishlist.wishes),
            rules: NewestRules::default(),
            publications: Publications::new(round),
            unfinished: 0,
            next_publication: Instant::now() + every,
            has_published_nothing: true,
            stalled_since: None,
            is_wait_reported: false,
        }
    }

    /// Handles results until no task is left, and publishes regularly.
    fn run(&mut self, messages: &Receiver<RoundMessage>, threads: &mut RoundThreads<'_, '_>) -> Result<(), SyncError> {
        self.start();
        let mut last_check = Instant::now();
        while self.unfinished > 0 {
            self.round.workers.operation.cancellation().check()?;
            // With a timeout, because this thread also notices cancellation, panics and stalled images.
            match messages.recv_timeout(POLL_INTERVAL) {
                Ok(message) => self.handle(message)?,
                // `thread::scope` passes the panic on.
                Err(_) if threads.any_panicked() => return Ok(()),
                Err(_) => {}
            }
            threads.start_staging_thread()?;
            if Instant::now() >= self.next_publication {
                self.publish()?;
            }
            if last_check.elapsed() >= POLL_INTERVAL && self.unfinished > 0 {
                last_check = Instant::now();
                self.check_stalled(messages)?;
            }
        }
        Ok(())
    }

    /// Adds the queries for all wishes. A wish for a single image needs no list, so that it is expanded immediately.
    fn start(&mut self) {
        for (index, wish) in self.round.wishlist.wishes.iter().enumerate() {
            match wish.listed_host() {
                Some(host) => {
                    self.unfinished += 1;
                    self.queries.add(
                        host,
                        self.round.query_limit(host),
                        ImagePosition::new(index, 0),
                        RegistryQuery::ExpandWish(index),
                    );
                }
                None => {
                    let expansion = expand_one(wish, self.round.lister);
                    self.add(index, expansion);
                }
            }
        }
    }

    fn handle(&mut self, message: RoundMessage) -> Result<(), SyncError> {
        // An image that failed because of the cancellation must not be recorded as failed: the next round would not try it again.
        self.round.workers.operation.cancellation().check()?;
        self.unfinished -= 1;
        match message {
            RoundMessage::Expanded(wish, expansion) => {
                let observer = self.round.observer;
                expansion.failures.iter().for_each(|failure| observer.note(Event::NotListed(failure)));
                self.add(wish, expansion);
                Ok(())
            }
            RoundMessage::Checked(number, result) => self.handle_check(number, result),
            RoundMessage::Staged(number, result) => {
                let is_artifact = result.as_ref().err().is_some_and(is_artifact);
                self.publications.add(number, result)?;
                if is_artifact {
                    self.replace_artifact(number);
                }
                Ok(())
            }
        }
    }

    /// Adds the expansion of a wish, and the queries for those images that no earlier wish can exclude any more.
    fn add(&mut self, wish: usize, mut expansion: Expansion) {
        let newest = std::mem::take(&mut expansion.newest);
        let older = self.rules.add(wish, &expansion.images, newest);
        let images = self.expansion.add(wish, expansion);
        self.check_images(images);
        self.add_older(older);
    }

    /// Adds the queries for the images that replace an artifact in the selection.
    fn replace_artifact(&mut self, number: usize) {
        let older = self.rules.record_artifact(self.publications.images[number].wanted.name());
        self.add_older(older);
    }

    fn add_older(&mut self, older: Vec<(ImagePosition, WantedImage)>) {
        for (position, image) in older {
            let images = self.expansion.add_older(position, image);
            self.check_images(images);
        }
    }

    fn check_images(&mut self, images: Vec<(ImagePosition, WantedImage)>) {
        self.round.observer.note(Event::Listed(images.len()));
        for (position, image) in images {
            self.check_image(position, Arc::new(image));
        }
    }

    fn check_image(&mut self, position: ImagePosition, image: Arc<WantedImage>) {
        let number = self.publications.images.len();
        let host = image.host().to_owned();
        self.publications.images.push(RoundImage { wanted: Arc::clone(&image), position, state: None });
        self.unfinished += 1;
        self.queries.add(&host, self.round.query_limit(&host), position, RegistryQuery::CheckImage(number, image));
    }

    fn handle_check(&mut self, number: usize, result: CheckResult) -> Result<(), SyncError> {
        let image = Arc::clone(&self.publications.images[number].wanted);
        let is_artifact = match &result {
            CheckResult::Artifact(_) => true,
            CheckResult::Failed(error) => is_artifact(error),
            _ => false,
        };
        let state = match result {
            CheckResult::Unchanged => {
                self.publications.record_success(&image)?;
                Some(ImageState::Unchanged)
            }
            CheckResult::Quarantined(reason) => Some(ImageState::Failed(reason)),
            CheckResult::Failed(error) => Some(self.publications.record_error(&image, &error)?),
            CheckResult::Artifact(artifact_type) => Some(self.publications.record_artifact(&image, artifact_type)?),
            CheckResult::Changed(digest) => {
                let (position, host) = (self.publications.images[number].position, image.host().to_owned());
                let (request, wanted) = (request(&image), Some((Arc::clone(&image), digest)));
                let task = Task { number, request, host: host.clone(), wanted };
                self.unfinished += 1;
                self.round.workers.tasks.add(&host, self.round.options.side_by_side, position, task);
                None
            }
        };
        self.publications.images[number].state = state;
        if is_artifact {
            self.replace_artifact(number);
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), SyncError> {
        self.has_published_nothing &= self.publications.unpublished.is_empty();
        self.publications.publish(None)?;
        self.next_publication = Instant::now() + self.round.options.publish_every.min(MAX_INTERVAL);
        Ok(())
    }

    /// If all remaining work waits for slow registries, publishes the staged images, unless this round has already published.
    /// After [`WAIT_EVENT_DELAY`], reports the registries, once in a round.
    fn check_stalled(&mut self, messages: &Receiver<RoundMessage>) -> Result<(), SyncError> {
        let workers = self.round.workers;
        let stalled_images = workers.find_stalled(STALL_TIMEOUT);
        if stalled_images.others_progress || workers.tasks.has_next() || !self.queries.is_stalled(RESPONSE_TIMEOUT) {
            self.stalled_since = None;
            return Ok(());
        }
        // The last results may have been sent during these checks.
        if let Ok(message) = messages.try_recv() {
            return self.handle(message);
        }
        if self.has_published_nothing && !self.publications.unpublished.is_empty() {
            self.publish()?;
        }
        let stalled = self.stalled_since.get_or_insert_with(Instant::now).elapsed();
        if stalled >= WAIT_EVENT_DELAY && !std::mem::replace(&mut self.is_wait_reported, true) {
            let mut waited_for = self.queries.unfinished();
            workers
                .tasks
                .unfinished()
                .into_iter()
                .for_each(|(host, count)| *waited_for.entry(host).or_default() += count);
            self.round.observer.note(Event::WaitsFor(&waited_for));
        }
        Ok(())
    }

    /// Publishes the remaining images, records the names of the wishlist, and removes images.
    fn finish(self, prune: Prune) -> Result<RoundResult, SyncError> {
        let Self { round, expansion, rules, mut publications, .. } = self;
        let Expansion { failures, problems, .. } = expansion.finish();
        problems.iter().for_each(|problem| round.observer.note(Event::Problem(problem)));
        let is_incomplete = !failures.is_empty() || !round.wishlist.problems.is_empty() || !problems.is_empty();
        // A list that failed looks like an empty one, so that all of its images would be removed.
        let allowed = if is_incomplete { Prune::Nothing } else { prune };
        if allowed != prune {
            round.reporter().warn(format_args!(
                "nothing is removed, because a part of the wishlist is invalid or could not be expanded"
            ));
        }
        let failed = |image: &&RoundImage| matches!(image.state, Some(ImageState::Failed(_)));
        let failed: HashSet<ImageName> =
            publications.images.iter().filter(failed).map(|image| image.wanted.name().clone()).collect();
        let listed = publications.images.iter().map(|image| image.wanted.name().clone());
        let names = |published: &BTreeSet<ImageName>| listed.chain(rules.protected_names(&failed, published)).collect();
        let change = WishlistChange::new(round.detector.head, &round.wishlist.name, names, allowed)?;
        publications.publish(Some(&change))?;
        Ok(RoundResult { images: publications.images, failures, wishlist_change: change, is_incomplete })
    }
}

fn is_artifact(error: &ConvertError) -> bool {
    artifact_type(error).is_some()
}
