//! An open repository, for the lifetime of a command or a daemon.
//!
//! An [`Engine`] contains what all operations on the repository share: the store, the state database, the thread pool, the registry
//! client, and the signing keys. It contains no state of a single operation, and there is no process-global state.

use std::sync::Arc;

use rayon::ThreadPool;

use crate::cancel::Cancellation;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::metadata::Timestamp;
use crate::observer::Reporter;
use crate::publish::{LockedCommitter, Publisher};
use crate::registry::Registries;
use crate::settings::Settings;
use crate::state::StateDatabase;
use crate::store::SharedWritableStore;
use crate::threads::{self, ThreadsError};

/// Errors from opening an engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The repository directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The operating system refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// Limits on the resources of the machine that an engine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Number of threads that work on layers and trees.
    pub threads: usize,
    /// Maximum number of bytes of content in memory, for all images that are converted at the same time.
    pub memory: u64,
}

impl Default for Resources {
    /// Returns one thread for each core, and 256 MiB.
    fn default() -> Self {
        Self { threads: threads::available(), memory: 256 << 20 }
    }
}

/// Resources that all operations on one repository share.
pub struct Engine {
    directory: RepositoryDirectory,
    store: SharedWritableStore,
    state: Arc<StateDatabase>,
    pool: ThreadPool,
    registries: Registries,
    resources: Resources,
    publisher: Option<Publisher>,
}

impl Engine {
    /// Opens a repository for publishing.
    ///
    /// Reads keys, storage, state and settings of registries, so that missing ones are reported before any work is done.
    pub fn open(directory: &RepositoryDirectory, resources: Resources) -> Result<Self, EngineError> {
        if let Some(lack) = directory.settings().compression.lack() {
            directory.reporter().info(format_args!("{lack}"));
        }
        // The actual time, to which clients compare the whitelist. Publications may have another time (`SOURCE_DATE_EPOCH`).
        if let Some(warning) = directory.whitelist_warning(Timestamp::now()) {
            directory.reporter().warn(format_args!("{warning}"));
        }
        let publisher = Publisher::new(LockedCommitter {
            settings: directory.settings().clone(),
            keys: directory.keys()?,
            server: directory.local_server()?,
        });
        let engine = Self::read_only(directory, directory.store()?.into(), directory.state()?, resources)?;
        Ok(Self { publisher: Some(publisher), ..engine })
    }

    /// Opens a repository read-only. New objects are written to `store`, which is not the store of the repository.
    pub(crate) fn read_only(
        directory: &RepositoryDirectory,
        store: SharedWritableStore,
        state: StateDatabase,
        resources: Resources,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            directory: directory.clone(),
            store,
            state: Arc::new(state),
            pool: threads::pool(resources.threads, directory.reporter())?,
            registries: directory.registries()?.clone(),
            resources,
            publisher: None,
        })
    }

    /// Returns the directory of the repository.
    pub fn directory(&self) -> &RepositoryDirectory {
        &self.directory
    }

    /// Returns the reporter to the observer of all operations.
    pub(crate) fn reporter(&self) -> &Reporter {
        self.directory.reporter()
    }

    /// Returns the settings of the repository.
    pub fn settings(&self) -> &Settings {
        self.directory.settings()
    }

    /// Returns the store that new objects are written to.
    pub(crate) fn store(&self) -> &SharedWritableStore {
        &self.store
    }

    /// Returns the database of facts that are kept between runs.
    pub(crate) fn state(&self) -> &Arc<StateDatabase> {
        &self.state
    }

    /// Returns the pool of threads that build trees and catalogs.
    pub(crate) fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Returns the token that cancels the operations of this engine.
    pub fn cancellation(&self) -> &Cancellation {
        self.directory.cancellation()
    }

    /// Returns the client of the registries from which images are fetched.
    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Returns the limits on the resources of the machine.
    pub(crate) fn resources(&self) -> Resources {
        self.resources
    }

    /// Returns the publisher of revisions; `None` if the engine is read-only.
    pub(crate) fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_ref()
    }
}
