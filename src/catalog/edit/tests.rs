//! Compares edits with a recount: after any change, all counters, link counts and transition points must be correct.

use proptest::prelude::*;

use super::*;
use crate::catalog::CatalogBuilder;
use crate::catalog::bits::{BIND_MOUNTPOINT, NESTED_ROOT, TRANSITION_POINT, UNKNOWN};
use crate::object::{Chunk, Compression, ContentObjects, ObjectHash};
use crate::store::DirectoryStore;
use crate::tree::{Directory, Leaf, LeafKind, Node};
use std::sync::Arc;

const NOW: Timestamp = Timestamp { seconds: 1_000_000, nanoseconds: 5 };

/// One change to a repository.
#[derive(Debug, Clone)]
enum Change {
    File(EntryPath),
    LargeFile(EntryPath, u64),
    Tree(EntryPath, usize),
    Catalog(EntryPath),
    Remove(EntryPath),
}

fn path() -> impl Strategy<Value = EntryPath> {
    prop::collection::vec("[ab]{1,2}", 1..4).prop_map(|names| EntryPath::normalise(names.join("/").as_bytes()).unwrap())
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => path().prop_map(Change::File),
        2 => (path(), 1_u64..4).prop_map(|(path, chunks)| Change::LargeFile(path, chunks)),
        3 => (path(), 0_usize..4).prop_map(|(path, files)| Change::Tree(path, files)),
        2 => path().prop_map(Change::Catalog),
        2 => path().prop_map(Change::Remove),
    ]
}

fn at(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).unwrap()
}

fn content() -> Content {
    Content { raw: false, objects: ContentObjects::Whole(ObjectHash::of(b"content")) }
}

/// A tree with `files` files and a directory that has two hard links.
fn tree(files: usize) -> Arc<Directory> {
    let leaf = || {
        Arc::new(Leaf {
            metadata: Metadata::of_implied_directory(),
            kind: LeafKind::File { size: 3, content: content() },
        })
    };
    let mut root = Directory::new(Metadata::of_implied_directory());
    let mut inner = Directory::new(Metadata::of_implied_directory());
    let linked = leaf();
    for name in [b"x", b"y"] {
        inner.children.insert(name.as_slice().into(), Node::Leaf(Arc::clone(&linked)));
    }
    root.children.insert(b"inner".as_slice().into(), Node::Directory(Arc::new(inner)));
    for number in 0..files {
        root.children.insert(format!("f{number}").into_bytes().into(), Node::Leaf(leaf()));
    }
    Arc::new(root)
}

fn apply(editor: &mut Editor<'_>, staging: &Staging, change: &Change) -> Result<(), BuildError> {
    match change {
        Change::File(path) => editor.put(path, CatalogEntry::of_file(&Metadata::of_implied_directory(), 7, &content())),
        Change::LargeFile(path, chunks) => {
            let chunk = |number| Chunk { offset: 7 * number, size: 7, hash: ObjectHash::of(b"chunk") };
            let content = Content { raw: false, objects: ContentObjects::Chunks((0..*chunks).map(chunk).collect()) };
            editor.put(path, CatalogEntry::of_file(&Metadata::of_implied_directory(), 7 * chunks, &content))
        }
        Change::Tree(path, files) => {
            let builder = CatalogBuilder::new(staging, Compression::Fast, 1000)?;
            let stored = builder.build(&tree(*files), path, None)?;
            editor.put_tree(path, &stored)
        }
        Change::Catalog(path) => editor.make_catalog(path),
        Change::Remove(path) => editor.remove(path).map(drop),
    }
}

fn read(staging: &Staging, path: &EntryPath, reference: CatalogReference) -> Catalog {
    read_catalog(staging, path, reference).unwrap()
}

/// Walks a repository, checks every catalog, and returns the sum of their counters.
fn recount(staging: &Staging, path: &EntryPath, reference: CatalogReference) -> Counters {
    let catalog = WritableCatalog::of(read_catalog(staging, path, reference).unwrap()).unwrap();
    let rows = BTreeMap::from_iter(catalog.rows_from(path).unwrap());
    let nested = read(staging, path, reference).all_nested().unwrap();
    let mut own = Counters::of_nested(nested.len());
    rows.values().for_each(|row| own += Counters::of_entry(row));
    assert_eq!(catalog.own_counters(), own, "in {path}");
    for count in ["count(*)", "max(rowid)"] {
        assert_eq!(catalog.number(&format!("SELECT {count} FROM catalog")), own.entries(), "{count} in {path}");
    }
    let chunks = own.named().find(|(name, _)| *name == "chunks");
    assert_eq!(Some(("chunks", catalog.number("SELECT count(*) FROM chunks"))), chunks, "in {path}");
    let first = catalog.number("SELECT flags & 32 OR name = '' FROM catalog WHERE rowid = 1");
    assert_eq!(first, 1, "the first row of {path}");
    for (directory, entry) in rows.iter().filter(|(_, entry)| entry.is_directory()) {
        if !nested.contains_key(directory) {
            let is_child = |path: &EntryPath| path.split().is_some_and(|(parent, _)| parent == *directory);
            let directories = rows.iter().filter(|(path, entry)| entry.is_directory() && is_child(path)).count();
            assert_eq!(entry.link_count as usize, directories + 2, "links of {directory}");
        }
    }
    assert_eq!(rows.contains_key(&path.join(MARKER)), !path.is_root(), "marker of {path}");
    let mut below = Counters::default();
    for (nested, reference) in &nested {
        let root = read(staging, nested, *reference).get(nested).unwrap().unwrap();
        assert_eq!(rows[nested], root.with_nesting(Nesting::TransitionPoint), "transition point {nested}");
        below += recount(staging, nested, *reference);
    }
    let mut total = own;
    total += below;
    assert_eq!(read(staging, path, reference).total_counters(), total, "below {path}");
    total
}

