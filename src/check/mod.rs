//! Checks a repository, from the signatures down to the last byte of the last object.
//!
//! What other programs may lawfully have written is no finding, however little strata would write it itself: sparse row
//! numbers, older schemas, hashes of other algorithms, files without objects. And what a killed publisher or a garbage
//! collection leaves behind is told, but harms nobody.
//!
//! Catalogs are walked level by level, one in memory for each thread. What they refer to is noted in few bytes, sorted by
//! object, and then compared with the store directory by directory; which path referred to an object is looked up again only
//! when something is wrong with it.

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

use std::io;
use std::sync::Mutex;

use rsa::PublicKey;

use crate::catalog::CatalogReference;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::manifest::{KeyError, RepositoryManifest, RepositoryName};
use crate::metadata::Timestamp;
use crate::object::ObjectKind;
use crate::progress::Progress;
use crate::store::DirectoryStore;
use crate::threads::{self, ThreadsError};

pub use finding::Finding;

use finding::Findings;
use name::ObjectName;
use reference::References;
use scope::Scope;
use tree::{Root, Tree};

/// Why a repository could not be checked. That it has no manifest is a finding instead.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The directory, or the public key in it, cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Nothing is at the path that was to be checked.
    #[error("nothing is at '{0}' in the repository")]
    NoSuchPath(String),
    /// The path leads out of the repository.
    #[error("'{0}' leads out of the repository, or round in circles")]
    Elsewhere(String),
    /// The system gives no threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// What to check, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only this path, or the image of this name, and what lies below it.
    pub path: Option<String>,
    /// Do not read the content of objects.
    pub quick: bool,
    /// How many threads work.
    pub threads: usize,
    /// The time to compare the whitelist with.
    pub now: Timestamp,
}

/// Objects that neither the head nor a tag leads to: lawful, and what a garbage collection removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unreferenced {
    /// How many there are.
    pub objects: u64,
    /// Their bytes in the store.
    pub bytes: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Everything that is wrong, in order.
    pub findings: Vec<Finding>,
    /// What somebody should know, though it is not wrong.
    pub warnings: Vec<String>,
    /// Catalogs that were read.
    pub catalogs: u64,
    /// Rows in them.
    pub entries: u64,
    /// Objects that something refers to and that are there.
    pub objects: u64,
    /// Their bytes in the store.
    pub bytes: u64,
    /// What nothing refers to; not known where a catalog cannot be read, or only a path was checked.
    pub unreferenced: Option<Unreferenced>,
    /// Files that killed runs left behind.
    pub leftovers: u64,
}

/// Checks the repository in `directory`.
///
/// Nothing is changed, and no private key is read. What other programs publish meanwhile is not looked at: the head is
/// what the manifest says at the start.
pub fn check(directory: &RepositoryDirectory, options: &Options, progress: &Progress) -> Result<Report, CheckError> {
    let mut check = Check {
        store: DirectoryStore::at(&directory.storage_path()),
        name: directory.name(),
        master_key: None,
        options,
        progress,
        findings: Findings::default(),
        warnings: Mutex::default(),
    };
    match directory.public_key() {
        Ok(key) => check.master_key = Some(key),
        Err(DirectoryError::Keys(KeyError::Read { source, .. }))
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            let key = directory.public_key_path();
            check.warn(format!("'{}' is not for this user: who signed the whitelist is not checked", key.display()));
        }
        Err(error) => return Err(error.into()),
    }
    let threads = threads::pool(options.threads)?;
    let mut report = threads.install(|| check.run(directory))?;
    report.warnings = check.warnings.into_inner().expect("no thread panics while it warns");
    report.warnings.sort();
    report.warnings.dedup();
    report.findings = check.findings.sorted();
    Ok(report)
}

/// A check that is being done.
struct Check<'c> {
    store: DirectoryStore,
    name: &'c RepositoryName,
    /// The master key's public half, if this user may read it.
    master_key: Option<PublicKey>,
    options: &'c Options,
    progress: &'c Progress,
    findings: Findings,
    warnings: Mutex<Vec<String>>,
}

impl Check<'_> {
    fn run(&self, directory: &RepositoryDirectory) -> Result<Report, CheckError> {
        self.progress.set_activity("checking the front page".to_owned());
        let mut report = Report { leftovers: self.check_layout(), ..Report::default() };
        let references = References::default();
        let Some(manifest) = self.check_front_page(&references) else {
            self.check_objects(&references, &Tree::default(), true);
            return Ok(report);
        };
        let tags = manifest.history.map(|hash| self.check_tags(hash, &manifest, &references)).unwrap_or_default();
        self.check_reflog(&manifest, directory);
        let scope = match &self.options.path {
            Some(path) => {
                let size = manifest.catalog_size.unwrap_or(0);
                self.resolve(path, CatalogReference { hash: manifest.root_catalog, size })?
            }
            None => Scope::everything(),
        };
        let head = Root {
            name: ObjectName::of(manifest.root_catalog, ObjectKind::Catalog),
            size: manifest.catalog_size,
            referrer: ".cvmfspublished".to_owned(),
        };
        let tagged = tags.iter().filter(|_| scope.is_everything()).map(|tag| Root {
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
        report.unreferenced = (scope.is_everything() && tree.is_complete()).then_some(totals.unreferenced);
        Ok(report)
    }

    fn compare_with_manifest(&self, manifest: &RepositoryManifest, tree: &Tree) {
        let place = finding::Place::file(".cvmfspublished");
        let Some(root) = tree.root(ObjectName::of(manifest.root_catalog, ObjectKind::Catalog)) else { return };
        if let Some(size) = manifest.catalog_size {
            self.findings.require(&place, "size of the root catalog in field B:", root.size, size);
        }
        let revision = root.revision.as_deref().unwrap_or("0");
        let stated = manifest.revision.to_string();
        self.findings.require(&place, "revision of the root catalog in field S:", revision, &stated);
    }

    fn warn(&self, warning: String) {
        self.warnings.lock().expect("no thread panics while it warns").push(warning);
    }
}
