//! Bundles for OCI runtimes: a directory with a `config.json` that runs a published image right from where it is mounted.
//!
//! The root is the image's `.flat` tree and read-only. Whatever a runtime would have to make in it, a mount point or the directory
//! to start in, is looked for in the repository first. All of this is for runtimes that read the runtime specification 1.0.2, as
//! runc and crun do; what an image wants is what Docker makes of its config.

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
use crate::image::{Digest, ImageConfig};
use crate::layout::{self, ImagePlace};
use crate::message::shell_word;
use crate::repository::{Repository, RepositoryError};

use mounts::Mounts;
use process::Process;
use root::{PublishedRoot, Root as _};

pub use user::{User, UserError};

/// No config is read that has more bytes: no registry takes larger ones.
const LARGEST_CONFIG: u64 = 4 << 20;

/// runc, crun and other OCI runtimes, which run the root file system through a bundle.
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

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Nothing says how the image is to be run.
    #[error("nothing in the repository says how '{0}' is run; converting it with --force adds that")]
    NoConfig(ImagePlace),
    /// The config of the image is none.
    #[error("the published config of '{place}' cannot be read")]
    Config {
        /// The image.
        place: ImagePlace,
        /// Why.
        source: serde_json::Error,
    },
    /// The image was published without a root file system.
    #[error("'{0}' has no root file system in the repository: convert it without --skip-flat")]
    NoRoot(ImagePlace),
    /// The image names nobody to run as.
    #[error("'{place}' cannot be run as the user that is asked for")]
    User {
        /// The image.
        place: ImagePlace,
        /// Why.
        source: UserError,
    },
    /// There is no program.
    #[error("'{0}' names no program to run: give one, with its arguments, after '--'")]
    NoProgram(ImagePlace),
    /// No program takes such an argument.
    #[error("the command of '{0}' has a NUL character in it")]
    Nul(ImagePlace),
    /// The root file system is not where it should be.
    #[error("'{}' is not there: is the repository mounted at '{}'?", root.display(), mountpoint.display())]
    NotMounted {
        /// Where it should be.
        root: PathBuf,
        /// Where the repository was said to be mounted.
        mountpoint: PathBuf,
    },
    /// JSON cannot hold the path.
    #[error("the path '{}' is not text, as a bundle needs it", .0.display())]
    Path(PathBuf),
    /// The directory for the bundle holds something.
    #[error("'{}' is there already, and is no empty directory", .0.display())]
    Exists(PathBuf),
    /// The bundle cannot be written.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How a container is run, as far as its image leaves that open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BundleOptions {
    /// Where the repository is mounted; below `/cvmfs` where nothing is said.
    pub mountpoint: Option<PathBuf>,
    /// The user and group who run it without being root: they are all that there is in the container, as user 0.
    pub rootless: Option<(u32, u32)>,
    /// Whether it has the network of the host.
    pub host_network: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// What it is called; by the image's config where nothing is said.
    pub hostname: Option<String>,
    /// Who runs in it, in place of whom the image names.
    pub user: Option<String>,
    /// Arguments in place of the image's own.
    pub arguments: Vec<String>,
}

impl BundleOptions {
    fn is_rootless(&self) -> bool {
        self.rootless.is_some()
    }

    /// Tells whether the container has the network of the host: only root may make another that leads anywhere.
    fn shares_network(&self) -> bool {
        self.host_network || self.is_rootless()
    }
}

/// A bundle to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Bundle {
    /// The image's config, by its digest.
    pub image: Digest,
    /// The root file system.
    pub root: String,
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Where it starts.
    pub directory: String,
    /// Who it runs as.
    pub user: User,
    /// What is not as the image has it.
    pub warnings: Vec<String>,
    config: Value,
}

impl Bundle {
    /// Makes a bundle for an image as it is published.
    pub fn of(repository: &Repository, place: &ImagePlace, options: &BundleOptions) -> Result<Self, BundleError> {
        let json = repository.read(&place.metadata().join(b"config.json"), LARGEST_CONFIG)?;
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

    /// Writes the bundle into `directory`, which is made, or is there and empty. What fails leaves nothing behind.
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
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.persist_noclobber(directory.join("config.json"))?;
        Ok(())
    }
}

/// Returns where the root file system of an image is on the machine that runs it, without any link on the way: runc takes
/// none.
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
            // It may well be mounted on other machines only.
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
    fn bundle_goes_into_a_directory_that_is_not_there_or_empty() {
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
