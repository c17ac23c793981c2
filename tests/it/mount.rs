//! `strata mount` shows what is published, follows the head, and is gone without a trace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::strict::{Content, Entry};
use crate::support::{DeviceKind, FQRN, NAME, TestImage, TestRepository, flat_path, need_fuse};

/// How long anything may take that takes a moment.
const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// A repository that strata has mounted, until the value is dropped, however the test ends.
struct Mount {
    folder: PathBuf,
    log: PathBuf,
    strata: Child,
}

impl Mount {
    fn start(repository: &TestRepository, options: &[&str]) -> Self {
        let folder = repository.beside("mount");
        fs::create_dir_all(&folder).unwrap();
        Self::start_on(repository, folder, options)
    }

    fn start_on(repository: &TestRepository, folder: PathBuf, options: &[&str]) -> Self {
        let log = repository.beside("mount.log");
        let mut command = repository.command(["mount".as_ref(), folder.as_os_str()]);
        command.args(options).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut mount = Self { folder, log, strata: command.spawn().unwrap() };
        wait_until("mounted", || {
            assert_eq!(mount.strata.try_wait().unwrap(), None, "{}", mount.said());
            is_mounted(&mount.folder)
        });
        mount
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.strata), signal).unwrap();
    }

    /// Waits for the end of strata and returns its exit code.
    fn wait(&mut self) -> Option<i32> {
        wait_until("ended", || self.strata.try_wait().unwrap().is_some());
        self.strata.wait().unwrap().code()
    }

    fn names(&self, path: &str) -> Vec<String> {
        let names = fs::read_dir(self.folder.join(path)).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").args(["-u", "-q", "-z"]).arg(&self.folder).status();
        let _ = self.strata.kill();
        let _ = self.strata.wait();
    }
}

fn is_mounted(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == folder.to_str())
}

