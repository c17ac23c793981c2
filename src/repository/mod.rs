//! A repository at one revision, read-only.
//!
//! The manifest is verified with its certificate, and every catalog and object with its hash.

mod content;
mod inside;
mod rows;
mod trees;
mod trust;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::cache::{ByteCache, CacheValue};
use crate::catalog::{Catalog, CatalogEntry, CatalogError, CatalogReference, HistoryError, NoContent, Tag, read_tags};
use crate::layout;
use crate::manifest::{
    FrontPageError, ManifestError, RepositoryManifest, RepositoryName, certificate::CertificateError,
    letter::LetterError,
};
use crate::message::causes;
use crate::object::{ObjectHash, ObjectKind, SizeLimit, UnsupportedCompression};
use crate::path::EntryPath;
use crate::store::{ContentError, SharedStore, StoreError};
use crate::threads::ThreadsError;

pub use rows::{LocatedDirectory, NamedRow, Row};
pub use trees::{ReadCatalog, ReadTree, read_tree};
pub use trust::{NewestRevision, Trust};

/// Errors from reading a repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A catalog is not valid.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Threads could not be started.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The store has no manifest.
    #[error("repository '{0}' has no manifest (.cvmfspublished)")]
    NoManifest(RepositoryName),
    /// The manifest cannot be read.
    #[error("manifest of '{0}' is not valid")]
    Manifest(RepositoryName, #[source] ManifestError),
    /// The manifest belongs to another repository.
    #[error("the manifest belongs to repository '{actual}', not to '{expected}'")]
    WrongName {
        /// The requested repository.
        expected: RepositoryName,
        /// The name in the manifest.
        actual: RepositoryName,
    },
    /// The certificate cannot be read.
    #[error("certificate {0} is not valid")]
    Certificate(ObjectHash, #[source] CertificateError),
    /// The manifest was not signed with the certificate's key.
    #[error("the signature of the manifest of '{0}' does not match its certificate")]
    Signature(RepositoryName, #[source] LetterError),
    /// The store has no whitelist.
    #[error("repository '{0}' has no whitelist (.cvmfswhitelist)")]
    NoWhitelist(RepositoryName),
    /// No master key vouches for the manifest.
    #[error("the manifest of '{0}' is not trusted")]
    Untrusted(RepositoryName, #[source] FrontPageError),
    /// The manifest is older than one that was read before.
    #[error(
        "the manifest of '{name}' is of revision {revision}, but revision {seen} was read before: the server is out of date, or someone replays an old state"
    )]
    OldManifest {
        /// The repository.
        name: RepositoryName,
        /// Revision of the manifest.
        revision: u64,
        /// The newest revision that was read before.
        seen: u64,
    },
    /// The object of a catalog is missing or damaged.
    #[error("cannot read the catalog of {path}; to repair it, {}", repair(path))]
    BrokenCatalog {
        /// The directory that the catalog describes.
        path: EntryPath,
        /// The error of the store.
        source: StoreError,
    },
    /// An object other than a catalog that every revision needs is missing or damaged.
    #[error("cannot read the {what} of the repository; to repair it, {COPY}")]
    BrokenRootObject {
        /// `certificate` or `tag database`.
        what: &'static str,
        /// The error of the store.
        source: StoreError,
    },
    /// The tag database is not valid.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The requested revision does not exist or is no longer available.
    #[error("repository '{repository}' has no revision {selector}")]
    NoRevision {
        /// The repository.
        repository: RepositoryName,
        /// The requested revision.
        selector: RevisionSelector,
    },
    /// The path does not exist, or its links form a cycle or lead out of the repository.
    #[error("cannot resolve {path}: the path does not exist, or its links form a cycle or lead out of the repository")]
    Unresolved {
        /// The path before links were followed.
        path: EntryPath,
    },
    /// An entry cannot be read as a file or tree.
    #[error("cannot read {path}: {fault}")]
    Unreadable {
        /// The path.
        path: EntryPath,
        /// The reason.
        fault: &'static str,
    },
    /// Another program compressed the content of a file. The file is not damaged.
    #[error("cannot read {path}: it is compressed with {compression}, which strata does not support")]
    Unsupported {
        /// The file.
        path: EntryPath,
        /// Its compression.
        compression: UnsupportedCompression,
    },
    /// The content of a file cannot be read.
    #[error("cannot read {path}{}", repair_of_file(path, source))]
    Content {
        /// The file.
        path: EntryPath,
        /// The error of the store.
        source: ContentError,
    },
}

impl RepositoryError {
    /// Returns the error for an entry whose content cannot be read. `fault` describes an entry that is no file of this repository.
    fn without_content(path: &EntryPath, reason: NoContent, fault: &'static str) -> Self {
        let path = path.clone();
        match reason {
            NoContent::Unsupported(compression) => Self::Unsupported { path, compression },
            NoContent::NoFile | NoContent::External => Self::Unreadable { path, fault },
        }
    }

    /// Returns the error for an unreadable catalog of the directory `path`.
    pub(crate) fn of_catalog(path: &EntryPath, error: StoreError) -> Self {
        match error.is_damage() {
            true => Self::BrokenCatalog { path: path.clone(), source: error },
            false => error.into(),
        }
    }

    /// Returns the error for an unreadable object that every revision needs.
    pub(crate) fn of_root_object(what: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |error| match error.is_damage() {
            true => Self::BrokenRootObject { what, source: error },
            false => error.into(),
        }
    }
}

/// Repair advice for an object that no conversion writes again.
const COPY: &str = "copy the object from a replica or a backup of the repository";

/// Returns repair advice for the catalog of the directory `path`.
fn repair(path: &EntryPath) -> &'static str {
    if layout::is_in_tree(path) {
        "run 'strata convert --force' for an image that this tree belongs to, or copy the object from a replica"
    } else {
        COPY
    }
}

