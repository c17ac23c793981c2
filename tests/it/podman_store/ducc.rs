//! Stores that DUCC has written.

use serde_json::{Value, json};

use super::{IMAGES, LAYERS, OVERLAY, entries, entry, hex, image, is_nothing, list, sha256};
use crate::support::{Foreign, NAME, TestImage, TestRepository, publish_foreign};

/// A store as DUCC 2.12 writes it: a row and a directory for each layer, and manifests that are links.
#[derive(Default)]
struct DuccStore {
    images: Vec<Value>,
    layers: Vec<Value>,
    files: Vec<(String, Foreign)>,
}

fn link_id(layer: &str) -> String {
    sha256(layer).to_uppercase().replace(['0', '1', '8', '9'], "Q").chars().take(26).collect()
}

impl DuccStore {
    fn file(&mut self, path: String, text: impl Into<Vec<u8>>) {
        self.files.push((path, Foreign::File(text.into())));
    }

    fn link(&mut self, path: String, target: String) {
        self.files.push((path, Foreign::Link(target)));
    }

    /// Adds an image whose public name is `published`.
    fn add(&mut self, image: &TestImage, names: &[&str], published: &str) {
        let mut below: Vec<String> = Vec::new();
        for (diff, blob) in image.diff_ids().iter().zip(image.layer_digests()) {
            let (id, blob) = (hex(diff), hex(&blob).to_owned());
            let link = link_id(id);
            self.link(format!("{OVERLAY}/{id}/diff"), format!("../../../.layers/{}/{blob}/layerfs", &blob[..2]));
            self.file(format!("{OVERLAY}/{id}/link"), link.clone());
            self.link(format!("{OVERLAY}/l/{link}"), format!("../{id}/diff"));
            let mut row = json!({
                "id": id, "created": "2021-01-01T00:00:00.5Z", "compressed-diff-digest": format!("sha256:{blob}"),
                "compressed-size": 5, "diff-digest": diff, "diff-size": 10,
            });
            if let Some(parent) = below.last() {
                row["parent"] = json!(parent);
                let lower: Vec<String> = below.iter().rev().map(|layer| format!("l/{}", link_id(layer))).collect();
                self.file(format!("{OVERLAY}/{id}/lower"), lower.join(":"));
            }
            self.layers.push(row);
            below.push(id.to_owned());
        }
        let config = image.config_digest();
        let directory = format!("{IMAGES}/{}", hex(&config));
        self.link(format!("{directory}/manifest"), format!("../../../.metadata/{published}/manifest.json"));
        self.file(super::document(image, &config), image.config());
        let layer = below.last().unwrap();
        let created = "2021-01-01T00:00:00Z";
        self.images.push(json!({"id": hex(&config), "names": names, "layer": layer, "created": created}));
    }

    fn publish(mut self, repository: &TestRepository) {
        let lists = [("overlay-images", "images", &self.images), ("overlay-layers", "layers", &self.layers)];
        let lists = lists.map(|(directory, name, list)| (format!("podmanStore/{directory}/{name}"), pretty(list)));
        for (path, text) in lists {
            self.file(format!("{path}.json"), text);
            self.file(format!("{path}.lock"), "");
        }
        publish_foreign(repository, self.files);
    }
}

fn pretty(list: &[Value]) -> String {
    serde_json::to_string_pretty(list).unwrap()
}

/// Creates a repository with these images and without a store.
fn repository(images: &[(&str, &TestImage)]) -> TestRepository {
    let repository = TestRepository::new();
    repository.convert_together(images, &["--skip-podman"]).expect_code(0);
    repository
}

fn findings(repository: &TestRepository, code: i32) -> String {
    repository.run(["check"]).expect_code(code).stdout()
}

#[test]
fn valid_entries_in_a_store_of_ducc_stay_unchanged() {
    let (old, new) = (image("old"), image("new"));
    let repository = repository(&[(NAME, &old)]);
    let mut store = DuccStore::default();
    store.add(&old, &[NAME], NAME);
    store.layers.extend(store.layers.clone());
    store.publish(&repository);
    findings(&repository, 0);
    let top = hex(&old.diff_ids()[1]).to_owned();
    let (before, images) = (repository.tree(OVERLAY), list(&repository, &format!("{IMAGES}/images.json")));
    assert!(is_nothing(&repository.convert(&old, NAME, &["--skip-podman"]).expect_code(0)));

    // The link to the old image's manifest would lead to that of the new image.
    let run = repository.convert(&new, NAME, &[]).expect_code(0);
    assert!(!run.stderr().contains("repairing"), "{}", run.stderr());
    let after = repository.tree(OVERLAY);
    for path in [format!("{top}/link"), format!("{top}/lower")] {
        assert_eq!(after.text(&path), before.text(&path));
    }
    assert_eq!(after.target(format!("{top}/diff")), before.target(format!("{top}/diff")));
    assert_eq!(entries(&repository), [entry(&old, &[]), entry(&new, &[NAME])]);
    let kept = &list(&repository, &format!("{IMAGES}/images.json"))[0];
    assert_eq!((&kept["layer"], &kept["created"]), (&images[0]["layer"], &images[0]["created"]));
    let manifest = format!("{IMAGES}/{}/manifest", hex(&old.config_digest()));
    assert_eq!(repository.reader().read(&manifest), old.manifest());
    let rows = list(&repository, &format!("{LAYERS}/layers.json"));
    assert_eq!(rows.len(), 2 + 2);
    assert_eq!((&rows[1]["id"], &rows[1]["compressed-size"]), (&json!(top), &json!(5)));
    for lock in [format!("{IMAGES}/images.lock"), format!("{LAYERS}/layers.lock")] {
        assert_eq!(repository.reader().read(&lock).len(), 64);
    }
    findings(&repository, 0);
}

