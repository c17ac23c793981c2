//! A repository that is read by its URL, as a CVMFS client reads it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rsa::PublicKey;

use crate::cancel::Cancellation;
use crate::check::CheckedRepository;
use crate::http::redacted;
use crate::manifest::keys::read_public_key;
use crate::manifest::{KeyError, RepositoryName, Whitelist, WhitelistError};
use crate::observer::Reporter;
use crate::repository::{NewestRevision, Repository, RepositoryError, Trust};
use crate::store::{CachedStore, HttpStore, SharedStore, StoreError};

/// Errors from using a repository by its URL.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The text is not the URL of a repository.
    #[error("'{url}' is not the URL of a repository, such as http://example.org/cvmfs/unpacked.example.org: {reason}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No public key was named.
    #[error("a repository that is read by its URL needs --public-key with the file of its master key")]
    NoKey,
    /// The public key cannot be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The cache cannot be used.
    #[error("cannot use the cache directory '{}'", path.display())]
    Cache {
        /// The directory or file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The servers cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The whitelist cannot be read.
    #[error("cannot read '.cvmfswhitelist'")]
    Whitelist(#[from] WhitelistError),
}

/// Separates the URLs of several servers with the same repository, as in `CVMFS_SERVER_URL`.
const SEPARATOR: char = ';';

/// A repository on web servers. Nothing of it is trusted that a master key does not vouch for.
#[derive(Debug)]
pub struct RemoteRepository {
    name: RepositoryName,
    urls: String,
    keys: Vec<PublicKey>,
    store: SharedStore,
    /// File with the number of the newest revision that was read.
    newest: Option<PathBuf>,
}

impl RemoteRepository {
    /// Returns whether a text is meant as a URL, and not as a directory.
    pub fn is_url(text: &str) -> bool {
        let text = text.trim_start();
        ["http://", "https://"]
            .iter()
            .any(|scheme| text.get(..scheme.len()).is_some_and(|is| is.eq_ignore_ascii_case(scheme)))
    }

    /// Creates the client of the repository at `urls`: one URL, or several with `;` between them, of servers that offer the
    /// same repository. `keys` are the files of the master keys of which one must have signed the whitelist. `timeout` is the time
    /// limit of [`HttpStore::new`].
    ///
    /// No request is sent.
    pub fn new(
        urls: &str,
        keys: &[PathBuf],
        timeout: Duration,
        reporter: &Reporter,
        cancellation: &Cancellation,
    ) -> Result<Self, RemoteError> {
        let parts = urls.split(SEPARATOR).map(str::trim).filter(|part| !part.is_empty());
        let parsed: Vec<Url> = parts.map(parse).collect::<Result<_, _>>()?;
        let urls = parsed.iter().map(redacted).collect::<Vec<_>>().join("; ");
        let names = parsed.iter().map(name_of).collect::<Result<Vec<_>, _>>()?;
        let Some(name) = names.first().cloned() else {
            return Err(RemoteError::Url { url: urls, reason: "it is empty".to_owned() });
        };
        if let Some(other) = names.iter().find(|other| **other != name) {
            let reason = format!("the servers must offer the same repository, not '{name}' and '{other}'");
            return Err(RemoteError::Url { url: urls, reason });
        }
        if keys.is_empty() {
            return Err(RemoteError::NoKey);
        }
        let keys = keys.iter().map(|path| read_public_key(path)).collect::<Result<_, _>>()?;
        let store = HttpStore::new(&parsed, timeout, reporter, cancellation)?.into();
        Ok(Self { name, urls, keys, store, newest: None })
    }

    /// Keeps objects in `directory`, up to `capacity` bytes, and remembers the newest revision there. Several repositories may
    /// share the directory.
    pub fn use_cache(&mut self, directory: &Path, capacity: u64) -> Result<(), RemoteError> {
        let directory = directory.join(self.name.as_str());
        fs::create_dir_all(&directory).map_err(|source| RemoteError::Cache { path: directory.clone(), source })?;
        self.store = CachedStore::new(Arc::clone(&self.store), &directory, capacity)?.into();
        self.newest = Some(directory.join("newest-revision"));
        Ok(())
    }

    /// Returns the name of the repository, from its URL.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// Returns the URLs, without users and passwords.
    pub fn urls(&self) -> &str {
        &self.urls
    }

    /// Opens the head, after verifying it from the master keys on.
    pub fn open(&self) -> Result<Repository, RemoteError> {
        let newest = self.newest.clone().map_or_else(NewestRevision::default, NewestRevision::in_file);
        let trust = Trust::MasterKeys { keys: self.keys.clone(), newest };
        Ok(Repository::open_trusted(Arc::clone(&self.store), &self.name, trust)?)
    }

    /// Reads the whitelist without verifying its signature; `None` if it does not exist.
    pub fn whitelist(&self) -> Result<Option<Whitelist>, RemoteError> {
        let bytes = self.store.read_file(".cvmfswhitelist")?;
        Ok(bytes.map(|bytes| Whitelist::parse(&bytes).map(|signed| signed.whitelist)).transpose()?)
    }

    /// Returns what a check needs.
    pub fn checked(&self) -> CheckedRepository {
        // Of several servers, the first one whose manifest can be verified is checked. If the manifest of no server can be verified, the check reports why.
        self.open().ok();
        CheckedRepository {
            store: Arc::clone(&self.store),
            name: self.name.clone(),
            master_keys: self.keys.clone(),
            reflog_checksum: None,
            has_reflog: false,
            warnings: vec![
                "the files of a repository cannot be listed by its URL: files without a reference, permissions, and leftovers are \
                 not checked"
                    .to_owned(),
                "the reflog is not checked: a replica has one of its own".to_owned(),
            ],
        }
    }
}

fn parse(text: &str) -> Result<Url, RemoteError> {
    text.parse().map_err(|error| RemoteError::Url { url: without_user(text), reason: format!("{error}") })
}

/// Returns a text that is not a valid URL without what may be a user and a password.
fn without_user(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let end = rest.find('/').unwrap_or(rest.len());
    let host = rest[..end].rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{}", &rest[end..])
}

/// Returns the name of the repository: the last component of its URL.
fn name_of(url: &Url) -> Result<RepositoryName, RemoteError> {
    let last = url.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    last.parse().map_err(|error| RemoteError::Url { url: redacted(url), reason: format!("{error}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_the_last_component_of_each_url() {
        let name = |urls: &str| {
            let urls: Vec<Url> = urls.split(SEPARATOR).map(|url| parse(url).unwrap()).collect();
            urls.iter().map(|url| name_of(url).map(|name| name.to_string()).ok()).collect::<Vec<_>>()
        };
        let found = Some("unpacked.example.org".to_owned());
        assert_eq!(name("http://h.org/cvmfs/unpacked.example.org"), vec![found.clone()]);
        assert_eq!(
            name("http://h.org:8000/unpacked.example.org/; https://i.org/a/b/unpacked.example.org"),
            [found.clone(), found]
        );
        assert_eq!(name("http://h.org/"), [None]);
        assert!(
            RemoteRepository::is_url("HTTPS://h.org/a.b")
                && !RemoteRepository::is_url("http:/x")
                && !RemoteRepository::is_url("ä")
        );
    }

    #[test]
    fn servers_must_offer_the_same_repository() {
        let new = |urls: &str| {
            let timeout = Duration::from_secs(1);
            RemoteRepository::new(urls, &[], timeout, &Reporter::silent(), &Cancellation::default()).unwrap_err()
        };
        assert!(new("http://h.org/a.org;http://i.org/b.org").to_string().contains("'a.org' and 'b.org'"));
        assert!(matches!(new("http://h.org/a.org"), RemoteError::NoKey));
        for wrong in ["http://", "", " ; "] {
            assert!(matches!(new(wrong), RemoteError::Url { .. }), "{wrong}");
        }
    }
}
