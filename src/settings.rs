//! `strata.toml`: the settings of one repository.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::file::read_regular_text;
use crate::image::ImageName;
use crate::manifest::{RepositoryName, RepositoryNameError};
use crate::object::Compression;
use crate::registry::{RegistriesSettings, RegistrySettings, RequestSettings};
use crate::wishlist::Glob;

/// Errors from reading the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is not valid TOML, or has an unknown setting or a value of a wrong type.
    #[error("'{}', line {line}, column {column}: {fault}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Position in the line in characters, from 1.
        column: usize,
        /// Description of the fault.
        fault: String,
    },
    /// The setting `repository` is not a valid name.
    #[error("the setting 'repository' in '{}' is not valid", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong with the name.
        source: RepositoryNameError,
    },
    /// The settings of a registry are not valid or contradict each other.
    #[error("'{}', registry {host}: {fault}", path.display())]
    Registry {
        /// The file.
        path: PathBuf,
        /// Host and port of the registry.
        host: String,
        /// Description of the fault.
        fault: &'static str,
    },
    /// A value is out of its range.
    #[error("'{}': {fault}", path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// The setting and its valid range.
        fault: &'static str,
    },
}

/// The settings of one repository. Every setting except the name has a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The repository's fully qualified name.
    pub repository: RepositoryName,
    /// Path of the storage, relative to the repository directory.
    pub storage: PathBuf,
    /// Path of the keys, relative to the repository directory.
    pub keys: PathBuf,
    /// Directory in which a `cvmfs_server` on this machine keeps its repository configurations.
    pub server_settings: PathBuf,
    /// Compression of file content.
    pub compression: Compression,
    /// Treatment of permissions in `.flat`.
    pub modes: Modes,
    /// Target number of entries of a catalog inside an image.
    pub catalog_entries: usize,
    /// Minimum time between two revisions of one synchronisation with a wishlist.
    pub publish_every: Duration,
    /// Patterns for the names of the images that are published for podman.
    pub podman_images: Vec<Glob>,
    /// Limits of requests to registries.
    pub requests: RequestSettings,
    /// Settings of registries, by host and port.
    pub registries: BTreeMap<String, RegistrySettings>,
}

/// Treatment of permissions in `.flat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modes {
    /// Permissions are those of the image.
    #[default]
    Exact,
    /// The owner may also read every file, and read and search every directory, as in trees from DUCC.
    Widened,
}

