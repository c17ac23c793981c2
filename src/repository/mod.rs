//! A repository at one revision, read only.
//!
//! Nothing is believed unseen: the manifest is verified with its certificate, and every catalog and object with the hash
//! that names it.

mod inside;
mod pieces;
mod rows;
mod trees;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::cache::{ByteCache, CacheValue};
use crate::catalog::{Catalog, CatalogEntry, CatalogError, CatalogReference, HistoryError, Tag, read_tags};
use crate::layout;
use crate::manifest::{
    Certificate, ManifestError, RepositoryManifest, RepositoryName, certificate::CertificateError, letter::LetterError,
};
use crate::message::causes;
use crate::object::{ObjectHash, ObjectKind, SizeLimit};
use crate::path::EntryPath;
use crate::store::{ContentError, DirectoryStore, StoreError};
use crate::threads::ThreadsError;

pub use rows::{NamedRow, PlacedDirectory, Row};
pub use trees::{ReadCatalog, ReadTree, read_tree};

/// Why a repository could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A catalog cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The machine starts no threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// There is no manifest.
    #[error("repository '{0}' has no manifest")]
    NoManifest(RepositoryName),
    /// The manifest cannot be read.
    #[error("manifest of '{0}' is not valid")]
    Manifest(RepositoryName, #[source] ManifestError),
    /// The manifest is another repository's.
    #[error("manifest is that of '{actual}' instead of '{expected}'")]
    WrongName {
        /// The repository that was asked for.
        expected: RepositoryName,
        /// The one in the manifest.
        actual: RepositoryName,
    },
    /// The certificate cannot be read.
    #[error("certificate {0} is not valid")]
    Certificate(ObjectHash, #[source] CertificateError),
    /// The manifest was not signed with the certificate's key.
    #[error("manifest of '{0}' is not signed by its certificate")]
    Signature(RepositoryName, #[source] LetterError),
    /// A catalog is missing, or its bytes are not those that its name promises.
    #[error("cannot read the catalog of {path}; to repair it, {}", repair(path))]
    BrokenCatalog {
        /// The directory that the catalog describes.
        path: EntryPath,
        /// What is wrong with its object.
        source: StoreError,
    },
    /// What every revision needs beside the catalogs is missing or damaged.
    #[error("cannot read the {what} of the repository; to repair it, {COPY}")]
    BrokenFront {
        /// What its object holds.
        what: &'static str,
        /// What is wrong with the object.
        source: StoreError,
    },
    /// The tag database cannot be used.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// No kept revision is meant.
    #[error("repository '{repository}' keeps no revision {point}")]
    NoRevision {
        /// The repository.
        repository: RepositoryName,
        /// What was asked for.
        point: Point,
    },
    /// Links lead round in a circle, or out of the repository.
    #[error("{path} leads to nothing in the repository")]
    Nowhere {
        /// Where it began.
        path: EntryPath,
    },
    /// A file cannot be read as one.
    #[error("cannot read {path}: {fault}")]
    Unreadable {
        /// The file.
        path: EntryPath,
        /// Why.
        fault: &'static str,
    },
    /// The content of a file cannot be read.
    #[error("cannot read {path}{}", repair_of_file(path, source))]
    Content {
        /// The file.
        path: EntryPath,
        /// Why.
        source: ContentError,
    },
}

impl RepositoryError {
    /// Returns why the catalog of the directory `path` cannot be read.
    pub(crate) fn of_catalog(path: &EntryPath, error: StoreError) -> Self {
        match error.is_damage() {
            true => Self::BrokenCatalog { path: path.clone(), source: error },
            false => error.into(),
        }
    }

    /// Returns why an object that every revision needs cannot be read.
    pub(crate) fn of_front(what: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |error| match error.is_damage() {
            true => Self::BrokenFront { what, source: error },
            false => error.into(),
        }
    }
}

/// What brings an object back that nothing else holds.
const COPY: &str = "copy the object from a replica or a backup of the repository";

/// Returns what brings the catalog of the directory `path` back.
fn repair(path: &EntryPath) -> &'static str {
    if layout::is_in_tree(path) {
        "run 'strata convert --force' for an image that this tree belongs to, or copy the object from a replica"
    } else {
        COPY
    }
}

/// Returns what brings the content of a file back, if it is lost, as the end of a sentence.
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

/// Names one of the revisions that a repository keeps: by number, by tag, or as the one that clients see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Point {
    /// The newest one.
    #[default]
    Head,
    /// The one of that number.
    Revision(u64),
    /// The one that a tag of this name points at.
    Tag(String),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => write!(f, "head"),
            Self::Revision(number) => write!(f, "{number}"),
            Self::Tag(name) => write!(f, "'{}'", name.escape_debug()),
        }
    }
}

