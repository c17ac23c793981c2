//! What stays the same for all images of a run: where they go, and what is known of earlier ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rayon::ThreadPool;
use rsa::rand_core::CryptoRng;

use super::edits::Changes;
use super::kept::KeptLayers;
use super::{ConvertError, Options};
use crate::catalog::{StateDatabase, StoredTreeNote};
use crate::folder::RepositoryFolder;
use crate::index::ContentIndex;
use crate::layer::EntryPath;
use crate::manifest::Keys;
use crate::metadata::Timestamp;
use crate::object::ChunkSizes;
use crate::publish::{Publisher, Revision};
use crate::repository::Repository;
use crate::source::registry::Registries;
use crate::store::{DirectoryStore, LocalServer, Staging, Written};
use crate::threads;

/// A run of conversions into one repository.
pub(crate) struct Run {
    pub(super) folder: RepositoryFolder,
    pub(super) options: Options,
    pub(super) registries: Registries,
    pub(super) staging: Arc<Staging>,
    pub(super) index: ContentIndex,
    pub(super) state: Arc<StateDatabase>,
    pub(super) pool: ThreadPool,
    /// The head as it was opened last.
    head: Mutex<Option<Repository>>,
    /// Trees that were looked for among those stored earlier, and what was found.
    pub(super) noted: Mutex<HashMap<EntryPath, Option<StoredTreeNote>>>,
    /// Layers that earlier runs read; nothing is kept of a run that publishes nothing.
    pub(super) kept: Option<KeptLayers>,
    /// What publishing takes; nothing for a run that publishes nothing.
    publishing: Option<Publishing>,
}

struct Publishing {
    keys: Keys,
    server: Option<LocalServer>,
}

impl Run {
    /// Starts a run that may publish.
    pub(crate) fn open(
        folder: &RepositoryFolder,
        options: &Options,
        registries: &Registries,
    ) -> Result<Self, ConvertError> {
        if let Some(lack) = folder.settings().compression.lack() {
            tracing::info!("{lack}");
        }
        // Whatever is missing is missed before the work.
        let publishing = Publishing { keys: folder.keys()?, server: folder.local_server()? };
        let run = Self::over(folder, &folder.store()?, folder.state()?, options, registries)?;
        let form = format!("{} {:?}", folder.settings().compression, ChunkSizes::default());
        let kept = KeptLayers::open(folder.path().join("state/layers"), &form, &run.staging);
        Ok(Self { kept: Some(kept), publishing: Some(publishing), ..run })
    }

    /// Starts a run that stores what it makes in `store` and publishes nothing.
    pub(super) fn over(
        folder: &RepositoryFolder,
        store: &DirectoryStore,
        state: StateDatabase,
        options: &Options,
        registries: &Registries,
    ) -> Result<Self, ConvertError> {
        let state = Arc::new(state);
        Ok(Self {
            folder: folder.clone(),
            options: options.clone(),
            registries: registries.clone(),
            staging: Arc::new(Staging::start(store)?),
            index: ContentIndex::open(Arc::clone(&state))?,
            state,
            pool: threads::pool(options.threads)?,
            head: Mutex::default(),
            noted: Mutex::default(),
            kept: None,
            publishing: None,
        })
    }

    /// Returns what is remembered between runs.
    pub(crate) fn state(&self) -> &StateDatabase {
        &self.state
    }

    /// Returns the time of everything that strata itself makes.
    pub(crate) fn now(&self) -> Timestamp {
        self.options.now
    }

    /// Returns what was added to the store so far.
    pub(crate) fn written(&self) -> Written {
        self.staging.written()
    }

    /// Opens the head of the repository as it is now. Catalogs that were opened stay so.
    pub(crate) fn head(&self) -> Result<Repository, ConvertError> {
        let mut last = self.head.lock().expect("no thread panics while it opens a head");
        let head = match &*last {
            Some(last) => last.open_head()?,
            None => Repository::open(self.staging.store(), self.folder.name())?,
        };
        Ok(last.insert(head).clone())
    }

    /// Publishes changes on top of whatever the head is by then, as one revision; `None` where nothing changes.
    pub(crate) fn publish(
        &self,
        changes: &Changes<'_>,
        rng: &mut (impl CryptoRng + Send),
    ) -> Result<Option<Revision>, ConvertError> {
        let Publishing { keys, server } = self.publishing.as_ref().expect("this run was started to publish");
        let publisher = Publisher {
            staging: &self.staging,
            server: server.as_ref(),
            keys,
            settings: self.folder.settings(),
            now: self.options.now,
            wait: self.options.wait,
        };
        let known = self.head()?;
        Ok(self.pool.install(|| publisher.commit(rng, &known, |head| self.edits(head, changes)))?)
    }
}
