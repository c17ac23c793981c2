//! A mount by URL while its server fails: reads end with an I/O error within the time limit, never with wrong bytes, and succeed
//! when the server works again.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::fuse::{Mount, assert_same, motley_image, wait_until, walk};
use crate::support::{Delivery, NAME, Reply, Served, TestImage, TestRepository, flat_path, need_fuse};

/// Value of `--timeout` for these mounts.
const TIMEOUT: &str = "2s";

/// Maximum time of a read. More than the timeout, because other tests run at the same time.
const LIMIT: Duration = Duration::from_secs(4);

/// Pause longer than the timeout.
const SILENCE: Duration = Duration::from_secs(6);

/// A way in which a server fails.
#[derive(Clone, Copy)]
struct Fault {
    name: &'static str,
    change: fn(Reply) -> Reply,
}

const STALL: Fault = Fault { name: "stall after the head", change: |reply| reply.delivery(Delivery::Stall(0)) };

/// All ways in which a server fails.
const FAULTS: [Fault; 13] = [
    Fault { name: "status 404", change: |_| Reply::status(404) },
    Fault { name: "status 403", change: |_| Reply::status(403) },
    Fault { name: "status 503", change: |_| Reply::status(503) },
    Fault { name: "web page", change: |_| page().with("content-type", "text/html; charset=utf-8") },
    Fault { name: "web page without a media type", change: |_| page() },
    Fault { name: "silence", change: |reply| reply.delivery(Delivery::Drip(SILENCE)) },
    STALL,
    Fault { name: "stall in the body", change: |reply| half(reply, Delivery::Stall) },
    Fault { name: "cut after the head", change: |reply| reply.delivery(Delivery::Cut(0)) },
    Fault { name: "cut in the body", change: |reply| half(reply, Delivery::Cut) },
    Fault { name: "length too long", change: |reply| stating(reply, |length| length + 1) },
    Fault { name: "length far too long", change: |reply| stating(reply, |length| length + (1 << 40)) },
    Fault { name: "length too short", change: |reply| stating(reply, |length| length - 1) },
];

fn page() -> Reply {
    Reply::status(200).body(|body| *body = b"<html><body>Log in first</body></html>".to_vec())
}

fn half(reply: Reply, delivery: fn(usize) -> Delivery) -> Reply {
    let length = reply.body.len();
    reply.delivery(delivery(length / 2))
}

fn stating(reply: Reply, length: fn(usize) -> usize) -> Reply {
    let length = length(reply.body.len());
    reply.with("content-length", length)
}

/// Serves a repository with a fault in each reply for a name that `is_concerned` selects.
fn fail(served: &Served, fault: &Fault, is_concerned: impl Fn(&str) -> bool + Send + Sync + 'static) {
    let change = fault.change;
    served.change(move |_, name, reply| if is_concerned(name) { change(reply) } else { reply });
}

fn mount(served: &Served) -> Mount {
    // All objects together do not fit, so that some are requested again.
    served.mount(&["--timeout", TIMEOUT, "--cache-size", "1MB"])
}

/// Panics unless the operation fails with an I/O error in time.
#[track_caller]
fn assert_fails<T>(what: &str, operation: impl FnOnce() -> io::Result<T>) {
    let start = Instant::now();
    let error = operation().err().unwrap_or_else(|| panic!("{what}: no error"));
    assert_eq!(rustix::io::Errno::from_io_error(&error), Some(rustix::io::Errno::IO), "{what}");
    assert!(start.elapsed() < LIMIT, "{what}: {:?}", start.elapsed());
}

/// Returns the paths of the image's files with content.
fn files(repository: &TestRepository, image: &TestImage) -> Vec<PathBuf> {
    let tree = repository.flat(image);
    let has_content = tree.entries().iter().filter(|(_, entry)| entry.size > 0 && entry.content.is_some());
    has_content.map(|(path, _)| Path::new(OsStr::from_bytes(path)).to_owned()).collect()
}