impl FromStr for Point {
    type Err = Infallible;

    /// Takes a number for a revision, `head` for the newest one, and anything else for a tag.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.parse() {
            Ok(number) => Self::Revision(number),
            Err(_) if text == "head" => Self::Head,
            Err(_) => Self::Tag(text.to_owned()),
        })
    }
}

/// A catalog, in memory or not: the directory that it describes, and the object that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CatalogPlace {
    /// The directory.
    pub root: EntryPath,
    /// The object.
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
    store: DirectoryStore,
    /// That of the head, whichever revision this is.
    manifest: RepositoryManifest,
    root: CatalogReference,
    /// Catalogs that were opened, of other revisions, too.
    catalogs: Arc<ByteCache<CatalogPlace, Arc<Catalog>>>,
}

impl Repository {
    /// Opens the head of the repository `name`.
    pub fn open(store: &DirectoryStore, name: &RepositoryName) -> Result<Self, RepositoryError> {
        let manifest = read_manifest(store, name)?;
        let catalogs = Arc::new(ByteCache::new(CATALOG_CACHE));
        Ok(Self { store: store.clone(), root: root_of(&manifest), manifest, catalogs })
    }

    /// Opens the head as it is now.
    pub fn open_head(&self) -> Result<Self, RepositoryError> {
        let manifest = read_manifest(&self.store, &self.manifest.name)?;
        Ok(Self { root: root_of(&manifest), manifest, ..self.clone() })
    }

    /// Opens another revision that the head knows of: one that has a tag, or from which the head descends.
    pub fn open_at(&self, point: &Point) -> Result<Self, RepositoryError> {
        let found = match point {
            Point::Head => Some(root_of(&self.manifest)),
            Point::Tag(name) => self.tags()?.into_iter().find(|tag| tag.name == *name).map(|tag| tag.root),
            Point::Revision(number) => self.find_revision(*number)?,
        };
        let missing = || RepositoryError::NoRevision { repository: self.manifest.name.clone(), point: point.clone() };
        Ok(Self { root: found.ok_or_else(missing)?, ..self.clone() })
    }

    /// Opens the revision whose root catalog is `root`, published or not, in a store that has it.
    pub(crate) fn open_root(&self, store: &DirectoryStore, root: CatalogReference) -> Self {
        Self { store: store.clone(), root, ..self.clone() }
    }

    /// Returns the named revisions.
    pub fn tags(&self) -> Result<Vec<Tag>, RepositoryError> {
        let Some(hash) = self.manifest.history else { return Ok(Vec::new()) };
        let bytes = self.store.read_decoded(hash, ObjectKind::History, SizeLimit::of_database(None));
        let bytes = bytes.map_err(RepositoryError::of_front("tag database"))?;
        Ok(read_tags(&bytes, &self.manifest.name)?)
    }

    /// Looks for a revision among the tags, and else among what the head descends from, as far as that is still there.
    fn find_revision(&self, number: u64) -> Result<Option<CatalogReference>, RepositoryError> {
        if let Some(tag) = self.tags()?.into_iter().find(|tag| tag.revision == number) {
            return Ok(Some(tag.root));
        }
        let mut reference = root_of(&self.manifest);
        for _ in number..=self.manifest.revision {
            let place = CatalogPlace { root: EntryPath::ROOT, reference };
            let catalog = match self.open_catalog(&place) {
                Err(RepositoryError::BrokenCatalog { source: StoreError::Io { .. }, .. }) => {
                    return Ok(None);
                }
                catalog => catalog?,
            };
            if catalog.revision() == Some(number) {
                return Ok(Some(reference));
            }
            let Some(hash) = catalog.property("previous_revision").and_then(|text| text.parse().ok()) else { break };
            reference = CatalogReference { hash, size: 0 };
        }
        Ok(None)
    }

    /// Returns the store that the repository lies in.
    pub fn store(&self) -> &DirectoryStore {
        &self.store
    }