/// Returns repair advice for the content of a file as the end of a sentence; empty if the object is not damaged.
fn repair_of_file(path: &EntryPath, error: &ContentError) -> String {
    let how = if !error.is_damage() {
        return String::new();
    } else if layout::is_written_for_images(path) {
        "run 'strata convert --force' for an image that this file belongs to, or copy the object from a replica"
    } else {
        COPY
    };
    format!("; to repair it, {how}")
}

/// Selects a revision of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RevisionSelector {
    /// The newest revision, which clients mount.
    #[default]
    Head,
    /// The revision with this number.
    Revision(u64),
    /// The revision with this tag.
    Tag(String),
}

impl fmt::Display for RevisionSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => write!(f, "head"),
            Self::Revision(number) => write!(f, "{number}"),
            Self::Tag(name) => write!(f, "'{}'", name.escape_debug()),
        }
    }
}

impl FromStr for RevisionSelector {
    type Err = Infallible;

    /// Parses a revision number or `head`; any other text is a tag.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.parse() {
            Ok(number) => Self::Revision(number),
            Err(_) if text == "head" => Self::Head,
            Err(_) => Self::Tag(text.to_owned()),
        })
    }
}

/// Identifies a catalog: the directory that it describes, and its object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CatalogLocation {
    /// The directory that it describes.
    pub root: EntryPath,
    /// Its object.
    pub reference: CatalogReference,
}

impl CacheValue for Arc<Catalog> {
    fn bytes(&self) -> u64 {
        self.size()
    }
}

/// A repository at one revision.
#[derive(Debug, Clone)]
pub struct Repository {
    store: SharedStore,
    trust: Arc<Trust>,
    /// The manifest of the head, also if this value is another revision.
    manifest: RepositoryManifest,
    root: CatalogReference,
    /// Cache of open catalogs, shared by all revisions.
    catalogs: Arc<ByteCache<CatalogLocation, Arc<Catalog>>>,
}

impl Repository {
    /// Opens the head of the repository `name`.
    pub fn open(store: impl Into<SharedStore>, name: &RepositoryName) -> Result<Self, RepositoryError> {
        Self::open_trusted(store.into(), name, Trust::Storage)
    }

    /// Opens the head of the repository `name`, whose manifest is verified as `trust` says.
    pub fn open_trusted(store: SharedStore, name: &RepositoryName, trust: Trust) -> Result<Self, RepositoryError> {
        let manifest = trust.read_manifest(&store, name)?;
        let catalogs = Arc::new(ByteCache::new(CATALOG_CACHE));
        Ok(Self { root: root_of(&manifest), store, trust: Arc::new(trust), manifest, catalogs })
    }