/// Lists a mounted tree as the strict reader lists a published one.
fn walk(root: &Path) -> BTreeMap<Vec<u8>, Entry> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![(Vec::new(), root.to_owned())];
    while let Some((path, place)) = waiting.pop() {
        let metadata = fs::symlink_metadata(&place).unwrap();
        if metadata.is_dir() {
            for child in fs::read_dir(&place).unwrap() {
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
        .map(|name| {
            let mut value = vec![0; 256];
            let length = rustix::fs::lgetxattr(place, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// A bit of everything that CVMFS can hold.
fn motley_image() -> TestImage {
    let large: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
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
                .file("large", large)
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

#[test]
fn everything_is_as_it_was_published() {
    if !need_fuse() {
        return;
    }
    let image = motley_image();
    let repository = TestRepository::publish(&image);
    let mount = Mount::start(&repository, &[]);
    let mounted = walk(&mount.folder.join(flat_path(&image)));
    let published = repository.flat(&image);
    for (path, entry) in published.entries().iter().filter(|(_, entry)| !entry.hidden) {
        let mut expected = entry.clone();
        expected.link_group = None;
        let mut found = mounted.get(path).unwrap_or_else(|| panic!("no '{}'", path.escape_ascii())).clone();
        // Whose rights a file has is nothing that other users may list.
        if !rustix::process::geteuid().is_root() {
            for entry in [&mut expected, &mut found] {
                entry.xattrs.retain(|name, _| name.starts_with(b"user."));
            }
        }
        assert_eq!(found, expected, "at '{}'", path.escape_ascii());
    }
    assert_eq!(mounted.len(), published.entries().values().filter(|entry| !entry.hidden).count());
    let number = |path: &str| fs::metadata(mount.folder.join(flat_path(&image)).join(path)).unwrap().ino();
    assert_eq!(number("bin/tool"), number("bin/other"));
    assert_ne!(number("bin/tool"), number("empty"));
}

#[test]
fn file_system_is_read_only_and_has_names_of_255_bytes() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let mount = Mount::start(&repository, &[]);
    let statistics = rustix::fs::statvfs(&mount.folder).unwrap();
    assert_eq!(statistics.f_namemax, 255);
    let error = |path: &Path| rustix::io::Errno::from_io_error(&File::open(path).unwrap_err()).unwrap();
    assert_eq!(error(&mount.folder.join("n".repeat(256))), rustix::io::Errno::NAMETOOLONG);
    assert_eq!(error(&mount.folder.join("n".repeat(255))), rustix::io::Errno::NOENT);
    let written = rustix::io::Errno::from_io_error(&File::create(mount.folder.join("new")).unwrap_err());
    assert_eq!(written, Some(rustix::io::Errno::ROFS));
}

#[test]
fn large_files_are_read_at_any_offset_by_many_at_once() {
    if !need_fuse() {
        return;
    }
    let image = motley_image();
    let repository = TestRepository::publish(&image);
    let mount = Mount::start(&repository, &[]);
    let path = mount.folder.join(flat_path(&image)).join("large");
    let expected: Vec<u8> = (0..20_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    thread::scope(|scope| {
        for reader in 0..8_usize {
            let (path, expected) = (&path, &expected);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                for step in 0..50_usize {
                    let at = (reader * 7_919 + step * 399_989) % (expected.len() - 5000);
                    let mut bytes = vec![0; 5000];
                    file.read_exact_at(&mut bytes, at as u64).unwrap();
                    assert!(bytes == expected[at..at + 5000], "at {at}");
                }
            });
        }
    });
    let mut file = File::open(&path).unwrap();
    assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), 19_999_997);
    let mut end = Vec::new();
    file.read_to_end(&mut end).unwrap();
    assert_eq!(end, expected[19_999_997..]);
}

#[test]
fn new_heads_are_followed_and_pinned_revisions_stay() {
    if !need_fuse() {
        return;
    }
    let image = |word: &str| TestImage::new().layer(|layer| layer.file("word", word).dir("folder"));
    let (old, new) = (image("old"), image("new"));
    let repository = TestRepository::publish(&old);
    let folder = |name: &str| {
        let folder = repository.beside(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let follows = Mount::start_on(&repository, folder("follows"), &[]);
    let pinned = Mount::start_on(&repository, folder("pinned"), &["--revision", "2"]);
    let one = Mount::start_on(&repository, folder("one"), &["--path", NAME]);
    let host = NAME.split('/').next().unwrap();
    let word = |mount: &Mount| fs::read_to_string(mount.folder.join(NAME).join("word")).unwrap();
    assert_eq!((word(&follows), word(&pinned)), ("old".to_owned(), "old".to_owned()));
    assert!(fs::symlink_metadata(follows.folder.join("other.example.org")).is_err());
    let kept_open = File::open(follows.folder.join(NAME).join("word")).unwrap();
    let number = fs::metadata(follows.folder.join(host)).unwrap().ino();

    repository.convert(&new, NAME, &[]).expect_code(0);
    wait_until("the tag moved", || word(&follows) == "new");
    repository.convert(&new, "other.example.org/x:1", &[]).expect_code(0);
    wait_until("a name that led to nothing leads to something", || {
        follows.folder.join("other.example.org/x:1/word").exists()
    });
    assert!(follows.names("").contains(&"other.example.org".to_owned()));
    assert_eq!(fs::metadata(follows.folder.join(host)).unwrap().ino(), number, "folders keep their numbers");
    let mut bytes = [0; 3];
    kept_open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"old");
    assert_eq!(word(&pinned), "old");
    assert_eq!(pinned.names(""), one_less(&follows.names("")));
    assert_eq!(fs::read_to_string(one.folder.join("word")).unwrap(), "old");
}

fn one_less(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| *name != "other.example.org").cloned().collect()
}

#[test]
fn damaged_object_is_an_error_and_never_wrong_bytes() {
    if !need_fuse() {
        return;
    }
    let image = TestImage::new().layer(|layer| layer.file("good", "good content").file("bad", "bad content"));
    let repository = TestRepository::publish(&image);
    let object = repository.objects().into_keys().find(|path| {
        let stored = fs::read(repository.storage().join(path)).unwrap();
        let mut plain = Vec::new();
        flate2::read::ZlibDecoder::new(stored.as_slice()).read_to_end(&mut plain).is_ok() && plain == b"bad content"
    });
    let object = object.expect("the content is an object");
    let path = repository.storage().join(&object);
    let whole = fs::read(&path).unwrap();
    let damages = [
        whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 9)).collect(),
        whole[..whole.len() - 1].to_vec(),
        Vec::new(),
    ];
    for damaged in damages {
        fs::write(&path, damaged).unwrap();
        let mount = Mount::start(&repository, &[]);
        let flat = mount.folder.join(flat_path(&image));
        let error = fs::read(flat.join("bad")).unwrap_err();
        assert_eq!(rustix::io::Errno::from_io_error(&error), Some(rustix::io::Errno::IO));
        assert!(mount.said().contains(&object) && mount.said().contains("/bad"), "{}", mount.said());
        assert_eq!(fs::read(flat.join("good")).unwrap(), b"good content");
        fs::write(&path, &whole).unwrap();
        assert_eq!(fs::read(flat.join("bad")).unwrap(), b"bad content", "what was mended can be read");
    }
}

#[test]
fn signals_unmount_and_end() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    for signal in [Signal::INT, Signal::TERM] {
        let mut mount = Mount::start(&repository, &[]);
        mount.signal(signal);
        assert_eq!(mount.wait(), Some(0), "{}", mount.said());
        assert!(!is_mounted(&mount.folder));
    }
}

