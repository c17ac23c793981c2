//! Operations that a program cancels through their token, while the program itself continues.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use strata::cancel::Cancellation;
use strata::directory::RepositoryDirectory;
use strata::engine::{Engine, Resources};
use strata::layer::Limits;
use strata::message::causes;
use strata::metadata::Timestamp;
use strata::progress::Progress;
use strata::publish::PublishOptions;
use strata::revise::Prune;
use strata::stage::{ImageOptions, Request};
use strata::wishlist::Wishlist;
use strata::work::{ConvertOptions, Event, SyncError, SyncObserver, SyncOptions, convert, sync};

use super::{Scene, image};
use crate::support::fuse::wait_until;
use crate::support::{Delivery, FaultProxy, Reply};

/// Opens the repository of a scene in this process.
fn engine(scene: &Scene, cancellation: &Cancellation) -> Engine {
    let directory = RepositoryDirectory::open(&scene.repository.directory()).unwrap();
    let resources = Resources { threads: 2, memory: 64 << 20 };
    Engine::open(&directory.with_cancellation(cancellation), resources).unwrap()
}

/// Ignores all events.
struct Silent;

impl SyncObserver for Silent {
    fn note(&self, _event: Event<'_>) {}
}

fn options() -> ConvertOptions {
    let publish = PublishOptions { now: Timestamp::now(), ..PublishOptions::default() };
    ConvertOptions { dry_run: false, only_store: false, limits: Limits::default(), publish }
}

/// Converts an image of a host; returns the error.
fn convert_one(engine: &Engine, host: &str) -> Option<String> {
    let argument = format!("http://{host}/app/tool:1").parse().unwrap();
    let requests = [Request { argument, name: None, image: ImageOptions::default() }];
    match convert(engine, &requests, &options(), &Arc::new(Progress::default())) {
        Ok(report) => report.images.into_iter().find_map(|image| image.outcomes.err()).map(|error| causes(&error)),
        Err(error) => Some(causes(&error)),
    }
}

#[test]
fn cancelled_conversion_ends_soon_and_leaves_nothing_behind() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("content"), "app/tool", ["1"]);
    let layer = image("content").layer_digests()[0].clone();
    for (what, path) in [("a layer that comes slowly", layer.as_str()), ("a registry that asks to wait", "/manifests/")]
    {
        let slow = FaultProxy::start(scene.registry.port());
        let is_layer = path == layer;
        slow.at(path, move |request, _| match is_layer {
            true => request.forward().delivery(Delivery::DripBody(Duration::from_millis(200))),
            false => Reply::status(429).with("retry-after", 300),
        });
        let cancellation = Cancellation::default();
        let engine = engine(&scene, &cancellation);
        let (error, waited) = thread::scope(|scope| {
            let converting = scope.spawn(|| convert_one(&engine, &slow.host()));
            wait_until("the request was made", || slow.served().iter().any(|served| served.path.contains(path)));
            let cancelled = Instant::now();
            cancellation.cancel();
            (converting.join().unwrap(), cancelled.elapsed())
        });
        let error = error.unwrap();
        assert!(error.contains("the operation was cancelled"), "{what}: {error}");
        assert!(waited < Duration::from_secs(5), "{what}: {waited:?}");
        drop(engine);
        let transactions = scene.repository.storage().join("data/txn");
        assert_eq!(fs::read_dir(transactions).unwrap().count(), 0, "{what}");
        assert_eq!(scene.revision(), 1, "{what}");
    }
    // A new token, and the same repository goes on.
    assert_eq!(convert_one(&engine(&scene, &Cancellation::default()), &scene.proxy.host()), None);
    assert!(scene.has("app/tool:1"));
}

#[test]
fn nothing_is_published_with_a_cancelled_token() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("content"), "app/tool", ["1"]);
    let cancellation = Cancellation::default();
    let engine = engine(&scene, &cancellation);
    cancellation.cancel();
    let error = convert_one(&engine, &scene.proxy.host()).unwrap();
    assert!(error.contains("the operation was cancelled"), "{error}");
    assert_eq!(scene.revision(), 1);
}

#[test]
fn image_of_a_cancelled_round_is_tried_again_in_the_next_round() {
    let Some(scene) = Scene::new() else { return };
    scene.registry.push_tags(&image("content"), "app/tool", ["1"]);
    let layer = image("content").layer_digests()[0].clone();
    let list = scene.wish("list.yaml", "  - HOST/app/tool:1\n");
    let wishlist = Wishlist::open(list.as_ref()).unwrap();
    let options = SyncOptions {
        convert: options(),
        prune: Prune::Nothing,
        publish_every: Duration::from_secs(60),
        side_by_side: 2,
    };
    scene.proxy.at(&layer, |request, _| request.forward().delivery(Delivery::DripBody(Duration::from_millis(200))));
    let cancellation = Cancellation::default();
    let cancelled = engine(&scene, &cancellation);
    let result = thread::scope(|scope| {
        let syncing = scope.spawn(|| sync(&cancelled, &wishlist, &options, &Silent));
        wait_until("the layer is read", || scene.proxy.blobs().contains(&layer));
        cancellation.cancel();
        syncing.join().unwrap()
    });
    assert!(matches!(result, Err(SyncError::Cancelled(_))), "{result:?}");
    drop(cancelled);
    scene.proxy.at(&layer, |request, _| request.forward());
    // The program: a new process remembers nothing but the state database.
    scene.sync(&list, &[]).expect_code(0);
    assert!(scene.has("app/tool:1"));
}
