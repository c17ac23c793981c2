//! What the settings say of a registry: `[registries."host[:port]"]` in `strata.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

/// How many requests one registry gets at a time where nothing else is set.
pub const DEFAULT_CONNECTIONS: usize = 8;
/// How many it can be set to.
const MAX_CONNECTIONS: usize = 256;
/// Range of the time limits of connections and requests.
const TIMEOUT_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
/// The longest time that a registry can be waited for that asks to wait.
const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a small request may take where nothing else is set.
pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How many bytes a second a layer has to bring where nothing else is set.
pub const DEFAULT_MINIMUM_RATE: u64 = 4 << 10;
/// How long one round of a synchronisation waits for a registry that asks to wait, where nothing else is set.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(120);

/// A password or token. It shows itself to nobody but [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text.
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

/// Reads text only. Left to itself, serde would quote a number in its message.
struct SecretVisitor;

impl SecretVisitor {
    fn refuse<E: de::Error>() -> Result<Secret, E> {
        Err(E::custom("a password stands in quotes"))
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

/// What is set for one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Who asks; with the name `<token>`, the password is an identity token.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// Where to ask first, in this order: `https://host[:port][/prefix]`.
    pub mirrors: Vec<String>,
    /// Never ask the registry itself.
    pub mirrors_only: bool,
    /// It speaks HTTP without encryption.
    pub plain_http: bool,
    /// A PEM file of certificates that it is trusted by, beside those of the system.
    pub ca: Option<PathBuf>,
    /// How many requests it gets at a time: 1 to 256.
    pub connections: Option<usize>,
    /// How long it may keep silent before a connection is given up: 1 second to 1 hour.
    #[serde(deserialize_with = "duration")]
    pub stall_timeout: Option<Duration>,
    /// How long a small request may take in all: 1 second to 1 hour.
    #[serde(deserialize_with = "duration")]
    pub request_timeout: Option<Duration>,
    /// How many bytes a second a layer has to bring; 0 stands for no limit.
    #[serde(deserialize_with = "size")]
    pub minimum_rate: Option<u64>,
}

/// What is set for requests to all registries: `[requests]` in `strata.toml`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestSettings {
    /// How long a small request may take in all, where the registry's own settings do not say it.
    #[serde(deserialize_with = "duration")]
    pub timeout: Option<Duration>,
    /// How many bytes a second a layer has to bring, where the registry's own settings do not say it.
    #[serde(deserialize_with = "size")]
    pub minimum_rate: Option<u64>,
    /// How long one round of a synchronisation waits for a registry that asks to wait.
    #[serde(deserialize_with = "duration")]
    pub patience: Option<Duration>,
}

impl RequestSettings {
    /// Returns what is wrong with the settings, if anything is.
    pub fn fault(&self) -> Option<&'static str> {
        if self.timeout.is_some_and(|timeout| !TIMEOUT_RANGE.contains(&timeout)) {
            return Some("requests.timeout is not between 1s and 1h");
        }
        if self.patience.is_some_and(|patience| patience > MAX_PATIENCE) {
            return Some("requests.patience is more than 24h");
        }
        None
    }

    /// Returns how long one round of a synchronisation waits for a registry that asks to wait.
    pub fn patience(&self) -> Duration {
        self.patience.unwrap_or(DEFAULT_PATIENCE)
    }
}

/// Reads a number of bytes such as `4KiB`.
fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let size: Result<bytesize::ByteSize, _> = text.parse();
    size.map(|size| Some(size.0)).map_err(|_| de::Error::custom("a number of bytes is as in \"4KiB\""))
}

/// Reads a length of time such as `90s` or `2m`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map(Some).map_err(|_| de::Error::custom("a length of time is as in \"90s\""))
}

impl RegistrySettings {
    /// Returns what is wrong with the settings, if anything is.
    pub fn fault(&self) -> Option<&'static str> {
        let has_password = self.password.is_some() || self.password_file.is_some();
        if self.password.is_some() && self.password_file.is_some() {
            return Some("password and password_file exclude one another");
        }
        if has_password != self.username.is_some() {
            return Some("a username needs a password or password_file, and a password needs a username");
        }
        if self.username.as_ref().is_some_and(|username| username.is_empty() || username.contains(':')) {
            return Some("username is empty or has a colon");
        }
        if self.mirrors.iter().any(|mirror| mirror_url(mirror).is_none()) {
            return Some("each of mirrors has the form https://host[:port][/prefix]");
        }
        if self.mirrors_only && self.mirrors.is_empty() {
            return Some("mirrors_only needs mirrors");
        }
        if self.connections.is_some_and(|connections| !(1..=MAX_CONNECTIONS).contains(&connections)) {
            return Some("connections is not between 1 and 256");
        }
        if self.stall_timeout.is_some_and(|timeout| !TIMEOUT_RANGE.contains(&timeout)) {
            return Some("stall_timeout is not between 1s and 1h");
        }
        if self.request_timeout.is_some_and(|timeout| !TIMEOUT_RANGE.contains(&timeout)) {
            return Some("request_timeout is not between 1s and 1h");
        }
        None
    }
}

/// Parses the URL of a mirror.
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

/// What is set for all registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistriesSettings {
    /// What relative files are relative to: the directory of the repository.
    pub directory: PathBuf,
    /// The settings, by host and port as images are named with them.
    pub hosts: BTreeMap<String, RegistrySettings>,
    /// What holds for those of which nothing else is set.
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
    fn settings_that_contradict_themselves_are_refused() {
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
    fn length_of_time_has_a_unit() {
        for wrong in ["60", "\"60\"", "\"\"", "true"] {
            assert!(parse(&format!("stall_timeout = {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn password_is_never_shown() {
        let settings = parse("username = \"u\"\npassword = \"hunter2\"").unwrap();
        assert_eq!(settings.password.as_ref().map(Secret::reveal), Some("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
        for number in ["12345", "12345.5", "true"] {
            let error = parse(&format!("password = {number}")).unwrap_err();
            assert!(!error.message().contains(number) && error.message().contains("quotes"), "{}", error.message());
        }
    }
}
