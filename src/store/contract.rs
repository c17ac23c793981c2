//! What every store must do for readers and publishers, as tests.
//!
//! The integration tests compile this file, too, and run it on several file systems. Therefore it uses the public interface only.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use super::{ContentError, ContentObject, NewFile, ObjectName, SharedWritableStore, Staging, Store, StoreError};
use crate::object::{Compression, Encoder, ObjectHash, ObjectKind, SizeLimit};

/// Content of the objects of the contract.
const CONTENT: &[u8] = &[b'x'; 200];

/// Returns the files of a store that [`assert_reads`] accepts, by their names.
pub(crate) fn files() -> BTreeMap<String, Vec<u8>> {
    let packed = packed();
    BTreeMap::from([
        (".cvmfspublished".to_owned(), b"manifest".to_vec()),
        (ObjectHash::of(&packed).path(ObjectKind::Catalog), packed.clone()),
        (ObjectHash::of(CONTENT).path(ObjectKind::File), CONTENT.to_vec()),
        (ObjectHash::of(b"empty").path(ObjectKind::File), Vec::new()),
        (ObjectHash::of(b"damaged").path(ObjectKind::File), b"Damaged".to_vec()),
        (ObjectHash::of(b"junk").path(ObjectKind::Catalog), b"junk".to_vec()),
    ])
}

fn packed() -> Vec<u8> {
    Encoder::new(Compression::Fast).encode(CONTENT).to_vec()
}

/// Asserts that a store with [`files`] returns them, and returns errors for everything else.
pub(crate) fn assert_reads(store: &dyn Store) {
    assert_files(store);
    assert_objects(store);
    assert_damage(store);
}

fn assert_files(store: &dyn Store) {
    assert_eq!(store.read_file(".cvmfspublished").unwrap().as_deref(), Some(&b"manifest"[..]));
    assert_eq!(store.get(".cvmfspublished", 8).unwrap().as_deref(), Some(&b"manifest"[..]));
    let too_large = store.get(".cvmfspublished", 7);
    assert!(matches!(&too_large, Err(StoreError::TooLarge { limit: 7, .. })), "{too_large:?}");
    assert_eq!(store.head(".cvmfspublished").unwrap(), Some(8));
    let mut opened = String::new();
    store.open(".cvmfspublished").unwrap().unwrap().read_to_string(&mut opened).unwrap();
    assert_eq!(opened, "manifest");
    assert!(store.address(".cvmfspublished").ends_with("/.cvmfspublished"));
    for missing in [".cvmfswhitelist", "data/00/missing"] {
        assert_eq!(store.get(missing, 100).unwrap(), None);
        assert_eq!(store.head(missing).unwrap(), None);
        assert!(store.open(missing).unwrap().is_none());
    }
}

fn assert_objects(store: &dyn Store) {
    let (stored, raw) = (packed(), ObjectHash::of(CONTENT));
    let hash = ObjectHash::of(&stored);
    assert_eq!(store.read(hash, ObjectKind::Catalog).unwrap(), stored);
    assert_eq!(store.read_decoded(hash, ObjectKind::Catalog, SizeLimit::of(1000)).unwrap(), CONTENT);
    assert_eq!(store.stored_size(hash, ObjectKind::Catalog).unwrap(), Some(stored.len() as u64));
    assert_eq!(store.object_size(raw, ObjectKind::File).unwrap(), CONTENT.len() as u64);
    assert!(store.is_intact(hash, ObjectKind::Catalog) && !store.is_intact(hash, ObjectKind::File));
    // An object of another kind is another object.
    assert!(matches!(store.read(hash, ObjectKind::File), Err(StoreError::Missing { .. })));
    assert!(matches!(store.object_size(hash, ObjectKind::File), Err(StoreError::Missing { .. })));
    for (hash, kind, raw) in [(hash, ObjectKind::Catalog, false), (raw, ObjectKind::File, true)] {
        let object = ContentObject { hash, kind, raw, size: CONTENT.len() as u64 };
        assert_eq!(store.read_content(object, 1000).unwrap(), CONTENT);
        let mut streamed = Vec::new();
        store.stream_content(object, &mut |bytes| streamed.write_all(bytes)).unwrap();
        assert_eq!(streamed, CONTENT);
        let longer = ContentObject { size: object.size + 1, ..object };
        assert!(matches!(store.read_content(longer, 1000), Err(ContentError::WrongSize { .. })));
        assert!(matches!(store.stream_content(longer, &mut |_| Ok(())), Err(ContentError::WrongSize { .. })));
    }
}

