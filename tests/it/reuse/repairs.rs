//! What is lost or damaged and cannot be passed over is named, with what brings it back; and that does.

use std::fs;
use std::path::{Path, PathBuf};

use super::objects::{assert_good, catalogs_of, cut, damage, object_of, record};
use super::{OTHER, forget};
use crate::support::{NAME, TestImage, TestLayer, TestRepository, chain_path, flat_path, layer_path};

/// As many files as need several catalogs, and few objects.
fn shared(layer: TestLayer) -> TestLayer {
    (0..2400)
        .fold(layer, |layer, number| layer.file(format!("d{}/f{number}", number % 2), format!("text {}", number % 20)))
}

fn image() -> TestImage {
    TestImage::new().layer(shared).layer(|layer| layer.file("upper", "some more text"))
}

fn sharing() -> TestImage {
    image().layer(|layer| layer.file("top", ""))
}

/// A repository whose trees have nested catalogs of their own.
fn repository() -> TestRepository {
    let repository = TestRepository::with_settings("[catalog]\nentries = 1000");
    repository.convert(&image(), NAME, &[]).expect_code(0);
    repository
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

const SPOILERS: [fn(&Path); 3] = [remove, cut, damage];

fn roots() -> [String; 4] {
    [layer_path(&image(), 0), layer_path(&image(), 1), chain_path(&image(), 2), flat_path(&image())]
}

#[test]
fn damaged_and_missing_objects_are_repaired_by_force() {
    for spoil in SPOILERS {
        for is_remembered in [true, false] {
            let repository = repository();
            for content in ["text 7", "some more text", "", &record(&repository, &image())] {
                let object = object_of(&repository, content);
                if !fs::read(&object).unwrap().is_empty() {
                    spoil(&object);
                }
            }
            if !is_remembered {
                forget(&repository);
            }
            repository.convert(&image(), NAME, &["--force"]).expect_code(0);
            assert_good(&repository);
        }
    }
}

#[test]
fn force_repairs_in_every_mode() {
    for mode in [&[][..], &["--skip-layers"], &["--skip-flat", "--chains", "none"], &["--chains", "all"]] {
        let repository = TestRepository::new();
        repository.convert(&image(), NAME, mode).expect_code(0);
        damage(&object_of(&repository, "text 7"));
        repository.convert(&image(), NAME, &[mode, &["--force"]].concat()).expect_code(0);
        assert_good(&repository);
    }
}

#[test]
fn damage_of_the_same_length_stays_without_force_and_is_not_taken_for_repaired() {
    let repository = repository();
    let object = object_of(&repository, "text 7");
    let bytes = fs::read(&object).unwrap();
    damage(&object);
    repository.convert(&image(), NAME, &[]).expect_code(0);
    repository.run(["check"]).expect_code(4);
    repository.convert(&sharing(), OTHER, &["--force"]).expect_code(0);
    assert_eq!(fs::read(&object).unwrap(), bytes);
}

#[test]
fn damaged_and_missing_catalogs_of_trees_are_repaired_by_force() {
    for spoil in SPOILERS {
        for root in roots() {
            let repository = repository();
            let catalogs = catalogs_of(&repository, &root);
            assert!(catalogs.len() > 1 || root == roots()[1]);
            catalogs.iter().for_each(|catalog| spoil(catalog));
            repository.convert(&image(), NAME, &["--force"]).expect_code(0);
            assert_good(&repository);
        }
    }
}

#[test]
fn missing_catalog_of_a_tree_is_an_error_that_says_how_to_repair_it() {
    for is_remembered in [true, false] {
        for root in roots() {
            let repository = repository();
            let catalogs: Vec<PathBuf> = catalogs_of(&repository, &root);
            // One by one, the root of the tree and those below it.
            for catalog in catalogs {
                let bytes = fs::read(&catalog).unwrap();
                fs::remove_file(&catalog).unwrap();
                if !is_remembered {
                    forget(&repository);
                }
                let run = repository.convert(&image(), NAME, &[]).expect_code(1);
                let name = catalog.strip_prefix(repository.storage()).unwrap().to_str().unwrap();
                for word in [name, &root[..60], "strata convert --force"] {
                    assert!(run.stderr().contains(word), "{word}: {}", run.stderr());
                }
                fs::write(&catalog, bytes).unwrap();
            }
        }
    }
}

#[test]
fn damaged_root_catalog_of_a_tree_is_an_error_that_says_how_to_repair_it() {
    for root in [layer_path(&image(), 0), flat_path(&image())] {
        let repository = repository();
        let hash = repository.reader().catalog_hashes()[&format!("/{root}")].clone();
        damage(&repository.storage().join(format!("data/{}/{}C", &hash[..2], &hash[2..])));
        let run = repository.convert(&image(), OTHER, &[]).expect_code(1);
        assert!(run.stderr().contains("strata convert --force"), "{}", run.stderr());
        repository.convert(&image(), NAME, &["--force"]).expect_code(0);
    }
}

#[test]
fn missing_catalog_above_the_trees_is_an_error_that_says_how_to_repair_it() {
    for root in ["", ".layers", ".flat", &layer_path(&image(), 0)[..".layers/00".len()]] {
        let repository = repository();
        let hash = repository.reader().catalog_hashes()[&format!("/{root}").trim_end_matches('/').to_owned()].clone();
        let catalog = repository.storage().join(format!("data/{}/{}C", &hash[..2], &hash[2..]));
        let bytes = fs::read(&catalog).unwrap();
        fs::remove_file(&catalog).unwrap();
        let run = repository.convert(&sharing(), OTHER, &[]).expect_code(1);
        for word in [&hash[2..], "copy the object from a replica"] {
            assert!(run.stderr().contains(word), "{root}: {word}: {}", run.stderr());
        }
        fs::write(&catalog, bytes).unwrap();
    }
}

#[test]
fn tree_with_a_lost_catalog_that_cannot_be_made_again_is_replaced_by_force() {
    for root in roots() {
        let repository = repository();
        let catalogs: Vec<(PathBuf, Vec<u8>)> =
            catalogs_of(&repository, &root).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
        catalogs.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
        repository.set("[catalog]\nentries = 25000");
        repository.convert(&image(), NAME, &["--force"]).expect_code(0);
        roots().iter().for_each(|root| {
            repository.run(["check", "--quick", &format!("/{root}")]).expect_code(0);
        });
        assert_eq!(repository.flat(&image()).text("d1/f7"), "text 7");
        // The revision before has lost it for good.
        catalogs.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
}