    /// Opens the current head, which may be newer than this revision.
    pub fn open_head(&self) -> Result<Self, RepositoryError> {
        let manifest = self.trust.read_manifest(&self.store, &self.manifest.name)?;
        Ok(Self { root: root_of(&manifest), manifest, ..self.clone() })
    }

    /// Opens another revision: one with a tag, or a predecessor of the head whose catalogs still exist.
    pub fn open_at(&self, selector: &RevisionSelector) -> Result<Self, RepositoryError> {
        let found = match selector {
            RevisionSelector::Head => Some(root_of(&self.manifest)),
            RevisionSelector::Tag(name) => self.tags()?.into_iter().find(|tag| tag.name == *name).map(|tag| tag.root),
            RevisionSelector::Revision(number) => self.find_revision(*number)?,
        };
        let missing =
            || RepositoryError::NoRevision { repository: self.manifest.name.clone(), selector: selector.clone() };
        Ok(Self { root: found.ok_or_else(missing)?, ..self.clone() })
    }

    /// Opens the revision whose root catalog is `root`. The revision need not be published. `store` must have its catalogs.
    pub(crate) fn open_root(&self, store: SharedStore, root: CatalogReference) -> Self {
        Self { store, root, ..self.clone() }
    }

    /// Returns the named revisions.
    pub fn tags(&self) -> Result<Vec<Tag>, RepositoryError> {
        let Some(hash) = self.manifest.history else { return Ok(Vec::new()) };
        let bytes = self.store.read_decoded(hash, ObjectKind::History, SizeLimit::of_database(None));
        let bytes = bytes.map_err(RepositoryError::of_root_object("tag database"))?;
        Ok(read_tags(&bytes, &self.manifest.name)?)
    }

    /// Searches for a revision among the tags, then among the predecessors of the head until one is missing from the store.
    fn find_revision(&self, number: u64) -> Result<Option<CatalogReference>, RepositoryError> {
        if let Some(tag) = self.tags()?.into_iter().find(|tag| tag.revision == number) {
            return Ok(Some(tag.root));
        }
        let mut reference = root_of(&self.manifest);
        // Each revision has a higher number than its predecessor, so more steps cannot lead to the requested revision.
        for _ in number..=self.manifest.revision {
            let location = CatalogLocation { root: EntryPath::ROOT, reference };
            let catalog = match self.open_catalog(&location) {
                Err(RepositoryError::BrokenCatalog {
                    source: StoreError::Io { .. } | StoreError::Missing { .. },
                    ..
                }) => {
                    // Garbage collection deletes old root catalogs, so the chain ends where the first one is missing.
                    return Ok(None);
                }
                catalog => catalog?,
            };
            if catalog.revision() == Some(number) {
                return Ok(Some(reference));
            }
            let Some(hash) = catalog.property("previous_revision").and_then(|text| text.parse().ok()) else { break };
            // The property states no size.
            reference = CatalogReference { hash, size: 0 };
        }
        Ok(None)
    }

    /// Returns the store of the repository.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Returns the default mountpoint of clients.
    pub fn client_mountpoint(&self) -> PathBuf {
        Path::new("/cvmfs").join(self.manifest.name.as_str())
    }

    /// Returns the manifest of the head.
    pub fn manifest(&self) -> &RepositoryManifest {
        &self.manifest
    }

    /// Returns the number of this revision.
    pub fn revision(&self) -> Result<u64, RepositoryError> {
        Ok(self.root()?.revision().unwrap_or(0))
    }

    /// Returns the root catalog.
    pub fn root(&self) -> Result<Arc<Catalog>, RepositoryError> {
        self.open_catalog(&self.root_location())
    }

    /// Returns the reference to the root catalog. The size in the reference is 0 if it is unknown.
    pub fn root_reference(&self) -> CatalogReference {
        self.root
    }

    /// Identifies the root catalog.
    pub fn root_location(&self) -> CatalogLocation {
        CatalogLocation { root: EntryPath::ROOT, reference: self.root }
    }

