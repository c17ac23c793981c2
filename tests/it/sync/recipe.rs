//! DUCC's recipes, and its notification file.

use std::fs;

use serde_json::Value;

use super::{Scene, image};

fn recipe(scene: &Scene, inputs: &[&str]) -> String {
    let host = scene.proxy.host();
    let inputs: String = inputs.iter().map(|input| format!("    - '{}'\n", input.replace("HOST", &host))).collect();
    let text = format!(
        "version: 1\nuser: cvmfsunpacker\ncvmfs_repo: unpacked.example.org\n\
         output_format: '$(scheme)://registry.example.org/thin/$(image)'\ninput:\n{inputs}"
    );
    scene.write("recipe.yaml", &text)
}

#[test]
fn recipe_of_ducc_is_read_unchanged() {
    let Some(scene) = Scene::new() else { return };
    let signature = format!("sha256-{}.sig", "0".repeat(64));
    let tags = ["21.0.1", "21.0.2", "21x0.3", "22.0.1", "latest", &signature];
    scene.registry.push_tags(&image("athena"), "atlas/athena", tags);
    scene.registry.push_tags(&image("fedora"), "library/fedora", ["latest"]);
    // Four pages.
    scene.proxy.page_tags(2);
    let digest = image("fedora").manifest_digest();
    let recipe = recipe(
        &scene,
        &[
            "http://HOST/atlas/athena:21.0.*",
            "https://HOST/library/fedora:latest",
            &format!("https://HOST/library/fedora@{digest}"),
            "https://HOST/no/tag",
            "this is no image",
        ],
    );
    let run = scene.sync(&recipe, &[]).expect_code(3);
    assert!(run.stderr().contains("line 9") && run.stderr().contains("line 10"), "{}", run.stderr());
    assert!(run.stdout().contains("4 images: 0 unchanged, 4 published, 0 failed"), "{}", run.stdout());
    assert!(scene.has("atlas/athena:21.0.1") && scene.has("atlas/athena:21.0.2"));
    assert!(!scene.has("atlas/athena:21x0.3") && !scene.has("atlas/athena:latest"));
    assert!(scene.has("library/fedora:latest") && scene.has(&format!("library/fedora:{digest}")));
    let pages = scene.proxy.served().iter().filter(|served| served.path.contains("/tags/list")).count();
    assert_eq!(pages, 3);
    let before = scene.proxy.served().len();
    scene.sync(&recipe, &[]).expect_code(3);
    let heads = scene.asked_since(before).get("HEAD manifests").copied();
    assert_eq!(heads, Some(3), "a digest never changes");
}

#[test]
fn recipe_of_another_repository_removes_nothing() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let text = format!("cvmfs_repo: unpacked.cern.ch\ninput: ['http://{}/app/a:1']\n", scene.proxy.host());
    let recipe = scene.write("recipe.yaml", &text);
    scene.repository.refuse(["sync", &recipe, "--prune"], 1, &["unpacked.cern.ch"]);
    let run = scene.sync(&recipe, &[]).expect_code(0);
    assert!(run.stderr().contains("unpacked.cern.ch"), "{}", run.stderr());
}

#[test]
fn mistakes_in_a_wishlist_are_reported_with_their_position() {
    let Some(scene) = Scene::new() else { return };
    for (text, words) in [
        ("version: 2\nimages:\n  - image: h.org/a:1\n    platform: all\n", &["line 4", "platform"][..]),
        ("version: 3\n", &["line 1", "version"]),
        ("version: 2\nimages: [h.org/a:1\n", &["list.yaml', line"]),
        ("version: 2\nimages:\n  - image: h.org/a\n    tags: {semver: '>>1'}\n", &["line 4"]),
    ] {
        let wishlist = scene.write("list.yaml", text);
        scene.repository.refuse(["sync", &wishlist], 1, words);
    }
    scene.repository.refuse(["sync", "/nonexistent.yaml"], 1, &["/nonexistent.yaml"]);
}

#[test]
fn notifications_are_written_to_a_file() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let recipe = recipe(&scene, &["http://HOST/app/a:1", "http://HOST/app/missing:1"]);
    let file = scene.repository.beside("notifications");
    scene.sync(&recipe, &["-n", file.to_str().unwrap()]).expect_code(3);
    let lines: Vec<Value> =
        fs::read_to_string(&file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().flat_map(|line| line.as_object().unwrap().values()).all(Value::is_string), "{lines:?}");
    let of = |action: &str| lines.iter().filter(|line| line["action"] == action).collect::<Vec<_>>();
    assert_eq!((of("start_ducc").len(), of("end_ducc").len()), (1, 1));
    let (started, ended) = (of("start_single_chain_conversion"), of("end_single_chain_convertion"));
    assert_eq!((started.len(), ended.len()), (1, 1));
    assert_eq!((&started[0]["id"], &ended[0]["status"]), (&ended[0]["id"], &Value::from("ok")));
    let layer = image("a").layer_digests()[0].replace("sha256:", "");
    assert_eq!(of("publish_layer")[0]["layer_digest"], layer);
    let flat = of("publish_flat_image")[0];
    assert_eq!(flat["public_path"], format!("{}/app/a:1", scene.proxy.host()));
    assert!(scene.repository.has(&format!("/{}", flat["private_path"].as_str().unwrap())));
    scene.sync(&recipe, &["-n", file.to_str().unwrap()]).expect_code(3);
    assert!(fs::read_to_string(&file).unwrap().lines().count() > lines.len(), "the file is appended to");
}
