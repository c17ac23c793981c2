//! Tests that recorded entries are found again.

use super::*;

#[test]
fn content_and_trees_are_found_only_by_their_whole_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let key = ContentKey { blake3: [7; 32], size: 5, is_chunk: false, encoder: 2, algorithm: HashAlgorithm::Sha1 };
    let note =
        StoredTreeNote { catalog: CatalogReference { hash: ObjectHash::of(b"c"), size: 9 }, facts: "{}".to_owned() };
    let state = StateDatabase::open(&path, &Reporter::silent()).unwrap();
    assert!(state.is_empty().unwrap());
    let object = KnownObject::new(ObjectHash::of(b"o"), 3);
    let shake = ContentKey { algorithm: HashAlgorithm::Shake128, ..key };
    let renamed = KnownObject::new(HashAlgorithm::Shake128.hash(b"o"), 3);
    state.add_objects(&[(key, object), (shake, renamed)]).unwrap();
    state.add_tree("/a", "x", &note).unwrap();
    drop(state);
    let state = StateDatabase::open(&path, &Reporter::silent()).unwrap();
    assert!(!state.is_empty().unwrap());
    let keys = [ContentKey { size: 6, ..key }, key, ContentKey { is_chunk: true, ..key }];
    assert_eq!(state.objects(&keys).unwrap(), [None, Some(object), None]);
    let by_ripemd = ContentKey { algorithm: HashAlgorithm::Ripemd160, ..key };
    assert_eq!(state.objects(&[shake, by_ripemd]).unwrap(), [Some(renamed), None]);
    assert_eq!(state.tree("/a", "x").unwrap(), Some(note));
    assert_eq!(state.tree("/a", "y").unwrap(), None);
}

#[test]
fn failures_are_kept_until_they_are_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let failure = ImageFailure { failures: 2, retry_at: 7, error: "no".to_owned() };
    let state = StateDatabase::open(&path, &Reporter::silent()).unwrap();
    state.set_failure("h.org/a:1", Some(&ImageFailure { failures: 1, ..failure.clone() })).unwrap();
    state.set_failure("h.org/a:1", Some(&failure)).unwrap();
    drop(state);
    let state = StateDatabase::open(&path, &Reporter::silent()).unwrap();
    assert_eq!(state.failures().unwrap(), [("h.org/a:1".to_owned(), failure)].into());
    state.set_failure("h.org/a:1", None).unwrap();
    assert!(state.failures().unwrap().is_empty());
}

#[test]
fn digest_at_the_registry_is_returned_only_for_the_same_published_manifest() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDatabase::open(&directory.path().join("state.db"), &Reporter::silent()).unwrap();
    let (one, other) = (ObjectHash::of(b"1"), ObjectHash::of(b"2"));
    state.add_seen("h.org/a:1", one, "sha256:1").unwrap();
    assert_eq!(state.seen("h.org/a:1", one).unwrap().as_deref(), Some("sha256:1"));
    assert_eq!(state.seen("h.org/a:1", other).unwrap(), None);
    state.add_seen("h.org/a:1", other, "sha256:2").unwrap();
    assert_eq!(state.seen("h.org/a:1", one).unwrap(), None);
}

#[test]
fn unused_time_starts_at_the_first_record_and_again_after_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let trees = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let since = |names: &[&str], now| {
        let since = StateDatabase::open(&path, &Reporter::silent()).unwrap().unused_since(&trees(names), now).unwrap();
        since.into_iter().map(|(tree, since)| format!("{tree} {since}")).collect::<Vec<_>>()
    };
    assert_eq!(since(&["a", "b"], 1), ["a 1", "b 1"]);
    assert_eq!(since(&["a", "c"], 2), ["a 1", "c 2"]);
    assert_eq!(since(&["a", "b"], 3), ["a 1", "b 3"]);
    assert_eq!(since(&[], 4), [""; 0]);
}

#[test]
fn error_names_the_damaged_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    std::fs::write(&path, [7; 5000]).unwrap();
    let error = StateDatabase::open(&path, &Reporter::silent()).unwrap_err();
    assert!(error.to_string().contains("state.db"));
}

