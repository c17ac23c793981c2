//! Repositories that DUCC has written.

use std::sync::Arc;

use serde_json::json;
use strata::catalog::CatalogBuilder;
use strata::image::{Digest, ImageName};
use strata::layout::{ImagePlace, flat_root, layer_root};
use strata::metadata::Metadata;
use strata::object::Compression;
use strata::path::EntryPath;
use strata::publish::Edit;
use strata::tree::{Directory, Leaf, LeafKind, Node};

use super::{Scene, asked};
use crate::support::{TestImage, TestRepository, layer_path, publish_edits};

fn image(content: &str) -> TestImage {
    let base = |layer: crate::support::TestLayer| layer.file("etc/base", "base").file("bin/su", "su").whiteout("gone");
    TestImage::new().layer(base).layer(|layer| layer.file("etc/content", content))
}

/// Publishes an image as DUCC does: only a manifest with capitalised keys in `.metadata`, `.wh.` files in
/// layers, and other owners and modes than in the image.
fn publish_as_ducc_does(repository: &TestRepository, image: &TestImage, name: &str, layers: &[String]) {
    let name: ImageName = name.parse().unwrap();
    let place = ImagePlace { name, platform: None };
    let digest = |text: &str| text.parse::<Digest>().unwrap();
    let config = digest(&image.config_digest());
    let descriptor = |digest: &String| json!({"MediaType": "", "Size": 1, "Digest": digest});
    let manifest = json!({
        "SchemaVersion": 2,
        "MediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "Config": descriptor(&image.config_digest()),
        "Layers": image.layer_digests().iter().map(descriptor).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string();
    publish_edits(repository, |staging| {
        let builder = CatalogBuilder::new(staging, Compression::Exact, 25_000).unwrap();
        let tree = |files: &[&str], path: &EntryPath| {
            let mut root = Directory::new(Metadata::of_implied_directory());
            for name in files {
                let content = staging.put_file(Compression::Exact, b"of DUCC").unwrap();
                let metadata = Metadata { uid: 4242, mode: 0o600, ..Metadata::of_implied_directory() };
                let leaf = Leaf { metadata, kind: LeafKind::File { size: 7, content } };
                root.children.insert(name.as_bytes().into(), Node::Leaf(Arc::new(leaf)));
            }
            (path.clone(), Edit::Tree(Box::new(builder.build(&root, path, None).unwrap())))
        };
        let content = staging.put_file(Compression::Exact, manifest.as_bytes()).unwrap();
        let mut edits = vec![tree(&["of-ducc"], &flat_root(config))];
        edits.extend(layers.iter().map(|layer| tree(&["of-ducc", ".wh.gone"], &layer_root(digest(layer)))));
        edits.push((place.link(), Edit::Symlink(place.link_target(config))));
        edits.push((place.metadata().join(b"manifest.json"), Edit::File { size: manifest.len() as u64, content }));
        edits
    });
}

fn of_ducc(scene: &Scene, path: &str) -> bool {
    scene.repository.has(&format!("{path}/of-ducc"))
}

fn flat(image: &TestImage) -> String {
    crate::support::flat_path(image)
}

#[test]
fn image_of_ducc_stays_until_its_manifest_changes() {
    let Some(scene) = Scene::new() else { return };
    let (old, new) = (image("old"), image("new"));
    scene.registry.push_tags(&old, "app/tool", ["1"]);
    publish_as_ducc_does(&scene.repository, &old, &format!("{}/app/tool:1", scene.proxy.host()), &old.layer_digests());
    let wishlist = scene.wish("list.yaml", "  - HOST/app/tool:1\n");
    let run = scene.sync(&wishlist, &[]).expect_code(0);
    assert!(run.stdout().starts_with("1 images: 1 unchanged, 0 published"), "{}", run.stdout());
    assert!(of_ducc(&scene, &flat(&old)) && of_ducc(&scene, &layer_path(&old, 0)));
    assert!(!scene.repository.has(&format!("/.metadata{}/strata.json", scene.public("app/tool:1"))));
    let (before, revision) = (scene.proxy.served().len(), scene.revision());
    scene.sync(&wishlist, &[]).expect_code(0);
    assert_eq!(scene.asked_since(before), asked([("HEAD manifests", 1)]));
    assert_eq!(scene.revision(), revision);
    let name = format!("{}/app/tool:1", scene.proxy.host());
    let run = scene.repository.run(["convert", &name]).expect_code(0);
    assert!(run.stdout().contains("nothing to do"), "{}", run.stdout());
    scene.registry.push_tags(&new, "app/tool", ["1"]);
    scene.sync(&wishlist, &[]).expect_code(0);
    // New trees are those of the image. The shared layer stays as DUCC wrote it, because overlay mounts may be using it.
    let straight = TestRepository::publish(&new);
    assert_eq!(scene.repository.flat(&new).entries(), straight.flat(&new).entries());
    assert_eq!(scene.repository.layer(&new, 1).entries(), straight.layer(&new, 1).entries());
    assert!(of_ducc(&scene, &layer_path(&old, 0)) && of_ducc(&scene, &flat(&old)));
    let unused = scene.repository.json("/.metadata/candidates.json").to_string();
    assert!(unused.contains(&old.config_digest().replace("sha256:", "")), "{unused}");
    scene.repository.run(["check"]).expect_code(0);
}

#[test]
fn new_name_of_an_image_of_ducc_is_built_from_blobs() {
    let Some(scene) = Scene::new() else { return };
    let image = image("old");
    publish_as_ducc_does(&scene.repository, &image, "registry.example.org/app/tool:1", &image.layer_digests());
    scene.registry.push_tags(&image, "app/tool", ["1"]);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/tool:1\n");
    scene.sync(&wishlist, &[]).expect_code(0);
    let straight = TestRepository::publish(&image);
    assert_eq!(scene.repository.flat(&image).entries(), straight.flat(&image).entries());
    assert_eq!(scene.repository.chain(&image).entries(), straight.chain(&image).entries());
}

#[test]
fn image_of_ducc_with_a_missing_layer_is_built_from_blobs() {
    let Some(scene) = Scene::new() else { return };
    let image = image("old");
    let name = format!("{}/app/tool:1", scene.proxy.host());
    publish_as_ducc_does(&scene.repository, &image, &name, &image.layer_digests()[..1]);
    scene.registry.push_tags(&image, "app/tool", ["1"]);
    scene.sync(&scene.wish("list.yaml", "  - HOST/app/tool:1\n"), &[]).expect_code(0);
    let straight = TestRepository::publish(&image);
    assert_eq!(scene.repository.flat(&image).entries(), straight.flat(&image).entries());
    assert_eq!(scene.repository.layer(&image, 1).entries(), straight.layer(&image, 1).entries());
}

#[test]
fn image_of_ducc_is_removed_when_it_leaves_the_wishlist() {
    let Some(scene) = Scene::new() else { return };
    let image = image("old");
    let name = format!("{}/app/tool:1", scene.proxy.host());
    publish_as_ducc_does(&scene.repository, &image, &name, &image.layer_digests());
    for repository in ["app/tool", "app/other"] {
        scene.registry.push_tags(&image, repository, ["1"]);
    }
    scene.sync(&scene.wish("list.yaml", "  - HOST/app/tool:1\n"), &[]).expect_code(0);
    scene.sync(&scene.wish("list.yaml", "  - HOST/app/other:1\n"), &["--prune"]).expect_code(0);
    assert!(!scene.has("app/tool:1") && scene.has("app/other:1"));
    assert!(!scene.repository.has(&format!("/.metadata{}", scene.public("app/tool:1"))));
}