fn assert_damage(store: &dyn Store) {
    let [empty, damaged, junk] = ["empty", "damaged", "junk"].map(|name| ObjectHash::of(name.as_bytes()));
    // Other tools leave empty files after a crash.
    assert_eq!(store.stored_size(empty, ObjectKind::File).unwrap(), None);
    for hash in [empty, damaged] {
        let object = ContentObject { hash, kind: ObjectKind::File, raw: true, size: 7 };
        let errors = [
            store.read(hash, ObjectKind::File).map_err(ContentError::from).map(drop),
            store.read_content(object, 1000).map(drop),
            store.stream_content(object, &mut |_| Ok(())),
        ];
        for error in errors {
            assert!(matches!(&error, Err(ContentError::Store(StoreError::WrongHash { .. }))), "{error:?}");
        }
        assert!(!store.is_intact(hash, ObjectKind::File));
    }
    let error = store.read_decoded(junk, ObjectKind::Catalog, SizeLimit::of(1000)).unwrap_err();
    assert!(matches!(error, StoreError::Undecodable { .. }) && error.is_damage(), "{error}");
}

/// Asserts what publishers require of a store, which must be empty.
pub(crate) fn assert_writes(store: &SharedWritableStore) {
    assert_objects_are_added(store);
    assert_objects_are_deleted(store);
    assert_runs_leave_nothing(store);
    assert_files_are_replaced(store);
    assert_locks(store);
}

fn assert_objects_are_added(store: &SharedWritableStore) {
    let first = Staging::start(store.clone()).unwrap();
    let hash = first.put_stored(ObjectKind::File, b"stored").unwrap();
    first.put_stored(ObjectKind::File, b"stored").unwrap();
    assert!(first.has(hash, ObjectKind::File).unwrap());
    first.flush().unwrap();
    store.sync().unwrap();
    assert_eq!(store.read(hash, ObjectKind::File).unwrap(), b"stored");
    assert_eq!((first.written().objects, first.written().bytes), (1, 6));
    assert_eq!(first.first_vanished().unwrap(), None);
    let second = Staging::start(store.clone()).unwrap();
    second.put_stored(ObjectKind::File, b"stored").unwrap();
    // The same bytes as another kind are another object.
    second.put_stored(ObjectKind::Catalog, b"stored").unwrap();
    second.flush().unwrap();
    assert_eq!(second.written().objects, 1);
    assert_eq!(store.renew(hash, ObjectKind::File).unwrap(), Some(6));
    assert!(store.age(hash, ObjectKind::File).unwrap().unwrap() < Duration::from_secs(3600));
    let missing = ObjectHash::of(b"missing");
    assert_eq!(store.renew(missing, ObjectKind::File).unwrap(), None);
    assert_eq!(store.age(missing, ObjectKind::File).unwrap(), None);
    assert_threads_add_objects(store);
}

/// Asserts that threads which add the same objects return only when the objects exist.
fn assert_threads_add_objects(store: &SharedWritableStore) {
    let staging = Staging::start(store.clone()).unwrap();
    let contents: Vec<Vec<u8>> = (0..64_u8).map(|number| vec![number; 1 << 12]).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for bytes in &contents {
                    let hash = staging.put_stored(ObjectKind::File, bytes).unwrap();
                    staging.flush().unwrap();
                    assert_eq!(&store.read(hash, ObjectKind::File).unwrap(), bytes);
                }
            });
        }
    });
    assert_eq!(staging.written().objects, contents.len() as u64);
}

