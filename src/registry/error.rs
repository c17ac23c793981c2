//! Errors of the registry client. No message contains credentials or the query of a URL.

use std::fmt;
use std::io::Read as _;
use std::time::{Duration, Instant};

use crate::cancel::Cancelled;
use crate::http::{ConfigurationError, HttpError, HttpResponse, read_until};
use crate::image::Digest;
use crate::message::quoted;
use crate::shortage::is_from_shortage;

/// An error of a request to a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The operation was cancelled.
    #[error(transparent)]
    Cancelled(Cancelled),
    /// A request failed without a usable response.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The settings of a registry are invalid.
    #[error("the settings of registry {host} are invalid: {fault}")]
    Settings {
        /// The registry, as written in the settings.
        host: String,
        /// What is wrong.
        fault: &'static str,
    },
    /// The name for an image to push has a digest, but no tag.
    #[error("cannot push to '{name}': the name must have a tag, not a digest")]
    PushToDigest {
        /// The name.
        name: String,
    },
    /// A file or an environment variable with credentials is not usable.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// A credential helper failed.
    #[error("cannot get credentials for {host} from '{program}': {fault}")]
    Helper {
        /// The program.
        program: String,
        /// The registry.
        host: String,
        /// What went wrong.
        fault: String,
    },
    /// A string from a registry or a user is not an `http` or `https` URL.
    #[error("{} is not a valid http or https URL", quoted(.0))]
    Url(String),
    /// The pages of a list were not complete within the time limit of the list.
    #[error("the list from {url} was not complete within {}, which is ten times [requests] timeout", humantime::format_duration(*.limit))]
    ListTooSlow {
        /// URL of the next page.
        url: String,
        /// Time limit of the list.
        limit: Duration,
    },
    /// No request is sent to the registry for a while, because it did not respond to several consecutive requests.
    #[error("no request is sent to {host} for now: it did not respond to {failures} requests in a row")]
    GivenUp {
        /// The registry.
        host: String,
        /// Number of consecutive requests without a response.
        failures: u32,
    },
    /// The link to a next page or upload cannot be followed.
    #[error("cannot follow the redirect or link from {url}: {reason}")]
    Link {
        /// URL of the request.
        url: String,
        /// Reason why it is rejected.
        reason: &'static str,
    },
    /// The registry returned status 404. Some registries return it for private repositories, too.
    #[error("{} has no {what}{error}", mirror.as_ref().map_or("registry".to_owned(), |mirror| format!("mirror {mirror}")))]
    NotFound {
        /// What was requested.
        what: String,
        /// Mirror that returned the error; `None` for the registry itself.
        mirror: Option<String>,
        /// Error in the response body.
        error: ErrorBody,
    },
    /// The registry denied access.
    #[error(
        "{}: {what}{}{error} ({credentials})",
        if *status == 403 { "denied" } else { "unauthorized" },
        mirror.as_ref().map(|mirror| format!(" at mirror {mirror}")).unwrap_or_default()
    )]
    Unauthorized {
        /// What was requested.
        what: String,
        /// Mirror that returned the error; `None` for the registry itself.
        mirror: Option<String>,
        /// The status: 401 or 403.
        status: u16,
        /// Error in the response body.
        error: ErrorBody,
        /// Source of the credentials that were sent, or the sources that were searched.
        credentials: String,
    },
    /// The authentication challenge of the registry is invalid or insecure.
    #[error("cannot authenticate at {url}: {reason}")]
    Challenge {
        /// URL of the request.
        url: String,
        /// Reason why it is rejected.
        reason: &'static str,
    },
    /// The registry returned another error status.
    #[error("{url} returned status {status}{error}")]
    Status {
        /// URL of the request.
        url: String,
        /// The status.
        status: u16,
        /// Error in the response body.
        error: ErrorBody,
    },
    /// The registry is parked: it responded with status 429, or with 503 and `Retry-After`, or it allows no further requests of
    /// manifests for now.
    #[error("{}", describe_pause(host, *.is_requested, *.seconds))]
    Parked {
        /// The registry.
        host: String,
        /// End of the pause.
        until: Instant,
        /// Time until the end of the pause in seconds, rounded up.
        seconds: u64,
        /// Whether the registry sent the length of the pause (*requested pause*). Otherwise strata chose it (*chosen pause*).
        is_requested: bool,
    },
    /// The content does not have the expected digest.
    #[error("{url} returned content with digest {actual} instead of {expected}")]
    WrongDigest {
        /// URL of the request.
        url: String,
        /// Digest that was requested, or that the response header states.
        expected: Digest,
        /// Digest of the content.
        actual: Digest,
    },
    /// The blob ends before the first requested byte.
    #[error("{url} ends before the requested byte {offset}")]
    Range {
        /// URL of the request.
        url: String,
        /// First requested byte.
        offset: u64,
    },
}

/// Error in a response body (distribution-spec, "Error Codes"). The text is untrusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// Code of the first error, such as `MANIFEST_UNKNOWN`; may be empty.
    pub code: String,
    /// Message of the first error; may be empty.
    pub message: String,
}

/// Maximum number of bytes that are read of the body of an error response.
const MAX_ERROR_BODY: u64 = 64 << 10;
/// Time limit for reading the body of an error response. A blocked read ends after the stall limit.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);