#[derive(serde::Deserialize)]
// A misspelt setting would silently have no effect.
#[serde(deny_unknown_fields)]
struct File {
    repository: String,
    #[serde(default)]
    storage: Option<PathBuf>,
    #[serde(default)]
    keys: Option<PathBuf>,
    #[serde(default)]
    server_settings: Option<PathBuf>,
    #[serde(default)]
    compression: Compression,
    #[serde(default)]
    modes: Modes,
    #[serde(default)]
    catalog: CatalogSection,
    #[serde(default)]
    publish: PublishSection,
    #[serde(default)]
    podman: PodmanSection,
    #[serde(default)]
    requests: RequestSettings,
    #[serde(default)]
    registries: BTreeMap<String, RegistrySettings>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogSection {
    entries: Option<usize>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishSection {
    every: Option<String>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct PodmanSection {
    images: Option<Vec<String>>,
}

/// Default of [`Settings::publish_every`].
pub const DEFAULT_PUBLISH_EVERY: Duration = Duration::from_secs(60);

/// Default of [`Settings::catalog_entries`].
pub const DEFAULT_CATALOG_ENTRIES: usize = 25_000;

/// The section `[requests]` in the file of a new repository.
const REQUEST_DEFAULTS: &str = r#"[requests]
# Time limit for a small request to a registry (a manifest, a list of tags, a token, an upload of a thin image), from 1s to 1h.
# One attempt may use half of this time, so that time for a second attempt remains. A list with all of its pages may take ten
# times as long.
#timeout = "1m"
# Minimum rate of a layer download in bytes per second, on average over the registry's stall_timeout. If a connection is slower,
# strata tries a new connection. If that connection is also too slow, the download fails. "0B" means no limit.
#minimum_rate = "4KiB"
# Maximum time that a round of "strata sync" waits for a registry that asks clients to wait, from 0s to 24h. After this time, the
# round continues without the registry. Other commands, such as "strata convert", wait for up to 10 minutes.
#patience = "2m"

"#;

/// An example of a section `[registries]` in the file of a new repository, commented out.
const REGISTRY_EXAMPLE: &str = r#"# Settings of one registry; each registry that needs settings has such a section. Credentials are also read from the variables of
# DUCC, and from the credential files of podman and docker. File names are relative to this directory.
#[registries."registry.example.org"]
#username = "robot"
# The password, or a file that contains the password.
#password = "secret"
#password_file = "registry.password"
# Mirrors that are tried before the registry, in this order; with mirrors_only, the registry itself is never used.
#mirrors = ["https://cache.example.org/prefix"]
#mirrors_only = false
# Whether the registry uses HTTP without encryption.
#plain_http = false
# File with root certificates that are trusted for this registry, in addition to those of the system.
#ca = "registry-ca.pem"
# Maximum number of downloads at the same time, and also of small requests at the same time: 1 to 256.
#connections = 8
# A connection is closed if the registry sends nothing for this time: 1s to 1h.
#stall_timeout = "60s"
# For this registry, instead of timeout and minimum_rate in [requests].
#request_timeout = "1m"
#minimum_rate = "4KiB"
"#;

impl Settings {
    /// Name of the file in the repository directory.
    pub const FILE_NAME: &str = "strata.toml";

    /// Returns the settings of a new repository.
    pub fn new(repository: RepositoryName) -> Self {
        Self {
            repository,
            storage: "storage".into(),
            keys: "keys".into(),
            // `cvmfs_server` keeps a directory for each of its repositories there.
            server_settings: "/etc/cvmfs/repositories.d".into(),
            compression: Compression::default(),
            modes: Modes::default(),
            catalog_entries: DEFAULT_CATALOG_ENTRIES,
            publish_every: DEFAULT_PUBLISH_EVERY,
            podman_images: vec![Glob::new("*")],
            requests: RequestSettings::default(),
            registries: BTreeMap::new(),
        }
    }

    /// Reads the settings in `directory`.
    pub fn open(directory: &Path) -> Result<Self, SettingsError> {
        let path = directory.join(Self::FILE_NAME);
        let text = read_regular_text(&path).map_err(|source| SettingsError::Read { path: path.clone(), source })?;
        Self::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let file: File = toml::from_str(text).map_err(|error| parse_error(&error, text, path))?;
        let path = || path.to_owned();
        let repository = file.repository.parse().map_err(|source| SettingsError::Name { path: path(), source })?;
        let defaults = Self::new(repository);
        let catalog_entries = file.catalog.entries.unwrap_or(defaults.catalog_entries);
        if !(1_000..=crate::catalog::MAX_ENTRIES).contains(&catalog_entries) {
            return Err(SettingsError::Range {
                path: path(),
                fault: "catalog.entries must be between 1000 and 100000",
            });
        }
        let publish_every = file.publish.every.map(|text| humantime::parse_duration(&text)).transpose();
        let publish_every = publish_every.map_err(|_| SettingsError::Range {
            path: path(),
            fault: "publish.every is not a duration such as \"1m\" or \"90s\"",
        })?;
        let podman_images =
            file.podman.images.map(|patterns| patterns.iter().map(|pattern| Glob::new(pattern)).collect());
        if let Some(fault) = file.requests.fault() {
            return Err(SettingsError::Range { path: path(), fault });
        }
        for (host, registry) in &file.registries {
            let is_no_host = host.is_empty() || host.contains('/');
            let fault =
                is_no_host.then_some("its name is not of the form host or host:port").or_else(|| registry.fault());
            if let Some(fault) = fault {
                // Text before an '@' may contain a password.
                let host = host.rsplit('@').next().unwrap_or_default().to_owned();
                return Err(SettingsError::Registry { path: path(), host, fault });
            }
        }
        Ok(Self {
            storage: file.storage.unwrap_or(defaults.storage),
            keys: file.keys.unwrap_or(defaults.keys),
            server_settings: file.server_settings.unwrap_or(defaults.server_settings),
            compression: file.compression,
            modes: file.modes,
            catalog_entries,
            publish_every: publish_every.unwrap_or(defaults.publish_every),
            podman_images: podman_images.unwrap_or(defaults.podman_images),
            requests: file.requests,
            registries: file.registries,
            repository: defaults.repository,
        })
    }

    /// Returns the settings for the registry client. `directory` is the repository directory, to which file names are relative.
    pub fn registries_in(&self, directory: &Path) -> RegistriesSettings {
        RegistriesSettings { directory: directory.to_owned(), hosts: self.registries.clone(), requests: self.requests }
    }

    /// Returns whether the image with this name is published for podman.
    pub fn lists_for_podman(&self, name: &ImageName) -> bool {
        let name = name.to_string();
        self.podman_images.iter().any(|pattern| pattern.matches(&name))
    }

    /// Returns the text of the file: settings that differ from the defaults, and every default as a comment.
    pub fn write(&self) -> String {
        let defaults = Self::new(self.repository.clone());
        let path = |name: &str, is: &Path, default: &Path| {
            let comment = if is == default { "#" } else { "" };
            format!("{comment}{name} = {}\n", toml::Value::from(is.to_string_lossy().into_owned()))
        };
        let comment = if self.compression == defaults.compression { "#" } else { "" };
        format!(
            "# Settings of a CVMFS repository that strata writes. Settings that are commented out have their default values.\n\n\
             # The repository's fully qualified name; clients mount it as /cvmfs/<name>.\n\
             repository = \"{}\"\n\n\
             # Directory that web servers serve to clients, and directory of the keys; relative to this directory.\n{}{}\n\
             # Directory in which a cvmfs_server on this machine keeps its settings. If the server also manages this\n\
             # repository, strata takes the server's locks, so that only one of them publishes at a time.\n{}\n\
             # Compression of new file content: \"exact\" (the same bytes as from cvmfs_server), \"balanced\" (as small as\n\
             # exact, and faster), \"fast\" (a little larger, much faster) or \"none\".\n{comment}compression = \"{}\"\n\n\
             # Permissions in .flat: \"exact\" (those of the image), or \"widened\" (the owner can also read everything).\n\
             #modes = \"exact\"\n\n\
             [catalog]\n\
             # Approximate number of entries of a catalog inside an image: 1000 to 100000.\n\
             #entries = {DEFAULT_CATALOG_ENTRIES}\n\n\
             [publish]\n\
             # Minimum time between two revisions of one run of \"strata sync\".\n\
             #every = \"1m\"\n\n\
             [podman]\n\
             # Images that podman lists: patterns for their names, in which * and ? are wildcards. The time that podman needs\n\
             # to list images grows with the square of their number: above 1000 images, podman needs seconds.\n\
             #images = [\"*\"]\n\n{REQUEST_DEFAULTS}{REGISTRY_EXAMPLE}",
            self.repository,
            path("storage", &self.storage, &defaults.storage),
            path("keys", &self.keys, &defaults.keys),
            path("server_settings", &self.server_settings, &defaults.server_settings),
            self.compression,
        )
    }
}

/// Converts an error of the parser, whose message has several lines, to one line.
fn parse_error(error: &toml::de::Error, text: &str, path: &Path) -> SettingsError {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.get(..start).unwrap_or_default();
    let (line, column) =
        (before.matches('\n').count() + 1, before.chars().rev().take_while(|&c| c != '\n').count() + 1);
    SettingsError::Parse { path: path.to_owned(), line, column, fault: error.message().replace('\n', ", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::registry::{DEFAULT_MINIMUM_RATE, DEFAULT_PATIENCE, DEFAULT_REQUEST_TIMEOUT};

    fn parse(text: &str) -> Result<Settings, SettingsError> {
        Settings::parse(text, Path::new("strata.toml"))
    }

    #[test]
    fn settings_read_back_as_written() {
        let mut settings = Settings::new("a.example.org".parse().unwrap());
        assert_eq!(parse(&settings.write()).unwrap(), settings);
        settings.storage = "/srv/cvmfs/a \"b\"".into();
        settings.compression = Compression::Fast;
        assert_eq!(parse(&settings.write()).unwrap(), settings);
    }

    #[test]
    fn every_commented_default_is_a_valid_setting() {
        let settings = Settings::new("a.example.org".parse().unwrap());
        let lines = uncommented(&settings);
        let defaults: Vec<&str> =
            lines.iter().map(String::as_str).take_while(|line| !line.starts_with("[registries")).collect();
        let requests = RequestSettings {
            timeout: Some(DEFAULT_REQUEST_TIMEOUT),
            minimum_rate: Some(DEFAULT_MINIMUM_RATE),
            patience: Some(DEFAULT_PATIENCE),
        };
        let parsed = parse(&format!("repository = \"a.example.org\"\n{}", defaults.join("\n"))).unwrap();
        assert_eq!(parsed, Settings { requests, ..settings });
        assert_eq!(defaults.len(), 15);
    }

    #[test]
    fn every_line_of_the_example_of_a_registry_is_a_valid_setting() {
        let lines = uncommented(&Settings::new("a.example.org".parse().unwrap()));
        let example: Vec<String> = lines.into_iter().skip_while(|line| !line.contains("registries")).collect();
        assert_eq!(example.len(), 12);
        for left_out in ["password =", "password_file ="] {
            let lines: Vec<&str> =
                example.iter().map(String::as_str).filter(|line| !line.starts_with(left_out)).collect();
            let settings = parse(&format!("repository = \"a.b\"\n{}", lines.join("\n"))).unwrap();
            let registry = &settings.registries["registry.example.org"];
            assert_eq!(registry.username.as_deref(), Some("robot"));
            assert_eq!(registry.connections, Some(crate::registry::DEFAULT_CONNECTIONS));
            assert_eq!(registry.request_timeout, Some(DEFAULT_REQUEST_TIMEOUT));
            assert_eq!(registry.minimum_rate, Some(DEFAULT_MINIMUM_RATE));
        }
        let error = parse(&format!("repository = \"a.b\"\n{}", example.join("\n"))).unwrap_err();
        assert!(error.to_string().contains("registry.example.org: password and password_file"), "{error}");
    }

    /// Returns the lines of a new file that contain a setting, commented out or not, except the repository's name.
    fn uncommented(settings: &Settings) -> Vec<String> {
        let text = settings.write().replace("\n#", "\n").replace("\n ", "\n# ");
        let is_setting =
            |line: &&str| (line.contains(" = ") || line.starts_with('[')) && !line.starts_with("repository");
        text.lines().filter(is_setting).map(str::to_owned).collect()
    }

    #[test]
    fn patterns_select_the_images_for_podman() {
        let lists = |text: &str, name: &str| parse(text).unwrap().lists_for_podman(&name.parse().unwrap());
        assert!(lists("repository = \"a.b\"", "h.org/a:1"));
        let some = "repository = \"a.b\"\n[podman]\nimages = [\"h.org/atlas/*\", \"*:v?\"]";
        assert!(lists(some, "h.org/atlas/a/b:1") && lists(some, "i.org/a:v2"));
        assert!(!lists(some, "h.org/cms/a:1") && !lists(some, "i.org/a:v20"));
        assert!(!lists("repository = \"a.b\"\n[podman]\nimages = []", "h.org/a:1"));
    }

    #[test]
    fn syntax_errors_are_reported_in_one_line_with_their_position() {
        for (text, start) in [
            ("repository = \"a.b\"\n[[[", "'strata.toml', line 2, column 3: "),
            ("repository = \"a.b\"\nmode = 1", "'strata.toml', line 2, column 1: unknown field `mode`"),
            ("", "'strata.toml', line 1, column 1: missing field `repository`"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.starts_with(start) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn invalid_settings_are_refused() {
        assert!(matches!(parse("repository = \"a.b\"\ncompresion = \"fast\""), Err(SettingsError::Parse { .. })));
        assert!(matches!(parse("compression = \"fast\""), Err(SettingsError::Parse { .. })));
        assert!(matches!(parse("repository = \"a/b\""), Err(SettingsError::Name { .. })));
        assert!(matches!(parse("repository = \"a.b\"\n[catalog]\nentries = 999"), Err(SettingsError::Range { .. })));
        assert!(parse("repository = \"a.b\"\n[catalog]\nentries = 1000").is_ok());
        let limits = parse("repository = \"a.b\"\n[requests]\ntimeout = \"0s\"");
        assert!(matches!(limits, Err(SettingsError::Range { .. })));
        for wrong in ["[registries.\"https://h.org\"]", "[registries.\"h.org\"]\nconnections = 0"] {
            let error = parse(&format!("repository = \"a.b\"\n{wrong}")).unwrap_err();
            assert!(matches!(&error, SettingsError::Registry { .. }), "{error}");
        }
        let secret = parse("repository = \"a.b\"\n[registries.\"h.org\"]\npassword = 12345").unwrap_err();
        assert!(!secret.to_string().contains("12345"), "{secret}");
    }
}
