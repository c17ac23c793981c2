//! Why a registry did not give what it was asked for. Neither credentials nor queries of URLs appear in any message.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use super::http::is_distrust;
use crate::image::Digest;
use crate::message::quoted;

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The settings of a registry cannot be used.
    #[error("registry {host} cannot be used as it is set: {fault}")]
    Settings {
        /// The registry as the settings name it.
        host: String,
        /// What is wrong.
        fault: &'static str,
    },
    /// A file that the settings or the environment name cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file of credentials or certificates is damaged. What it holds is not shown.
    #[error("cannot use {path:?}: {fault}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A variable of the environment cannot be used. Its value is not shown.
    #[error("{variable} {fault}")]
    Variable {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The program that keeps credentials failed.
    #[error("cannot get credentials for {host} from '{program}': {fault}")]
    Helper {
        /// The program.
        program: String,
        /// The registry.
        host: String,
        /// What went wrong.
        fault: String,
    },
    /// No client for HTTP can be made.
    #[error("cannot set up HTTP")]
    Client(#[source] Box<dyn Error + Send + Sync>),
    /// A text from a registry or a user is no URL that can be asked.
    #[error("{} is not a URL that can be asked", quoted(.0))]
    Url(String),
    /// There was no answer, or it broke off.
    #[error("cannot reach {url}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A small request was not answered in full in the time that it may take.
    #[error("{url} gave no complete answer within {}", humantime::format_duration(*.limit))]
    TooSlow {
        /// What was asked.
        url: String,
        /// How long it may take.
        limit: std::time::Duration,
    },
    /// The registry left several requests in a row without an answer, and is left alone for a while.
    #[error("{host} is not asked for now: it left {failures} requests in a row without an answer")]
    GivenUp {
        /// The registry.
        host: String,
        /// How many requests had no answer.
        failures: u32,
    },
    /// The answer leads somewhere else in a way that is not followed.
    #[error("{url} leads elsewhere in a way that is not followed: {reason}")]
    Redirect {
        /// What was asked.
        url: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// The registry does not have it, or hides it.
    #[error("{} has no {what}{error}", mirror.as_ref().map_or("registry".to_owned(), |mirror| format!("mirror {mirror}")))]
    NotFound {
        /// What was asked for.
        what: String,
        /// The mirror that was asked, if it was not the registry itself.
        mirror: Option<String>,
        /// What the registry says.
        error: ErrorBody,
    },
    /// The registry does not give it to whoever asks.
    #[error(
        "{}: {what}{}{error} ({credentials})",
        if *status == 403 { "denied" } else { "unauthorized" },
        mirror.as_ref().map(|mirror| format!(" at mirror {mirror}")).unwrap_or_default()
    )]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// The mirror that was asked, if it was not the registry itself.
        mirror: Option<String>,
        /// The status: 401 or 403.
        status: u16,
        /// What the registry says.
        error: ErrorBody,
        /// Whose credentials were shown, or where some were looked for.
        credentials: String,
    },
    /// The registry asks for credentials in a way that is not known or not safe.
    #[error("{url} asks for credentials in a way that is not followed: {reason}")]
    Challenge {
        /// What was asked.
        url: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// The registry answers with another status.
    #[error("{url} answers with status {status}{error}")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
        /// What the registry says.
        error: ErrorBody,
    },
    /// The registry wants no more requests for a while.
    #[error("{host} asks to wait {}", humantime::format_duration(std::time::Duration::from_secs(*.seconds)))]
    Parked {
        /// The registry.
        host: String,
        /// Until when nothing is sent.
        until: Instant,
        /// How long that is, in seconds.
        seconds: u64,
    },
    /// The answer has a form that no registry gives.
    #[error("{url} gives no usable answer: {reason}")]
    InvalidResponse {
        /// What was asked.
        url: String,
        /// How that shows.
        reason: String,
    },
    /// The answer is larger than any honest one.
    #[error("{url} answers with more than the {limit} bytes that are read")]
    TooLarge {
        /// What was asked.
        url: String,
        /// The size up to which it is read.
        limit: u64,
    },
    /// The answer is not what its digest promises.
    #[error("{url} answers with something of digest {actual} instead of {expected}")]
    WrongDigest {
        /// What was asked.
        url: String,
        /// The digest that was asked for, or that the registry gives it.
        expected: Digest,
        /// The digest that it has.
        actual: Digest,
    },
    /// The blob ends before the byte that was asked for.
    #[error("{url} has no byte {offset}")]
    Range {
        /// What was asked.
        url: String,
        /// The first byte that was asked for.
        offset: u64,
    },
}

/// What a registry says of an error (distribution-spec, "Error Codes"); anybody may have written it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// The code of the first error, such as `MANIFEST_UNKNOWN`; may be empty.
    pub code: String,
    /// Its message; may be empty.
    pub message: String,
}