#[test]
fn database_of_an_earlier_version_is_upgraded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let key = ContentKey { blake3: [7; 32], size: 5, is_chunk: false, encoder: 2, algorithm: HashAlgorithm::Sha1 };
    let connection = Connection::open(&path).unwrap();
    let table = "CREATE TABLE content (key BLOB NOT NULL, size INTEGER NOT NULL, kind INTEGER NOT NULL, \
                 encoder INTEGER NOT NULL, object BLOB NOT NULL, PRIMARY KEY (key, size, kind, encoder)) WITHOUT ROWID";
    connection.execute_batch(table).unwrap();
    let object = ObjectHash::of(b"o");
    let row = params![key.blake3, key.size, key.is_chunk, key.encoder, object.as_bytes()];
    connection.execute("INSERT INTO content VALUES (?, ?, ?, ?, ?)", row).unwrap();
    drop(connection);
    let fixed = StateDatabase::open_read_only(&path).unwrap();
    assert_eq!(fixed.objects(&[key]).unwrap(), [None], "nothing is remembered that cannot be read");
    let known = StateDatabase::open(&path, &Reporter::silent()).unwrap().objects(&[key]).unwrap()[0].unwrap();
    assert_eq!((known.hash, known.length()), (object, None));
    assert_eq!(StateDatabase::open_read_only(&path).unwrap().objects(&[key]).unwrap(), [Some(known)]);
}

#[test]
fn verified_blobs_are_found_by_digest() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDatabase::open(&directory.path().join("state.db"), &Reporter::silent()).unwrap();
    let blob = VerifiedBlob { digest: Digest::of(b"blob"), size: 7, diff_id: DiffId(Digest::of(b"diff")) };
    assert_eq!(state.blob(blob.digest).unwrap(), None);
    state.add_blobs(&[blob]).unwrap();
    assert_eq!(state.blob(blob.digest).unwrap(), Some(blob));
}

#[test]
fn tree_counts_as_complete_until_another_program_changes_the_directories_of_objects() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let state = StateDatabase::open(&path, &Reporter::silent()).unwrap();
    let (one, other) = (ObjectHash::of(b"1"), ObjectHash::of(b"2"));
    let epoch = state.begin_epoch(b"first").unwrap().unwrap();
    state.add_whole(&[("/a".to_owned(), one)], epoch).unwrap();
    assert!(state.is_whole("/a", one, epoch).unwrap());
    assert!(!state.is_whole("/a", other, epoch).unwrap());
    state.end_epoch(Some(b"second")).unwrap();
    assert_eq!(state.begin_epoch(b"second").unwrap(), Some(epoch));
    assert!(state.is_whole("/a", one, epoch).unwrap());
    let fixed = StateDatabase::open_read_only(&path).unwrap();
    assert_eq!(fixed.begin_epoch(b"second").unwrap(), Some(epoch));
    assert_eq!(fixed.begin_epoch(b"deleted").unwrap(), None);
    let next = state.begin_epoch(b"deleted").unwrap().unwrap();
    assert!(!state.is_whole("/a", one, epoch).unwrap(), "another run began a new epoch");
    assert!(!state.is_whole("/a", one, next).unwrap());
    state.add_whole(&[("/a".to_owned(), one)], next).unwrap();
    state.end_epoch(None).unwrap();
    let last = state.begin_epoch(b"deleted").unwrap().unwrap();
    assert!(!state.is_whole("/a", one, last).unwrap(), "another program changed a directory during the run");
}

#[test]
fn artifact_is_found_by_name_digest_and_platforms() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDatabase::open(&directory.path().join("state.db"), &Reporter::silent()).unwrap();
    state.add_artifact("h.org/a:1", "sha256:1", "application/wasm").unwrap();
    assert_eq!(state.artifact("h.org/a:1", "sha256:1").unwrap().as_deref(), Some("application/wasm"));
    assert_eq!(state.artifact("h.org/a:1", "sha256:2").unwrap(), None);
    assert_eq!((state.had_artifact("h.org/a:1").unwrap(), state.had_artifact("h.org/a:2").unwrap()), (true, false));
    assert_eq!(state.artifact("h.org/a:2", "sha256:1").unwrap(), None);
    state.add_artifact("h.org/a:1", "sha256:2", "application/wasm").unwrap();
    assert_eq!(state.artifact("h.org/a:1", "sha256:1").unwrap(), None);
}

#[test]
fn views_and_triggers_in_the_database_are_not_executed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let key = ContentKey { blake3: [7; 32], size: 5, is_chunk: false, encoder: 2, algorithm: HashAlgorithm::Sha1 };
    let add = || {
        StateDatabase::open(&path, &Reporter::silent())?
            .add_objects(&[(key, KnownObject::new(ObjectHash::of(b"o"), 1))])
    };
    let change = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    add().unwrap();
    change("CREATE TRIGGER t AFTER INSERT ON content BEGIN DELETE FROM content; END");
    add().unwrap();
    assert!(!StateDatabase::open(&path, &Reporter::silent()).unwrap().is_empty().unwrap());
    change("DROP TRIGGER t; ALTER TABLE content RENAME TO c; CREATE VIEW content AS SELECT * FROM c");
    assert!(add().is_err());
    // A database in which a table is replaced by another object counts as one of an earlier version, which is not read.
    let found = StateDatabase::open_read_only(&path).and_then(|state| state.objects(&[key]));
    assert!(found.is_err() || found.is_ok_and(|found| found == [None]));
}
