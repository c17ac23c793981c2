//! A conversion that changes nothing: what it would store goes to a directory that is gone afterwards.
//!
//! It does all that a conversion does, compression included, so what it counts is what a conversion costs, to the byte.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::operation::Operation;
use super::{ConvertError, ConvertOptions};
use crate::cancel::UnfinishedFiles;
use crate::catalog::CatalogReference;
use crate::directory::RepositoryDirectory;
use crate::engine::{Engine, EngineError, Resources};
use crate::image::Digest;
use crate::layout;
use crate::object::{ObjectHash, ObjectKind};
use crate::path::EntryPath;
use crate::progress::Progress;
use crate::publish::write_catalogs;
use crate::repository::{Repository, RepositoryError, Row};
use crate::revise::{self, Changes};
use crate::stage::{Outcome, Request};
use crate::store::{DirectoryStore, StoreError, WrittenObjects};

/// What a conversion would do.
#[derive(Debug)]
pub struct Rehearsal {
    /// What would become of the image.
    pub outcome: Outcome,
    /// The root file system that the image's name leads to now; `None` where it leads to none.
    pub before: Option<Row>,
    /// The root file system that it would lead to.
    pub after: Option<Row>,
    /// The head.
    pub head: Repository,
    /// The revision that the conversion would publish. Without `changes`, the head.
    pub next: Repository,
    /// Whether it would publish anything.
    pub changes: bool,
    /// Everything that would be stored, but for what goes with any revision: its tag database and the like.
    pub written: WrittenObjects,
    /// How many of the new objects are catalogs.
    pub catalogs: u64,
    /// The layers, from the lowest up.
    pub layers: Vec<LayerCost>,
    /// Where the new objects are, locked as long as this process lives.
    _directory: (UnfinishedFiles, File),
}

/// What a layer brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerCost {
    /// Its digest.
    pub digest: Digest,
    /// Whether it is published.
    pub is_published: bool,
    /// Its content that the repository has nowhere, and no lower layer of the image, in objects.
    pub new_objects: u64,
    /// The bytes of those objects.
    pub new_bytes: u64,
}

impl Rehearsal {
    /// Returns the layer that says what is at a path of the root file system, or that hides what was there: the highest
    /// that names it. What Apptainer needs and what an emptied directory held is of none.
    pub fn layer_of(&self, path: &EntryPath) -> Result<Option<Digest>, RepositoryError> {
        for layer in self.layers.iter().rev() {
            let inside = path.components().fold(layout::layer_root(layer.digest), |path, name| path.join(name));
            if self.next.get(&inside)?.is_some() {
                return Ok(Some(layer.digest));
            }
        }
        Ok(None)
    }
}

