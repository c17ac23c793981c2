//! FUSE mounts of strata.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{DeviceKind, TestImage, TestRepository};
use crate::strict::{Content, Entry};

/// Time limit for anything that normally takes less than a second.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `is_so` returns true. Panics with `what` after [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// A mount of strata. Dropping it unmounts, however the test ends.
pub struct Mount {
    pub directory: PathBuf,
    log: PathBuf,
    strata: Child,
}

impl Mount {
    /// Mounts a repository.
    pub fn start(repository: &TestRepository, options: &[&str]) -> Self {
        let directory = repository.beside("mount");
        // The directory may exist as the mount point of a killed process, in which case this fails.
        fs::create_dir_all(&directory).ok();
        Self::start_on(repository, directory, options)
    }

    /// Mounts a repository on `directory`.
    pub fn start_on(repository: &TestRepository, directory: PathBuf, options: &[&str]) -> Self {
        let mut command = repository.command(["mount".as_ref(), directory.as_os_str()]);
        command.args(options);
        Self::of(command, directory, repository.beside("mount.log"))
    }

    /// Runs a command that mounts something on `directory`.
    pub fn of(mut command: Command, directory: PathBuf, log: PathBuf) -> Self {
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut mount = Self { directory, log, strata: command.spawn().unwrap() };
        wait_until("the file system is mounted", || {
            assert_eq!(mount.strata.try_wait().unwrap(), None, "{}", mount.log());
            is_mounted(&mount.directory)
        });
        mount
    }

    /// Returns the log of strata.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Sends strata a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.strata), signal).unwrap();
    }

    /// Waits until strata ends and returns its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        wait_until("strata ends", || self.strata.try_wait().unwrap().is_some());
        self.strata.wait().unwrap().code()
    }

    /// Lists a directory, sorted.
    pub fn names(&self, path: &str) -> Vec<String> {
        super::names_in(&self.directory.join(path))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").args(["-u", "-q", "-z"]).arg(&self.directory).status();
        let _ = self.strata.kill();
        let _ = self.strata.wait();
    }
}

/// Returns whether anything is mounted on a directory.
pub fn is_mounted(directory: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == directory.to_str())
}

/// Lists a mounted tree, or any other directory, in the form of the strict reader. Panics if a listed entry cannot be inspected.
pub fn walk(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    walk_tolerating(root, |_| false)
}

/// Does the same, but leaves out listed entries that cannot be inspected, at the paths for which `may_be_missing` returns true.
pub fn walk_tolerating(root: &Path, may_be_missing: impl Fn(&[u8]) -> bool) -> BTreeMap<Vec<u8>, Entry> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(Vec::new(), root.to_owned())];
    while let Some((path, place)) = waiting.pop() {
        let metadata = match fs::symlink_metadata(&place) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound && may_be_missing(&path) => continue,
            Err(error) => panic!("{place:?} is listed: {error}"),
        };
        if metadata.is_dir() {
            for child in fs::read_dir(&place).unwrap_or_else(|error| panic!("{place:?}: {error}")) {
                let name = child.unwrap().file_name();
                let below = if path.is_empty() { Vec::new() } else { [&path, &b"/"[..]].concat() };
                waiting.push(([below, name.as_bytes().to_vec()].concat(), place.join(name)));
            }
        }
        let (is_file, is_link) = (metadata.is_file(), metadata.is_symlink());
        let is_device = metadata.mode() & 0o170_000 == 0o020_000 || metadata.mode() & 0o170_000 == 0o060_000;
        let entry = Entry {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
            size: if is_file || is_link { metadata.size() } else { 0 },
            content: is_file.then(|| Content::of(&fs::read(&place).unwrap())),
            target: is_link.then(|| fs::read_link(&place).unwrap().into_os_string().into_vec()),
            rdev: is_device.then(|| metadata.rdev()),
            xattrs: xattrs(&place),
            link_group: None,
            linkcount: metadata.nlink() as u32,
            hidden: false,
        };
        found.insert(path, entry);
    }
    found
}

fn xattrs(place: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(place, &mut names[..]).unwrap();
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .filter_map(|name| {
            let mut value = vec![0; 256];
            match rustix::fs::lgetxattr(place, name, &mut value[..]) {
                Ok(length) => Some((name.to_vec(), value[..length].to_vec())),
                // An overlay mount of a user namespace lists these attributes to root, but reads them with the rights of that user.
                Err(rustix::io::Errno::NODATA) if name.starts_with(b"trusted.") => None,
                Err(error) => panic!("{place:?}: {}: {error}", name.escape_ascii()),
            }
        })
        .collect()
}

/// Returns the content of the file `large` in [`motley_image`], which is stored in chunks.
pub fn large_content() -> Vec<u8> {
    (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Returns an image with an entry of each type that CVMFS can hold.
pub fn motley_image() -> TestImage {
    TestImage::new()
        .layer(|layer| {
            layer
                .dir("bin")
                .mode(0o1777)
                .file("bin/tool", "#!/bin/sh\n")
                .mode(0o4755)
                .owner(7, 70_000)
                .mtime(-5, 999_999_999)
                .file("empty", "")
                .file("large", large_content())
                .file(b"odd \xff\n name", "x")
                .file("zero", vec![0; 300_000])
        })
        .layer(|layer| {
            layer
                .hardlink("bin/other", "bin/tool")
                .symlink("link", "bin/$(tool)")
                .symlink("up", "../../..")
                .device("null", DeviceKind::Character, 1, 3)
                .device("disk", DeviceKind::Block, 259, 70_000)
                .fifo("fifo")
                .file("with xattrs", "x")
                .xattr("user.a", b"\0value\xff")
                .xattr("security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
        })
}

/// Returns a tree as overlay mounts present it: without overlay attributes, and without link counts, which they do not keep.
pub fn seen_in_overlay(mut tree: BTreeMap<Vec<u8>, Entry>) -> BTreeMap<Vec<u8>, Entry> {
    for entry in tree.values_mut() {
        entry.xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
        (entry.linkcount, entry.link_group, entry.hidden) = (0, None, false);
    }
    tree
}

/// Panics unless a mounted tree equals the one that the strict reader finds, without the entries that listings hide.
#[track_caller]
pub fn assert_same(mounted: &BTreeMap<Vec<u8>, Entry>, published: &BTreeMap<Vec<u8>, Entry>) {
    let listed = || published.iter().filter(|(_, entry)| !entry.hidden);
    for (path, entry) in listed() {
        let mut expected = entry.clone();
        expected.link_group = None;
        let mut found = mounted.get(path).unwrap_or_else(|| panic!("no '{}'", path.escape_ascii())).clone();
        // Only root may list attributes outside of the namespace `user`.
        if !rustix::process::geteuid().is_root() {
            for entry in [&mut expected, &mut found] {
                entry.xattrs.retain(|name, _| name.starts_with(b"user."));
            }
        }
        assert_eq!(found, expected, "at '{}'", path.escape_ascii());
    }
    assert_eq!(mounted.len(), listed().count());
}
