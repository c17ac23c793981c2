//! Finds credentials in the settings, DUCC's environment variables, and the files of Podman and Docker, in this order.
//!
//! The first source with credentials for a registry is used. Files are read again for each search, so that a new login takes
//! effect at once.

use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;

use super::auth_file::AuthFile;
use super::ducc::{Access, DuccRegistry, EnvironmentLookup};
use super::endpoint::{HUB_HOSTS, settings_of};
use super::error::RegistryError;
use super::helper;
use super::settings::{RegistriesSettings, Secret};
use crate::file::open_regular;
use crate::http::ConfigurationError;

/// User name that marks the password as an identity token, in the convention of Docker's credential helpers.
const TOKEN_USER: &str = "<token>";
/// Name of Docker Hub in credential files and for credential helpers.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// Maximum size of a password file in bytes; the rest is ignored.
const MAX_PASSWORD_FILE: u64 = 64 << 10;

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// User name and password, or an access token in place of the password.
    Password {
        /// The user name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token with which access tokens are requested (OAuth 2.0 "refresh token", RFC 6749, section 6).
    IdentityToken(Secret),
}

impl Credentials {
    pub(super) fn new(username: &str, password: &str) -> Self {
        let password = Secret::new(password);
        match username {
            TOKEN_USER => Self::IdentityToken(password),
            _ => Self::Password { username: username.to_owned(), password },
        }
    }

    /// Returns the `Authorization` header for HTTP Basic authentication (RFC 7617). `None` for an identity token.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Self::Password { username, password } = self else { return None };
        let encoded = STANDARD.encode(format!("{username}:{}", password.reveal()));
        authorization(&format!("Basic {encoded}"))
    }

    /// Returns the `Authorization` header with the password as a bearer token (RFC 6750).
    pub(super) fn bearer(&self) -> Option<HeaderValue> {
        let (Self::Password { password: token, .. } | Self::IdentityToken(token)) = self;
        authorization(&format!("Bearer {}", token.reveal()))
    }
}

