//! The store that podman reads: its content, and how a store of another program is continued.

mod ducc;
mod faults;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::{FQRN, NAME, Run, TestImage, TestRepository, write_oci_index};

const IMAGES: &str = "podmanStore/overlay-images";
const LAYERS: &str = "podmanStore/overlay-layers";
const OVERLAY: &str = "podmanStore/overlay";

fn image(word: &str) -> TestImage {
    TestImage::new().layer(|layer| layer.file("etc/base", "base")).layer(|layer| layer.file("word", word)).cmd([word])
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap()
}

fn sha256(text: &str) -> String {
    strata::image::Digest::of(text.as_bytes()).hex()
}

fn list(repository: &TestRepository, path: &str) -> Vec<Value> {
    repository.json(path).as_array().unwrap().clone()
}

/// Returns the ID and the names of each image in the list of images.
fn entries(repository: &TestRepository) -> Vec<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let names = |entry: &Value| entry["names"].as_array().unwrap().iter().map(text).collect();
    list(repository, &format!("{IMAGES}/images.json")).iter().map(|entry| (text(&entry["id"]), names(entry))).collect()
}

fn entry(image: &TestImage, names: &[&str]) -> (String, Vec<String>) {
    (hex(&image.config_digest()).to_owned(), names.iter().map(|name| (*name).to_owned()).collect())
}

/// Returns the two identifiers that replace the diff IDs of an image: one that all images share, and one of its own.
fn diffs(image: &TestImage) -> [String; 2] {
    ["1", hex(&image.config_digest())].map(|of| sha256(&format!("cvmfs-flat-layer:{of}")))
}

/// Returns the path of a document of an image.
fn document(image: &TestImage, key: &str) -> String {
    format!("{IMAGES}/{}/={}", hex(&image.config_digest()), STANDARD.encode(key))
}

fn is_nothing(run: &Run) -> bool {
    run.stdout().contains("nothing to do")
}

#[test]
fn image_and_its_entry_in_the_store_are_in_one_revision() {
    let image = image("x");
    let repository = TestRepository::publish(&image);
    assert_eq!(repository.reader().revision(), 2);
    let (config, manifest) = (image.config_digest(), image.manifest_digest());
    let [d1, d2] = diffs(&image);
    let top = sha256(&format!("{d1}+{d2}"));

    let tree = repository.tree("podmanStore");
    let link = tree.text(format!("overlay/{top}/link"));
    assert!(link.len() == 26 && link.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b)), "{link}");
    assert_eq!(tree.target(format!("overlay/l/{link}")), format!("../{top}/diff"));
    let target = format!("$(CVMFS_MOUNT_DIR:-/cvmfs)/{FQRN}/.flat/{}/{}", &hex(&config)[..2], hex(&config));
    assert_eq!(tree.target(format!("overlay/{top}/diff")), target);
    let directory = format!("overlay-images/{}", hex(&config));
    assert_eq!(repository.reader().read(&document(&image, &config)), image.config());
    assert_eq!(repository.reader().read(&document(&image, &format!("manifest-{manifest}"))), image.manifest());
    assert_eq!(tree.text(format!("{directory}/manifest")).as_bytes(), image.manifest());
    assert_eq!(repository.list(&format!("podmanStore/{directory}")).len(), 3);

    let images = list(&repository, &format!("{IMAGES}/images.json"));
    let key = format!("manifest-{manifest}");
    let expected = json!({
        "id": hex(&config), "digest": manifest, "names": [NAME], "layer": top, "metadata": "{}",
        "big-data-digests": {"manifest": manifest, &key: manifest, &config: config},
        "created": "2017-07-14T02:40:00Z",
    });
    assert_eq!(images, [expected]);
    let layers = list(&repository, &format!("{LAYERS}/layers.json"));
    let size = layers[1]["diff-size"].as_u64().unwrap();
    let (unknown, time) = ("1970-01-01T00:00:00Z", "2017-07-14T02:40:00Z");
    let expected = [
        json!({"id": d1, "created": unknown, "diff-digest": format!("sha256:{d1}"), "diff-size": 0}),
        json!({"id": top, "parent": d1, "created": time, "diff-digest": format!("sha256:{d2}"), "diff-size": size}),
    ];
    assert_eq!(layers, expected);
    assert!(!image.diff_ids().contains(&format!("sha256:{d1}")) && size > 0);
}

