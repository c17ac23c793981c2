//! Mounts a repository, a directory of a repository, or a preview of an image with FUSE.
//!
//! A repository is read through [`Repository`], so all data is compared with its hash before it is returned. Damaged data
//! causes an I/O error for the reading process and a message of strata; wrong bytes are never returned.

mod content;
mod filesystem;
mod follow;
mod links;
mod mountable;
mod nodes;
mod view;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use fuser::{Config, MountOption, Notifier, Session, SessionACL};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::message::causes;
use crate::observer::Reporter;
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};
use filesystem::Filesystem;
use links::LinkTargets;
use view::View;

pub(crate) use content::ContentReader;
pub use content::ReadContentError;
pub(crate) use mountable::{ContentSource, MountableTree, SharedContentSource, TreeTotals};

/// Errors from mounting and unmounting.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The path to be mounted is not a directory.
    #[error("{0} is not a directory of the repository")]
    NotADirectory(EntryPath),
    /// The file system cannot be mounted at the mount point.
    #[error("cannot mount on '{}'", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The error of the operating system or of `fusermount3`.
        source: io::Error,
    },
    /// The file system cannot be unmounted.
    #[error("cannot unmount '{}'", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// The error of the operating system or of `fusermount3`.
        source: io::Error,
    },
    /// Another file system is mounted on top of this one.
    #[error("cannot unmount '{}': another file system is mounted over it", .0.display())]
    MountedOver(PathBuf),
    /// The directory for decompressed objects does not exist.
    #[error("the cache directory '{}' is not a directory", .0.display())]
    CacheNotADirectory(PathBuf),
}

/// Options of a mount.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// The directory to mount. If its path is a symbolic link, the link is followed once, at the start.
    pub path: EntryPath,
    /// Interval between two checks for a new head, which is then mounted. If it is `None`, the revision stays mounted.
    pub follow: Option<Duration>,
    /// Whether processes of other users may access the mount. The permissions of the files still apply to them.
    pub allow_other: bool,
    /// Directory for the unlinked files into which objects above 16 MiB are decompressed; by default the system's temporary
    /// directory.
    pub cache: Option<PathBuf>,
    /// Number of threads that answer requests.
    pub threads: usize,
}

/// A mounted file system. Dropping this value unmounts the file system.
#[must_use = "the file system is unmounted when this is dropped"]
pub struct Mount {
    point: MountPoint,
    /// Disconnected when the kernel has ended the mount.
    ended: Receiver<()>,
    reporter: Reporter,
}

/// Identifies a mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    path: PathBuf,
    /// The mount ID in the kernel, because another file system may be mounted at the same path.
    id: u64,
}

impl Mount {
    /// Mounts a revision at the directory `mountpoint`.
    ///
    /// If a file system whose process was killed is still mounted there, that file system is unmounted first.
    pub fn start(repository: Repository, mountpoint: &Path, options: &MountOptions) -> Result<Self, MountError> {
        let directory = cache_directory(options)?;
        let (path, _) = repository.follow(&options.path)?;
        let root = repository.row(&path)?.filter(|row| row.directory.is_some());
        let root = root.ok_or_else(|| MountError::NotADirectory(options.path.clone()))?;
        let content = Arc::new(ContentReader::new(repository.store().clone(), directory));
        let counters = repository.root()?.total_counters();
        let totals =
            TreeTotals { entries: counters.entries().cast_unsigned(), bytes: counters.file_size().cast_unsigned() };
        let name = &repository.manifest().name;
        let links = |point: &Path| LinkTargets::of(name.clone(), path, point.to_owned());
        let view = View::new(repository.clone(), root, content, totals, repository.store().reporter());
        let (mount, replacer) = Self::of_view(view, links, name.to_string(), mountpoint, options)?;
        if let Some(interval) = options.follow {
            let follow = move || follow::follow(replacer.view, repository, replacer.notifier, interval);
            let path = mountpoint.to_owned();
            let spawned = thread::Builder::new().spawn(follow);
            spawned.map_err(|error| MountError::Mount { path, source: no_thread(error) })?;
        }
        Ok(mount)
    }

    /// Mounts the root of a tree that can be replaced later.
    pub(crate) fn start_changing<S: MountableTree>(
        tree: S,
        content: SharedContentSource,
        totals: TreeTotals,
        name: String,
        mountpoint: &Path,
        options: &MountOptions,
        reporter: &Reporter,
    ) -> Result<(Self, TreeReplacer<S>), MountError> {
        let root = tree.row(&EntryPath::ROOT)?.filter(|row| row.directory.is_some());
        let root = root.ok_or_else(|| MountError::NotADirectory(EntryPath::ROOT))?;
        let view = View::new(tree, root, content, totals, reporter);
        Self::of_view(view, |_| LinkTargets::of_no_repository(), name, mountpoint, options)
    }

