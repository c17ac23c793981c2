//! Errors of stores.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cancel::Cancelled;
use crate::http::HttpError;
use crate::object::{DecodeError, ObjectHash};
use crate::shortage::is_from_shortage;

/// Errors from reading and changing the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// The attempted action: "read", "write"…
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The directory lacks a file or directory that every repository has.
    #[error("'{}' is not the storage of a CVMFS repository: it has no {missing}", path.display())]
    NoRepository {
        /// The directory.
        path: PathBuf,
        /// The missing entry, relative to the directory.
        missing: &'static str,
    },
    /// The file does not exist.
    #[error("'{address}' does not exist")]
    Missing {
        /// Path or URL of the file.
        address: String,
    },
    /// Reading the file failed after it was opened.
    #[error("cannot read '{address}'")]
    Read {
        /// Path or URL of the file.
        address: String,
        /// The error of the operating system or of the connection.
        source: io::Error,
    },
    /// The file is longer than any valid file of this name.
    #[error("'{address}' is longer than the maximum of {limit} bytes")]
    TooLarge {
        /// Path or URL of the file.
        address: String,
        /// Maximum number of bytes that are read.
        limit: u64,
    },
    /// The bytes of an object do not match its name.
    #[error("object '{address}' is damaged: its bytes hash to {actual}")]
    WrongHash {
        /// Path or URL of the object.
        address: String,
        /// The hash of the bytes.
        actual: ObjectHash,
    },
    /// The bytes of an object match its name, but are not a zlib stream, or it is damaged.
    #[error("object '{address}' cannot be decompressed")]
    Undecodable {
        /// Path or URL of the object.
        address: String,
        /// The error of the decompressor.
        source: DecodeError,
    },
    /// A request to a web server failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A web server answered with an error.
    #[error("{url} returned status {status}")]
    Status {
        /// URL of the request.
        url: String,
        /// The status.
        status: u16,
    },
    /// The same request failed less than a second ago, and was not sent again.
    #[error("{reason} (this was less than a second ago, and was not tried again)")]
    FailedBefore {
        /// The error and its causes.
        reason: String,
    },
    /// The URL of a repository is not usable.
    #[error("cannot read a repository at '{url}': {reason}")]
    Url {
        /// The URL, without user and password.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The file system lacks a function that publishing needs.
    #[error("the file system of '{}' {fault}", path.display())]
    Unfit {
        /// A directory on this file system.
        path: PathBuf,
        /// The missing function, as the predicate of a sentence.
        fault: &'static str,
        /// How the probe failed.
        source: io::Error,
    },
    /// The operation was cancelled.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Another publisher holds the lock.
    #[error("{0}")]
    InUse(#[source] RepositoryInUse),
    /// Another program has replaced the file since it was read.
    #[error("'{address}' was replaced by a program that ignores the lock of the repository: run strata again")]
    Changed {
        /// Path or URL of the file.
        address: String,
    },
    /// Replacing a file failed, and the file cannot be read to find out whether it was replaced nevertheless.
    #[error("cannot tell whether '{address}' was replaced, because it cannot be read")]
    Unknown {
        /// Path or URL of the file that was to be replaced.
        address: String,
        /// The error from reading it.
        source: io::Error,
    },
}

/// Another publisher holds the lock of the repository.
///
/// This is always the last error in the chain of causes, and never wrapped as `transparent`: a transparent wrapper would
/// hide it from the search through the chain that chooses the exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another publisher has held '{place}' for {} s; --wait sets how long strata waits for it", waited.as_secs())]
pub struct RepositoryInUse {
    /// Path or URL of what is locked.
    pub place: String,
    /// How long this process waited.
    pub waited: Duration,
}

impl StoreError {
    /// Returns whether an object is missing, or its bytes do not match its name.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Undecodable { source, .. } => !matches!(source, DecodeError::Unsupported(_)),
            Self::Missing { .. } | Self::WrongHash { .. } => true,
            _ => false,
        }
    }

    /// Returns whether the cause of the error is not in the repository: a shortage of resources of this machine, a
    /// cancellation, or a web server that fails.
    pub(crate) fn is_obstacle(&self) -> bool {
        match self {
            Self::Cancelled(_) | Self::Http(_) | Self::Status { .. } | Self::FailedBefore { .. } => true,
            // Downloads wrap their error in one of I/O.
            Self::Read { source, .. } => {
                source.get_ref().is_some_and(|cause| cause.is::<Self>()) || is_from_shortage(self)
            }
            error => is_from_shortage(error),
        }
    }

    /// Returns whether the same request may succeed later: there was no complete response, or one with status 408, 429 or 5xx.
    pub(crate) fn may_be_temporary(&self) -> bool {
        match self {
            Self::Http(error) => error.is_transient() && !error.is_local(),
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::Read { .. } => self.is_obstacle(),
            Self::FailedBefore { .. } => true,
            _ => false,
        }
    }

    /// Returns the error for a lock of `place` that another publisher holds.
    pub(super) fn in_use(place: impl fmt::Display, waited: Duration) -> Self {
        Self::InUse(RepositoryInUse { place: place.to_string(), waited })
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}