#[test]
fn faults_that_make_podman_fail_are_repaired_with_the_first_revision() {
    let [rowless, bare, twice, renamed] = ["rowless", "bare", "twice", "renamed"].map(image);
    let names = ["h.org/rowless:1", "h.org/bare:1", "h.org/twice:1", "h.org/renamed:1"];
    let images: Vec<(&str, &TestImage)> = names.into_iter().zip([&rowless, &bare, &twice, &renamed]).collect();
    let repository = repository(&images);
    let mut store = DuccStore::default();
    let digest = format!("h.org/renamed:{}", renamed.manifest_digest());
    store.add(&rowless, &["h.org/rowless:1", "h.org/twice:1"], names[0]);
    let rows = store.layers.len();
    store.add(&bare, &["h.org/bare:1"], names[1]);
    store.add(&twice, &["h.org/twice:1"], names[2]);
    store.add(&renamed, &["h.org/renamed:1", &digest, "h.org/Upper:1"], names[3]);
    // The common base layer stays, because another image still has a row for it.
    store.layers.remove(rows - 1);
    let config = super::document(&bare, &bare.config_digest());
    store.files.retain(|(path, _)| *path != config);
    store.publish(&repository);
    let printed = findings(&repository, 4);
    for path in [format!("/{LAYERS}/layers.json"), format!("/{IMAGES}/images.json"), format!("/{config}")] {
        assert!(printed.contains(&path), "{path} is not in: {printed}");
    }

    let new = image("new");
    let run = repository.convert(&new, NAME, &[]).expect_code(0);
    assert!(run.stderr().contains(&format!("{} is listed again", hex(&rowless.config_digest()))), "{run:?}");
    assert!(run.stderr().contains(&format!("{} is no longer listed", hex(&bare.config_digest()))), "{run:?}");
    let by_digest = format!("h.org/renamed@{}", renamed.manifest_digest());
    let expected = [
        entry(&rowless, &["h.org/rowless:1"]),
        entry(&twice, &["h.org/twice:1"]),
        entry(&renamed, &["h.org/renamed:1", &by_digest]),
        entry(&new, &[NAME]),
    ];
    assert_eq!(entries(&repository), expected);
    findings(&repository, 0);
    let [d1, d2] = super::diffs(&rowless);
    let listed = &list(&repository, &format!("{IMAGES}/images.json"))[0];
    assert_eq!(listed["layer"], sha256(&format!("{d1}+{d2}")));
    // An omitted image is added again when it is converted with podman.
    repository.convert(&bare, names[1], &[]).expect_code(0);
    assert!(entries(&repository).contains(&entry(&bare, &["h.org/bare:1"])));
    findings(&repository, 0);
}

#[test]
fn list_that_is_not_json_is_replaced_by_a_new_one() {
    let (old, new) = (image("old"), image("new"));
    let repository = repository(&[(NAME, &old)]);
    let mut store = DuccStore::default();
    store.add(&old, &[NAME], NAME);
    store.publish(&repository);
    let cut = Foreign::File(b"[{\"id\":".to_vec());
    publish_foreign(&repository, [(format!("{IMAGES}/images.json"), cut)]);
    assert!(findings(&repository, 4).contains(&format!("/{IMAGES}/images.json")));
    let run = repository.convert(&new, "h.org/new:1", &[]).expect_code(0);
    assert!(run.stderr().contains("images.json: expected a list in JSON"), "{run:?}");
    assert_eq!(entries(&repository), [entry(&new, &["h.org/new:1"])]);
    // Existing containers refer to the layers.
    assert_eq!(list(&repository, &format!("{LAYERS}/layers.json")).len(), 2 + 2);
    repository.convert(&old, NAME, &[]).expect_code(0);
    assert_eq!(entries(&repository), [entry(&new, &["h.org/new:1"]), entry(&old, &[NAME])]);
    findings(&repository, 0);
}
