//! `strata sync` keeps a repository in step with a wishlist.

mod artifacts;
mod cancellation;
mod ducc;
mod lines;
mod podman;
mod prune;
mod recipe;
mod slow;
mod thin;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Stdio};

use serde_json::json;

use crate::support::fuse::wait_until;
use crate::support::{Delivery, FaultProxy, Reply, Run, TestImage, TestRegistry, TestRepository, layer_path};

/// A registry, a recording proxy for it, and a repository with a wishlist.
struct Scene {
    registry: TestRegistry,
    proxy: FaultProxy,
    repository: TestRepository,
}

impl Scene {
    #[track_caller]
    fn new() -> Option<Self> {
        let registry = TestRegistry::start()?;
        let proxy = FaultProxy::start(registry.port());
        Some(Self { registry, proxy, repository: TestRepository::new() })
    }

    /// Writes a wishlist of version 2, in which `HOST` is replaced by the proxy's host.
    fn wish(&self, name: &str, images: &str) -> String {
        let text = format!("version: 2\nimages:\n{images}").replace("HOST", &self.proxy.host());
        self.write(name, &text)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.repository.beside(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn sync(&self, wishlist: &str, options: &[&str]) -> Run {
        self.repository.run([&["sync", wishlist], options].concat())
    }

    /// Returns the number of requests since `before`, by method and kind.
    fn asked_since(&self, before: usize) -> BTreeMap<String, usize> {
        let mut asked = BTreeMap::new();
        for served in &self.proxy.served()[before..] {
            let kinds = ["manifests", "blobs", "tags"];
            let kind = kinds.into_iter().find(|kind| served.path.contains(&format!("/{kind}/"))).unwrap_or("other");
            *asked.entry(format!("{} {kind}", served.method)).or_default() += 1;
        }
        asked
    }

    fn public(&self, name: &str) -> String {
        format!("/{}/{name}", self.proxy.host())
    }

    fn has(&self, name: &str) -> bool {
        self.repository.has(&self.public(name))
    }

    fn revision(&self) -> u64 {
        self.repository.reader().revision()
    }
}

fn image(content: &str) -> TestImage {
    TestImage::new().layer(|layer| layer.file("etc/content", content))
}

fn asked<const N: usize>(requests: [(&str, usize); N]) -> BTreeMap<String, usize> {
    requests.into_iter().map(|(request, count)| (request.to_owned(), count)).collect()
}

#[test]
fn only_changed_images_are_fetched_and_others_cost_one_small_request_each() {
    let Some(scene) = Scene::new() else { return };
    let tags: Vec<String> = (0..1000).map(|number| format!("v{number}")).collect();
    scene.registry.push_tags(&image("old"), "app/tool", &tags);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/tool:v*\n");
    scene.sync(&wishlist, &[]).expect_code(0);
    assert_eq!(scene.revision(), 2, "all images are one revision");
    let before = scene.proxy.served().len();
    let run = scene.sync(&wishlist, &[]).expect_code(0);
    assert!(run.stdout().starts_with("1000 images: 1000 unchanged, 0 published, 0 failed"), "{}", run.stdout());
    assert_eq!(scene.asked_since(before), asked([("GET tags", 1), ("HEAD manifests", 1000)]));
    assert_eq!(scene.revision(), 2);
    scene.registry.push_tags(&image("new"), "app/tool", &tags[500..510]);
    let before = scene.proxy.served().len();
    let json = scene.sync(&wishlist, &["--json"]).expect_code(0).json();
    let published: BTreeSet<&str> = json["images"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|image| image["state"] == "published")
        .filter_map(|image| image["name"].as_str())
        .collect();
    let expected: BTreeSet<String> =
        tags[500..510].iter().map(|tag| format!("{}/app/tool:{tag}", scene.proxy.host())).collect();
    assert_eq!(published, expected.iter().map(String::as_str).collect());
    let manifests = scene.proxy.served()[before..].iter().filter(|served| served.path.contains("/manifests/")).count();
    assert_eq!(manifests, 1000 + 10);
    let blobs: BTreeSet<String> = scene.proxy.blobs().into_iter().collect();
    let images = [image("old"), image("new")];
    let known: BTreeSet<String> = images.iter().flat_map(|image| image.blobs().into_keys()).collect();
    assert_eq!(blobs, known);
    let layers = scene.proxy.blobs().into_iter().filter(|blob| *blob == image("new").layer_digests()[0]).count();
    assert_eq!((layers, scene.revision()), (1, 3));
    scene.repository.run(["check", "--quick"]).expect_code(0);
}

#[test]
fn shared_layers_are_fetched_once_and_all_images_are_in_one_revision() {
    let Some(scene) = Scene::new() else { return };
    let of = |number: usize| {
        TestImage::new()
            .layer(|layer| layer.file("usr/lib/base", "base ".repeat(50_000)).hardlink("usr/lib/same", "usr/lib/base"))
            .layer(|layer| layer.file("etc/shared", "by the even ones ").file("etc/parity", (number % 2).to_string()))
            .layer(|layer| layer.file("etc/number", number.to_string()))
    };
    for number in 0..50 {
        scene.registry.push_tags(&of(number), &format!("app/n{number}"), ["1"]);
    }
    let wishes: String = (0..50).map(|number| format!("  - HOST/app/n{number}:1\n")).collect();
    let wishlist = scene.wish("list.yaml", &wishes);
    scene.sync(&wishlist, &["--threads", "2"]).expect_code(0);
    assert_eq!(scene.revision(), 2);
    let mut fetched: BTreeMap<String, usize> = BTreeMap::new();
    scene.proxy.blobs().into_iter().for_each(|blob| *fetched.entry(blob).or_default() += 1);
    let layers: BTreeSet<String> = (0..50).flat_map(|number| of(number).layer_digests()).collect();
    assert_eq!(layers.len(), 1 + 2 + 50);
    assert!(layers.iter().all(|layer| fetched.get(layer) == Some(&1)), "{fetched:?}");
    for number in [0, 7, 49] {
        assert_eq!(scene.repository.flat(&of(number)).text("etc/number"), number.to_string());
    }
    scene.repository.run(["check"]).expect_code(0);
}

#[test]
fn failed_image_is_not_retried_for_a_while_and_does_not_delay_others() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("good"), "app/good", ["1"]);
    scene.registry.push_tags(&image("bad"), "app/bad", ["1"]);
    let wrong = image("bad").layer_digests()[0].clone();
    scene.proxy.at(&wrong, |request, _| request.forward().body(|body| body[20] ^= 1));
    let wishlist = scene.wish("list.yaml", "  - HOST/app/bad:1\n  - HOST/app/missing:1\n  - HOST/app/good:1\n");
    let run = scene.sync(&wishlist, &["--json"]).expect_code(3);
    let json = run.json();
    let states: Vec<_> = json["images"].as_array().unwrap().iter().map(|image| &image["state"]).collect();
    assert_eq!(states, ["failed", "failed", "published"]);
    assert!(json["images"][0]["error"].as_str().unwrap().contains(&wrong), "{json}");
    assert!(json["images"][1]["error"].as_str().unwrap().contains("app/missing:1"), "{json}");
    assert!(scene.has("app/good:1") && !scene.has("app/bad:1"));
    let (before, revision) = (scene.proxy.served().len(), scene.revision());
    let run = scene.sync(&wishlist, &[]).expect_code(3);
    assert!(run.stderr().contains("is tried again at"), "{}", run.stderr());
    assert_eq!(scene.asked_since(before), asked([("HEAD manifests", 1)]));
    assert_eq!(scene.revision(), revision);
    // When the state is deleted, every image is tried again.
    fs::remove_dir_all(scene.repository.directory().join("state")).unwrap();
    scene.proxy.at(&wrong, |request, _| request.forward());
    scene.sync(&wishlist, &[]).expect_code(3);
    assert!(scene.has("app/bad:1"));
    scene.repository.run(["check"]).expect_code(0);
    let none = scene.wish("none.yaml", "  - HOST/app/missing:1\n");
    fs::remove_dir_all(scene.repository.directory().join("state")).unwrap();
    scene.sync(&none, &[]).expect_code(1);
}

