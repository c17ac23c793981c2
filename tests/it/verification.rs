//! Nothing unverified is published: an image that differs from its digests leaves the repository unchanged.

use std::fs;

use serde_json::Value;

use crate::support::{Compression, Damage, NAME, TestImage, TestLayer, TestRepository};

const OTHER: &str = "h.example.org/bad:1";

fn good() -> TestImage {
    TestImage::new().layer(|layer| layer.file("a", "some text")).layer(|layer| layer.file("b", "more text"))
}

/// Asserts that the image of `source` is refused with one line that contains all of `words`, and that nothing changes.
#[track_caller]
fn assert_source_refused(repository: &TestRepository, source: &str, words: &[&str]) {
    let run = repository.refuse(["convert", source, "--name", OTHER], 1, words);
    assert_eq!(run.stdout(), "");
    assert!(!repository.has("h.example.org"));
}

#[track_caller]
fn assert_refused(image: &TestImage, words: &[&str]) {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("before", "")));
    let source = repository.source(image);
    assert_source_refused(&repository, &source, words);
}

/// Asserts that a layer is refused with an error that names it and contains all of `words`.
#[track_caller]
fn assert_layer_refused(fill: impl FnOnce(TestLayer) -> TestLayer, words: &[&str]) {
    let image = TestImage::new().layer(|layer| layer.file("d/f", "")).layer(fill);
    let digest = image.layer_digests()[1].clone();
    assert_refused(&image, &[words, &[&digest]].concat());
}

#[test]
fn blob_with_another_digest_is_refused() {
    let image = good().damage(Damage::WrongDigest(1));
    let digest = image.layer_digests()[1].clone();
    assert_refused(&image, &[&digest, &good().layer_digests()[1]]);
}

#[test]
fn blob_of_another_size_is_refused() {
    let image = good().damage(Damage::WrongSize(0));
    assert_refused(&image, &[&image.layer_digests()[0]]);
}

#[test]
fn layer_with_another_diff_id_is_refused() {
    let image = good().damage(Damage::WrongDiffId(1));
    assert_refused(&image, &[&image.layer_digests()[1], &image.diff_ids()[1], &good().diff_ids()[1]]);
}

#[test]
fn truncated_blob_is_refused() {
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let image = good().layer(|layer| layer.file("c", "x").compression(compression)).damage(Damage::Truncated(2));
        assert_refused(&image, &[&image.layer_digests()[2]]);
    }
}

#[test]
fn changed_byte_of_a_blob_is_refused() {
    let repository = TestRepository::new();
    let source = repository.source(&good());
    let digest = &good().layer_digests()[1];
    let blob = repository.beside("images/0/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    let mut bytes = fs::read(&blob).unwrap();
    // The field for the operating system in the gzip header, which does not affect the content.
    bytes[9] ^= 1;
    fs::write(&blob, bytes).unwrap();
    assert_source_refused(&repository, &source, &[digest]);
}

#[test]
fn config_with_too_few_diff_ids_is_refused() {
    let image = good().damage(Damage::MissingDiffId);
    assert_refused(&image, &[&image.config_digest()]);
}

#[test]
fn documents_with_another_digest_are_refused() {
    // The length is unchanged, so that only the digest differs.
    for (digest, from, to) in [
        (good().config_digest(), "2017-07-14", "2018-07-14"),
        (good().manifest_digest(), "\"schemaVersion\":2", "\"schemaversion\":2"),
    ] {
        let repository = TestRepository::new();
        let source = repository.source(&good());
        let document = repository.beside("images/0/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
        let text = fs::read_to_string(&document).unwrap();
        assert!(text.contains(from));
        fs::write(&document, text.replace(from, to)).unwrap();
        assert_source_refused(&repository, &source, &[&digest]);
    }
}

#[test]
fn docker_archive_with_a_wrong_diff_id_is_refused() {
    let repository = TestRepository::new();
    let file = repository.beside("docker.tar");
    let image = good().damage(Damage::WrongDiffId(0));
    image.write_docker_archive(&file, "h.example.org/bad:1");
    assert_source_refused(&repository, &format!("docker-archive:{}", file.display()), &[]);
}

#[test]
fn layer_that_is_not_an_archive_is_refused() {
    let garbage = b"this is no tar archive, although it is as long as several headers ".repeat(40);
    assert_layer_refused(|layer| layer.blob("application/vnd.oci.image.layer.v1.tar", &garbage), &["archive"]);
    let zipped = zstd::encode_all(garbage.as_slice(), 1).unwrap();
    assert_layer_refused(|layer| layer.blob("application/vnd.oci.image.layer.v1.tar+zstd", &zipped), &[]);
    assert_layer_refused(|layer| layer.file("good", "").raw_bytes(&garbage[..1024]), &["good"]);
}

#[test]
fn paths_never_lead_out_of_the_root() {
    for path in ["../x", "a/../../x", "/../x"] {
        let image = TestImage::new().layer(|layer| layer.file("f", "").record("path", path).hardlink("link", path));
        let repository = TestRepository::publish(&image);
        assert_eq!(repository.chain(&image).paths(), ["", "link", "x"], "{path}");
    }
    // The cleaned path of `a/..` is the root, which is not a file.
    assert_layer_refused(|layer| layer.file("f", "").record("path", "a/.."), &["the root"]);
    assert_layer_refused(|layer| layer.hardlink("link", "a/.."), &["link"]);
}

#[test]
fn entries_that_cannot_be_published_are_refused() {
    let long_name = "n".repeat(256);
    assert_layer_refused(|layer| layer.file(&long_name, ""), &[&long_name[..200]]);
    assert_layer_refused(|layer| layer.symlink("far", "t".repeat(4096)), &["far"]);
    assert_layer_refused(|layer| layer.file("nul", "").record("path", "a\0b"), &[]);
    assert_layer_refused(|layer| layer.file("owned", "").record("uid", "4294967296"), &["owned", "4294967296"]);
    assert_layer_refused(|layer| layer.file("owned", "").record("gid", "-1"), &["owned"]);
}

#[test]
fn whiteout_without_a_name_is_refused() {
    for path in [".wh.", "d/.wh.", ".wh..", "d/.wh..."] {
        assert_layer_refused(|layer| layer.file(path, ""), &[path]);
    }
}

#[test]
fn hard_link_to_nowhere_is_refused() {
    assert_layer_refused(|layer| layer.hardlink("link", "no/where"), &["link", "no/where"]);
    assert_layer_refused(|layer| layer.hardlink("link", "d"), &["link"]);
    assert_layer_refused(|layer| layer.hardlink("one", "two").hardlink("two", "one"), &[]);
}

#[test]
fn image_of_an_unsupported_kind_is_refused() {
    let repository = TestRepository::new();
    let source = repository.source(&good());
    let index = repository.beside("images/0/index.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    json["manifests"] = Value::Array(Vec::new());
    fs::write(&index, json.to_string()).unwrap();
    assert_source_refused(&repository, &source, &["images/0"]);
}

#[test]
fn good_image_is_published_after_a_bad_one_was_refused() {
    let repository = TestRepository::new();
    repository.convert(&good().damage(Damage::Truncated(1)), NAME, &[]).expect_code(1);
    repository.convert(&good(), NAME, &[]).expect_code(0);
    assert_eq!(repository.flat(&good()).text("b"), "more text");
}
