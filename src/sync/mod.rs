//! Brings a repository in step with a wishlist.
//!
//! One round does four things at the same time. The wishes are *expanded* to images; a *survey* asks registries what each name
//! stands for by now, with one small request each; what has changed is *converted*, several images side by side; and what is
//! ready is published together, at most every so often and at the end. Whatever fails is reported, is not tried again for
//! a while, and holds up nothing else; and a registry that is slow delays its own images only.

mod artifacts;
mod lanes;
mod listing;
mod prune;
mod quarantine;
mod round;
mod survey;
mod thin;
mod turns;
mod workshop;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use rsa::rand_core::CryptoRng;

use crate::consumer::podman::PublishedStore;
use crate::convert::{self, ConvertError, Outcome, Run, despite_collection};
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::image::ImageName;
use crate::progress::Progress;
use crate::publish::{AfterPublication, Revision};
use crate::registry::RegistryError;
use crate::repository::RepositoryError;
use crate::state::StateError;
use crate::store::{StoreError, Written};
use crate::threads::ThreadsError;
use crate::wishlist::{Failure, Problem, WantedImage, Wishlist};

pub use prune::{Loss, Prune};
pub use thin::{ThinOutcome, ThinState, push_thin_images};

use lanes::Lanes;
use quarantine::Quarantine;
use round::{Finished, Round};
use survey::Survey;
use turns::Turns;
use workshop::Workshop;

/// Why a round could not be brought to its end.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
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
pub struct Options {
    /// How images are converted. The memory is for all of them together.
    pub convert: convert::Options,
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
    Problem(&'a Problem),
    /// A registry does not list what it has.
    NotListed(&'a Failure),
    /// An image is as it is published.
    Unchanged(&'a WantedImage),
    /// What a rule found is no image, but an artifact of a type, and is left out.
    Artifact(&'a WantedImage, &'a str),
    /// An image failed before and is not tried yet.
    Quarantined(&'a WantedImage, &'a str),
    /// An image is converted; `Progress` tells how far that is.
    Started(&'a WantedImage, &'a std::sync::Arc<Progress>),
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

/// Learns of what happens, from any thread.
pub trait Observer: Sync {
    /// Takes note of an event.
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
    /// The name stands for an artifact of this type, not for an image. No [`Report`] counts it among the images.
    Artifact(String),
}

/// What a round did.
#[derive(Debug)]
pub struct Report {
    /// Each image, in the order of the wishlist.
    pub images: Vec<(WantedImage, ImageState)>,
    /// What rules found that is no image, and the types of these artifacts.
    pub artifacts: Vec<(WantedImage, String)>,
    /// What could not be listed.
    pub failures: Vec<Failure>,
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
    pub written: Written,
}

/// Brings the repository in step with the wishlist, once.
///
/// An error means that the round ended early; what was published by then stays, and the error tells of it.
pub fn round(
    directory: &RepositoryDirectory,
    wishlist: &Wishlist,
    options: &Options,
    observer: &dyn Observer,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, SyncError> {
    let published = Mutex::default();
    let result = despite_collection(
        || attempt(directory, wishlist, options, observer, &published, rng),
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
struct Published {
    revisions: Vec<Revision>,
    /// What failed once they were out.
    late: Vec<StoreError>,
}

const UNPOISONED: &str = "no thread panics while it notes a revision";

fn attempt(
    directory: &RepositoryDirectory,
    wishlist: &Wishlist,
    options: &Options,
    observer: &dyn Observer,
    published: &Mutex<Published>,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, SyncError> {
    check_repository(directory, wishlist, options)?;
    wishlist.problems.iter().for_each(|problem| observer.note(Event::Problem(problem)));
    let settings = directory.settings();
    let registries = directory.registries()?.with_patience(settings.requests.patience());
    // Each image that is converted has its share.
    let memory = options.convert.memory / options.side_by_side.max(1) as u64;
    let run = Run::open(directory, &convert::Options { memory, ..options.convert.clone() }, &registries)?;
    let quarantine = Quarantine::open(run.state())?;
    let head = run.head()?;
    let survey = Survey {
        settings,
        head: &head,
        podman: PublishedStore::read(&head)?.map(|published| published.store),
        state: run.state(),
        registries: &registries,
        now: run.now(),
    };
    let workshop = Workshop {
        run: &run,
        survey: &survey,
        head: Mutex::new(head.clone()),
        options,
        quarantine: &quarantine,
        observer,
        published,
        works: Lanes::new(options.side_by_side.max(1)),
        turns: Turns::default(),
        order: Mutex::default(),
        running: Mutex::new(HashMap::new()),
    };
    let round = Round { workshop: &workshop, wishlist, listing: &registries, settings };
    let Finished { mut publications, failures, wishes, is_doubtful } = round.run(options.prune, rng)?;
    publications.items.sort_by_key(|item| item.order);
    let (mut images, mut artifacts) = (Vec::new(), Vec::new());
    for item in publications.items {
        let image = WantedImage::clone(&item.image);
        match item.state.expect("every image was found as it should be, was converted, or failed") {
            ImageState::Artifact(artifact_type) => artifacts.push((image, artifact_type)),
            state => images.push((image, state)),
        }
    }
    let Published { revisions, late } = std::mem::take(&mut *published.lock().expect(UNPOISONED));
    let removed = wishes.removed().to_vec();
    let (prunable, suspicion) = if is_doubtful { (Vec::new(), None) } else { (wishes.prunable, wishes.suspicion) };
    let written = run.written();
    Ok(Report { images, artifacts, failures, removed, prunable, suspicion, revisions, late, written })
}

fn check_repository(directory: &RepositoryDirectory, wishlist: &Wishlist, options: &Options) -> Result<(), SyncError> {
    let actual = directory.name().as_str();
    match &wishlist.repository {
        Some(wanted) if wanted != actual && options.prune != Prune::Nothing => {
            Err(SyncError::OtherRepository { wanted: wanted.clone(), actual: actual.to_owned() })
        }
        Some(wanted) if wanted != actual => {
            tracing::warn!("the wishlist is for '{wanted}', and this is '{actual}'");
            Ok(())
        }
        _ => Ok(()),
    }
}