#[test]
fn images_that_left_the_wishlist_are_removed_only_with_prune() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    scene.registry.push_tags(&image("b"), "app/b", ["1", "2"]);
    let both = scene.wish("list.yaml", "  - HOST/app/a:1\n  - HOST/app/b:*\n");
    scene.sync(&both, &[]).expect_code(0);
    let other = scene.wish("other.yaml", "  - HOST/app/b:2\n");
    scene.sync(&other, &["--prune"]).expect_code(0);
    scene.repository.convert(&image("by hand"), "registry.example.org/by/hand:1", &[]).expect_code(0);
    assert!(scene.has("app/a:1") && scene.has("app/b:1") && scene.has("app/b:2"));
    scene.wish("list.yaml", "  - HOST/app/a:1\n");
    scene.sync(&both, &[]).expect_code(0);
    assert!(scene.has("app/b:1"), "without --prune nothing is removed");
    let run = scene.sync(&both, &["--prune"]).expect_code(0);
    assert!(run.stdout().contains("app/b:1  removed"), "{}", run.stdout());
    assert!(scene.has("app/a:1") && !scene.has("app/b:1"));
    assert!(!scene.repository.has(&format!("/.metadata{}", scene.public("app/b:1"))));
    assert!(scene.has("app/b:2"), "another wishlist holds it");
    assert!(scene.repository.has("/registry.example.org/by/hand:1"));
    let unused = scene.repository.json("/.metadata/candidates.json").to_string();
    assert!(unused.contains(&image("b").layer_digests()[0].replace("sha256:", "")), "{unused}");
    scene.repository.run(["check"]).expect_code(0);
    let again = scene.sync(&both, &["--prune"]).expect_code(0);
    assert!(!again.stdout().contains("removed"), "{}", again.stdout());
}

