//! Brings a repository in step with a wishlist.
//!
//! One round has three parts. The wishes are *expanded* to images; a *survey* asks registries what each name stands for by
//! now, with one small request each; and what has changed is *converted*, several images side by side. All that is ready is
//! published together, at most every so often and at the end. Whatever fails is reported, is not tried again for a while,
//! and holds up nothing else.

mod artifacts;
mod listing;
mod prune;
mod quarantine;
mod queue;
mod survey;
mod thin;
mod turns;
mod workshop;

use std::collections::BTreeSet;
use std::io;
use std::sync::Mutex;
use std::time::Duration;

use rsa::rand_core::CryptoRng;

use crate::catalog::StateError;
use crate::convert::{self, ConvertError, Outcome, Run, despite_collection};
use crate::folder::{FolderError, RepositoryFolder};
use crate::image::ImageName;
use crate::podman::PublishedStore;
use crate::progress::Progress;
use crate::publish::{AfterPublication, Revision};
use crate::repository::RepositoryError;
use crate::source::registry::RegistryError;
use crate::store::{StoreError, Written};
use crate::threads::{self, ThreadsError};
use crate::wishlist::{self, Expansion, Failure, Problem, WantedImage, Wishlist};

pub use prune::{Loss, Prune};
pub use thin::{ThinOutcome, ThinState, push_thin_images};

use artifacts::{Sorted, Sorter};
use prune::Wishes;
use quarantine::Quarantine;
use survey::Survey;
use workshop::Workshop;

/// Why a round could not be brought to its end.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The repository folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
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
    /// The wishes come to so many images.
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
    /// A registry wants to be left alone for so long, and the image waits for that.
    Waits(&'a WantedImage, Duration),
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
    /// It is none, but an artifact of this type. No [`Report`] counts it among the images.
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
    folder: &RepositoryFolder,
    wishlist: &Wishlist,
    options: &Options,
    observer: &dyn Observer,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, SyncError> {
    let published = Mutex::default();
    let result = despite_collection(
        || attempt(folder, wishlist, options, observer, &published, rng),
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

/// So many lists are asked for at a time.
const LISTS_AT_ONCE: usize = 8;

fn attempt(
    folder: &RepositoryFolder,
    wishlist: &Wishlist,
    options: &Options,
    observer: &dyn Observer,
    published: &Mutex<Published>,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, SyncError> {
    check_repository(folder, wishlist, options)?;
    let registries = folder.registries()?;
    let expand = || wishlist::expand(wishlist, registries);
    let Expansion { images, newest, failures, problems } = threads::waiting_pool(LISTS_AT_ONCE)?.install(expand);
    wishlist.problems.iter().chain(&problems).for_each(|problem| observer.note(Event::Problem(problem)));
    failures.iter().for_each(|failure| observer.note(Event::NotListed(failure)));
    observer.note(Event::Listed(images.len()));
    // Here a registry that asks to wait is waited for while others are asked.
    let registries = registries.with_patience(Duration::ZERO);
    // Each image that is converted has its share.
    let memory = options.convert.memory / options.side_by_side.max(1) as u64;
    let run = Run::open(folder, &convert::Options { memory, ..options.convert.clone() }, &registries)?;
    let quarantine = Quarantine::open(run.state())?;
    let head = run.head()?;
    let survey = Survey {
        settings: folder.settings(),
        head: &head,
        podman: PublishedStore::read(&head)?.map(|published| published.store),
        state: run.state(),
        registries: &registries,
        now: run.now(),
    };
    let sorter = Sorter { run: &run, survey: &survey, quarantine: &quarantine, observer };
    let Sorted { images, findings, mut artifacts, spared } = sorter.sort(images, newest)?;
    let listed = images.iter().chain(artifacts.iter().map(|(image, _)| image));
    let names: BTreeSet<ImageName> = listed.map(|image| image.name().clone()).chain(spared).collect();
    let is_doubtful = !failures.is_empty() || !wishlist.problems.is_empty() || !problems.is_empty();
    let prune = if is_doubtful { Prune::Nothing } else { options.prune };
    let wishes = Wishes::new(&head, &wishlist.name, names, prune)?;
    if prune != options.prune {
        tracing::warn!("nothing is removed, as not everything was found that the wishlist asks for");
    }
    let workshop = Workshop {
        run: &run,
        survey: &survey,
        head: Mutex::new(head.clone()),
        images: &images,
        options,
        quarantine: &quarantine,
        observer,
        published,
    };
    let states = workshop.work(findings, &wishes, rng)?;
    let mut reported = Vec::new();
    for (image, state) in images.into_iter().zip(states) {
        match state {
            ImageState::Artifact(artifact_type) => artifacts.push((image, artifact_type)),
            state => reported.push((image, state)),
        }
    }
    let Published { revisions, late } = std::mem::take(&mut *published.lock().expect(UNPOISONED));
    let removed = wishes.removed().to_vec();
    let (prunable, suspicion) = if is_doubtful { (Vec::new(), None) } else { (wishes.prunable, wishes.suspicion) };
    let written = run.written();
    Ok(Report { images: reported, artifacts, failures, removed, prunable, suspicion, revisions, late, written })
}

fn check_repository(folder: &RepositoryFolder, wishlist: &Wishlist, options: &Options) -> Result<(), SyncError> {
    let actual = folder.name().as_str();
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
