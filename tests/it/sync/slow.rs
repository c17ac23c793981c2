//! Registries that are slow, busy or down delay only their own images.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{Running, Scene, image};
use crate::support::fuse::wait_until;
use crate::support::{Delivery, FaultProxy, Reply, Run, TestImage, TestRepository};

/// Responses so slow that they exceed every limit of these tests.
const DRIP: Duration = Duration::from_millis(200);

/// Limits that are short enough for a test.
const HASTY: &str = "[requests]\ntimeout = \"1s\"\npatience = \"1s\"";

impl Scene {
    /// Starts another host with the images of the registry.
    fn other(&self) -> FaultProxy {
        FaultProxy::start(self.registry.port())
    }

    fn sync_within(&self, limit: Duration, wishlist: &str) -> Run {
        Run::within(limit, &mut self.repository.command(["sync", wishlist, "--json"]))
    }
}

#[test]
fn slow_registry_delays_no_other_and_the_round_ends() {
    for (part, wish, delivery) in [
        ("/manifests/", "app/slow:1", Delivery::Drip(DRIP)),
        ("/manifests/", "app/slow:1", Delivery::DripBody(DRIP)),
        ("/tags/", "app/slow:*", Delivery::DripBody(DRIP)),
        ("/blobs/", "app/slow:1", Delivery::DripBody(DRIP)),
    ] {
        let Some(scene) = Scene::new() else { return };
        let slow = scene.other();
        for name in ["app/slow", "app/fast"] {
            scene.registry.push_tags(&image(name), name, ["1"]);
        }
        slow.at(part, move |request, _| request.forward().delivery(delivery));
        let host = slow.host();
        scene.repository.set(&format!("{HASTY}\n[registries.\"{host}\"]\nstall_timeout = \"1s\""));
        let wishlist = scene.wish("list.yaml", &format!("  - {host}/{wish}\n  - HOST/app/fast:1\n"));
        let json = scene.sync_within(Duration::from_secs(60), &wishlist).expect_code(3).json();
        assert!(scene.has("app/fast:1"), "{part}: {json}");
        let reason = json["images"][0]["error"].as_str().or(json["not-listed"][0]["error"].as_str());
        assert!(reason.is_some_and(|reason| reason.contains("within") || reason.contains("bytes arrived")), "{json}");
    }
}

#[test]
fn endless_request_to_wait_is_reported_once_and_ends_with_the_round() {
    let Some(scene) = Scene::new() else { return };
    let busy = scene.other();
    scene.registry.push_tags(&image("fast"), "app/fast", ["1"]);
    busy.at("/tags/", |_, _| Reply::status(429));
    scene.repository.set("[requests]\npatience = \"2s\"");
    let wishlist = scene.wish("list.yaml", &format!("  - '{}/app/busy:*'\n  - HOST/app/fast:1\n", busy.host()));
    let run = scene.sync_within(Duration::from_secs(60), &wishlist).expect_code(3);
    let told = format!(
        "{} answers 429 (too many requests) without a time to wait; the next request is sent in 1s; \
         this delays all requests to {0}; the first is for: tags of {0}/app/busy",
        busy.host()
    );
    assert_eq!(run.stderr().matches(&told).count(), 1, "{}", run.stderr());
    assert_eq!(run.stderr().matches("; this delays all ").count(), 1, "{}", run.stderr());
    let json = run.json();
    assert_eq!(json["not-listed"][0]["host"], busy.host(), "{json}");
    assert!(scene.has("app/fast:1"));
}

#[test]
fn waiting_for_a_registry_is_reported_once_in_a_round() {
    let Some(scene) = Scene::new() else { return };
    let slow = scene.other();
    scene.registry.push_tags(&image("fast"), "app/fast", ["1"]);
    slow.at("/manifests/", |request, _| request.forward().delivery(Delivery::Drip(DRIP)));
    scene.repository.set("[requests]\ntimeout = \"4s\"");
    let wishlist = scene.wish("list.yaml", &format!("  - {0}/a:1\n  - {0}/b:1\n  - HOST/app/fast:1\n", slow.host()));
    let run = scene.sync_within(Duration::from_secs(60), &wishlist).expect_code(3);
    let told = format!("all other images are done; waiting for {} (2 remaining)", slow.host());
    assert_eq!(run.stderr().matches(&told).count(), 1, "{}", run.stderr());
}

#[test]
fn watch_continues_although_a_registry_always_asks_to_wait() {
    let Some(scene) = Scene::new() else { return };
    let busy = scene.other();
    scene.registry.push_tags(&image("1"), "app/tool", ["1"]);
    busy.at("/", |_, _| Reply::status(429));
    scene.repository.set(HASTY);
    let wishlist = scene.wish("list.yaml", &format!("  - '{0}/a:*'\n  - {0}/b:1\n  - HOST/app/tool:*\n", busy.host()));
    let mut running = scene.start(&["sync", &wishlist, "--watch", "--every", "50ms"]);
    wait_until("the first image is published", || scene.revision() == 2);
    scene.registry.push_tags(&image("2"), "app/tool", ["2"]);
    wait_until("the second image is published", || scene.revision() == 3);
    running.end();
}

