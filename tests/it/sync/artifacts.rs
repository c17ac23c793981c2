//! Artifacts beside images at registries: charts, signatures and others.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Scene, asked, image};
use crate::support::TestImage;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const FILE: &str = "application/octet-stream";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Usual artifacts: a name for the tag, and the types of the artifact, the config and the layer.
const ARTIFACTS: [(&str, &str, &str, &str); 7] = [
    ("chart", "", "application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
    ("wasm", "", "application/vnd.wasm.config.v0+json", "application/wasm"),
    ("sbom", "application/spdx+json", EMPTY, "application/spdx+json"),
    // cosign writes its signatures with the config type of an image.
    ("signature", "", CONFIG, "application/vnd.dev.cosign.simplesigning.v1+json"),
    ("attestation", "", CONFIG, "application/vnd.dsse.envelope.v1+json"),
    ("provenance", "", CONFIG, "application/vnd.in-toto+json"),
    ("bundle", "application/vnd.dev.sigstore.bundle.v0.3+json", EMPTY, "application/vnd.dev.sigstore.bundle.v0.3+json"),
];

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Scene {
    /// Stores an artifact under a tag.
    fn push_artifact(&self, repository: &str, tag: &str, [artifact, config, layer]: [&str; 3]) {
        let diff_ids = json!([digest(tag.as_bytes())]);
        let settings = json!({"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let settings = if config == CONFIG { settings } else { json!({}) };
        self.push_files(repository, tag, [artifact, config, layer], settings.to_string().as_bytes());
    }

    /// Stores a manifest under a tag. It has a config of these bytes, and one layer, which contains the tag.
    fn push_files(&self, repository: &str, tag: &str, [artifact, config, layer]: [&str; 3], settings: &[u8]) {
        let blob = |media_type: &str, bytes: &[u8]| {
            self.registry.put_blob(repository, &digest(bytes), bytes);
            json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
        };
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(config, settings),
            "layers": [blob(layer, tag.as_bytes())],
        });
        if !artifact.is_empty() {
            manifest["artifactType"] = artifact.into();
        }
        self.registry.put_manifest(repository, tag, MANIFEST, manifest.to_string().as_bytes());
    }

    /// Stores a chart under a tag.
    pub(super) fn push_chart(&self, repository: &str, tag: &str) {
        let (_, artifact, config, layer) = ARTIFACTS[0];
        self.push_artifact(repository, tag, [artifact, config, layer]);
    }

    /// Stores an index without manifests under a tag.
    fn push_empty_index(&self, repository: &str, tag: &str) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string();
        self.registry.put_manifest(repository, tag, INDEX, index.as_bytes());
    }

    /// Stores an image with an artifact type.
    fn push_typed(&self, image: &TestImage, repository: &str, tag: &str) {
        image.blobs().iter().for_each(|(digest, bytes)| self.registry.put_blob(repository, digest, bytes));
        let mut manifest: Value = serde_json::from_slice(&image.manifest()).unwrap();
        manifest["artifactType"] = "application/vnd.example.model".into();
        self.registry.put_manifest(repository, tag, MANIFEST, manifest.to_string().as_bytes());
    }
}

