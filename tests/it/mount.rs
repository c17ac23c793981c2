//! `strata mount` serves what is published, follows the head, and leaves nothing behind.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::thread;
use std::time::Instant;

use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

use crate::strict::hex;
use crate::support::fuse::{Mount, PATIENCE, assert_same, is_mounted, large_content, motley_image, wait_until, walk};
use crate::support::{Access, FQRN, NAME, Run, TestImage, TestRepository, flat_path, need_fuse};

/// Makes two tests of each function: one mounts the directory of the repository, the other one its URL.
macro_rules! by_directory_and_by_url {
    ($($test:ident),* $(,)?) => {
        mod by_directory {
            $(#[test] fn $test() { super::run(super::$test, super::Access::Directory); })*
        }
        mod by_url {
            $(#[test] fn $test() { super::run(super::$test, super::Access::Url); })*
        }
    };
}

by_directory_and_by_url! {
    mount_has_exactly_the_published_content,
    file_system_is_read_only_and_has_names_of_255_bytes,
    large_files_are_read_at_any_offset_by_many_threads,
    new_heads_are_followed_and_pinned_revisions_stay,
    damaged_object_is_an_error_and_never_wrong_bytes,
    signals_unmount_and_end,
    unmounting_while_busy_frees_the_mount_point_and_ends,
    killed_mount_does_not_block_the_next_one,
    failed_mount_prints_one_line,
    large_directory_is_listed_completely,
    only_the_own_mount_is_unmounted,
    new_head_is_followed_once_its_objects_exist,
    new_lock_file_is_never_visible_before_the_list_that_belongs_to_it,
    open_listing_has_every_entry_once_although_the_directory_changes,
}

fn run(test: fn(Access), access: Access) {
    if need_fuse() {
        test(access);
    }
}

fn mount_has_exactly_the_published_content(access: Access) {
    let image = motley_image();
    let repository = TestRepository::publish(&image);
    let mounts = access.to(&repository);
    let mount = mounts.start(&[]);
    assert_same(&walk(&mount.directory.join(flat_path(&image))), repository.flat(&image).entries());
    let number = |path: &str| fs::metadata(mount.directory.join(flat_path(&image)).join(path)).unwrap().ino();
    assert_eq!(number("bin/tool"), number("bin/other"));
    assert_ne!(number("bin/tool"), number("empty"));
}

fn file_system_is_read_only_and_has_names_of_255_bytes(access: Access) {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let mounts = access.to(&repository);
    let mount = mounts.start(&[]);
    let statistics = rustix::fs::statvfs(&mount.directory).unwrap();
    assert_eq!(statistics.f_namemax, 255);
    let error = |path: &Path| rustix::io::Errno::from_io_error(&File::open(path).unwrap_err()).unwrap();
    assert_eq!(error(&mount.directory.join("n".repeat(256))), rustix::io::Errno::NAMETOOLONG);
    assert_eq!(error(&mount.directory.join("n".repeat(255))), rustix::io::Errno::NOENT);
    let written = rustix::io::Errno::from_io_error(&File::create(mount.directory.join("new")).unwrap_err());
    assert_eq!(written, Some(rustix::io::Errno::ROFS));
}

fn large_files_are_read_at_any_offset_by_many_threads(access: Access) {
    let image = motley_image();
    let repository = TestRepository::publish(&image);
    let mounts = access.to(&repository);
    let mount = mounts.start(&[]);
    let path = mount.directory.join(flat_path(&image)).join("large");
    let expected = large_content();
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

fn new_heads_are_followed_and_pinned_revisions_stay(access: Access) {
    let image = |word: &str| TestImage::new().layer(|layer| layer.file("word", word).dir("directory"));
    let (old, new) = (image("old"), image("new"));
    let repository = TestRepository::publish(&old);
    let mounts = access.to(&repository);
    let directory = |name: &str| {
        let directory = repository.beside(name);
        fs::create_dir(&directory).unwrap();
        directory
    };
    let follows = mounts.start_on(directory("follows"), &[]);
    let pinned = mounts.start_on(directory("pinned"), &["--revision", "2"]);
    let one = mounts.start_on(directory("one"), &["--path", NAME]);
    let host = NAME.split('/').next().unwrap();
    let word = |mount: &Mount| fs::read_to_string(mount.directory.join(NAME).join("word")).unwrap();
    assert_eq!((word(&follows), word(&pinned)), ("old".to_owned(), "old".to_owned()));
    assert!(fs::symlink_metadata(follows.directory.join("other.example.org")).is_err());
    let kept_open = File::open(follows.directory.join(NAME).join("word")).unwrap();
    let number = fs::metadata(follows.directory.join(host)).unwrap().ino();

    repository.convert(&new, NAME, &[]).expect_code(0);
    wait_until("the tag moved", || word(&follows) == "new");
    repository.convert(&new, "other.example.org/x:1", &[]).expect_code(0);
    wait_until("a dangling name leads to an image", || follows.directory.join("other.example.org/x:1/word").exists());
    assert!(follows.names("").contains(&"other.example.org".to_owned()));
    assert_eq!(
        fs::metadata(follows.directory.join(host)).unwrap().ino(),
        number,
        "directories keep their inode numbers"
    );
    let mut bytes = [0; 3];
    kept_open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"old");
    assert_eq!(word(&pinned), "old");
    assert_eq!(pinned.names(""), one_less(&follows.names("")));
    assert_eq!(fs::read_to_string(one.directory.join("word")).unwrap(), "old");
}

fn one_less(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| *name != "other.example.org").cloned().collect()
}

fn damaged_object_is_an_error_and_never_wrong_bytes(access: Access) {
    let image = TestImage::new().layer(|layer| {
        // A file for each damage, because a cache keeps a repaired object.
        let layer = layer.file("good", "good content");
        (0..3).fold(layer, |layer, number| layer.file(format!("bad {number}"), bad_content(number)))
    });
    let repository = TestRepository::publish(&image);
    let mounts = access.to(&repository);
    type Damage = fn(&[u8]) -> Vec<u8>;
    let damages: [Damage; 3] = [
        |whole| whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 9)).collect(),
        |whole| whole[..whole.len() - 1].to_vec(),
        |_| Vec::new(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        let object = object_of(&repository, bad_content(number).as_bytes());
        let (path, bad) = (repository.storage().join(&object), format!("bad {number}"));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, damage(&whole)).unwrap();
        let mount = mounts.start(&[]);
        let flat = mount.directory.join(flat_path(&image));
        let error = fs::read(flat.join(&bad)).unwrap_err();
        assert_eq!(rustix::io::Errno::from_io_error(&error), Some(rustix::io::Errno::IO));
        assert!(mount.log().contains(&object) && mount.log().contains(&format!("/{bad}")), "{}", mount.log());
        assert_eq!(fs::read(flat.join("good")).unwrap(), b"good content");
        fs::write(&path, &whole).unwrap();
        let repaired = fs::read_to_string(flat.join(&bad)).unwrap();
        assert_eq!(repaired, bad_content(number), "the repaired object can be read");
    }
}