#[test]
fn lists_and_locks_are_files_that_podman_reads_once() {
    let repository = TestRepository::publish(&image("x"));
    let read = |path: String| String::from_utf8(repository.reader().read(&path)).unwrap();
    let locks = || [read(format!("{IMAGES}/images.lock")), read(format!("{LAYERS}/layers.lock"))];
    let before = locks();
    assert!(before.iter().all(|lock| lock.len() == 64), "{before:?}");
    assert_ne!(before[0], before[1]);
    // An additional name changes only one of the lists.
    repository.convert(&image("x"), "h.org/other:1", &[]).expect_code(0);
    let after = locks();
    assert!(after[0] != before[0] && after[1] == before[1]);
    for list in [format!("{IMAGES}/images.json"), format!("{LAYERS}/layers.json")] {
        let text = read(list);
        assert!(!text.contains([' ', '\n']), "{text}");
    }
}

#[test]
fn names_of_one_image_share_an_entry_and_a_moved_name_leaves_it() {
    let (old, new) = (image("old"), image("new"));
    let digest = old.manifest_digest();
    let repository = TestRepository::publish(&old);
    repository.convert(&old, "h.org/other:2", &[]).expect_code(0);
    repository.convert(&old, &format!("h.org/other@{digest}"), &[]).expect_code(0);
    let by_digest = format!("h.org/other@{digest}");
    assert_eq!(entries(&repository), [entry(&old, &[NAME, "h.org/other:2", &by_digest])]);
    repository.convert(&new, NAME, &[]).expect_code(0);
    let expected = [entry(&old, &["h.org/other:2", &by_digest]), entry(&new, &[NAME])];
    assert_eq!(entries(&repository), expected);
    repository.convert(&new, "h.org/other:2", &[]).expect_code(0);
    // A name by digest stays with its image.
    repository.convert(&new, &by_digest, &[]).expect_code(1);
    assert_eq!(entries(&repository), [entry(&old, &[&by_digest]), entry(&new, &[NAME, "h.org/other:2"])]);
    // The image stays as long as its root file system, for containers that were created from it.
    let root = repository.list(&format!("podmanStore/overlay-images/{}", hex(&old.config_digest())));
    assert_eq!(root.len(), 3);
    assert!(repository.has(&crate::support::flat_path(&old)));
    repository.convert(&old, NAME, &[]).expect_code(0);
    assert_eq!(entries(&repository), [entry(&old, &[&by_digest, NAME]), entry(&new, &["h.org/other:2"])]);
    assert!(is_nothing(&repository.convert(&old, NAME, &[]).expect_code(0)));
    repository.run(["check"]).expect_code(0);
}

#[test]
fn published_image_is_added_to_the_store_without_being_read() {
    let (image, other) = (image("x"), image("y"));
    let repository = TestRepository::new();
    let run = repository.convert(&image, NAME, &["--skip-podman", "--json"]).expect_code(0).json();
    assert_eq!(run["images"][0]["podman"], false);
    assert!(!repository.has("/podmanStore"));
    let info = |repository: &TestRepository| repository.run(["info", NAME]).expect_code(0).stdout();
    assert!(info(&repository).contains("podman     no\n"));
    let run = repository.convert(&image, NAME, &["--json"]).expect_code(0).json();
    assert_eq!((&run["images"][0]["layers-read"], &run["images"][0]["podman"]), (&json!(0), &json!(true)));
    assert_eq!(repository.tree("podmanStore").paths(), TestRepository::publish(&image).tree("podmanStore").paths());
    assert!(info(&repository).contains("podman     yes\n"));
    let source = repository.source(&image);
    repository.run(["verify", &source, "--name", NAME]).expect_code(0);
    assert!(is_nothing(&repository.convert(&image, NAME, &[]).expect_code(0)));
    // An entry in the store stays when the settings no longer select it, as long as its name still leads to the image.
    assert!(is_nothing(&repository.convert(&image, NAME, &["--skip-podman"]).expect_code(0)));
    repository.convert(&other, NAME, &["--skip-podman"]).expect_code(0);
    assert_eq!(entries(&repository), [entry(&image, &[])]);
}

