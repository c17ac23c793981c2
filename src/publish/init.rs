//! Creates repositories.

use std::path::Path;

use super::{LockedCommitter, MANIFEST, PublishError, REFLOG, WHITELIST};
use crate::cancel::{Cancellation, FileRecorder, UnfinishedFiles};
use crate::catalog::{CatalogReference, Editor};
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::manifest::{Keys, MetaInfo, NewKeys, RepositoryManifest, RepositoryName, Whitelist};
use crate::metadata::Timestamp;
use crate::object::{HashAlgorithm, ObjectHash, ObjectKind};
use crate::observer::Reporter;
use crate::settings::Settings;
use crate::store::{DirectoryStore, NewFile, Staging, StoreError};
use crate::threads;

const MASTER_REPLICA_FILE: &str = ".cvmfs_master_replica";

/// Seconds for which clients need not check for a new revision. The same value as that of `cvmfs_server`.
const DEFAULT_TTL: u32 = 240;

/// Content of the file that must exist before a Stratum 1 server replicates a repository.
// Replicas test only that the file exists. It is not empty because one storage backend of CVMFS, Azurite, refuses empty
// files.
const MASTER_REPLICA: &str = "This file marks the repository as replication source, which other servers may copy.\n";

/// Number of the first revision of a repository.
const FIRST_REVISION: u64 = 1;

/// The properties of a repository to create.
#[derive(Debug, Clone)]
pub struct NewRepository {
    /// Its settings.
    pub settings: Settings,
    /// The hash algorithm of the names of its objects.
    pub algorithm: HashAlgorithm,
    /// Time of the first revision.
    pub now: Timestamp,
    /// The actual time. It is used for the certificate and the whitelist, which expire.
    pub started: Timestamp,
}

impl NewRepository {
    /// Returns a repository of this name with default settings, which is created now.
    pub fn new(name: RepositoryName) -> Self {
        let now = Timestamp::now();
        Self { settings: Settings::new(name), algorithm: HashAlgorithm::default(), now, started: now }
    }
}

/// Creates an empty repository in a new directory.
///
/// The directory appears complete or not at all: it is created in the same parent directory as `path` and renamed last. Storage and
/// keys outside the directory are created first. After an error or a signal that ends the process, all created files are deleted.
pub fn create_repository(
    path: &Path,
    new: NewRepository,
    reporter: &Reporter,
    cancellation: &Cancellation,
) -> Result<RepositoryDirectory, PublishError> {
    let (directory, unfinished) = build_repository(path, new, reporter, cancellation)?;
    let built = directory.path().to_owned();
    unfinished.finish(FIRST_REVISION, || move_into_place(&built, path))?;
    Ok(directory.at(path))
}

/// Creates a repository like [`create_repository`], and also returns a guard. When the guard is dropped or the process is
/// interrupted, the repository is deleted, unless another revision was published in it.
pub fn create_provisional_repository(
    path: &Path,
    new: NewRepository,
    reporter: &Reporter,
    cancellation: &Cancellation,
) -> Result<(RepositoryDirectory, UnfinishedFiles), PublishError> {
    let (directory, unfinished) = build_repository(path, new, reporter, cancellation)?;
    let (built, directory) = (directory.path().to_owned(), directory.at(path));
    let manifest = DirectoryStore::at(&directory.storage_path()).path(MANIFEST);
    unfinished.finish_provisionally(path, &manifest, || move_into_place(&built, path))?;
    Ok((directory, unfinished))
}

/// Renames the directory in which a repository was built.
fn move_into_place(built: &Path, path: &Path) -> Result<(), DirectoryError> {
    match std::fs::rename(built, path) {
        // The system may report an error although it has renamed the directory.
        Err(_) if !built.exists() && path.join(Settings::FILE_NAME).is_file() => Ok(()),
        renamed => renamed.map_err(|source| DirectoryError::Io { action: "create", path: path.to_owned(), source }),
    }
}

/// Builds a repository in a temporary directory beside `path`.
fn build_repository(
    path: &Path,
    new: NewRepository,
    reporter: &Reporter,
    cancellation: &Cancellation,
) -> Result<(RepositoryDirectory, UnfinishedFiles), PublishError> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(DirectoryError::Exists(path.to_owned()).into());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(DirectoryError::Exists(path.to_owned()).into());
        }
        Err(source) => return Err(DirectoryError::Io { action: "list", path: path.to_owned(), source }.into()),
    }
    let unfinished = cancellation.unfinished_files();
    let directory = unfinished.make(|recorder| create_directory(recorder, path, new.settings.clone()))?;
    let directory = directory.with_reporter(reporter).with_cancellation(cancellation);
    // One thread is enough for an empty repository.
    threads::pool(1, reporter)?.install(|| publish_first_revision(&directory, &unfinished, &new))?;
    Ok((directory, unfinished))
}