#[test]
fn nothing_is_removed_while_a_list_of_tags_fails_or_is_empty() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/a:*\n");
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    for (code, list) in
        [(1, json!({"errors": [{"code": "DOWN"}]})), (0, json!({"tags": null})), (0, json!({"tags": []}))]
    {
        scene.proxy.at("/tags/list", move |_, _| Reply::json(200, &list));
        let run = scene.sync(&wishlist, &["--prune"]).expect_code(code);
        assert!(run.stderr().contains("nothing is removed"), "{}", run.stderr());
        assert!(scene.has("app/a:1"));
    }
    scene.proxy.at("/tags/list", |_, _| Reply::status(404));
    let run = scene.sync(&wishlist, &["--prune"]).expect_code(1);
    assert!(run.stderr().contains("app/a") && run.stderr().contains("nothing is removed"), "{}", run.stderr());
    assert!(scene.has("app/a:1"));
    scene.write("list.yaml", "version: 1\ninput: [not an image]\n");
    scene.sync(&wishlist, &["--prune"]).expect_code(1);
    assert!(scene.has("app/a:1"));
}

#[test]
fn image_that_was_not_published_for_the_wishlist_is_not_removed() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let name = format!("{}/app/b:1", scene.proxy.host());
    scene.repository.convert(&image("by hand"), &name, &[]).expect_code(0);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/a:1\n  - HOST/app/b:1\n");
    scene.sync(&wishlist, &[]).expect_code(3);
    scene.wish("list.yaml", "  - HOST/app/a:1\n");
    scene.sync(&wishlist, &["--prune"]).expect_code(0);
    assert!(scene.has("app/b:1"), "the wish has failed in every round");
}

#[test]
fn all_platforms_of_a_wish_are_published_and_checked_by_their_index() {
    let Some(scene) = Scene::new() else { return };
    let platforms = ["amd64", "arm64", "riscv64", "s390x"].map(|name| image(name).platform("linux", name));
    scene.registry.push_index(&platforms, "app/tool:1");
    let wishlist = scene.wish("list.yaml", "  - {image: HOST/app/tool:1, platforms: all}\n");
    scene.sync(&wishlist, &[]).expect_code(0);
    for platform in ["amd64", "arm64", "riscv64", "s390x"] {
        assert!(scene.repository.has(&format!("/.multiarch/{platform}{}", scene.public("app/tool:1"))));
    }
    let before = scene.proxy.served().len();
    scene.sync(&wishlist, &[]).expect_code(0);
    assert_eq!(scene.asked_since(before), asked([("HEAD manifests", 1)]));
    let two = "  - {image: HOST/app/tool:1, platforms: [linux/amd64, linux/arm64]}\n";
    scene.wish("list.yaml", two);
    scene.sync(&wishlist, &[]).expect_code(0);
    assert!(!scene.repository.has(&format!("/.multiarch/s390x{}", scene.public("app/tool:1"))));
    scene.repository.run(["check"]).expect_code(0);
}

#[test]
fn whole_project_of_a_plain_registry_is_a_wish() {
    let Some(scene) = Scene::new() else { return };
    for repository in ["team/one", "team/sub/two", "team/cache", "teamwork/three"] {
        scene.registry.push_tags(&image(repository), repository, ["1.9", "1.10", "2.0-rc1"]);
    }
    let wish = "  - {project: HOST/team, api: catalog, repositories: {exclude: '*/cache'}, tags: {include: '1.*', newest: 1}}\n";
    let run = scene.sync(&scene.wish("list.yaml", wish), &["--json"]).expect_code(0).json();
    let names: Vec<&str> =
        run["images"].as_array().unwrap().iter().filter_map(|image| image["name"].as_str()).collect();
    let host = scene.proxy.host();
    assert_eq!(names, [format!("{host}/team/one:1.10"), format!("{host}/team/sub/two:1.10")]);
}

#[test]
fn options_of_a_wish_decide_what_is_published() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    let wishlist = scene.wish(
        "list.yaml",
        "  - {image: HOST/app/a:1, layers: false, chains: none, name: registry.example.org/renamed:x}\n",
    );
    scene.sync(&wishlist, &[]).expect_code(0);
    assert!(scene.repository.has("/registry.example.org/renamed:x") && !scene.has("app/a:1"));
    assert!(!scene.repository.has(&layer_path(&image("a"), 0)) && !scene.repository.has("/.chains"));
    let before = scene.proxy.served().len();
    scene.sync(&wishlist, &[]).expect_code(0);
    assert_eq!(scene.asked_since(before), asked([("HEAD manifests", 1)]));
    let more = scene.wish("list.yaml", "  - {image: HOST/app/a:1, name: registry.example.org/renamed:x}\n");
    scene.sync(&more, &[]).expect_code(0);
    assert!(scene.repository.has(&layer_path(&image("a"), 0)));
}

