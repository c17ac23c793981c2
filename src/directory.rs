//! The directory that a repository is kept in: settings, storage, keys and state.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rsa::PublicKey;

use crate::file::{is_absence, not_regular, open_regular};
use crate::manifest::keys::read_public_key;
use crate::manifest::{KeyError, Keys, RepositoryName, Urgency, Whitelist, WhitelistError};
use crate::message::shell_word;
use crate::metadata::Timestamp;
use crate::registry::{Registries, RegistryError};
use crate::settings::{Settings, SettingsError};
use crate::state::{StateDatabase, StateError};
use crate::store::{DirectoryStore, LocalServer, StoreError};

/// Why a repository directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It is none.
    #[error("'{}' is no repository directory: it has no {}", .0.display(), Settings::FILE_NAME)]
    NoDirectory(PathBuf),
    /// Something is there already.
    #[error("'{}' is there already and not empty", .0.display())]
    Exists(PathBuf),
    /// The operating system refused something.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The settings are not right.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The storage cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The whitelist cannot be read.
    #[error("'{WHITELIST}' cannot be read")]
    Whitelist(#[from] WhitelistError),
    /// Registries cannot be asked as the settings or the environment have it.
    #[error(transparent)]
    Registries(#[from] RegistryError),
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Where the whitelist lies, below the storage.
const WHITELIST: &str = ".cvmfswhitelist";

/// The directory of one repository.
#[derive(Debug, Clone)]
pub struct RepositoryDirectory {
    path: PathBuf,
    settings: Settings,
    registries: Arc<OnceLock<Registries>>,
}

impl RepositoryDirectory {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        match Settings::open(path) {
            Ok(settings) => Ok(Self { path: path.to_owned(), settings, registries: Arc::default() }),
            Err(SettingsError::Read { source, .. }) if is_absence(&source) => {
                Err(DirectoryError::NoDirectory(path.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Creates a directory with its settings. Nothing may be at `path` but an empty directory.
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
        Ok(Self { path: path.to_owned(), settings, registries: Arc::default() })
    }

    /// Returns the same directory after it was moved.
    pub(crate) fn at(self, path: &Path) -> Self {
        // What was made with the former path is made anew.
        Self { path: path.to_owned(), settings: self.settings, registries: Arc::default() }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what the repository is set to.
    pub fn settings(&self) -> &Settings {
        &self.settings
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

    /// Returns the public key that clients need.
    pub fn public_key_path(&self) -> PathBuf {
        self.keys_path().join(format!("{}.pub", self.settings.repository))
    }

    /// Reads the public master key, for which no private key need be readable.
    pub fn public_key(&self) -> Result<PublicKey, DirectoryError> {
        Ok(read_public_key(&self.public_key_path())?)
    }

    /// Returns the registries that images are fetched from, the same ones each time: they share tokens and limits.
    pub fn registries(&self) -> Result<&Registries, DirectoryError> {
        if let Some(registries) = self.registries.get() {
            return Ok(registries);
        }
        let settings = self.settings.registries_in(&self.path);
        let registries = Registries::new(settings, &|name| std::env::var_os(name))?;
        Ok(self.registries.get_or_init(|| registries))
    }

    /// Opens the storage.
    pub fn store(&self) -> Result<DirectoryStore, DirectoryError> {
        Ok(DirectoryStore::open(&self.storage_path())?)
    }

    /// Looks for a `cvmfs_server` on this machine that manages the storage, too.
    pub fn local_server(&self) -> Result<Option<LocalServer>, DirectoryError> {
        Ok(LocalServer::find(&self.path.join(&self.settings.server_settings), self.name(), &self.storage_path())?)
    }

    /// Opens the keys.
    pub fn keys(&self) -> Result<Keys, DirectoryError> {
        Ok(Keys::open(&self.keys_path(), &self.settings.repository)?)
    }

    /// Reads the whitelist, whose signature is not verified; `None` where there is none.
    pub fn whitelist(&self) -> Result<Option<Whitelist>, DirectoryError> {
        let bytes = self.store()?.read_file(WHITELIST)?;
        Ok(bytes.map(|bytes| Whitelist::parse(&bytes).map(|signed| signed.whitelist)).transpose()?)
    }

    /// Returns what to do about the whitelist if it expires soon, or has expired. A whitelist that cannot be read is for
    /// others to report: who publishes needs it.
    pub fn whitelist_warning(&self, now: Timestamp) -> Option<String> {
        let list = self.whitelist().ok()??;
        let expires = Timestamp { seconds: list.expires(), nanoseconds: 0 };
        let state = match list.urgency(now) {
            Urgency::None => return None,
            Urgency::Soon { days, hours } => {
                format!("expires at {expires}, in {days} days and {hours} hours: then clients refuse")
            }
            Urgency::Expired => format!("expired at {expires}: clients refuse"),
        };
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let (name, storage) = (self.name(), absolute(self.storage_path()));
        Some(format!(
            "the whitelist {state} {name} until it is renewed, as root, by 'cvmfs_server resign -w {} {name}' with the same keys: \
             those of '{}', in /etc/cvmfs/keys",
            shell_word(&storage.join(WHITELIST).display().to_string()),
            absolute(self.keys_path()).display(),
        ))
    }

    /// Tells whether earlier runs remembered anything.
    pub fn has_state(&self) -> bool {
        self.path.join("state/state.db").exists()
    }

    /// Opens what earlier runs remembered, without remembering anything new.
    pub fn state_unchanged(&self) -> Result<StateDatabase, DirectoryError> {
        let path = self.path.join("state/state.db");
        match open_regular(&path) {
            Err(source) if !is_absence(&source) => Err(DirectoryError::Io { action: "read", path, source }),
            _ => Ok(StateDatabase::open_fixed(&path)?),
        }
    }

    /// Opens what earlier runs remembered.
    pub fn state(&self) -> Result<StateDatabase, DirectoryError> {
        let path = self.path.join("state");
        let mut builder = fs::DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(&path);
        created.map_err(|source| DirectoryError::Io { action: "create", path: path.clone(), source })?;
        let path = path.join("state.db");
        // SQLite cannot say why it may not write, and waits for ever for the other end of a pipe.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let opened = fs::OpenOptions::new().create(true).read(true).append(true).custom_flags(flags).open(&path);
        let is_file = opened.and_then(|file| Ok(file.metadata()?.is_file()));
        let is_file = is_file.and_then(|is_file| if is_file { Ok(()) } else { Err(not_regular()) });
        is_file.map_err(|source| DirectoryError::Io { action: "write", path: path.clone(), source })?;
        Ok(StateDatabase::open(&path)?)
    }
}