#[test]
fn artifacts_that_match_a_pattern_are_skipped_with_one_line_each_and_not_counted() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("1"), "app/tool", ["1.0"]);
    for (tag, artifact, config, layer) in ARTIFACTS {
        scene.push_artifact("app/tool", tag, [artifact, config, layer]);
    }
    let wishlist = scene.wish("list.yaml", "  - HOST/app/tool:*\n");
    for round in 0..3 {
        let before = scene.proxy.served().len();
        let run = scene.sync(&wishlist, &["--prune"]).expect_code(0);
        let counts = if round == 0 { "0 unchanged, 1 published" } else { "1 unchanged, 0 published" };
        assert!(
            run.stdout().contains(&format!("1 images: {counts}, 0 failed; 7 artifacts skipped")),
            "{}",
            run.stdout()
        );
        for (tag, ..) in ARTIFACTS {
            let name = format!("{}/app/tool:{tag}", scene.proxy.host());
            let lines = run.stderr().lines().filter(|line| line.contains(&name)).count();
            assert_eq!(lines, 1, "{name}: {}", run.stderr());
        }
        assert!(!run.stderr().contains("ERROR") && !run.stderr().contains("WARN"), "{}", run.stderr());
        if round > 0 {
            assert_eq!(scene.asked_since(before), asked([("GET tags", 1), ("HEAD manifests", 8)]));
        }
    }
    assert!(scene.has("app/tool:1.0") && !scene.has("app/tool:chart"));
    let json = scene.sync(&wishlist, &["--json"]).expect_code(0).json();
    assert_eq!((json["images"].as_array().unwrap().len(), json["artifacts"].as_array().unwrap().len()), (1, 7));
    let types: Vec<&str> = json["artifacts"].as_array().unwrap().iter().filter_map(|a| a["type"].as_str()).collect();
    assert!(types.contains(&"application/spdx+json") && types.contains(&"application/vnd.cncf.helm.config.v1+json"));
    let recipe = format!("input: ['http://{}/app/tool:*']\n", scene.proxy.host());
    let run = scene.sync(&scene.write("recipe.yaml", &recipe), &[]).expect_code(0);
    assert!(run.stdout().starts_with("1 images: 1 unchanged"), "{}", run.stdout());
    scene.repository.run(["check", "--quick"]).expect_code(0);
}

#[test]
fn artifact_does_not_displace_an_image_among_the_newest() {
    let Some(scene) = Scene::new() else { return };
    for tag in ["1.0", "1.1", "1.2"] {
        scene.registry.push_tags(&image(tag), "app/tool", [tag]);
    }
    let wishlist = scene.wish("list.yaml", "  - {image: HOST/app/tool, tags: {newest: 2}}\n  - HOST/app/other:*\n");
    scene.registry.push_tags(&image("other"), "app/other", ["1"]);
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    let are_there = |scene: &Scene| ["1.0", "1.1", "1.2"].map(|tag| scene.has(&format!("app/tool:{tag}")));
    assert_eq!(are_there(&scene), [false, true, true]);
    let (_, artifact, config, layer) = ARTIFACTS[0];
    for tag in ["1.3", "1.4", "2.0", "9"] {
        scene.push_artifact("app/tool", tag, [artifact, config, layer]);
    }
    for round in 0..3 {
        let run = scene.sync(&wishlist, &["--prune", "--json"]).expect_code(0);
        let json = run.json();
        let names: Vec<&str> = json["images"].as_array().unwrap().iter().filter_map(|i| i["name"].as_str()).collect();
        let host = scene.proxy.host();
        assert_eq!(names, ["tool:1.1", "tool:1.2", "other:1"].map(|name| format!("{host}/app/{name}")), "{round}");
        assert_eq!((&json["removed"], json["artifacts"].as_array().unwrap().len()), (&json!([]), 4));
        assert_eq!(are_there(&scene), [false, true, true]);
        if round == 1 {
            std::fs::remove_dir_all(scene.repository.directory().join("state")).unwrap();
        }
    }
    // A new image still displaces the oldest one.
    scene.registry.push_tags(&image("3"), "app/tool", ["3.0"]);
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    assert_eq!(are_there(&scene), [false, false, true]);
    assert!(scene.has("app/tool:3.0"));
}