#[test]
fn image_for_which_podman_would_refuse_the_store_is_left_out_with_a_reason() {
    let good = image("good");
    let repository = TestRepository::publish(&good);
    let bad = image("bad").setting("Cmd", json!("text"));
    let json = repository.convert(&bad, "h.org/bad:1", &["--json"]).expect_code(0);
    let reason = "'config.Cmd' is not a list of strings";
    let refusal = json.json()["images"][0]["podman-refusal"].as_str().unwrap().to_owned();
    assert!(refusal.contains(reason) && json.stderr().contains(reason), "{json:?}");
    assert!(repository.has(&crate::support::flat_path(&bad)));
    assert_eq!(entries(&repository), [entry(&good, &[NAME])]);
    let info = repository.run(["info", "h.org/bad:1"]).expect_code(0).stdout();
    assert!(info.contains("podman     no: ") && info.contains(reason), "{info}");
    let again = repository.convert(&bad, "h.org/bad:1", &[]).expect_code(0);
    assert!(is_nothing(&again));
    for name in ["h.org/na..me:1", "h_x.org/name:1", "Host/name:1"] {
        let run = repository.convert(&good, name, &[]).expect_code(0);
        assert!(run.stderr().contains(&format!("'{name}' is not a valid name for podman")), "{run:?}");
    }
    repository.convert(&TestImage::new(), "h.org/none:1", &[]).expect_code(0);
    assert_eq!(entries(&repository), [entry(&good, &[NAME])]);
    // The name no longer leads to the earlier image.
    repository.convert(&bad, NAME, &[]).expect_code(0);
    assert_eq!(entries(&repository), [entry(&good, &[])]);
    repository.run(["check"]).expect_code(0);
    let source = repository.source(&bad);
    repository.run(["verify", &source, "--name", NAME]).expect_code(0);
}

#[test]
fn settings_choose_which_images_podman_sees() {
    let repository = TestRepository::with_settings("[podman]\nimages = [\"h.org/atlas/*\", \"*:v?\"]");
    let image = image("x");
    for name in ["h.org/atlas/a:1", "h.org/cms/a:1", "i.org/a:v2", "i.org/a:v20"] {
        repository.convert(&image, name, &[]).expect_code(0);
    }
    assert_eq!(entries(&repository), [entry(&image, &["h.org/atlas/a:1", "i.org/a:v2"])]);
    repository.set("");
    repository.convert(&image, "h.org/cms/a:1", &[]).expect_code(0);
    assert_eq!(entries(&repository), [entry(&image, &["h.org/atlas/a:1", "i.org/a:v2", "h.org/cms/a:1"])]);
}

#[test]
fn podman_sees_the_default_platform_of_a_name_for_several() {
    let repository = TestRepository::new();
    let of = |architecture: &str| image(architecture).platform("linux", architecture);
    let convert = |directory: &str, architectures: &[&str]| {
        let directory = repository.beside(directory);
        let images: Vec<TestImage> = architectures.iter().map(|architecture| of(architecture)).collect();
        write_oci_index(&images, &directory, "latest");
        let source = format!("oci:{}:latest", directory.display());
        let run = repository.run(["convert", &source, "--name", NAME, "--platform", "all", "--json"]).expect_code(0);
        assert!(is_nothing(&repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(0)));
        (source, run.json())
    };
    let (source, run) = convert("two", &["arm64", "amd64"]);
    let listed: Vec<&Value> = run["images"].as_array().unwrap().iter().map(|image| &image["podman"]).collect();
    assert_eq!(listed.iter().filter(|listed| **listed == &json!(true)).count(), 1);
    assert_eq!(entries(&repository), [entry(&of("amd64"), &[NAME])]);
    for platform in ["linux/amd64", "linux/arm64"] {
        repository.run(["verify", &source, "--name", NAME, "--platform", platform]).expect_code(0);
    }
    convert("others", &["s390x", "ppc64le"]);
    assert_eq!(entries(&repository), [entry(&of("amd64"), &[]), entry(&of("ppc64le"), &[NAME])]);
}

#[test]
fn image_with_two_manifests_is_found_by_both_digests() {
    let plain = image("x");
    let (archive, repository) = ("archive.tar", TestRepository::publish(&plain));
    // A docker archive has no manifest, so that strata creates one, which differs.
    let file = repository.beside(archive);
    plain.write_docker_archive(&file, "h.org/archive:1");
    let source = format!("docker-archive:{}", file.display());
    repository.run(["convert", &source]).expect_code(0);
    assert_eq!(entries(&repository), [entry(&plain, &[NAME, "h.org/archive:1"])]);
    let images = list(&repository, &format!("{IMAGES}/images.json"));
    assert_eq!(images[0]["digest"], plain.manifest_digest());
    assert_eq!(images[0]["big-data-digests"].as_object().unwrap().len(), 4);
    assert_eq!(repository.list(&format!("{IMAGES}/{}", hex(&plain.config_digest()))).len(), 4);
    let manifest = repository.reader().read(&format!("{IMAGES}/{}/manifest", hex(&plain.config_digest())));
    assert_eq!(manifest, plain.manifest());
    repository.run(["verify", &source]).expect_code(0);
    let first = repository.source(&plain);
    repository.run(["verify", &first, "--name", NAME]).expect_code(0);
    assert!(is_nothing(&repository.run(["convert", &source]).expect_code(0)));
    assert!(is_nothing(&repository.convert(&plain, NAME, &[]).expect_code(0)));
}
