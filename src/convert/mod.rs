//! Images, end to end: the only place that knows both where they come from and how they are published.
//!
//! Each image is *staged* first: its layers are read, its trees built and their catalogs stored, none of which depends on
//! what the head of the repository is. Then all that succeeded are published together, as one revision, on top of
//! whatever the head is by then.

mod build;
mod edits;
mod foreign;
mod kept;
mod need;
mod podman;
mod read;
mod rehearse;
mod run;
mod stage;
pub(crate) mod trees;
mod whole;

use std::ops::Range;
use std::time::Duration;

use rsa::rand_core::CryptoRng;

use crate::catalog::BuildError;
use crate::consumer::podman::Refusal;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::image::{DiffId, Digest, FullName, ImageName, ImageReference};
use crate::ingest::IngestError;
use crate::inventory::InventoryError;
use crate::layer::Limits;
use crate::layout::{ImagePlace, LossList};
use crate::metadata::Timestamp;
use crate::object::ObjectHash;
use crate::publish::{PublishError, Revision};
use crate::repository::RepositoryError;
use crate::source::{ImageArgument, NamingError, PlatformRequest, Platforms, SourceError};
use crate::state::IndexError;
use crate::state::StateError;
use crate::store::{StoreError, Written};
use crate::threads::ThreadsError;
use crate::tree::ApplyError;
use crate::wishlist::{ChainOption, PlatformOption, WishOptions};

pub(crate) use edits::Changes;
pub(crate) use foreign::{foreign_manifest, foreign_trees};
pub(crate) use podman::{is_asked_for, shown_platform};
pub(crate) use run::Run;
pub(crate) use stage::StagedImage;

pub use crate::progress::Progress;
pub use need::Plan;
pub use rehearse::{LayerCost, Rehearsal, rehearse};

/// Why an image, or the whole run, failed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The image cannot be found or described.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not clear which name is meant.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// A layer cannot be read.
    #[error("cannot read layer {digest}{}", mirror.as_ref().map(|mirror| format!(" from mirror {mirror}")).unwrap_or_default())]
    Layer {
        /// The layer's digest.
        digest: Digest,
        /// The mirror that it was read from, if it was not the registry itself.
        mirror: Option<String>,
        /// Why.
        source: IngestError,
    },
    /// A layer cannot be laid over those below it.
    #[error("cannot apply layer {digest}")]
    Apply {
        /// The layer's digest.
        digest: Digest,
        /// Why.
        source: ApplyError,
    },
    /// A record of an earlier run is of another layer.
    #[error("layer {digest} has diff ID {actual}, but the image config promises {expected}")]
    OtherDiffId {
        /// The layer's digest.
        digest: Digest,
        /// What the image config says.
        expected: DiffId,
        /// What the record says.
        actual: DiffId,
    },
    /// A record of an earlier run is of a blob of another size.
    #[error("layer {digest} has {actual} bytes, but the image manifest promises {expected}")]
    OtherSize {
        /// The layer's digest.
        digest: Digest,
        /// What the image manifest says.
        expected: u64,
        /// What the record says.
        actual: u64,
    },
    /// With `strict`, losses are errors.
    #[error("CVMFS cannot hold all of the image: {0}")]
    Losses(String),
    /// Another image of the run has the same name.
    #[error("'{0}' is given twice")]
    SameName(ImageName),
    /// Catalogs cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The images of the repository cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The repository directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The state failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The revision could not be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The machine refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

impl ConvertError {
    /// Returns the object that went away while the run relied on it, if that is the error.
    pub(crate) fn vanished(&self) -> Option<ObjectHash> {
        match self {
            Self::Publish(PublishError::Vanished(hash)) => Some(*hash),
            _ => None,
        }
    }
}

/// Which chains of an image are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Chains {
    /// The last one, which a later image may start from.
    #[default]
    Final,
    /// One for each layer.
    All,
    /// None.
    None,
}

impl Chains {
    /// Returns which chains of an image of so many layers are published, by the place of their highest layer.
    fn of(self, layers: usize) -> Range<usize> {
        match self {
            Self::None => 0..0,
            Self::Final => layers.saturating_sub(1)..layers,
            Self::All => 0..layers,
        }
    }
}

/// One image to convert.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it is.
    pub argument: ImageArgument,
    /// The name to publish it under, if not the one that it carries. A digest in it has to be the image's.
    pub name: Option<FullName>,
    /// What is published of it.
    pub image: ImageOptions,
}

impl Request {
    /// Returns the digest that stands beside the tag in the name to publish under, which would be lost otherwise.
    fn digest_beside_tag(&self) -> Option<Digest> {
        let has_tag = |name: &&FullName| matches!(name.name.reference(), ImageReference::Tag(_));
        self.name.as_ref().filter(has_tag).and_then(|name| name.digest)
    }
}

/// What is published of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageOptions {
    /// The platforms that are wanted.
    pub platforms: Platforms,
    /// Do not publish single layers.
    pub skip_layers: bool,
    /// Do not publish the root file system and the public link.
    pub skip_flat: bool,
    /// Do not show the image to podman. It does not see images without a root file system anyway.
    pub skip_podman: bool,
    /// Which chains to publish.
    pub chains: Chains,
    /// Read everything anew and publish it again, but for layers, which never change.
    pub force: bool,
    /// Fail the image if CVMFS cannot hold all of it.
    pub strict: bool,
}

