//! The same images result in the same repository, for any number of threads and any memory limit.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::random::noise;
use crate::support::{Compression, NAME, Run, TestImage, TestRepository};

/// Returns an image with much parallel work: many small files, large files, several layers, losses, nested catalogs.
fn large_image() -> TestImage {
    TestImage::new()
        .layer(|layer| {
            (0..400_u32).fold(layer, |layer, n| layer.file(format!("d{}/f{n}", n % 7), noise(n.into(), n as usize)))
        })
        .layer(|layer| {
            layer.file("large", noise(1, 9 << 20)).file("zeros", vec![0; 17 << 20]).compression(Compression::Plain)
        })
        .layer(|layer| layer.file("same", noise(399, 399)).xattr("user.long", "v".repeat(256)).whiteout("d0"))
        .layer(|layer| (0..1100).fold(layer, |layer, n| layer.file(format!("many/{n}"), "")))
        .env("A", "b")
}

/// Converts an image with `SOURCE_DATE_EPOCH` set to `epoch`, and returns the report of `info --json`.
fn convert_at(repository: &TestRepository, source: &str, epoch: &str, options: &[&str]) -> Value {
    let arguments = [&["convert", source, "--name", NAME], options].concat();
    Run::of(repository.command(arguments).env("SOURCE_DATE_EPOCH", epoch)).expect_code(0);
    repository.run(["info", "--json"]).expect_code(0).json()
}

#[test]
fn threads_and_memory_do_not_affect_what_is_published() {
    let settings = TestRepository::with_settings("[catalog]\nentries = 1000");
    let source = settings.source(&large_image());
    let mut results = Vec::new();
    for options in [&["--threads", "1"][..], &["--threads", "2"], &["--threads", "7", "--memory", "1MiB"]] {
        let repository = settings.copy();
        let info = convert_at(&repository, &source, "1700000000", options);
        let manifest = repository.manifest_bytes();
        let signed_part = manifest.split(|&byte| byte == b'-').next().unwrap().to_vec();
        results.push((info["root-catalog"].clone(), repository.objects(), signed_part));
    }
    assert!(results[0].1.len() > 400);
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[test]
fn result_of_two_images_in_one_command_does_not_depend_on_threads() {
    let template = TestRepository::new();
    let directory = template.beside("layout");
    let image =
        |word: &str| TestImage::new().layer(|layer| layer.file("shared", "s")).layer(|layer| layer.file(word, ""));
    image("a").write_oci_layout(&directory, "h.example.org/a:1");
    image("b").write_oci_layout(&directory, "h.example.org/b:1");
    let sources = ["a", "b"].map(|name| format!("oci:{}:h.example.org/{name}:1", directory.display()));
    let objects = ["1", "2"].map(|threads| {
        let repository = template.copy();
        let mut command = repository.command(["convert", &sources[0], &sources[1], "--threads", threads]);
        Run::of(command.env("SOURCE_DATE_EPOCH", "1700000000")).expect_code(0);
        repository.objects()
    });
    assert_eq!(objects[0], objects[1]);
}

#[test]
fn trees_of_images_do_not_depend_on_the_time_or_the_repository() {
    let image = large_image();
    let (one, other) = (TestRepository::new(), TestRepository::new());
    convert_at(&one, &one.source(&image), "1700000000", &["--chains", "all"]);
    other
        .convert(&TestImage::new().layer(|layer| layer.file("first", "")), "h.example.org/first:1", &[])
        .expect_code(0);
    other.convert(&image, NAME, &["--chains", "all"]).expect_code(0);
    let (catalogs, others) = (catalogs_of_trees(&one), catalogs_of_trees(&other));
    assert!(catalogs.len() >= 9, "{catalogs:?}");
    for (mountpoint, hash) in catalogs {
        assert_eq!(others.get(&mountpoint), Some(&hash), "{mountpoint}");
    }
}

#[test]
fn source_date_epoch_sets_times_that_strata_invents() {
    let repository = TestRepository::new();
    let source = repository.source(&TestImage::new().layer(|layer| layer.file("a", "")));
    convert_at(&repository, &source, "4000000000", &["--accept-clock"]);
    assert_eq!(repository.reader().field('T'), Some("4000000000"));
    assert_eq!(repository.tree(NAME).get("").mtime, (4_000_000_000, 0));
    let run = Run::of(repository.command(["convert", &source, "--name", NAME]).env("SOURCE_DATE_EPOCH", "noon"));
    assert!(run.stderr().contains("noon"), "{}", run.stderr());
    run.expect_code(1);
}

#[test]
fn time_of_a_revision_never_goes_back() {
    let repository = TestRepository::new();
    let before: i64 = repository.reader().field('T').unwrap().parse().unwrap();
    let source = repository.source(&TestImage::new().layer(|layer| layer.file("a", "")));
    convert_at(&repository, &source, "1000", &[]);
    assert_eq!(repository.reader().field('T'), Some(before.to_string().as_str()));
}

/// Returns the hashes of all catalogs in the trees of images, by mountpoint.
fn catalogs_of_trees(repository: &TestRepository) -> BTreeMap<String, String> {
    let mut catalogs = repository.reader().catalog_hashes();
    catalogs.retain(|mountpoint, _| {
        let depth = mountpoint.split('/').skip(1).count();
        let is_tree =
            [".layers", ".chains", ".flat"].iter().any(|top| mountpoint[1.min(mountpoint.len())..].starts_with(top));
        is_tree && depth >= 3
    });
    catalogs
}
