//! Layers arrive completely and with the right bytes, or the image fails.

use std::time::Duration;

use super::{Pull, image, large_image, noise_image, top};
use crate::support::{Delivery, FaultProxy, Reply, Run};

#[test]
fn repeatedly_lost_connection_only_delays() {
    for (size, piece) in [(300_000, 1000), (1_000_000, 65_536)] {
        let Some(pull) = Pull::of(large_image(size)) else { return };
        let digest = top(&pull.image);
        pull.proxy.at(&format!("/blobs/{digest}"), move |request, _| request.forward().delivery(Delivery::Cut(piece)));
        pull.assert_published();
        let served = pull.proxy.served().into_iter().filter(|served| served.path.contains(&digest));
        let (mut reached, mut count) = (0, 0);
        for served in served {
            let range = (reached > 0).then(|| format!("bytes={reached}-"));
            assert_eq!(served.range, range, "request {count} does not continue where the previous one stopped");
            reached += served.sent;
            count += 1;
        }
        assert_eq!(reached, pull.image.blobs()[&digest].len());
        assert_eq!(count, reached.div_ceil(piece));
    }
}

#[test]
fn layer_is_read_from_the_start_if_the_registry_does_not_support_ranges() {
    let Some(pull) = Pull::of(large_image(500_000)) else { return };
    let digest = top(&pull.image);
    pull.proxy.at(&format!("/blobs/{digest}"), |request, number| {
        request.clone().without("range").forward().delivery(Delivery::Cut(100_000 * (number + 1)))
    });
    pull.assert_published();
    assert_eq!(pull.proxy.blobs().iter().filter(|&asked| *asked == digest).count(), 6);
}

#[test]
fn stalled_body_is_aborted_and_continued() {
    let Some(pull) = Pull::of(large_image(500_000)) else { return };
    pull.repository.set(&format!("[registries.\"{}\"]\nstall_timeout = \"1s\"", pull.proxy.host()));
    let digest = top(&pull.image);
    pull.proxy.at(&format!("/blobs/{digest}"), |request, number| {
        let reply = request.forward();
        if number == 0 { reply.delivery(Delivery::Stall(100_000)) } else { reply }
    });
    pull.assert_published();
    let served = pull.proxy.served();
    let ranges: Vec<_> = served.iter().filter(|served| served.path.contains(&digest)).collect();
    assert_eq!(ranges.len(), 2);
    assert_eq!(ranges[1].range.as_deref(), Some("bytes=100000-"));
}

#[test]
fn many_layers_arrive_over_one_connection_that_breaks() {
    let image = (0..20).fold(large_image(300_000), |image, number| {
        image.layer(|layer| layer.file(format!("etc/{number}"), "x".repeat(100_000)))
    });
    let Some(pull) = Pull::of(image) else { return };
    pull.repository.set(&format!("[registries.\"{}\"]\nconnections = 1", pull.proxy.host()));
    pull.proxy.at("/blobs/", |request, _| request.forward().delivery(Delivery::Cut(60_000)));
    let mut command = pull.repository.command(["convert", &pull.argument(), "--threads", "1"]);
    Run::within(Duration::from_secs(60), &mut command).expect_code(0);
    super::assert_published(&pull.repository, &pull.image);
}

#[test]
fn stalled_manifest_is_asked_for_again() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.repository.set(&format!("[registries.\"{}\"]\nstall_timeout = \"1s\"", pull.proxy.host()));
    pull.proxy.at("/manifests/", |request, number| {
        let reply = request.forward();
        if number == 0 { reply.delivery(Delivery::Stall(100)) } else { reply }
    });
    pull.assert_published();
}

#[test]
fn wrong_bytes_are_detected() {
    let Some(pull) = Pull::of(image()) else { return };
    for digest in [top(&pull.image), pull.image.config_digest()] {
        pull.proxy.at(&format!("/blobs/{digest}"), |request, _| {
            request.forward().body(|bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            })
        });
        pull.assert_refused(&[&digest]);
    }
}

