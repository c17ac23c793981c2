//! A repository, one directory of it, or what is to become part of one, mounted by FUSE.
//!
//! A repository is read through [`Repository`], so what a reader gets was compared with its hash. Damage is an I/O error and a
//! line in the log, never wrong bytes.

mod content;
mod filesystem;
mod follow;
mod links;
mod nodes;
mod shown;
mod view;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Weak};
use std::thread;

use fuser::{Config, MountOption, Notifier, Session, SessionACL};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::message::causes;
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};
use filesystem::Filesystem;
use links::Links;
use view::View;

pub(crate) use content::ContentReader;
pub use content::ShowError;
pub(crate) use shown::{AnyContent, ContentSource, Extent, Shown};

/// Why nothing is mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// What is to be mounted is no directory.
    #[error("{0} is no directory of the repository")]
    NoDirectory(EntryPath),
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
    /// Another file system is mounted over it.
    #[error("cannot unmount '{}': something else is mounted over it", .0.display())]
    Covered(PathBuf),
    /// The directory for unpacked objects is none.
    #[error("'{}', where large objects are to be unpacked, is no directory", .0.display())]
    NoCache(PathBuf),
}

/// How to mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// The directory to mount; links that lead to it are followed once.
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

/// Something that is mounted. It is there from the moment that this exists, and until it is unmounted or this dropped.
#[must_use = "it is unmounted when it is dropped"]
pub struct Mount {
    point: MountPoint,
    /// Says when the kernel has ended it.
    ended: Receiver<()>,
}

/// Where something is mounted, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    path: PathBuf,
    /// The kernel's number for the mount, since others may be made at the same path.
    id: u64,
}

