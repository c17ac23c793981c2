//! The store of podman after a synchronisation.

use serde_json::json;

use super::{Scene, asked, image};

impl Scene {
    /// Returns the names in the store, grouped by image.
    fn podman_names(&self) -> Vec<Vec<String>> {
        if !self.repository.has("/podmanStore") {
            return Vec::new();
        }
        let images = self.repository.json("podmanStore/overlay-images/images.json");
        let names = images.as_array().unwrap().iter().map(|entry| entry["names"].as_array().unwrap().clone());
        names.map(|names| names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()).collect()
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.proxy.host())
    }
}

#[test]
fn pruned_name_leaves_the_store_and_its_image_stays() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("1"), "app/tool", ["1", "2"]);
    let both = scene.wish("list.yaml", "  - HOST/app/tool:1\n  - HOST/app/tool:2\n");
    scene.sync(&both, &[]).expect_code(0);
    assert_eq!(scene.podman_names(), [[scene.full("app/tool:1"), scene.full("app/tool:2")]]);
    let one = scene.wish("list.yaml", "  - HOST/app/tool:2\n");
    scene.sync(&one, &["--prune"]).expect_code(0);
    assert_eq!(scene.podman_names(), [[scene.full("app/tool:2")]]);
    let none = scene.write("list.yaml", "version: 2\nimages: []\n");
    scene.sync(&none, &["--prune-all"]).expect_code(0);
    assert_eq!(scene.podman_names(), [Vec::<String>::new()]);
    scene.repository.run(["check"]).expect_code(0);
}

#[test]
fn images_are_added_to_the_store_later_without_fetching_blobs() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("1"), "app/tool", ["1"]);
    scene.registry.push_tags(&image("2").setting("Cmd", json!("text")), "app/tool", ["refused"]);
    let without = scene.wish("list.yaml", "  - {image: HOST/app/tool, tags: '*', podman: false}\n");
    scene.sync(&without, &[]).expect_code(0);
    assert_eq!(scene.podman_names(), Vec::<Vec<String>>::new());
    let with = scene.wish("list.yaml", "  - {image: HOST/app/tool, tags: '*'}\n");
    let layers = image("1").layer_digests();
    let read = |scene: &Scene| scene.proxy.blobs().iter().filter(|blob| layers.contains(blob)).count();
    let before = read(&scene);
    scene.sync(&with, &[]).expect_code(0);
    assert_eq!(scene.podman_names(), [[scene.full("app/tool:1")]]);
    assert_eq!(read(&scene), before);
    // An image that podman would refuse is not tried again in every round.
    let (before, revision) = (scene.proxy.served().len(), scene.revision());
    let run = scene.sync(&with, &[]).expect_code(0);
    assert!(run.stdout().starts_with("2 images: 2 unchanged"), "{}", run.stdout());
    assert_eq!(scene.asked_since(before), asked([("GET tags", 1), ("HEAD manifests", 2)]));
    assert_eq!(scene.revision(), revision);
}
