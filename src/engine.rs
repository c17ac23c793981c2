//! One open repository, for as long as a command or a daemon works with it.
//!
//! An [`Engine`] holds what all operations share: the store, the state database, the thread pool, the registries, and what signs.
//! Nothing in it belongs to a single operation, and nothing of it is global to the process.

use std::sync::Arc;

use rayon::ThreadPool;
use rsa::rand_core::CryptoRng;

use crate::cancel::Cancellation;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::manifest::Signer;
use crate::metadata::Timestamp;
use crate::observer::Reporter;
use crate::publish::Publisher;
use crate::registry::Registries;
use crate::settings::Settings;
use crate::state::StateDatabase;
use crate::store::DirectoryStore;
use crate::threads::{self, ThreadsError};

/// Why an engine cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The repository directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The operating system refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// What an engine may use of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Number of threads that work on layers and trees.
    pub threads: usize,
    /// Bytes of content in flight, for all images that are converted at the same time.
    pub memory: u64,
}

/// What the operations on one repository share.
pub struct Engine {
    directory: RepositoryDirectory,
    store: DirectoryStore,
    state: Arc<StateDatabase>,
    pool: ThreadPool,
    registries: Registries,
    resources: Resources,
    publisher: Option<Publisher>,
}

impl Engine {
    /// Opens a repository to publish in it.
    ///
    /// Keys, storage, state and settings of registries are read now, so that what is missing is reported before any work is done.
    pub fn open(
        directory: &RepositoryDirectory,
        resources: Resources,
        rng: impl CryptoRng + Send + 'static,
    ) -> Result<Self, EngineError> {
        if let Some(lack) = directory.settings().compression.lack() {
            directory.reporter().info(format_args!("{lack}"));
        }
        // The real time: publications may be dated otherwise.
        if let Some(warning) = directory.whitelist_warning(Timestamp::now()) {
            directory.reporter().warn(format_args!("{warning}"));
        }
        let publisher = Publisher {
            settings: directory.settings().clone(),
            signer: Signer::new(directory.keys()?, rng),
            server: directory.local_server()?,
        };
        let engine = Self::read_only(directory, directory.store()?, directory.state()?, resources)?;
        Ok(Self { publisher: Some(publisher), ..engine })
    }

    /// Opens a repository whose new objects go to `store`, which is not its own, and in which nothing is published.
    pub(crate) fn read_only(
        directory: &RepositoryDirectory,
        store: DirectoryStore,
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
    pub(crate) fn store(&self) -> &DirectoryStore {
        &self.store
    }

    /// Returns what is remembered between runs.
    pub(crate) fn state(&self) -> &Arc<StateDatabase> {
        &self.state
    }

    /// Returns the threads that build trees and catalogs.
    pub(crate) fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Returns what ends the operations of this engine.
    pub fn cancellation(&self) -> &Cancellation {
        self.directory.cancellation()
    }

    /// Returns the registries that images are fetched from.
    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// Returns what the engine may use of the machine.
    pub(crate) fn resources(&self) -> Resources {
        self.resources
    }

    /// Returns what publishes revisions; `None` where nothing is published.
    pub(crate) fn publisher(&self) -> Option<&Publisher> {
        self.publisher.as_ref()
    }
}