fn bad_content(number: usize) -> String {
    format!("bad content {number}")
}

/// Returns the path of the compressed object with this content.
fn object_of(repository: &TestRepository, content: &[u8]) -> String {
    let is_it = |path: &String| {
        let stored = fs::read(repository.storage().join(path)).unwrap();
        let mut plain = Vec::new();
        flate2::read::ZlibDecoder::new(stored.as_slice()).read_to_end(&mut plain).is_ok() && plain == content
    };
    repository.objects().into_keys().find(is_it).expect("the content is an object")
}

fn signals_unmount_and_end(access: Access) {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let mounts = access.to(&repository);
    for signal in [Signal::INT, Signal::TERM] {
        let mut mount = mounts.start(&[]);
        mount.signal(signal);
        assert_eq!(mount.wait(), Some(0), "{}", mount.log());
        assert!(!is_mounted(&mount.directory));
    }
}

fn unmounting_while_busy_frees_the_mount_point_and_ends(access: Access) {
    let image = TestImage::new().layer(|layer| layer.file("a", "still there"));
    let repository = TestRepository::publish(&image);
    let mounts = access.to(&repository);
    let mut mount = mounts.start(&[]);
    let open = File::open(mount.directory.join(NAME).join("a")).unwrap();
    mount.signal(Signal::TERM);
    wait_until("the file system is unmounted", || !is_mounted(&mount.directory));
    let mut bytes = [0; 11];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"still there");
    drop(open);
    assert_eq!(mount.wait(), Some(0), "{}", mount.log());
}

