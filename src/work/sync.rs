//! Synchronises a repository with a wishlist.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::change_detector::ChangeDetector;
use super::operation::Operation;
use super::quarantine::Quarantine;
use super::round::{Round, RoundResult};
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
use crate::revise::{Prune, WishlistLoss};
use crate::stage::ImageOutcome;
use crate::state::StateError;
use crate::store::{StoreError, WrittenObjects};
use crate::threads::ThreadsError;
use crate::wishlist::{ListingFailure, WantedImage, Wishlist, WishlistProblem};

/// Errors because of which a round ended early.
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
    /// The state database failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The settings or credentials of registries cannot be used.
    #[error(transparent)]
    Registries(#[from] RegistryError),
    /// The operating system refuses to start a thread pool.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The operating system refuses to start a thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// Nothing can be converted or published.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The round failed after it had published a revision.
    #[error("{0}")]
    AfterPublication(#[from] AfterPublication),
    /// With `prune`, the wishlist must be for this repository.
    #[error("the wishlist is for the repository '{wanted}': refusing to remove images from '{actual}'")]
    OtherRepository {
        /// The repository in the wishlist.
        wanted: String,
        /// The repository to synchronise.
        actual: String,
    },
}

/// Options for synchronising a repository with a wishlist.
#[derive(Debug, Clone)]
pub struct SyncOptions {
    /// Options for converting images.
    pub convert: ConvertOptions,
    /// Which images are removed that the wishlist no longer contains.
    pub prune: Prune,
    /// Minimum time between two revisions.
    pub publish_every: Duration,
    /// Maximum number of images that are converted at the same time.
    pub side_by_side: usize,
}

/// An event during a round.
#[derive(Debug)]
pub enum Event<'a> {
    /// The wishlist was expanded to this number of further images.
    Listed(usize),
    /// The wishlist has an error, or something in it is probably a mistake.
    Problem(&'a WishlistProblem),
    /// A registry did not return a list of tags or repositories.
    NotListed(&'a ListingFailure),
    /// The published image is up to date.
    Unchanged(&'a WantedImage),
    /// A tag that a rule selected refers to an artifact of this type, and is skipped.
    Artifact(&'a WantedImage, &'a str),
    /// An image failed in an earlier round, for this reason, and is not tried again yet.
    Quarantined(&'a WantedImage, &'a str),
    /// The conversion of an image starts. Its progress can be read at any time.
    Started(&'a WantedImage, &'a Arc<Progress>),
    /// All remaining work waits for these registries, each with its number of unfinished images and lists. This event occurs at
    /// most once in a round.
    WaitsFor(&'a BTreeMap<String, usize>),
    /// An image is stored and waits for publication.
    Ready(&'a WantedImage, &'a [ImageOutcome]),
    /// In a dry run: an image would be converted.
    Planned(&'a WantedImage),
    /// An image failed, for this reason.
    Failed(&'a WantedImage, &'a str),
    /// A revision with these images was published.
    Published(Revision, &'a [&'a WantedImage]),
}

/// Receives the events of a round, from any thread.
///
/// Messages go to the observer of the engine, and the progress of images to both.
pub trait SyncObserver: Sync {
    /// Receives one event.
    fn note(&self, event: Event<'_>);
}

/// The result for one image.
#[derive(Debug)]
pub enum ImageState {
    /// The published image is up to date.
    Unchanged,
    /// It was converted and published, with one outcome for each platform.
    Published(Vec<ImageOutcome>),
    /// In a dry run: it would be converted, with one outcome for each platform.
    Planned(Vec<ImageOutcome>),
    /// It failed in this round, or in an earlier one and is in quarantine.
    Failed(String),
    /// The tag refers to an artifact of this type. [`SyncReport::images`] never contains this state.
    Artifact(String),
}

/// The result of a round.
#[derive(Debug)]
pub struct SyncReport {
    /// The result for each image, in the order of the wishlist.
    pub images: Vec<(WantedImage, ImageState)>,
    /// The artifacts that rules selected, with their types.
    pub artifacts: Vec<(WantedImage, String)>,
    /// The lists that registries did not return.
    pub failures: Vec<ListingFailure>,
    /// Names that were removed or, in a dry run, would be removed.
    pub removed: Vec<ImageName>,
    /// Names that this wishlist contained before, and that no wishlist contains now; empty if the wishlist could not be expanded
    /// completely.
    pub prunable: Vec<ImageName>,
    /// The number of images that the wishlist lost, if it lost so many that this is probably a mistake. Then only [`Prune::All`]
    /// removes images.
    pub suspicion: Option<WishlistLoss>,
    /// The published revisions.
    pub revisions: Vec<Revision>,
    /// Errors of steps after the publications.
    pub late_errors: Vec<StoreError>,
    /// The objects that were added to the store.
    pub written: WrittenObjects,
}

/// Synchronises the repository with the wishlist once.
///
/// An error means that the round ended early. Revisions that were published before stay, and the error lists them.
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

/// The revisions that all attempts of a round have published so far.
#[derive(Debug, Default)]
pub(super) struct PublishedRevisions {
    pub(super) revisions: Vec<Revision>,
    /// Errors of steps after the publications.
    pub(super) late_errors: Vec<StoreError>,
}

pub(super) const UNPOISONED: &str = "no thread panics while it records a revision";

fn attempt(
    engine: &Engine,
    wishlist: &Wishlist,
    options: &SyncOptions,
    observer: &dyn SyncObserver,
    published: &Mutex<PublishedRevisions>,
) -> Result<SyncReport, SyncError> {
    check_repository(engine, wishlist, options)?;
    wishlist.problems.iter().for_each(|problem| observer.note(Event::Problem(problem)));
    let (settings, side_by_side) = (engine.settings(), options.side_by_side.max(1));
    let registries = engine.registries().with_patience(settings.requests.patience());
    // The limit is for the whole process, not for each image.
    let stage = options.convert.stage(engine.resources().memory / side_by_side as u64);
    let operation = Operation::start(engine, stage, registries.clone(), options.convert.publish)?;
    let quarantine = Quarantine::open(operation.state())?;
    let head = operation.head()?;
    let detector = ChangeDetector {
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
        detector: &detector,
        quarantine: &quarantine,
        observer,
        options,
        published,
        wishlist,
        lister: &registries,
        settings,
    };
    let RoundResult { images: mut round_images, failures, wishlist_change: change, is_incomplete } =
        round.run(options.prune)?;
    round_images.sort_by_key(|image| image.position);
    let (mut images, mut artifacts) = (Vec::new(), Vec::new());
    for round_image in round_images {
        let image = WantedImage::clone(&round_image.wanted);
        match round_image.state.expect("every image was unchanged, was converted, or failed") {
            ImageState::Artifact(artifact_type) => artifacts.push((image, artifact_type)),
            state => images.push((image, state)),
        }
    }
    let PublishedRevisions { revisions, late_errors } = std::mem::take(&mut *published.lock().expect(UNPOISONED));
    let removed = change.removed().to_vec();
    let (prunable, suspicion) = if is_incomplete { (Vec::new(), None) } else { (change.prunable, change.suspicion) };
    let written = operation.written();
    Ok(SyncReport { images, artifacts, failures, removed, prunable, suspicion, revisions, late_errors, written })
}

fn check_repository(engine: &Engine, wishlist: &Wishlist, options: &SyncOptions) -> Result<(), SyncError> {
    let actual = engine.directory().name().as_str();
    match &wishlist.repository {
        Some(wanted) if wanted != actual && options.prune != Prune::Nothing => {
            Err(SyncError::OtherRepository { wanted: wanted.clone(), actual: actual.to_owned() })
        }
        Some(wanted) if wanted != actual => {
            engine
                .reporter()
                .warn(format_args!("the wishlist is for the repository '{wanted}', but this is '{actual}'"));
            Ok(())
        }
        _ => Ok(()),
    }
}