#[test]
fn registry_that_asks_to_wait_delays_only_its_own_images() {
    let Some(scene) = Scene::new() else { return };
    let other = FaultProxy::start(scene.registry.port());
    for name in ["app/slow", "app/fast"] {
        scene.registry.push_tags(&image(name), name, ["1"]);
    }
    // The registry asks to wait until a revision is published, which can only contain the other image.
    let (manifest, before) = (scene.repository.storage().join(".cvmfspublished"), scene.repository.manifest_bytes());
    scene.proxy.at("/v2/app/slow/manifests/", move |request, _| match fs::read(&manifest).unwrap() == before {
        true => Reply::status(429).with("retry-after", 1),
        false => request.forward(),
    });
    let wishes = format!("  - HOST/app/slow:1\n  - {}/app/fast:1\n", other.host());
    let wishlist = scene.wish("list.yaml", &wishes);
    scene.repository.set("[publish]\nevery = \"100ms\"");
    let run = scene.sync(&wishlist, &[]).expect_code(0);
    assert!(
        run.stderr().contains("app/slow:1\n") && run.stderr().contains(" asks clients to wait 1s; "),
        "{}",
        run.stderr()
    );
    assert!(scene.has("app/slow:1") && scene.repository.has(&format!("/{}/app/fast:1", other.host())));
    assert_eq!(scene.revision(), 3, "the fast one did not wait for the slow one");
}

/// A running program, which is killed when the value is dropped.
struct Running(Child);

impl Running {
    /// Ends the program with SIGTERM.
    fn end(&mut self) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM)
            .unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Scene {
    fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.repository.command(arguments);
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

#[test]
fn killed_run_does_not_fetch_finished_layers_again() {
    let Some(scene) = Scene::new() else { return };
    let image = TestImage::new()
        .layer(|layer| layer.file("etc/first", "first ".repeat(100_000)))
        .layer(|layer| layer.file("etc/second", "second ".repeat(100_000)).whiteout("etc/first"))
        .layer(|layer| layer.file("etc/third", "third ".repeat(100_000)));
    scene.registry.push_tags(&image, "app/tool", ["1"]);
    let layers = image.layer_digests();
    scene.proxy.at(&layers[2], |request, _| request.forward().delivery(Delivery::Stall(100)));
    let name = format!("{}/app/tool:1", scene.proxy.host());
    let kept = scene.repository.directory().join("state/layers");
    for command in [["convert", name.as_str()], ["sync", &scene.wish("list.yaml", "  - HOST/app/tool:1\n")]] {
        let running = scene.start(&command);
        wait_until("two layers are kept", || fs::read_dir(&kept).is_ok_and(|files| files.count() == 2));
        drop(running);
    }
    let fetched = scene.proxy.blobs();
    for layer in &layers[..2] {
        assert_eq!(fetched.iter().filter(|blob| *blob == layer).count(), 1, "{fetched:?}");
    }
    scene.proxy.at(&layers[2], |request, _| request.forward());
    scene.repository.run(["convert", &name]).expect_code(0);
    let fetched = scene.proxy.blobs();
    assert!(layers[..2].iter().all(|layer| fetched.iter().filter(|blob| *blob == layer).count() == 1), "{fetched:?}");
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    let straight = TestRepository::publish(&image);
    assert_eq!(scene.repository.flat(&image).entries(), straight.flat(&image).entries());
    scene.repository.run(["check"]).expect_code(0);
}

#[test]
fn watch_publishes_images_that_are_pushed_later() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("1"), "app/tool", ["1"]);
    let wishlist = scene.wish("list.yaml", "  - HOST/app/tool:*\n");
    let mut running = scene.start(&["sync", &wishlist, "--watch", "--every", "50ms"]);
    wait_until("the first image is published", || scene.revision() == 2);
    scene.registry.push_tags(&image("2"), "app/tool", ["2"]);
    wait_until("the second image is published", || scene.revision() == 3);
    assert!(scene.has("app/tool:2"));
    scene.registry.push_tags(&image("3"), "app/tool", ["1"]);
    wait_until("the first tag has moved", || scene.revision() == 4);
    let flat = image("3").config_digest().replace("sha256:", "");
    let (directory, name) = ("app", "tool:1");
    let target = scene.repository.tree(&scene.public(directory)).target(name);
    assert!(target.ends_with(&flat), "{target}");
    running.end();
}
