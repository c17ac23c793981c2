//! One round: asks, converts and publishes at the same time.
//!
//! Threads of their own ask registries, each registry in a lane of its own, and others convert what is known to have changed. The
//! thread that began the round takes in what they find out, hands on what follows from it, and publishes. Nothing waits for
//! a registry that is slow but what needs it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::artifacts::{NewestRules, artifact_type, request};
use super::listing::TimedLister;
use super::publications::{Item, Publications};
use super::quarantine::Quarantine;
use super::queue::TaskQueue;
use super::survey::{Answer, Survey};
use super::sync::Published;
use super::worker::{StageResult, Task, Workers};
use super::{ConvertError, Event, ImageState, SyncError, SyncObserver, SyncOptions};
use crate::image::ImageName;
use crate::metadata::Timestamp;
use crate::observer::Reporter;
use crate::progress::Progress;
use crate::registry::{DEFAULT_CONNECTIONS, DEFAULT_REQUEST_TIMEOUT};
use crate::revise::{Prune, Wishes};
use crate::settings::Settings;
use crate::threads;
use crate::wishlist::{
    CachingLister, Expansion, ImagePosition, IncrementalExpansion, ListingFailure, RegistryLister, WantedImage,
    Wishlist, expand_one,
};

/// An image whose registry has sent nothing for so long lends its place to others.
const LAG: Duration = Duration::from_secs(1);
/// A registry that has answered nothing for so long is not waited for before what is ready is published.
const UNANSWERED: Duration = Duration::from_millis(500);
/// How long nothing but slow registries is waited for before that is said.
const TOLD_AFTER: Duration = Duration::from_secs(2);
/// How often it is looked who lags.
const TICK: Duration = Duration::from_millis(10);
/// Number of questions per registry in progress beyond its connections, as answers are compared with what is published.
const QUESTIONS_AHEAD: usize = 4;
/// Maximum number of threads that ask registries.
const MOST_ASKING: usize = 256;
/// Maximum number of threads that convert, in multiples of the images that are converted side by side.
const MOST_CONVERTING: usize = 16;
/// The pages of a list may take this many times as long as a single request.
const LIST_SHARE: u32 = 10;
/// No clock counts on for ever.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a registry is asked.
enum Question {
    /// What a wish stands for.
    List(usize),
    /// Whether an image, by its number, has changed.
    Look(usize, Arc<WantedImage>),
}

/// What threads find out.
enum News {
    Listed(usize, Expansion),
    Found(usize, Answer),
    Staged(usize, StageResult),
}

impl News {
    /// Tells whether a registry gave no answer that is of use.
    fn is_failure(&self) -> bool {
        match self {
            Self::Listed(_, part) => !part.failures.is_empty(),
            Self::Found(_, answer) => matches!(answer, Answer::Failed(_)),
            Self::Staged(_, result) => result.is_err(),
        }
    }
}

/// A round under way.
pub(super) struct Round<'a> {
    pub(super) workers: &'a Workers<'a>,
    pub(super) survey: &'a Survey<'a>,
    pub(super) quarantine: &'a Quarantine<'a>,
    pub(super) observer: &'a dyn SyncObserver,
    pub(super) options: &'a SyncOptions,
    /// The revisions that all attempts of the round have published.
    pub(super) published: &'a Mutex<Published>,
    pub(super) wishlist: &'a Wishlist,
    pub(super) listing: &'a dyn RegistryLister,
    pub(super) settings: &'a Settings,
}

/// What came of a round.
pub(super) struct Finished {
    pub(super) items: Vec<Item>,
    pub(super) failures: Vec<ListingFailure>,
    pub(super) wishes: Wishes,
    /// Whether not everything was found that the wishlist asks for.
    pub(super) is_doubtful: bool,
}

/// What the thread that publishes knows.
struct Desk<'a> {
    round: &'a Round<'a>,
    asks: &'a TaskQueue<Question>,
    expansion: IncrementalExpansion<'a>,
    rules: NewestRules,
    publications: Publications<'a>,
    /// How many answers and conversions are still to come.
    outstanding: usize,
    /// When the next revision may be published.
    next: Instant,
    /// Whether nothing was published before the end yet.
    is_first: bool,
    /// Since when nothing but slow registries is waited for.
    quiet_since: Option<Instant>,
    is_told: bool,
}

