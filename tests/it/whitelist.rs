//! Commands warn in time of a whitelist that expires.

use std::fs;

use strata::directory::RepositoryDirectory;
use strata::manifest::Whitelist;
use strata::metadata::Timestamp;
use strata::object::HashAlgorithm;

use crate::support::fuse::{Mount, wait_until};
use crate::support::{FQRN, NAME, Run, TestRepository, image_of, need_fuse};

const HOUR: i64 = 3600;

/// Replaces the whitelist by one that expires after this number of hours, and returns the time of expiry.
fn expire_in(repository: &TestRepository, hours: i64) -> Timestamp {
    let directory = RepositoryDirectory::open(&repository.directory()).unwrap();
    let keys = directory.keys().unwrap();
    let whole = Timestamp::now().seconds / HOUR * HOUR;
    let validity = i64::try_from(Whitelist::VALIDITY.as_secs()).unwrap();
    let issued = Timestamp { seconds: whole + hours * HOUR - validity, nanoseconds: 0 };
    let fingerprint = keys.certificate().fingerprint(HashAlgorithm::Sha1);
    let list = Whitelist::new(directory.name().clone(), vec![fingerprint], issued).unwrap();
    fs::write(repository.storage().join(".cvmfswhitelist"), keys.sign_whitelist(&list).unwrap()).unwrap();
    Timestamp { seconds: list.expires(), nanoseconds: 0 }
}

/// Runs every publishing command, with and without anything to publish.
fn publish(repository: &TestRepository, word: &str) -> Vec<Run> {
    let list = repository.beside("list.yaml");
    fs::write(&list, "version: 1\ninput: []\n").unwrap();
    let image = image_of(word);
    vec![
        repository.convert(&image, NAME, &[]).expect_code(0),
        repository.convert(&image, NAME, &[]).expect_code(0),
        repository.run(["sync", list.to_str().unwrap()]).expect_code(0),
    ]
}

#[test]
fn publishing_commands_warn_seven_days_before_expiry_and_print_what_to_do() {
    let repository = TestRepository::publish(&image_of("x"));
    for (hours, is_warned) in
        [(30 * 24, false), (7 * 24 + 2, false), (7 * 24, true), (30, true), (0, true), (-50, true)]
    {
        let expires = expire_in(&repository, hours);
        for run in publish(&repository, &hours.to_string()) {
            let stderr = run.stderr();
            assert_eq!(stderr.contains("WARN") && stderr.contains("whitelist"), is_warned, "{hours} hours: {stderr}");
            let keys = repository.directory().join("keys");
            let what_to_do = [&expires.to_string(), "cvmfs_server resign", FQRN, keys.to_str().unwrap()];
            assert!(!is_warned || what_to_do.iter().all(|word| stderr.contains(word)), "{stderr}");
            assert!(!is_warned || stderr.contains("expired") == (hours <= 0), "{stderr}");
        }
        assert!(repository.has(NAME), "an expired whitelist does not prevent publishing");
    }
}

#[test]
fn info_prints_when_the_whitelist_expires() {
    let repository = TestRepository::new();
    for hours in [30 * 24, 50, -3] {
        let expires = expire_in(&repository, hours).to_string();
        let run = repository.run(["info"]).expect_code(0);
        assert!(run.stdout().contains(&format!("whitelist     expires at {expires}\n")), "{}", run.stdout());
        assert_eq!(run.stderr().contains("cvmfs_server resign"), hours < 7 * 24, "{}", run.stderr());
        let json = repository.run(["info", "--json"]).expect_code(0).json();
        assert_eq!(json["whitelist-expires"], expires);
    }
    // A fault of the whitelist does not hide other information.
    let path = repository.storage().join(".cvmfswhitelist");
    let good = fs::read(&path).unwrap();
    fs::write(&path, "no whitelist").unwrap();
    let run = repository.run(["info"]).expect_code(0);
    assert!(run.stdout().contains("cannot read '.cvmfswhitelist'"), "{}", run.stdout());
    fs::remove_file(&path).unwrap();
    assert!(repository.run(["info"]).expect_code(0).stdout().contains("whitelist     missing"));
    assert!(repository.run(["info", "--json"]).expect_code(0).json()["whitelist-expires"].is_null());
    fs::write(&path, good).unwrap();
}

#[test]
fn mount_warns_of_a_whitelist_that_expires_soon() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&image_of("x"));
    for (hours, is_warned) in [(8 * 24, false), (24, true), (-24, true)] {
        expire_in(&repository, hours);
        let mut mount = Mount::start(&repository, &[]);
        wait_until("the repository is mounted", || mount.log().contains("is mounted at"));
        // The warning is printed while the whitelist is still valid.
        mount.signal(rustix::process::Signal::TERM);
        mount.wait();
        assert_eq!(mount.log().contains("cvmfs_server resign"), is_warned, "{hours} hours: {}", mount.log());
    }
}
