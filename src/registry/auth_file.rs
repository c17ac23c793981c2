//! Parses the credential files of Docker (`config.json`) and Podman (`auth.json`, see containers-auth.json(5)).

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::credentials::Credentials;
use super::settings::Secret;
use crate::file::open_regular;
use crate::http::ConfigurationError;

/// Maximum size of a credential file in bytes.
const MAX_AUTH_FILE: u64 = 1 << 20;

/// Content of a credential file. Keys are normalised to `host` or `host/repository-prefix`.
#[derive(Default)]
pub(super) struct AuthFile {
    auths: BTreeMap<String, Credentials>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Content {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    identitytoken: Option<String>,
}

impl AuthFile {
    /// Reads a file. Returns `None` if it does not exist.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, ConfigurationError> {
        let file = match open_regular(path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            result => result,
        };
        let mut text = Vec::new();
        // One byte above the limit shows that the file is too large.
        file.and_then(|file| file.take(MAX_AUTH_FILE + 1).read_to_end(&mut text))
            .map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map(Some).map_err(|fault| ConfigurationError::Invalid { path: path.to_owned(), fault })
    }

    /// Parses a file. The error message quotes no content of the file, which may be secret.
    fn parse(text: &[u8]) -> Result<Self, &'static str> {
        if text.len() as u64 > MAX_AUTH_FILE {
            return Err("it is larger than 1 MiB");
        }
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let content: Content = serde_json::from_slice(text).map_err(|_| "it is not the JSON of a credential file")?;
        let mut auths = BTreeMap::new();
        for (key, entry) in content.auths {
            if let Some(credentials) = entry.credentials()? {
                auths.insert(normalised(&key), credentials);
            }
        }
        let helpers = content.cred_helpers.into_iter().map(|(key, helper)| (normalised(&key), helper)).collect();
        Ok(Self { auths, helpers, store: Some(content.creds_store).filter(|store| !store.is_empty()) })
    }

    /// Returns the credentials that the file itself contains for a key.
    pub(super) fn credentials(&self, key: &str) -> Option<&Credentials> {
        self.auths.get(key)
    }

    /// Returns the name of the credential helper for a key.
    pub(super) fn helper(&self, key: &str) -> Option<&str> {
        self.helpers.get(key).map(String::as_str)
    }

    /// Returns the name of the credential helper for the keys that have no separate helper.
    pub(super) fn store(&self) -> Option<&str> {
        self.store.as_deref()
    }
}

impl Entry {
    /// Returns the credentials in the entry. Docker writes an empty entry if a credential helper stores them.
    fn credentials(self) -> Result<Option<Credentials>, &'static str> {
        // `az acr login` writes a user of zeros without a password into `auth`, and the secret into `identitytoken`.
        if let Some(token) = self.identitytoken.filter(|token| !token.is_empty()) {
            return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
        }
        let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) else { return Ok(None) };
        const WRONG: &str = "it contains an `auth` that is not the base64 of user:password";
        let decoded = STANDARD.decode(&auth).or_else(|_| STANDARD_NO_PAD.decode(&auth)).map_err(|_| WRONG)?;
        let decoded = String::from_utf8(decoded).map_err(|_| WRONG)?;
        // A user name contains no colon, but a password may (RFC 7617, section 2).
        let (username, password) = decoded.split_once(':').ok_or(WRONG)?;
        // Docker pads passwords with zero bytes.
        Ok(Some(Credentials::new(username, password.trim_matches('\0'))))
    }
}

/// Returns `host` or `host/repository-prefix` for a key, without scheme and API version.
///
/// Docker uses URLs such as `https://index.docker.io/v1/` as keys, and other tools imitate it.
fn normalised(key: &str) -> String {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest).trim_end_matches('/');
    match key.split_once('/') {
        Some((host, "v1" | "v2" | "v1/users" | "v2/users")) => host.to_owned(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> AuthFile {
        AuthFile::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn keys_are_hosts_with_or_without_scheme_and_version() {
        for (key, host) in [
            ("https://index.docker.io/v1/", "index.docker.io"),
            ("http://h.org:5000/v2", "h.org:5000"),
            ("h.org", "h.org"),
            ("h.org/team/image", "h.org/team/image"),
            ("https://h.org/", "h.org"),
        ] {
            assert_eq!(normalised(key), host);
        }
    }

    #[test]
    fn entry_contains_a_password_an_identity_token_or_nothing() {
        let file = parse(
            r#"{"auths": {
                "https://a.org/v1/": {"auth": "dTpwOng="},
                "b.org/team": {"auth": "dTpwAAA", "email": "x"},
                "c.org": {"auth": "MDA6", "identitytoken": "t"},
                "d.org": {},
                "e.org": {"auth": "", "identitytoken": ""}
            }, "credHelpers": {"https://f.org": "pass"}, "credsStore": "desktop", "HttpHeaders": {}}"#,
        );
        assert_eq!(file.credentials("a.org"), Some(&Credentials::new("u", "p:x")));
        assert_eq!(file.credentials("b.org/team"), Some(&Credentials::new("u", "p")));
        assert_eq!(file.credentials("c.org"), Some(&Credentials::IdentityToken(Secret::new("t"))));
        assert_eq!((file.credentials("d.org"), file.credentials("e.org")), (None, None));
        assert_eq!((file.helper("f.org"), file.helper("a.org"), file.store()), (Some("pass"), None, Some("desktop")));
    }

    #[test]
    fn error_of_an_invalid_file_names_the_file_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        assert!(AuthFile::open(&path).unwrap().is_none());
        for broken in
            ["{\"auths\": {\"h.org\": \"hunter2\"}}", "hunter2", r#"{"auths": {"h.org": {"auth": "hunter2"}}}"#]
        {
            std::fs::write(&path, broken).unwrap();
            let error = AuthFile::open(&path).err().unwrap();
            let text = format!("{error} {error:?}");
            assert!(text.contains("config.json") && !text.contains("hunter2"), "{text}");
        }
        std::fs::write(&path, " \n").unwrap();
        assert!(AuthFile::open(&path).unwrap().is_some());
        std::fs::write(&path, vec![b' '; MAX_AUTH_FILE as usize + 1]).unwrap();
        assert!(AuthFile::open(&path).is_err());
    }
}