    /// Returns where clients mount the repository, unless they are set otherwise.
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
        self.open_catalog(&self.root_place())
    }

    /// Returns where the root catalog lies. Its size is 0 where it is not known.
    pub fn root_reference(&self) -> CatalogReference {
        self.root
    }

    /// Returns the place of the root catalog.
    pub fn root_place(&self) -> CatalogPlace {
        CatalogPlace { root: EntryPath::ROOT, reference: self.root }
    }

    /// Returns the catalog at `place`, of this or any other revision.
    pub fn open_catalog(&self, place: &CatalogPlace) -> Result<Arc<Catalog>, RepositoryError> {
        self.catalogs.get(place, || {
            let bytes = self.store.read_decoded(place.reference.hash, ObjectKind::Catalog, place.reference.limit());
            let bytes = bytes.map_err(|error| RepositoryError::of_catalog(&place.root, error))?;
            Ok(Arc::new(Catalog::parse_owned(bytes, &place.root)?))
        })
    }

    /// Gives away the catalog of the directory `root`, if it was opened and nobody uses it.
    pub(crate) fn take_catalog(&self, root: &EntryPath, reference: CatalogReference) -> Option<Catalog> {
        let place = CatalogPlace { root: root.clone(), reference };
        self.catalogs.take(&place, |catalog| Arc::strong_count(catalog) == 1).and_then(Arc::into_inner)
    }

    /// Returns the catalog that holds the row of `path` and of what lies in it: of a transition point the lower one.
    pub fn catalog_of(&self, path: &EntryPath) -> Result<Arc<Catalog>, RepositoryError> {
        self.open_catalog(&self.place_of(path)?)
    }

    /// Returns the place of the catalog that holds what lies in `path`.
    pub fn place_of(&self, path: &EntryPath) -> Result<CatalogPlace, RepositoryError> {
        let mut place = self.root_place();
        let mut at = EntryPath::ROOT;
        for name in path.components() {
            at = at.join(name);
            if let Some(reference) = self.open_catalog(&place)?.nested(&at)? {
                place = CatalogPlace { root: at.clone(), reference };
            }
        }
        Ok(place)
    }

    /// Follows all links in `path`, and returns where it leads and what is there.
    ///
    /// Absolute links do not stay in the repository, wherever that is mounted, unless they say so by a variable.
    pub fn follow(&self, path: &EntryPath) -> Result<(EntryPath, CatalogEntry), RepositoryError> {
        let nowhere = || RepositoryError::Nowhere { path: path.clone() };
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
            if links > MAXIMUM_LINKS || target.starts_with(b"/") {
                return Err(nowhere());
            }
            let names = target.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
            waiting.extend(names.rev().map(<[u8]>::to_vec));
        }
        let entry = self.get(&at)?.ok_or_else(nowhere)?;
        Ok((at, entry))
    }

    /// Returns the path below the repository's mount point, wherever that is, that the target of a link names by
    /// [`MOUNT_VARIABLE`] and the repository's name.
    pub(crate) fn target_below_mount(&self, link: &CatalogEntry) -> Option<Vec<u8>> {
        below_mount(&self.manifest.name, link)
    }

    /// Returns what is at `path`; links are not followed.
    pub fn get(&self, path: &EntryPath) -> Result<Option<CatalogEntry>, RepositoryError> {
        Ok(self.catalog_of(path)?.get(path)?)
    }

    /// Tells whether something is at `path`. The catalog of a transition point is not read for that.
    pub fn has(&self, path: &EntryPath) -> Result<bool, RepositoryError> {
        let Some((parent, _)) = path.split() else { return Ok(true) };
        Ok(self.catalog_of(&parent)?.get(path)?.is_some())
    }

    /// Returns what lies in the directory `path`, hidden entries included, by name.
    pub fn list(&self, path: &EntryPath) -> Result<BTreeMap<Vec<u8>, CatalogEntry>, RepositoryError> {
        Ok(self.catalog_of(path)?.list(path)?)
    }

    /// Returns the content of a regular file of at most `limit` bytes, or `None` where nothing is.
    pub fn read(&self, path: &EntryPath, limit: u64) -> Result<Option<Vec<u8>>, RepositoryError> {
        let Some(entry) = self.get(path)? else { return Ok(None) };
        let unreadable = |fault| RepositoryError::Unreadable { path: path.clone(), fault };
        let content = entry.file_content().ok_or_else(|| unreadable("it is no regular file of this repository"))?;
        if entry.size.cast_unsigned() > limit {
            return Err(unreadable("it is larger than anything that is read whole"));
        }
        let failed = |source| RepositoryError::Content { path: path.clone(), source };
        let mut bytes = Vec::new();
        for piece in pieces::pieces(&content, entry.size.cast_unsigned()).map_err(failed)? {
            bytes.append(&mut self.store.read_content(piece).map_err(failed)?);
        }
        Ok(Some(bytes))
    }

    /// Does the same; content that is lost or damaged counts as none, with a warning.
    pub(crate) fn read_if_intact(&self, path: &EntryPath, limit: u64) -> Result<Option<Vec<u8>>, RepositoryError> {
        match self.read(path, limit) {
            Err(RepositoryError::Content { path, source }) if source.is_damage() => {
                tracing::warn!("cannot read {path}: {}", causes(&source));
                Ok(None)
            }
            read => read,
        }
    }

    /// Returns where the catalog of the transition point `path` lies, or `None` where nothing or something else is.
    pub fn nested_catalog(&self, path: &EntryPath) -> Result<Option<CatalogReference>, RepositoryError> {
        let Some((parent, _)) = path.split() else { return Ok(None) };
        Ok(self.catalog_of(&parent)?.nested(path)?)
    }
}

