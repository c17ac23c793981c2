//! Measures many images: the cost of one more image in a large repository, and of a long wishlist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use strata::object::Compression;

use super::commands::{Conversion, Scratch, UNFINISHED, best, convert, run, strata, time, watch};
use super::images;
use super::registry::Registry;
use super::table::{Promise, Table};

use Promise::AtMost;

/// Number of images in the large repository. Each has two trees of [`SHARED`] files and directories: 50 million entries in total.
const IMAGES: usize = 10_000;
const SHARED: usize = 2_450;

/// Number of images on one command line.
const AT_ONCE: usize = 500;

const RUNS: usize = 5;

/// Measures the cost of one more image in a repository of 10,000 images and in an empty one.
pub fn large_repository(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    let (made, one_more) = (make_large(directory), images::small_files(directory, 10_000).image("files"));
    // With `--force` the image is read again, even if its content is known.
    let add = |repository: &Path, tag: usize| {
        convert(repository, &one_more, &format!("added:{tag}"), &["--skip-podman", "--force"])
    };
    let (mut large, mut small) = (PathBuf::new(), PathBuf::new());
    let (mut in_large, mut in_small) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        (large, small) = (scratch.path("large"), scratch.repository(Compression::Balanced));
        copy(&made, &large);
        in_large.push(add(&large, 0));
        in_small.push(add(&small, 0));
    }
    let again = |repository: &Path| (1..=RUNS).map(|tag| add(repository, tag)).collect::<Vec<Conversion>>();
    let (again_in_large, again_in_small) = (again(&large), again(&small));
    let time_of = |all: &[Conversion]| best(all.iter().map(|one| one.time));
    for (what, large, small) in [
        ("10,000 small files, into 10,000 images", &in_large, &in_small),
        ("the same files under more names", &again_in_large, &again_in_small),
    ] {
        table.time(what, time_of(large), "into an empty repository", time_of(small), AtMost(1.5));
    }
    let memory_of = |all: &[Conversion]| all.iter().map(|one| one.memory).max().expect("it ran");
    let [in_large, in_small] = [[in_large, again_in_large], [in_small, again_in_small]]
        .map(|all| memory_of(&all.into_iter().flatten().collect::<Vec<_>>()));
    table.bytes("its memory, in 10,000 images", in_large, "in an empty repository", in_small, AtMost(1.5));
    let [in_large, in_small] = [&large, &small].map(|repository| convert(repository, &one_more, "shown:1", &[]).time);
    let most = in_small + Duration::from_millis(500);
    table.time("its entry in the podman store of 10,000", in_large, "in an empty store, plus 0.5 s", most, AtMost(1.0));
    let command = |repository: &Path, name: &str| best((0..RUNS).map(|_| time(strata(repository).arg(name))));
    table.time("`info` of 10,000 images", command(&large, "info"), "of one", command(&small, "info"), AtMost(1.5));
    let one = command(&small, "list");
    let each = Duration::from_millis(1) * u32::try_from(IMAGES).expect("there are few images");
    table.time("`list` of 10,000 images", command(&large, "list"), "a millisecond per image", one + each, AtMost(1.0));
    let mounted = |repository: &Path, scratch: &mut Scratch| best((0..RUNS).map(|_| mount(repository, scratch)));
    let [in_large, in_small] = [&large, &small].map(|repository| mounted(repository, scratch));
    table.time("mounting 10,000 images", in_large, "mounting one", in_small, AtMost(1.5));
}

/// Number of images in the checked repositories: about 490,000 entries, most of them in several trees.
const CHECKED_IMAGES: usize = 99;

/// Number of files in the checked image, all with different content, in three trees.
const CHECKED_FILES: usize = 160_000;

