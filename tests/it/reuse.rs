//! Reused layers and trees are verified like fetched ones: being published or stored is no proof that they are right.

mod objects;
mod repairs;

use std::fs;

use serde_json::Value;

use strata::object::Compression as ObjectCompression;
use strata::path::EntryPath;
use strata::publish::Edit;

use crate::support::{Compression, Damage, NAME, Run, TestImage, TestLayer, TestRepository, layer_path, publish_edits};

const OTHER: &str = "registry.example.org/other:1";
const LIAR: &str = "registry.example.org/liar:1";

/// Options of `convert` that reuse less and less of what is published.
const MODES: [&[&str]; 4] =
    [&[], &["--skip-layers"], &["--skip-layers", "--chains", "all"], &["--skip-flat", "--chains", "none"]];

fn one() -> TestImage {
    TestImage::new().layer(|layer| layer.file("a", "the one"))
}

fn other() -> TestImage {
    TestImage::new().layer(|layer| layer.file("a", "the other"))
}

fn top(layer: TestLayer) -> TestLayer {
    layer.file("top", "")
}

/// Deletes the state of a repository.
fn forget(repository: &TestRepository) {
    fs::remove_dir_all(repository.directory().join("state")).unwrap();
}

/// Returns the number of layers that were read of the only image.
#[track_caller]
fn layers_read(run: Run) -> Value {
    run.expect_code(0).json()["images"][0]["layers-read"].clone()
}

/// Asserts that an image is refused in every mode, with and without state, with an error that contains all
/// of `words`.
#[track_caller]
fn assert_refused(repository: &TestRepository, liar: &TestImage, words: &[&str]) {
    for is_remembered in [true, false] {
        for mode in MODES {
            if !is_remembered {
                forget(repository);
            }
            let source = repository.source(liar);
            repository.refuse([&["convert", &source, "--name", LIAR], mode].concat(), 1, words);
        }
    }
    assert!(!repository.has(LIAR));
}

/// Publishes images with the options of a mode, each under its own name.
fn published(images: &[&TestImage], mode: &[&str]) -> TestRepository {
    let repository = TestRepository::new();
    for (number, image) in images.iter().enumerate() {
        repository.convert(image, &format!("registry.example.org/honest:{number}"), mode).expect_code(0);
    }
    repository
}

#[test]
fn manifest_that_names_the_layer_of_another_image_is_refused_when_everything_is_published() {
    let liar = other().claim_to_be(&one());
    assert_eq!(
        liar.config_digest(),
        one().config_digest(),
        "both images have the same root file system, which is published"
    );
    for mode in MODES {
        let repository = published(&[&one(), &other()], mode);
        assert_refused(
            &repository,
            &liar,
            &[&other().layer_digests()[0], &one().diff_ids()[0], &other().diff_ids()[0]],
        );
    }
}

#[test]
fn manifest_that_names_the_layer_of_another_image_is_refused_above_a_published_chain() {
    let liar = other().layer(top).claim_to_be(&one().layer(top));
    for mode in MODES {
        let repository = published(&[&one(), &other()], mode);
        assert_refused(
            &repository,
            &liar,
            &[&other().layer_digests()[0], &one().diff_ids()[0], &other().diff_ids()[0]],
        );
    }
}

#[test]
fn manifest_with_another_size_for_a_published_layer_is_refused() {
    for liar in [one().damage(Damage::WrongSize(0)), one().layer(top).damage(Damage::WrongSize(0))] {
        for mode in MODES {
            assert_refused(&published(&[&one()], mode), &liar, &[&one().layer_digests()[0]]);
        }
    }
}

#[test]
fn layer_that_occurs_twice_is_compared_each_time() {
    let twice = |layer: TestLayer| layer.file("a", "the one");
    let honest = TestImage::new().layer(twice).layer(|layer| layer.file("b", ""));
    let liar = TestImage::new().layer(twice).layer(twice).claim_to_be(&honest);
    for mode in MODES {
        assert_refused(&published(&[&honest], mode), &liar, &[&honest.layer_digests()[0], &honest.diff_ids()[1]]);
    }
}

