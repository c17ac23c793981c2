//! A repository at one revision, read only.
//!
//! Nothing is believed unseen: the manifest is verified with its certificate, and every catalog and object with the hash
//! that names it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::catalog::{
    Catalog, CatalogEntry, CatalogError, CatalogReference, FACTS, MARKER, MAXIMUM_CATALOG_BYTES, Nesting, StoredTree,
};
use crate::layer::EntryPath;
use crate::manifest::{
    Certificate, ManifestError, RepositoryManifest, RepositoryName, certificate::CertificateError, letter::LetterError,
};
use crate::object::{Content, DecodeError, ObjectHash, ObjectKind, Pieces, decode};
use crate::store::{DirectoryStore, StoreError};
use crate::tree::{Directory, Leaf, Node};

/// Why a repository could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A catalog cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
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
    /// A file cannot be read as one.
    #[error("cannot read {path}: {fault}")]
    Unreadable {
        /// The file.
        path: EntryPath,
        /// Why.
        fault: &'static str,
    },
    /// The objects of a file do not unpack.
    #[error("cannot unpack {path}")]
    Undecodable {
        /// The file.
        path: EntryPath,
        /// Why.
        source: DecodeError,
    },
}

/// A repository at one revision.
#[derive(Debug)]
pub struct Repository {
    store: DirectoryStore,
    manifest: RepositoryManifest,
    /// Catalogs that were opened, by the folder that they describe.
    catalogs: Mutex<HashMap<EntryPath, Arc<Catalog>>>,
}

impl Repository {
    /// Opens the head of the repository `name`.
    pub fn open(store: &DirectoryStore, name: &RepositoryName) -> Result<Self, RepositoryError> {
        let bytes = store.read_file(".cvmfspublished")?.ok_or_else(|| RepositoryError::NoManifest(name.clone()))?;
        let signed =
            RepositoryManifest::parse(&bytes).map_err(|error| RepositoryError::Manifest(name.clone(), error))?;
        if signed.manifest.name != *name {
            return Err(RepositoryError::WrongName { expected: name.clone(), actual: signed.manifest.name });
        }
        let certificate = signed.manifest.certificate;
        let pem = store.read_decoded(certificate, ObjectKind::Certificate, CERTIFICATE_LIMIT)?;
        let certificate = Certificate::parse(&pem).map_err(|error| RepositoryError::Certificate(certificate, error))?;
        signed.verify(&certificate).map_err(|error| RepositoryError::Signature(name.clone(), error))?;
        let manifest = signed.manifest;
        Ok(Self { store: store.clone(), manifest, catalogs: Mutex::default() })
    }

    /// Returns the manifest of the revision.
    pub fn manifest(&self) -> &RepositoryManifest {
        &self.manifest
    }

    /// Returns the root catalog.
    pub fn root(&self) -> Result<Arc<Catalog>, RepositoryError> {
        self.catalog(&EntryPath::ROOT, &|| Ok(Some(self.root_reference())))
    }

    /// Returns where the root catalog lies. Its size is 0 where the manifest does not say it.
    pub fn root_reference(&self) -> CatalogReference {
        CatalogReference { hash: self.manifest.root_catalog, size: self.manifest.catalog_size.unwrap_or(0) }
    }

    fn catalog(
        &self,
        path: &EntryPath,
        reference: &dyn Fn() -> Result<Option<CatalogReference>, RepositoryError>,
    ) -> Result<Arc<Catalog>, RepositoryError> {
        let open = || self.catalogs.lock().expect("no thread panics while it holds the list of catalogs");
        if let Some(catalog) = open().get(path) {
            return Ok(Arc::clone(catalog));
        }
        let fault = "its catalog is missing in the catalog above";
        let reference = reference()?.ok_or_else(|| RepositoryError::Unreadable { path: path.clone(), fault })?;
        let bytes = self.store.read_decoded(reference.hash, ObjectKind::Catalog, MAXIMUM_CATALOG_BYTES)?;
        let catalog = Arc::new(Catalog::parse(&bytes, path)?);
        open().insert(path.clone(), Arc::clone(&catalog));
        Ok(catalog)
    }

    /// Returns the catalog that holds the row of `path` and of what lies in it: of a transition point the lower one.
    pub fn catalog_of(&self, path: &EntryPath) -> Result<Arc<Catalog>, RepositoryError> {
        let mut catalog = self.root()?;
        let mut at = EntryPath::ROOT;
        for name in path.components() {
            at = at.join(name);
            if catalog.nested(&at)?.is_some() {
                catalog = self.catalog(&at, &|| Ok(catalog.nested(&at)?))?;
            }
        }
        Ok(catalog)
    }

