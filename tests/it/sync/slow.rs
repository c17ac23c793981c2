//! Registries that are slow, busy or down, and what they delay: nothing but their own images.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{Scene, image};
use crate::support::fuse::wait_until;
use crate::support::{Delivery, FaultProxy, Reply, Run, TestImage, TestRepository};

/// So slowly that no limit of these tests is kept.
const DRIP: Duration = Duration::from_millis(200);

/// Limits that a test can wait for.
const HASTY: &str = "[requests]\ntimeout = \"1s\"\npatience = \"1s\"";

impl Scene {
    /// Starts another host that has the images of the registry.
    fn other(&self) -> FaultProxy {
        FaultProxy::start(self.registry.port())
    }

    fn sync_within(&self, limit: Duration, wishlist: &str) -> Run {
        Run::within(limit, &mut self.repository.command(["sync", wishlist, "--json"]))
    }
}

#[test]
fn registry_that_drips_holds_up_no_other_and_the_round_ends() {
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
        assert!(reason.is_some_and(|reason| reason.contains("within") || reason.contains("bytes came")), "{json}");
    }
}

#[test]
fn list_that_asks_to_wait_for_ever_is_told_once_and_ends_with_the_round() {
    let Some(scene) = Scene::new() else { return };
    let busy = scene.other();
    scene.registry.push_tags(&image("fast"), "app/fast", ["1"]);
    busy.at("/tags/", |_, _| Reply::status(429));
    scene.repository.set("[requests]\npatience = \"2s\"");
    let wishlist = scene.wish("list.yaml", &format!("  - '{}/app/busy:*'\n  - HOST/app/fast:1\n", busy.host()));
    let run = scene.sync_within(Duration::from_secs(60), &wishlist).expect_code(3);
    let told = format!("{} asks to wait 1s: tags of {0}/app/busy waits", busy.host());
    assert_eq!(run.stderr().matches(&told).count(), 1, "{}", run.stderr());
    assert_eq!(run.stderr().matches(" waits").count(), 1, "{}", run.stderr());
    let json = run.json();
    assert_eq!(json["not-listed"][0]["host"], busy.host(), "{json}");
    assert!(scene.has("app/fast:1"));
}

#[test]
fn round_that_waits_for_a_registry_says_so_once() {
    let Some(scene) = Scene::new() else { return };
    let slow = scene.other();
    scene.registry.push_tags(&image("fast"), "app/fast", ["1"]);
    slow.at("/manifests/", |request, _| request.forward().delivery(Delivery::Drip(DRIP)));
    scene.repository.set("[requests]\ntimeout = \"4s\"");
    let wishlist = scene.wish("list.yaml", &format!("  - {0}/a:1\n  - {0}/b:1\n  - HOST/app/fast:1\n", slow.host()));
    let run = scene.sync_within(Duration::from_secs(60), &wishlist).expect_code(3);
    let told = format!("all else is done; waiting for {} (2 left)", slow.host());
    assert_eq!(run.stderr().matches(&told).count(), 1, "{}", run.stderr());
}

#[test]
fn watching_goes_on_beside_a_registry_that_always_asks_to_wait() {
    let Some(scene) = Scene::new() else { return };
    let busy = scene.other();
    scene.registry.push_tags(&image("1"), "app/tool", ["1"]);
    busy.at("/", |_, _| Reply::status(429));
    scene.repository.set(HASTY);
    let wishlist = scene.wish("list.yaml", &format!("  - '{0}/a:*'\n  - {0}/b:1\n  - HOST/app/tool:*\n", busy.host()));
    let mut running = scene.start(&["sync", &wishlist, "--watch", "--every", "50ms"]);
    wait_until("the first image is there", || scene.revision() == 2);
    scene.registry.push_tags(&image("2"), "app/tool", ["2"]);
    wait_until("the second image is there", || scene.revision() == 3);
    running.end();
}

