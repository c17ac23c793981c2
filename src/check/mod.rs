//! Checks a repository, from the signatures to the last byte of the last object.
//!
//! Output that other programs may validly write is not a finding, even where strata itself writes something else: gaps in
//! row numbers, older schemas, hashes of other algorithms, files without objects. Files that remain from a killed publisher
//! or a garbage collection are counted, but are not findings, because they do no harm.
//!
//! Catalogs are walked level by level, with one catalog per thread in memory. Each reference to an object is recorded in a
//! few bytes. The references are sorted by object, and then compared with the store directory by directory. The path that
//! refers to an object is looked up again only if the object has a finding.

mod consumers;
mod finding;
mod front;
mod layout;
mod name;
mod objects;
mod reader;
mod reference;
mod reflog;
mod scope;
mod tags;
mod tree;
mod walk;

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex};

use rsa::PublicKey;

use crate::catalog::CatalogReference;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::manifest::{KeyError, RepositoryManifest, RepositoryName};
use crate::message::causes;
use crate::metadata::Timestamp;
use crate::object::{ObjectHash, ObjectKind, UnsupportedCompression};
use crate::progress::Progress;
use crate::store::{DirectoryStore, SharedStore};
use crate::threads::{self, ThreadsError};
use reflog::REFLOG;

pub use finding::Finding;

use finding::Findings;
use name::ObjectName;
use reference::References;
use scope::Scope;
use tree::{CatalogTree, RootCatalog};

/// Errors that prevent a check. A missing manifest is a finding instead.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The repository directory, or the public key in it, cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The repository contains no such path.
    #[error("the repository contains no path or image '{0}'")]
    NoSuchPath(String),
    /// The path leaves the repository, or contains a loop of symbolic links.
    #[error("'{0}' leads out of the repository, or contains a loop of symbolic links")]
    Elsewhere(String),
    /// The system refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// The repository may be intact: this machine has too few file descriptors or threads, or too little memory, or the server of
    /// the repository failed.
    #[error("cannot read '{file}' of the repository")]
    Obstacle {
        /// The file, relative to the root of the storage.
        file: String,
        /// The first error.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// What to check, and how thoroughly.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Check only this path, or the image of this name, and everything below it.
    pub path: Option<String>,
    /// Do not read the content of objects.
    pub quick: bool,
    /// Number of worker threads.
    pub threads: usize,
    /// The current time, which is compared with the expiry of the whitelist.
    pub now: Timestamp,
}

impl Default for CheckOptions {
    /// Returns the options of a complete check, with one thread for each core.
    fn default() -> Self {
        Self { path: None, quick: false, threads: threads::available(), now: Timestamp::now() }
    }
}

/// Objects to which neither the head nor a tag refers. They are valid; a garbage collection deletes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unreferenced {
    /// Number of objects.
    pub objects: u64,
    /// Their stored size in bytes.
    pub bytes: u64,
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct CheckReport {
    /// All deviations from the format, sorted.
    pub findings: Vec<Finding>,
    /// Facts that the administrator should know, although they are no deviations from the format.
    pub warnings: Vec<String>,
    /// Number of catalogs that were read.
    pub catalogs: u64,
    /// Number of rows in these catalogs.
    pub entries: u64,
    /// Number of existing objects to which a checked catalog or the front page refers.
    pub objects: u64,
    /// Their stored size in bytes.
    pub bytes: u64,
    /// Objects to which nothing refers; `None` if a catalog cannot be read, or only a path was checked.
    pub unreferenced: Option<Unreferenced>,
    /// Number of files that remain from killed runs.
    pub leftovers: u64,
}

/// A repository to check.
#[derive(Debug)]
pub struct CheckedRepository {
    /// Its storage, which need not contain a repository.
    pub store: SharedStore,
    /// Its name.
    pub name: RepositoryName,
    /// The master keys of which one must have signed the whitelist. If the list is empty, the signature is not checked.
    pub master_keys: Vec<PublicKey>,
    /// Hash of the reflog that `cvmfs_server` on this machine has recorded.
    pub reflog_checksum: Option<ObjectHash>,
    /// Whether the storage has the reflog of the repository. A replica has a reflog of its own.
    pub has_reflog: bool,
    /// Facts about what cannot be checked.
    pub warnings: Vec<String>,
}

impl CheckedRepository {
    /// Returns the repository in a directory. Reads no private key.
    pub fn of_directory(directory: &RepositoryDirectory) -> Result<Self, CheckError> {
        let (mut master_keys, mut warnings) = (Vec::new(), Vec::new());
        match directory.public_key() {
            Ok(key) => master_keys.push(key),
            Err(DirectoryError::Keys(KeyError::Read { source, .. }))
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let key = directory.public_key_path();
                warnings.push(format!(
                    "cannot read '{}' as this user, so the signature of the whitelist is not checked",
                    key.display()
                ));
            }
            Err(error) => return Err(error.into()),
        }
        let checksum = directory.local_server().and_then(|server| match server {
            Some(server) => Ok(server.reflog_checksum()?),
            None => Ok(None),
        });
        let reflog_checksum = checksum.unwrap_or_else(|error| {
            warnings.push(format!("cannot compare {REFLOG} with the checksum of cvmfs_server: {}", causes(&error)));
            None
        });
        let store = DirectoryStore::at(&directory.storage_path()).with_reporter(directory.reporter()).into();
        Ok(Self { store, name: directory.name().clone(), master_keys, reflog_checksum, has_reflog: true, warnings })
    }
}

