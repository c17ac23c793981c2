//! Conversion of images, synchronisation with wishlists, and dry runs of both.
//!
//! [`convert()`] stages the given images and publishes them as one revision. [`sync()`] does four things at the same time: it expands
//! wishes to images, requests the current digest of each image from its registry, stages the changed images, several in parallel, and
//! regularly publishes the staged ones. A failed image is reported and is not tried again for some time. Neither a failure nor a slow
//! registry delays images of other registries.

mod artifacts;
mod change_detector;
mod convert;
mod digest_locks;
mod listing;
mod operation;
mod publications;
mod quarantine;
mod queue;
mod rehearse;
mod round;
mod sync;
mod thin;
mod variants;
mod worker;

use crate::cancel::Cancelled;
use crate::engine::EngineError;
use crate::image::ImageName;
use crate::inventory::InventoryError;
use crate::layer::Limits;
use crate::object::ObjectHash;
use crate::observer::Reporter;
use crate::publish::{CommitError, EditError, PublishError, PublishOptions};
use crate::repository::RepositoryError;
use crate::stage::{ImageOptions, StageError, StageOptions};
use crate::state::StateError;
use crate::store::StoreError;
use crate::wishlist::WishOptions;

pub use convert::{ConvertReport, ImageReport, convert};
pub use rehearse::{LayerCost, Rehearsal, rehearse};
pub use sync::{Event, ImageState, SyncError, SyncObserver, SyncOptions, SyncReport, sync};
pub use thin::{ThinOutcome, ThinState, push_thin_images};

/// Errors because of which an image, or a whole operation, failed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The operation was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The image cannot be staged.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// With `strict`, losses are errors.
    #[error("CVMFS cannot represent all of the image: {0}")]
    Losses(String),
    /// Another image of the operation has the same name.
    #[error("the image name '{0}' is specified twice")]
    SameName(ImageName),
    /// The repository cannot be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The images of the repository cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state database failed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The changes of the head cannot be determined.
    #[error("cannot prepare the revision")]
    Revise(#[source] EditError),
    /// The revision cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl From<CommitError<EditError>> for ConvertError {
    fn from(error: CommitError<EditError>) -> Self {
        match error {
            CommitError::Publish(error) => error.into(),
            CommitError::Prepare(error) => Self::Revise(error),
        }
    }
}

impl ConvertError {
    /// Returns the object that was deleted during the operation, if that is the cause of the error.
    fn vanished(&self) -> Option<ObjectHash> {
        match self {
            Self::Publish(PublishError::Vanished(hash)) => Some(*hash),
            _ => None,
        }
    }
}

/// Options for converting images.
#[derive(Debug, Clone, Copy)]
pub struct ConvertOptions {
    /// Only determine what must be read and built.
    pub dry_run: bool,
    /// Store images without publishing them, so that a later conversion only has to publish.
    pub only_store: bool,
    /// Limits that hostile layers may not exceed.
    pub limits: Limits,
    /// Options for publishing the revision.
    pub publish: PublishOptions,
}

impl Default for ConvertOptions {
    /// Returns the options of a conversion that is published now.
    fn default() -> Self {
        let (limits, publish) = (Limits::default(), PublishOptions::default());
        Self { dry_run: false, only_store: false, limits, publish }
    }
}

impl ConvertOptions {
    /// Returns the options for staging one of the images. `memory` is the limit for its content in bytes.
    fn stage(&self, memory: u64) -> StageOptions {
        StageOptions { dry_run: self.dry_run, memory, limits: self.limits }
    }
}

/// Maximum number of attempts of an operation if a garbage collection deletes objects that the operation has found in the store.
const MAX_ATTEMPTS: usize = 3;

/// Repeats an operation if a garbage collection deleted an object that the operation had found in the store. The next attempt
/// stores the object again. `vanished` returns the deleted object for such an error, and `None` for other errors.
fn retried<T, E>(
    reporter: &Reporter,
    mut operation: impl FnMut() -> Result<T, E>,
    vanished: impl Fn(&E) -> Option<ObjectHash>,
) -> Result<T, E> {
    for _ in 1..MAX_ATTEMPTS {
        let result = operation();
        let Some(hash) = result.as_ref().err().and_then(&vanished) else { return result };
        reporter.warn(format_args!("object {hash} was deleted while this run relied on it; trying again"));
    }
    operation()
}

/// Returns the options for converting an image of a wishlist.
fn image_options(wish: &WishOptions) -> ImageOptions {
    ImageOptions {
        platforms: wish.platforms.clone(),
        skip_layers: !wish.layers,
        skip_flat: !wish.flat,
        skip_podman: !wish.podman,
        chains: wish.chains,
        force: false,
        strict: wish.strict,
    }
}
