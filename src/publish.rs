//! Makes a new revision of a repository, all of it or nothing.
//!
//! Everything that a revision consists of lies in the store before its manifest does, and the manifest is one small file
//! that is replaced in one step. Only that last stretch is locked: whoever comes second sees the first one's revision and
//! makes the changes on top of it.

use std::path::Path;
use std::time::{Duration, Instant};

use rsa::rand_core::CryptoRng;

use crate::allocator;
use crate::catalog::{
    BuildError, CatalogEntry, CatalogReference, Editor, HistoryError, ReferenceKind, StoredTree, TaggedRevision,
    next_history, next_reflog,
};
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::manifest::letter::SignError;
use crate::manifest::{Fingerprint, KeyError, Keys, MetaInfo, NewKeys, RepositoryManifest, Whitelist, WhitelistError};
use crate::metadata::{Metadata, Timestamp};
use crate::object::{Compression, Content, Encoder, ObjectHash, ObjectKind, SizeLimit};
use crate::path::EntryPath;
use crate::repository::{REFLOG_LIMIT, Repository, RepositoryError};
use crate::settings::Settings;
use crate::span::span;
use crate::store::{DirectoryStore, LocalServer, Making, ServerLock, Staging, StoreError, Unfinished, syncing};
use crate::threads::{self, ThreadsError};

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store failed, or another publisher holds it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The head cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A catalog could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The tag database or reflog could not be made.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The manifest could not be signed.
    #[error("cannot sign the manifest")]
    Sign(#[from] SignError),
    /// The keys could not be made or used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The whitelist could not be made.
    #[error(transparent)]
    Whitelist(#[from] WhitelistError),
    /// The directory could not be made.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Clients would refuse what is signed with these keys.
    #[error(
        "clients would refuse a manifest that is signed with this key: '{WHITELIST}' does not list its certificate {0}"
    )]
    NotListed(Fingerprint),
    /// There is no whitelist at all.
    #[error("there is no '{WHITELIST}', without which clients refuse the repository")]
    NoWhitelist,
    /// The time would stay in the repository for good: no later revision may have an earlier one.
    #[error(
        "the clock says {now}, more than a year after the last revision, which is of {last}: with --accept-clock it is published \
         all the same"
    )]
    Clock {
        /// What the clock says.
        now: Timestamp,
        /// When the last revision was published.
        last: Timestamp,
    },
    /// The machine starts no threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// An object went away while the run relied on it.
    #[error("object {0} was deleted while this run relied on it; run it again")]
    Vanished(ObjectHash),
    /// What to publish could not be decided.
    #[error("cannot prepare the revision")]
    Prepare(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One change to the head, at a path.
#[derive(Debug, Clone)]
pub enum Edit {
    /// The directory is a nested catalog; made if need be.
    Catalog,
    /// A tree whose catalogs are stored.
    Tree(Box<StoredTree>),
    /// A small file of strata's own, mode 0644.
    File {
        /// Its size in bytes.
        size: u64,
        /// Its objects.
        content: Content,
    },
    /// A symbolic link, with its target.
    Symlink(Vec<u8>),
    /// A symbolic link whose target clients expand.
    VariantLink(Vec<u8>),
    /// Whatever is there goes.
    Remove,
}

/// A revision that was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    /// Its number.
    pub number: u64,
    /// Its root catalog.
    pub root: CatalogReference,
}

/// A revision that clients see, also if a later step failed.
#[derive(Debug)]
#[must_use = "what failed afterwards has to be told"]
pub struct Publication {
    /// The revision.
    pub revision: Revision,
    /// What failed once it was out.
    pub late: Vec<StoreError>,
}

