//! What every store must do for its readers, as tests.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use super::{ContentError, ContentObject, Store, StoreError};
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
    assert_eq!(store.version(".cvmfspublished"), store.version(".cvmfspublished"));
    assert!(store.version(".cvmfspublished").is_some());
    for missing in [".cvmfswhitelist", "data/00/missing"] {
        assert_eq!(store.get(missing, 100).unwrap(), None);
        assert_eq!(store.head(missing).unwrap(), None);
        assert!(store.open(missing).unwrap().is_none() && store.version(missing).is_none());
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
