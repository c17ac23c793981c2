//! `check` and `verify` find every fault of the store by its path, and `--force` repairs it.

use serde_json::{Value, json};

use super::{IMAGES, LAYERS, OVERLAY, diffs, document, hex, image, list, sha256};
use crate::support::{Foreign, NAME, TestImage, TestRepository, publish_foreign};

fn top(image: &TestImage) -> String {
    let [d1, d2] = diffs(image);
    sha256(&format!("{d1}+{d2}"))
}

fn file(text: impl ToString) -> Foreign {
    Foreign::File(text.to_string().into_bytes())
}

/// Returns the list with one member of its last element changed.
fn changed(mut list: Vec<Value>, member: &str, value: Value) -> Foreign {
    list.last_mut().unwrap()[member] = value;
    file(json!(list))
}

/// Returns faults of an image in the store: the path, its content, and whether podman would fail.
fn faults(repository: &TestRepository, image: &TestImage) -> Vec<(String, Foreign, bool)> {
    let (images, layers) = (format!("{IMAGES}/images.json"), format!("{LAYERS}/layers.json"));
    let (list_of_images, list_of_layers) = (list(repository, &images), list(repository, &layers));
    let (top, config) = (top(image), image.config_digest());
    let link = repository.tree(OVERLAY).text(format!("{top}/link"));
    vec![
        (images.clone(), file("[{"), true),
        (images.clone(), file("[]"), false),
        (images.clone(), changed(list_of_images.clone(), "names", json!(["h.org/A:1"])), true),
        (images.clone(), changed(list_of_images.clone(), "created", json!("x")), true),
        (images.clone(), changed(list_of_images.clone(), "big-data-digests", json!({})), false),
        (images.clone(), file(json!([list_of_images[0], list_of_images[0], {"id": hex(&config), "names": 5}])), true),
        (layers.clone(), file("x"), true),
        (layers.clone(), changed(list_of_layers.clone(), "diff-digest", json!(null)), true),
        (layers.clone(), changed(list_of_layers.clone(), "parent", json!(top)), true),
        (layers.clone(), changed(list_of_layers, "parent", json!(null)), false),
        (format!("{IMAGES}/images.lock"), Foreign::Gone, true),
        (format!("{IMAGES}/{}/manifest", hex(&config)), Foreign::Gone, true),
        (document(image, &config), Foreign::Gone, true),
        (document(image, &config), file("{}"), true),
        (document(image, &format!("manifest-{}", image.manifest_digest())), file("{}"), false),
        (format!("{OVERLAY}/{top}/link"), Foreign::Gone, true),
        (format!("{OVERLAY}/{top}/diff"), Foreign::Gone, true),
        (format!("{OVERLAY}/{top}/diff"), Foreign::Link("../../../.flat/no/where".to_owned()), true),
        (format!("{OVERLAY}/l/{link}"), Foreign::Gone, true),
    ]
}

#[test]
fn every_fault_is_found_at_its_path_and_repaired() {
    let image = image("x");
    let good = TestRepository::publish(&image);
    for (path, fault, is_fatal) in faults(&good, &image) {
        let repository = good.copy();
        publish_foreign(&repository, [(path.clone(), fault)]);
        let source = repository.source(&image);
        let output = repository.run(["verify", &source, "--name", NAME]).expect_code(4).stdout();
        assert!(output.contains(&format!("/{path}")), "{path}: {output}");
        let output = repository.run(["check"]).expect_code(if is_fatal { 4 } else { 0 });
        assert!(!is_fatal || output.stdout().contains(&format!("/{path}")), "{path}: {output:?}");
        repository.convert(&image, NAME, &["--force"]).expect_code(0);
        repository.run(["check"]).expect_code(0);
        repository.run(["verify", &source, "--name", NAME]).expect_code(0);
    }
}

#[test]
fn lock_that_makes_podman_slow_or_blind_is_a_warning() {
    let repository = TestRepository::publish(&image("x"));
    for (lock, words) in [("", "repeatedly"), (&*"0".repeat(64), "may not see")] {
        publish_foreign(&repository, [(format!("{IMAGES}/images.lock"), file(lock))]);
        let run = repository.run(["check"]).expect_code(0);
        assert!(format!("{}{}", run.stdout(), run.stderr()).contains(words), "{run:?}");
    }
    repository.convert(&image("y"), NAME, &[]).expect_code(0);
    assert!(!repository.run(["check"]).expect_code(0).stderr().contains("images.lock"));
}