#[test]
fn layer_without_a_record_is_read_once() {
    let recompressed = || TestImage::new().layer(|layer| layer.file("a", "the one").compression(Compression::Zstd));
    let repository = published(&[&one()], &["--skip-layers"]);
    assert_eq!(recompressed().config_digest(), one().config_digest());
    let missing = recompressed().damage(Damage::Omitted(0));
    let digest = recompressed().layer_digests()[0].clone();
    let source = repository.source(&missing);
    repository.refuse(["convert", &source, "--name", OTHER, "--skip-layers"], 1, &[&digest]);
    assert_eq!(layers_read(repository.convert(&recompressed(), OTHER, &["--skip-layers", "--json"])), 1);
    assert_eq!(layers_read(repository.convert(&missing, OTHER, &["--skip-layers", "--json"])), 0);
    let above = recompressed().layer(top);
    let above = repository.convert(&above.damage(Damage::Omitted(0)), LIAR, &["--skip-layers", "--json"]);
    assert_eq!(layers_read(above), 1, "the layer on top");
    forget(&repository);
    repository.convert(&missing, OTHER, &["--skip-layers"]).expect_code(1);
    assert_eq!(layers_read(repository.convert(&recompressed(), OTHER, &["--skip-layers", "--json"])), 1);
}

#[test]
fn record_of_a_published_layer_is_enough_without_the_state() {
    let repository = published(&[&one()], &[]);
    forget(&repository);
    let above = one().layer(top).damage(Damage::Omitted(0));
    assert_eq!(layers_read(repository.convert(&above, OTHER, &["--json"])), 1);
}

#[test]
fn trees_noted_in_the_state_are_compared_with_the_image() {
    let lossy = || TestImage::new().layer(|layer| layer.file("a", "text").xattr("user.long", "v".repeat(256)));
    let repository = TestRepository::new();
    repository.convert(&lossy(), NAME, &["--strict"]).expect_code(1);
    let words = lossy().layer_digests();
    for mode in MODES {
        let source = repository.source(&lossy().damage(Damage::WrongSize(0)));
        repository.refuse([&["convert", &source, "--name", LIAR], mode].concat(), 1, &[&words[0]]);
        let liar = lossy().claim_to_be(&one());
        let source = repository.source(&liar);
        repository.refuse([&["convert", &source, "--name", LIAR], mode].concat(), 1, &[&words[0]]);
    }
    assert_eq!(layers_read(repository.convert(&lossy().damage(Damage::Omitted(0)), NAME, &["--json"])), 0);
}

/// Publishes a layer without a record, as another program would.
fn publish_foreign_layer(repository: &TestRepository, image: &TestImage, text: &str) {
    publish_edits(repository, |staging| {
        let path = |text: &str| EntryPath::normalise(text.as_bytes()).unwrap();
        let root = layer_path(image, 0);
        let directories = root.match_indices('/').map(|(at, _)| root[..at].to_owned()).take(2).chain([root.clone()]);
        let mut edits: Vec<_> = directories.map(|directory| (path(&directory), Edit::Catalog)).collect();
        let content = staging.put_file(ObjectCompression::Exact, text.as_bytes()).unwrap();
        edits.push((path(&format!("{root}/a")), Edit::File { size: text.len() as u64, content }));
        edits
    });
}

#[test]
fn layer_of_another_program_is_read_before_it_is_reused() {
    let repository = TestRepository::new();
    publish_foreign_layer(&repository, &one(), "the one");
    // The other trees are built from another blob with the same content.
    let recompressed = TestImage::new().layer(|layer| layer.file("a", "the one").compression(Compression::Zstd));
    repository.convert(&recompressed, NAME, &[]).expect_code(0);
    assert_eq!(recompressed.config_digest(), one().config_digest());
    let missing = one().damage(Damage::Omitted(0));
    let digest = one().layer_digests()[0].clone();
    let source = repository.source(&missing);
    repository.refuse(["convert", &source, "--name", OTHER], 1, &[&digest]);
    let source = repository.source(&one().damage(Damage::WrongSize(0)));
    repository.refuse(["convert", &source, "--name", OTHER], 1, &[&digest]);
    let source = repository.source(&one().claim_to_be(&other()));
    repository.refuse(["convert", &source, "--name", OTHER], 1, &[&digest]);
    assert_eq!(layers_read(repository.convert(&one(), OTHER, &["--json"])), 1);
    assert_eq!(layers_read(repository.convert(&missing, OTHER, &["--json"])), 0);
}