#[test]
fn thin_image_whose_registry_drips_is_given_up() {
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

/// Images of which none takes as little time as a request.
fn some_image(number: usize) -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("usr/lib/base", "base ".repeat(20_000)))
        .layer(|layer| layer.file("etc/number", number.to_string().repeat(40_000)))
}

/// Runs a synchronisation; returns how long it took until something was published, and until its end.
fn timed(repository: &TestRepository, wishlist: &str, code: i32) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut command = repository.command(["sync", wishlist]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a revision is out", || repository.reader().revision() > 1 || child.try_wait().unwrap().is_some());
    let published = begun.elapsed();
    assert_eq!(child.wait().unwrap().code(), Some(code));
    (published, begun.elapsed())
}

#[test]
fn three_bad_registries_delay_nothing_of_two_good_ones() {
    let Some(scene) = Scene::new() else { return };
    let (second, dripping, busy) = (scene.other(), scene.other(), scene.other());
    let good = [scene.proxy.host(), second.host()];
    let mut wishes = String::new();
    for number in 0..50 {
        scene.registry.push_tags(&some_image(number), &format!("app/n{number}"), ["1"]);
        wishes += &format!("  - {}/app/n{number}:1\n", good[number % 2]);
    }
    dripping.at("/", |request, _| request.forward().delivery(Delivery::Drip(Duration::from_secs(1))));
    busy.at("/", |_, _| Reply::status(429));
    // Nothing listens there any more.
    let down = scene.other().host();
    let bad: String = (0..20).fold(String::new(), |bad, number| {
        let host = [&dripping.host(), &busy.host(), &down][number % 3].clone();
        bad + &format!("  - {host}/app/n{number}:1\n  - '{host}/app/more{number}:*'\n")
    });
    let alone = scene.wish("alone.yaml", &wishes);
    let together = scene.wish("together.yaml", &format!("{bad}{wishes}"));
    let repository = scene.repository.copy();
    let (without, _) = timed(&repository, &alone, 0);
    scene.repository.set("[requests]\ntimeout = \"6s\"\npatience = \"6s\"");
    let (with, end) = timed(&scene.repository, &together, 3);
    let ratio = with.as_secs_f64() / without.as_secs_f64();
    println!("published after {with:?} beside bad registries, after {without:?} without them: {ratio:.2} times");
    assert_eq!(scene.revision(), 3, "all good images are one revision, and the last is of what the wishlist holds");
    for number in 0..50 {
        assert!(scene.repository.has(&format!("/{}/app/n{number}:1", good[number % 2])), "{number}");
    }
    assert!(with < without.mul_f64(1.1) + Duration::from_secs(5), "{with:?} against {without:?}");
    assert!(end < with + Duration::from_secs(90), "the round ends: {end:?}");
}

#[test]
fn layers_that_drip_take_no_place_from_images_of_other_registries() {
    let Some(scene) = Scene::new() else { return };
    let slow = scene.other();
    let base = some_image(0).layer_digests()[0].clone();
    slow.at(&base, |request, _| request.forward().delivery(Delivery::DripBody(DRIP)));
    let mut wishes = String::new();
    for number in 0..12 {
        scene.registry.push_tags(&some_image(number), &format!("app/slow{number}"), ["1"]);
        wishes += &format!("  - {}/app/slow{number}:1\n", slow.host());
    }
    // They share a layer with those that drip.
    for number in 20..24 {
        scene.registry.push_tags(&some_image(number), &format!("app/fast{number}"), ["1"]);
        wishes += &format!("  - HOST/app/fast{number}:1\n");
    }
    scene.repository.set(&format!("[registries.\"{}\"]\nstall_timeout = \"20s\"", slow.host()));
    let wishlist = scene.wish("list.yaml", &wishes);
    let begun = Instant::now();
    let mut running = scene.start(&["sync", &wishlist]);
    wait_until("the fast ones are there", || scene.revision() == 2);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    running.end();
    for number in 20..24 {
        assert!(scene.has(&format!("app/fast{number}:1")));
    }
}
