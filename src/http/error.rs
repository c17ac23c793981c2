//! Errors of HTTP requests. No message contains credentials or the query of a URL.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::is_distrust;
use crate::shortage::is_from_shortage;

/// A file or an environment variable that configures requests is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file named in the settings or the environment cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A file with credentials or certificates is invalid. The message does not quote its content.
    #[error("cannot use {path:?}: {fault}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// An environment variable is invalid. The message does not quote its value.
    #[error("{variable} {fault}")]
    Variable {
        /// Name of the variable.
        variable: String,
        /// What is wrong with it.
        fault: &'static str,
    },
}

/// An error of an HTTP request without a usable response. A response with an error status is no such error.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// What configures the requests is not usable.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// The HTTP client cannot be created.
    #[error("cannot create the HTTP client")]
    Client(#[source] Box<dyn Error + Send + Sync>),
    /// The thread of an HTTP client cannot be started.
    #[error("cannot start a thread for HTTP (see `ulimit -u`)")]
    Thread(#[source] Box<dyn Error + Send + Sync>),
    /// The connection failed, or the response is incomplete.
    #[error("cannot reach {url}")]
    Unreachable {
        /// URL of the request.
        url: String,
        /// Error of the HTTP client.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The response to a small request was not complete within its time limit.
    #[error("{url} sent no complete response within {}", humantime::format_duration(*.limit))]
    TooSlow {
        /// URL of the request.
        url: String,
        /// The time limit.
        limit: Duration,
    },
    /// A redirect cannot be followed.
    #[error("cannot follow the redirect or link from {url}: {reason}")]
    Redirect {
        /// URL of the request.
        url: String,
        /// Reason why it is rejected.
        reason: &'static str,
    },
    /// The response does not follow the protocol.
    #[error("{url} returned an unusable response: {reason}")]
    InvalidResponse {
        /// URL of the request.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The response is larger than the limit for its kind.
    #[error("{url} returned more than {limit} bytes, the limit for this kind of response")]
    TooLarge {
        /// URL of the request.
        url: String,
        /// Maximum size in bytes.
        limit: u64,
    },
}

impl HttpError {
    /// Returns whether the cause of the error is at this machine: settings, or a shortage of resources.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Configuration(_) | Self::Client(_) | Self::Thread(_) => true,
            error => is_from_shortage(error),
        }
    }

    /// Returns whether the same request may succeed later, because there was no complete response. An untrusted certificate is a
    /// permanent error.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !is_distrust(source.as_ref()),
            Self::TooSlow { .. } => true,
            _ => false,
        }
    }
}