fn store() -> (tempfile::TempDir, DirectoryStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(&directory.path().join("storage")).unwrap();
    (directory, store)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn counters_stay_exact(revisions in prop::collection::vec(prop::collection::vec(change(), 1..8), 1..4)) {
        let (_directory, store) = store();
        let staging = Staging::start(&store).unwrap();
        let mut root = Editor::create(&staging, Compression::Fast, NOW).unwrap().write(1).unwrap();
        for (number, changes) in (2..).zip(&revisions) {
            let mut editor = Editor::open(&staging, Compression::Fast, root, &|_, _| None, NOW).unwrap();
            (editor.max_entries, editor.min_split_entries) = (5, 2);
            for change in changes {
                match apply(&mut editor, &staging, change) {
                    Ok(()) | Err(BuildError::Occupied(_)) => {}
                    Err(error) => prop_assert!(false, "{change:?}: {error}"),
                }
            }
            root = editor.write(number).unwrap();
            recount(&staging, &EntryPath::ROOT, root);
        }
    }
}

#[test]
fn a_directory_is_never_replaced_by_a_file_nor_a_file_by_a_directory() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let mut editor = Editor::create(&staging, Compression::Fast, NOW).unwrap();
    let file = || CatalogEntry::of_file(&Metadata::of_implied_directory(), 7, &content());
    editor.put(&at("a/b"), file()).unwrap();
    assert!(matches!(editor.put(&at("a"), file()), Err(BuildError::Occupied(path)) if path == at("a")));
    assert!(matches!(editor.put(&at("a/b/c"), file()), Err(BuildError::Occupied(path)) if path == at("a/b")));
}

#[test]
fn hard_links_and_bind_mountpoints_of_other_programs_stay_consistent() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let mut editor = Editor::create(&staging, Compression::Fast, NOW).unwrap();
    let file = CatalogEntry::of_file(&Metadata::of_implied_directory(), 7, &content());
    let linked = CatalogEntry { link_group: 9, link_count: 3, ..file.clone() };
    for name in ["a/x", "a/y", "a/z"] {
        editor.put(&at(name), linked.clone()).unwrap();
    }
    let elsewhere = CatalogReference { hash: ObjectHash::of(b"elsewhere"), size: 7 };
    for bound in ["a/b", "a/c", "d"] {
        let row = CatalogEntry::of_directory(&Metadata::of_implied_directory(), 0);
        editor.put(&at(bound), CatalogEntry { flags: row.flags | BIND_MOUNTPOINT, ..row }).unwrap();
        editor.root.catalog.put_reference(References::Bound, &at(bound), elsewhere).unwrap();
    }
    let links = |editor: &mut Editor<'_>, name: &str| {
        let entry = editor.get(&at(name)).unwrap().unwrap();
        (entry.link_group, entry.link_count)
    };
    editor.put(&at("a/x"), file).unwrap();
    assert_eq!([links(&mut editor, "a/x"), links(&mut editor, "a/y")], [(0, 1), (9, 2)]);
    editor.remove(&at("a/y")).unwrap();
    assert_eq!(links(&mut editor, "a/z"), (0, 1));
    editor.make_catalog(&at("a")).unwrap();
    let bound =
        |loaded: &LoadedCatalog, place: &str| loaded.catalog.references_from(References::Bound, &at(place)).unwrap();
    let below = &editor.root.below[&at("a")];
    assert_eq!(bound(below, "a"), [(at("a/b"), elsewhere), (at("a/c"), elsewhere)]);
    assert_eq!((bound(&editor.root, "a"), bound(&editor.root, "d").len()), (vec![], 1));
    let root = editor.write(2).unwrap();
    recount(&staging, &EntryPath::ROOT, root);
    let mut editor = Editor::open(&staging, Compression::Fast, root, &|_, _| None, NOW).unwrap();
    editor.remove(&at("a")).unwrap();
    assert_eq!((bound(&editor.root, "a"), bound(&editor.root, "d").len()), (vec![], 1));
}

