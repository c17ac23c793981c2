//! Thin images for Docker's graph driver, pushed to a real registry.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{Scene, asked, image};
use crate::support::{FQRN, PASSWORD, Run, TestImage, TestRegistry, USER, layer_path, run};

impl Scene {
    /// Writes a recipe that pushes thin images to `output`; `HOST` is replaced by the proxy's host.
    fn thin_recipe(&self, output: &str, inputs: &[&str]) -> String {
        let inputs: String = inputs.iter().map(|input| format!("  - '{input}'\n")).collect();
        let text = format!("version: 1\nuser: {USER}\noutput_format: '{output}'\ninput:\n{inputs}");
        self.write("recipe.yaml", &text.replace("HOST", &self.proxy.host()))
    }

    /// Reads an image with skopeo: its manifest, its config, and the content of its only layer.
    fn read_back(&self, image: &str) -> (Value, Value, Vec<(String, u32, String)>) {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]);
        command.args(["--src-creds", &format!("{USER}:{PASSWORD}")]);
        run(command.arg(format!("docker://{image}")).arg(format!("dir:{}", directory.path().display())));
        let blob =
            |digest: &Value| fs::read(directory.path().join(digest.as_str().unwrap().replace("sha256:", ""))).unwrap();
        let manifest: Value =
            serde_json::from_slice(&fs::read(directory.path().join("manifest.json")).unwrap()).unwrap();
        let config = serde_json::from_slice(&blob(&manifest["config"]["digest"])).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1);
        (manifest.clone(), config, members(&blob(&layers[0]["digest"])))
    }

    fn thin_json(&self, image: &str) -> Value {
        let members = self.read_back(image).2;
        let [(name, mode, text)] = &members[..] else { panic!("not one file: {members:?}") };
        assert_eq!((name.as_str(), *mode), ("thin.json", 0o644));
        serde_json::from_str(text).unwrap()
    }
}

fn members(layer: &[u8]) -> Vec<(String, u32, String)> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(layer));
    let members = archive.entries().unwrap().map(|member| {
        let mut member = member.unwrap();
        let name = member.path().unwrap().display().to_string();
        let mode = member.header().mode().unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut member, &mut text).unwrap();
        (name, mode, text)
    });
    members.collect()
}

fn athena(content: &str) -> TestImage {
    let image = image("base").layer(|layer| layer.file("etc/version", content)).env("RELEASE", content);
    image.entrypoint(["/bin/setup"]).cmd(["athena", "two words"]).setting("User", json!("1000"))
}

#[test]
fn each_tag_of_a_wildcard_gets_its_thin_image_with_thin_images() {
    let Some(scene) = Scene::new() else { return };
    for tag in ["21.0.1", "21.0.2"] {
        scene.registry.push_tags(&athena(tag), "atlas/athena", [tag]);
    }
    let recipe = scene.thin_recipe("http://HOST/thin/$(image)", &["http://HOST/atlas/athena:21.0.*"]);
    scene.sync(&recipe, &[]).expect_code(0);
    assert!(
        scene.proxy.served().iter().all(|served| !served.path.contains("/v2/thin/")),
        "no thin image was requested"
    );
    let run = scene.sync(&recipe, &["--thin-images"]).expect_code(0);
    let host = scene.proxy.host();
    for tag in ["21.0.1", "21.0.2"] {
        let name = format!("{host}/thin/atlas/athena:{tag}");
        assert!(run.stdout().contains(&format!("{name}  pushed, thin image of {host}/atlas/athena:{tag}")));
        let thin = scene.thin_json(&name);
        assert_eq!(thin.as_object().unwrap().keys().collect::<Vec<_>>(), ["version", "origin", "layers"]);
        assert_eq!(thin["origin"], format!("http://{host}/atlas/athena:{tag}"));
        let image = athena(tag);
        let layers = image.layer_digests().into_iter().enumerate().map(|(number, digest)| {
            let path = layer_path(&image, number);
            assert!(scene.repository.has(&path));
            json!({"digest": digest.replace("sha256:", ""), "url": format!("cvmfs://{FQRN}/{path}")})
        });
        assert_eq!(thin["layers"], Value::Array(layers.collect()));
        let (manifest, config, _) = scene.read_back(&name);
        assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
        let expected = json!({
            "Env": ["CVMFS_IMAGE=true", format!("RELEASE={tag}")], "Entrypoint": ["/bin/setup"],
            "Cmd": ["athena", "two words"], "User": "1000",
        });
        assert_eq!(config["config"], expected);
    }
    let before = scene.proxy.served().len();
    scene.sync(&recipe, &["--thin-images"]).expect_code(0);
    assert_eq!(scene.asked_since(before), asked([("GET tags", 1), ("HEAD manifests", 4)]));
    scene.registry.push_tags(&athena("new"), "atlas/athena", ["21.0.2"]);
    let run = scene.sync(&recipe, &["--thin-images", "--json"]).expect_code(0).json();
    let states: Vec<&Value> = run["thin-images"].as_array().unwrap().iter().map(|thin| &thin["state"]).collect();
    assert_eq!(states, ["unchanged", "pushed"]);
    let moved = scene.thin_json(&format!("{host}/thin/atlas/athena:21.0.2"));
    assert_eq!(moved["layers"][1]["digest"], athena("new").layer_digests()[1].replace("sha256:", ""));
    scene.repository.run(["check"]).expect_code(0);
}

