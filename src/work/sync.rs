//! Brings a repository in step with a wishlist.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::operation::Operation;
use super::quarantine::Quarantine;
use super::round::{Finished, Round};
use super::survey::Survey;
use super::worker::Workers;
use super::{ConvertError, ConvertOptions, retried};
use crate::cancel::Cancelled;
use crate::consumer::podman::PublishedStore;
use crate::directory::DirectoryError;
use crate::engine::Engine;
use crate::image::ImageName;
use crate::progress::Progress;
use crate::publish::{AfterPublication, Revision};
use crate::registry::RegistryError;
use crate::repository::RepositoryError;
use crate::revise::{Loss, Prune};
use crate::stage::Outcome;
use crate::state::StateError;
use crate::store::{StoreError, WrittenObjects};
use crate::threads::ThreadsError;
use crate::wishlist::{ListingFailure, WantedImage, Wishlist, WishlistProblem};

/// Why a round could not be brought to its end.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The round was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The repository directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The state failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The settings or credentials of registries cannot be used.
    #[error(transparent)]
    Registries(#[from] RegistryError),
    /// The machine refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The machine refuses to start a thread that converts.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// Nothing can be converted or published.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The round failed after it had published.
    #[error("{0}")]
    AfterPublication(#[from] AfterPublication),
    /// With `prune`, a wishlist has to be for this repository.
    #[error("the wishlist is for '{wanted}', and nothing of '{actual}' is removed for it")]
    OtherRepository {
        /// The repository that the wishlist names.
        wanted: String,
        /// The repository at hand.
        actual: String,
    },
}

/// How a repository is brought in step.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// How images are converted. The memory is for all of them together.
    pub convert: ConvertOptions,
    /// What is removed of what the wishlist held once and holds no longer.
    pub prune: Prune,
    /// How much time passes at least between two revisions.
    pub publish_every: Duration,
    /// How many images are converted side by side.
    pub side_by_side: usize,
}

