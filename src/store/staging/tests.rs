//! Adding objects to plain, layered and damaged stores.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::*;
use crate::store::{DirectoryStore, LayeredStore, Store as _, WritableStore as _};

fn store() -> (tempfile::TempDir, DirectoryStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(&directory.path().join("storage")).unwrap();
    (directory, store)
}

fn waiting(store: &DirectoryStore) -> usize {
    fs::read_dir(store.path("data/txn")).unwrap().count()
}

fn object_path(store: &DirectoryStore, hash: ObjectHash) -> PathBuf {
    store.path(&hash.path(ObjectKind::File))
}

/// Adds an object with the bytes "stored" in an earlier run.
fn put_before(store: &DirectoryStore) -> ObjectHash {
    let earlier = Staging::start(store).unwrap();
    let hash = earlier.put_stored(ObjectKind::File, b"stored").unwrap();
    earlier.flush().unwrap();
    hash
}

#[test]
fn object_has_its_final_name_only_after_the_flush() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let hash = staging.put_stored(ObjectKind::File, b"stored").unwrap();
    assert!(staging.has(hash, ObjectKind::File).unwrap());
    assert_eq!(store.renew(hash, ObjectKind::File).unwrap(), None);
    staging.flush().unwrap();
    assert_eq!(store.read(hash, ObjectKind::File).unwrap(), b"stored");
    assert!(store.read(hash, ObjectKind::Chunk).is_err(), "a chunk is another object");
}

#[test]
fn object_of_the_store_is_not_written_again() {
    let (_directory, store) = store();
    let first = Staging::start(&store).unwrap();
    first.put_stored(ObjectKind::File, b"stored").unwrap();
    first.put_stored(ObjectKind::File, b"stored").unwrap();
    first.flush().unwrap();
    let second = Staging::start(&store).unwrap();
    second.put_stored(ObjectKind::File, b"stored").unwrap();
    assert_eq!((first.written().objects, second.written().objects), (1, 0));
}

/// Adds new objects until objects are no longer looked up in the store.
fn use_up_lookups(staging: &Staging) {
    for number in 0..INITIAL_LOOKUPS {
        staging.put_stored(ObjectKind::File, &number.to_le_bytes()).unwrap();
    }
}

#[test]
fn existing_object_is_detected_when_it_is_moved_without_a_lookup() {
    let (_directory, store) = store();
    let hash = put_before(&store);
    let path = object_path(&store, hash);
    let inode = fs::metadata(&path).unwrap().ino();
    let second = Staging::start(&store).unwrap();
    use_up_lookups(&second);
    let before = second.written();
    second.put_stored(ObjectKind::File, b"stored").unwrap();
    assert_eq!(second.written().objects, before.objects + 1, "it counts as written until it is moved");
    second.flush().unwrap();
    assert_eq!(second.written(), before);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "the existing file stays");
    assert!(second.state().take_lookup(), "objects are looked up again after a hit");
    fs::remove_file(&path).unwrap();
    assert_eq!(second.first_vanished().unwrap(), Some(hash), "the run relies on it");
}

#[test]
fn object_of_the_lower_store_is_never_written() {
    let (directory, store) = store();
    put_before(&store);
    let upper = DirectoryStore::create(&directory.path().join("upper")).unwrap();
    let staging = Staging::start(SharedWritableStore::from(LayeredStore::new(&upper, &store))).unwrap();
    use_up_lookups(&staging);
    let before = staging.written();
    staging.put_stored(ObjectKind::File, b"stored").unwrap();
    assert_eq!(staging.written(), before);
}

#[test]
fn empty_file_in_place_of_an_object_is_replaced() {
    let (_directory, store) = store();
    for has_lookups in [true, false] {
        let staging = Staging::start(&store).unwrap();
        if !has_lookups {
            use_up_lookups(&staging);
        }
        let bytes = [u8::from(has_lookups); 9];
        let hash = ObjectHash::of(&bytes);
        fs::write(object_path(&store, hash), b"").unwrap();
        staging.put(hash, ObjectKind::File, &bytes).unwrap();
        staging.flush().unwrap();
        assert_eq!(store.read(hash, ObjectKind::File).unwrap(), bytes);
    }
}

#[test]
fn object_that_could_not_be_written_counts_as_missing() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let hash = ObjectHash::of(b"stored");
    let run = fs::read_dir(store.path("data/txn")).unwrap().next().unwrap().unwrap().path();
    let name = hash.to_string();
    let path = run.join(&name[..1]).join(&name);
    // A directory at the path makes the write fail even for root.
    fs::create_dir(&path).unwrap();
    assert!(staging.put(hash, ObjectKind::File, b"stored").is_err());
    assert!(!staging.has(hash, ObjectKind::File).unwrap());
    fs::remove_dir(&path).unwrap();
    staging.put(hash, ObjectKind::File, b"stored").unwrap();
    staging.flush().unwrap();
    assert_eq!(store.read(hash, ObjectKind::File).unwrap(), b"stored");
}