    /// Opens a catalog of this or another revision, or returns it from the cache.
    pub fn open_catalog(&self, location: &CatalogLocation) -> Result<Arc<Catalog>, RepositoryError> {
        self.catalogs.get(location, || {
            let bytes =
                self.store.read_decoded(location.reference.hash, ObjectKind::Catalog, location.reference.limit());
            let bytes = bytes.map_err(|error| RepositoryError::of_catalog(&location.root, error))?;
            Ok(Arc::new(Catalog::parse_owned(bytes, &location.root)?))
        })
    }

    /// Removes the catalog of the directory `root` from the cache and returns it. Returns `None` if the catalog is not cached or
    /// is in use.
    pub(crate) fn take_catalog(&self, root: &EntryPath, reference: CatalogReference) -> Option<Catalog> {
        let location = CatalogLocation { root: root.clone(), reference };
        self.catalogs.take(&location, |catalog| Arc::strong_count(catalog) == 1).and_then(Arc::into_inner)
    }

    /// Opens the catalog that contains `path` and its children; for a transition point, the nested catalog.
    pub fn catalog_of(&self, path: &EntryPath) -> Result<Arc<Catalog>, RepositoryError> {
        self.open_catalog(&self.location_of(path)?)
    }

    /// Identifies the catalog that contains the children of `path`.
    pub fn location_of(&self, path: &EntryPath) -> Result<CatalogLocation, RepositoryError> {
        let mut location = self.root_location();
        let mut at = EntryPath::ROOT;
        for name in path.components() {
            at = at.join(name);
            if let Some(reference) = self.open_catalog(&location)?.nested(&at)? {
                location = CatalogLocation { root: at.clone(), reference };
            }
        }
        Ok(location)
    }

    /// Resolves `path` and follows all links. Returns the resolved path and its entry.
    ///
    /// An absolute link leads out of the repository, unless it begins with [`MOUNT_VARIABLE`] and the repository's name.
    pub fn follow(&self, path: &EntryPath) -> Result<(EntryPath, CatalogEntry), RepositoryError> {
        let nowhere = || RepositoryError::Unresolved { path: path.clone() };
        let mut waiting: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let mut at = EntryPath::ROOT;
        let mut links = 0;
        while let Some(name) = waiting.pop() {
            if name == b".." {
                at = at.split().ok_or_else(nowhere)?.0;
                continue;
            }
            let next = at.join(&name);
            let entry = self.get(&next)?.ok_or_else(nowhere)?;
            if !entry.is_symlink() {
                at = next;
                continue;
            }
            links += 1;
            let target = match self.target_below_mount(&entry) {
                Some(path) => {
                    at = EntryPath::ROOT;
                    path
                }
                None => entry.expanded_target(client_variable),
            };
            // An absolute link leads out of the repository, into the root file system of the client.
            if links > MAX_LINKS || target.starts_with(b"/") {
                return Err(nowhere());
            }
            let names = target.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
            waiting.extend(names.rev().map(<[u8]>::to_vec));
        }
        let entry = self.get(&at)?.ok_or_else(nowhere)?;
        Ok((at, entry))
    }

    /// Returns the path within the repository for a link target that begins with [`MOUNT_VARIABLE`] and the repository's name.
    pub(crate) fn target_below_mount(&self, link: &CatalogEntry) -> Option<Vec<u8>> {
        below_mount(&self.manifest.name, link)
    }

    /// Returns the entry at `path` without following links.
    pub fn get(&self, path: &EntryPath) -> Result<Option<CatalogEntry>, RepositoryError> {
        Ok(self.catalog_of(path)?.get(path)?)
    }

    /// Returns whether `path` exists. Does not read the nested catalog of a transition point.
    pub fn has(&self, path: &EntryPath) -> Result<bool, RepositoryError> {
        let Some((parent, _)) = path.split() else { return Ok(true) };
        Ok(self.catalog_of(&parent)?.get(path)?.is_some())
    }

    /// Returns the children of the directory `path` by name, including hidden entries.
    pub fn list(&self, path: &EntryPath) -> Result<BTreeMap<Vec<u8>, CatalogEntry>, RepositoryError> {
        Ok(self.catalog_of(path)?.list(path)?)
    }

