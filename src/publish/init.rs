//! Creates repositories.

use std::path::Path;

use rsa::rand_core::CryptoRng;

use super::{MANIFEST, PublishError, PublishOptions, Publisher, REFLOG, WHITELIST};
use crate::cancel::{Cancellation, FileRecorder, UnfinishedFiles};
use crate::catalog::Editor;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::manifest::{MetaInfo, NewKeys, RepositoryManifest, Signer, Whitelist};
use crate::metadata::Timestamp;
use crate::object::ObjectKind;
use crate::observer::Reporter;
use crate::settings::Settings;
use crate::store::{DirectoryStore, Staging, StoreError};
use crate::threads;

const MASTER_REPLICA_FILE: &str = ".cvmfs_master_replica";

/// Seconds for which clients need not look for a new revision, as `cvmfs_server` sets it.
const DEFAULT_TTL: u32 = 240;

/// What a Stratum 1 server looks for before it copies a repository.
const MASTER_REPLICA: &str = "This file marks the repository as replication source, which other servers may copy.\n";

/// The first revision of a repository.
const FIRST_REVISION: u64 = 1;

/// Creates a repository that holds nothing, in a directory of its own.
///
/// The directory appears complete or not at all: it is made beside `path` and renamed last. Storage and keys that lie
/// elsewhere are made first. Nothing of all this is left when it fails or the process is interrupted.
pub fn create_repository(
    path: &Path,
    settings: Settings,
    now: Timestamp,
    started: Timestamp,
    rng: impl CryptoRng + Send + 'static,
    reporter: &Reporter,
    cancellation: &Cancellation,
) -> Result<RepositoryDirectory, PublishError> {
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
    let directory = unfinished.make(|making| make_directory(making, path, settings))?;
    let directory = directory.with_reporter(reporter).with_cancellation(cancellation);
    // One thread does: there is nothing to share.
    threads::pool(1, reporter)?.install(|| publish_nothing(&directory, &unfinished, now, started, rng))?;
    let built = directory.path().to_owned();
    unfinished.finish(FIRST_REVISION, || match std::fs::rename(&built, path) {
        // The system may report an error although it did it.
        Err(_) if !built.exists() && path.join(Settings::FILE_NAME).is_file() => Ok(()),
        renamed => renamed.map_err(|source| DirectoryError::Io { action: "create", path: path.to_owned(), source }),
    })?;
    Ok(directory.at(path))
}

/// Makes a directory with its settings beside `path`.
fn make_directory(
    making: &mut FileRecorder<'_>,
    path: &Path,
    settings: Settings,
) -> Result<RepositoryDirectory, DirectoryError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| DirectoryError::Io { action, path, source }
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    making.record_missing_parents(path);
    std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
    let building = tempfile::Builder::new()
        .prefix(".strata-init-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(failed("create a directory in", parent))?;
    let building = building.keep();
    making.record_created(&building);
    RepositoryDirectory::create(&building, settings)
}

/// Makes keys, whitelist and the first revision of a repository.
///
/// `started` is the real time, for the certificate and the whitelist, which expire.
fn publish_nothing(
    directory: &RepositoryDirectory,
    unfinished: &UnfinishedFiles,
    now: Timestamp,
    started: Timestamp,
    mut rng: impl CryptoRng + Send + 'static,
) -> Result<(), PublishError> {
    let settings = directory.settings();
    let keys = NewKeys::generate(&directory.keys_path(), directory.name(), started, &mut rng)?;
    let keys = unfinished.make(|making| {
        making.record_new(&directory.keys_path());
        keys.paths().into_iter().for_each(|path| making.record_new(path));
        // Each key is on disk before the next is written.
        directory.cancellation().syncing(|| keys.write())
    })?;
    let storage = directory.storage_path();
    let store = unfinished.make(|making| {
        making.record_missing_parents(&storage);
        making.record_new(&storage);
        let names = ["data", WHITELIST, MASTER_REPLICA_FILE, REFLOG, MANIFEST];
        names.into_iter().for_each(|name| making.record_new(&storage.join(name)));
        DirectoryStore::create(&storage)
    })?;
    let whitelist = Whitelist::new(directory.name().clone(), vec![keys.certificate().fingerprint()], started)?;
    let signer = Signer::new(keys, rng);
    let whitelist = signer.sign_whitelist(&whitelist)?;
    let staging =
        Staging::start(&store.with_reporter(directory.reporter()).with_cancellation(directory.cancellation()))?;
    let files: [(&str, &[u8]); 2] = [(WHITELIST, &whitelist), (MASTER_REPLICA_FILE, MASTER_REPLICA.as_bytes())];
    all_is_well(staging.replace_files(&files, None)?)?;
    let root = Editor::create(&staging, settings.compression, now)?.write(FIRST_REVISION)?;
    let meta_info = MetaInfo::default().write();
    let meta_info = staging.put_database(ObjectKind::MetaInfo, &meta_info)?;
    let manifest = RepositoryManifest {
        root_catalog: root.hash,
        catalog_size: Some(root.size),
        ttl: DEFAULT_TTL,
        revision: FIRST_REVISION,
        garbage_collectable: true,
        alternative_path: false,
        name: directory.name().clone(),
        // Filled in when the certificate is stored.
        certificate: root.hash,
        history: None,
        published: Some(now.seconds.max(1)),
        meta_info: Some(meta_info),
        reflog: None,
    };
    let publisher = Publisher { settings: settings.clone(), signer, server: None };
    let options = PublishOptions { now, ..PublishOptions::default() };
    // The directory is not visible to clients yet.
    all_is_well(publisher.replace_manifest(&staging, &options, manifest, root, None)?)
}

/// Takes what failed after files were replaced for an error, where no client can see them.
fn all_is_well(late: Vec<StoreError>) -> Result<(), PublishError> {
    late.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}
