//! A repository, one folder of it, or what is to become part of one, mounted by FUSE.
//!
//! A repository is read through [`Repository`], so what a reader gets was compared with its hash. Damage is an I/O error and a
//! line in the log, never wrong bytes.

mod content;
mod filesystem;
mod follow;
mod nodes;
mod shown;
mod view;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};
use std::thread;

use fuser::{Config, MountOption, Notifier, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::layer::EntryPath;
use crate::repository::{Repository, RepositoryError};
use filesystem::Filesystem;
use view::View;

pub use content::ContentError;
pub(crate) use content::ContentReader;
pub(crate) use shown::{AnyContent, ContentSource, Extent, Shown};

/// Why nothing is mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// What is to be mounted is no folder.
    #[error("{0} is no folder of the repository")]
    NoFolder(EntryPath),
    /// The mount point is nothing to mount on.
    #[error("cannot mount on '{}'", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount point could not be freed.
    #[error("cannot unmount '{}'", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel ended the connection.
    #[error("connection to the kernel broke")]
    Session(#[source] io::Error),
}

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// The folder to mount; links that lead to it are followed once.
    pub path: EntryPath,
    /// Whether to go over to each new head.
    pub follow: bool,
    /// Whether users other than the one who mounts have access, as far as permissions allow.
    pub allow_other: bool,
    /// Where objects above 16 MiB are unpacked, into files without a name; where temporary files lie if it is not set.
    pub cache: Option<PathBuf>,
    /// How many threads answer.
    pub threads: usize,
}

/// Something that is mounted. It is there from the moment that this exists.
#[must_use = "nobody answers before it is served"]
pub struct Mount {
    serve: Box<dyn FnOnce() -> io::Result<()> + Send>,
    mountpoint: PathBuf,
}

impl Mount {
    /// Mounts a revision at `mountpoint`, a folder.
    ///
    /// A mount whose process was killed is not in the way.
    pub fn start(repository: Repository, mountpoint: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let folder = unpacking_folder(options)?;
        let (path, _) = repository.follow(&options.path)?;
        let root = repository.row(&path)?.filter(|row| row.folder.is_some());
        let root = root.ok_or_else(|| MountError::NoFolder(options.path.clone()))?;
        let content = Arc::new(ContentReader::new(repository.store().clone(), folder));
        let totals = repository.root()?.total_counters();
        let extent = Extent { entries: totals.entries().cast_unsigned(), bytes: totals.file_size().cast_unsigned() };
        let name = repository.manifest().name.to_string();
        let view = View::new(repository.clone(), root, content, extent);
        let (mount, shown) = Self::of_view(view, name, mountpoint, options)?;
        if options.follow {
            thread::spawn(move || follow::follow(shown.view, repository, shown.notifier));
        }
        Ok(mount)
    }

    /// Mounts the root of a tree, which may change.
    pub(crate) fn start_changing<S: Shown>(
        tree: S,
        content: AnyContent,
        extent: Extent,
        name: String,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Result<(Self, Showing<S>), MountError> {
        let root = tree.row(&EntryPath::ROOT)?.filter(|row| row.folder.is_some());
        let root = root.ok_or_else(|| MountError::NoFolder(EntryPath::ROOT))?;
        Self::of_view(View::new(tree, root, content, extent), name, mountpoint, options)
    }

    fn of_view<S: Shown>(
        view: View<S>,
        name: String,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Result<(Self, Showing<S>), MountError> {
        let failed = |source| MountError::Mount { path: mountpoint.to_owned(), source };
        clear_dead_mount(mountpoint)?;
        let mountpoint = mountpoint.canonicalize().map_err(failed)?;
        if !mountpoint.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let view = Arc::new(view);
        let filesystem = Filesystem { view: Arc::clone(&view) };
        let session = Session::new(filesystem, &mountpoint, &config(name, options)).map_err(failed)?;
        let showing = Showing { view: Arc::downgrade(&view), notifier: session.notifier() };
        Ok((Self { serve: Box::new(|| session.run()), mountpoint }, showing))
    }

    /// Returns where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Answers the kernel until somebody unmounts.
    pub fn serve(self) -> Result<(), MountError> {
        (self.serve)().map_err(MountError::Session)
    }
}

/// What is shown at a mount, to be changed.
pub(crate) struct Showing<S: Shown> {
    view: Weak<View<S>>,
    notifier: Notifier,
}

impl<S: Shown> Showing<S> {
    /// Shows another tree from now on; nothing happens where it was unmounted.
    pub(crate) fn show(&self, tree: &S) -> Result<(), MountError> {
        match self.view.upgrade() {
            Some(view) => Ok(follow::show(&view, tree, &self.notifier)?),
            None => Ok(()),
        }
    }
}

/// Returns the folder that large objects are unpacked in.
pub(crate) fn unpacking_folder(options: &MountOptions) -> Result<PathBuf, MountError> {
    let folder = options.cache.clone().unwrap_or_else(std::env::temp_dir);
    if !folder.is_dir() {
        return Err(MountError::Mount { path: folder, source: io::ErrorKind::NotADirectory.into() });
    }
    Ok(folder)
}

fn config(name: String, options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName(name), MountOption::Subtype("strata".to_owned())];
    if options.allow_other {
        config.acl = SessionACL::All;
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    config
}

/// How a mount was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody used it.
    AtOnce,
    /// It is in nobody's way any more; those who have files of it open go on reading.
    WhileBusy,
}

/// Unmounts what is mounted at `mountpoint`.
pub fn unmount(mountpoint: &Path) -> Result<Unmounted, MountError> {
    match unmount_with(mountpoint, false) {
        Ok(()) => Ok(Unmounted::AtOnce),
        Err(_) => unmount_with(mountpoint, true)
            .map(|()| Unmounted::WhileBusy)
            .map_err(|source| MountError::Unmount { path: mountpoint.to_owned(), source }),
    }
}

fn unmount_with(mountpoint: &Path, busy: bool) -> io::Result<()> {
    let flags = if busy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => {}
        result => return Ok(result?),
    }
    let options: &[&str] = if busy { &["-u", "-q", "-z", "--"] } else { &["-u", "-q", "--"] };
    match Command::new("fusermount3").args(options).arg(mountpoint).output()? {
        output if output.status.success() => Ok(()),
        _ => Err(io::ErrorKind::ResourceBusy.into()),
    }
}

/// Unmounts what is mounted at `mountpoint` if nobody answers for it any more.
pub fn clear_dead_mount(mountpoint: &Path) -> Result<(), MountError> {
    match rustix::fs::statfs(mountpoint) {
        Err(Errno::NOTCONN | Errno::CONNABORTED) => unmount(mountpoint).map(drop),
        _ => Ok(()),
    }
}
