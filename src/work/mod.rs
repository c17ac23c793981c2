//! The work on a repository: images that are converted, wishlists that are brought in step, and rehearsals of both.
//!
//! One driver does all of it. [`convert()`] stages the images that it is given and publishes them as one revision. [`sync()`] does four
//! things at the same time: it expands wishes to images, asks registries what each name stands for by now, stages what has
//! changed, several images side by side, and publishes what is ready from time to time. Whatever fails is reported, is not tried
//! again for a while, and holds up nothing else; a slow registry delays its own images only.

mod artifacts;
mod claims;
mod convert;
mod listing;
mod operation;
mod publications;
mod quarantine;
mod queue;
mod rehearse;
mod round;
mod survey;
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
use crate::publish::{CommitError, PublishError, PublishOptions};
use crate::repository::RepositoryError;
use crate::revise::ReviseError;
use crate::source::{PlatformRequest, Platforms};
use crate::stage::{Chains, ImageOptions, StageError, StageOptions};
use crate::state::StateError;
use crate::store::StoreError;
use crate::wishlist::{ChainOption, PlatformOption, WishOptions};

pub use convert::{ConvertReport, ImageReport, convert};
pub use rehearse::{LayerCost, Rehearsal, rehearse};
pub use sync::{Event, ImageState, SyncError, SyncObserver, SyncOptions, SyncReport, sync};
pub use thin::{ThinOutcome, ThinState, push_thin_images};

/// Why an image, or a whole operation, failed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The operation was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The image cannot be staged.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// With `strict`, losses are errors.
    #[error("CVMFS cannot hold all of the image: {0}")]
    Losses(String),
    /// Another image of the operation has the same name.
    #[error("'{0}' is given twice")]
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
    Revise(#[source] ReviseError),
    /// The revision cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl From<CommitError<ReviseError>> for ConvertError {
    fn from(error: CommitError<ReviseError>) -> Self {
        match error {
            CommitError::Publish(error) => error.into(),
            CommitError::Prepare(error) => Self::Revise(error),
        }
    }
}

impl ConvertError {
    /// Returns the object that was deleted while the operation relied on it, if that is the error.
    fn vanished(&self) -> Option<ObjectHash> {
        match self {
            Self::Publish(PublishError::Vanished(hash)) => Some(*hash),
            _ => None,
        }
    }
}

/// How images are converted.
#[derive(Debug, Clone, Copy)]
pub struct ConvertOptions {
    /// Only find out what has to be done.
    pub dry_run: bool,
    /// Store images without publishing them: a later conversion only publishes.
    pub only_store: bool,
    /// Limits that hostile layers may not exceed.
    pub limits: Limits,
    /// How the revision is published.
    pub publish: PublishOptions,
}

impl ConvertOptions {
    /// Returns how one of the images is staged, with so much memory in bytes.
    fn stage(&self, memory: u64) -> StageOptions {
        StageOptions { dry_run: self.dry_run, memory, limits: self.limits }
    }
}

/// Maximum number of attempts of an operation that finds objects in the store which are deleted before it publishes.
const ATTEMPTS: usize = 3;

/// Starts an operation again if a garbage collection deleted an object that it had found in the store. `vanished` returns that object
/// for an error. The next attempt stores it again.
fn retried<T, E>(
    reporter: &Reporter,
    mut operation: impl FnMut() -> Result<T, E>,
    vanished: impl Fn(&E) -> Option<ObjectHash>,
) -> Result<T, E> {
    for _ in 1..ATTEMPTS {
        let result = operation();
        let Some(hash) = result.as_ref().err().and_then(&vanished) else { return result };
        reporter.warn(format_args!("object {hash} was deleted while this run relied on it; trying again"));
    }
    operation()
}

/// Returns what a wishlist wants of an image.
fn image_options(wish: &WishOptions) -> ImageOptions {
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
    ImageOptions {
        platforms,
        skip_layers: !wish.layers,
        skip_flat: !wish.flat,
        skip_podman: !wish.podman,
        chains,
        force: false,
        strict: wish.strict,
    }
}
