//! Settings of registries: `[registries."host[:port]"]` and `[requests]` in `strata.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// Default of the maximum number of concurrent requests to one registry.
pub const DEFAULT_CONNECTIONS: usize = 8;
/// Upper limit of the setting `connections`.
const MAX_CONNECTIONS: usize = 256;
/// Allowed range of `stall_timeout` and of the time limits for requests.
pub const REQUEST_TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
/// Upper limit of `requests.patience`.
const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Default of the time for which one round of `strata sync` waits for a parked registry.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(120);

/// A password or token. Only [`Secret::reveal`] returns it; `Debug` does not print it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret. The caller must not log it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

/// Accepts only strings. The default error message of serde would quote a password that is written as a number.
struct SecretVisitor;

impl SecretVisitor {
    fn refuse<E: de::Error>() -> Result<Secret, E> {
        Err(E::custom("a password must be in quotes"))
    }
}

impl Visitor<'_> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a password in quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret::new(text))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Secret, E> {
        Self::refuse()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Secret, E> {
        Self::refuse()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Secret, E> {
        Self::refuse()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Secret, E> {
        Self::refuse()
    }
}

/// Settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// User name. With the name `<token>`, the password is an identity token.
    pub username: Option<String>,
    /// Password. Excludes `password_file`.
    pub password: Option<Secret>,
    /// File that contains the password.
    pub password_file: Option<PathBuf>,
    /// Mirrors, `https://host[:port][/prefix]`, which are tried before the registry in this order.
    pub mirrors: Vec<String>,
    /// Whether requests are sent only to the mirrors. Requires `mirrors`.
    pub mirrors_only: bool,
    /// Whether the registry uses plain HTTP.
    pub plain_http: bool,
    /// PEM file with trusted root certificates, in addition to those of the system.
    pub ca: Option<PathBuf>,
    /// Maximum number of concurrent requests: 1 to 256.
    pub connections: Option<usize>,
    /// Time without a byte after which a connection is closed: 1 second to 1 hour.
    #[serde(deserialize_with = "duration")]
    pub stall_timeout: Option<Duration>,
    /// Time limit for a small request with all its attempts: 1 second to 1 hour.
    #[serde(deserialize_with = "duration")]
    pub request_timeout: Option<Duration>,
    /// Minimum rate of a layer download in bytes per second; 0 means no limit.
    #[serde(deserialize_with = "size")]
    pub minimum_rate: Option<u64>,
}

/// Settings for requests to all registries: `[requests]` in `strata.toml`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestSettings {
    /// Time limit for a small request, for registries without `request_timeout`.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// Minimum rate of a layer download in bytes per second, for registries without `minimum_rate`.
    #[serde(deserialize_with = "size")]
    pub minimum_rate: Option<u64>,
    /// Time for which one round of `strata sync` waits for a parked registry: up to 24 hours.
    #[serde(deserialize_with = "duration")]
    pub patience: Option<Duration>,
}

impl RequestSettings {
    /// Returns an error message if the settings are invalid.
    pub fn fault(&self) -> Option<&'static str> {
        if self.timeout.is_some_and(|timeout| !REQUEST_TIMEOUT_RANGE.contains(&timeout)) {
            return Some("requests.timeout must be between 1s and 1h");
        }
        if self.patience.is_some_and(|patience| patience > MAX_PATIENCE) {
            return Some("requests.patience must not be more than 24h");
        }
        None
    }

    /// Returns [`patience`](Self::patience) or its default.
    pub fn patience(&self) -> Duration {
        self.patience.unwrap_or(DEFAULT_PATIENCE)
    }
}

/// Parses a number of bytes such as `4KiB`.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let size: Result<bytesize::ByteSize, _> = text.parse();
    size.map(|size| Some(size.0)).map_err(|_| de::Error::custom("a number of bytes must be written as in \"4KiB\""))
}

/// Parses a duration such as `90s` or `2m`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map(Some)
        .map_err(|_| de::Error::custom("a duration must be written as in \"90s\""))
}