    fn of_view<S: MountableTree>(
        view: View<S>,
        links: impl FnOnce(&Path) -> LinkTargets,
        name: String,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Result<(Self, TreeReplacer<S>), MountError> {
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
        let replacer = TreeReplacer { view: Arc::downgrade(&view), notifier: session.notifier() };
        // The session is never dropped. Dropping it would unmount the path a second time, even if another file system is
        // mounted there by then.
        Box::leak(Box::new(session.spawn().map_err(|error| failed(no_thread(error)))?));
        Ok((Self { point, ended, reporter: view.reporter.clone() }, replacer))
    }

    /// Returns the mount point.
    pub fn point(&self) -> &MountPoint {
        &self.point
    }

    /// Waits until the file system is unmounted.
    pub fn wait(self) {
        // `recv` also returns when the channel is disconnected, which happens at the end of the mount, too.
        self.ended.recv().ok();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.point.unmount() {
            self.reporter.error(format_args!("{}", causes(&error)));
        }
    }
}

/// Replaces the tree of a mount.
pub(crate) struct TreeReplacer<S: MountableTree> {
    view: Weak<View<S>>,
    notifier: Notifier,
}

impl<S: MountableTree> TreeReplacer<S> {
    /// Replaces the mounted tree by `tree`. Has no effect if the file system was unmounted.
    pub(crate) fn replace(&self, tree: &S) -> Result<(), MountError> {
        match self.view.upgrade() {
            Some(view) => Ok(follow::replace_tree(&view, tree, &self.notifier)?),
            None => Ok(()),
        }
    }
}

/// Returns the directory into which large objects are decompressed.
pub(crate) fn cache_directory(options: &MountOptions) -> Result<PathBuf, MountError> {
    let directory = options.cache.clone().unwrap_or_else(std::env::temp_dir);
    if !directory.is_dir() {
        return Err(MountError::CacheNotADirectory(directory));
    }
    Ok(directory)
}

fn config(name: String, options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName(name), MountOption::Subtype("strata".to_owned())];
    if options.allow_other {
        config.acl = SessionACL::All;
        // Without this option, the kernel checks no permissions, and other users could read every file.
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    config
}

/// Whether processes still used a file system when it was unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// No process used the file system, or it was already unmounted.
    AtOnce,
    /// Processes still use the file system. Its path is free, and these processes can still read the files that they have
    /// open.
    WhileBusy,
}

impl MountPoint {
    /// Returns the path of the mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refers to the mount with this ID at a path.
    pub fn new(path: PathBuf, id: u64) -> Self {
        Self { path, id }
    }

    /// Returns the mount ID in the kernel.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Unmounts the file system if its process has ended.
    pub fn clear_if_dead(&self) -> Result<(), MountError> {
        if mount_id(&self.path).is_ok_and(|id| id == self.id) { clear_dead_mount(&self.path) } else { Ok(()) }
    }

    /// Returns whether the file system is still mounted at its path, possibly below another mount. The kernel may give the
    /// ID of an unmounted file system to a new mount, but a new mount at the same path is unlikely.
    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let path = escape(&self.path);
        mounts
            .lines()
            .map(|line| line.split(' '))
            .any(|mut fields| fields.next().is_some_and(|id| id == self.id.to_string()) && fields.nth(3) == Some(&path))
    }

    /// Unmounts this file system, but no other one at the same path.
    pub fn unmount(&self) -> Result<Unmounted, MountError> {
        let is_ours = || mount_id(&self.path).is_ok_and(|id| id == self.id);
        if !is_ours() {
            return match self.is_mounted() {
                true => Err(MountError::MountedOver(self.path.clone())),
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

/// Returns the kernel's ID of the mount at a path.
fn mount_id(path: &Path) -> io::Result<u64> {
    // Without synchronization, because synchronization sends a request to this process, which may not answer requests yet.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Returns a path as `/proc/self/mountinfo` writes it.
fn escape(path: &Path) -> String {
    let escaped = |character: char| match character {
        // The kernel writes these characters in octal (proc_pid_mountinfo(5)).
        ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(character)),
        other => other.to_string(),
    };
    path.to_string_lossy().chars().map(escaped).collect()
}

/// Adds to the text of an error that a thread could not be started.
fn no_thread(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot start a thread: {error}"))
}

/// Removes the line break at the end of an error message of `fusermount3`.
fn tidy(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None => io::Error::new(error.kind(), error.to_string().trim_end().to_owned()),
    }
}

fn unmount_with(mountpoint: &Path, busy: bool) -> io::Result<()> {
    let flags = if busy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags) {
        // Without root privileges, only the set-user-ID program `fusermount3` can unmount.
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

/// Unmounts the file system at `mountpoint` if its process has ended.
pub fn clear_dead_mount(mountpoint: &Path) -> Result<(), MountError> {
    if !is_dead(mountpoint) {
        return Ok(());
    }
    match unmount_with(mountpoint, true) {
        // Another process has unmounted it in the meantime.
        Err(_) if !is_dead(mountpoint) => Ok(()),
        result => result.map_err(|source| MountError::Unmount { path: mountpoint.to_owned(), source }),
    }
}

/// Returns whether the process that serves a mount has ended.
fn is_dead(mountpoint: &Path) -> bool {
    // `ENOTCONN`: the process has ended. `ECONNABORTED`: the FUSE connection was aborted.
    matches!(rustix::fs::statfs(mountpoint), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_id_and_path() {
        let root = MountPoint::new("/".into(), mount_id(Path::new("/")).unwrap());
        assert!(root.is_mounted());
        assert!(!MountPoint::new("/".into(), root.id + 1_000_000).is_mounted());
        assert!(!MountPoint::new("/no/such/place".into(), root.id).is_mounted());
        assert_eq!(escape(Path::new("/a b\\c\td")), "/a\\040b\\134c\\011d");
    }
}