/// Something failed after revisions were published.
///
/// It is told apart from errors that mean that nothing was published, so it must stay visible in the chain of causes: it is
/// wrapped as a source, never transparently.
#[derive(Debug, thiserror::Error)]
#[error("{published}, but a later step failed")]
pub struct AfterPublication {
    published: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl AfterPublication {
    /// Names the revisions, of which there is at least one, and what failed.
    pub fn new(
        revisions: impl IntoIterator<Item = u64>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let numbers: Vec<String> = revisions.into_iter().map(|number| number.to_string()).collect();
        let published = match numbers.as_slice() {
            [number] => format!("revision {number} is published"),
            numbers => format!("revisions {} are published", numbers.join(", ")),
        };
        Self { published, source: source.into() }
    }
}

/// Publishes to one repository.
pub struct Publisher<'a> {
    /// Where new objects are, which must be of this repository's store.
    pub staging: &'a Staging,
    /// The `cvmfs_server` that manages the repository, too.
    pub server: Option<&'a LocalServer>,
    /// What signs.
    pub keys: &'a Keys,
    /// What the repository is set to.
    pub settings: &'a Settings,
    /// The time of everything that strata itself makes.
    pub now: Timestamp,
    /// How long to wait for another publisher.
    pub wait: Duration,
    /// Whether to publish although `now` is more than a year after the last revision.
    pub accept_clock: bool,
}

impl Publisher<'_> {
    /// Publishes the edits that `prepare` returns for the head as it is then, as one revision, in their order.
    ///
    /// `known` is any revision of the repository, with what was read of it.
    ///
    /// Nothing is published and `None` returned where there are none. While `prepare` runs no other publisher can
    /// change the head.
    pub fn commit<E: std::error::Error + Send + Sync + 'static>(
        &self,
        rng: &mut impl CryptoRng,
        known: &Repository,
        prepare: impl FnOnce(&Repository) -> Result<Vec<(EntryPath, Edit)>, E>,
    ) -> Result<Option<Publication>, PublishError> {
        let _publishing = span!("publish");
        let store = self.staging.store();
        let start = Instant::now();
        let _lock = store.lock(self.wait)?;
        let left = self.wait.saturating_sub(start.elapsed());
        let server_lock = self.server.map(|server| server.lock(left)).transpose()?;
        self.check_whitelist(store)?;
        // The trees of what is to be published were freed, and the catalogs of the head come.
        allocator::give_back();
        let head = known.open_head()?;
        check_clock(&head, self.now, self.accept_clock)?;
        let edits = prepare(&head).map_err(|error| PublishError::Prepare(Box::new(error)))?;
        if edits.is_empty() {
            return Ok(None);
        }
        let (number, root) = write_catalogs(self.staging, self.settings, self.now, &head, edits)?;
        let manifest = RepositoryManifest {
            root_catalog: root.hash,
            catalog_size: Some(root.size),
            revision: number,
            published: Some(self.now.seconds.max(head.manifest().published.unwrap_or(1)).max(1)),
            ..head.manifest().clone()
        };
        let mut late = self.put_in_front(manifest, root, Some(number), rng)?;
        late.extend(server_lock.map(ServerLock::release).unwrap_or_default());
        Ok(Some(Publication { revision: Revision { number, root }, late }))
    }

    /// Makes sure that clients will take the signature of this publisher's key.
    ///
    /// A whitelist that has expired is no reason to publish nothing: whoever has the master key renews it. Runs warn of that
    /// when they begin.
    fn check_whitelist(&self, store: &DirectoryStore) -> Result<(), PublishError> {
        let bytes = store.read_file(WHITELIST)?.ok_or(PublishError::NoWhitelist)?;
        let signed = Whitelist::parse(&bytes)?;
        signed.verify_signature(std::slice::from_ref(self.keys.master_public_key()))?;
        let fingerprint = self.keys.certificate().fingerprint();
        if !signed.whitelist.fingerprints().contains(&fingerprint) {
            return Err(PublishError::NotListed(fingerprint));
        }
        Ok(())
    }

    /// Stores what goes with a root catalog, makes everything durable, and replaces the manifest. From then on the revision
    /// is out, so that what fails is no error any more: it is returned.
    fn put_in_front(
        &self,
        mut manifest: RepositoryManifest,
        root: CatalogReference,
        seen_as: Option<u64>,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<StoreError>, PublishError> {
        let store = self.staging.store();
        let put = |kind, bytes: &[u8]| self.staging.put_database(kind, bytes);
        manifest.certificate = put(ObjectKind::Certificate, self.keys.certificate().pem())?;
        if let Some(hash) = manifest.meta_info {
            let read = self.staging.read_decoded(hash, ObjectKind::MetaInfo, META_INFO_LIMIT);
            read.map_err(RepositoryError::of_front("meta info"))?;
        }
        let read = |hash| {
            let bytes = store.read_decoded(hash, ObjectKind::History, SizeLimit::of_database(None));
            Ok::<_, RepositoryError>((bytes.map_err(RepositoryError::of_front("tag database"))?, hash))
        };
        let before = manifest.history.map(read).transpose()?;
        let before = before.as_ref().map(|(bytes, hash)| (bytes.as_slice(), *hash));
        let timestamp = self.now.seconds;
        let head = TaggedRevision { root, revision: manifest.revision, timestamp };
        let history = put(ObjectKind::History, &next_history(before, &manifest.name, head)?)?;
        manifest.history = Some(history);
        let mut references = vec![
            (root.hash, ReferenceKind::Catalog),
            (manifest.certificate, ReferenceKind::Certificate),
            (history, ReferenceKind::History),
        ];
        references.extend(manifest.meta_info.map(|hash| (hash, ReferenceKind::MetaInfo)));
        let reflog = store.read_file_of_up_to(REFLOG_LIMIT, REFLOG)?;
        let reflog = next_reflog(reflog.as_deref(), &manifest.name, &references, timestamp)?;
        manifest.reflog = Some(ObjectHash::of(&reflog));
        let signed = self.keys.sign_manifest(&manifest, rng)?;
        self.staging.flush()?;
        if let Some(hash) = self.staging.first_vanished()? {
            return Err(PublishError::Vanished(hash));
        }
        store.sync()?;
        let mut late = self.staging.replace_files(&[(REFLOG, &reflog), (MANIFEST, &signed)], seen_as)?;
        if let Some(Err(error)) = self.server.map(|server| server.write_reflog_checksum(ObjectHash::of(&reflog))) {
            tracing::warn!("cvmfs_server publishes nothing more before 'cvmfs_server check -r'");
            late.push(error);
        }
        Ok(late)
    }
}