#[test]
fn index_that_has_an_artifact_for_one_platform_may_have_an_image_for_another() {
    let Some(scene) = Scene::new() else { return };
    let image = image("1").platform("linux", "amd64");
    scene.registry.push_tags(&image, "app/tool", ["image"]);
    let (_, artifact, config, layer) = ARTIFACTS[0];
    scene.push_artifact("app/tool", "chart", [artifact, config, layer]);
    let chart = scene.registry.request("GET", "/v2/app/tool/manifests/chart").with("accept", MANIFEST).forward();
    let entry = |manifest: &[u8], architecture: &str| {
        let digest = digest(manifest);
        let platform = json!({"os": "linux", "architecture": architecture});
        json!({"mediaType": MANIFEST, "digest": digest, "size": manifest.len(), "platform": platform})
    };
    let manifests = json!([entry(&chart.body, "arm64"), entry(&image.manifest(), "amd64")]);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
    scene.registry.put_manifest("app/tool", "both", media_type, index.as_bytes());
    for (platform, published) in [("linux/arm64", 0), ("linux/amd64", 1)] {
        let wish = format!("  - {{image: HOST/app/tool, tags: both, platforms: {platform}}}\n");
        let run = scene.sync(&scene.wish("list.yaml", &wish), &[]).expect_code(0);
        let counts = format!("{published} images: 0 unchanged, {published} published, 0 failed");
        assert!(run.stdout().contains(&counts), "{}", run.stdout());
    }
    assert!(scene.has("app/tool:both"));
}

/// Returns a registry with an image for each tag, and a wishlist of the newest two.
fn newest_of(tags: [&str; 2]) -> Option<(Scene, String)> {
    let scene = Scene::new()?;
    tags.into_iter().for_each(|tag| scene.registry.push_tags(&image(tag), "app/tool", [tag]));
    let wishlist = scene.wish("list.yaml", "  - {image: HOST/app/tool, tags: {newest: 2}}\n");
    Some((scene, wishlist))
}

#[test]
fn nothing_is_removed_while_a_tag_may_be_an_artifact() {
    let Some((scene, wishlist)) = newest_of(["1.0", "1.1"]) else { return };
    scene.sync(&wishlist, &[]).expect_code(0);
    let (_, artifact, config, layer) = ARTIFACTS[0];
    scene.push_artifact("app/tool", "2.0", [artifact, config, layer]);
    scene.proxy.at("/manifests/2.0", |_, _| crate::support::Reply::status(404));
    scene.sync(&wishlist, &["--prune"]).expect_code(3);
    assert!(scene.has("app/tool:1.0") && scene.has("app/tool:1.1"));
}

