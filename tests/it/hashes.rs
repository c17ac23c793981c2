//! Objects are named by any of CVMFS's hash algorithms: new ones by that of the repository, others by the one that they have.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::client::mount_with_client;
use crate::support::fuse::{Mount, assert_same, large_content, motley_image, walk};
use crate::support::{
    FQRN, NAME, Run, Served, TestImage, TestRepository, find_program, flat_path, need_fuse, skip_uncaptured,
};

/// Algorithms other than the default, with the suffixes of their hashes.
const OTHERS: [(&str, &str); 2] = [("rmd160", "-rmd160"), ("shake128", "-shake128")];

/// Returns the suffix of the hash in the name of an object: `data/ab/cdef…-shake128C` has `-shake128`.
fn suffix_of(object: &str) -> &str {
    object["data/00/".len() + 38..].trim_end_matches(|letter: char| letter.is_ascii_uppercase())
}

/// Returns the number of objects for each suffix.
fn suffixes(repository: &TestRepository) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for object in repository.objects().keys() {
        *counts.entry(suffix_of(object).to_owned()).or_default() += 1;
    }
    counts
}

/// Runs strata's own checks: of the whole store, and of the image published under this name.
fn check(repository: &TestRepository, image: &TestImage, name: &str) {
    let run = repository.run(["check"]).expect_code(0);
    assert!(run.stdout().contains("no findings") && !run.stderr().contains("WARN"), "{}", run.stderr());
    repository.run(["verify", &repository.source(image), "--name", name]).expect_code(0);
    let served = Served::of(repository);
    for options in [&["check"][..], &["check", "--quick"]] {
        let run = served.run(options).expect_code(0);
        assert!(run.stdout().contains("no findings"), "{}", run.stdout());
    }
}

/// Runs CVMFS's own check on the repository and on a copy that its replication makes. The program is the one that
/// `STRATA_TEST_SWISSKNIFE` names, or `cvmfs_swissknife` in `PATH`.
fn check_with_swissknife(repository: &TestRepository) {
    let Some(program) = find_program("cvmfs_swissknife", "STRATA_TEST_SWISSKNIFE") else {
        skip_uncaptured("cvmfs_swissknife is neither in STRATA_TEST_SWISSKNIFE nor in PATH");
        return;
    };
    let key = repository.directory().join(format!("keys/{FQRN}.pub"));
    let temporary = repository.beside("swissknife");
    fs::create_dir_all(&temporary).unwrap();
    let check = |storage: &Path| {
        let mut command = Command::new(&program);
        command.args(["check", "-c", "-l", "1", "-N", FQRN]).arg("-r").arg(storage);
        Run::of(command.arg("-k").arg(&key).arg("-t").arg(&temporary)).expect_code(0);
        Run::of(Command::new(&program).args(["scrub", "-r"]).arg(storage.join("data"))).expect_code(0);
    };
    check(&repository.storage());
    let (served, copy) = (Served::of(repository), repository.beside("copy"));
    for directory in (0..=255).map(|byte| format!("{byte:02x}")).chain(["txn".to_owned()]) {
        fs::create_dir_all(copy.join("data").join(directory)).unwrap();
    }
    let storage = format!("local,{0}/data/txn,{0}", copy.display());
    let mut pull = Command::new(&program);
    // `-w` is the address of the replica, which is not reached here.
    pull.args(["pull", "-m", FQRN, "-u", &served.url(), "-w", "http://127.0.0.1:1/", "-r", &storage]);
    Run::of(pull.arg("-x").arg(&temporary).arg("-k").arg(&key).args(["-n", "2", "-t", "5", "-a", "1"])).expect_code(0);
    check(&copy);
    fs::remove_dir_all(copy).unwrap();
}

/// Compares the root file system of an image in mounts of strata and of the CVMFS client with the published one.
fn compare_mounts(repository: &TestRepository, image: &TestImage) {
    let published = repository.flat(image);
    if need_fuse() {
        let mount = Mount::start(repository, &[]);
        assert_same(&walk(&mount.directory.join(flat_path(image))), published.entries());
        drop(mount);
        let served = Served::of(repository);
        let mount = served.mount(&[]);
        assert_same(&walk(&mount.directory.join(flat_path(image))), published.entries());
    }
    if let Some(mount) = mount_with_client(repository) {
        assert_same(&walk(&mount.directory.join(flat_path(image))), published.entries());
    }
}

