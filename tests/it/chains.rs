//! Published layers and chains are neither fetched nor read again, and the result is the same as if they were fetched.

use crate::support::{Damage, NAME, TestImage, TestLayer, TestRepository, chain_path, flat_path, layer_path};

const OTHER: &str = "registry.example.org/other:1";

/// Returns an image of two layers with all properties that the published form of a layer (for overlay mounts) does not fully describe.
fn base() -> TestImage {
    TestImage::new()
        .layer(|layer| {
            let layer = layer.dir("d").mode(0o1777).xattr("user.a", "b").file("d/a", "lower").mode(0o4755).owner(5, 6);
            let layer = layer.file("d/gone", "").file("replaced/old", "").file("o/old", "").symlink("l", "d");
            layer.hardlink("d/same", "d/a").fifo("pipe").file("m/.cvmfscatalog", "x").file("m/f", "")
        })
        .layer(|layer| {
            // Directories without an entry, hard links into the lower layer, whiteouts, opaque directories.
            let layer =
                layer.file("d/new", "").hardlink("d/link", "d/a").hardlink("far/link", "d/a").whiteout("d/gone");
            let layer = layer.whiteout("replaced").file("replaced/new", "").opaque("o").file("o/new", "");
            layer.whiteout("never").file(b"r\xff\n", "").mtime(-5, 7)
        })
}

fn upper(layer: TestLayer) -> TestLayer {
    layer.file("d/c", "top").hardlink("d/top", "d/new").whiteout("pipe").file("m/g", "").hardlink("d/third", "d/same")
}

fn without_blobs(image: TestImage, layers: std::ops::Range<usize>) -> TestImage {
    layers.fold(image, |image, layer| image.damage(Damage::Omitted(layer)))
}

/// Asserts that the catalogs of a tree are identical in two repositories.
#[track_caller]
fn assert_same_catalogs(one: &TestRepository, other: &TestRepository, root: &str) {
    let catalogs = |repository: &TestRepository| {
        let mut catalogs = repository.reader().catalog_hashes();
        catalogs.retain(|mountpoint, _| mountpoint.starts_with(&format!("/{root}")));
        catalogs
    };
    assert_eq!(one.tree(root), other.tree(root));
    assert!(!catalogs(one).is_empty());
    assert_eq!(catalogs(one), catalogs(other));
}

#[test]
fn image_with_one_more_layer_starts_from_the_published_chain() {
    let whole = base().layer(upper);
    let repository = TestRepository::publish(&base());
    let image = without_blobs(whole.clone(), 0..2);
    let json = repository.convert(&image, OTHER, &["--json"]).expect_code(0).json();
    assert_eq!(json["images"][0]["layers-read"], 1);
    let fresh = TestRepository::publish(&whole);
    assert_same_catalogs(&repository, &fresh, &flat_path(&whole));
    assert_same_catalogs(&repository, &fresh, &chain_path(&whole, 3));
    assert_same_catalogs(&repository, &fresh, &layer_path(&whole, 2));
}

#[test]
fn published_layers_give_the_same_tree_as_their_blobs() {
    let other_config = base().layer(upper).env("CONFIG", "other");
    let repository = TestRepository::new();
    repository.convert(&base().layer(upper), NAME, &["--chains", "none"]).expect_code(0);
    let image = without_blobs(other_config.clone(), 0..3);
    let json = repository.convert(&image, OTHER, &["--json", "--chains", "all"]).expect_code(0).json();
    assert_eq!(json["images"][0]["layers-read"], 0);
    let fresh = TestRepository::new();
    fresh.convert(&other_config, OTHER, &["--chains", "all"]).expect_code(0);
    assert_same_catalogs(&repository, &fresh, &flat_path(&other_config));
    for length in 1..=3 {
        assert_same_catalogs(&repository, &fresh, &chain_path(&other_config, length));
    }
}

#[test]
fn published_layer_is_applied_above_other_layers_too() {
    let shared = |layer: TestLayer| layer.file("d/f", "").whiteout("d/old").file("e/g", "");
    let parents = |mode: u32| move |layer: TestLayer| layer.dir("d").mode(mode).file("d/old", "").file("d/kept", "");
    let second = TestImage::new().layer(parents(0o700)).layer(shared);
    let repository = TestRepository::new();
    let first = TestImage::new().layer(parents(0o1777)).layer(shared);
    repository.convert(&first, NAME, &["--chains", "none"]).expect_code(0);
    repository.convert(&without_blobs(second.clone(), 1..2), OTHER, &[]).expect_code(0);
    assert_eq!(repository.flat(&second).get("d").mode & 0o7777, 0o700, "the layer never named the directory");
    assert_eq!(repository.flat(&second), TestRepository::publish(&second).flat(&second));
}