#[test]
fn files_with_an_empty_image_config_do_not_displace_an_image() {
    let Some((scene, wishlist)) = newest_of(["1.3", "1.5"]) else { return };
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    scene.push_chart("app/tool", "1.4");
    for (tag, config) in [("2.0", "{}"), ("2.1", ""), ("2.2", "some text"), ("2.3", r#"{"rootfs":{"diff_ids":[]}}"#)] {
        scene.push_files("app/tool", tag, ["", CONFIG, FILE], config.as_bytes());
    }
    for _ in 0..2 {
        let run = scene.sync(&wishlist, &["--prune"]).expect_code(0);
        assert!(run.stdout().contains("2 images: 2 unchanged, 0 published, 0 failed; 5 artifacts"), "{}", run.stdout());
        let lines = run.stderr().lines().filter(|line| line.contains("tool:2.0") && line.contains(FILE)).count();
        assert_eq!(lines, 1, "{}", run.stderr());
        assert!(scene.has("app/tool:1.3") && scene.has("app/tool:1.5"));
    }
}

#[test]
fn damaged_image_fails_and_removes_no_image_below_an_artifact() {
    let Some((scene, wishlist)) = newest_of(["1.3", "1.5"]) else { return };
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    scene.push_chart("app/tool", "1.4");
    scene.push_files("app/tool", "2.0", ["", CONFIG, LAYER], b"{}");
    // The first round tries the tag, and the next rounds do not try it again for some time.
    for _ in 0..2 {
        let run = scene.sync(&wishlist, &["--prune"]).expect_code(3);
        assert!(run.stdout().contains("1 failed") && run.stderr().contains("manifest lists 1 layers"), "{run:?}");
        assert!(scene.has("app/tool:1.3") && scene.has("app/tool:1.5"), "{}", run.stdout());
    }
    scene.registry.push_tags(&image("2"), "app/tool", ["2.0"]);
    std::fs::remove_dir_all(scene.repository.directory().join("state")).unwrap();
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    assert_eq!(["1.3", "1.5", "2.0"].map(|tag| scene.has(&format!("app/tool:{tag}"))), [false, true, true]);
}

#[test]
fn artifact_that_failed_as_a_wish_is_skipped_as_a_match_of_a_pattern() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("1"), "app/tool", ["1.0"]);
    scene.push_chart("app/tool", "chart");
    let rule = scene.wish("rule.yaml", "  - HOST/app/tool:*\n");
    let skips = || {
        let run = scene.sync(&rule, &[]).expect_code(0);
        assert!(run.stdout().contains("1 images:") && run.stdout().contains("1 artifacts skipped"), "{}", run.stdout());
    };
    // A wish that names the artifact fails in every round, with few requests.
    for platforms in ["", ", platforms: linux/arm64"] {
        let wish = format!("  - {{image: HOST/app/tool:chart{platforms}}}\n");
        let named = scene.wish("named.yaml", &wish);
        for round in 0..3 {
            let before = scene.proxy.served().len();
            scene.sync(&named, &[]).expect_code(1);
            if round > 0 {
                assert_eq!(scene.asked_since(before), asked([("HEAD manifests", 1)]));
            }
        }
        skips();
    }
    // While the registry fails, it is not known whether the tag is an artifact.
    scene.proxy.at("/manifests/chart", |_, _| crate::support::Reply::status(404));
    let run = scene.sync(&rule, &[]).expect_code(3);
    assert!(run.stdout().contains("1 failed"), "{}", run.stdout());
    scene.proxy.at("/manifests/chart", |request, _| request.forward());
    skips();
    // A different image under the name is left alone as long as the one that failed.
    scene.proxy.at("/manifests/chart", |_, _| crate::support::Reply::status(404));
    scene.sync(&rule, &[]).expect_code(3);
    scene.proxy.at("/manifests/chart", |request, _| request.forward());
    scene.push_files("app/tool", "chart", ["", CONFIG, LAYER], b"{}");
    let run = scene.sync(&rule, &[]).expect_code(3);
    assert!(run.stderr().contains("failed 1 times"), "{}", run.stderr());
}

#[test]
fn empty_index_is_skipped_with_one_line_and_not_counted() {
    let Some(scene) = Scene::new() else { return };
    for tag in ["1.0", "1.1"] {
        scene.registry.push_tags(&image(tag), "app/tool", [tag]);
    }
    scene.push_empty_index("app/tool", "2.0");
    for platforms in ["", ", platforms: all", ", platforms: linux/arm64"] {
        let wish = format!("  - {{image: HOST/app/tool, tags: {{include: '*', newest: 2}}{platforms}}}\n");
        let run = scene.sync(&scene.wish("list.yaml", &wish), &[]);
        let lines: Vec<String> = run.stderr().lines().filter(|l| l.contains("tool:2.0")).map(str::to_owned).collect();
        assert!(lines.len() == 1 && lines[0].contains("empty index"), "{lines:?}");
        assert!(
            run.stdout().contains("2 images: ") && run.stdout().contains("1 artifacts skipped"),
            "{}",
            run.stdout()
        );
    }
    let name = format!("http://{}/app/tool:2.0", scene.proxy.host());
    scene.repository.refuse(["convert", &name], 1, &["empty index"]);
}

#[test]
fn artifact_that_a_wish_names_fails() {
    let Some(scene) = Scene::new() else { return };
    let (tag, artifact, config, layer) = ARTIFACTS[0];
    scene.push_artifact("app/tool", tag, [artifact, config, layer]);
    scene.registry.push_tags(&image("1"), "app/tool", ["1.0"]);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/tool:*\n  - HOST/app/tool:chart\n");
    let run = scene.sync(&wishlist, &[]).expect_code(3);
    assert!(run.stderr().contains(config) && run.stderr().contains("ERROR"), "{}", run.stderr());
    let name = format!("http://{}/app/tool:chart", scene.proxy.host());
    scene.repository.refuse(["convert", &name], 1, &["artifact", config]);
}