#[test]
fn repository_of_each_algorithm_names_everything_by_it() {
    for (algorithm, suffix) in OTHERS {
        let (repository, image) = (TestRepository::hashed_by(algorithm), motley_image());
        repository.convert(&image, NAME, &["--chains", "all"]).expect_code(0);
        assert_eq!(suffixes(&repository).into_keys().collect::<Vec<_>>(), [suffix]);
        let reader = repository.reader();
        for field in ['C', 'H', 'M', 'X', 'Y'] {
            assert!(reader.field(field).unwrap().ends_with(suffix), "{field}");
        }
        let whitelist = fs::read(repository.storage().join(".cvmfswhitelist")).unwrap();
        let whitelist = String::from_utf8_lossy(&whitelist).into_owned();
        assert!(whitelist.lines().nth(3).unwrap().ends_with(&suffix.to_uppercase()), "{whitelist}");
        check(&repository, &image, NAME);
        check_with_swissknife(&repository);
        compare_mounts(&repository, &image);
        let again = repository.convert(&image, NAME, &[]).expect_code(0);
        assert!(again.stdout().contains("nothing to do"), "{}", again.stdout());
    }
}

#[test]
fn damage_is_found_whatever_the_algorithm() {
    for (algorithm, _) in OTHERS {
        let repository = TestRepository::hashed_by(algorithm);
        repository.convert(&motley_image(), NAME, &[]).expect_code(0);
        for letter in ["", "P", "C"] {
            let is_of_kind =
                |object: &&String| object["data/00/".len() + 38..].trim_start_matches(suffix_of(object)) == letter;
            let objects = repository.objects();
            let object = objects.keys().find(is_of_kind).unwrap();
            let path = repository.storage().join(object);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let run = repository.run(["check"]);
            assert!(run.exit_code() != Some(0) && run.stdout().contains(object), "{object}: {}", run.stdout());
            bytes[middle] ^= 1;
            fs::write(&path, &bytes).unwrap();
        }
    }
}

#[test]
fn after_a_change_of_the_algorithm_old_objects_keep_their_names() {
    let (first, second) = (motley_image(), motley_image().layer(|layer| layer.file("new", "new").whiteout("empty")));
    let repository = TestRepository::publish(&first);
    repository.manage_by_server(&repository.storage());
    let old = repository.objects();
    for (number, (algorithm, suffix)) in OTHERS.into_iter().enumerate() {
        let before = repository.objects();
        repository.set_hash_of_server(algorithm);
        let name = format!("registry.example.org/test/other:{number}");
        let image = second.clone().layer(|layer| layer.file("bin/number", format!("{number}")));
        repository.convert(&image, &name, &[]).expect_code(0);
        let objects = repository.objects();
        assert!(old.keys().all(|object| objects.contains_key(object)));
        let new: Vec<&String> = objects.keys().filter(|object| !before.contains_key(*object)).collect();
        assert!(!new.is_empty() && new.iter().all(|object| suffix_of(object) == suffix), "{new:?}");
        assert!(repository.reader().field('C').unwrap().ends_with(suffix));
        for (image, name) in [(&first, NAME), (&image, name.as_str())] {
            check(&repository, image, name);
            compare_mounts(&repository, image);
        }
    }
    check_with_swissknife(&repository);
    assert_eq!(suffixes(&repository).len(), 3);
}

#[test]
fn content_is_not_compressed_again_after_the_algorithm_was_changed_back() {
    let image = TestImage::new().layer(|layer| layer.file("small", "x").file("large", large_content()));
    let repository = TestRepository::publish(&image);
    repository.manage_by_server(&repository.storage());
    let files = || repository.objects().into_keys().filter(|object| !object.ends_with(['C', 'H', 'X'])).count();
    let count = files();
    repository.set_hash_of_server("shake128");
    repository.convert(&image, NAME, &["--force"]).expect_code(0);
    let doubled = files();
    assert!(doubled > count, "the image is stored again under new names");
    repository.set_hash_of_server("sha1");
    repository.convert(&image, NAME, &["--force"]).expect_code(0);
    assert_eq!(files(), doubled);
    check(&repository, &image, NAME);
}

#[test]
fn unknown_algorithm_of_the_server_is_refused() {
    let repository = TestRepository::new();
    repository.manage_by_server(&repository.storage());
    repository.set_hash_of_server("md5");
    let image = repository.source(&TestImage::new().layer(|layer| layer.file("a", "x")));
    repository.refuse(["convert", &image, "--name", NAME], 1, &["server.conf", "'md5' is not a hash algorithm"]);
    Run::of(&mut repository.command(["init", "other.example.org", "--hash", "md5"])).expect_code(2);
}
