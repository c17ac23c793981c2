//! The mounts of a container, and its working directory.
//!
//! The root is read-only, so a runtime cannot create mountpoints in it: each must exist in the image, or be inside an earlier mount.

use std::path::Path;

use serde_json::{Value, json};

use super::BundleOptions;
use super::root::{DirectoryContent, Root};
use crate::message::on_one_line;
use crate::path::EntryPath;
use crate::repository::RepositoryError;

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Mountpoint, from the container's root.
    pub(super) target: String,
    /// Type of the file system.
    pub(super) kind: &'static str,
    source: &'static str,
    options: Vec<&'static str>,
}

/// The mounts of a container in order, and warnings about them.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) warnings: Vec<String>,
}

/// Directories that must not be links in the image: runtimes refuse links as these mountpoints for security.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/proc", "/dev", "/sys"];

/// Directories that programs expect to be writable. (runc before 1.2 uses the permissions of the image in place of these.)
const WRITABLE_DIRECTORIES: [(&str, &str); 2] = [("/tmp", "mode=1777"), ("/run", "mode=755")];

/// Files of the host for name resolution.
const NETWORK_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

const SAFE_OPTIONS: [&str; 3] = ["nosuid", "noexec", "nodev"];

impl Mount {
    fn new(target: &str, kind: &'static str, source: &'static str, options: &[&[&'static str]]) -> Self {
        Self { target: target.to_owned(), kind, source, options: options.concat() }
    }

    /// Returns the mount in the format of the runtime specification.
    pub(super) fn to_json(&self) -> Value {
        json!({"destination": self.target, "type": self.kind, "source": self.source, "options": self.options})
    }

    /// Returns the mounts of every container, as in `runc spec`. With `rootless`, returns the mounts for a container in a user
    /// namespace that shares the network of the host.
    fn usual(rootless: bool) -> Vec<Self> {
        // The group `tty` does not exist in a user namespace with one group.
        let tty: &[&str] = if rootless { &[] } else { &["gid=5"] };
        let sys = match rootless {
            // A user namespace may mount sysfs only with a network namespace of its own. `runc spec --rootless` binds
            // `/sys`, too.
            true => Self::new("/sys", "none", "/sys", &[&["rbind"], &SAFE_OPTIONS, &["ro"]]),
            false => Self::new("/sys", "sysfs", "sysfs", &[&SAFE_OPTIONS, &["ro"]]),
        };
        let terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
        vec![
            Self::new("/proc", "proc", "proc", &[]),
            Self::new("/dev", "tmpfs", "tmpfs", &[&["nosuid", "strictatime", "mode=755", "size=65536k"]]),
            Self::new("/dev/pts", "devpts", "devpts", &[&terminals, tty]),
            Self::new("/dev/shm", "tmpfs", "shm", &[&SAFE_OPTIONS, &["mode=1777", "size=65536k"]]),
            Self::new("/dev/mqueue", "mqueue", "mqueue", &[&SAFE_OPTIONS]),
            sys,
            Self::new("/sys/fs/cgroup", "cgroup", "cgroup", &[&SAFE_OPTIONS, &["relatime", "ro"]]),
        ]
    }
}

impl Mounts {
    /// Returns the mounts of a container.
    pub(super) fn plan(root: &dyn Root, options: &BundleOptions) -> Result<Self, RepositoryError> {
        let mut plan = Self::default();
        plan.add_usual(root, options.is_rootless())?;
        for (directory, mode) in WRITABLE_DIRECTORIES {
            plan.add_writable(root, directory, mode, options.is_rootless())?;
        }
        if options.shares_network() {
            plan.add_network_files(root)?;
        }
        Ok(plan)
    }

    fn add_usual(&mut self, root: &dyn Root, rootless: bool) -> Result<(), RepositoryError> {
        let mut missing = Vec::new();
        for directory in SYSTEM_DIRECTORIES {
            if root.directory(directory.as_bytes())?.is_none_or(|found| path_text(&found).as_deref() != Some(directory))
            {
                self.warn(format!(
                    "nothing is mounted at '{directory}', because it is not a directory of the image itself"
                ));
                missing.push(Path::new(directory));
            }
        }
        let usual = Mount::usual(rootless).into_iter();
        self.mounts.extend(
            usual.filter(|mount| !missing.iter().any(|directory| Path::new(&mount.target).starts_with(directory))),
        );
        Ok(())
    }

    /// Adds a file system in memory if the image has the directory.
    fn add_writable(
        &mut self,
        root: &dyn Root,
        directory: &str,
        mode: &'static str,
        rootless: bool,
    ) -> Result<(), RepositoryError> {
        let Some(found) = root.directory(directory.as_bytes())? else { return Ok(()) };
        let Some(target) = path_text(&found).filter(|target| target != "/" && !self.is_mounted(target)) else {
            return Ok(());
        };
        let holds = root.holds(&found)?;
        let mut mount = Mount::new(&target, "tmpfs", "tmpfs", &[&["nosuid", "nodev", mode]]);
        match (holds, rootless) {
            (DirectoryContent::Nothing, _) | (DirectoryContent::EmptyDirectories, true) => {}
            // `tmpcopyup` copies the content of the image into the new file system. This needs root, to preserve owners.
            (_, false) => mount.options.push("tmpcopyup"),
            (DirectoryContent::Something, true) => {
                self.warn(format!(
                    "the content of '{target}' in the image is hidden by a writable file system in memory"
                ));
            }
        }
        self.mounts.push(mount);
        Ok(())
    }

    fn add_network_files(&mut self, root: &dyn Root) -> Result<(), RepositoryError> {
        for file in NETWORK_FILES {
            let target = root.file(file.as_bytes())?.and_then(|found| path_text(&found));
            if let Some(target) = target.filter(|target| !self.is_mounted(target) && Path::new(file).is_file()) {
                self.mounts.push(Mount::new(&target, "bind", file, &[&["bind", "ro"], &SAFE_OPTIONS]));
            }
        }
        Ok(())
    }

    /// Returns the working directory. If the image does not contain the directory `wanted`, adds a mount of a file system in
    /// memory at a parent directory of `wanted`. If that is not possible, the working directory is the root. Both cases add a warning.
    pub(super) fn start_in(&mut self, root: &dyn Root, wanted: &str) -> Result<String, RepositoryError> {
        let directory = normalised(wanted);
        if root.directory(directory.as_bytes())?.is_some() || self.creates(&directory) {
            return Ok(directory);
        }
        let said = on_one_line(&directory);
        // Images whose `WorkingDir` no layer creates are common. runc fails to create it in a read-only root.
        if !root.has(directory.as_bytes())?
            && let Some((above, below)) = self.empty_directory_above(root, &directory)?
        {
            self.warn(format!(
                "the working directory '{said}' is not in the image: it is created in memory, mounted at '{above}'"
            ));
            self.mounts.push(Mount::new(&above, "tmpfs", "tmpfs", &[&["nosuid", "nodev", "mode=755"]]));
            return Ok(format!("{above}{below}"));
        }
        self.warn(format!("the working directory '{said}' is not a directory of the image: the program starts in '/'"));
        Ok("/".to_owned())
    }

    /// Returns the nearest existing parent of `directory` and the rest of the path. Returns `None` if this parent is not empty or
    /// cannot be a mountpoint.
    fn empty_directory_above<'f>(
        &self,
        root: &dyn Root,
        directory: &'f str,
    ) -> Result<Option<(String, &'f str)>, RepositoryError> {
        for (slash, _) in directory.rmatch_indices('/').filter(|(slash, _)| *slash > 0) {
            let (above, below) = directory.split_at(slash);
            let Some(found) = root.directory(above.as_bytes())? else { continue };
            let target = path_text(&found).filter(|target| target != "/" && !self.is_mounted(target));
            let is_empty = root.holds(&found)? == DirectoryContent::Nothing;
            return Ok(target.filter(|_| is_empty && !directory.contains('\0')).map(|target| (target, below)));
        }
        Ok(None)
    }

    /// Returns whether a path is inside a mount.
    fn is_mounted(&self, path: &str) -> bool {
        self.mounts.iter().any(|mount| Path::new(path).starts_with(&mount.target))
    }

    /// Returns whether runtimes create this directory when they start the container: they do so inside a writable mount.
    fn creates(&self, directory: &str) -> bool {
        let below = |mount: &&Mount| Path::new(directory).starts_with(&mount.target);
        let lowest = self.mounts.iter().filter(below).max_by_key(|mount| mount.target.len());
        lowest.is_some_and(|mount| mount.kind == "tmpfs") && !directory.contains('\0')
    }

    fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }
}

/// Returns a path of the image as text; `None` if it is not UTF-8, which JSON requires.
fn path_text(path: &EntryPath) -> Option<String> {
    Some(format!("/{}", std::str::from_utf8(path.as_bytes()).ok()?))
}

/// Returns a normalised absolute path. `..` is resolved textually, without following links, as in Docker.
fn normalised(path: &str) -> String {
    let mut names = Vec::new();
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        match name {
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests;