/// Returns a header value that `Debug` does not print. `None` if the text contains characters that a header must not contain.
pub(super) fn authorization(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Result of a search for credentials.
#[derive(Debug)]
pub(super) struct CredentialLookup {
    pub(super) credentials: Option<Credentials>,
    /// For messages: the source of the credentials, or the sources that were searched.
    pub(super) origin: String,
}

/// All sources of credentials.
pub(super) struct CredentialSources {
    settings: RegistriesSettings,
    ducc: Vec<DuccRegistry>,
    files: Vec<PathBuf>,
    /// `PATH` in which credential helpers are searched for.
    path: Option<OsString>,
    /// Credentials that precede all other sources.
    login: Option<Login>,
}

/// Credentials for one host, and their source for messages.
struct Login {
    host: String,
    credentials: Credentials,
    origin: &'static str,
}

impl CredentialSources {
    pub(super) fn new(
        settings: RegistriesSettings,
        ducc: Vec<DuccRegistry>,
        environment: EnvironmentLookup<'_>,
    ) -> Self {
        Self { settings, ducc, files: files(environment), path: environment("PATH"), login: None }
    }

    /// Sets credentials for one host, which precede all other sources.
    pub(super) fn set_login(&mut self, host: &str, credentials: Credentials, origin: &'static str) {
        self.login = Some(Login { host: host.to_owned(), credentials, origin });
    }

    /// Searches for credentials for a repository at a host. An empty repository stands for the whole host.
    pub(super) fn find(&self, host: &str, repository: &str) -> Result<CredentialLookup, RegistryError> {
        if let Some(login) = self.login.as_ref().filter(|login| login.host == host) {
            return Ok(found(login.credentials.clone(), login.origin));
        }
        if let Some(credentials) = self.of_settings(host)? {
            return Ok(found(credentials, "the settings"));
        }
        for registry in self.ducc.iter().filter(|registry| registry.applies_to(host, repository)) {
            if let Access::Credentials(credentials) = &registry.access {
                return Ok(found(credentials.clone(), &registry.user_variable()));
            }
        }
        for path in &self.files {
            if let Some(credentials) = self.of_file(path, host, repository)? {
                return Ok(found(credentials, &format!("{path:?}")));
            }
        }
        let files: String = self.files.iter().map(|path| format!(", {path:?}")).collect();
        let origin = format!("there are no credentials for it in the settings, DUCC_AUTH_REGISTRIES{files}");
        Ok(CredentialLookup { credentials: None, origin })
    }

    fn of_settings(&self, host: &str) -> Result<Option<Credentials>, RegistryError> {
        let Some(settings) = settings_of(&self.settings, host) else { return Ok(None) };
        let Some(username) = &settings.username else { return Ok(None) };
        let password = match (&settings.password, &settings.password_file) {
            (Some(password), _) => password.reveal().to_owned(),
            (None, Some(file)) => read_password(&self.settings.directory.join(file))?,
            (None, None) => return Ok(None),
        };
        Ok(Some(Credentials::new(username, &password)))
    }

    fn of_file(&self, path: &Path, host: &str, repository: &str) -> Result<Option<Credentials>, RegistryError> {
        let Some(file) = AuthFile::open(path)? else { return Ok(None) };
        let keys = keys(host, repository);
        // A helper for one registry (`credHelpers`) precedes the helper for all (`credsStore`), as in Docker.
        let helper = keys.iter().find_map(|key| file.helper(key)).or(file.store());
        let server = if HUB_HOSTS.contains(&host) { HUB_SERVER } else { host };
        if let Some(name) = helper
            && let Some(credentials) = helper::get(name, server, self.path.as_ref())?
        {
            return Ok(Some(credentials));
        }
        Ok(keys.iter().find_map(|key| file.credentials(key)).cloned())
    }
}

fn found(credentials: Credentials, origin: &str) -> CredentialLookup {
    CredentialLookup { credentials: Some(credentials), origin: format!("with the credentials of {origin}") }
}

/// Returns the paths of files that may contain credentials. The files need not exist.
fn files(environment: EnvironmentLookup<'_>) -> Vec<PathBuf> {
    let get = |variable: &str| environment(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = get("HOME");
    let below_home = |directory: &str| home.as_ref().map(|home| home.join(directory));
    let paths = [
        // The order of Podman (containers-auth.json(5)), which reads Docker's file last.
        get("REGISTRY_AUTH_FILE"),
        get("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json")),
        get("XDG_CONFIG_HOME")
            .or_else(|| below_home(".config"))
            .map(|directory| directory.join("containers/auth.json")),
        get("DOCKER_CONFIG").or_else(|| below_home(".docker")).map(|directory| directory.join("config.json")),
    ];
    paths.into_iter().flatten().collect()
}

/// Returns the keys under which a file may contain credentials, the most specific first.
fn keys(host: &str, repository: &str) -> Vec<String> {
    // Docker saves a login at Docker Hub for `index.docker.io`, and Podman for `docker.io`. Both are the same account.
    let hosts = if HUB_HOSTS.contains(&host) { HUB_HOSTS.to_vec() } else { vec![host] };
    let mut keys = Vec::new();
    let mut rest = Some(repository).filter(|repository| !repository.is_empty());
    while let Some(beginning) = rest {
        keys.extend(hosts.iter().map(|host| format!("{host}/{beginning}")));
        rest = beginning.rsplit_once('/').map(|(above, _)| above);
    }
    keys.extend(hosts.into_iter().map(str::to_owned));
    keys
}

/// Reads a password from a file, without line ends after it.
fn read_password(path: &Path) -> Result<String, RegistryError> {
    let mut bytes = Vec::new();
    let read = open_regular(path).and_then(|file| file.take(MAX_PASSWORD_FILE).read_to_end(&mut bytes));
    read.map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
    let fault = "it contains no password";
    let text = String::from_utf8(bytes).ok();
    // Editors and `echo` write a line end, which is not part of the password. Spaces may be part of it.
    let password = text.as_deref().map(|text| text.trim_end_matches(['\r', '\n'])).filter(|text| !text.is_empty());
    password.map(str::to_owned).ok_or_else(|| ConfigurationError::Invalid { path: path.to_owned(), fault }.into())
}

#[cfg(test)]
mod tests {
    use super::super::ducc;
    use super::super::settings::RegistrySettings;
    use super::*;

    struct Machine {
        directory: tempfile::TempDir,
        variables: Vec<(&'static str, String)>,
        settings: RegistriesSettings,
    }

    impl Machine {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let variables = vec![("HOME", directory.path().join("home").to_str().unwrap().to_owned())];
            let settings =
                RegistriesSettings { directory: directory.path().to_owned(), ..RegistriesSettings::default() };
            Self { directory, variables, settings }
        }

        fn file(self, name: &str, content: &str) -> Self {
            let path = self.directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
            self
        }

        fn variable(mut self, name: &'static str, value: &str) -> Self {
            let value = value.replace("DIRECTORY", self.directory.path().to_str().unwrap());
            self.variables.push((name, value));
            self
        }

        fn set(mut self, host: &str, settings: RegistrySettings) -> Self {
            self.settings.hosts.insert(host.to_owned(), settings);
            self
        }

        fn find(&self, host: &str, repository: &str) -> Result<CredentialLookup, RegistryError> {
            let environment = |name: &str| {
                self.variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            };
            let ducc = ducc::registries(&environment)?;
            CredentialSources::new(self.settings.clone(), ducc, &environment).find(host, repository)
        }

        fn user(&self, host: &str, repository: &str) -> Option<String> {
            match self.find(host, repository).unwrap().credentials? {
                Credentials::Password { username, .. } => Some(username),
                Credentials::IdentityToken(_) => Some(TOKEN_USER.to_owned()),
            }
        }
    }

    /// Returns a credential file with these keys and user names.
    fn auths(entries: &[(&str, &str)]) -> String {
        let auths: serde_json::Map<_, _> = entries
            .iter()
            .map(|(key, user)| ((*key).to_owned(), serde_json::json!({"auth": STANDARD.encode(format!("{user}:p"))})))
            .collect();
        serde_json::json!({ "auths": auths }).to_string()
    }

    #[test]
    fn sources_are_searched_in_order() {
        let machine = Machine::new();
        assert_eq!(machine.user("h.org", "a"), None);
        let text = machine.find("h.org", "a").unwrap().origin;
        assert!(text.contains(".docker/config.json") && text.contains("containers/auth.json"), "{text}");
        let machine = machine.file("home/.docker/config.json", &auths(&[("h.org", "docker")]));
        assert_eq!(machine.user("h.org", "a").as_deref(), Some("docker"));
        let machine = machine.file("home/.config/containers/auth.json", &auths(&[("h.org", "podman")]));
        assert_eq!(machine.user("h.org", "a").as_deref(), Some("podman"));
        let machine = machine.file("run/containers/auth.json", &auths(&[("h.org", "session")]));
        let machine = machine.variable("XDG_RUNTIME_DIR", "DIRECTORY/run");
        assert_eq!(machine.user("h.org", "a").as_deref(), Some("session"));
        let machine =
            machine.file("x.json", &auths(&[("h.org", "named")])).variable("REGISTRY_AUTH_FILE", "DIRECTORY/x.json");
        assert_eq!(machine.user("h.org", "a").as_deref(), Some("named"));
        let machine = machine.variable("DUCC_AUTH_REGISTRIES", "L").variable("DUCC_L_IDENT", "h.or");
        let machine = machine.variable("DUCC_L_USER", "ducc").variable("DUCC_L_PASS", "p");
        assert_eq!(machine.user("h.org", "a").as_deref(), Some("ducc"));
        let password_file = Some("secret".into());
        let settings = RegistrySettings { username: Some("set".to_owned()), password_file, ..Default::default() };
        let machine = machine.set("h.org", settings).file("secret", "hunter2\n");
        let found = machine.find("h.org", "a").unwrap();
        assert_eq!(found.credentials, Some(Credentials::new("set", "hunter2")));
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn longest_key_is_used_and_keys_match_whole_path_components() {
        let file = auths(&[("h.org", "host"), ("h.org/team", "team"), ("h.org/team/image", "image")]);
        let machine = Machine::new().file("home/.docker/config.json", &file);
        for (repository, user) in
            [("team/image", "image"), ("team/other", "team"), ("teammate/image", "host"), ("", "host")]
        {
            assert_eq!(machine.user("h.org", repository).as_deref(), Some(user), "{repository}");
        }
        assert_eq!(machine.user("h.org:5000", "team/image"), None);
    }

    #[test]
    fn all_hosts_of_docker_hub_have_the_same_credentials() {
        let machine = Machine::new().file("home/.docker/config.json", &auths(&[("https://index.docker.io/v1/", "u")]));
        for host in HUB_HOSTS {
            assert_eq!(machine.user(host, "library/a").as_deref(), Some("u"), "{host}");
        }
        assert_eq!(machine.user("docker.io.evil.org", "a"), None);
    }

    #[test]
    fn credential_helper_precedes_the_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let script = "#!/bin/sh\nread server; echo \"{\\\"Username\\\":\\\"$server\\\",\\\"Secret\\\":\\\"p\\\"}\"\n";
        let file = r#"{"auths":{"a.org":{"auth":"dTpw"}},"credHelpers":{"a.org":"own"},"credsStore":"all"}"#;
        let machine = Machine::new()
            .file("home/.docker/config.json", file)
            .file("bin/docker-credential-own", script)
            .file("bin/docker-credential-all", "#!/bin/sh\necho credentials not found; exit 1\n")
            .variable("PATH", "DIRECTORY/bin:/usr/bin:/bin");
        for name in ["own", "all"] {
            let file = machine.directory.path().join(format!("bin/docker-credential-{name}"));
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert_eq!(machine.user("a.org", "x").as_deref(), Some("a.org"));
        assert_eq!(machine.user("b.org", "x"), None);
        let machine = machine.file("home/.docker/config.json", r#"{"credsStore":"own"}"#);
        assert_eq!(machine.user("docker.io", "library/x").as_deref(), Some(HUB_SERVER));
    }
}