    /// Returns the content of a regular file of at most `limit` bytes; `None` if the path does not exist.
    pub fn read(&self, path: &EntryPath, limit: u64) -> Result<Option<Vec<u8>>, RepositoryError> {
        let Some(entry) = self.get(path)? else { return Ok(None) };
        let unreadable = |fault| RepositoryError::Unreadable { path: path.clone(), fault };
        let fault = "it is not a regular file with its content in this repository";
        let content = entry.file_content().map_err(|reason| RepositoryError::without_content(path, reason, fault))?;
        if entry.size.cast_unsigned() > limit {
            return Err(unreadable("it is larger than the limit for files of its kind"));
        }
        let failed = |source| RepositoryError::Content { path: path.clone(), source };
        let mut bytes = Vec::new();
        for piece in content::file_objects(&content, entry.size.cast_unsigned()).map_err(failed)? {
            bytes.append(&mut self.store.read_content(piece, SizeLimit::of(piece.size).stored()).map_err(failed)?);
        }
        Ok(Some(bytes))
    }

    /// Like [`Self::read`], but lost or damaged content causes only a warning and returns `None`.
    pub(crate) fn read_if_intact(&self, path: &EntryPath, limit: u64) -> Result<Option<Vec<u8>>, RepositoryError> {
        match self.read(path, limit) {
            Err(RepositoryError::Content { path, source }) if source.is_damage() => {
                self.store.reporter().warn(format_args!("cannot read {path}: {}", causes(&source)));
                Ok(None)
            }
            read => read,
        }
    }

    /// Returns the nested catalog at `path`; `None` if the path is not a transition point.
    pub fn nested_catalog(&self, path: &EntryPath) -> Result<Option<CatalogReference>, RepositoryError> {
        let Some((parent, _)) = path.split() else { return Ok(None) };
        Ok(self.catalog_of(&parent)?.nested(path)?)
    }
}

/// Variable in link targets that clients expand to the directory in which they mount repositories, usually `/cvmfs`.
pub const MOUNT_VARIABLE: &str = "CVMFS_MOUNT_DIR";

/// Returns the path within `repository` for a link target that begins with [`MOUNT_VARIABLE`] and its name.
pub(crate) fn below_mount(repository: &RepositoryName, link: &CatalogEntry) -> Option<Vec<u8>> {
    // NUL stands for the variable, because no link target contains it.
    let target = link.expanded_target(|name| match name {
        name if name == MOUNT_VARIABLE.as_bytes() => Some(vec![0]),
        name => client_variable(name),
    });
    let path = target.strip_prefix(b"\0/")?.strip_prefix(repository.as_str().as_bytes())?;
    // Otherwise the name of another repository may begin with this name.
    let is_whole = path.is_empty() || path[0] == b'/';
    is_whole.then(|| path.strip_prefix(b"/").unwrap_or(path).to_vec())
}

/// Returns the value that CVMFS clients on this machine use for a variable in a link target: the value in the environment. If
/// `CVMFS_ARCH` is not set, its value is the output of `uname -m`.
pub fn client_variable(name: &[u8]) -> Option<Vec<u8>> {
    let is_possible = !name.is_empty() && !name.contains(&b'=') && !name.contains(&0);
    match std::env::var_os(OsStr::from_bytes(name)).filter(|_| is_possible) {
        Some(value) => Some(value.as_bytes().to_vec()),
        // Clients set the variable to their architecture (`cvmfs/mountpoint.cc`).
        None if name == b"CVMFS_ARCH" => Some(rustix::system::uname().machine().to_bytes().to_vec()),
        None => None,
    }
}

fn root_of(manifest: &RepositoryManifest) -> CatalogReference {
    CatalogReference { hash: manifest.root_catalog, size: manifest.catalog_size.unwrap_or(0) }
}

/// Maximum size of a reflog in bytes.
pub(crate) const REFLOG_LIMIT: u64 = 1 << 30;

/// Maximum total size of cached catalogs in bytes.
const CATALOG_CACHE: u64 = 128 << 20;

/// Maximum number of links in the resolution of a path, as in Linux.
const MAX_LINKS: u32 = 40;