/// Checks a repository.
///
/// The check changes nothing. It checks the revision that the manifest names at the start, and ignores revisions that are
/// published during the check.
pub fn check(
    repository: &CheckedRepository,
    options: &CheckOptions,
    progress: &Arc<Progress>,
) -> Result<CheckReport, CheckError> {
    let reporter = repository.store.reporter();
    let _reported = reporter.start("check".to_owned(), progress);
    let check = Check {
        repository,
        store: Arc::clone(&repository.store),
        options,
        progress,
        findings: Findings::default(),
        warnings: Mutex::new(repository.warnings.clone()),
        unsupported: Mutex::default(),
        obstacle: Mutex::default(),
    };
    let threads = threads::pool(options.threads, reporter)?;
    let checked = threads.install(|| check.run());
    // Files of an intact repository could not be read, so the findings may be wrong.
    if let Some((file, source)) = check.obstacle.into_inner().expect("no thread panics while it records an error") {
        return Err(CheckError::Obstacle { file, source });
    }
    let mut report = checked?;
    let unsupported = check.unsupported.into_inner().expect("no thread panics while it counts an object");
    report.warnings = check.warnings.into_inner().expect("no thread panics while it warns");
    report.warnings.extend(unsupported.into_iter().map(|(compression, objects)| {
        let objects = if objects == 1 { "1 object".to_owned() } else { format!("{objects} objects") };
        let kind = format_args!("compressed with {compression}, which strata does not support");
        format!("{objects} {kind}: only the hash is checked, not the content")
    }));
    // Threads add warnings in any order, and several threads the same one.
    report.warnings.sort();
    report.warnings.dedup();
    report.findings = check.findings.sorted();
    Ok(report)
}

/// A running check.
struct Check<'c> {
    repository: &'c CheckedRepository,
    store: SharedStore,
    options: &'c CheckOptions,
    progress: &'c Progress,
    findings: Findings,
    warnings: Mutex<Vec<String>>,
    /// Number of objects with the hash of their name whose content cannot be checked.
    unsupported: Mutex<BTreeMap<UnsupportedCompression, u64>>,
    /// The first file that could not be read for a reason that is not in the repository, and the error.
    obstacle: Mutex<Option<(String, Box<dyn Error + Send + Sync>)>>,
}

impl Check<'_> {
    fn run(&self) -> Result<CheckReport, CheckError> {
        self.progress.set_activity("checking the front page".to_owned());
        let leftovers = self.store.listing().map_or(0, |listing| self.check_layout(listing));
        let mut report = CheckReport { leftovers, ..CheckReport::default() };
        let references = References::default();
        let Some(manifest) = self.check_front_page(&references) else {
            self.check_objects(&references, &CatalogTree::default(), true);
            return Ok(report);
        };
        let tags = manifest.history.map(|hash| self.check_tags(hash, &manifest, &references)).unwrap_or_default();
        if self.repository.has_reflog {
            self.check_reflog(&manifest);
        }
        let scope = match &self.options.path {
            Some(path) => {
                let size = manifest.catalog_size.unwrap_or(0);
                self.resolve(path, CatalogReference { hash: manifest.root_catalog, size })?
            }
            None => Scope::everything(),
        };
        let head = RootCatalog {
            name: ObjectName::of(manifest.root_catalog, ObjectKind::Catalog),
            size: manifest.catalog_size,
            referrer: ".cvmfspublished".to_owned(),
        };
        let tagged = tags.iter().filter(|_| scope.is_everything()).map(|tag| RootCatalog {
            name: tag.name,
            size: tag.size,
            referrer: tag.referrer.clone(),
        });
        let tree = self.walk([head].into_iter().chain(tagged), &scope, &references);
        self.compare_with_manifest(&manifest, &tree);
        self.compare_with_tags(&tags, &tree);
        self.check_consumers(&scope);
        (report.catalogs, report.entries) = tree.counts();
        let totals = self.check_objects(&references, &tree, scope.is_everything());
        (report.objects, report.bytes) = (totals.objects, totals.bytes);
        let is_listed = scope.is_everything() && self.store.listing().is_some();
        report.unreferenced = (is_listed && tree.is_complete()).then_some(totals.unreferenced);
        Ok(report)
    }

    fn compare_with_manifest(&self, manifest: &RepositoryManifest, tree: &CatalogTree) {
        let location = finding::Location::file(".cvmfspublished");
        let Some(root) = tree.root(ObjectName::of(manifest.root_catalog, ObjectKind::Catalog)) else { return };
        if let Some(size) = manifest.catalog_size {
            self.findings.require(&location, "size of the root catalog in field B:", root.size, size);
        }
        let revision = root.revision.as_deref().unwrap_or("0");
        let stated = manifest.revision.to_string();
        self.findings.require(&location, "revision of the root catalog in field S:", revision, &stated);
    }

    /// Counts an object that matches its name, but whose content strata cannot read.
    fn count_unsupported(&self, compression: UnsupportedCompression) {
        let mut unsupported = self.unsupported.lock().expect("no thread panics while it counts an object");
        *unsupported.entry(compression).or_default() += 1;
    }

    fn warn(&self, warning: String) {
        self.warnings.lock().expect("no thread panics while it warns").push(warning);
    }
}