/// Refuses a clock that is probably wrong.
pub(crate) fn check_clock(head: &Repository, now: Timestamp, is_accepted: bool) -> Result<(), PublishError> {
    let last = head.manifest().published.map(|seconds| Timestamp { seconds, nanoseconds: 0 });
    match last.filter(|last| !is_accepted && now.seconds.saturating_sub(last.seconds) > YEAR) {
        Some(last) => Err(PublishError::Clock { now, last }),
        None => Ok(()),
    }
}

/// Seconds of the longest year.
const YEAR: i64 = 366 * 24 * 3600;

/// Stores the certificate and the meta info of the head again, where they are missing or damaged and their bytes are known: those
/// of the keys, and those that every new repository has.
pub(crate) fn repair_front(staging: &Staging, keys: &Keys) -> Result<(), StoreError> {
    let store = staging.store();
    let bytes = store.read_file(MANIFEST)?.unwrap_or_default();
    // The head that cannot be read is told when it is opened.
    let Ok(manifest) = RepositoryManifest::parse(&bytes).map(|signed| signed.manifest) else { return Ok(()) };
    let meta_info = MetaInfo::default().write();
    for (hash, kind, bytes) in [
        (Some(manifest.certificate), ObjectKind::Certificate, keys.certificate().pem()),
        (manifest.meta_info, ObjectKind::MetaInfo, meta_info.as_slice()),
    ] {
        let mut encoder = Encoder::new(Compression::Exact);
        let stored = encoder.encode(bytes);
        if hash == Some(ObjectHash::of(stored)) && !store.is_intact(ObjectHash::of(stored), kind) {
            tracing::warn!("'{}' is missing or damaged, and is written again", ObjectHash::of(stored).path(kind));
            staging.put_stored(kind, stored)?;
            staging.flush()?;
        }
    }
    Ok(())
}

/// Makes the catalogs of a revision that has the edits, in their order, on top of `head`. Returns its number and root.
///
/// Nobody sees it: a manifest would have to name it.
pub(crate) fn write_catalogs(
    staging: &Staging,
    settings: &Settings,
    now: Timestamp,
    head: &Repository,
    edits: Vec<(EntryPath, Edit)>,
) -> Result<(u64, CatalogReference), PublishError> {
    let take = |path: &EntryPath, reference| head.take_catalog(path, reference);
    let mut editor = Editor::open(staging, settings.compression, head.root_reference(), &take, now)?;
    for (path, edit) in edits {
        apply(&mut editor, &path, edit, now)?;
    }
    let number = head.manifest().revision + 1;
    Ok((number, editor.write(number)?))
}