#[test]
fn thin_image_is_pushed_after_its_image_is_published() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let published = scene.repository.storage().join(".cvmfspublished");
    let before = fs::read(&published).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    scene.proxy.at("/v2/app/a_thin/", move |request, _| {
        note.lock().unwrap().push((request.method.clone(), fs::read(&published).unwrap() != before));
        request.forward()
    });
    let recipe = scene.thin_recipe("http://$(registry)/$(repository)_thin:$(tag)", &["http://HOST/app/a:1"]);
    scene.sync(&recipe, &["--thin-images"]).expect_code(0);
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().any(|(method, _)| method == "PUT") && seen.iter().all(|(_, is_out)| *is_out), "{seen:?}");
    assert_eq!(scene.thin_json(&format!("{}/app/a_thin:1", scene.proxy.host()))["version"], "1.0");
}

#[test]
fn push_uses_the_password_of_the_output_and_its_failure_does_not_affect_images() {
    let (Some(scene), Some(output)) = (Scene::new(), TestRegistry::with_password()) else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let target = format!("http://{}/thin/$(image)", output.host());
    let recipe = scene.thin_recipe(&target, &["http://HOST/app/a:1"]);
    let sync = |password: Option<&str>| {
        let mut command = scene.repository.command(["sync", &recipe, "--thin-images"]);
        Run::of(command.envs(password.map(|password| ("DUCC_OUTPUT_REGISTRY_PASS", password))))
    };
    for password in [None, Some("another word")] {
        let run = sync(password).expect_code(3);
        assert!(run.stderr().contains(&format!("cannot push '{}/thin/app/a:1'", output.host())), "{}", run.stderr());
        assert!(!run.stderr().contains("another word"), "{}", run.stderr());
    }
    assert!(scene.has("app/a:1"));
    let run = sync(Some(PASSWORD)).expect_code(0);
    assert!(
        run.stdout().contains("1 unchanged") && run.stdout().contains("  pushed, thin image of "),
        "{}",
        run.stdout()
    );
    assert_eq!(scene.thin_json(&format!("{}/thin/app/a:1", output.host()))["version"], "1.0");
    let section = format!("[registries.\"{}\"]\nusername = \"{USER}\"\npassword = \"{PASSWORD}\"", output.host());
    scene.repository.set(&section);
    let run = sync(None).expect_code(0);
    assert!(!run.stdout().contains("pushed"), "{}", run.stdout());
}

#[test]
fn image_without_a_name_for_its_thin_image_gets_none() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1", "2"]);
    let digest = image("a").manifest_digest();
    let inputs =
        [format!("http://HOST/app/a@{digest}"), "http://HOST/app/a:1".to_owned(), "http://HOST/app/a:2".to_owned()];
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let recipe = scene.thin_recipe("http://HOST/thin/$(repository):$(tag)", &inputs);
    let run = scene.sync(&recipe, &["--thin-images"]).expect_code(0);
    let warned = format!("no thin image of {}/app/a@{digest}", scene.proxy.host());
    assert!(run.stderr().contains(&warned) && run.stdout().matches("  pushed, ").count() == 2, "{}", run.stderr());
    let recipe = scene.thin_recipe("http://HOST/thin/all:1", &inputs[1..]);
    let run = scene.sync(&recipe, &["--thin-images"]).expect_code(0);
    assert!(run.stderr().contains("app/a:1' has the same name"), "{}", run.stderr());
    assert!(run.stdout().matches("  pushed, ").count() == 1, "{}", run.stdout());
    let wishlist = scene.wish("list.yaml", "  - HOST/app/a:1\n");
    assert!(Path::new(&wishlist).exists());
    scene.repository.refuse(["sync", &wishlist, "--thin-images"], 2, &["--thin-images", "version 1"]);
}