impl ErrorBody {
    /// Parses the body of an error response. Read errors are ignored, because the status is already known.
    pub(super) fn of(response: HttpResponse) -> Self {
        let until = Instant::now() + ERROR_BODY_TIMEOUT;
        match read_until(response.response.take(MAX_ERROR_BODY), until) {
            Ok(body) => {
                Self::parse(&body).without(response.authorization.as_ref().and_then(|value| value.to_str().ok()))
            }
            Err(_) => Self::default(),
        }
    }

    /// Parses the first error of a response body. Returns an empty error if the body has another form.
    pub(super) fn parse(body: &[u8]) -> Self {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Body {
            errors: Vec<serde_json::Value>,
            // Token services and some registries use these members.
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

    /// Replaces the credentials of the request in code and message by `…`: some servers repeat the whole request in their
    /// errors.
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
        // Control characters are escaped, and long texts are shortened.
        let escaped = |text: &str| quoted(text).trim_matches('"').to_owned();
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => Ok(()),
            (code, "") => write!(f, ": {}", escaped(code)),
            ("", message) => write!(f, ": {}", escaped(message)),
            (code, message) => write!(f, ": {}, {}", escaped(code), escaped(message)),
        }
    }
}

/// Describes the remaining time of a requested or chosen pause, for messages.
pub(super) fn describe_pause(host: &str, is_requested: bool, seconds: u64) -> String {
    let pause = humantime::format_duration(Duration::from_secs(seconds));
    match is_requested {
        true => format!("{host} asks clients to wait {pause}"),
        false => format!(
            "{host} answers 429 (too many requests) without a time to wait; the next request is sent in {pause}"
        ),
    }
}

impl RegistryError {
    /// Returns whether the registry returned status 404.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Returns the end of the pause, if the error is that the registry is parked.
    pub fn parked_until(&self) -> Option<Instant> {
        match self {
            Self::Parked { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Returns whether the error comes from the response to this request, or from a missing response. Then a request with another
    /// method may succeed.
    pub(super) fn may_depend_on_method(&self) -> bool {
        match self {
            error if error.is_local() => false,
            Self::Http(_) | Self::Link { .. } | Self::NotFound { .. } => true,
            Self::Unauthorized { .. } | Self::Challenge { .. } | Self::Status { .. } => true,
            Self::WrongDigest { .. } | Self::Range { .. } => true,
            Self::Settings { .. } | Self::Configuration(_) => false,
            Self::Helper { .. } | Self::Url(_) | Self::PushToDigest { .. } => false,
            Self::Cancelled(_) | Self::Parked { .. } | Self::GivenUp { .. } | Self::ListTooSlow { .. } => false,
        }
    }

    /// Returns whether the error is that the registry is parked for a chosen pause.
    pub(super) fn is_chosen_pause(&self) -> bool {
        matches!(self, Self::Parked { is_requested: false, .. })
    }

    /// Returns whether the response is missing or incomplete.
    pub(super) fn is_silence(&self) -> bool {
        // A connection that fails for lack of file descriptors of this process says nothing about the registry.
        matches!(self, Self::Http(_)) && self.is_transient() && !self.is_local()
    }

    /// Returns whether the cause of the error is at this machine, and not at a registry: settings, credentials, arguments, or a
    /// shortage of resources.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Settings { .. } | Self::Configuration(_) => true,
            Self::Helper { .. } | Self::PushToDigest { .. } => true,
            Self::Http(error) => error.is_local(),
            error => is_from_shortage(error),
        }
    }

    /// Returns whether no request is sent to the registry for now. Such an error says nothing about the requested object.
    pub fn is_postponed(&self) -> bool {
        matches!(self, Self::Parked { .. } | Self::GivenUp { .. })
    }

    /// Returns whether the same request may succeed later: there was no response, or one with status 408, 429 or 5xx. An
    /// untrusted certificate is a permanent error.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Http(error) => error.is_transient(),
            Self::Parked { .. } | Self::ListTooSlow { .. } | Self::GivenUp { .. } => true,
            // The client may repeat a request after status 408 (RFC 9110, section 15.5.9).
            Self::Status { status, .. } => *status == 408 || *status >= 500,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

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
    fn error_text_is_escaped_and_shortened() {
        let error = ErrorBody { code: "a\x1b[31m\n".to_owned(), message: "m".repeat(300) };
        let text = error.to_string();
        assert!(!text.contains(char::is_control) && text.len() < 250, "{text}");
    }

    #[test]
    fn shortage_of_resources_is_local_and_no_silence() {
        let unreachable = |errno: rustix::io::Errno| {
            let source = io::Error::other(io::Error::from(errno));
            RegistryError::from(HttpError::Unreachable { url: String::new(), source: source.into() })
        };
        let (full, refused) = (unreachable(rustix::io::Errno::MFILE), unreachable(rustix::io::Errno::CONNREFUSED));
        assert!(full.is_local() && !full.is_silence() && !full.may_depend_on_method());
        assert!(!refused.is_local() && refused.is_silence() && refused.may_depend_on_method());
    }

    #[test]
    fn only_temporary_statuses_are_transient() {
        let status = |status| RegistryError::Status { url: String::new(), status, error: ErrorBody::default() };
        for transient in [408, 500, 502, 503, 504] {
            assert!(status(transient).is_transient(), "{transient}");
        }
        for lasting in [400, 404, 405, 418, 407] {
            assert!(!status(lasting).is_transient(), "{lasting}");
        }
    }
}
