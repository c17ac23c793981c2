//! Stages images: reads the new layers of an image, builds its trees, and stores their catalogs. Clients do not see the stored
//! trees.
//!
//! The stored trees do not depend on the names in the head. Any recent revision can be searched for trees to reuse. Therefore many
//! images can be staged at the same time, also while other publishers change the head.

mod build;
mod completeness;
mod file_bundles;
mod image;
mod known_trees;
mod layer_cache;
mod options;
mod plan;
mod read_layers;
mod tree_writer;

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
use crate::store::{ObjectsVersion, Staging, StoreError};
use crate::tree::ApplyError;
use layer_cache::LayerCache;

pub(crate) use image::{ResolvedImage, StagedImage};
pub(crate) use known_trees::{is_layer_published, published_layer, read_layer};

pub use image::ImageOutcome;
pub use options::{ImageOptions, Request};
pub use plan::PlanSummary;

/// Why an image cannot be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The operation was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The image cannot be found or described.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The name under which the image is published cannot be determined.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// A layer cannot be read.
    #[error("cannot read layer {digest}{}", mirror.as_ref().map(|mirror| format!(" from mirror {mirror}")).unwrap_or_default())]
    Layer {
        /// The layer's digest.
        digest: Digest,
        /// The mirror from which it was read, if it was not read from the registry itself.
        mirror: Option<String>,
        /// Error from reading the layer.
        source: IngestError,
    },
    /// A layer cannot be applied to the layers below it.
    #[error("cannot apply layer {digest}")]
    Apply {
        /// The layer's digest.
        digest: Digest,
        /// Error from applying the layer.
        source: ApplyError,
    },
    /// An earlier run found another diff ID for the blob.
    #[error("layer {digest} has diff ID {actual}, but the image config promises {expected}")]
    OtherDiffId {
        /// The layer's digest.
        digest: Digest,
        /// Diff ID in the image config.
        expected: DiffId,
        /// Diff ID of the blob.
        actual: DiffId,
    },
    /// An earlier run found another size of the blob.
    #[error("layer {digest} has {actual} bytes, but the image manifest promises {expected}")]
    OtherSize {
        /// The layer's digest.
        digest: Digest,
        /// Size in bytes in the image manifest.
        expected: u64,
        /// Size of the blob in bytes.
        actual: u64,
    },
    /// Catalogs cannot be created.
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
    /// The state database failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Options for staging images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StageOptions {
    /// Only determine what must be read and built.
    pub(crate) dry_run: bool,
    /// Maximum number of bytes of content in memory for one image.
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
    /// Epoch of the object directories in the state database; `None` if the database is read-only and they changed since the last run.
    epoch: Option<i64>,
    /// Cached results of [`Stager::tree_note`]: notes on trees that were stored and not published.
    tree_notes: Mutex<HashMap<EntryPath, Option<StoredTreeNote>>>,
    /// Published trees that this operation has found complete, by path and root catalog.
    complete_trees: Mutex<HashSet<(EntryPath, ObjectHash)>>,
    /// Layers that earlier operations read; `None` if this operation does not publish.
    layer_cache: Option<LayerCache>,
}

impl<'e> Stager<'e> {
    /// Prepares to stage images.
    pub(crate) fn start(engine: &'e Engine, options: StageOptions, registries: Registries) -> Result<Self, StageError> {
        let staging = Staging::start(engine.store().clone())?.with_algorithm(engine.directory().hash_algorithm());
        let staging = Arc::new(staging);
        let state = engine.state();
        let layer_cache = engine.publisher().is_some().then(|| {
            let (compression, algorithm) = (engine.settings().compression, staging.algorithm());
            let settings = format!("{compression} {algorithm} {:?}", ChunkSizes::default());
            LayerCache::open(engine.directory().path().join("state/layers"), &settings, &staging)
        });
        Ok(Self {
            engine,
            options,
            registries,
            index: ContentIndex::open(Arc::clone(state))?,
            epoch: state.begin_epoch(staging.objects_version().as_bytes())?,
            staging,
            tree_notes: Mutex::default(),
            complete_trees: Mutex::default(),
            layer_cache,
        })
    }

    /// Returns the staging area of new objects.
    pub(crate) fn staging(&self) -> &Staging {
        &self.staging
    }

    /// Returns the number of files and chunks that were not compressed, because the content index has their objects.
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
        // A read-only operation leaves the state unchanged. After a panic, the state of the directories is unknown.
        if self.engine.publisher().is_some() && !std::thread::panicking() {
            let version = self.staging.final_objects_version();
            let version = version.as_ref().map(ObjectsVersion::as_bytes);
            if let Err(error) = self.engine.state().end_epoch(version) {
                self.reporter().debug(format_args!("{}", causes(&error)));
            }
        }
    }
}