impl Round<'_> {
    /// Returns the time that records get.
    pub(super) fn now(&self) -> Timestamp {
        self.options.convert.publish.now
    }

    fn reporter(&self) -> &Reporter {
        self.workers.operation.reporter()
    }

    /// Reports that an image is being staged; returns where its progress is counted.
    fn start_progress(&self, task: &Task) -> Arc<Progress> {
        let progress = Arc::new(Progress::default());
        if let Some((image, _)) = &task.wanted {
            self.observer.note(Event::Started(image, &progress));
        }
        progress
    }

    /// Does all that the wishlist asks for. With `prune`, what it holds no longer goes, if it is clear what that is.
    pub(super) fn run(&self, prune: Prune) -> Result<Finished, SyncError> {
        let asks = TaskQueue::new(usize::MAX);
        let listing = CachingLister::new(self.listing);
        let (sender, receiver) = mpsc::channel();
        let mut desk = Desk::open(self, &asks);
        let worked = thread::scope(|scope| {
            let result = self.start_asking(scope, &asks, &listing, &sender).and_then(|asking| {
                let sender = sender.clone();
                let mut threads = Threads { scope, round: self, sender, asking, converting: Vec::new() };
                desk.work(&receiver, &mut threads)
            });
            // Requests in progress end by themselves, within their time limits.
            asks.close();
            self.workers.tasks.close();
            result
        });
        worked?;
        desk.close(prune)
    }

    fn start_asking<'s>(
        &'s self,
        scope: &'s Scope<'s, '_>,
        asks: &'s TaskQueue<Question>,
        listing: &'s CachingLister<'s>,
        sender: &Sender<News>,
    ) -> Result<Vec<ScopedJoinHandle<'s, ()>>, SyncError> {
        let (most, mut started) = (self.most_asking(), Vec::new());
        while started.len() < most {
            let sender = sender.clone();
            let work = move || self.ask(asks, listing, &sender);
            match thread::Builder::new().name("ask".to_owned()).spawn_scoped(scope, work) {
                Ok(thread) => started.push(thread),
                Err(error) if started.is_empty() => return Err(SyncError::Thread(error)),
                Err(error) => {
                    let count = started.len();
                    self.reporter().warn(format_args!(
                        "only {count} of {most} threads that ask registries can be started: {error}"
                    ));
                    break;
                }
            }
        }
        Ok(started)
    }

    /// Returns how many threads ask, so that each registry has all that it may have.
    fn most_asking(&self) -> usize {
        let mut lanes: BTreeMap<&str, usize> = BTreeMap::new();
        for wish in &self.wishlist.wishes {
            match wish.listed_host() {
                Some(host) => drop(lanes.insert(host, usize::MAX)),
                None => {
                    let questions = lanes.entry(wish.host()).or_default();
                    *questions = questions.saturating_add(1);
                }
            }
        }
        let sum: usize = lanes.into_iter().map(|(host, questions)| questions.min(self.questions_of(host))).sum();
        sum.min(MOST_ASKING)
    }

    /// Returns how many questions for one registry are dealt with at a time.
    fn questions_of(&self, host: &str) -> usize {
        let connections = self.settings.registries.get(host).and_then(|registry| registry.connections);
        connections.unwrap_or(DEFAULT_CONNECTIONS) + QUESTIONS_AHEAD
    }

    /// Asks question after question until there are no more.
    fn ask(&self, asks: &TaskQueue<Question>, listing: &CachingLister<'_>, sender: &Sender<News>) {
        while let Some(question) = asks.take() {
            let news = match &*question {
                Question::List(wish) => {
                    let timeout = self.settings.requests.timeout.unwrap_or(DEFAULT_REQUEST_TIMEOUT);
                    let listing = TimedLister::new(listing, timeout * LIST_SHARE);
                    News::Listed(*wish, expand_one(&self.wishlist.wishes[*wish], &listing))
                }
                Question::Look(number, image) => {
                    News::Found(*number, self.survey.find(image, self.quarantine, self.observer))
                }
            };
            if !news.is_failure() {
                question.note_success();
            }
            if sender.send(news).is_err() {
                return;
            }
        }
    }
}

/// The threads of a round, which go on until there is no more work.
struct Threads<'s, 'e> {
    scope: &'s Scope<'s, 'e>,
    round: &'s Round<'s>,
    sender: Sender<News>,
    asking: Vec<ScopedJoinHandle<'s, ()>>,
    converting: Vec<ScopedJoinHandle<'s, ()>>,
}

