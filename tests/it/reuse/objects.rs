//! Objects that are in the store with the right bytes or with wrong bytes, or that were deleted.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use strata::object::{Compression, Encoder, ObjectHash, ObjectKind};

use super::{OTHER, forget, layers_read};
use crate::support::{Damage, NAME, TestImage, TestLayer, TestRepository, chain_path, flat_path, layer_path};

/// Returns a text that is long enough to be cut in half, and short enough for one object.
fn text(word: &str) -> String {
    format!("{word} ").repeat(50)
}

fn shared(layer: TestLayer) -> TestLayer {
    layer.file("shared", text("shared")).file("d/f", text("f"))
}

fn image() -> TestImage {
    TestImage::new().layer(shared).layer(|layer| layer.file("upper", text("upper")))
}

/// Returns an image that shares the lowest layer, and so its chain, with [`image`].
fn sharing() -> TestImage {
    TestImage::new().layer(shared).layer(|layer| layer.file("another", text("another")))
}

/// Returns an image with the same content in different layers.
fn alike() -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("elsewhere", text("shared")).file("f", text("f")).file("u", text("upper")))
}

/// Returns the object of a file with this content.
pub(super) fn object_of(repository: &TestRepository, content: &str) -> PathBuf {
    object_as(repository, content, Compression::Balanced)
}

