//! Catalogs are limited in size, begin at the documented paths, and are written again only if their content changed.

use std::collections::BTreeSet;

use crate::strict::Reader;
use crate::support::{Compression, NAME, TestImage, TestLayer, TestRepository, chain_path, flat_path, layer_path};

/// Maximum number of entries of a catalog, except for a single larger directory.
const MAXIMUM: usize = 100_000;

/// Adds `count` empty files to a directory.
fn files(layer: TestLayer, directory: &str, count: usize) -> TestLayer {
    (0..count).fold(layer, |layer, number| layer.file(format!("{directory}/{number}"), ""))
}

/// Returns the catalogs at and below a path: their paths relative to it, and their numbers of rows.
fn catalogs_below(reader: &Reader, root: &str) -> Vec<(String, usize)> {
    let all = reader.catalogs().into_iter();
    let below =
        all.filter_map(|(mountpoint, rows)| Some((mountpoint.strip_prefix(&format!("/{root}"))?.to_owned(), rows)));
    below.collect()
}

#[test]
fn image_of_over_a_hundred_thousand_entries_is_split_and_a_huge_directory_is_published() {
    let image = TestImage::new().layer(|layer| {
        let layer = (0..11).fold(layer, |layer, number| files(layer, &format!("d{number:02}"), 10_000));
        files(layer, "huge", 120_001).compression(Compression::Plain)
    });
    let repository = TestRepository::new();
    repository.convert(&image, NAME, &["--skip-layers", "--chains", "none"]).expect_code(0);
    let reader = repository.reader();
    let catalogs = catalogs_below(&reader, &flat_path(&image));
    let huge = catalogs.iter().find(|(path, _)| path == "/huge").expect("the huge directory has a catalog of its own");
    assert_eq!(huge.1, 120_001 + 2, "its files, itself and its marker");
    assert!(catalogs.iter().all(|(path, rows)| path == "/huge" || *rows <= MAXIMUM), "{catalogs:?}");
    let rows: usize = catalogs.iter().map(|(_, rows)| rows).sum();
    assert!(rows > 230_000, "{catalogs:?}");
    assert_eq!(reader.list(&format!("{}/huge", flat_path(&image))).len(), 120_001);
    assert_eq!(reader.list(&format!("{}/d10", flat_path(&image))).len(), 10_000);
}

#[test]
fn size_of_catalogs_is_a_setting() {
    let image = TestImage::new().layer(|layer| {
        let layer = files(files(layer, "heavy", 1500), "medium", 1200);
        files(files(layer, "small", 900), "heavy/below", 1100)
    });
    let paths = |settings: &str| -> Vec<String> {
        let repository = TestRepository::with_settings(settings);
        repository.convert(&image, NAME, &[]).expect_code(0);
        catalogs_below(&repository.reader(), &chain_path(&image, 1)).into_iter().map(|(path, _)| path).collect()
    };
    assert_eq!(paths(""), [""]);
    assert_eq!(paths("[catalog]\nentries = 1000"), ["", "/heavy", "/heavy/below", "/medium"]);
}

#[test]
fn markers_are_hidden_in_images_and_listed_in_other_directories() {
    let image = TestImage::new().layer(|layer| files(files(layer, "a", 1200), "b", 1300));
    let repository = TestRepository::with_settings("[catalog]\nentries = 1000");
    repository.convert(&image, NAME, &[]).expect_code(0);
    let reader = repository.reader();
    let mut shown = BTreeSet::new();
    for (mountpoint, _) in reader.catalogs().iter().filter(|(mountpoint, _)| !mountpoint.is_empty()) {
        let marker = &reader.walk(&format!("{mountpoint}/.cvmfscatalog"))[&b""[..]];
        if !marker.hidden {
            shown.insert(mountpoint.clone());
        }
    }
    let prefix = |path: String| format!("/{}", &path[..path.find('/').unwrap() + 3]);
    let expected = [
        "/.chains".to_owned(),
        "/.flat".to_owned(),
        "/.layers".to_owned(),
        "/.metadata".to_owned(),
        "/.metadata/registry.example.org".to_owned(),
        "/podmanStore".to_owned(),
        "/podmanStore/overlay".to_owned(),
        "/podmanStore/overlay-images".to_owned(),
        "/podmanStore/overlay-layers".to_owned(),
        "/registry.example.org".to_owned(),
        prefix(flat_path(&image)),
        prefix(chain_path(&image, 1)),
        prefix(layer_path(&image, 0)),
    ];
    assert_eq!(shown, expected.into());
    assert!(reader.catalogs().len() > shown.len() + 4, "there are hidden ones, too");
}

#[test]
fn catalogs_of_other_images_are_not_written_again() {
    let image =
        |word: &str| TestImage::new().layer(|layer| layer.file("word", word)).layer(|layer| layer.file(word, ""));
    let repository = TestRepository::new();
    let words: Vec<String> = (0..30).map(|number| format!("word{number}")).collect();
    let images: Vec<(String, TestImage)> =
        words.iter().map(|word| (format!("h{}.example.org/a:{word}", word.len()), image(word))).collect();
    let named: Vec<(&str, &TestImage)> = images.iter().map(|(name, image)| (name.as_str(), image)).collect();
    repository.convert_together(&named, &[]).expect_code(0);
    let (before, objects) = (repository.reader().catalog_hashes(), repository.objects());

    let added = image("added");
    repository.convert(&added, "new.example.org/added:1", &[]).expect_code(0);
    let after = repository.reader().catalog_hashes();
    let changed: BTreeSet<&str> = before
        .iter()
        .filter(|(mountpoint, hash)| after[*mountpoint] != **hash)
        .map(|(mountpoint, _)| mountpoint.as_str())
        .collect();
    let is_above = |mountpoint: &str| mountpoint.split('/').count() <= 3 && !mountpoint.starts_with("/h");
    assert!(changed.iter().all(|mountpoint| is_above(mountpoint)), "{changed:?}");
    assert!(!changed.contains("/.metadata/h5.example.org"), "{changed:?}");
    let new = repository.objects().into_keys().filter(|path| path.ends_with('C') && !objects.contains_key(path));
    // Catalogs of two layers, the chain and the flat tree, those above them, the root, the host's directory and its metadata, and
    // podman's store.
    assert!(new.count() <= 4 + 3 + 4 + 1 + 3 + 4, "{changed:?}");
}

#[test]
fn counters_of_the_root_count_everything() {
    let image = TestImage::new().layer(|layer| layer.file("a", "12345").dir("d").symlink("l", "a").fifo("p"));
    let repository = TestRepository::publish(&image);
    let reader = repository.reader();
    let (counters, everything) = (reader.counters(), reader.walk_without_content(""));
    let total = |name: &str| counters[&format!("self_{name}")] + counters[&format!("subtree_{name}")];
    let count = |kind: u32| everything.values().filter(|entry| entry.mode & 0o170_000 == kind).count() as i64;
    assert_eq!(
        (total("regular"), total("symlink"), total("special")),
        (count(0o100_000), count(0o120_000), count(0o010_000))
    );
    assert_eq!(total("dir"), count(0o040_000) + total("nested"), "transition points count in both catalogs");
    assert_eq!(total("nested") + 1, reader.catalogs().len() as i64);
}
