//! Stages images: reads what is new in one, builds its trees, and stores their catalogs. Nothing of that is visible to clients.
//!
//! What is stored does not depend on the names in the head. Any recent revision serves to find what is known already, so images are
//! staged while other publishers go on, and many at the same time.

mod build;
mod image;
mod kept;
mod need;
mod options;
mod read;
mod trees;
mod whole;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use crate::cancel::Cancelled;
use crate::catalog::BuildError;
use crate::engine::Engine;
use crate::image::{DiffId, Digest};
use crate::ingest::IngestError;
use crate::layer::Limits;
use crate::message::causes;
use crate::object::{ChunkSizes, ObjectHash};
use crate::observer::Reporter;
use crate::path::EntryPath;
use crate::registry::Registries;
use crate::repository::RepositoryError;
use crate::settings::Settings;
use crate::source::{NamingError, SourceError};
use crate::state::{ContentIndex, IndexError, StateError, StoredTreeNote};
use crate::store::{Staging, StoreError};
use crate::tree::ApplyError;
use kept::KeptLayers;

pub(crate) use image::{ResolvedImage, StagedImage};
pub(crate) use trees::{is_layer_published, published_layer, read_layer};

pub use image::Outcome;
pub use need::Plan;
pub use options::{Chains, ImageOptions, Request};

/// Why an image cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The operation was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
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
    /// Catalogs cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The state failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// How images are staged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageOptions {
    /// Only find out what has to be done.
    pub(crate) dry_run: bool,
    /// Bytes of content in flight, for one image.
    pub(crate) memory: u64,
    /// Limits that hostile layers may not exceed.
    pub(crate) limits: Limits,
}

/// Stages the images of one operation.
pub(crate) struct Stager<'e> {
    engine: &'e Engine,
    options: StageOptions,
    registries: Registries,
    staging: Arc<Staging>,
    index: ContentIndex,
    /// The epoch of the object directories that holds for this operation; `None` if nothing is known of them.
    epoch: Option<i64>,
    /// Results of searches for trees that earlier operations stored.
    noted: Mutex<HashMap<EntryPath, Option<StoredTreeNote>>>,
    /// Published trees that this operation has found complete, by path and root catalog.
    whole: Mutex<HashSet<(EntryPath, ObjectHash)>>,
    /// Layers that earlier operations read to their end; `None` if nothing is published.
    kept: Option<KeptLayers>,
}

impl<'e> Stager<'e> {
    /// Starts an operation on a repository.
    pub(crate) fn start(engine: &'e Engine, options: StageOptions, registries: Registries) -> Result<Self, StageError> {
        let staging = Arc::new(Staging::start(engine.store())?);
        let state = engine.state();
        let kept = engine.publisher().is_some().then(|| {
            let form = format!("{} {:?}", engine.settings().compression, ChunkSizes::default());
            KeptLayers::open(engine.directory().path().join("state/layers"), &form, &staging)
        });
        Ok(Self {
            engine,
            options,
            registries,
            index: ContentIndex::open(Arc::clone(state))?,
            epoch: state.begin_epoch(&staging.directory_states().to_bytes())?,
            staging,
            noted: Mutex::default(),
            whole: Mutex::default(),
            kept,
        })
    }

    /// Returns where new objects are until they are durable.
    pub(crate) fn staging(&self) -> &Staging {
        &self.staging
    }

    /// Returns the number of pieces of content that were in the store already.
    pub(crate) fn index_hits(&self) -> u64 {
        self.index.hits()
    }

    fn reporter(&self) -> &Reporter {
        self.engine.reporter()
    }

    fn settings(&self) -> &Settings {
        self.engine.settings()
    }
}

impl Drop for Stager<'_> {
    fn drop(&mut self) {
        // An operation that publishes nothing leaves nothing, and nothing is believed of one that panicked.
        if self.engine.publisher().is_some() && !std::thread::panicking() {
            let states = self.staging.final_directory_states().map(|states| states.to_bytes());
            if let Err(error) = self.engine.state().end_epoch(states.as_deref()) {
                self.reporter().debug(format_args!("{}", causes(&error)));
            }
        }
    }
}