impl Mount {
    /// Mounts a revision at `mountpoint`, a directory.
    ///
    /// A mount whose process was killed is not in the way.
    pub fn start(repository: Repository, mountpoint: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let directory = unpacking_directory(options)?;
        let (path, _) = repository.follow(&options.path)?;
        let root = repository.row(&path)?.filter(|row| row.directory.is_some());
        let root = root.ok_or_else(|| MountError::NoDirectory(options.path.clone()))?;
        let content = Arc::new(ContentReader::new(repository.store().clone(), directory));
        let totals = repository.root()?.total_counters();
        let extent = Extent { entries: totals.entries().cast_unsigned(), bytes: totals.file_size().cast_unsigned() };
        let name = &repository.manifest().name;
        let links = |point: &Path| Links::of(name.clone(), path, point.to_owned());
        let view = View::new(repository.clone(), root, content, extent);
        let (mount, shown) = Self::of_view(view, links, name.to_string(), mountpoint, options)?;
        if options.follow {
            let follow = move || follow::follow(shown.view, repository, shown.notifier);
            let path = mountpoint.to_owned();
            thread::Builder::new().spawn(follow).map_err(|source| MountError::Mount { path, source })?;
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
        let root = tree.row(&EntryPath::ROOT)?.filter(|row| row.directory.is_some());
        let root = root.ok_or_else(|| MountError::NoDirectory(EntryPath::ROOT))?;
        let view = View::new(tree, root, content, extent);
        Self::of_view(view, |_| Links::of_no_repository(), name, mountpoint, options)
    }

    fn of_view<S: Shown>(
        view: View<S>,
        links: impl FnOnce(&Path) -> Links,
        name: String,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Result<(Self, Showing<S>), MountError> {
        let failed = |source| MountError::Mount { path: mountpoint.to_owned(), source };
        clear_dead_mount(mountpoint)?;
        let mountpoint = mountpoint.canonicalize().map_err(failed)?;
        if !fs::metadata(&mountpoint).map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        let view = Arc::new(view);
        let (end, ended) = mpsc::channel();
        let filesystem = Filesystem { view: Arc::clone(&view), links: links(&mountpoint), end };
        let session =
            Session::new(filesystem, &mountpoint, &config(name, options)).map_err(|error| failed(tidy(error)))?;
        let point = MountPoint { id: mount_id(&mountpoint).map_err(failed)?, path: mountpoint.clone() };
        let showing = Showing { view: Arc::downgrade(&view), notifier: session.notifier() };
        // Never dropped: it would unmount once more, by path and whatever is mounted there by then.
        Box::leak(Box::new(session.spawn().map_err(failed)?));
        Ok((Self { point, ended }, showing))
    }

    /// Returns where it is mounted.
    pub fn point(&self) -> &MountPoint {
        &self.point
    }

    /// Waits until it is unmounted.
    pub fn wait(self) {
        // An end that is gone is an end, too.
        self.ended.recv().ok();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.point.unmount() {
            tracing::error!("{}", causes(&error));
        }
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

/// Returns the directory that large objects are unpacked in.
pub(crate) fn unpacking_directory(options: &MountOptions) -> Result<PathBuf, MountError> {
    let directory = options.cache.clone().unwrap_or_else(std::env::temp_dir);
    if !directory.is_dir() {
        return Err(MountError::NoCache(directory));
    }
    Ok(directory)
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
    /// Nobody used it, or it was unmounted before.
    AtOnce,
    /// It is in nobody's way any more; those who have files of it open go on reading.
    WhileBusy,
}

impl MountPoint {
    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names the mount of that number at a path.
    pub fn new(path: PathBuf, id: u64) -> Self {
        Self { path, id }
    }

    /// Returns the kernel's number for it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Unmounts it if nobody answers for it any more.
    pub fn clear_if_dead(&self) -> Result<(), MountError> {
        if mount_id(&self.path).is_ok_and(|id| id == self.id) { clear_dead_mount(&self.path) } else { Ok(()) }
    }

    /// Tells whether it is mounted, if only below something else. Numbers are used again, but hardly at the same path.
    fn is_there(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let path = escape(&self.path);
        mounts
            .lines()
            .map(|line| line.split(' '))
            .any(|mut fields| fields.next().is_some_and(|id| id == self.id.to_string()) && fields.nth(3) == Some(&path))
    }

    /// Unmounts it, and nothing else that is mounted at the same path.
    pub fn unmount(&self) -> Result<Unmounted, MountError> {
        let is_ours = || mount_id(&self.path).is_ok_and(|id| id == self.id);
        if !is_ours() {
            return match self.is_there() {
                true => Err(MountError::Covered(self.path.clone())),
                false => Ok(Unmounted::AtOnce),
            };
        }
        match unmount_with(&self.path, false) {
            Ok(()) => Ok(Unmounted::AtOnce),
            Err(_) if !is_ours() => Ok(Unmounted::AtOnce),
            Err(_) => unmount_with(&self.path, true)
                .map(|()| Unmounted::WhileBusy)
                .map_err(|source| MountError::Unmount { path: self.path.clone(), source }),
        }
    }
}

/// Returns the kernel's number for what is mounted at a path.
fn mount_id(path: &Path) -> io::Result<u64> {
    // Not to be asked of us, who may not answer yet.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Returns a path as the kernel lists it.
fn escape(path: &Path) -> String {
    let escaped = |character: char| match character {
        ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(character)),
        other => other.to_string(),
    };
    path.to_string_lossy().chars().map(escaped).collect()
}

/// Takes the line end off what `fusermount3` said.
fn tidy(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => io::Error::new(error.kind(), error.to_string().trim_end().to_owned()),
    }
}

fn unmount_with(mountpoint: &Path, busy: bool) -> io::Result<()> {
    let flags = if busy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => {}
        result => return Ok(result?),
    }
    let options: &[&str] = if busy { &["-u", "-q", "-z", "--"] } else { &["-u", "-q", "--"] };
    let run = |program| Command::new(program).args(options).arg(mountpoint).output();
    let programs = ["fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3"];
    match programs.into_iter().find_map(|program| run(program).ok()) {
        Some(output) if output.status.success() => Ok(()),
        Some(_) => Err(io::ErrorKind::ResourceBusy.into()),
        None => Err(io::Error::new(io::ErrorKind::NotFound, "fusermount3 is not installed")),
    }
}

/// Unmounts what is mounted at `mountpoint` if nobody answers for it any more.
pub fn clear_dead_mount(mountpoint: &Path) -> Result<(), MountError> {
    if !is_dead(mountpoint) {
        return Ok(());
    }
    match unmount_with(mountpoint, true) {
        // Somebody else was faster.
        Err(_) if !is_dead(mountpoint) => Ok(()),
        result => result.map_err(|source| MountError::Unmount { path: mountpoint.to_owned(), source }),
    }
}

/// Tells whether the process that answers for a mount is gone.
fn is_dead(mountpoint: &Path) -> bool {
    matches!(rustix::fs::statfs(mountpoint), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_and_path() {
        let root = MountPoint::new("/".into(), mount_id(Path::new("/")).unwrap());
        assert!(root.is_there());
        assert!(!MountPoint::new("/".into(), root.id + 1_000_000).is_there());
        assert!(!MountPoint::new("/no/such/place".into(), root.id).is_there());
        assert_eq!(escape(Path::new("/a b\\c\td")), "/a\\040b\\134c\\011d");
    }
}