/// Creates a directory with the settings in the same parent directory as `path`.
fn create_directory(
    recorder: &mut FileRecorder<'_>,
    path: &Path,
    settings: Settings,
) -> Result<RepositoryDirectory, DirectoryError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| DirectoryError::Io { action, path, source }
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    recorder.record_missing_parents(path);
    std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
    let building = tempfile::Builder::new()
        .prefix(".strata-init-")
        // `tempfile` creates directories with mode 0700, which a web server cannot enter.
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(failed("create a directory in", parent))?;
    let building = building.keep();
    recorder.record_created(&building);
    RepositoryDirectory::create(&building, settings)
}

/// Creates keys, whitelist and the first, empty revision of a repository.
fn publish_first_revision(
    directory: &RepositoryDirectory,
    unfinished: &UnfinishedFiles,
    new: &NewRepository,
) -> Result<(), PublishError> {
    let NewRepository { settings, algorithm, now, started } = new;
    let (algorithm, now, started) = (*algorithm, *now, *started);
    // Generated before the step that an interruption waits for, because it takes seconds.
    let keys = NewKeys::generate(&directory.keys_path(), directory.name(), started)?;
    let keys = write_keys(directory, unfinished, keys)?;
    let store = create_store(directory, unfinished)?;
    let whitelist = Whitelist::new(directory.name().clone(), vec![keys.certificate().fingerprint(algorithm)], started)?;
    let whitelist = keys.sign_whitelist(&whitelist)?;
    let store = store.with_reporter(directory.reporter()).with_cancellation(directory.cancellation());
    let staging = Staging::start(&store)?.with_algorithm(algorithm);
    let files = [NewFile::new(WHITELIST, &whitelist), NewFile::new(MASTER_REPLICA_FILE, MASTER_REPLICA.as_bytes())];
    fail_on_late_errors(staging.replace_files(&files, None)?)?;
    let root = Editor::create(&staging, settings.compression, now)?.write(FIRST_REVISION)?;
    let meta_info = staging.put_database(ObjectKind::MetaInfo, &MetaInfo::default().write())?;
    let manifest = first_manifest(directory.name(), root, meta_info, now);
    let committer = LockedCommitter { settings: settings.clone(), keys, server: None };
    fail_on_late_errors(committer.replace_manifest(&staging, now, manifest, root, None)?)
}

fn write_keys(
    directory: &RepositoryDirectory,
    unfinished: &UnfinishedFiles,
    keys: NewKeys,
) -> Result<Keys, PublishError> {
    Ok(unfinished.make(|recorder| {
        recorder.record_new(&directory.keys_path());
        keys.paths().into_iter().for_each(|path| recorder.record_new(path));
        // Each key is on disk before the next is written.
        directory.cancellation().syncing(|| keys.write())
    })?)
}

fn create_store(directory: &RepositoryDirectory, unfinished: &UnfinishedFiles) -> Result<DirectoryStore, PublishError> {
    let storage = directory.storage_path();
    let store = DirectoryStore::at(&storage);
    // What is left of a repository without its objects belongs to that repository.
    if let Some(name) = [MANIFEST, REFLOG].into_iter().find(|name| store.path(name).exists()) {
        return Err(DirectoryError::Exists(store.path(name)).into());
    }
    Ok(unfinished.make(|recorder| {
        recorder.record_missing_parents(&storage);
        recorder.record_new(&storage);
        let names = ["data", WHITELIST, MASTER_REPLICA_FILE, REFLOG, MANIFEST];
        names.into_iter().for_each(|name| recorder.record_new(&store.path(name)));
        DirectoryStore::create(&storage)
    })?)
}

/// Returns the manifest of the first revision, without the objects that [`LockedCommitter::replace_manifest`] stores.
fn first_manifest(
    name: &RepositoryName,
    root: CatalogReference,
    meta_info: ObjectHash,
    now: Timestamp,
) -> RepositoryManifest {
    RepositoryManifest {
        root_catalog: root.hash,
        catalog_size: Some(root.size),
        ttl: DEFAULT_TTL,
        revision: FIRST_REVISION,
        // Without it, replicas fail once an old root catalog is deleted.
        garbage_collectable: true,
        alternative_path: false,
        name: name.clone(),
        // A placeholder: `replace_manifest` stores the certificate and sets its hash.
        certificate: root.hash,
        history: None,
        // Clients use a cached manifest offline only if its time is above 0.
        published: Some(now.seconds.max(1)),
        meta_info: Some(meta_info),
        reflog: None,
    }
}

/// Fails with the first error that occurred after files were replaced. No client can see the files of a new repository yet, so
/// that any error is fatal.
fn fail_on_late_errors(late_errors: Vec<StoreError>) -> Result<(), PublishError> {
    late_errors.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}