/// Finds out what converting an image would do, for one platform. The repository is only read.
pub fn rehearse(
    directory: &RepositoryDirectory,
    request: &Request,
    options: &ConvertOptions,
    resources: Resources,
    progress: &Arc<Progress>,
) -> Result<Rehearsal, ConvertError> {
    let _reported = directory.reporter().start(request.argument.to_string(), progress);
    let store = directory.store().map_err(EngineError::from)?;
    let failed = |source| StoreError::Io { action: "create a directory in", path: std::env::temp_dir(), source };
    delete_leftovers(&std::env::temp_dir());
    // It goes when this ends, however that is, or else with the next run.
    let unfinished = directory.cancellation().unfinished_files();
    let home = unfinished.make(|making| {
        let home = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir().map_err(failed)?.keep();
        making.record_created(&home);
        Ok::<_, StoreError>(home)
    })?;
    let alive = File::open(&home).and_then(|directory| directory.lock().map(|()| directory)).map_err(failed)?;
    let layered = unfinished.make(|_| store.layered(&home.join("storage")))?;
    let engine = Engine::read_only(
        directory,
        layered.clone(),
        directory.state_read_only().map_err(EngineError::from)?,
        resources,
    )?;
    let (stage, registries) = (options.stage(resources.memory), engine.registries().clone());
    let operation = Operation::start(&engine, stage, registries, options.publish)?;
    let staging = operation.stager.staging();
    let head = Repository::open(&store, directory.name())?;
    let staged = operation.stage(operation.stager.resolve(request)?, &head, progress)?.remove(0);
    let changes = Changes { images: std::slice::from_ref(&staged), ..Changes::default() };
    let (settings, now) = (directory.settings(), options.publish.now);
    let edits = engine.pool().install(|| revise::edits(&head, staging, settings, now, &changes));
    let edits = edits.map_err(ConvertError::Revise)?;
    let changes = !edits.is_empty();
    let mut next = head.clone();
    if changes {
        let (_, root): (_, CatalogReference) =
            engine.pool().install(|| write_catalogs(staging, settings, now, &head, edits))?;
        next = head.open_root(&layered, root);
    }
    staging.flush()?;
    let written = operation.written();
    let link = staged.outcome.place.link();
    let before = flat_of(&head, &link)?;
    let after = flat_of(&next, &link)?;
    let digests = staged.image.layers.iter().map(|layer| layer.digest);
    let layers = layer_costs(digests, &head, &next, &store, &layered)?;
    let storage = home.join("storage");
    let catalogs = new_catalogs(&storage).map_err(StoreError::io("list", &storage))?;
    let outcome = staged.outcome;
    Ok(Rehearsal {
        outcome,
        before,
        after,
        head,
        next,
        changes,
        written,
        catalogs,
        layers,
        _directory: (unfinished, alive),
    })
}

/// What the names of the directories begin with.
const DIRECTORY_PREFIX: &str = "strata-diff-";

/// Deletes the directories of runs that were killed, as far as they are this user's.
fn delete_leftovers(temporary: &Path) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().as_encoded_bytes().starts_with(DIRECTORY_PREFIX.as_bytes());
        if is_ours && File::open(entry.path()).is_ok_and(|directory| directory.try_lock().is_ok()) {
            // Whatever is in the way of that is in nobody's way here.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Returns the root file system that a public link leads to.
fn flat_of(repository: &Repository, link: &EntryPath) -> Result<Option<Row>, ConvertError> {
    match repository.follow(link) {
        Ok((path, _)) => Ok(repository.row(&path)?),
        Err(RepositoryError::Unresolved { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn layer_costs(
    digests: impl Iterator<Item = Digest>,
    head: &Repository,
    next: &Repository,
    store: &DirectoryStore,
    layered: &DirectoryStore,
) -> Result<Vec<LayerCost>, ConvertError> {
    let mut counted: HashSet<(ObjectHash, ObjectKind)> = HashSet::new();
    let mut costs = Vec::new();
    for digest in digests {
        let root = layout::layer_root(digest);
        let is_published = head.get(&root)?.is_some();
        let mut cost = LayerCost { digest, is_published, new_objects: 0, new_bytes: 0 };
        let row = if is_published { None } else { next.row(&root)? };
        let mut waiting: Vec<Row> = row.into_iter().collect();
        while let Some(row) = waiting.pop() {
            for object in row.entry.objects() {
                if counted.insert(object) && store.stored_size(object.0, object.1)?.is_none() {
                    cost.new_objects += 1;
                    cost.new_bytes += layered.size(object.0, object.1)?;
                }
            }
            if let Some(directory) = &row.directory {
                waiting.extend(next.rows(directory)?.into_iter().map(|named| named.row));
            }
        }
        costs.push(cost);
    }
    Ok(costs)
}

/// Counts the catalogs below a store's `data`.
fn new_catalogs(storage: &Path) -> io::Result<u64> {
    let mut count = 0;
    for directory in fs::read_dir(storage.join("data"))? {
        for file in fs::read_dir(directory?.path())? {
            count += u64::from(file?.file_name().as_encoded_bytes().ends_with(b"C"));
        }
    }
    Ok(count)
}