#[test]
fn push_of_a_thin_image_to_a_slow_registry_is_aborted() {
    let Some(scene) = Scene::new() else { return };
    let slow = scene.other();
    scene.registry.push_tags(&image("a"), "app/a", ["1"]);
    slow.at("/thin/", |request, _| match request.method.as_str() {
        "PUT" | "POST" => request.forward().delivery(Delivery::Drip(DRIP)),
        _ => request.forward(),
    });
    scene.repository.set(HASTY);
    let text = format!(
        "version: 1\noutput_format: 'http://{}/thin/$(image)'\ninput: ['http://{}/app/a:1']\n",
        slow.host(),
        scene.proxy.host()
    );
    let recipe = scene.write("recipe.yaml", &text);
    let mut command = scene.repository.command(["sync", &recipe, "--thin-images", "--json"]);
    let json = Run::within(Duration::from_secs(60), &mut command).expect_code(3).json();
    let error = json["thin-images"][0]["error"].as_str().or(json["thin-images"][0]["reason"].as_str());
    assert!(error.is_some_and(|error| error.contains("within")), "{json}");
    assert!(scene.has("app/a:1"));
}

/// Returns an image whose layers take longer to fetch than a small document.
fn some_image(number: usize) -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("usr/lib/base", "base ".repeat(20_000)))
        .layer(|layer| layer.file("etc/number", number.to_string().repeat(40_000)))
}

/// A registry that responds byte by byte, one that asks to wait for an unknown time, and one that is down.
struct BadRegistries {
    dripping: FaultProxy,
    busy: FaultProxy,
    down: String,
}

impl BadRegistries {
    fn start(scene: &Scene) -> Self {
        let (dripping, busy) = (scene.other(), scene.other());
        dripping.at("/", |request, _| request.forward().delivery(Delivery::Drip(Duration::from_secs(1))));
        busy.at("/", |_, _| Reply::status(429));
        // No server listens at this port any more.
        let down = scene.other().host();
        Self { dripping, busy, down }
    }

    /// Returns wishes for images and for lists of tags of all three registries.
    fn wishes(&self) -> String {
        let hosts = [self.dripping.host(), self.busy.host(), self.down.clone()];
        let wish = |(number, host): (usize, &String)| format!("  - {host}/a{number}:1\n  - '{host}/b{number}:*'\n");
        hosts.iter().cycle().take(20).enumerate().map(wish).collect()
    }
}

/// Pushes 50 images, and returns wishes for them at two registries, and their names.
fn good_images(scene: &Scene, second: &FaultProxy) -> (String, Vec<String>) {
    let hosts = [scene.proxy.host(), second.host()];
    let names = (0..50).map(|number| {
        scene.registry.push_tags(&some_image(number), &format!("app/n{number}"), ["1"]);
        format!("{}/app/n{number}:1", hosts[number % 2])
    });
    let names: Vec<String> = names.collect();
    (names.iter().map(|name| format!("  - {name}\n")).collect(), names)
}

#[test]
fn images_of_two_registries_are_published_while_three_others_do_not_respond() {
    let Some(scene) = Scene::new() else { return };
    let (second, bad) = (scene.other(), BadRegistries::start(&scene));
    let (good, names) = good_images(&scene, &second);
    let wishlist = scene.wish("list.yaml", &(bad.wishes() + &good));
    // During these limits, the bad registries are still being waited for.
    let repository = scene.repository.copy();
    repository.set("[requests]\ntimeout = \"1h\"\npatience = \"1h\"");
    let mut command = repository.command(["sync", &wishlist]);
    let mut running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_until("a revision is published", || repository.reader().revision() == 2);
    assert!(names.iter().all(|name| repository.has(&format!("/{name}"))), "all of them are in the first revision");
    assert!(running.0.try_wait().unwrap().is_none(), "the others are still waited for");
    running.end();
    scene.repository.set(HASTY);
    let json = scene.sync_within(Duration::from_secs(120), &wishlist).expect_code(3).json();
    let published = json["images"].as_array().unwrap().iter().filter(|image| image["state"] == "published").count();
    assert_eq!(published, 50, "{json}");
}

/// Runs a synchronisation, and returns the time until a revision was published.
fn time_to_publish(repository: &TestRepository, wishlist: &str) -> Duration {
    let begun = Instant::now();
    let mut command = repository.command(["sync", wishlist]);
    let mut running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_until("a revision is published", || repository.reader().revision() > 1);
    let published = begun.elapsed();
    running.end();
    published
}