#[test]
fn catalogs_that_did_not_change_keep_their_hash() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let mut editor = Editor::create(&staging, Compression::Fast, NOW).unwrap();
    for name in ["a", "b"] {
        editor.make_catalog(&at(name)).unwrap();
    }
    let first = editor.write(1).unwrap();
    let mut editor = Editor::open(&staging, Compression::Fast, first, &|_, _| None, NOW).unwrap();
    editor.put(&at("a/x"), CatalogEntry::of_file(&Metadata::of_implied_directory(), 7, &content())).unwrap();
    let second = editor.write(2).unwrap();
    let nested = |root| read(&staging, &EntryPath::ROOT, root).all_nested().unwrap();
    assert_eq!(nested(first)[&at("b")], nested(second)[&at("b")]);
    assert_ne!(nested(first)[&at("a")], nested(second)[&at("a")]);
    let root = read(&staging, &EntryPath::ROOT, second);
    assert_eq!(root.property("revision"), Some("2"));
    assert_eq!(root.property("previous_revision"), Some(first.hash.to_string().as_str()));
}

#[test]
fn edits_of_cached_and_of_stored_catalogs_give_the_same_result() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let mut editor = Editor::create(&staging, Compression::Fast, NOW).unwrap();
    for name in ["a", "b"] {
        editor.make_catalog(&at(name)).unwrap();
    }
    let first = editor.write(1).unwrap();
    let change = |take: TakeCatalog<'_>| {
        let mut editor = Editor::open(&staging, Compression::Fast, first, take, NOW).unwrap();
        editor.put(&at("a/x"), CatalogEntry::of_file(&Metadata::of_implied_directory(), 7, &content())).unwrap();
        editor.write(2).unwrap()
    };
    let asked = std::cell::RefCell::new(Vec::new());
    let take = |path: &EntryPath, reference: CatalogReference| {
        asked.borrow_mut().push(path.clone());
        let catalog = read(&staging, path, reference);
        // Reading a catalog leaves prepared statements in its connection.
        catalog.list(path).unwrap();
        Some(catalog)
    };
    assert_eq!(change(&take), change(&|_, _| None));
    assert_eq!(asked.into_inner(), [EntryPath::ROOT, at("a")]);
}

#[test]
fn flags_that_strata_does_not_know_and_other_compressions_are_kept() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let mut editor = Editor::create(&staging, Compression::Fast, NOW).unwrap();
    let metadata = Metadata::of_implied_directory();
    let rows = [
        ("a", CatalogEntry::of_directory(&metadata, 0), UNKNOWN),
        ("a/file", CatalogEntry::of_file(&metadata, 7, &content()), 1 << 17),
        ("a/zstd", CatalogEntry::of_file(&metadata, 7, &content()), 2 << 11),
        ("a/later", CatalogEntry::of_file(&metadata, 7, &content()), 7 << 11 | 1 << 31),
        ("a/link", CatalogEntry::of_symlink(&metadata, b"file"), 1 << 20),
    ];
    for (path, row, flags) in &rows {
        editor.put(&at(path), CatalogEntry { flags: row.flags | flags, ..row.clone() }).unwrap();
    }
    let mut root = editor.write(1).unwrap();
    let assert_kept = |editor: &mut Editor<'_>| {
        for (path, row, flags) in &rows {
            let known = editor.get(&at(path)).unwrap().unwrap().flags & !(TRANSITION_POINT | NESTED_ROOT);
            assert_eq!(known, row.flags | flags, "{path}");
        }
    };
    // A new subdirectory changes the link count of the directory; a new catalog moves its rows.
    let edits: [&dyn Fn(&mut Editor<'_>); 3] = [
        &|editor| editor.put(&at("a/b/new"), CatalogEntry::of_symlink(&metadata, b"x")).unwrap(),
        &|editor| editor.make_catalog(&at("a")).unwrap(),
        &|editor| assert!(editor.remove(&at("a/b")).unwrap()),
    ];
    for (edit, revision) in edits.into_iter().zip(2..) {
        let mut editor = Editor::open(&staging, Compression::Fast, root, &|_, _| None, NOW).unwrap();
        edit(&mut editor);
        assert_kept(&mut editor);
        root = editor.write(revision).unwrap();
        recount(&staging, &EntryPath::ROOT, root);
        assert_kept(&mut Editor::open(&staging, Compression::Fast, root, &|_, _| None, NOW).unwrap());
    }
}

#[test]
fn unknown_flags_that_only_a_transition_point_has_are_kept() {
    let (_directory, store) = store();
    let staging = Staging::start(&store).unwrap();
    let mut editor = Editor::create(&staging, Compression::Fast, NOW).unwrap();
    editor.make_catalog(&at("a")).unwrap();
    let row = editor.root.catalog.get(&at("a")).unwrap().unwrap();
    editor.root.catalog.put(&at("a"), &CatalogEntry { flags: row.flags | 1 << 17, ..row.clone() }).unwrap();
    editor.put(&at("a/x"), CatalogEntry::of_file(&Metadata::of_implied_directory(), 7, &content())).unwrap();
    let root = read(&staging, &EntryPath::ROOT, editor.write(1).unwrap());
    assert_eq!(root.get(&at("a")).unwrap().unwrap().flags, row.flags | 1 << 17);
}