#[test]
fn wrong_manifest_is_detected_if_its_digest_is_known() {
    let Some(pull) = Pull::of(image()) else { return };
    let (digest, place) = (pull.image.manifest_digest(), pull.argument());
    pull.proxy.at("/manifests/", |request, _| {
        request.forward().without("docker-content-digest").body(|bytes| bytes.push(b' ')).without("content-length")
    });
    let by_digest = format!("{}@{digest}", place.trim_end_matches(":1"));
    pull.repository.refuse(["convert", &by_digest], 1, &[&digest, "instead of"]);
}

#[test]
fn length_that_is_not_the_one_of_the_manifest_is_an_error() {
    let Some(pull) = Pull::of(image()) else { return };
    let size = pull.image.blobs()[&top(&pull.image)].len();
    for wrong in [size - 1, size + 1, 1 << 60] {
        pull.proxy.at(&format!("/blobs/{}", top(&pull.image)), move |request, _| {
            let resized = |bytes: &mut Vec<u8>| bytes.resize(wrong.min(size + 1), 0);
            request.forward().body(resized).with("content-length", wrong)
        });
        pull.assert_refused(&[&format!("{wrong} bytes"), &format!("states {size}")]);
    }
}

#[test]
fn body_without_a_length_is_verified() {
    let Some(pull) = Pull::of(image()) else { return };
    let size = pull.image.blobs()[&top(&pull.image)].len();
    let blob = format!("/blobs/{}", top(&pull.image));
    pull.proxy.at(&blob, |request, _| request.forward().without("content-length").body(|bytes| bytes.push(0)));
    pull.assert_refused(&[&format!("longer than the {size} bytes")]);
    pull.proxy.at(&blob, |request, _| match request.header("range") {
        None => request.forward().without("content-length").body(|bytes| bytes.truncate(40)),
        Some(_) => Reply::status(416),
    });
    pull.assert_refused(&["stopped after 40 of", "the requested byte 40"]);
    pull.proxy.at(&blob, |request, _| request.forward().without("content-length"));
    pull.assert_published();
}

#[test]
fn unrequested_range_is_refused() {
    let Some(pull) = Pull::of(large_image(100_000)) else { return };
    pull.proxy.at(&format!("/blobs/{}", top(&pull.image)), |request, number| {
        if number == 0 {
            return request.forward().delivery(Delivery::Cut(1000));
        }
        request.clone().with("range", "bytes=999-").forward()
    });
    pull.assert_refused(&["another byte than requested"]);
}

#[test]
fn interrupted_layer_behind_a_redirect_is_requested_from_the_registry_again() {
    let Some(pull) = Pull::of(noise_image(500_000)) else { return };
    let storage = FaultProxy::start(pull.registry.port());
    storage.at("/blobs/", |request, _| request.forward().delivery(Delivery::Cut(150_000)));
    let host = storage.host();
    pull.proxy.at("/blobs/", move |request, _| Reply::redirect(format!("http://{host}{}", request.path)));
    pull.assert_published();
    // The URL of a redirect may be valid for one request only.
    assert_eq!(pull.proxy.blobs(), storage.blobs());
    let digest = top(&pull.image);
    assert_eq!(storage.blobs().iter().filter(|&asked| *asked == digest).count(), 4);
}

#[test]
fn only_what_is_missing_is_fetched() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.assert_published();
    let mut asked = pull.proxy.blobs();
    asked.sort();
    assert_eq!(asked, pull.image.blobs().into_keys().collect::<Vec<_>>());
    let more = image().layer(|layer| layer.file("etc/more", "above"));
    pull.registry.push_tags(&more, super::PLACE, ["2"]);
    let before = asked.len();
    pull.repository.run(["convert", &format!("http://{}/{}:2", pull.proxy.host(), super::PLACE)]).expect_code(0);
    let mut asked = pull.proxy.blobs().split_off(before);
    asked.sort();
    let mut expected = [more.config_digest(), top(&more)];
    expected.sort();
    assert_eq!(asked, expected);
}
