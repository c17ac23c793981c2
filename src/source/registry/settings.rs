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
const MOST_CONNECTIONS: usize = 256;
/// How long one can be set to be waited for without a byte.
const STALL_TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60 * 60);

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
        if self.connections.is_some_and(|connections| !(1..=MOST_CONNECTIONS).contains(&connections)) {
            return Some("connections is not between 1 and 256");
        }
        if self.stall_timeout.is_some_and(|timeout| !STALL_TIMEOUTS.contains(&timeout)) {
            return Some("stall_timeout is not between 1s and 1h");
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
    /// What relative files are relative to: the folder of the repository.
    pub folder: PathBuf,
    /// The settings, by host and port as images are named with them.
    pub hosts: BTreeMap<String, RegistrySettings>,
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
        ] {
            assert!(fault(wrong).is_some(), "{wrong}");
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