#[test]
fn unmounting_while_busy_frees_the_mount_point_and_ends() {
    if !need_fuse() {
        return;
    }
    let image = TestImage::new().layer(|layer| layer.file("a", "still there"));
    let repository = TestRepository::publish(&image);
    let mut mount = Mount::start(&repository, &[]);
    let open = File::open(mount.folder.join(NAME).join("a")).unwrap();
    mount.signal(Signal::TERM);
    wait_until("unmounted", || !is_mounted(&mount.folder));
    let mut bytes = [0; 11];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"still there");
    drop(open);
    assert_eq!(mount.wait(), Some(0), "{}", mount.said());
}

#[test]
fn killed_mount_is_in_nobodys_way() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let mut mount = Mount::start(&repository, &[]);
    mount.signal(Signal::KILL);
    mount.wait();
    let mut next = Mount::start(&repository, &[]);
    assert_eq!(fs::read_to_string(next.folder.join(NAME).join("a")).unwrap(), "x");
    next.signal(Signal::KILL);
    next.wait();
    wait_until("nothing is left of it", || !is_mounted(&next.folder) && fs::read_dir(&next.folder).is_ok());
}

#[test]
fn what_cannot_be_mounted_is_said_in_one_line() {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let nowhere = repository.beside("nowhere");
    let here = repository.beside("here");
    fs::create_dir(&here).unwrap();
    let [nowhere, here] = [&nowhere, &here].map(|path| path.to_str().unwrap());
    let file = format!("{NAME}/a");
    for (arguments, expected) in [
        (vec!["mount", nowhere], nowhere),
        (vec!["mount", here, "--tag", "none"], "'none'"),
        (vec!["mount", here, "--revision", "99"], "99"),
        (vec!["mount", here, "--path", "no/such"], "/no/such"),
        (vec!["mount", here, "--path", &file], "is no folder"),
        (vec!["mount", here, "--cache", nowhere], nowhere),
    ] {
        let run = repository.run(&arguments).expect_code(1);
        assert!(run.stderr().contains(expected), "{arguments:?}: {}", run.stderr());
        assert_eq!(run.stderr().lines().count(), 1, "{}", run.stderr());
    }
    assert!(repository.has(NAME) && repository.folder().ends_with(FQRN));
}

#[test]
fn folder_of_many_files_is_listed_whole() {
    if !need_fuse() {
        return;
    }
    const FILES: usize = 200_000;
    let image = TestImage::new()
        .layer(|layer| (0..FILES).fold(layer, |layer, number| layer.file(format!("many/{number:06}"), "same")));
    let repository = TestRepository::publish(&image);
    let mount = Mount::start(&repository, &[]);
    let folder = mount.folder.join(flat_path(&image)).join("many");
    for _ in 0..2 {
        let names: std::collections::BTreeSet<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), FILES);
    }
    assert_eq!(fs::read(folder.join("123456")).unwrap(), b"same");
}