fn object_as(repository: &TestRepository, content: &str, compression: Compression) -> PathBuf {
    let stored = Encoder::new(compression).encode(content.as_bytes()).to_vec();
    let path = repository.storage().join(ObjectHash::of(&stored).path(ObjectKind::File));
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// Returns the catalogs of a tree.
pub(super) fn catalogs_of(repository: &TestRepository, root: &str) -> Vec<PathBuf> {
    let hashes = repository.reader().catalog_hashes();
    let below = hashes.iter().filter(|(path, _)| path.trim_start_matches('/').starts_with(root));
    let path = |hash: &String| repository.storage().join(format!("data/{}/{}C", &hash[..2], &hash[2..]));
    let paths: Vec<PathBuf> = below.map(|(_, hash)| path(hash)).collect();
    assert!(!paths.is_empty(), "{root} has no catalog");
    paths
}

pub(super) fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Changes a byte of an object, but not its length.
pub(super) fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[track_caller]
pub(super) fn assert_good(repository: &TestRepository) {
    repository.run(["check"]).expect_code(0);
}

#[test]
fn object_of_another_length_is_replaced_when_it_is_written() {
    for is_remembered in [true, false] {
        for spoil in [cut, |path: &Path| fs::write(path, text("far too long").repeat(9)).unwrap()] {
            let repository = TestRepository::publish(&image());
            spoil(&object_of(&repository, &text("shared")));
            if !is_remembered {
                forget(&repository);
            }
            repository.convert(&alike(), OTHER, &[]).expect_code(0);
            assert_good(&repository);
        }
    }
}

#[test]
fn link_in_the_place_of_an_object_is_replaced_by_the_object() {
    let repository = TestRepository::publish(&image());
    let object = object_of(&repository, &text("shared"));
    fs::remove_file(&object).unwrap();
    std::os::unix::fs::symlink("/dev/null", &object).unwrap();
    repository.convert(&alike(), OTHER, &[]).expect_code(0);
    assert!(object.symlink_metadata().unwrap().is_file());
}

#[test]
fn uncompressed_objects_are_checked_by_size_too() {
    let repository = TestRepository::with_settings("compression = \"none\"");
    repository.convert(&image(), NAME, &[]).expect_code(0);
    cut(&object_as(&repository, &text("shared"), Compression::None));
    repository.convert(&alike(), OTHER, &[]).expect_code(0);
    assert_good(&repository);
    // Catalogs state the size of content that is stored without compression.
    cut(&object_as(&repository, &text("upper"), Compression::None));
    forget(&repository);
    let above = image().layer(|layer| layer.file("top", ""));
    assert_eq!(layers_read(repository.convert(&above, OTHER, &["--json"])), 2);
    assert_good(&repository);
}

#[test]
fn image_that_shares_a_layer_with_a_deleted_object_restores_the_object() {
    for mode in [&[][..], &["--skip-layers"], &["--skip-flat", "--chains", "none"], &["--chains", "all"]] {
        for is_remembered in [true, false] {
            let repository = TestRepository::new();
            repository.convert(&image(), NAME, &["--chains", "all"]).expect_code(0);
            fs::remove_file(object_of(&repository, &text("shared"))).unwrap();
            if !is_remembered {
                forget(&repository);
            }
            repository.convert(&sharing(), OTHER, mode).expect_code(0);
            assert_good(&repository);
        }
    }
}

#[test]
fn image_with_a_missing_object_that_cannot_be_restored_is_not_published() {
    for is_remembered in [true, false] {
        let repository = TestRepository::publish(&image());
        let object = object_of(&repository, &text("shared"));
        let bytes = fs::read(&object).unwrap();
        fs::remove_file(&object).unwrap();
        if !is_remembered {
            forget(&repository);
        }
        let before = repository.manifest_bytes();
        let run = repository.convert(&sharing().damage(Damage::Omitted(0)), OTHER, &[]).expect_code(1);
        assert!(run.stderr().contains(&sharing().layer_digests()[0]), "{}", run.stderr());
        assert_eq!(repository.manifest_bytes(), before);
        fs::write(object, bytes).unwrap();
    }
}

#[test]
fn missing_objects_of_a_published_image_are_restored_when_it_is_converted_again() {
    for content in ["shared", "upper"] {
        let repository = TestRepository::publish(&image());
        fs::remove_file(object_of(&repository, &text(content))).unwrap();
        repository.convert(&image(), NAME, &[]).expect_code(0);
        assert_good(&repository);
        assert_eq!(repository.reader().revision(), 2, "nothing that is published has changed");
    }
}

#[test]
fn missing_objects_that_come_from_no_layer_are_restored_too() {
    let image = image().env("A", "b");
    let repository = TestRepository::publish(&image);
    let flat = repository.flat(&image);
    let made: Vec<String> = flat.paths().into_iter().filter(|path| path.starts_with(".singularity.d/env/")).collect();
    assert!(!made.is_empty());
    made.iter().for_each(|path| drop(fs::remove_file(object_of(&repository, &flat.text(path)))));
    // Markers of nested catalogs, which every tree has.
    fs::remove_file(object_of(&repository, "")).unwrap();
    fs::remove_file(object_of(&repository, &record(&repository, &image))).unwrap();
    repository.convert(&image, NAME, &[]).expect_code(0);
    assert_good(&repository);
}

pub(super) fn record(repository: &TestRepository, image: &TestImage) -> String {
    let path = layer_path(image, 0).replace("layerfs", ".metadata/strata.json");
    String::from_utf8(repository.reader().read(&path)).unwrap()
}

#[test]
fn tree_whose_objects_cannot_be_restored_is_replaced() {
    let repository = TestRepository::publish(&image());
    let object = object_of(&repository, &text("shared"));
    fs::remove_file(&object).unwrap();
    let before = repository.reader().catalog_hashes();
    // From now on, the same content results in a different object.
    repository.set("compression = \"none\"");
    repository.convert(&image(), NAME, &[]).expect_code(0);
    let after = repository.reader().catalog_hashes();
    for root in [layer_path(&image(), 0), chain_path(&image(), 2), flat_path(&image())] {
        assert_ne!(before[&format!("/{root}")], after[&format!("/{root}")]);
        repository.run(["check", "--quick", &format!("/{root}")]).expect_code(0);
    }
    assert!(!object.exists());
    assert_eq!(repository.flat(&image()).text("shared"), text("shared"));
    // The object stays missing in the previous revision.
    fs::write(&object, Encoder::new(Compression::Balanced).encode(text("shared").as_bytes())).unwrap();
}

#[test]
fn trees_published_from_another_repository_directory_are_checked() {
    let repository = TestRepository::publish(&image());
    forget(&repository);
    // The directory of the object does not change.
    fs::write(object_of(&repository, &text("shared")), "").unwrap();
    repository.convert(&sharing(), OTHER, &[]).expect_code(0);
    assert_good(&repository);
}

fn epoch(repository: &TestRepository) -> i64 {
    let state = Connection::open(repository.directory().join("state/state.db")).unwrap();
    state.query_row("SELECT epoch FROM store", [], |row| row.get(0)).unwrap()
}

#[test]
fn trees_published_from_this_directory_are_not_checked_until_objects_are_collected() {
    let repository = TestRepository::publish(&image());
    let before = epoch(&repository);
    repository.convert(&sharing(), OTHER, &[]).expect_code(0);
    repository.convert(&image(), NAME, &[]).expect_code(0);
    assert_eq!(epoch(&repository), before, "no other program has changed anything");
    // The damage is not found, because objects are not checked while no program can have deleted any.
    let object = object_of(&repository, &text("shared"));
    let bytes = fs::read(&object).unwrap();
    fs::write(&object, "").unwrap();
    assert_eq!(layers_read(repository.convert(&image(), NAME, &["--json"])), 0);
    // A collection by any program changes the directory of each deleted object.
    let collected = repository.storage().join("data/00/00000000000000000000000000000000000000");
    fs::write(&collected, "nothing refers to this").unwrap();
    fs::remove_file(&collected).unwrap();
    assert_eq!(layers_read(repository.convert(&image(), NAME, &["--json"])), 1);
    assert_eq!(epoch(&repository), before + 1);
    assert_eq!(fs::read(&object).unwrap(), bytes);
}

#[test]
fn checks_of_published_trees_are_remembered() {
    let repository = TestRepository::publish(&image());
    forget(&repository);
    repository.convert(&sharing(), OTHER, &[]).expect_code(0);
    let state = Connection::open(repository.directory().join("state/state.db")).unwrap();
    let whole = |path: String| -> bool {
        let sql = "SELECT EXISTS (SELECT 1 FROM whole JOIN store USING (epoch) WHERE path = ?)";
        state.query_row(sql, [format!("/{path}")], |row| row.get(0)).unwrap()
    };
    for path in [layer_path(&sharing(), 0), layer_path(&sharing(), 1), flat_path(&sharing())] {
        assert!(whole(path.clone()), "{path}");
    }
    assert!(!whole(layer_path(&image(), 1)), "the new image does not need it");
}