/// Measures time and so needs an idle machine: runs only with `STRATA_TEST_LONG=1`.
#[test]
fn unresponsive_registries_do_not_slow_down_others() {
    if std::env::var_os("STRATA_TEST_LONG").is_none() {
        return;
    }
    let Some(scene) = Scene::new() else { return };
    let (second, bad) = (scene.other(), BadRegistries::start(&scene));
    let (good, _) = good_images(&scene, &second);
    let lists = [scene.wish("alone.yaml", &good), scene.wish("together.yaml", &(bad.wishes() + &good))];
    // The minimum, because disturbances only make runs longer.
    let mut shortest = [Duration::MAX; 2];
    for _ in 0..7 {
        for (shortest, wishlist) in shortest.iter_mut().zip(&lists) {
            *shortest = (*shortest).min(time_to_publish(&scene.repository.copy(), wishlist));
        }
    }
    let ratio = shortest[1].as_secs_f64() / shortest[0].as_secs_f64();
    println!(
        "published after {:?} without bad registries, after {:?} beside them: {ratio:.3}",
        shortest[0], shortest[1]
    );
    assert!(ratio <= 1.1, "{ratio:.3}: {shortest:?}");
}

#[test]
fn artifacts_are_replaced_among_the_newest_while_another_registry_does_not_respond() {
    let Some(scene) = Scene::new() else { return };
    let slow = scene.other();
    slow.at("/", |request, _| request.forward().delivery(Delivery::Drip(Duration::from_secs(1))));
    for tag in ["1.0", "1.1", "1.2"] {
        scene.registry.push_tags(&image(tag), "app/tool", [tag]);
    }
    scene.push_chart("app/tool", "2.0");
    scene.push_chart("app/tool", "3.0");
    scene.repository.set("[requests]\ntimeout = \"1h\"");
    let newest = "  - {image: HOST/app/tool, tags: {newest: 2}}\n";
    let wishlist = scene.wish("list.yaml", &format!("  - '{0}/a:*'\n  - {0}/b:1\n{newest}", slow.host()));
    let mut running = scene.start(&["sync", &wishlist]);
    wait_until("two images are published", || scene.has("app/tool:1.1") && scene.has("app/tool:1.2"));
    assert!(!scene.has("app/tool:1.0"));
    running.end();
}

#[test]
fn error_about_a_layer_from_a_mirror_names_the_mirror() {
    let Some(scene) = Scene::new() else { return };
    let mirror = scene.other();
    let image = image("a");
    scene.registry.push_tags(&image, "app/a", ["1"]);
    let host = scene.proxy.host();
    scene.repository.set(&format!(
        "[registries.\"{host}\"]\nmirrors = [\"http://{}\"]\nmirrors_only = true\nstall_timeout = \"1s\"",
        mirror.host()
    ));
    let layer = image.layer_digests()[0].clone();
    let named = [format!("cannot read layer {layer} from mirror http://{}", mirror.host())];
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    let spoil = |bytes: &mut Vec<u8>| bytes.iter_mut().for_each(|byte| *byte = !*byte);
    mirror.at(&layer, move |request, _| request.forward().body(spoil));
    scene.repository.refuse(["convert", &format!("http://{host}/app/a:1")], 1, &named);
    mirror.at(&layer, |request, _| request.forward().delivery(Delivery::DripBody(DRIP)));
    scene.repository.refuse(["convert", &format!("http://{host}/app/a:1")], 1, &named);
}

#[test]
fn slow_layers_do_not_block_images_of_other_registries() {
    let Some(scene) = Scene::new() else { return };
    let slow = scene.other();
    let base = some_image(0).layer_digests()[0].clone();
    slow.at(&base, |request, _| request.forward().delivery(Delivery::DripBody(DRIP)));
    let mut wishes = String::new();
    for number in 0..12 {
        scene.registry.push_tags(&some_image(number), &format!("app/slow{number}"), ["1"]);
        wishes += &format!("  - {}/app/slow{number}:1\n", slow.host());
    }
    // They share a layer with images of the slow registry.
    for number in 20..24 {
        scene.registry.push_tags(&some_image(number), &format!("app/fast{number}"), ["1"]);
        wishes += &format!("  - HOST/app/fast{number}:1\n");
    }
    scene.repository.set(&format!("[registries.\"{}\"]\nstall_timeout = \"20s\"", slow.host()));
    let wishlist = scene.wish("list.yaml", &wishes);
    let begun = Instant::now();
    let mut running = scene.start(&["sync", &wishlist]);
    wait_until("the images of fast registries are published", || scene.revision() == 2);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    running.end();
    for number in 20..24 {
        assert!(scene.has(&format!("app/fast{number}:1")));
    }
}