#[test]
fn objects_of_a_batch_that_could_not_be_moved_count_as_missing() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let hash = staging.put_stored(ObjectKind::File, b"stored").unwrap();
    let directory = object_path(&store, hash).parent().unwrap().to_owned();
    fs::remove_dir(&directory).unwrap();
    assert!(staging.flush().is_err());
    assert!(!staging.has(hash, ObjectKind::File).unwrap());
    fs::create_dir(&directory).unwrap();
    staging.flush().unwrap();
    assert_eq!(staging.first_vanished().unwrap(), Some(hash), "a catalog may refer to it");
    staging.put(hash, ObjectKind::File, b"stored").unwrap();
    staging.flush().unwrap();
    assert_eq!(staging.first_vanished().unwrap(), None);
    assert_eq!(store.read(hash, ObjectKind::File).unwrap(), b"stored");
}

#[test]
fn threads_that_add_the_same_object_return_only_when_it_exists() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let bytes = vec![7; 1 << 20];
    let hash = ObjectHash::of(&bytes);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                staging.put(hash, ObjectKind::Catalog, &bytes).unwrap();
                staging.flush().unwrap();
                assert_eq!(store.read(hash, ObjectKind::Catalog).unwrap(), bytes);
            });
        }
    });
    assert_eq!(staging.written().objects, 1);
}

#[test]
fn deleted_object_is_detected() {
    let (_directory, store) = store();
    let hash = put_before(&store);
    let second = Staging::start(&store).unwrap();
    assert!(second.has(hash, ObjectKind::File).unwrap());
    assert_eq!(second.first_vanished().unwrap(), None);
    fs::remove_file(object_path(&store, hash)).unwrap();
    assert_eq!(second.first_vanished().unwrap(), Some(hash));
}

#[test]
fn run_deletes_its_own_directory_and_those_of_dead_runs_only() {
    let (_directory, store) = store();
    fs::create_dir(store.path("data/txn/strata-1-0")).unwrap();
    let alive = Staging::start(&store).unwrap();
    assert_eq!(waiting(&store), 1, "the dead run's directory is gone");
    drop(Staging::start(&store).unwrap());
    assert_eq!(waiting(&store), 1, "the running process keeps its directory");
    alive.put_stored(ObjectKind::File, b"never flushed").unwrap();
    drop(alive);
    assert_eq!(waiting(&store), 0);
}

#[test]
fn damage_is_detected_when_an_object_is_read() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let hash = staging.put_stored(ObjectKind::File, b"stored").unwrap();
    staging.flush().unwrap();
    fs::write(object_path(&store, hash), b"damaged").unwrap();
    assert!(matches!(store.read(hash, ObjectKind::File), Err(StoreError::WrongHash { .. })));
}

#[test]
fn object_of_another_length_is_replaced_when_it_is_added() {
    let (_directory, store) = store();
    for has_lookups in [true, false] {
        let staging = Staging::start(&store).unwrap();
        if !has_lookups {
            use_up_lookups(&staging);
        }
        let bytes = [u8::from(has_lookups); 9];
        let hash = ObjectHash::of(&bytes);
        fs::write(object_path(&store, hash), b"cut").unwrap();
        assert!(!staging.has_of_length(hash, ObjectKind::File, Some(9)).unwrap());
        // Without a known length any object of this name counts, but the length is compared when the object is added.
        assert!(staging.has(hash, ObjectKind::File).unwrap());
        staging.put(hash, ObjectKind::File, &bytes).unwrap();
        staging.flush().unwrap();
        assert_eq!(store.read(hash, ObjectKind::File).unwrap(), bytes);
        assert!(staging.has_of_length(hash, ObjectKind::File, Some(9)).unwrap());
    }
}

#[test]
fn object_with_other_bytes_is_replaced_if_bytes_are_compared() {
    let (_directory, store) = store();
    let hash = put_before(&store);
    let path = object_path(&store, hash);
    for compares in [false, true] {
        fs::write(&path, b"STORED").unwrap();
        let staging = Staging::start(&store).unwrap();
        if compares {
            staging.compare_bytes();
        }
        assert_eq!(staging.has(hash, ObjectKind::File).unwrap(), !compares);
        staging.put(hash, ObjectKind::File, b"stored").unwrap();
        staging.flush().unwrap();
        assert_eq!(store.read(hash, ObjectKind::File).is_ok(), compares);
        assert_eq!(staging.written().objects, u64::from(compares));
    }
}

#[test]
fn change_of_an_object_directory_by_another_program_is_detected() {
    let (_directory, store) = store();
    let other = store.path("data/ab/of-another-program");
    for is_meanwhile in [true, false] {
        let staging = Staging::start(&store).unwrap();
        let before = staging.objects_version();
        staging.put_stored(ObjectKind::File, &[u8::from(is_meanwhile)]).unwrap();
        staging.flush().unwrap();
        let after = staging.final_objects_version().unwrap();
        assert_ne!(after, before);
        assert_eq!(Staging::start(&store).unwrap().objects_version(), after);
        fs::write(&other, "").unwrap();
        fs::remove_file(&other).unwrap();
        if is_meanwhile {
            // The change is detected even if this run changes the same directories afterwards.
            for number in 0_u16..1000 {
                staging.put_stored(ObjectKind::File, &number.to_le_bytes()).unwrap();
            }
            staging.flush().unwrap();
        }
        assert_eq!(staging.final_objects_version(), None);
        assert_ne!(Staging::start(&store).unwrap().objects_version(), after);
    }
}
