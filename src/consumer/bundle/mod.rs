//! Bundles for OCI runtimes: a directory with a `config.json` that runs a published image directly from the mounted repository.
//!
//! The root is the image's `.flat` tree and read-only, so a runtime cannot create mount points or the working directory in it. Therefore
//! strata first looks up each of them in the repository. Bundles follow the runtime specification 1.0.2, which runc and crun support. The
//! image config is interpreted as in Docker.

mod mounts;
mod process;
mod root;
mod spec;
mod user;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Consumer, PublishedImage};
use crate::file::is_absence;
use crate::image::{Digest, ImageConfig, MAX_DOCUMENT_SIZE};
use crate::layout::{self, ImagePlace};
use crate::message::shell_word;
use crate::repository::{Repository, RepositoryError};

use mounts::Mounts;
use process::Process;
use root::{PublishedRoot, Root as _};

pub use user::{User, UserError};

/// runc, crun and other OCI runtimes, which run the flat tree with a bundle.
pub struct OciRuntime;

impl Consumer for OciRuntime {
    fn name(&self) -> &'static str {
        "runc"
    }

    fn command(&self, image: &PublishedImage<'_>) -> Result<Option<String>, RepositoryError> {
        let place = image.place;
        if !image.has_root()? || !image.has(&place.metadata().join(b"config.json"))? {
            return Ok(None);
        }
        let platform = place.platform.iter().map(|platform| format!(" --platform {platform}")).collect::<String>();
        let bundle = format!("strata bundle {} bundle{platform}", shell_word(&place.name.to_string()));
        Ok(Some(format!("{bundle} && runc run --bundle bundle container")))
    }
}

/// Errors from creating a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The image's config is not published.
    #[error("the config of '{0}' is not in the repository; convert the image with --force to publish it")]
    NoConfig(ImagePlace),
    /// The image's config is not valid.
    #[error("the published config of '{place}' is not valid")]
    Config {
        /// The image.
        place: ImagePlace,
        /// The error of the parser.
        source: serde_json::Error,
    },
    /// The image was published without a flat tree.
    #[error("'{0}' has no root file system in the repository: convert it without --skip-flat")]
    NoRoot(ImagePlace),
    /// The user of the image or of the options does not exist in the image.
    #[error("cannot run '{place}' as the requested user")]
    User {
        /// The image.
        place: ImagePlace,
        /// What is wrong with the user.
        source: UserError,
    },
    /// Neither the image nor the options name a program.
    #[error("image '{0}' names no program to run: write the program and its arguments after '--'")]
    NoProgram(ImagePlace),
    /// An argument contains a NUL character.
    #[error("the command of '{0}' contains a NUL character, which no program accepts")]
    Nul(ImagePlace),
    /// The flat tree does not exist below the mountpoint.
    #[error("'{}' does not exist: is the repository mounted at '{}'?", root.display(), mountpoint.display())]
    NotMounted {
        /// The expected path of the flat tree.
        root: PathBuf,
        /// The mountpoint from the options.
        mountpoint: PathBuf,
    },
    /// JSON cannot contain the path.
    #[error("the path '{}' is not valid UTF-8 and cannot be used in a bundle", .0.display())]
    Path(PathBuf),
    /// The path of the bundle exists and is not an empty directory.
    #[error("'{}' already exists and is not an empty directory", .0.display())]
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
}

/// Settings of a container that its image does not determine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BundleOptions {
    /// Mountpoint of the repository. Default: `/cvmfs/<name>`.
    pub mountpoint: Option<PathBuf>,
    /// User and group IDs of a user without root privileges who runs the container. They are mapped to user and group 0, the only ones in
    /// the container.
    pub rootless: Option<(u32, u32)>,
    /// Whether the container shares the network of the host.
    pub host_network: bool,
    /// Whether the container has a terminal.
    pub terminal: bool,
    /// Host name. Default: the first digits of the config digest.
    pub hostname: Option<String>,
    /// User in place of the user of the image.
    pub user: Option<String>,
    /// Arguments in place of the command of the image.
    pub arguments: Vec<String>,
}

impl BundleOptions {
    fn is_rootless(&self) -> bool {
        self.rootless.is_some()
    }

    /// Returns whether the container shares the network of the host. Only root can create another network with a connection.
    fn shares_network(&self) -> bool {
        self.host_network || self.is_rootless()
    }
}

/// A bundle that is not written yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    /// Digest of the image's config.
    pub image: Digest,
    /// Path of the root file system on the machine that runs the container.
    pub root: String,
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// The working directory.
    pub directory: String,
    /// User and groups of the program.
    pub user: User,
    /// Differences from the settings of the image.
    pub warnings: Vec<String>,
    config: Value,
}

