//! Objects that runs add, in stores of all kinds.

use std::os::unix::fs::MetadataExt as _;

use super::*;

fn store() -> (tempfile::TempDir, DirectoryStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(&directory.path().join("storage")).unwrap();
    (directory, store)
}

fn waiting(store: &DirectoryStore) -> usize {
    fs::read_dir(store.root().join("data/txn")).unwrap().count()
}

/// Has an earlier run add the object of these bytes: "stored".
fn put_before(store: &DirectoryStore) -> ObjectHash {
    let earlier = Staging::start(store).unwrap();
    let hash = earlier.put_stored(ObjectKind::File, b"stored").unwrap();
    earlier.flush().unwrap();
    hash
}

#[test]
fn an_object_has_its_name_after_the_flush_only() {
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
fn what_the_store_has_is_not_written_again() {
    let (_directory, store) = store();
    let first = Staging::start(&store).unwrap();
    first.put_stored(ObjectKind::File, b"stored").unwrap();
    first.put_stored(ObjectKind::File, b"stored").unwrap();
    first.flush().unwrap();
    let second = Staging::start(&store).unwrap();
    second.put_stored(ObjectKind::File, b"stored").unwrap();
    assert_eq!((first.written().objects, second.written().objects), (1, 0));
}

/// Adds objects that the store does not have until nobody looks for them any more.
fn put_until_nobody_looks(staging: &Staging) {
    for number in 0..FIRST_LOOKS {
        staging.put_stored(ObjectKind::File, &number.to_le_bytes()).unwrap();
    }
}

#[test]
fn what_the_store_has_is_found_by_those_who_did_not_look() {
    let (_directory, store) = store();
    let hash = put_before(&store);
    let path = store.object_path(hash, ObjectKind::File);
    let inode = fs::metadata(&path).unwrap().ino();
    let second = Staging::start(&store).unwrap();
    put_until_nobody_looks(&second);
    let before = second.written();
    second.put_stored(ObjectKind::File, b"stored").unwrap();
    assert_eq!(second.written().objects, before.objects + 1, "it is written, for all that is known");
    second.flush().unwrap();
    assert_eq!(second.written(), before);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "the one that was there stays");
    assert!(second.state().take_look(), "it pays to look again");
    fs::remove_file(&path).unwrap();
    assert_eq!(second.first_vanished().unwrap(), Some(hash), "it is counted on");
}

#[test]
fn what_a_store_below_has_is_never_written() {
    let (directory, store) = store();
    put_before(&store);
    let staging = Staging::start(&store.layered(&directory.path().join("upper")).unwrap()).unwrap();
    put_until_nobody_looks(&staging);
    let before = staging.written();
    staging.put_stored(ObjectKind::File, b"stored").unwrap();
    assert_eq!(staging.written(), before);
}

#[test]
fn an_empty_file_is_replaced_by_the_object_whose_name_it_has() {
    let (_directory, store) = store();
    for looks in [true, false] {
        let staging = Staging::start(&store).unwrap();
        if !looks {
            put_until_nobody_looks(&staging);
        }
        let bytes = [u8::from(looks); 9];
        let hash = ObjectHash::of(&bytes);
        fs::write(store.object_path(hash, ObjectKind::File), b"").unwrap();
        staging.put(hash, ObjectKind::File, &bytes).unwrap();
        staging.flush().unwrap();
        assert_eq!(store.read(hash, ObjectKind::File).unwrap(), bytes);
    }
}

#[test]
fn an_object_that_could_not_be_written_is_not_counted_on() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let hash = ObjectHash::of(b"stored");
    // A directory in the way fails for root, too.
    fs::create_dir(staging.staged_path(hash, ObjectKind::File)).unwrap();
    assert!(staging.put(hash, ObjectKind::File, b"stored").is_err());
    assert!(!staging.has(hash, ObjectKind::File).unwrap());
    fs::remove_dir(staging.staged_path(hash, ObjectKind::File)).unwrap();
    staging.put(hash, ObjectKind::File, b"stored").unwrap();
    staging.flush().unwrap();
    assert_eq!(store.read(hash, ObjectKind::File).unwrap(), b"stored");
}

