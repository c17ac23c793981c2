//! Rehearsal: a conversion without effect on the repository. New objects are stored in a temporary directory.
//!
//! A rehearsal performs all steps of a conversion, including compression. Therefore the number and size of new objects are exact.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::operation::Operation;
use super::{ConvertError, ConvertOptions};
use crate::cancel::UnfinishedFiles;
use crate::directory::RepositoryDirectory;
use crate::engine::{Engine, EngineError, Resources};
use crate::image::Digest;
use crate::layout;
use crate::metadata::Timestamp;
use crate::object::{ObjectHash, ObjectKind};
use crate::path::EntryPath;
use crate::progress::Progress;
use crate::publish::write_catalogs;
use crate::repository::{Repository, RepositoryError, Row};
use crate::revise::{self, Changes};
use crate::stage::{ImageOutcome, Request, StagedImage};
use crate::store::{
    DirectoryStore, LayeredStore, SharedWritableStore, Staging, Store, StoreError, StoreListing, WrittenObjects,
};

/// The result of a rehearsal. When it is dropped, the temporary directory with the new objects is deleted.
#[derive(Debug)]
pub struct Rehearsal {
    /// The outcome of the conversion.
    pub outcome: ImageOutcome,
    /// The root directory of the flat tree to which the image's name points now; `None` if the name is not published.
    pub before: Option<Row>,
    /// The root directory of the flat tree to which the image's name would point after the conversion.
    pub after: Option<Row>,
    /// The current head.
    pub head: Repository,
    /// The revision that the conversion would publish. If `changes` is false, this is the head.
    pub next: Repository,
    /// Whether the conversion would publish a revision.
    pub changes: bool,
    /// The objects that would be stored, except those that belong to every new revision, such as the tag database.
    pub written: WrittenObjects,
    /// Number of catalogs among the new objects.
    pub catalogs: u64,
    /// The layers, from the lowest to the topmost.
    pub layers: Vec<LayerCost>,
    /// The directory with the new objects, and its lock. The lock shows other processes that the directory is in use.
    _directory: (UnfinishedFiles, File),
}

/// The new content of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerCost {
    /// Its digest.
    pub digest: Digest,
    /// Whether it is published.
    pub is_published: bool,
    /// Number of its objects that neither the repository nor a lower layer of the image has.
    pub new_objects: u64,
    /// Total size of those objects in bytes.
    pub new_bytes: u64,
}

impl Rehearsal {
    /// Returns the digest of the topmost layer with an entry or whiteout at a path of the flat tree. Returns `None` for files that were
    /// added for Apptainer, and for entries below a directory that an opaque marker emptied.
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

/// Rehearses the conversion of an image for one platform. The repository is only read.
pub fn rehearse(
    directory: &RepositoryDirectory,
    request: &Request,
    options: &ConvertOptions,
    resources: Resources,
    progress: &Arc<Progress>,
) -> Result<Rehearsal, ConvertError> {
    let _reported = directory.reporter().start(request.argument.to_string(), progress);
    let store = directory.store().map_err(EngineError::from)?;
    let unfinished = directory.cancellation().unfinished_files();
    let (home, lock) = create_temporary_directory(&unfinished)?;
    let upper = unfinished.make(|_| DirectoryStore::create(&home.join("storage")))?;
    let upper = upper.with_reporter(directory.reporter()).with_cancellation(directory.cancellation());
    let layered: SharedWritableStore = LayeredStore::new(&upper, &store).into();
    let engine = Engine::read_only(
        directory,
        layered.clone(),
        directory.state_read_only().map_err(EngineError::from)?,
        resources,
    )?;
    let (stage, registries) = (options.stage(resources.memory), engine.registries().clone());
    let operation = Operation::start(&engine, stage, registries, options.publish)?;
    let staging = operation.stager.staging();
    let head = Repository::open(store.clone(), directory.name())?;
    let staged = operation.stage(operation.stager.resolve(request)?, &head, progress)?.remove(0);
    let next = next_revision(&engine, staging, &head, &staged, options.publish.now, &layered)?;
    let (changes, next) = (next.is_some(), next.unwrap_or_else(|| head.clone()));
    staging.flush()?;
    let written = operation.written();
    let link = staged.outcome.place.link();
    let before = flat_of(&head, &link)?;
    let after = flat_of(&next, &link)?;
    let digests = staged.image.layers.iter().map(|layer| layer.digest);
    let layers = layer_costs(digests, &head, &next, &store, &*layered)?;
    let catalogs = new_catalogs(&upper)?;
    let outcome = staged.outcome;
    let _directory = (unfinished, lock);
    Ok(Rehearsal { outcome, before, after, head, next, changes, written, catalogs, layers, _directory })
}

/// Writes the catalogs of the revision that would publish the image. Returns `None` if nothing would change.
fn next_revision(
    engine: &Engine,
    staging: &Staging,
    head: &Repository,
    staged: &StagedImage,
    now: Timestamp,
    layered: &SharedWritableStore,
) -> Result<Option<Repository>, ConvertError> {
    let settings = engine.settings();
    let changes = Changes { images: std::slice::from_ref(staged), ..Changes::default() };
    engine.pool().install(|| {
        let edits = revise::edits(head, staging, settings, now, &changes).map_err(ConvertError::Revise)?;
        if edits.is_empty() {
            return Ok(None);
        }
        let next = write_catalogs(staging, settings, now, head, edits)?;
        Ok(Some(head.open_root(layered.clone(), next.root)))
    })
}

/// Creates the directory for the new objects and locks it.
///
/// The directory is deleted when the rehearsal is dropped or a signal ends the process. After a crash, the next run deletes it.
fn create_temporary_directory(unfinished: &UnfinishedFiles) -> Result<(PathBuf, File), StoreError> {
    let failed = |source| StoreError::Io { action: "create a directory in", path: std::env::temp_dir(), source };
    delete_leftovers(&std::env::temp_dir());
    let home = unfinished.make(|recorder| {
        let home = tempfile::Builder::new().prefix(DIRECTORY_PREFIX).tempdir().map_err(failed)?.keep();
        recorder.record_created(&home);
        Ok::<_, StoreError>(home)
    })?;
    let lock = File::open(&home).and_then(|directory| directory.lock().map(|()| directory)).map_err(failed)?;
    Ok((home, lock))
}

/// Prefix of the names of the temporary directories.
const DIRECTORY_PREFIX: &str = "strata-diff-";

/// Deletes the temporary directories of killed runs of this user.
fn delete_leftovers(temporary: &Path) {
    for entry in fs::read_dir(temporary).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().as_encoded_bytes().starts_with(DIRECTORY_PREFIX.as_bytes());
        if is_ours && File::open(entry.path()).is_ok_and(|directory| directory.try_lock().is_ok()) {
            // Best effort: leftovers do not affect this run.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Returns the root directory of the flat tree to which a public link points.
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
    store: &dyn Store,
    layered: &dyn Store,
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
                    cost.new_bytes += layered.object_size(object.0, object.1)?;
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

/// Counts the catalogs in a store, by the suffix `C` of their names.
fn new_catalogs(store: &dyn StoreListing) -> Result<u64, StoreError> {
    let mut count = 0;
    for directory in 0..=255 {
        store.list(&format!("data/{directory:02x}"), &mut |file| count += u64::from(file.name.ends_with(b"C")))?;
    }
    Ok(count)
}
