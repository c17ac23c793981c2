//! What stays the same for all images of a run: where they go, and what is known of earlier ones.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use rayon::ThreadPool;
use rsa::rand_core::CryptoRng;

use super::edits::Changes;
use super::kept::KeptLayers;
use super::{ConvertError, Options};
use crate::directory::RepositoryDirectory;
use crate::manifest::Keys;
use crate::message::causes;
use crate::metadata::Timestamp;
use crate::object::{ChunkSizes, ObjectHash};
use crate::path::EntryPath;
use crate::publish::{Edit, Publication, Publisher, repair_front};
use crate::registry::Registries;
use crate::repository::Repository;
use crate::state::ContentIndex;
use crate::state::{StateDatabase, StoredTreeNote};
use crate::store::{DirectoryStore, LocalServer, Staging, Written};
use crate::threads;

/// A run of conversions into one repository.
pub(crate) struct Run {
    pub(super) directory: RepositoryDirectory,
    pub(super) options: Options,
    pub(super) registries: Registries,
    pub(super) staging: Arc<Staging>,
    pub(super) index: ContentIndex,
    pub(super) state: Arc<StateDatabase>,
    /// The epoch of the directories of objects that holds for this run; nothing where nothing is known of them.
    pub(super) epoch: Option<i64>,
    pub(super) pool: ThreadPool,
    /// The head as it was opened last.
    head: Mutex<Option<Repository>>,
    /// Trees that were looked for among those stored earlier, and what was found.
    pub(super) noted: Mutex<HashMap<EntryPath, Option<StoredTreeNote>>>,
    /// Published trees that this run has looked at and found whole, by path and root catalog.
    pub(super) whole: Mutex<HashSet<(EntryPath, ObjectHash)>>,
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
        directory: &RepositoryDirectory,
        options: &Options,
        registries: &Registries,
    ) -> Result<Self, ConvertError> {
        if let Some(lack) = directory.settings().compression.lack() {
            tracing::info!("{lack}");
        }
        // By the real time, as publications may be dated otherwise.
        if let Some(warning) = directory.whitelist_warning(Timestamp::now()) {
            tracing::warn!("{warning}");
        }
        // Whatever is missing is missed before the work.
        let publishing = Publishing { keys: directory.keys()?, server: directory.local_server()? };
        let mut run = Self::over(directory, &directory.store()?, directory.state()?, options, registries)?;
        let form = format!("{} {:?}", directory.settings().compression, ChunkSizes::default());
        let kept = KeptLayers::open(directory.path().join("state/layers"), &form, &run.staging);
        run.kept = Some(kept);
        // Without them the head cannot be read, and no revision is sound.
        repair_front(&run.staging, &publishing.keys)?;
        run.publishing = Some(publishing);
        Ok(run)
    }

    /// Starts a run that stores what it makes in `store` and publishes nothing.
    pub(super) fn over(
        directory: &RepositoryDirectory,
        store: &DirectoryStore,
        state: StateDatabase,
        options: &Options,
        registries: &Registries,
    ) -> Result<Self, ConvertError> {
        let (state, staging) = (Arc::new(state), Arc::new(Staging::start(store)?));
        Ok(Self {
            directory: directory.clone(),
            options: options.clone(),
            registries: registries.clone(),
            index: ContentIndex::open(Arc::clone(&state))?,
            epoch: state.begin_epoch(&staging.marks().to_bytes())?,
            staging,
            state,
            pool: threads::pool(options.threads)?,
            head: Mutex::default(),
            noted: Mutex::default(),
            whole: Mutex::default(),
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
            None => Repository::open(self.staging.store(), self.directory.name())?,
        };
        Ok(last.insert(head).clone())
    }

    /// Publishes changes on top of whatever the head is by then, as one revision; `None` where nothing changes.
    pub(crate) fn publish(
        &self,
        changes: &Changes<'_>,
        rng: &mut (impl CryptoRng + Send),
    ) -> Result<Option<Publication>, ConvertError> {
        let Publishing { keys, server } = self.publishing.as_ref().expect("this run was started to publish");
        let publisher = Publisher {
            staging: &self.staging,
            server: server.as_ref(),
            keys,
            settings: self.directory.settings(),
            now: self.options.now,
            wait: self.options.wait,
            accept_clock: self.options.accept_clock,
        };
        let known = self.head()?;
        let mut trees = Vec::new();
        let prepare = |head: &Repository| {
            let edits = self.edits(head, changes)?;
            trees.extend(edits.iter().filter_map(|(path, edit)| match edit {
                Edit::Tree(tree) => Some((path.to_string(), tree.reference.hash)),
                _ => None,
            }));
            Ok::<_, ConvertError>(edits)
        };
        let publication = self.pool.install(|| publisher.commit(rng, &known, prepare))?;
        if publication.is_none() {
            // What was lost and is stored again changes nothing of the head.
            self.staging.flush()?;
        }
        // The revision is out by now, so this is no reason to fail.
        if let (Some(_), Err(error)) = (&publication, self.note_whole(trees)) {
            tracing::warn!("{}", causes(&error));
        }
        Ok(publication)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A run that only rehearses leaves nothing, and of one that panicked nothing is believed.
        if self.publishing.is_some() && !std::thread::panicking() {
            let marks = self.staging.final_marks().map(|marks| marks.to_bytes());
            if let Err(error) = self.state.end_epoch(marks.as_deref()) {
                tracing::debug!("{}", causes(&error));
            }
        }
    }
}