#[test]
fn a_batch_that_could_not_be_moved_is_not_counted_on() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let hash = staging.put_stored(ObjectKind::File, b"stored").unwrap();
    let directory = store.object_path(hash, ObjectKind::File).parent().unwrap().to_owned();
    fs::remove_dir(&directory).unwrap();
    assert!(staging.flush().is_err());
    assert!(!staging.has(hash, ObjectKind::File).unwrap());
    fs::create_dir(&directory).unwrap();
    staging.flush().unwrap();
    assert_eq!(staging.first_vanished().unwrap(), Some(hash), "somebody may have counted on it");
    staging.put(hash, ObjectKind::File, b"stored").unwrap();
    staging.flush().unwrap();
    assert_eq!(staging.first_vanished().unwrap(), None);
    assert_eq!(store.read(hash, ObjectKind::File).unwrap(), b"stored");
}

#[test]
fn threads_that_add_the_same_object_count_on_it_only_when_it_is_there() {
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
fn an_object_that_goes_away_is_noticed() {
    let (_directory, store) = store();
    let hash = put_before(&store);
    let second = Staging::start(&store).unwrap();
    assert!(second.has(hash, ObjectKind::File).unwrap());
    assert_eq!(second.first_vanished().unwrap(), None);
    fs::remove_file(store.object_path(hash, ObjectKind::File)).unwrap();
    assert_eq!(second.first_vanished().unwrap(), Some(hash));
}

#[test]
fn a_run_leaves_nothing_behind_and_sweeps_after_dead_ones_only() {
    let (_directory, store) = store();
    fs::create_dir(store.root().join("data/txn/strata-1-0")).unwrap();
    let alive = Staging::start(&store).unwrap();
    assert_eq!(waiting(&store), 1, "the dead run's directory is gone");
    drop(Staging::start(&store).unwrap());
    assert_eq!(waiting(&store), 1, "the living run's directory is not");
    alive.put_stored(ObjectKind::File, b"never flushed").unwrap();
    drop(alive);
    assert_eq!(waiting(&store), 0);
}

#[test]
fn damage_is_noticed_when_an_object_is_read() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let hash = staging.put_stored(ObjectKind::File, b"stored").unwrap();
    staging.flush().unwrap();
    fs::write(store.object_path(hash, ObjectKind::File), b"damaged").unwrap();
    assert!(matches!(store.read(hash, ObjectKind::File), Err(StoreError::WrongHash { .. })));
}

#[test]
fn an_object_of_another_length_is_replaced_when_it_is_added() {
    let (_directory, store) = store();
    for looks in [true, false] {
        let staging = Staging::start(&store).unwrap();
        if !looks {
            put_until_nobody_looks(&staging);
        }
        let bytes = [u8::from(looks); 9];
        let hash = ObjectHash::of(&bytes);
        fs::write(store.object_path(hash, ObjectKind::File), b"cut").unwrap();
        assert!(!staging.has_of_length(hash, ObjectKind::File, Some(9)).unwrap());
        // Where nobody knows the length, what is there counts, and is compared all the same when it is added.
        assert!(staging.has(hash, ObjectKind::File).unwrap());
        staging.put(hash, ObjectKind::File, &bytes).unwrap();
        staging.flush().unwrap();
        assert_eq!(store.read(hash, ObjectKind::File).unwrap(), bytes);
        assert!(staging.has_of_length(hash, ObjectKind::File, Some(9)).unwrap());
    }
}

#[test]
fn an_object_with_other_bytes_is_replaced_where_bytes_are_compared() {
    let (_directory, store) = store();
    let hash = put_before(&store);
    let path = store.object_path(hash, ObjectKind::File);
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
fn what_another_program_does_to_the_directories_of_objects_is_noticed() {
    let (_directory, store) = store();
    let other = store.root().join("data/ab/of-another-program");
    for is_meanwhile in [true, false] {
        let staging = Staging::start(&store).unwrap();
        let before = staging.marks();
        staging.put_stored(ObjectKind::File, &[u8::from(is_meanwhile)]).unwrap();
        staging.flush().unwrap();
        let after = staging.final_marks().unwrap();
        assert_ne!(after, before);
        assert_eq!(Staging::start(&store).unwrap().marks(), after);
        fs::write(&other, "").unwrap();
        fs::remove_file(&other).unwrap();
        if is_meanwhile {
            // Not even where this run goes on to change the same directories.
            for number in 0_u16..1000 {
                staging.put_stored(ObjectKind::File, &number.to_le_bytes()).unwrap();
            }
            staging.flush().unwrap();
        }
        assert_eq!(staging.final_marks(), None);
        assert_ne!(Staging::start(&store).unwrap().marks(), after);
    }
}
