//! The message about a missing or damaged file that a run needs names the file and the repair, and the repair works.

use std::fs;
use std::path::{Path, PathBuf};

use strata::object::{Compression, Encoder, ObjectHash, ObjectKind};

use super::objects::{assert_good, catalogs_of, cut, damage, object_of, record};
use super::{OTHER, forget};
use crate::support::{NAME, TestImage, TestLayer, TestRepository, chain_path, flat_path, layer_path};

/// Adds enough files for several catalogs, with few objects.
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

/// Returns a repository whose trees have nested catalogs.
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
fn damage_of_the_same_length_stays_without_force_and_is_not_reported_as_repaired() {
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
fn missing_catalog_of_a_tree_is_an_error_that_names_the_repair() {
    for is_remembered in [true, false] {
        for root in roots() {
            let repository = repository();
            let catalogs: Vec<PathBuf> = catalogs_of(&repository, &root);
            // Damages the catalogs one by one: the root of the tree and those below it.
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
fn damaged_root_catalog_of_a_tree_is_an_error_that_names_the_repair() {
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
fn missing_catalog_above_the_trees_is_an_error_that_names_the_repair() {
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
fn tree_with_a_missing_catalog_that_cannot_be_rebuilt_is_replaced_by_force() {
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
        // The object stays missing in the previous revision.
        catalogs.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
}

/// Returns the object that the field `letter` of the manifest names.
fn front_object(repository: &TestRepository, letter: char) -> PathBuf {
    let manifest = repository.manifest_bytes();
    let fields = String::from_utf8_lossy(&manifest);
    let hash = fields.lines().find_map(|line| line.strip_prefix(letter)).unwrap().to_owned();
    repository.storage().join(format!("data/{}/{}{letter}", &hash[..2], &hash[2..]))
}

#[test]
fn missing_certificate_and_meta_info_are_written_again_if_their_bytes_are_known() {
    for letter in ['X', 'M'] {
        for spoil in SPOILERS {
            for options in [&[][..], &["--force"]] {
                let repository = TestRepository::publish(&image());
                let object = front_object(&repository, letter);
                let bytes = fs::read(&object).unwrap();
                spoil(&object);
                repository.convert(&sharing(), OTHER, options).expect_code(0);
                assert_eq!(fs::read(&object).unwrap(), bytes, "{letter} {options:?}");
                assert_good(&repository);
            }
        }
    }
}

/// Asserts that converting an image under a new name fails with an error that contains all of `words`.
#[track_caller]
fn assert_not_published(repository: &TestRepository, image: &TestImage, options: &[&str], words: &[&str]) {
    let before = repository.manifest_bytes();
    let run = repository.convert(image, "registry.example.org/new:1", options).expect_code(1);
    for word in words {
        assert!(run.stderr().contains(word), "{word}: {}", run.stderr());
    }
    assert_eq!(repository.manifest_bytes(), before);
}

#[test]
fn missing_tag_database_is_an_error_that_names_the_repair() {
    for spoil in SPOILERS {
        let repository = TestRepository::publish(&image());
        let object = front_object(&repository, 'H');
        let bytes = fs::read(&object).unwrap();
        spoil(&object);
        let name = object.strip_prefix(repository.storage()).unwrap().to_str().unwrap();
        let words = [name, "tag database", "copy the object from a replica or a backup"];
        assert_not_published(&repository, &sharing(), &["--force"], &words);
        fs::write(&object, bytes).unwrap();
    }
}

#[test]
fn damaged_log_of_references_is_an_error_that_names_the_repair() {
    for spoil in [cut, |path: &Path| fs::write(path, "no database").unwrap()] {
        let repository = TestRepository::publish(&image());
        let log = repository.storage().join(".cvmfsreflog");
        let bytes = fs::read(&log).unwrap();
        spoil(&log);
        let words = ["reflog", "'.cvmfsreflog' from a backup", "cvmfs_server check -r"];
        assert_not_published(&repository, &sharing(), &["--force"], &words);
        fs::write(&log, bytes).unwrap();
    }
}

/// Files of podman's store that every publishing run reads.
const LISTS: [&str; 4] = [
    "overlay-images/images.json",
    "overlay-images/images.lock",
    "overlay-layers/layers.json",
    "overlay-layers/layers.lock",
];

/// Returns the object of a list or lock of podman's store.
fn list_object(repository: &TestRepository, file: &str) -> PathBuf {
    let content = repository.reader().read(&format!("podmanStore/{file}"));
    let changes = file.ends_with(".json");
    let mut encoder = if changes { Encoder::of_databases() } else { Encoder::new(Compression::Balanced) };
    let stored = encoder.encode(&content).to_vec();
    let path = repository.storage().join(ObjectHash::of(&stored).path(ObjectKind::File));
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// Returns the ID and the names of each image in podman's list, in order.
fn listed(repository: &TestRepository) -> Vec<String> {
    let list = repository.json("podmanStore/overlay-images/images.json");
    let mut images: Vec<String> =
        list.as_array().unwrap().iter().map(|image| format!("{} {}", image["id"], image["names"])).collect();
    images.sort();
    images
}

#[test]
fn lists_of_podmans_store_are_rebuilt_by_force() {
    let unnamed = TestImage::new().layer(|layer| layer.file("former", "text"));
    for lost in [&LISTS[..1], &LISTS[1..2], &LISTS[2..3], &LISTS[3..], &LISTS] {
        for spoil in SPOILERS {
            let repository = TestRepository::publish(&unnamed);
            repository.convert(&image(), NAME, &[]).expect_code(0);
            repository.convert(&sharing(), OTHER, &[]).expect_code(0);
            let before = listed(&repository);
            assert_eq!(before.len(), 3);
            let objects: Vec<(PathBuf, Vec<u8>)> = lost
                .iter()
                .map(|file| list_object(&repository, file))
                .map(|object| (object.clone(), fs::read(object).unwrap()))
                .collect();
            objects.iter().for_each(|(object, _)| spoil(object));
            let next = TestImage::new().layer(|layer| layer.file("next", "text"));
            assert_not_published(&repository, &next, &[], &[&lost[0][..14], "strata convert --force"]);
            repository.convert(&image(), NAME, &["--force"]).expect_code(0);
            assert_eq!(listed(&repository), before, "{lost:?}");
            repository.run(["check", "/podmanStore"]).expect_code(0);
            // The objects stay missing in the previous revision.
            objects.iter().for_each(|(object, bytes)| fs::write(object, bytes).unwrap());
            repository.run(["verify", &repository.source(&sharing()), "--name", OTHER]).expect_code(0);
            repository.convert(&next, "registry.example.org/next:1", &[]).expect_code(0);
        }
    }
}

#[test]
fn missing_lists_of_losses_and_candidates_do_not_prevent_publishing() {
    let lossy = TestImage::new().layer(|layer| layer.file("a", "text").xattr("user.long", "v".repeat(256)));
    let repository = TestRepository::new();
    repository.convert(&lossy, NAME, &[]).expect_code(0);
    repository.convert(&lossy, OTHER, &[]).expect_code(0);
    let losses = repository.losses();
    repository.convert(&image(), OTHER, &[]).expect_code(0);
    for path in [format!(".metadata/{NAME}/losses.json"), ".metadata/candidates.json".to_owned()] {
        let content = String::from_utf8(repository.reader().read(&path)).unwrap();
        remove(&object_of(&repository, &content));
    }
    repository.convert(&lossy, NAME, &["--force"]).expect_code(0);
    repository.convert(&sharing(), OTHER, &["--force"]).expect_code(0);
    assert_eq!(repository.losses(), losses);
    repository.run(["check", "--quick"]).expect_code(0);
}