fn assert_objects_are_deleted(store: &SharedWritableStore) {
    let add =
        |staging: &Staging, bytes: &[u8]| (staging.put_stored(ObjectKind::File, bytes).unwrap(), ObjectKind::File);
    let first = Staging::start(store.clone()).unwrap();
    let objects: Vec<ObjectName> = (0..100_u8).map(|number| add(&first, &[number; 9])).collect();
    first.flush().unwrap();
    let before = first.final_objects_version().unwrap();
    let second = Staging::start(store.clone()).unwrap();
    assert_eq!(second.objects_version(), before, "no object was deleted since");
    assert!(second.has(objects[0].0, ObjectKind::File).unwrap());
    let (gone, kept) = objects.split_at(50);
    store.delete(gone).unwrap();
    store.delete(&[gone, &[(ObjectHash::of(b"missing"), ObjectKind::File)]].concat()).unwrap();
    assert_eq!(second.first_vanished().unwrap(), Some(objects[0].0), "the run relies on it");
    assert_eq!(second.final_objects_version(), None);
    assert_ne!(store.objects_version(), before);
    let exists = |(hash, kind): &ObjectName| store.stored_size(*hash, *kind).unwrap().is_some();
    assert!(!gone.iter().any(exists) && kept.iter().all(exists));
    let third = Staging::start(store.clone()).unwrap();
    assert_eq!(add(&third, &[0; 9]), objects[0]);
    third.flush().unwrap();
    assert!(exists(&objects[0]));
}

/// Asserts that the objects of a run that were not flushed disappear with it.
fn assert_runs_leave_nothing(store: &SharedWritableStore) {
    let run = Staging::start(store.clone()).unwrap();
    let hash = run.put_stored(ObjectKind::File, b"never flushed").unwrap();
    drop(run);
    assert_eq!(store.stored_size(hash, ObjectKind::File).unwrap(), None);
    let mut left = 0;
    if let Some(listing) = store.listing() {
        listing.list("data/txn", &mut |_| left += 1).unwrap();
    }
    assert_eq!(left, 0);
}

fn assert_files_are_replaced(store: &SharedWritableStore) {
    const NAME: &str = ".cvmfspublished";
    let run = Staging::start(store.clone()).unwrap();
    let replace =
        |files: &[NewFile<'_>]| run.replace_files(files, None).map(|late| assert!(late.is_empty(), "{late:?}"));
    let content = |name| store.read_file(name).unwrap();
    replace(&[NewFile::new(NAME, b"first").replacing(None)]).unwrap();
    assert_eq!(content(NAME).unwrap(), b"first");
    replace(&[NewFile::new(".cvmfsreflog", b"log"), NewFile::new(NAME, b"second").replacing(Some(b"first"))]).unwrap();
    assert_eq!((content(NAME).unwrap(), content(".cvmfsreflog").unwrap()), (b"second".to_vec(), b"log".to_vec()));
    for outdated in [None, Some(&b"first"[..])] {
        let files = [NewFile::new(".cvmfsreflog", b"other"), NewFile::new(NAME, b"third").replacing(outdated)];
        let changed = replace(&files);
        assert!(matches!(changed, Err(StoreError::Changed { .. })), "{changed:?}");
        assert_eq!((content(NAME).unwrap(), content(".cvmfsreflog").unwrap()), (b"second".to_vec(), b"log".to_vec()));
    }
    replace(&[NewFile::new(NAME, b"third")]).unwrap();
    assert_eq!(content(NAME).unwrap(), b"third");
}

fn assert_locks(store: &SharedWritableStore) {
    let held = store.lock(Duration::ZERO).unwrap();
    let refused = store.lock(Duration::from_millis(100));
    assert!(
        matches!(&refused, Err(StoreError::InUse(held)) if held.waited >= Duration::from_millis(100)),
        "{refused:?}"
    );
    thread::scope(|scope| {
        let start = Instant::now();
        let waiting = scope.spawn(|| store.lock(Duration::from_secs(60)).map(drop));
        thread::sleep(Duration::from_millis(200));
        drop(held);
        waiting.join().unwrap().unwrap();
        assert!(start.elapsed() >= Duration::from_millis(200));
    });
    drop(store.lock(Duration::ZERO).unwrap());
}
