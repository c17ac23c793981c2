//! Publishes a new revision of a repository, completely or not at all.
//!
//! All objects of a revision are durable in the store before its manifest, a small file, is replaced atomically. Only the commit
//! holds the lock of the repository. A second publisher waits for the lock. Then it opens the revision of the first publisher,
//! and applies the edits to that revision.

mod commit;
mod edit_list;
mod init;
mod locked;

use crate::catalog::{BuildError, CatalogReference, HistoryError, StoredTree};
use crate::directory::DirectoryError;
use crate::manifest::letter::SignError;
use crate::manifest::{Fingerprint, KeyError, WhitelistError};
use crate::metadata::Timestamp;
use crate::object::{Content, ObjectHash};
use crate::repository::RepositoryError;
use crate::store::StoreError;
use crate::threads::ThreadsError;

pub use commit::{Commit, Committer, PublishOptions, Publisher};
pub(crate) use commit::{check_clock, write_catalogs};
pub use edit_list::{EditError, EditList};
pub use init::{NewRepository, create_provisional_repository, create_repository};
pub use locked::LockedCommitter;

/// Errors because of which nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store failed, or another publisher holds its lock.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The head cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// A catalog could not be created.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The tag database or reflog could not be created.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The manifest could not be signed.
    #[error("cannot sign the manifest")]
    Sign(#[from] SignError),
    /// The keys could not be created or used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The whitelist could not be created or is invalid.
    #[error(transparent)]
    Whitelist(#[from] WhitelistError),
    /// The directory could not be created.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The whitelist does not list the certificate of the signing key.
    #[error(
        "clients would refuse the new manifest: '{WHITELIST}' does not list the certificate {0} of the key that signs it"
    )]
    NotListed(Fingerprint),
    /// The whitelist is missing.
    #[error("'{WHITELIST}' is missing: clients refuse a repository without it")]
    NoWhitelist,
    /// The clock is probably wrong. A revision with a wrong time could not be corrected, because no later revision may have an
    /// earlier time.
    #[error(
        "the clock says {now}, which is more than a year after the last revision ({last}): correct the clock, or publish with \
         --accept-clock"
    )]
    Clock {
        /// Time of this machine.
        now: Timestamp,
        /// Time of the last revision.
        last: Timestamp,
    },
    /// The operating system refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// An object was deleted that the revision refers to.
    #[error("object {0} was deleted while this run relied on it: run strata again")]
    Vanished(ObjectHash),
}

/// Errors because of which a commit published nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommitError<E: std::error::Error + 'static> {
    /// The revision cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The edits of the head cannot be determined.
    #[error("cannot prepare the revision")]
    Prepare(#[source] E),
}

/// One change of the head, at a path.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Makes the directory a nested catalog. Creates it if it does not exist.
    Catalog,
    /// Puts a tree whose catalogs are stored.
    Tree(Box<StoredTree>),
    /// Puts a small file that strata created, with mode 0644.
    File {
        /// Its size in bytes.
        size: u64,
        /// Its objects.
        content: Content,
    },
    /// Puts a symbolic link with this target.
    Symlink(Vec<u8>),
    /// Puts a symbolic link with this target, in which clients expand variables.
    VariantLink(Vec<u8>),
    /// Removes any existing entry.
    Remove,
}

/// A published revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision {
    /// Its number.
    pub number: u64,
    /// Its root catalog.
    pub root: CatalogReference,
}

/// A published revision, and the errors of later steps.
#[derive(Debug)]
#[must_use = "errors of later steps must be reported"]
pub struct Publication {
    /// The revision.
    pub revision: Revision,
    /// Errors of steps after the publication.
    pub late_errors: Vec<StoreError>,
}

/// An error from after the publication of revisions.
///
/// The exit code distinguishes this error from errors because of which nothing was published. The binary searches for it in the
/// chain of causes. Therefore wrap it as a source, never transparently.
#[derive(Debug, thiserror::Error)]
#[error("{published}, but a later step failed")]
pub struct AfterPublication {
    published: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl AfterPublication {
    /// Creates an error for the numbers of the published revisions, at least one, and the cause.
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

const MANIFEST: &str = ".cvmfspublished";
const REFLOG: &str = ".cvmfsreflog";
const WHITELIST: &str = ".cvmfswhitelist";

#[cfg(test)]
mod tests;