/// What happens in a round, as it happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// This number of further images was found to be wanted.
    Listed(usize),
    /// Something in the wishlist looks like a mistake.
    Problem(&'a WishlistProblem),
    /// A registry does not list what it has.
    NotListed(&'a ListingFailure),
    /// An image is as it is published.
    Unchanged(&'a WantedImage),
    /// What a rule found is no image, but an artifact of a type, and is left out.
    Artifact(&'a WantedImage, &'a str),
    /// An image failed before and is not tried yet.
    Quarantined(&'a WantedImage, &'a str),
    /// An image is converted; `Progress` tells how far that is.
    Started(&'a WantedImage, &'a Arc<Progress>),
    /// All that is left to do waits for these registries: the number of images and lists that wait for each. Told once.
    WaitsFor(&'a BTreeMap<String, usize>),
    /// An image is stored, and waits to be published.
    Ready(&'a WantedImage, &'a [Outcome]),
    /// An image would be converted: this was only asked for.
    Planned(&'a WantedImage),
    /// An image failed.
    Failed(&'a WantedImage, &'a str),
    /// A revision is out that has these images.
    Published(Revision, &'a [&'a WantedImage]),
}

/// Receives the events of a round, from any thread.
///
/// Messages go to the observer of the engine, and the progress of images to both.
pub trait SyncObserver: Sync {
    /// Receives one event.
    fn note(&self, event: Event<'_>);
}

/// What became of an image.
#[derive(Debug)]
pub enum ImageState {
    /// It is as it is published.
    Unchanged,
    /// It was converted and published, for each platform.
    Published(Vec<Outcome>),
    /// It would be converted, for each platform: this was only asked for.
    Planned(Vec<Outcome>),
    /// It failed, now or before.
    Failed(String),
    /// The name stands for an artifact of this type, not for an image. No [`SyncReport`] counts it among the images.
    Artifact(String),
}

/// What a round did.
#[derive(Debug)]
pub struct SyncReport {
    /// Each image, in the order of the wishlist.
    pub images: Vec<(WantedImage, ImageState)>,
    /// What rules found that is no image, and the types of these artifacts.
    pub artifacts: Vec<(WantedImage, String)>,
    /// What could not be listed.
    pub failures: Vec<ListingFailure>,
    /// Names that were removed, or would be.
    pub removed: Vec<ImageName>,
    /// Names that the wishlist held once and that no wishlist holds any longer; none where not everything was found that the
    /// wishlist asks for.
    pub prunable: Vec<ImageName>,
    /// What makes the wishlist look like a mistake, so that only [`Prune::All`] removes anything.
    pub suspicion: Option<Loss>,
    /// The revisions that were published.
    pub revisions: Vec<Revision>,
    /// What failed once they were.
    pub late: Vec<StoreError>,
    /// What was added to the store.
    pub written: WrittenObjects,
}

/// Brings the repository in step with the wishlist, once.
///
/// An error means that the round ended early; what was published by then stays, and the error tells of it.
pub fn sync(
    engine: &Engine,
    wishlist: &Wishlist,
    options: &SyncOptions,
    observer: &dyn SyncObserver,
) -> Result<SyncReport, SyncError> {
    let published = Mutex::default();
    let result = retried(
        engine.reporter(),
        || attempt(engine, wishlist, options, observer, &published),
        |error| match error {
            SyncError::Convert(error) => error.vanished(),
            _ => None,
        },
    );
    result.map_err(|error| match published.into_inner().expect(UNPOISONED).revisions {
        revisions if revisions.is_empty() => error,
        revisions => AfterPublication::new(revisions.iter().map(|revision| revision.number), error).into(),
    })
}

/// What a round has published so far, in all of its attempts.
#[derive(Debug, Default)]
pub(super) struct Published {
    pub(super) revisions: Vec<Revision>,
    /// What failed once they were out.
    pub(super) late: Vec<StoreError>,
}

pub(super) const UNPOISONED: &str = "no thread panics while it notes a revision";

fn attempt(
    engine: &Engine,
    wishlist: &Wishlist,
    options: &SyncOptions,
    observer: &dyn SyncObserver,
    published: &Mutex<Published>,
) -> Result<SyncReport, SyncError> {
    check_repository(engine, wishlist, options)?;
    wishlist.problems.iter().for_each(|problem| observer.note(Event::Problem(problem)));
    let (settings, side_by_side) = (engine.settings(), options.side_by_side.max(1));
    let registries = engine.registries().with_patience(settings.requests.patience());
    let stage = options.convert.stage(engine.resources().memory / side_by_side as u64);
    let operation = Operation::start(engine, stage, registries.clone(), options.convert.publish)?;
    let quarantine = Quarantine::open(operation.state())?;
    let head = operation.head()?;
    let survey = Survey {
        settings,
        head: &head,
        podman: PublishedStore::read(&head)?.map(|published| published.store),
        state: operation.state(),
        registries: &registries,
        now: options.convert.publish.now,
    };
    let workers = Workers::new(&operation, head.clone(), side_by_side);
    let round = Round {
        workers: &workers,
        survey: &survey,
        quarantine: &quarantine,
        observer,
        options,
        published,
        wishlist,
        listing: &registries,
        settings,
    };
    let Finished { mut items, failures, wishes, is_doubtful } = round.run(options.prune)?;
    items.sort_by_key(|item| item.order);
    let (mut images, mut artifacts) = (Vec::new(), Vec::new());
    for item in items {
        let image = WantedImage::clone(&item.image);
        match item.state.expect("every image was found as it should be, was converted, or failed") {
            ImageState::Artifact(artifact_type) => artifacts.push((image, artifact_type)),
            state => images.push((image, state)),
        }
    }
    let Published { revisions, late } = std::mem::take(&mut *published.lock().expect(UNPOISONED));
    let removed = wishes.removed().to_vec();
    let (prunable, suspicion) = if is_doubtful { (Vec::new(), None) } else { (wishes.prunable, wishes.suspicion) };
    let written = operation.written();
    Ok(SyncReport { images, artifacts, failures, removed, prunable, suspicion, revisions, late, written })
}

fn check_repository(engine: &Engine, wishlist: &Wishlist, options: &SyncOptions) -> Result<(), SyncError> {
    let actual = engine.directory().name().as_str();
    match &wishlist.repository {
        Some(wanted) if wanted != actual && options.prune != Prune::Nothing => {
            Err(SyncError::OtherRepository { wanted: wanted.clone(), actual: actual.to_owned() })
        }
        Some(wanted) if wanted != actual => {
            engine.reporter().warn(format_args!("the wishlist is for '{wanted}', and this is '{actual}'"));
            Ok(())
        }
        _ => Ok(()),
    }
}