#[test]
fn content_that_a_failing_server_sends_is_an_error_until_it_works_again() {
    if !need_fuse() {
        return;
    }
    let image = motley_image();
    let repository = TestRepository::publish(&image);
    let (served, files) = (Served::of(&repository), files(&repository, &image));
    assert!(files.len() > 5);
    for fault in &FAULTS {
        // A new mount, because the kernel keeps what it has read.
        let mount = mount(&served);
        let root = mount.directory.join(flat_path(&image));
        fs::read_dir(&root).unwrap();
        fail(&served, fault, |name| name.starts_with("data/") && !name.ends_with(['C', 'H', 'X', 'M']));
        // The large file has several chunks, and the kernel requests its parts in parallel.
        for file in files.iter().filter(|file| [Path::new("large"), Path::new("zero")].contains(&file.as_path())) {
            assert_fails(&format!("{}, '{}'", fault.name, file.display()), || fs::read(root.join(file)));
        }
        served.change(|_, _, reply| reply);
        wait_until("the server works again", || files.iter().all(|file| fs::read(root.join(file)).is_ok()));
        assert_same(&walk(&root), repository.flat(&image).entries());
        drop(mount);
        fs::remove_dir_all(served.cache()).unwrap();
    }
}

#[test]
fn catalog_that_a_failing_server_sends_is_an_error_until_it_works_again() {
    if !need_fuse() {
        return;
    }
    let image = motley_image();
    let repository = TestRepository::publish(&image);
    let served = Served::of(&repository);
    for fault in &FAULTS {
        let mount = mount(&served);
        let root = mount.directory.join(flat_path(&image));
        fail(&served, fault, |name| name.ends_with('C'));
        assert_fails(&format!("{}, lookup", fault.name), || fs::symlink_metadata(root.join("bin/tool")));
        assert_fails(&format!("{}, list", fault.name), || fs::read_dir(mount.directory.join(".flat"))?.next().unwrap());
        served.change(|_, _, reply| reply);
        wait_until("the server works again", || fs::symlink_metadata(root.join("bin/tool")).is_ok());
        assert_same(&walk(&root), repository.flat(&image).entries());
        drop(mount);
        fs::remove_dir_all(served.cache()).unwrap();
    }
}

#[test]
fn failing_server_stops_a_mount_in_time() {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    let served = Served::of(&repository);
    fs::create_dir_all(repository.beside("served/mount")).unwrap();
    for fault in &FAULTS {
        for part in [".cvmfspublished", ".cvmfswhitelist", "data/"] {
            fail(&served, fault, move |name| name.starts_with(part));
            let start = Instant::now();
            let output = served.mount_command(&["--timeout", TIMEOUT]).output().unwrap();
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{}, {part}: {log}", fault.name);
            assert!(start.elapsed() < 2 * LIMIT, "{}, {part}: {:?}", fault.name, start.elapsed());
        }
    }
}

#[test]
fn what_a_mount_has_read_stays_readable_while_its_server_fails() {
    if !need_fuse() {
        return;
    }
    let image = |word: &str| TestImage::new().layer(|layer| layer.file("word", word).file("other", "other"));
    let repository = TestRepository::publish(&image("old"));
    let served = Served::of(&repository);
    let mount = served.mount(&["--timeout", "10s"]);
    let directory = mount.directory.join(NAME);
    assert_eq!(fs::read(directory.join("word")).unwrap(), b"old");
    // The mount looks for a new head, whose catalogs do not arrive.
    fail(&served, &STALL, |name| name.ends_with('C'));
    repository.convert(&image("new"), NAME, &[]).expect_code(0);
    served.take_requests();
    wait_until("a catalog of the new head is requested", || {
        served.take_requests().iter().any(|request| request.ends_with('C'))
    });
    let start = Instant::now();
    assert!(fs::symlink_metadata(directory.join("no such name")).is_err());
    assert_eq!(fs::read(directory.join("other")).unwrap(), b"other");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    served.change(|_, _, reply| reply);
    wait_until("the new head is mounted", || fs::read(directory.join("word")).is_ok_and(|word| word == b"new"));
}
