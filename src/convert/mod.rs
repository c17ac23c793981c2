//! Images, end to end: the only place that knows both where they come from and how they are published.
//!
//! Each image is *staged* first: its layers are read, its trees built and their catalogs stored, none of which depends on
//! what the head of the repository is. Then all that succeeded are published together, as one revision, on top of
//! whatever the head is by then.

mod edits;
mod need;
mod rehearse;
mod stage;
pub(crate) mod trees;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use rsa::rand_core::CryptoRng;

use crate::catalog::{BuildError, StateDatabase, StateError, StoredTreeNote};
use crate::folder::{FolderError, RepositoryFolder};
use crate::image::{DiffId, Digest, ImageName, Platform};
use crate::index::{ContentIndex, IndexError};
use crate::ingest::IngestError;
use crate::layer::{EntryPath, Limits};
use crate::layout::LossList;
use crate::metadata::Timestamp;
use crate::publish::{PublishError, Publisher, Revision};
use crate::repository::{Repository, RepositoryError};
use crate::source::{ImageArgument, NamingError, SourceError};
use crate::store::{Staging, StoreError, Written};
use crate::threads::{self, ThreadsError};
use crate::tree::ApplyError;

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
    #[error("cannot read layer {digest}")]
    Layer {
        /// The layer's digest.
        digest: Digest,
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
    #[error("the published layer {digest} has diff ID {actual}, but the image config promises {expected}")]
    OtherDiffId {
        /// The layer's digest.
        digest: Digest,
        /// What the image config says.
        expected: DiffId,
        /// What the record says.
        actual: DiffId,
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
    /// The repository folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
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

/// One image to convert.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it is.
    pub argument: ImageArgument,
    /// The name to publish it under, if not the one that it carries.
    pub name: Option<ImageName>,
}

/// How images are converted.
#[derive(Debug, Clone)]
pub struct Options {
    /// The platform that is asked for; this machine's is preferred without.
    pub platform: Option<Platform>,
    /// Do not publish single layers.
    pub skip_layers: bool,
    /// Do not publish the root file system and the public link.
    pub skip_flat: bool,
    /// Which chains to publish.
    pub chains: Chains,
    /// Only find out what there is to do.
    pub dry_run: bool,
    /// Whether to publish what is ready. Otherwise it stays in the store, for a run that does.
    pub publish: bool,
    /// Read everything anew and publish it again, but for layers, which never change.
    pub force: bool,
    /// Fail images that CVMFS cannot hold all of.
    pub strict: bool,
    /// How many threads work.
    pub threads: usize,
    /// Bytes of content that may be in flight.
    pub memory: u64,
    /// How long to wait for another publisher.
    pub wait: Duration,
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
    /// The result.
    pub outcome: Result<Outcome, ConvertError>,
}

/// An image that did not fail.
#[derive(Debug)]
pub struct Outcome {
    /// The name that it is published under.
    pub name: ImageName,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The digest of its config, which names its root file system.
    pub config: Digest,
    /// What there was to do.
    pub plan: Plan,
    /// What CVMFS cannot hold.
    pub losses: LossList,
}

/// What a run did.
#[derive(Debug)]
pub struct Report {
    /// Each image, in the order given.
    pub images: Vec<ImageReport>,
    /// The revision that was published, unless everything was there already or everything failed.
    pub revision: Option<Revision>,
    /// What was added to the store.
    pub written: Written,
    /// Pieces of content that were known and therefore not compressed again.
    pub index_hits: u64,
}

/// What stays the same for all images of a run.
struct Run<'a> {
    folder: &'a RepositoryFolder,
    options: &'a Options,
    staging: &'a Staging,
    index: &'a ContentIndex<'a>,
    state: &'a StateDatabase,
    progress: &'a Progress,
    /// Trees that were looked for among those stored earlier, and what was found.
    noted: Mutex<HashMap<EntryPath, Option<StoredTreeNote>>>,
}

/// Converts images and publishes those that succeed, as one revision.
///
/// An image that fails is reported and does not hold up the others. An error means that nothing was published.
pub fn convert(
    folder: &RepositoryFolder,
    requests: &[Request],
    options: &Options,
    progress: &Progress,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, ConvertError> {
    for _ in 1..ATTEMPTS {
        match attempt(folder, requests, options, progress, rng) {
            // Somebody collected what this run found in the store. What is missing is made anew.
            Err(ConvertError::Publish(PublishError::Vanished(hash))) => {
                tracing::warn!("object {hash} was deleted while this run relied on it; trying again");
            }
            result => return result,
        }
    }
    attempt(folder, requests, options, progress, rng)
}

/// How often a run begins anew when objects that it found in the store go away.
const ATTEMPTS: usize = 3;

fn attempt(
    folder: &RepositoryFolder,
    requests: &[Request],
    options: &Options,
    progress: &Progress,
    rng: &mut (impl CryptoRng + Send),
) -> Result<Report, ConvertError> {
    let keys = folder.keys()?;
    let store = folder.store()?;
    let state = folder.state()?;
    let index = ContentIndex::open(&state)?;
    let staging = Staging::start(&store)?;
    let head = Repository::open(&store, folder.name())?;
    let run =
        Run { folder, options, staging: &staging, index: &index, state: &state, progress, noted: Mutex::default() };
    let pool = threads::pool(options.threads)?;
    let (mut images, mut staged) = (Vec::new(), Vec::<stage::StagedImage>::new());
    for request in requests {
        let known: Vec<ImageName> = staged.iter().map(|image| image.outcome.name.clone()).collect();
        let result = pool.install(|| run.stage(request, &head, &known));
        images.push((request.argument.clone(), result.map(|image| staged.push(image))));
        index.save()?;
    }
    // What was stored is kept, even if nothing of it comes to be published now.
    staging.flush()?;
    progress.set_stage("publishing".to_owned());
    let server = folder.local_server()?;
    let publisher = Publisher {
        staging: &staging,
        server: server.as_ref(),
        keys: &keys,
        settings: folder.settings(),
        now: options.now,
        wait: options.wait,
    };
    let revision = if options.dry_run || !options.publish || staged.is_empty() {
        None
    } else {
        pool.install(|| publisher.commit(rng, |head| run.edits(head, &staged)))?
    };
    let mut staged = staged.into_iter();
    let images = images
        .into_iter()
        .map(|(argument, result)| ImageReport {
            argument,
            outcome: result.map(|()| staged.next().expect("one was staged for each that succeeded").outcome),
        })
        .collect();
    Ok(Report { images, revision, written: staging.written(), index_hits: index.hits() })
}
