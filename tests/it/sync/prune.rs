//! A wishlist that is probably a mistake removes nothing, and a dry run lists what would be removed.

use std::fs;

use serde_json::json;

use super::{Scene, image};

fn tags(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("v{number}")).collect()
}

impl Scene {
    /// Writes a wishlist of the first `count` tags.
    fn wish_tags(&self, count: usize) -> String {
        let wishes: String = tags(count).iter().map(|tag| format!("  - HOST/app/tool:{tag}\n")).collect();
        if count == 0 { self.write("list.yaml", "version: 2\nimages: []\n") } else { self.wish("list.yaml", &wishes) }
    }

    fn published_tags(&self) -> usize {
        let names = self.repository.list(&self.public("app"));
        names.iter().filter(|name| name.starts_with("tool:")).count()
    }
}

fn scene_of(count: usize) -> Option<(Scene, String)> {
    let scene = Scene::new()?;
    scene.registry.push_tags(&image("x"), "app/tool", tags(count));
    let wishlist = scene.wish_tags(count);
    scene.sync(&wishlist, &[]).expect_code(0);
    assert_eq!(scene.published_tags(), count);
    Some((scene, wishlist))
}

#[test]
fn wishlist_that_lost_many_images_removes_nothing_without_confirmation() {
    let Some((scene, wishlist)) = scene_of(16) else { return };
    scene.wish_tags(11);
    let revision = scene.revision();
    for _ in 0..2 {
        let run = scene.sync(&wishlist, &["--prune"]).expect_code(3);
        assert!(
            run.stderr().contains("5 of its 16 images") && run.stderr().contains("--prune-all"),
            "{}",
            run.stderr()
        );
        assert!(!run.stdout().contains("removed"), "{}", run.stdout());
        assert_eq!((scene.published_tags(), scene.revision()), (16, revision));
    }
    // Without `--prune`, a shorter wishlist is not treated as a mistake.
    scene.sync(&wishlist, &[]).expect_code(0);
    // Four of 16 images are not more than a quarter, so that they are removed.
    scene.wish_tags(12);
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    assert_eq!(scene.published_tags(), 12);
    scene.wish_tags(1);
    scene.sync(&wishlist, &["--prune"]).expect_code(3);
    let json = scene.sync(&wishlist, &["--prune", "--prune-all", "--json"]).expect_code(0).json();
    assert_eq!(json["removed"].as_array().unwrap().len(), 11);
    assert_eq!(scene.published_tags(), 1);
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
}

#[test]
fn wishlist_that_became_empty_removes_nothing_without_confirmation() {
    let Some((scene, wishlist)) = scene_of(2) else { return };
    scene.wish_tags(0);
    let run = scene.sync(&wishlist, &["--prune"]).expect_code(3);
    assert!(run.stderr().contains("became empty") && run.stderr().contains("--prune-all"), "{}", run.stderr());
    assert_eq!(scene.published_tags(), 2);
    scene.sync(&wishlist, &["--prune-all"]).expect_code(0);
    assert!(!scene.repository.has(&scene.public("app/tool:v0")));
}

#[test]
fn images_are_converted_although_nothing_is_removed() {
    let Some((scene, wishlist)) = scene_of(6) else { return };
    scene.registry.push_tags(&image("new"), "app/new", ["1"]);
    scene.wish("list.yaml", "  - HOST/app/new:1\n");
    scene.sync(&wishlist, &["--prune"]).expect_code(3);
    assert!(scene.has("app/new:1") && scene.has("app/tool:v5"));
}

