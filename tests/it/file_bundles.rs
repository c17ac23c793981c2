//! Descriptions of file bundles in images are published as they are. Those that CVMFS clients obey are listed as losses.

use std::collections::BTreeMap;

use crate::support::{NAME, TestImage, TestLayer, TestRepository};

const DESCRIPTION: &str =
    r#"{"name": "CVMFS_BUNDLE", "version": "1.0.0", "encoding": "UTF-8", "dependencies": ["/lib/b.so"]}"#;

/// Publishes an image, and fails unless its losses are the descriptions at these paths, and `verify` expects the same.
#[track_caller]
fn assert_listed(image: &TestImage, paths: &[&str], options: &[&str]) {
    let repository = TestRepository::new();
    repository.convert(image, NAME, options).expect_code(0);
    let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
    let losses = [("file-bundle".to_owned(), (paths.len() as u64, paths.clone()))];
    let losses: BTreeMap<_, _> = losses.into_iter().filter(|_| !paths.is_empty()).collect();
    assert_eq!(repository.losses(), losses);
    let source = repository.source(image);
    let verify = repository.run(["verify", &source, "--name", NAME]).expect_code(0);
    assert!(verify.stdout().contains("no findings"), "{verify:?}");
    repository.run(["check"]).expect_code(0);
}

fn library(layer: TestLayer) -> TestLayer {
    layer.file("lib/a.so", "a").file("lib/b.so", "b")
}

#[test]
fn description_beside_its_trigger_is_published_and_a_loss_that_strict_refuses() {
    let image = TestImage::new().layer(|layer| library(layer).file("lib/.cvmfsbundle-a.so", DESCRIPTION));
    assert_listed(&image, &["lib/.cvmfsbundle-a.so"], &[]);
    let repository = TestRepository::publish(&image);
    assert_eq!(repository.flat(&image).text("lib/.cvmfsbundle-a.so"), DESCRIPTION);
    assert_eq!(repository.layer(&image, 0).text("lib/.cvmfsbundle-a.so"), DESCRIPTION);
    let run = TestRepository::new().convert(&image, NAME, &["--strict"]).expect_code(1);
    assert!(run.stderr().contains("1 x file-bundle"), "{run:?}");
}

#[test]
fn description_is_found_however_image_and_layers_are_stored() {
    let comment = format!("#%CVMFS_BUNDLE version=1 encoding=UTF-8\n{DESCRIPTION}");
    let lower =
        TestImage::new().layer(|layer| layer.file("etc/.cvmfsbundle-x", comment.clone()).file(".cvmfsbundle-y", ""));
    let image = lower.layer(|layer| {
        layer.file("etc/x", "").file("y", "").file("z", DESCRIPTION).hardlink(".cvmfsbundle-y", "z").file("gone", "")
    });
    let image = image.layer(|layer| layer.file(".cvmfsbundle-gone", DESCRIPTION).whiteout("gone"));
    for options in [&[][..], &["--skip-layers"], &["--chains", "all"], &["--skip-flat", "--chains", "none"]] {
        assert_listed(&image, &[".cvmfsbundle-y", "etc/.cvmfsbundle-x"], options);
    }
}

#[test]
fn next_image_on_the_same_layers_has_the_same_losses() {
    let base = |image: TestImage| image.layer(|layer| library(layer).file("lib/.cvmfsbundle-a.so", DESCRIPTION));
    let repository = TestRepository::publish(&base(TestImage::new()));
    let next = base(TestImage::new()).layer(|layer| layer.file("b", "").file(".cvmfsbundle-b", DESCRIPTION));
    repository.convert(&next, NAME, &[]).expect_code(0);
    let both = vec!["lib/.cvmfsbundle-a.so".to_owned(), ".cvmfsbundle-b".to_owned()];
    assert_eq!(repository.losses()["file-bundle"], (2, both));
    let source = repository.source(&next);
    repository.run(["verify", &source, "--name", NAME]).expect_code(0);
}

#[test]
fn files_that_clients_do_not_obey_are_no_losses() {
    let many = format!(r#"{{"dependencies": ["{}"]}}"#, "x".repeat(1 << 20));
    let layers: [&dyn Fn(TestLayer) -> TestLayer; 9] = [
        // No trigger beside the description, or one that is no regular file.
        &|layer| library(layer).file(".cvmfsbundle-a.so", DESCRIPTION),
        &|layer| layer.dir("a").file(".cvmfsbundle-a", DESCRIPTION),
        &|layer| layer.file("b", "").symlink("a", "b").file(".cvmfsbundle-a", DESCRIPTION),
        // Other names.
        &|layer| layer.file("a", "").file(".cvmfsbundle.a", DESCRIPTION).file("cvmfsbundle-a", DESCRIPTION),
        &|layer| layer.file("a", "").file(".cvmfsbundle-", DESCRIPTION).file(".cvmfsbundles", DESCRIPTION),
        // No regular file.
        &|layer| layer.file("a", "").dir(".cvmfsbundle-a").file("b", DESCRIPTION).symlink(".cvmfsbundle-b", "b"),
        // Other content.
        &|layer| layer.file("a", "").file(".cvmfsbundle-a", "lib/b.so\n"),
        &|layer| layer.file("a", "").file(".cvmfsbundle-a", r#"{"dependencies": []}"#),
        &|layer| layer.file("a", "").file(".cvmfsbundle-a", many.clone()),
    ];
    for layer in layers {
        assert_listed(&TestImage::new().layer(layer), &[], &[]);
    }
}
