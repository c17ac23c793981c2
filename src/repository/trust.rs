//! How the manifest of a repository is verified.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rsa::PublicKey;

use super::RepositoryError;
use crate::file::read_regular_text;
use crate::manifest::{Certificate, FrontPage, RepositoryManifest, RepositoryName};
use crate::message::causes;
use crate::metadata::Timestamp;
use crate::object::{ObjectKind, SizeLimit};
use crate::observer::Reporter;
use crate::store::SharedStore;

/// How the manifest of the head is verified.
#[derive(Debug, Default)]
pub enum Trust {
    /// As that of a repository whose storage is trusted: the certificate that the manifest names must have signed it.
    #[default]
    Storage,
    /// As clients do: one of the master keys must have signed a whitelist that lists the certificate and has not expired, and the
    /// manifest must not be older than one that was read before.
    MasterKeys {
        /// The master keys.
        keys: Vec<PublicKey>,
        /// The newest revision that was read.
        newest: NewestRevision,
    },
}

impl Trust {
    /// Reads the manifest of the head and verifies it. If the storage is on several servers, returns the first manifest that can be
    /// verified, or the error of the first server.
    pub(super) fn read_manifest(
        &self,
        store: &SharedStore,
        name: &RepositoryName,
    ) -> Result<RepositoryManifest, RepositoryError> {
        let mut failure = None;
        for server in store.servers() {
            match self.read_manifest_at(&server, store, name) {
                Ok(manifest) => return Ok(manifest),
                Err(error) => {
                    store.reporter().debug(format_args!("trying the next server: {}", causes(&error)));
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or_else(|| self.read_manifest_at(store, store, name), Err)
    }

    /// Verifies the manifest of one server. The certificate is an object, so any server may have it.
    fn read_manifest_at(
        &self,
        server: &SharedStore,
        store: &SharedStore,
        name: &RepositoryName,
    ) -> Result<RepositoryManifest, RepositoryError> {
        let bytes = server.read_file(".cvmfspublished")?.ok_or_else(|| RepositoryError::NoManifest(name.clone()))?;
        let signed =
            RepositoryManifest::parse(&bytes).map_err(|error| RepositoryError::Manifest(name.clone(), error))?;
        if signed.manifest.name != *name {
            return Err(RepositoryError::WrongName { expected: name.clone(), actual: signed.manifest.name });
        }
        let certificate = signed.manifest.certificate;
        let pem = store.read_decoded(certificate, ObjectKind::Certificate, CERTIFICATE_LIMIT);
        let pem = pem.map_err(RepositoryError::of_root_object("certificate"))?;
        match self {
            Self::Storage => {
                let parsed = Certificate::parse(&pem);
                let certificate = parsed.map_err(|error| RepositoryError::Certificate(certificate, error))?;
                signed.verify(&certificate).map_err(|error| RepositoryError::Signature(name.clone(), error))?;
                Ok(signed.manifest)
            }
            Self::MasterKeys { keys, newest } => {
                let list = server.get(".cvmfswhitelist", MAX_WHITELIST)?;
                let list = list.ok_or_else(|| RepositoryError::NoWhitelist(name.clone()))?;
                let page = FrontPage { manifest: &bytes, certificate: &pem, whitelist: &list };
                let verified = page.verify(keys, name, Timestamp::now());
                let manifest = verified.map_err(|error| RepositoryError::Untrusted(name.clone(), error))?;
                newest.accept(&manifest, store.reporter())?;
                Ok(manifest)
            }
        }
    }
}

/// The newest revision of a repository that was read. An attacker who holds back updates could otherwise serve an old revision,
/// whose signature is still valid.
#[derive(Debug, Default)]
pub struct NewestRevision {
    seen: Mutex<u64>,
    /// File that holds the number between runs.
    file: Option<PathBuf>,
}

impl NewestRevision {
    /// Keeps the number of the newest revision in `file`, which need not exist. Other processes may use the same file.
    pub fn in_file(file: PathBuf) -> Self {
        Self { seen: Mutex::default(), file: Some(file) }
    }

    /// Accepts the manifest of the newest revision. Fails if a newer one was accepted before.
    ///
    /// If the file cannot be used, there is a warning, and the number is kept until the process ends.
    fn accept(&self, manifest: &RepositoryManifest, reporter: &Reporter) -> Result<(), RepositoryError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = manifest.revision;
        if let Some(file) = &self.file {
            match raise(file, revision) {
                Ok(newest) => *seen = newest.max(*seen),
                Err(error) => {
                    let file = file.display();
                    reporter.warn(format_args!("cannot keep the number of the newest revision in '{file}': {error}"));
                }
            }
        }
        *seen = revision.max(*seen);
        match *seen {
            newest if revision < newest => {
                Err(RepositoryError::OldManifest { name: manifest.name.clone(), revision, seen: newest })
            }
            _ => Ok(()),
        }
    }
}

/// Replaces the number in the file by `revision` if that is higher, and returns the higher number.
fn raise(file: &Path, revision: u64) -> io::Result<u64> {
    let directory = file.parent().unwrap_or(Path::new("."));
    // Another process that reads the same repository may replace the file at the same time.
    let lock = fs::File::open(directory)?;
    lock.lock()?;
    // A file without a number is one that was being written when the machine lost power.
    let known = match read_regular_text(file) {
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if revision > known {
        let mut new = tempfile::NamedTempFile::new_in(directory)?;
        writeln!(new, "{revision}")?;
        new.as_file().sync_all()?;
        new.persist(file).map_err(|error| error.error)?;
        lock.sync_all()?;
    }
    Ok(revision.max(known))
}

/// Maximum size of a decompressed certificate.
const CERTIFICATE_LIMIT: SizeLimit = SizeLimit::of(1 << 20);

/// Maximum size of a whitelist in bytes. Some list the certificates of many publishers.
const MAX_WHITELIST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::fixtures;

    fn manifest(revision: u64) -> RepositoryManifest {
        RepositoryManifest { revision, ..RepositoryManifest::parse(fixtures::MANIFEST).unwrap().manifest }
    }

    #[test]
    fn number_of_the_newest_revision_is_never_lowered() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("newest-revision");
        let [one, other] = [(); 2].map(|()| NewestRevision::in_file(file.clone()));
        let accept =
            |newest: &NewestRevision, revision| newest.accept(&manifest(revision), &Reporter::silent()).is_ok();
        assert!(accept(&one, 2) && accept(&other, 4) && accept(&other, 4));
        assert!(!accept(&one, 3), "another process has read revision 4");
        assert!(!accept(&NewestRevision::in_file(file.clone()), 3));
        assert_eq!(fs::read_to_string(&file).unwrap(), "4\n");
        fs::write(&file, "").unwrap();
        assert!(accept(&NewestRevision::in_file(file.clone()), 3) && !accept(&other, 3));
    }

    #[test]
    fn number_is_kept_in_memory_if_the_file_cannot_be_written() {
        let newest = NewestRevision::in_file(PathBuf::from("/nonexistent/newest-revision"));
        let accept = |revision| newest.accept(&manifest(revision), &Reporter::silent()).is_ok();
        assert!(accept(3) && !accept(2) && accept(3));
    }
}