    /// Returns what is at `path`; links are not followed.
    pub fn get(&self, path: &EntryPath) -> Result<Option<CatalogEntry>, RepositoryError> {
        Ok(self.catalog_of(path)?.get(path)?)
    }

    /// Returns what lies in the folder `path`, hidden entries included, by name.
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
        let bytes = self.read_content(path, &content, limit)?;
        if bytes.len() as u64 != entry.size.cast_unsigned() {
            return Err(unreadable("its objects have another size than its catalog says"));
        }
        Ok(Some(bytes))
    }

    fn read_content(&self, path: &EntryPath, content: &Content, limit: u64) -> Result<Vec<u8>, RepositoryError> {
        let read = |hash, kind| -> Result<Vec<u8>, RepositoryError> {
            let stored = self.store.read(hash, kind)?;
            if content.raw {
                return Ok(stored);
            }
            decode(&stored, limit).map_err(|source| RepositoryError::Undecodable { path: path.clone(), source })
        };
        match &content.pieces {
            Pieces::Whole(hash) => read(*hash, ObjectKind::File),
            Pieces::Chunks(chunks) => {
                let pieces: Result<Vec<_>, _> =
                    chunks.iter().map(|chunk| read(chunk.hash, ObjectKind::Chunk)).collect();
                Ok(pieces?.concat())
            }
        }
    }

    /// Returns where the catalog of the transition point `path` lies, or `None` where nothing or something else is.
    pub fn nested_catalog(&self, path: &EntryPath) -> Result<Option<CatalogReference>, RepositoryError> {
        let Some((parent, _)) = path.split() else { return Ok(None) };
        Ok(self.catalog_of(&parent)?.nested(path)?)
    }
}

/// A tree that was read back from its catalogs.
#[derive(Debug, Clone)]
pub struct ReadTree {
    /// The tree, without the markers that were put there for its nested catalogs.
    pub tree: Arc<Directory>,
    /// Its catalogs, ready to be hung in.
    pub stored: StoredTree,
    /// What its rows cannot tell, in JSON.
    pub facts: Option<String>,
}

/// Reads the tree whose root catalog is `reference`, published at `path` or stored for it.
///
/// `read` returns the SQLite file of a catalog.
pub fn read_tree(
    read: &dyn Fn(ObjectHash) -> Result<Vec<u8>, StoreError>,
    path: &EntryPath,
    reference: CatalogReference,
) -> Result<ReadTree, RepositoryError> {
    let catalog = Catalog::parse(&read(reference.hash)?, path)?;
    let fault = "it is no folder";
    let root = catalog.get(path)?.ok_or_else(|| RepositoryError::Unreadable { path: path.clone(), fault })?;
    let folder = root.directory().ok_or_else(|| RepositoryError::Unreadable { path: path.clone(), fault })?;
    let transition_point = root.with_nesting(Nesting::TransitionPoint);
    let stored = StoredTree { reference, transition_point, totals: catalog.total_counters() };
    let facts = catalog.property(FACTS).map(str::to_owned);
    Ok(ReadTree { tree: read_folder(read, &catalog, path, folder)?, stored, facts })
}

fn read_folder(
    read: &dyn Fn(ObjectHash) -> Result<Vec<u8>, StoreError>,
    catalog: &Catalog,
    path: &EntryPath,
    mut folder: Directory,
) -> Result<Arc<Directory>, RepositoryError> {
    let mut groups: HashMap<u32, Arc<Leaf>> = HashMap::new();
    for (name, entry) in catalog.list(path)? {
        let path = path.join(&name);
        let node = if let Some(child) = entry.directory() {
            Node::Directory(match catalog.nested(&path)? {
                Some(reference) => {
                    let below = Catalog::parse(&read(reference.hash)?, &path)?;
                    read_folder(read, &below, &path, child)?
                }
                None => read_folder(read, catalog, &path, child)?,
            })
        } else if name == MARKER && entry.is_hidden() {
            continue;
        } else {
            let fault = "it is nothing that an image can hold";
            let leaf = entry.leaf().ok_or(RepositoryError::Unreadable { path, fault })?;
            Node::Leaf(match entry.link_group {
                0 => Arc::new(leaf),
                group => Arc::clone(groups.entry(group).or_insert_with(|| Arc::new(leaf))),
            })
        };
        folder.children.insert(name.into(), node);
    }
    Ok(Arc::new(folder))
}

/// No certificate is read that unpacks to more.
const CERTIFICATE_LIMIT: u64 = 1 << 20;