fn apply(editor: &mut Editor<'_>, path: &EntryPath, edit: Edit, now: Timestamp) -> Result<(), PublishError> {
    let metadata = |mode| Metadata { mode, uid: 0, gid: 0, mtime: now, xattrs: None };
    match edit {
        Edit::Catalog => editor.make_catalog(path)?,
        Edit::Tree(tree) => editor.put_tree(path, &tree)?,
        Edit::File { size, content } => editor.put(path, CatalogEntry::of_file(&metadata(0o644), size, &content))?,
        Edit::Symlink(target) => editor.put(path, CatalogEntry::of_symlink(&metadata(0o777), &target))?,
        Edit::VariantLink(target) => editor.put(path, CatalogEntry::of_variant_link(&metadata(0o777), &target))?,
        Edit::Remove => drop(editor.remove(path)?),
    }
    Ok(())
}

const MANIFEST: &str = ".cvmfspublished";
const REFLOG: &str = ".cvmfsreflog";
/// No meta info is read that unpacks to more: it is a small document.
const META_INFO_LIMIT: SizeLimit = SizeLimit::of(16 << 20);
const MASTER_REPLICA_FILE: &str = ".cvmfs_master_replica";
const WHITELIST: &str = ".cvmfswhitelist";

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
    rng: &mut (impl CryptoRng + Send),
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
    let unfinished = Unfinished::start();
    let directory = unfinished.make(|making| make_directory(making, path, settings))?;
    // One thread does: there is nothing to share.
    threads::pool(1)?.install(|| publish_nothing(&directory, &unfinished, now, started, rng))?;
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
    making: &mut Making<'_>,
    path: &Path,
    settings: Settings,
) -> Result<RepositoryDirectory, DirectoryError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| DirectoryError::Io { action, path, source }
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    making.directories_above(path);
    std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
    let building = tempfile::Builder::new()
        .prefix(".strata-init-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(parent)
        .map_err(failed("create a directory in", parent))?;
    let building = building.keep();
    making.made(&building);
    RepositoryDirectory::create(&building, settings)
}

/// Makes keys, whitelist and the first revision of a repository.
///
/// `started` is the real time, for the certificate and the whitelist, which expire.
fn publish_nothing(
    directory: &RepositoryDirectory,
    unfinished: &Unfinished,
    now: Timestamp,
    started: Timestamp,
    rng: &mut impl CryptoRng,
) -> Result<(), PublishError> {
    let settings = directory.settings();
    let keys = NewKeys::generate(&directory.keys_path(), directory.name(), started, rng)?;
    let keys = unfinished.make(|making| {
        making.whole(&directory.keys_path());
        keys.paths().into_iter().for_each(|path| making.whole(path));
        // Each key is on disk before the next is written.
        syncing(|| keys.write())
    })?;
    let storage = directory.storage_path();
    let store = unfinished.make(|making| {
        making.directories_above(&storage);
        making.whole(&storage);
        let names = ["data", WHITELIST, MASTER_REPLICA_FILE, REFLOG, MANIFEST];
        names.into_iter().for_each(|name| making.whole(&storage.join(name)));
        DirectoryStore::create(&storage)
    })?;
    let whitelist = Whitelist::new(directory.name().clone(), vec![keys.certificate().fingerprint()], started)?;
    let whitelist = keys.sign_whitelist(&whitelist, rng)?;
    let staging = Staging::start(&store)?;
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
    let publisher = Publisher {
        staging: &staging,
        server: None,
        keys: &keys,
        settings,
        now,
        wait: Duration::ZERO,
        accept_clock: true,
    };
    // The directory is not visible to clients yet.
    all_is_well(publisher.put_in_front(manifest, root, None, rng)?)
}

/// Takes what failed after files were replaced for an error, where no client can see them.
fn all_is_well(late: Vec<StoreError>) -> Result<(), PublishError> {
    late.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}