impl Threads<'_, '_> {
    /// Tells whether a thread has panicked, which ends the round as soon as the others have ended.
    fn are_broken(&self) -> bool {
        self.asking.iter().chain(&self.converting).any(ScopedJoinHandle::is_finished)
    }

    /// Starts one more thread that converts, if there is work for it.
    fn grow(&mut self) -> Result<(), SyncError> {
        let round = self.round;
        let tasks = &round.workers.tasks;
        let most = round.options.side_by_side.max(1) * MOST_CONVERTING;
        let count = self.converting.len();
        if count >= most || tasks.running() < count || !tasks.is_ready() {
            return Ok(());
        }
        let sender = self.sender.clone();
        let work = move || {
            let send = |number, result| sender.send(News::Staged(number, result)).is_ok();
            round.workers.run(&|task| round.start_progress(task), &send);
        };
        match threads::spawn_in(self.scope, work) {
            Ok(thread) => self.converting.push(thread),
            Err(error) if count == 0 => return Err(SyncError::Thread(error)),
            // With fewer threads it takes longer.
            Err(error) => round.reporter().debug(format_args!("cannot start another thread that converts: {error}")),
        }
        Ok(())
    }
}

impl<'a> Desk<'a> {
    fn open(round: &'a Round<'a>, asks: &'a TaskQueue<Question>) -> Self {
        let every = round.options.publish_every.min(LONGEST);
        Self {
            round,
            asks,
            expansion: IncrementalExpansion::new(&round.wishlist.wishes),
            rules: NewestRules::default(),
            publications: Publications::new(round),
            outstanding: 0,
            next: Instant::now() + every,
            is_first: true,
            quiet_since: None,
            is_told: false,
        }
    }

    /// Takes in news until there is nothing more to come, and publishes from time to time.
    fn work(&mut self, news: &Receiver<News>, threads: &mut Threads<'_, '_>) -> Result<(), SyncError> {
        self.begin();
        let mut looked = Instant::now();
        while self.outstanding > 0 {
            self.round.workers.operation.cancellation().check()?;
            match news.recv_timeout(TICK) {
                Ok(news) => self.take(news)?,
                Err(_) if threads.are_broken() => return Ok(()),
                Err(_) => {}
            }
            threads.grow()?;
            if Instant::now() >= self.next {
                self.publish()?;
            }
            if looked.elapsed() >= TICK && self.outstanding > 0 {
                looked = Instant::now();
                self.look_who_lags(news)?;
            }
        }
        Ok(())
    }

    /// Asks for everything that the wishlist names.
    fn begin(&mut self) {
        for (index, wish) in self.round.wishlist.wishes.iter().enumerate() {
            match wish.listed_host() {
                Some(host) => {
                    self.outstanding += 1;
                    self.asks.add(
                        host,
                        self.round.questions_of(host),
                        ImagePosition::new(index, 0),
                        Question::List(index),
                    );
                }
                None => {
                    let part = expand_one(wish, self.round.listing);
                    self.add(index, part);
                }
            }
        }
    }

    fn take(&mut self, news: News) -> Result<(), SyncError> {
        self.outstanding -= 1;
        match news {
            News::Listed(wish, part) => {
                let observer = self.round.observer;
                part.failures.iter().for_each(|failure| observer.note(Event::NotListed(failure)));
                self.add(wish, part);
                Ok(())
            }
            News::Found(number, answer) => self.found(number, answer),
            News::Staged(number, result) => {
                let is_artifact = result.as_ref().err().is_some_and(is_artifact);
                self.publications.take(number, result)?;
                if is_artifact {
                    self.replace(number);
                }
                Ok(())
            }
        }
    }

    /// Asks for the images that are certain after it is known what a wish comes to.
    fn add(&mut self, wish: usize, mut part: Expansion) {
        let newest = std::mem::take(&mut part.newest);
        let older = self.rules.add(wish, &part.images, newest);
        let certain = self.expansion.add(wish, part);
        self.look_at(certain);
        self.add_older(older);
    }

    /// Asks for the images that take the place of one that is found to be an artifact.
    fn replace(&mut self, number: usize) {
        let older = self.rules.note_artifact(self.publications.items[number].image.name());
        self.add_older(older);
    }

    fn add_older(&mut self, older: Vec<(ImagePosition, WantedImage)>) {
        for (order, image) in older {
            let certain = self.expansion.add_older(order, image);
            self.look_at(certain);
        }
    }