impl ErrorBody {
    /// Reads the first error of a body. A body of another form says nothing.
    pub(super) fn parse(body: &[u8]) -> Self {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Body {
            errors: Vec<serde_json::Value>,
            // As token services and some registries have it.
            details: serde_json::Value,
            error: serde_json::Value,
            message: serde_json::Value,
            error_description: serde_json::Value,
        }
        let Ok(body) = serde_json::from_slice::<Body>(body) else { return Self::default() };
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        if let Some(error) = body.errors.first() {
            return Self { code: text(&error["code"]), message: text(&error["message"]) };
        }
        let message = [&body.error_description, &body.message, &body.details].map(text);
        let message = message.into_iter().find(|message| !message.is_empty()).unwrap_or_default();
        Self { code: text(&body.error), message }
    }

    /// Blanks what was shown to the server: some repeat the whole request.
    pub(super) fn without(mut self, authorization: Option<&str>) -> Self {
        let secret = authorization.and_then(|authorization| authorization.split_once(' ')).map(|(_, secret)| secret);
        if let Some(secret) = secret.filter(|secret| !secret.is_empty()) {
            self.code = self.code.replace(secret, "…");
            self.message = self.message.replace(secret, "…");
        }
        self
    }
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tamed = |text: &str| quoted(text).trim_matches('"').to_owned();
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => Ok(()),
            (code, "") => write!(f, ": {}", tamed(code)),
            ("", message) => write!(f, ": {}", tamed(message)),
            (code, message) => write!(f, ": {}, {}", tamed(code), tamed(message)),
        }
    }
}

impl RegistryError {
    /// Tells whether the registry says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Returns until when the registry wants no more requests, if it said so.
    pub fn parked_until(&self) -> Option<Instant> {
        match self {
            Self::Parked { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Tells whether it comes from what a server answered, or that it did not, so that it may do better when it is asked in
    /// another way.
    pub(super) fn may_depend_on_method(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TooSlow { .. } | Self::Redirect { .. } | Self::NotFound { .. } => true,
            Self::Unauthorized { .. } | Self::Challenge { .. } | Self::Status { .. } | Self::InvalidResponse { .. } => {
                true
            }
            Self::TooLarge { .. } | Self::WrongDigest { .. } | Self::Range { .. } => true,
            Self::Settings { .. } | Self::Read { .. } | Self::Invalid { .. } | Self::Variable { .. } => false,
            Self::Helper { .. } | Self::Client(_) | Self::Url(_) => false,
            Self::Parked { .. } | Self::GivenUp { .. } => false,
        }
    }

    /// Tells whether there was no answer, or not all of one.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::TooSlow { .. } | Self::Unreachable { .. }) && self.is_transient()
    }

    /// Tells whether the registry wants no requests now, or is left alone because it does not answer any. That says
    /// nothing about what was asked for.
    pub fn is_postponed(&self) -> bool {
        matches!(self, Self::Parked { .. } | Self::GivenUp { .. })
    }

    /// Tells whether the same request may well succeed later: there was no answer, or one of status 408, 429 or 5xx. A
    /// server whose certificate is not trusted has answered.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !is_distrust(source.as_ref()),
            Self::Parked { .. } | Self::TooSlow { .. } | Self::GivenUp { .. } => true,
            Self::Status { status, .. } => *status == 408 || *status >= 500,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_error_of_a_body_is_reported() {
        let echo = ErrorBody::parse(br#"{"errors":[{"code":"X","message":"you sent Basic c2VjcmV0"}]}"#);
        assert!(!echo.without(Some("Basic c2VjcmV0")).to_string().contains("c2VjcmV0"));
        let text = |body: &str| ErrorBody::parse(body.as_bytes()).to_string();
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}},{}]}"#;
        assert_eq!(text(body), ": MANIFEST_UNKNOWN, manifest unknown");
        assert_eq!(text(r#"{"errors":[{"message":"only"}]}"#), ": only");
        assert_eq!(text(r#"{"details":"incorrect username or password"}"#), ": incorrect username or password");
        assert_eq!(text(r#"{"error":"invalid_grant","error_description":"no"}"#), ": invalid_grant, no");
        for nothing in ["", "{}", "<html>", r#"{"errors":[]}"#, r#"{"errors":null}"#, r#"{"errors":[1]}"#] {
            assert_eq!(text(nothing), "", "{nothing}");
        }
    }

    #[test]
    fn what_is_said_is_tamed_and_cut() {
        let error = ErrorBody { code: "a\x1b[31m\n".to_owned(), message: "m".repeat(300) };
        let text = error.to_string();
        assert!(!text.contains(char::is_control) && text.len() < 250, "{text}");
    }

    #[test]
    fn only_what_may_pass_is_transient() {
        let status = |status| RegistryError::Status { url: String::new(), status, error: ErrorBody::default() };
        for transient in [408, 500, 502, 503, 504] {
            assert!(status(transient).is_transient(), "{transient}");
        }
        for lasting in [400, 404, 405, 418, 407] {
            assert!(!status(lasting).is_transient(), "{lasting}");
        }
    }
}