fn killed_mount_does_not_block_the_next_one(access: Access) {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let mounts = access.to(&repository);
    let mut mount = mounts.start(&[]);
    mount.signal(Signal::KILL);
    mount.wait();
    let mut next = mounts.start(&[]);
    wait_until("the next mount serves the content", || {
        fs::read(next.directory.join(NAME).join("a")).is_ok_and(|content| content == b"x")
    });
    next.signal(Signal::KILL);
    next.wait();
    wait_until("the mount point is free again", || {
        !is_mounted(&next.directory) && fs::read_dir(&next.directory).is_ok()
    });
}

fn failed_mount_prints_one_line(access: Access) {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let mounts = access.to(&repository);
    let nowhere = repository.beside("nowhere");
    let here = repository.beside("here");
    fs::create_dir(&here).unwrap();
    let [nowhere, here] = [&nowhere, &here].map(|path| path.to_str().unwrap());
    let file = format!("{NAME}/a");
    let mut cases = vec![
        (vec!["mount", nowhere], nowhere),
        (vec!["mount", here, "--tag", "none"], "'none'"),
        (vec!["mount", here, "--revision", "99"], "99"),
        (vec!["mount", here, "--path", "no/such"], "/no/such"),
        (vec!["mount", here, "--path", &file], "is not a directory"),
    ];
    if let Access::Directory = access {
        // A mount by URL creates its cache directory.
        cases.push((vec!["mount", here, "--cache", nowhere], nowhere));
    }
    for (arguments, expected) in cases {
        let run = Run::of(&mut mounts.command(&arguments)).expect_code(1);
        assert!(run.stderr().contains(expected), "{arguments:?}: {}", run.stderr());
        assert_eq!(run.stderr().lines().count(), 1, "{}", run.stderr());
    }
    assert!(repository.has(NAME) && repository.directory().ends_with(FQRN));
}

fn large_directory_is_listed_completely(access: Access) {
    const FILES: usize = 200_000;
    let image = TestImage::new()
        .layer(|layer| (0..FILES).fold(layer, |layer, number| layer.file(format!("many/{number:06}"), "same")));
    let repository = TestRepository::publish(&image);
    let mounts = access.to(&repository);
    let mount = mounts.start(&[]);
    let directory = mount.directory.join(flat_path(&image)).join("many");
    for _ in 0..2 {
        let names: std::collections::BTreeSet<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), FILES);
    }
    assert_eq!(fs::read(directory.join("123456")).unwrap(), b"same");
}

fn only_the_own_mount_is_unmounted(access: Access) {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let mounts = access.to(&repository);
    let mut below = mounts.start(&["--revision", "1"]);
    let mut above = mounts.start(&[]);
    wait_until("the second is mounted over the first", || above.directory.join(NAME).exists());
    // A mount below another mount cannot be unmounted, and remains.
    below.signal(Signal::TERM);
    wait_until("a message about the covering mount is logged", || {
        below.log().contains("another file system is mounted over it") || above.log().contains("over it")
    });
    assert!(above.directory.join(NAME).exists());
    above.signal(Signal::TERM);
    assert_eq!(above.wait(), Some(0), "{}", above.log());
    assert!(is_mounted(&below.directory) && !below.directory.join(NAME).exists());
    below.signal(Signal::TERM);
    assert_eq!(below.wait(), Some(0), "{}", below.log());
    assert!(!is_mounted(&below.directory));
}