/// The variable in which clients say where repositories are mounted.
pub const MOUNT_VARIABLE: &str = "CVMFS_MOUNT_DIR";

/// Returns the path below the mount point of a repository that the target of a link names by [`MOUNT_VARIABLE`].
pub(crate) fn below_mount(repository: &RepositoryName, link: &CatalogEntry) -> Option<Vec<u8>> {
    // No target holds a NUL.
    let target = link.expanded_target(|name| match name {
        name if name == MOUNT_VARIABLE.as_bytes() => Some(vec![0]),
        name => client_variable(name),
    });
    let path = target.strip_prefix(b"\0/")?.strip_prefix(repository.as_str().as_bytes())?;
    let is_whole = path.is_empty() || path[0] == b'/';
    is_whole.then(|| path.strip_prefix(b"/").unwrap_or(path).to_vec())
}

/// Returns the value of a variable in the target of a link, as CVMFS clients on this machine have it: that of the environment,
/// and of `CVMFS_ARCH` the machine's name for its architecture.
pub fn client_variable(name: &[u8]) -> Option<Vec<u8>> {
    let is_possible = !name.is_empty() && !name.contains(&b'=') && !name.contains(&0);
    match std::env::var_os(OsStr::from_bytes(name)).filter(|_| is_possible) {
        Some(value) => Some(value.as_bytes().to_vec()),
        None if name == b"CVMFS_ARCH" => Some(rustix::system::uname().machine().to_bytes().to_vec()),
        None => None,
    }
}

fn root_of(manifest: &RepositoryManifest) -> CatalogReference {
    CatalogReference { hash: manifest.root_catalog, size: manifest.catalog_size.unwrap_or(0) }
}

/// Reads the manifest of the head and verifies it with its certificate.
fn read_manifest(store: &DirectoryStore, name: &RepositoryName) -> Result<RepositoryManifest, RepositoryError> {
    let bytes = store.read_file(".cvmfspublished")?.ok_or_else(|| RepositoryError::NoManifest(name.clone()))?;
    let signed = RepositoryManifest::parse(&bytes).map_err(|error| RepositoryError::Manifest(name.clone(), error))?;
    if signed.manifest.name != *name {
        return Err(RepositoryError::WrongName { expected: name.clone(), actual: signed.manifest.name });
    }
    let certificate = signed.manifest.certificate;
    let pem = store.read_decoded(certificate, ObjectKind::Certificate, CERTIFICATE_LIMIT);
    let pem = pem.map_err(RepositoryError::of_front("certificate"))?;
    let certificate = Certificate::parse(&pem).map_err(|error| RepositoryError::Certificate(certificate, error))?;
    signed.verify(&certificate).map_err(|error| RepositoryError::Signature(name.clone(), error))?;
    Ok(signed.manifest)
}

/// No certificate is read that unpacks to more.
const CERTIFICATE_LIMIT: SizeLimit = SizeLimit::of(1 << 20);

/// No log of references is read that has more bytes.
pub(crate) const REFLOG_LIMIT: u64 = 1 << 30;

/// Bytes of catalogs that stay in memory.
const CATALOG_CACHE: u64 = 128 << 20;

/// How many links a path may lead over, as in Linux.
const MAXIMUM_LINKS: u32 = 40;
