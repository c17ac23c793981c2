//! A digest in a name must be that of the image, or the image is refused.

use std::fs;

use serde_json::json;

use crate::support::{TestImage, TestRegistry, TestRepository, write_oci_index};

const WRONG: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn image(content: &str) -> TestImage {
    TestImage::new().layer(|layer| layer.file("etc/content", content))
}

#[test]
fn name_with_the_digest_of_another_image_is_refused() {
    let repository = TestRepository::new();
    let (image, other) = (image("a"), image("b"));
    let source = repository.source(&image);
    let archive = repository.beside("archive.tar");
    image.write_docker_archive(&archive, "h.org/x:1");
    let archive = format!("docker-archive:{}", archive.display());
    for digest in [WRONG, &other.manifest_digest(), &image.config_digest(), &image.layer_digests()[0]] {
        for name in [format!("h.org/x@{digest}"), format!("h.org/x:1@{digest}")] {
            for source in [&source, &archive] {
                repository.refuse(["convert", source, "--name", &name], 1, &[&name]);
                repository.refuse(["diff", source, "--name", &name], 1, &[&name]);
                repository.refuse(["verify", source, "--name", &name], 1, &[&name]);
            }
        }
    }
    let run = repository.refuse(["convert", &source, "--name", &format!("h.org/x:1@{WRONG}")], 1, &[WRONG]);
    assert!(run.stderr().contains(&image.manifest_digest()), "{}", run.stderr());
    assert!(!repository.has("/h.org"));
    let run = repository.run(["convert", &source, "--name", "h.org/x:1@sha256:0"]).expect_code(2);
    assert!(run.stderr().contains("'sha256:0' is not a valid digest"), "{}", run.stderr());
}

#[test]
fn name_with_the_digest_of_the_image_is_accepted_and_the_digest_recorded() {
    let repository = TestRepository::new();
    let image = image("a");
    let (source, digest) = (repository.source(&image), image.manifest_digest());
    let name = format!("h.org/x@{digest}");
    repository.run(["convert", &source, "--name", &name]).expect_code(0);
    assert!(repository.has(&format!("/h.org/x:{digest}")));
    let name = format!("h.org/x:1@{digest}");
    repository.run(["convert", &source, "--name", &name]).expect_code(0);
    assert!(repository.has("/h.org/x:1") && !repository.has(&format!("/{name}")));
    assert_eq!(repository.json("/.metadata/h.org/x:1/strata.json")["digest"], json!(digest));
    for name in [name.as_str(), "h.org/x:1"] {
        let info = repository.run(["info", name]).expect_code(0).stdout();
        assert!(info.contains(&format!("\ndigest     {digest}\n")), "{info}");
    }
    repository.refuse(["info", &format!("h.org/x:1@{WRONG}")], 1, &[WRONG]);
    repository.refuse(["bundle", &format!("h.org/x:1@{WRONG}"), "bundle"], 1, &[WRONG]);
    repository.refuse(["check", &format!("h.org/x:1@{WRONG}")], 1, &[WRONG]);
    repository.run(["check", &name]).expect_code(0);
    repository.run(["verify", &source, "--name", &name]).expect_code(0);
    let again = repository.run(["convert", &source, "--name", &name]).expect_code(0);
    assert!(again.stdout().contains("nothing to do"), "{}", again.stdout());
    let without = repository.run(["convert", &source, "--name", "h.org/x:1"]).expect_code(0);
    assert!(without.stdout().contains("nothing to do"), "{}", without.stdout());
    repository.run(["check"]).expect_code(0);
}

#[test]
fn digest_of_an_index_is_accepted_for_its_images() {
    let repository = TestRepository::new();
    let directory = repository.beside("index");
    let images = ["amd64", "arm64"].map(|architecture| image(architecture).platform("linux", architecture));
    let index = write_oci_index(&images, &directory, "latest");
    let source = format!("oci:{}:latest", directory.display());
    let name = format!("h.org/x:1@{index}");
    repository.run(["convert", &source, "--name", &name, "--platform", "all"]).expect_code(0);
    let name = format!("h.org/y:1@{index}");
    repository.run(["convert", &source, "--name", &name, "--platform", "linux/arm64"]).expect_code(0);
    let name = format!("h.org/y:1@{}", images[1].manifest_digest());
    repository.run(["convert", &source, "--name", &name, "--platform", "linux/arm64"]).expect_code(0);
    repository.refuse(["convert", &source, "--name", &name, "--platform", "linux/amd64"], 1, &[&name]);
    repository.refuse(["convert", &source, "--name", &name, "--platform", "all"], 1, &[&name]);
}

#[test]
fn image_must_match_the_digest_in_the_name_that_a_layout_carries() {
    let repository = TestRepository::new();
    let image = image("a");
    let directory = repository.beside("layout");
    image.write_oci_layout(&directory, "reference");
    let path = directory.join("index.json");
    let text = fs::read_to_string(&path).unwrap();
    let carry = |name: &str| fs::write(&path, text.replace("reference", name)).unwrap();
    let source = format!("oci:{}", directory.display());
    for name in [format!("h.org/x@{WRONG}"), format!("h.org/x:1@{WRONG}")] {
        carry(&name);
        repository.refuse(["convert", &source], 1, &[&name]);
    }
    carry(&format!("h.org/x:1@{}", image.manifest_digest()));
    repository.run(["convert", &source]).expect_code(0);
    assert!(repository.has("/h.org/x:1"));
}

#[test]
fn image_must_match_the_digest_in_the_name_of_a_wish() {
    let Some(registry) = TestRegistry::start() else { return };
    let image = image("a");
    registry.push_tags(&image, "app/tool", ["1"]);
    let repository = TestRepository::new();
    let (host, digest) = (registry.host(), image.manifest_digest());
    let wishlist = repository.beside("list.yaml");
    let wish = |name: &str| {
        let text = format!("version: 2\nimages:\n  - {{image: '{host}/app/tool:1', name: '{name}'}}\n");
        fs::write(&wishlist, text).unwrap();
        wishlist.display().to_string()
    };
    let run = repository.run(["sync", &wish(&format!("h.org/x:1@{WRONG}"))]).expect_code(1);
    assert!(run.stderr().contains(WRONG), "{}", run.stderr());
    assert!(!repository.has("/h.org"));
    let right = wish(&format!("h.org/y:1@{digest}"));
    repository.run(["sync", &right]).expect_code(0);
    let run = repository.run(["sync", &right]).expect_code(0);
    assert!(run.stdout().contains("1 unchanged"), "{}", run.stdout());
    // From a registry, an image is fetched by the digest, not by the tag.
    let name = format!("http://{host}/app/tool:1@{digest}");
    repository.run(["convert", &name]).expect_code(0);
    assert!(repository.has(&format!("/{host}/app/tool:1")));
    repository.refuse(["convert", &format!("http://{host}/app/tool:1@{WRONG}")], 1, &[WRONG]);
    let info = repository.run(["info", "--json", &format!("{host}/app/tool:1")]).expect_code(0).json();
    let command = info["commands"]["containerd"].as_str().unwrap();
    assert!(command.contains(&format!("run {host}/app/tool:1@{digest} ")), "{command}");
}