#[test]
fn dry_run_lists_what_would_be_done_and_changes_nothing() {
    let Some((scene, wishlist)) = scene_of(3) else { return };
    scene.registry.push_tags(&image("changed"), "app/tool", ["v0"]);
    scene.registry.push_tags(&image("new"), "app/new", ["1"]);
    let wishes = "  - HOST/app/tool:v0\n  - HOST/app/tool:v1\n  - HOST/app/new:1\n  - HOST/app/missing:1\n";
    scene.wish("list.yaml", wishes);
    let (files, blobs) = (scene.repository.storage_files(), scene.proxy.blobs().len());
    let notes = scene.repository.beside("notes");
    let run = scene.sync(&wishlist, &["--dry-run", "--prune", "-n", notes.to_str().unwrap()]).expect_code(3);
    let host = scene.proxy.host();
    let output = run.stdout();
    for line in [
        format!("{host}/app/tool:v0  {}  1 layers, 1 to read", image("changed").manifest_digest()),
        format!("{host}/app/new:1  {}  1 layers, 1 to read", image("new").manifest_digest()),
        format!("{host}/app/tool:v2  to be removed\n"),
        "4 images: 1 unchanged, 2 to publish, 1 failed, 1 to remove\n".to_owned(),
    ] {
        assert!(output.contains(&line), "{line} is not in {output}");
    }
    assert!(!run.stderr().contains("ready to be published"), "{}", run.stderr());
    scene.repository.assert_unchanged(&files);
    assert!(!notes.exists(), "a dry run writes no notifications");
    // Manifests and configs are fetched, but no layers.
    let layers = [image("changed"), image("new")].map(|image| image.layer_digests()[0].clone());
    assert!(scene.proxy.blobs()[blobs..].iter().all(|blob| !layers.contains(blob)));
    let json = scene.sync(&wishlist, &["--dry-run", "--prune", "--json"]).expect_code(3).json();
    let states: Vec<_> = json["images"].as_array().unwrap().iter().map(|image| &image["state"]).collect();
    assert_eq!(states, ["planned", "unchanged", "planned", "failed"]);
    let gone = json!([format!("{host}/app/tool:v2")]);
    assert_eq!((&json["dry-run"], &json["removed"], &json["prunable"]), (&json!(true), &gone, &gone));
    assert_eq!(json["revisions"], json!([]));
    // A failure in a dry run does not delay the next attempt.
    let run = scene.sync(&wishlist, &["--prune"]).expect_code(3);
    assert!(!run.stderr().contains("is tried again at"), "{}", run.stderr());
    assert!(scene.has("app/new:1") && !scene.has("app/tool:v2"));
}

#[test]
fn dry_run_lists_what_prune_would_remove() {
    let Some((scene, wishlist)) = scene_of(2) else { return };
    scene.wish_tags(1);
    let output = scene.sync(&wishlist, &["--dry-run"]).expect_code(0).stdout();
    assert!(output.contains("app/tool:v1  would be removed with --prune\n"), "{output}");
    let json = scene.sync(&wishlist, &["--dry-run", "--json"]).expect_code(0).json();
    assert_eq!((json["removed"].as_array().unwrap().len(), json["prunable"].as_array().unwrap().len()), (0, 1));
    scene.wish_tags(0);
    let output = scene.sync(&wishlist, &["--dry-run"]).expect_code(0).stdout();
    assert!(output.contains("app/tool:v1  would be removed with --prune-all only\n"), "{output}");
    let run = scene.sync(&wishlist, &["--dry-run", "--prune"]).expect_code(3);
    assert!(run.stderr().contains("nothing is removed") && run.stderr().contains("--prune-all"), "{}", run.stderr());
    let output = scene.sync(&wishlist, &["--dry-run", "--prune-all"]).expect_code(0).stdout();
    assert!(output.contains("app/tool:v0  to be removed\n"), "{output}");
    // Images of another wishlist stay.
    let other = scene.wish("other.yaml", "  - HOST/app/tool:v0\n");
    scene.sync(&other, &[]).expect_code(0);
    let output = scene.sync(&wishlist, &["--dry-run", "--prune-all"]).expect_code(0).stdout();
    assert!(!output.contains("app/tool:v0  to be removed"), "{output}");
    assert_eq!(scene.published_tags(), 2);
    fs::remove_file(other).unwrap();
}

#[test]
fn dry_run_conflicts_with_watch_and_thin_images() {
    let Some((scene, wishlist)) = scene_of(1) else { return };
    for option in ["--watch", "--thin-images"] {
        scene.sync(&wishlist, &["--dry-run", option]).expect_code(2);
    }
}