impl RegistrySettings {
    /// Returns an error message if the settings are invalid.
    pub fn fault(&self) -> Option<&'static str> {
        let has_password = self.password.is_some() || self.password_file.is_some();
        if self.password.is_some() && self.password_file.is_some() {
            return Some("password and password_file exclude each other");
        }
        if has_password != self.username.is_some() {
            return Some("username requires password or password_file, and these require username");
        }
        // HTTP Basic authentication ends the user name at the first colon (RFC 7617, section 2).
        if self.username.as_ref().is_some_and(|username| username.is_empty() || username.contains(':')) {
            return Some("username must not be empty or contain a colon");
        }
        if self.mirrors.iter().any(|mirror| mirror_url(mirror).is_none()) {
            return Some("each entry of mirrors must have the form https://host[:port][/prefix]");
        }
        if self.mirrors_only && self.mirrors.is_empty() {
            return Some("mirrors_only requires mirrors");
        }
        if self.connections.is_some_and(|connections| !(1..=MAX_CONNECTIONS).contains(&connections)) {
            return Some("connections must be between 1 and 256");
        }
        if self.stall_timeout.is_some_and(|timeout| !REQUEST_TIMEOUT_RANGE.contains(&timeout)) {
            return Some("stall_timeout must be between 1s and 1h");
        }
        if self.request_timeout.is_some_and(|timeout| !REQUEST_TIMEOUT_RANGE.contains(&timeout)) {
            return Some("request_timeout must be between 1s and 1h");
        }
        None
    }
}

/// Parses the URL of a mirror: `http` or `https`, without user, password, query and fragment.
pub(super) fn mirror_url(text: &str) -> Option<Url> {
    let url: Url = text.parse().ok()?;
    let is_right = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    is_right.then_some(url)
}

/// Settings of all registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistriesSettings {
    /// Base of relative file names: the repository directory.
    pub directory: PathBuf,
    /// Settings by host and port, as written in image names.
    pub hosts: BTreeMap<String, RegistrySettings>,
    /// Defaults for values that the settings of a registry do not contain.
    pub requests: RequestSettings,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RegistrySettings, toml::de::Error> {
        toml::from_str(text)
    }

    fn fault(text: &str) -> Option<&'static str> {
        parse(text).unwrap().fault()
    }

    #[test]
    fn contradictory_settings_are_rejected() {
        for right in [
            "",
            "username = \"u\"\npassword = \"p\"",
            "username = \"u\"\npassword_file = \"f\"",
            "mirrors = [\"https://m.org/a\", \"http://localhost:5000\"]\nmirrors_only = true",
            "connections = 1",
            "connections = 256",
            "stall_timeout = \"1s\"",
            "stall_timeout = \"60m\"",
            "request_timeout = \"1s\"\nminimum_rate = \"0B\"",
            "request_timeout = \"60m\"\nminimum_rate = \"1MiB\"",
        ] {
            assert_eq!(fault(right), None, "{right}");
        }
        for wrong in [
            "username = \"u\"",
            "password = \"p\"",
            "username = \"u\"\npassword = \"p\"\npassword_file = \"f\"",
            "username = \"u:v\"\npassword = \"p\"",
            "mirrors = [\"m.org\"]",
            "mirrors = [\"https://u:p@m.org\"]",
            "mirrors = [\"https://m.org?x\"]",
            "mirrors_only = true",
            "connections = 0",
            "connections = 257",
            "stall_timeout = \"999ms\"",
            "stall_timeout = \"61m\"",
            "request_timeout = \"999ms\"",
            "request_timeout = \"61m\"",
        ] {
            assert!(fault(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn limits_of_all_requests_have_units_and_ranges() {
        let parse = |text: &str| toml::from_str::<RequestSettings>(text);
        let settings = parse("timeout = \"90s\"\nminimum_rate = \"1KiB\"\npatience = \"0s\"").unwrap();
        assert_eq!((settings.timeout, settings.minimum_rate), (Some(Duration::from_secs(90)), Some(1024)));
        assert_eq!((settings.patience(), settings.fault()), (Duration::ZERO, None));
        assert_eq!(parse("").unwrap().patience(), DEFAULT_PATIENCE);
        for wrong in ["timeout = 60", "minimum_rate = \"much\"", "minimum_rate = 1", "minimum_rat = \"1KiB\""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["timeout = \"0s\"", "timeout = \"61m\"", "patience = \"25h\""] {
            assert!(parse(wrong).unwrap().fault().is_some(), "{wrong}");
        }
    }

    #[test]
    fn duration_requires_a_unit() {
        for wrong in ["60", "\"60\"", "\"\"", "true"] {
            assert!(parse(&format!("stall_timeout = {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn password_is_never_printed() {
        let settings = parse("username = \"u\"\npassword = \"hunter2\"").unwrap();
        assert_eq!(settings.password.as_ref().map(Secret::reveal), Some("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
        for number in ["12345", "12345.5", "true"] {
            let error = parse(&format!("password = {number}")).unwrap_err();
            assert!(!error.message().contains(number) && error.message().contains("quotes"), "{}", error.message());
        }
    }
}