/// Compares a quick check with that of CVMFS, which looks for the same objects: in a repository whose trees share their files,
/// and in one that has an object for every third entry.
pub fn check(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    let shared = images::synthetic(directory, "checked", CHECKED_IMAGES, SHARED);
    let names: Vec<String> = (0..CHECKED_IMAGES).map(|number| shared.image(&images::synthetic_name(number))).collect();
    let files = images::small_files(directory, CHECKED_FILES);
    let single = [files.image("files"), "--name".to_owned(), "bench.example.org/files:1".to_owned()];
    for (what, arguments) in [("of shared files", &names[..]), ("of one large image", &single[..])] {
        let repository = scratch.repository(Compression::Balanced);
        run(strata(&repository).arg("convert").args(arguments));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ours.push(time(strata(&repository).args(["check", "--quick"])));
            let mut swissknife = Command::new("cvmfs_swissknife");
            swissknife.args(["check", "-c", "-t"]).arg(directory).arg("-r").arg(repository.join("storage"));
            theirs.push(time(&mut swissknife));
        }
        let what = format!("`check --quick` of 490,000 entries, {what}");
        table.time(&what, best(ours), "`cvmfs_swissknife check -c`", best(theirs), AtMost(0.5));
    }
}

/// Creates a repository of 10,000 images, unless it exists, which takes a quarter of an hour.
fn make_large(directory: &Path) -> PathBuf {
    let large = directory.join("large.example.org");
    let unfinished = large.with_extension(UNFINISHED);
    if !large.exists() {
        eprintln!("making the repository {} ...", large.display());
        let layout = images::synthetic(directory, "synthetic", IMAGES, SHARED);
        run(strata(&unfinished).args(["init", "bench.example.org"]));
        let names: Vec<String> = (0..IMAGES).map(|number| layout.image(&images::synthetic_name(number))).collect();
        for names in names.chunks(AT_ONCE) {
            run(strata(&unfinished).arg("convert").args(names));
        }
        fs::rename(unfinished, &large).expect("a repository can be renamed");
    }
    large
}

/// Copies a repository. Objects are hard links, because no program changes them.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-al").arg(from).arg(to));
    for name in ["state", "storage/.cvmfspublished", "storage/.cvmfsreflog"] {
        fs::remove_dir_all(to.join(name)).or_else(|_| fs::remove_file(to.join(name))).expect("it was linked just now");
        run(Command::new("cp").arg("-a").arg(from.join(name)).arg(to.join(name)));
    }
}

/// Returns the time from the start of a mount until its first listing.
fn mount(repository: &Path, scratch: &mut Scratch) -> Duration {
    let mountpoint = scratch.path("mount");
    std::fs::create_dir(&mountpoint).expect("there is room for a directory");
    let start = std::time::Instant::now();
    let mut mount = strata(repository).arg("mount").arg(&mountpoint).spawn().expect("strata can be run");
    let is_there = || std::fs::read_dir(&mountpoint).is_ok_and(|mut entries| entries.next().is_some());
    while !is_there() {
        std::thread::sleep(Duration::from_micros(200));
    }
    let time = start.elapsed();
    run(Command::new("umount").arg(&mountpoint));
    mount.wait().expect("strata ends when its mount does");
    time
}

/// Measures a wishlist of 1,000 images with a common base, from a registry: the time for each and the memory for all.
pub fn wishlist(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    const MANY: usize = 1000;
    let layout = images::synthetic(directory, "many", MANY, 2_000);
    let registry = Registry::start(&scratch.path("registry"));
    for number in 0..MANY {
        registry.push(&layout, &images::synthetic_name(number), "many/image", &number.to_string());
    }
    let repository = scratch.repository(Compression::Balanced);
    let wishlist = registry.wishlist(scratch, &["many/image:*"]);
    let all = watch(strata(&repository).arg("sync").arg(&wishlist));
    table.bytes("memory for a wishlist of 1,000 images", all.memory, "limit", 512 << 20, AtMost(1.0));
    let unchanged = time(strata(&repository).arg("sync").arg(&wishlist));
    table.time("the wishlist when nothing changed", unchanged, "at first", all.time, AtMost(0.1));
}
