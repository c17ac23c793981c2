//! A repository that is also managed by a `cvmfs_server` on this machine: strata obeys its locks, and the server can continue to publish.

use std::fs::{self, File};

use sha1::{Digest as _, Sha1};

use crate::support::{NAME, TestRepository, image_of};

#[test]
fn server_gets_the_checksum_of_the_reflog_and_no_lock_remains() {
    let repository = TestRepository::new();
    let spool = repository.manage_by_server(&repository.storage());
    repository.convert(&image_of("x"), NAME, &[]).expect_code(0);
    let reflog = fs::read(repository.storage().join(".cvmfsreflog")).unwrap();
    let expected: String = Sha1::digest(reflog).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(fs::read_to_string(spool.join("reflog.chksum")).unwrap().trim(), expected);
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 1);
}

#[test]
fn open_transaction_of_the_server_blocks_publishing() {
    let repository = TestRepository::new();
    let spool = repository.manage_by_server(&repository.storage());
    let before = repository.front_page();
    fs::write(spool.join("in_transaction.lock"), "").unwrap();
    let run = repository.convert(&image_of("x"), NAME, &["--wait", "100ms"]).expect_code(5);
    assert!(run.stderr().contains("in_transaction.lock"), "{}", run.stderr());
    assert_eq!(repository.front_page(), before);
    fs::remove_file(spool.join("in_transaction.lock")).unwrap();
    repository.convert(&image_of("x"), NAME, &["--wait", "0s"]).expect_code(0);
}

#[test]
fn publication_or_collection_of_the_server_blocks_publishing() {
    let repository = TestRepository::new();
    let spool = repository.manage_by_server(&repository.storage());
    let before = repository.front_page();
    for name in ["is_publishing.lock", "is_collecting.lock"] {
        let lock = File::create(spool.join(name)).unwrap();
        lock.lock().unwrap();
        let run = repository.convert(&image_of("x"), NAME, &["--wait", "100ms"]).expect_code(5);
        assert!(run.stderr().contains(name), "{}", run.stderr());
        assert!(!spool.join("in_transaction.lock").exists());
        drop(lock);
    }
    assert_eq!(repository.front_page(), before);
    repository.convert(&image_of("x"), NAME, &["--wait", "0s"]).expect_code(0);
}

#[test]
fn lock_file_of_a_killed_run_does_not_block_publishing() {
    let repository = TestRepository::new();
    let spool = repository.manage_by_server(&repository.storage());
    fs::write(spool.join("in_transaction.lock"), "strata publishes\n").unwrap();
    let run = repository.convert(&image_of("x"), NAME, &["--wait", "0s"]).expect_code(0);
    assert!(run.stderr().contains("was killed"), "{}", run.stderr());
    assert!(!spool.join("in_transaction.lock").exists());
}

#[test]
fn server_of_another_storage_with_the_same_name_is_ignored() {
    let repository = TestRepository::new();
    let other = TestRepository::new();
    let spool = repository.manage_by_server(&other.storage());
    fs::write(spool.join("in_transaction.lock"), "").unwrap();
    repository.convert(&image_of("x"), NAME, &["--wait", "0s"]).expect_code(0);
    assert!(!spool.join("reflog.chksum").exists());
}