#[test]
fn image_with_the_type_of_an_artifact_is_published() {
    let Some(scene) = Scene::new() else { return };
    let (one, two) = (image("1"), image("2"));
    scene.push_typed(&one, "app/tool", "1.0");
    scene.push_typed(&two, "app/tool", "2.0");
    let wishlist = scene.wish("list.yaml", "  - {image: HOST/app/tool, tags: {newest: 1}}\n");
    let run = scene.sync(&wishlist, &[]).expect_code(0);
    assert!(run.stdout().contains("1 images: 0 unchanged, 1 published, 0 failed;"), "{}", run.stdout());
    assert_eq!(scene.repository.flat(&two).text("etc/content"), "2");
    scene.repository.run(["convert", &format!("http://{}/app/tool:1.0", scene.proxy.host())]).expect_code(0);
    assert_eq!(scene.repository.flat(&one).text("etc/content"), "1");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": one.manifest_digest(),
            "size": one.manifest().len(),
            "artifactType": "application/vnd.example.model",
            "platform": {"os": "linux", "architecture": "amd64"},
        }],
    });
    scene.registry.push_tags(&one, "app/index", ["one"]);
    scene.registry.put_manifest(
        "app/index",
        "1",
        "application/vnd.oci.image.index.v1+json",
        index.to_string().as_bytes(),
    );
    let name = format!("http://{}/app/index:1", scene.proxy.host());
    scene.repository.run(["convert", &name, "--platform", "linux/amd64"]).expect_code(0);
}

#[test]
fn image_without_layers_is_unchanged_once_it_is_published() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&TestImage::new().env("A", "b"), "app/empty", ["1", "2", "3", "4"]);
    let wishlist = scene.wish(
        "list.yaml",
        "  - HOST/app/empty:1\n  - {image: HOST/app/empty:2, chains: all, layers: false}\n  \
         - {image: HOST/app/empty:3, flat: false}\n  - {image: HOST/app/empty:4, platforms: all}\n",
    );
    let run = scene.sync(&wishlist, &[]).expect_code(0);
    assert!(run.stdout().contains("4 images: 0 unchanged, 4 published, 0 failed"), "{}", run.stdout());
    let (before, revision) = (scene.proxy.served().len(), scene.revision());
    let run = scene.sync(&wishlist, &[]).expect_code(0);
    assert!(run.stdout().starts_with("4 images: 4 unchanged, 0 published, 0 failed"), "{}", run.stdout());
    assert_eq!(scene.asked_since(before), asked([("HEAD manifests", 4)]));
    assert_eq!(scene.revision(), revision);
    let run = scene.repository.run(["convert", &format!("http://{}/app/empty:1", scene.proxy.host())]).expect_code(0);
    assert!(run.stdout().contains("nothing to do"), "{}", run.stdout());
}

#[test]
fn missing_chains_are_noticed_and_published() {
    let Some(scene) = Scene::new() else { return };
    let image = image("1").layer(|layer| layer.file("etc/upper", "")).layer(|layer| layer.file("etc/top", ""));
    scene.registry.push_tags(&image, "app/tool", ["1"]);
    let of = |chains: &str| {
        scene.wish("list.yaml", &format!("  - {{image: HOST/app/tool:1, layers: false, chains: {chains}}}\n"))
    };
    scene.sync(&of("final"), &[]).expect_code(0);
    let run = scene.sync(&of("all"), &[]).expect_code(0);
    assert!(run.stdout().contains("1 published"), "{}", run.stdout());
    let run = scene.sync(&of("all"), &[]).expect_code(0);
    assert!(run.stdout().contains("1 unchanged"), "{}", run.stdout());
}