impl ImageOptions {
    /// Returns what a wishlist wants of an image.
    pub fn of(wish: &WishOptions) -> Self {
        let platforms = match &wish.platforms {
            PlatformOption::Unspecified => Platforms::default(),
            PlatformOption::All => Platforms::All,
            PlatformOption::Listed(platforms) => match platforms.as_slice() {
                [platform] => Platforms::One(PlatformRequest::new(Some(platform.clone()))),
                _ => Platforms::Several(platforms.clone()),
            },
        };
        let chains = match wish.chains {
            ChainOption::Final => Chains::Final,
            ChainOption::All => Chains::All,
            ChainOption::None => Chains::None,
        };
        Self {
            platforms,
            skip_layers: !wish.layers,
            skip_flat: !wish.flat,
            skip_podman: !wish.podman,
            chains,
            force: false,
            strict: wish.strict,
        }
    }
}

/// How images are converted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only find out what there is to do.
    pub dry_run: bool,
    /// Whether to publish what is ready. Otherwise it stays in the store, for a run that does.
    pub publish: bool,
    /// How many threads work.
    pub threads: usize,
    /// Bytes of content that may be in flight.
    pub memory: u64,
    /// How long to wait for another publisher.
    pub wait: Duration,
    /// Whether to publish although `now` is more than a year after the last revision.
    pub accept_clock: bool,
    /// What hostile layers may not exceed.
    pub limits: Limits,
    /// The time of everything that strata itself makes.
    pub now: Timestamp,
}

/// What became of one image.
#[derive(Debug)]
pub struct ImageReport {
    /// The image as it was named.
    pub argument: ImageArgument,
    /// The result: one outcome for each platform that was wanted.
    pub outcomes: Result<Vec<Outcome>, ConvertError>,
}

/// An image that did not fail.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Where it is published.
    pub place: ImagePlace,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The digest of its config, which names its root file system.
    pub config: Digest,
    /// What there was to do.
    pub plan: Plan,
    /// What CVMFS cannot hold.
    pub losses: LossList,
    /// Whether podman sees it.
    pub podman: PodmanListing,
    /// Layers that were not published before.
    pub new_layers: Vec<Digest>,
}

/// Whether podman sees an image.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PodmanListing {
    /// Nobody asked for that, or it sees another platform of the same name.
    #[default]
    NotAsked,
    /// It is in the store.
    Listed,
    /// It is kept out of the store, which would be of no use with it.
    Refused(Refusal),
}

/// What a run did.
#[derive(Debug)]
pub struct Report {
    /// Each image, in the order given.
    pub images: Vec<ImageReport>,
    /// The revision that was published, unless everything was there already or everything failed.
    pub revision: Option<Revision>,
    /// What failed once it was published.
    pub late: Vec<StoreError>,
    /// What was added to the store.
    pub written: Written,
    /// Pieces of content that were known and therefore not compressed again.
    pub index_hits: u64,
}

/// Converts images and publishes those that succeed, as one revision.
///
/// An image that fails is reported and does not hold up the others. An error means that nothing was published.
pub fn convert(
    directory: &RepositoryDirectory,
    requests: &[Request],
    options: &Options,
    progress: &Progress,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, ConvertError> {
    despite_collection(|| attempt(directory, requests, options, progress, rng), ConvertError::vanished)
}

/// How often a run begins anew when objects that it found in the store go away.
const ATTEMPTS: usize = 3;

/// Begins a run anew when somebody collected what it found in the store, which is the object that `vanished` returns for
/// an error. What is missing is then made.
pub(crate) fn despite_collection<T, E>(
    mut run: impl FnMut() -> Result<T, E>,
    vanished: impl Fn(&E) -> Option<ObjectHash>,
) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        let result = run();
        let Some(hash) = result.as_ref().err().and_then(&vanished) else { return result };
        tracing::warn!("object {hash} was deleted while this run relied on it; trying again");
    }
    run()
}

fn attempt(
    directory: &RepositoryDirectory,
    requests: &[Request],
    options: &Options,
    progress: &Progress,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, ConvertError> {
    let run = Run::open(directory, options, directory.registries()?)?;
    if requests.iter().any(|request| request.image.force) {
        run.staging.compare_bytes();
    }
    let head = run.head()?;
    let (mut images, mut staged) = (Vec::new(), Vec::<StagedImage>::new());
    for request in requests {
        let result = run.resolve(request).and_then(|resolved| {
            let is_taken = staged.iter().any(|image| image.outcome.place.name == *resolved.name());
            if is_taken {
                return Err(ConvertError::SameName(resolved.name().clone()));
            }
            run.stage(resolved, &head, progress)
        });
        let outcomes = result.map(|platforms| {
            let outcomes = platforms.iter().map(|image| image.outcome.clone()).collect();
            staged.extend(platforms);
            outcomes
        });
        images.push(ImageReport { argument: request.argument.clone(), outcomes });
    }
    // What was stored is kept, even if nothing of it comes to be published now.
    run.staging.flush()?;
    let is_to_be_published = !options.dry_run && options.publish && !staged.is_empty();
    let publication =
        if is_to_be_published { run.publish(&Changes { images: &staged, ..Changes::default() }, rng)? } else { None };
    let (revision, late) = publication.map(|publication| (publication.revision, publication.late)).unzip();
    let (written, index_hits) = (run.staging.written(), run.index.hits());
    Ok(Report { images, revision, late: late.unwrap_or_default(), written, index_hits })
}
