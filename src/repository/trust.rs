//! How the manifest of a repository is verified.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rsa::PublicKey;

use super::RepositoryError;
use crate::file::read_regular_text;
use crate::manifest::{Certificate, FrontPage, RepositoryManifest, RepositoryName};
use crate::metadata::Timestamp;
use crate::object::{ObjectKind, SizeLimit};
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
    /// Reads the manifest of the head and verifies it.
    pub(super) fn read_manifest(
        &self,
        store: &SharedStore,
        name: &RepositoryName,
    ) -> Result<RepositoryManifest, RepositoryError> {
        let bytes = store.read_file(".cvmfspublished")?.ok_or_else(|| RepositoryError::NoManifest(name.clone()))?;
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
                let list = store.get(".cvmfswhitelist", MAX_WHITELIST)?;
                let list = list.ok_or_else(|| RepositoryError::NoWhitelist(name.clone()))?;
                let page = FrontPage { manifest: &bytes, certificate: &pem, whitelist: &list };
                let verified = page.verify(keys, name, Timestamp::now());
                let manifest = verified.map_err(|error| RepositoryError::Untrusted(name.clone(), error))?;
                newest.accept(&manifest)?;
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
    /// Reads the number of the newest revision from `file`, which need not exist. Later numbers are written there.
    pub fn in_file(file: PathBuf) -> io::Result<Self> {
        let seen = match read_regular_text(&file) {
            Ok(text) => text.trim().parse().map_err(|_| io::Error::other("it is not the number of a revision"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { seen: Mutex::new(seen), file: Some(file) })
    }

    /// Accepts the manifest of the newest revision. Fails if a newer one was accepted before.
    fn accept(&self, manifest: &RepositoryManifest) -> Result<(), RepositoryError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, revision) = (manifest.name.clone(), manifest.revision);
        if revision < *seen {
            return Err(RepositoryError::OldManifest { name, revision, seen: *seen });
        }
        if revision > *seen
            && let Some(file) = &self.file
        {
            write(file, revision).map_err(|source| RepositoryError::Memory { path: file.clone(), source })?;
        }
        *seen = revision;
        Ok(())
    }
}

/// Replaces the number in the file.
fn write(file: &Path, revision: u64) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(directory)?;
    writeln!(new, "{revision}")?;
    new.persist(file).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

/// Maximum size of a decompressed certificate.
const CERTIFICATE_LIMIT: SizeLimit = SizeLimit::of(1 << 20);

/// Maximum size of a whitelist in bytes. Some list the certificates of many publishers.
const MAX_WHITELIST: u64 = 1 << 20;
