//! The directory of a repository: settings, storage, keys and state.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rsa::PublicKey;

use crate::cancel::Cancellation;
use crate::file::{is_absence, not_regular, open_regular};
use crate::manifest::keys::read_public_key;
use crate::manifest::{KeyError, Keys, RepositoryManifest, RepositoryName, Urgency, Whitelist, WhitelistError};
use crate::message::shell_word;
use crate::metadata::Timestamp;
use crate::object::HashAlgorithm;
use crate::observer::Reporter;
use crate::registry::{Registries, RegistryError};
use crate::settings::{Settings, SettingsError};
use crate::state::{StateDatabase, StateError};
use crate::store::{DirectoryStore, LocalServer, Store as _, StoreError};

/// Errors from using a repository directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The path is not a repository directory.
    #[error("'{}' is not a repository directory: it has no {}", .0.display(), Settings::FILE_NAME)]
    NoDirectory(PathBuf),
    /// The path exists and is not an empty directory.
    #[error("'{}' already exists and is not empty", .0.display())]
    Exists(PathBuf),
    /// A file operation failed.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The path that it was attempted on.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The settings are not valid.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The keys are not usable.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The storage is not usable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The whitelist cannot be read.
    #[error("cannot read '{WHITELIST}'")]
    Whitelist(#[from] WhitelistError),
    /// The settings or environment variables for registries are not valid.
    #[error(transparent)]
    Registries(#[from] RegistryError),
    /// The state database is not usable.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Path of the whitelist below the storage.
const MANIFEST: &str = ".cvmfspublished";
const WHITELIST: &str = ".cvmfswhitelist";

/// The directory of one repository.
#[derive(Debug, Clone)]
pub struct RepositoryDirectory {
    path: PathBuf,
    settings: Settings,
    registries: Arc<OnceLock<Registries>>,
    reporter: Reporter,
    cancellation: Cancellation,
}

impl RepositoryDirectory {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        match Settings::open(path) {
            Ok(settings) => Ok(Self::new(path, settings)),
            Err(SettingsError::Read { source, .. }) if is_absence(&source) => {
                Err(DirectoryError::NoDirectory(path.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Creates a directory with its settings. `path` must not exist or be an empty directory.
    pub fn create(path: &Path, settings: Settings) -> Result<Self, DirectoryError> {
        let io_error = |action| move |source| DirectoryError::Io { action, path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io_error("create"))?;
        if fs::read_dir(path).map_err(io_error("list"))?.next().is_some() {
            return Err(DirectoryError::Exists(path.to_owned()));
        }
        let written = fs::File::create(path.join(Settings::FILE_NAME)).and_then(|mut file| {
            file.write_all(settings.write().as_bytes())?;
            file.sync_all()
        });
        written.map_err(io_error("write the settings in"))?;
        Ok(Self::new(path, settings))
    }

    fn new(path: &Path, settings: Settings) -> Self {
        Self {
            path: path.to_owned(),
            settings,
            registries: Arc::default(),
            reporter: Reporter::silent(),
            cancellation: Cancellation::default(),
        }
    }

    /// Returns the directory with an observer for everything that is opened through it. Without it, messages are dropped.
    pub fn with_reporter(self, reporter: &Reporter) -> Self {
        // The registry client has the former reporter, so it is created again.
        Self { registries: Arc::default(), reporter: reporter.clone(), ..self }
    }

    /// Returns the directory after it was moved to `path`.
    pub(crate) fn at(self, path: &Path) -> Self {
        // The registry client contains the former path, so it is created again.
        Self { path: path.to_owned(), registries: Arc::default(), ..self }
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the same directory, with the token `cancellation`, which cancels its operations.
    #[must_use]
    pub fn with_cancellation(self, cancellation: &Cancellation) -> Self {
        Self { registries: Arc::default(), cancellation: cancellation.clone(), ..self }
    }

    /// Returns the token that cancels the operations on the repository.
    pub fn cancellation(&self) -> &Cancellation {
        &self.cancellation
    }

    /// Returns the reporter to the observer of this directory.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Returns the repository's name.
    pub fn name(&self) -> &RepositoryName {
        &self.settings.repository
    }

    /// Returns the directory that web servers serve.
    pub fn storage_path(&self) -> PathBuf {
        self.path.join(&self.settings.storage)
    }

    /// Returns the directory of the keys.
    pub fn keys_path(&self) -> PathBuf {
        self.path.join(&self.settings.keys)
    }

    /// Returns the path of the public master key, which clients need.
    pub fn public_key_path(&self) -> PathBuf {
        self.keys_path().join(format!("{}.pub", self.settings.repository))
    }

    /// Reads the public master key. Does not need read access to private keys.
    pub fn public_key(&self) -> Result<PublicKey, DirectoryError> {
        Ok(read_public_key(&self.public_key_path())?)
    }

    /// Returns the registry client. It is created once, because its requests share tokens and limits.
    pub fn registries(&self) -> Result<&Registries, DirectoryError> {
        if let Some(registries) = self.registries.get() {
            return Ok(registries);
        }
        let settings = self.settings.registries_in(&self.path);
        let registries = Registries::with_cancellation(settings, &|name| std::env::var_os(name), &self.cancellation)?
            .with_reporter(&self.reporter);
        Ok(self.registries.get_or_init(|| registries))
    }

    /// Opens the storage.
    pub fn store(&self) -> Result<DirectoryStore, DirectoryError> {
        Ok(DirectoryStore::open(&self.storage_path())?
            .with_reporter(&self.reporter)
            .with_cancellation(&self.cancellation))
    }

    /// Returns the `cvmfs_server` on this machine that manages the same storage, if any.
    pub fn local_server(&self) -> Result<Option<LocalServer>, DirectoryError> {
        let settings = self.path.join(&self.settings.server_settings);
        Ok(LocalServer::find(&settings, self.name(), &self.storage_path(), &self.reporter, &self.cancellation)?)
    }

    /// Returns the hash algorithm for the names of new objects: that of the `cvmfs_server` which manages the same storage, or else
    /// that of the head's root catalog.
    ///
    /// Settings of the server and a manifest that cannot be read count as missing here. The commands that need them report the
    /// error.
    pub fn hash_algorithm(&self) -> HashAlgorithm {
        if let Ok(Some(server)) = self.local_server() {
            return server.hash_algorithm();
        }
        let bytes = self.store().ok().and_then(|store| store.read_file(MANIFEST).ok()?).unwrap_or_default();
        let head = RepositoryManifest::parse(&bytes).map(|signed| signed.manifest);
        head.map_or(HashAlgorithm::default(), |manifest| manifest.root_catalog.algorithm())
    }

    /// Opens the keys.
    pub fn keys(&self) -> Result<Keys, DirectoryError> {
        Ok(Keys::open(&self.keys_path(), &self.settings.repository)?)
    }

    /// Reads the whitelist without verifying its signature; `None` if it does not exist.
    pub fn whitelist(&self) -> Result<Option<Whitelist>, DirectoryError> {
        let bytes = self.store()?.read_file(WHITELIST)?;
        Ok(bytes.map(|bytes| Whitelist::parse(&bytes).map(|signed| signed.whitelist)).transpose()?)
    }

    /// Returns a warning with instructions if the whitelist expires soon or has expired. An unreadable whitelist is not reported here,
    /// because publishing reports it.
    pub fn whitelist_warning(&self, now: Timestamp) -> Option<String> {
        let list = self.whitelist().ok()??;
        let expires = Timestamp { seconds: list.expires(), nanoseconds: 0 };
        let state = match list.urgency(now) {
            Urgency::None => return None,
            Urgency::Soon { days, hours } => {
                format!("expires at {expires}, in {days} days and {hours} hours; then clients refuse the repository")
            }
            Urgency::Expired => format!("expired at {expires}, so clients refuse the repository"),
        };
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let (name, storage) = (self.name(), absolute(self.storage_path()));
        Some(format!(
            "the whitelist of {name} {state}; to renew it, make the keys in '{}' available in /etc/cvmfs/keys, and run as root \
             'cvmfs_server resign -w {} {name}'",
            absolute(self.keys_path()).display(),
            shell_word(&storage.join(WHITELIST).display().to_string()),
        ))
    }

    /// Returns whether the state database exists.
    pub fn has_state(&self) -> bool {
        self.path.join("state/state.db").exists()
    }

    /// Opens the state database read-only.
    pub fn state_read_only(&self) -> Result<StateDatabase, DirectoryError> {
        let path = self.path.join("state/state.db");
        match open_regular(&path) {
            Err(source) if !is_absence(&source) => Err(DirectoryError::Io { action: "read", path, source }),
            _ => {
                check_companions(&path)?;
                Ok(StateDatabase::open_read_only(&path)?)
            }
        }
    }

    /// Opens the state database, and creates it if it does not exist.
    pub fn state(&self) -> Result<StateDatabase, DirectoryError> {
        let path = self.path.join("state");
        let mut builder = fs::DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(&path);
        created.map_err(|source| DirectoryError::Io { action: "create", path: path.clone(), source })?;
        let path = path.join("state.db");
        // Checked before SQLite opens the file: SQLite does not report why it cannot write, and blocks forever on a named pipe.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = fs::OpenOptions::new().create(true).read(true).append(true).custom_flags(flags).open(&path);
        let is_file = opened.and_then(|file| Ok(file.metadata()?.is_file()));
        let is_file = is_file.and_then(|is_file| if is_file { Ok(()) } else { Err(not_regular()) });
        is_file.map_err(|source| DirectoryError::Io { action: "write", path: path.clone(), source })?;
        check_companions(&path)?;
        Ok(StateDatabase::open(&path, &self.reporter)?)
    }
}

/// Checks that the files which SQLite opens beside a database are regular files: opening a FIFO would block forever.
fn check_companions(database: &Path) -> Result<(), DirectoryError> {
    for suffix in ["-journal", "-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        let path = PathBuf::from(path);
        let source = match fs::metadata(&path) {
            Ok(found) if found.is_file() => continue,
            Ok(_) => not_regular(),
            Err(error) if is_absence(&error) => continue,
            Err(error) => error,
        };
        return Err(DirectoryError::Io { action: "use", path, source });
    }
    Ok(())
}