fn new_head_is_followed_once_its_objects_exist(access: Access) {
    let image = |word: &str| TestImage::new().layer(|layer| layer.file("word", word));
    let repository = TestRepository::publish(&image("old"));
    let mounts = access.to(&repository);
    let mount = mounts.start(&[]);
    let manifest = repository.storage().join(".cvmfspublished");
    let before = fs::read(&manifest).unwrap();
    let word = || fs::read_to_string(mount.directory.join(NAME).join("word")).unwrap();
    let ahead = repository.copy();
    ahead.convert(&image("new"), NAME, &[]).expect_code(0);
    fs::copy(ahead.storage().join(".cvmfspublished"), &manifest).unwrap();
    wait_until("the missing objects are reported", || mount.log().contains("cannot mount the new head"));
    assert_eq!(word(), "old");
    for path in ahead.objects().into_keys() {
        fs::copy(ahead.storage().join(&path), repository.storage().join(&path)).unwrap();
    }
    wait_until("the new head is mounted", || word() == "new");
    assert_eq!(mount.log().matches("cannot mount the new head").count(), 1, "{}", mount.log());
    fs::write(&manifest, before).unwrap();
}

fn new_lock_file_is_never_visible_before_the_list_that_belongs_to_it(access: Access) {
    let repository = TestRepository::new();
    let mounts = access.to(&repository);
    let publish = |round: usize| {
        let image = |number: usize| TestImage::new().layer(|layer| layer.file("a", format!("{round} {number}")));
        let images: Vec<(String, TestImage)> =
            (0..50).map(|number| (format!("h.org/round-{round}:{number}"), image(number))).collect();
        let named: Vec<(&str, &TestImage)> = images.iter().map(|(name, image)| (name.as_str(), image)).collect();
        repository.convert_together(&named, &[]).expect_code(0);
    };
    publish(0);
    let mount = mounts.start(&[]);
    let directory = mount.directory.join("podmanStore/overlay-images");
    let mut seen = HashSet::new();
    let rounds = match access {
        Access::Directory => 6,
        // A mount by URL looks for a new head every 15 seconds.
        Access::Url => 2,
    };
    for round in 1..=rounds {
        publish(round);
        let published = format!("h.org/round-{round}:49");
        let start = Instant::now();
        // No pause, because the test is about the moment in which the mount changes.
        loop {
            let lock = fs::read_to_string(directory.join("images.lock")).unwrap();
            let list = fs::read_to_string(directory.join("images.json")).unwrap();
            seen.insert(hex(&Sha256::digest(&list)));
            assert!(seen.contains(&lock), "round {round}: the lock file is new and the list is old");
            if list.contains(&published) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "round {round}: the mount does not show the head");
        }
    }
}

fn open_listing_has_every_entry_once_although_the_directory_changes(access: Access) {
    let image = TestImage::new().layer(|layer| layer.file("a", "x"));
    let names: Vec<String> = (0..300).map(|number| format!("many.example.org/{number:03}:1")).collect();
    let images: Vec<(&str, &TestImage)> = names.iter().map(|name| (name.as_str(), &image)).collect();
    let repository = TestRepository::new();
    let mounts = access.to(&repository);
    repository.convert_together(&images, &[]).expect_code(0);
    let mount = mounts.start(&[]);
    let directory = mount.directory.join("many.example.org");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut begun = fs::read_dir(&directory).unwrap();
    let mut seen: Vec<String> = begun.by_ref().take(50).map(name).collect();
    repository.convert(&image, "many.example.org/000a:1", &[]).expect_code(0);
    wait_until("the head is followed", || directory.join("000a:1").exists());
    assert_eq!(mount.names("many.example.org").len(), 302, "a new listing has the new entries");
    seen.extend(begun.map(name));
    seen.retain(|name| name != "000a:1" && !name.starts_with(".cvmfs"));
    seen.sort();
    let expected: Vec<String> = (0..300).map(|number| format!("{number:03}:1")).collect();
    assert_eq!(seen, expected);
}
