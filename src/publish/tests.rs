//! Commits to a store in memory.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::cancel::Cancellation;
use crate::manifest::RepositoryName;
use crate::observer::Reporter;
use crate::path::EntryPath;
use crate::repository::Repository;
use crate::settings::Settings;
use crate::store::{MemoryStore, Staging, Store as _, WritableStore as _};

struct Fixture {
    store: MemoryStore,
    name: RepositoryName,
    publisher: Publisher,
}

impl Fixture {
    /// Creates a repository in a directory, and moves its files into memory.
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("r.example.org");
        let name: RepositoryName = "r.example.org".parse().unwrap();
        let settings = Settings::new(name.clone());
        let new = NewRepository::new(name.clone());
        let directory = create_repository(&path, new, &Reporter::silent(), &Cancellation::default()).unwrap();
        let store = MemoryStore::default();
        copy_files(&directory.storage_path(), "", &store);
        let keys = directory.keys().unwrap();
        Self { store, name, publisher: Publisher::new(LockedCommitter { settings, keys, server: None }) }
    }

    fn head(&self) -> Repository {
        Repository::open(self.store.clone(), &self.name).unwrap()
    }

    /// Publishes a file `name`. `before` is called with the lock held.
    fn publish(&self, name: &str, before: impl FnOnce() + Send) -> Result<u64, CommitError<Infallible>> {
        let staging = Staging::start(self.store.clone()).unwrap();
        let content = staging.put_changing_file(name.as_bytes()).unwrap();
        let edit = Edit::File { size: name.len() as u64, content };
        let options = PublishOptions { wait: Duration::ZERO, ..PublishOptions::default() };
        let committed = self.publisher.commit(&staging, &self.head(), &options, |_| {
            before();
            Ok(vec![(EntryPath::normalise(name.as_bytes()).unwrap(), edit)])
        });
        Ok(committed?.unwrap().revision.number)
    }

    fn has(&self, name: &str) -> bool {
        self.head().get(&EntryPath::normalise(name.as_bytes()).unwrap()).unwrap().is_some()
    }
}

/// Puts the files below a directory into a store, under names that begin with `prefix`.
fn copy_files(directory: &Path, prefix: &str, store: &MemoryStore) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => copy_files(&entry.path(), &format!("{name}/"), store),
            false => store.put(&name, &fs::read(entry.path()).unwrap()),
        }
    }
}

#[test]
fn revisions_are_published_in_memory() {
    let fixture = Fixture::new();
    assert_eq!(fixture.publish("first", || {}).unwrap(), 2);
    assert_eq!(fixture.publish("second", || {}).unwrap(), 3);
    assert!(fixture.has("first") && fixture.has("second") && !fixture.has("third"));
}

#[test]
fn manifest_that_another_program_replaced_during_a_commit_stays() {
    let fixture = Fixture::new();
    fixture.publish("first", || {}).unwrap();
    let outdated = fixture.store.read_file(MANIFEST).unwrap().unwrap();
    fixture.publish("second", || {}).unwrap();
    let reflog = fixture.store.get(REFLOG, u64::MAX).unwrap();
    // A program that ignores the lock rolls the repository back.
    let refused = fixture.publish("third", || fixture.store.put(MANIFEST, &outdated));
    let is_changed =
        |error: &CommitError<_>| matches!(error, CommitError::Publish(PublishError::Store(StoreError::Changed { .. })));
    assert!(refused.as_ref().is_err_and(is_changed), "{refused:?}");
    assert_eq!(fixture.store.read_file(MANIFEST).unwrap().unwrap(), outdated);
    assert_eq!(fixture.store.get(REFLOG, u64::MAX).unwrap(), reflog);
    assert_eq!(fixture.publish("third", || {}).unwrap(), 3);
    assert!(fixture.has("third") && !fixture.has("second"));
}

#[test]
fn commit_is_refused_while_the_store_is_locked() {
    let fixture = Fixture::new();
    let held = fixture.store.lock(Duration::ZERO).unwrap();
    let refused = fixture.publish("first", || {});
    let is_in_use =
        |error: &CommitError<_>| matches!(error, CommitError::Publish(PublishError::Store(StoreError::InUse(_))));
    assert!(refused.as_ref().is_err_and(is_in_use), "{refused:?}");
    drop(held);
    fixture.publish("first", || {}).unwrap();
}