    fn look_at(&mut self, certain: Vec<(ImagePosition, WantedImage)>) {
        self.round.observer.note(Event::Listed(certain.len()));
        for (order, image) in certain {
            self.look(order, Arc::new(image));
        }
    }

    fn look(&mut self, order: ImagePosition, image: Arc<WantedImage>) {
        let number = self.publications.items.len();
        let host = image.host().to_owned();
        self.publications.items.push(Item { image: Arc::clone(&image), order, state: None });
        self.outstanding += 1;
        self.asks.add(&host, self.round.questions_of(&host), order, Question::Look(number, image));
    }

    fn found(&mut self, number: usize, answer: Answer) -> Result<(), SyncError> {
        let image = Arc::clone(&self.publications.items[number].image);
        let is_artifact = match &answer {
            Answer::Artifact(_) => true,
            Answer::Failed(error) => is_artifact(error),
            _ => false,
        };
        let state = match answer {
            Answer::Unchanged => {
                self.publications.note_success(&image)?;
                Some(ImageState::Unchanged)
            }
            Answer::Quarantined(reason) => Some(ImageState::Failed(reason)),
            Answer::Failed(error) => Some(self.publications.not_converted(&image, &error)?),
            Answer::Artifact(artifact_type) => Some(self.publications.skipped(&image, artifact_type)?),
            Answer::Changed(digest) => {
                let (order, host) = (self.publications.items[number].order, image.host().to_owned());
                let (request, wanted) = (request(&image), Some((Arc::clone(&image), digest)));
                let task = Task { number, request, host: host.clone(), wanted };
                self.outstanding += 1;
                self.round.workers.tasks.add(&host, self.round.options.side_by_side, order, task);
                None
            }
        };
        self.publications.items[number].state = state;
        if is_artifact {
            self.replace(number);
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), SyncError> {
        self.is_first &= self.publications.waiting.is_empty();
        self.publications.publish(None)?;
        self.next = Instant::now() + self.round.options.publish_every.min(LONGEST);
        Ok(())
    }

    /// Publishes what is ready when nothing but slow registries is waited for, and says once what is waited for.
    fn look_who_lags(&mut self, news: &Receiver<News>) -> Result<(), SyncError> {
        let workers = self.round.workers;
        let lagging = workers.look_who_lags(LAG);
        if lagging.any_moves || workers.tasks.is_ready() || !self.asks.lags(UNANSWERED) {
            self.quiet_since = None;
            return Ok(());
        }
        // What was done by then is told by now.
        if let Ok(news) = news.try_recv() {
            return self.take(news);
        }
        if self.is_first && !self.publications.waiting.is_empty() {
            self.publish()?;
        }
        let quiet = self.quiet_since.get_or_insert_with(Instant::now).elapsed();
        if quiet >= TOLD_AFTER && !std::mem::replace(&mut self.is_told, true) {
            let mut busy = self.asks.busy();
            workers.tasks.busy().into_iter().for_each(|(host, count)| *busy.entry(host).or_default() += count);
            self.round.observer.note(Event::WaitsFor(&busy));
        }
        Ok(())
    }

    /// Publishes the rest, and what the wishlist holds.
    fn close(self, prune: Prune) -> Result<Finished, SyncError> {
        let Self { round, expansion, rules, mut publications, .. } = self;
        let Expansion { failures, problems, .. } = expansion.finish();
        problems.iter().for_each(|problem| round.observer.note(Event::Problem(problem)));
        let is_doubtful = !failures.is_empty() || !round.wishlist.problems.is_empty() || !problems.is_empty();
        let allowed = if is_doubtful { Prune::Nothing } else { prune };
        if allowed != prune {
            round
                .reporter()
                .warn(format_args!("nothing is removed, as not everything was found that the wishlist asks for"));
        }
        let failed = |item: &&Item| matches!(item.state, Some(ImageState::Failed(_)));
        let failed: HashSet<ImageName> =
            publications.items.iter().filter(failed).map(|item| item.image.name().clone()).collect();
        let listed = publications.items.iter().map(|item| item.image.name().clone());
        let names = |published: &BTreeSet<ImageName>| listed.chain(rules.spared(&failed, published)).collect();
        let wishes = Wishes::new(round.survey.head, &round.wishlist.name, names, allowed)?;
        publications.publish(Some(&wishes))?;
        Ok(Finished { items: publications.items, failures, wishes, is_doubtful })
    }
}

fn is_artifact(error: &ConvertError) -> bool {
    artifact_type(error).is_some()
}