impl Bundle {
    /// Plans a bundle for a published image.
    pub fn of(repository: &Repository, place: &ImagePlace, options: &BundleOptions) -> Result<Self, BundleError> {
        let json = repository.read(&place.metadata().join(b"config.json"), MAX_DOCUMENT_SIZE)?;
        let json = json.ok_or_else(|| BundleError::NoConfig(place.clone()))?;
        let config =
            ImageConfig::parse(&json).map_err(|source| BundleError::Config { place: place.clone(), source })?;
        let image = Digest::of(&json);
        let root = PublishedRoot { repository, path: layout::flat_root(image) };
        if root.directory(b"")?.is_none() {
            return Err(BundleError::NoRoot(place.clone()));
        }
        let path = root_path(repository, image, options.mountpoint.as_deref())?;
        let mut mounts = Mounts::plan(&root, options)?;
        let process = Process::plan(&root, place, &config.config, &mut mounts, options)?;
        let config = spec::config(&path, image, &config, &process, &mounts, options);
        let Process { arguments, directory, user, .. } = process;
        Ok(Self { image, root: path, arguments, directory, user, warnings: mounts.warnings, config })
    }

    /// Returns the text of `config.json`.
    pub fn config_json(&self) -> String {
        format!("{:#}\n", self.config)
    }

    /// Writes the bundle into `directory`, which is created if missing, and must be empty otherwise. After an error nothing remains.
    pub fn write(&self, directory: &Path) -> Result<(), BundleError> {
        let io_error = |action| move |source| BundleError::Io { action, path: directory.to_owned(), source };
        let is_new = match fs::create_dir(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_empty =
                    directory.is_dir() && fs::read_dir(directory).map_err(io_error("list"))?.next().is_none();
                if !is_empty {
                    return Err(BundleError::Exists(directory.to_owned()));
                }
                false
            }
            Err(error) => return Err(io_error("create")(error)),
        };
        let written = self.write_config(directory).map_err(io_error("write into"));
        if written.is_err() && is_new {
            fs::remove_dir(directory).ok();
        }
        written
    }

    fn write_config(&self, directory: &Path) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(self.config_json().as_bytes())?;
        // Temporary files have mode 0600, and another user may run the bundle.
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.persist_noclobber(directory.join("config.json"))?;
        Ok(())
    }
}

/// Returns the path of an image's flat tree on the machine that runs the container. Links are resolved, because runc refuses a root
/// path with links.
fn root_path(repository: &Repository, image: Digest, mountpoint: Option<&Path>) -> Result<String, BundleError> {
    let below = PathBuf::from(layout::flat_root(image).to_string().trim_start_matches('/'));
    let path = match mountpoint {
        Some(mountpoint) => {
            let real = fs::canonicalize(mountpoint).map_err(|source| BundleError::Io {
                action: "find",
                path: mountpoint.to_owned(),
                source,
            })?;
            let root = real.join(below);
            match fs::metadata(&root) {
                Ok(metadata) if metadata.is_dir() => {}
                Err(source) if !is_absence(&source) => {
                    return Err(BundleError::Io { action: "find", path: root, source });
                }
                _ => return Err(BundleError::NotMounted { root, mountpoint: mountpoint.to_owned() }),
            }
            root
        }
        None => {
            let mountpoint = repository.client_mountpoint();
            // The repository may be mounted only on other machines.
            fs::canonicalize(&mountpoint).unwrap_or(mountpoint).join(below)
        }
    };
    path.into_os_string().into_string().map_err(|path| BundleError::Path(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle() -> Bundle {
        let user = User::find("", b"", b"").unwrap();
        let (root, directory) = ("/cvmfs/a.b/.flat/00/00".to_owned(), "/".to_owned());
        let (arguments, config) = (vec!["a\nb".to_owned()], serde_json::json!({"args": ["a\nb", "\"", "é"]}));
        Bundle { image: Digest::of(b""), root, arguments, directory, user, warnings: Vec::new(), config }
    }

    #[test]
    fn bundle_is_written_into_a_new_or_empty_directory() {
        let home = tempfile::tempdir().unwrap();
        let bundle = bundle();
        let new = home.path().join("new");
        bundle.write(&new).unwrap();
        let text = fs::read_to_string(new.join("config.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), bundle.config);
        assert_eq!(fs::read_dir(&new).unwrap().count(), 1);
        assert_eq!(fs::metadata(new.join("config.json")).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(matches!(bundle.write(&new), Err(BundleError::Exists(_))));
        fs::create_dir(home.path().join("empty")).unwrap();
        bundle.write(&home.path().join("empty")).unwrap();
        fs::write(home.path().join("file"), "").unwrap();
        assert!(matches!(bundle.write(&home.path().join("file")), Err(BundleError::Exists(_))));
        let error = bundle.write(&home.path().join("no/such")).unwrap_err();
        assert!(matches!(&error, BundleError::Io { action: "create", .. }), "{error}");
        assert!(!home.path().join("no").exists());
    }
}