#[test]
fn intermediate_chains_are_the_base_of_images_that_branch_off() {
    let branch = TestImage::new().layer(|layer| layer.file("a", "")).layer(|layer| layer.file("branch", ""));
    let trunk = TestImage::new().layer(|layer| layer.file("a", "")).layer(|layer| layer.file("trunk", ""));
    let repository = TestRepository::new();
    repository.convert(&trunk, NAME, &["--chains", "all", "--skip-layers"]).expect_code(0);
    let image = without_blobs(branch.clone(), 0..1);
    repository.convert(&image, OTHER, &["--skip-layers"]).expect_code(0);
    assert_eq!(repository.chain(&branch).paths(), ["", "a", "branch"]);
}

#[test]
fn chain_keeps_hard_links() {
    let lower = |layer: TestLayer| layer.file("a/x", "text").hardlink("b/y", "a/x");
    let link = |layer: TestLayer| layer.hardlink("a/z", "b/y");
    let image = TestImage::new().layer(lower).layer(link);
    let repository = TestRepository::publish(&TestImage::new().layer(lower));
    repository.convert(&image, OTHER, &[]).expect_code(0);
    assert_same_catalogs(&repository, &TestRepository::publish(&image), &flat_path(&image));
}

#[test]
fn missing_blob_of_an_unpublished_layer_is_named_and_nothing_is_published() {
    let image = base().layer(upper).damage(Damage::Omitted(1));
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("other", "")));
    let before = repository.front_page();
    let run = repository.convert(&image, OTHER, &[]).expect_code(1);
    assert!(run.stderr().contains(&image.layer_digests()[1]), "{}", run.stderr());
    assert_eq!(repository.front_page(), before);
}

#[test]
fn record_of_a_layer_does_not_stand_in_for_another_diff_id() {
    let image = base().damage(Damage::WrongDiffId(1));
    let repository = TestRepository::publish(&base());
    let before = repository.manifest_bytes();
    let run = repository.convert(&image, OTHER, &[]).expect_code(1);
    assert!(run.stderr().contains(&base().diff_ids()[1]), "{}", run.stderr());
    assert_eq!(repository.manifest_bytes(), before);
}

#[test]
fn state_may_be_deleted_between_two_runs() {
    let whole = base().layer(upper);
    let repository = TestRepository::publish(&base());
    std::fs::remove_dir_all(repository.directory().join("state")).unwrap();
    repository.convert(&whole, OTHER, &[]).expect_code(0);
    assert_same_catalogs(&repository, &TestRepository::publish(&whole), &flat_path(&whole));
}

#[test]
fn trees_that_a_strict_run_stored_serve_the_next_run() {
    let lossy = TestImage::new().layer(|layer| layer.file("a", "text").xattr("user.long", "v".repeat(256)));
    let repository = TestRepository::new();
    repository.convert(&lossy, NAME, &["--strict"]).expect_code(1);
    let json = repository.convert(&lossy.clone().damage(Damage::Omitted(0)), NAME, &["--json"]).expect_code(0).json();
    assert_eq!(json["images"][0]["layers-read"], 0);
    assert_same_catalogs(&repository, &TestRepository::publish(&lossy), &flat_path(&lossy));
    assert_eq!(repository.losses(), TestRepository::publish(&lossy).losses());
}

#[test]
fn stored_trees_are_used_only_while_all_their_objects_exist() {
    let lossy = TestImage::new().layer(|layer| layer.file("a", "some text").xattr("user.long", "v".repeat(256)));
    let repository = TestRepository::new();
    let before = repository.objects();
    repository.convert(&lossy, NAME, &["--strict"]).expect_code(1);
    let objects = repository.objects().into_keys().filter(|path| !before.contains_key(path));
    let files: Vec<String> = objects.filter(|path| path.ends_with(|end: char| end.is_ascii_hexdigit())).collect();
    assert!(!files.is_empty());
    files.iter().for_each(|path| std::fs::remove_file(repository.storage().join(path)).unwrap());
    let json = repository.convert(&lossy, NAME, &["--json"]).expect_code(0).json();
    assert_eq!(json["images"][0]["layers-read"], 1);
    assert_eq!(repository.flat(&lossy).text("a"), "some text");
}
