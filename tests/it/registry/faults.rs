//! Registries that are busy, that fail, whose tags move, or that use an older format.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{PLACE, Pull, assert_published, image, top};
use crate::support::{Reply, TestRepository};

#[test]
fn registry_that_asks_to_wait_is_waited_for() {
    for part in ["/manifests/", "/blobs/"] {
        let Some(pull) = Pull::of(image()) else { return };
        let digest = top(&pull.image);
        let part = if part == "/blobs/" { format!("/blobs/{digest}") } else { part.to_owned() };
        pull.proxy.at(
            &part,
            |request, number| {
                if number == 0 { Reply::status(429).with("retry-after", 1) } else { request.forward() }
            },
        );
        let start = Instant::now();
        pull.assert_published();
        assert!(start.elapsed() >= Duration::from_secs(1), "asked again after {:?}", start.elapsed());
        let asked = pull.proxy.served().iter().filter(|served| served.path.contains(&part)).count();
        assert_eq!(asked, 2, "{part}");
    }
}

#[test]
fn registry_that_fails_is_asked_again() {
    for part in ["/manifests/", "/blobs/"] {
        let Some(pull) = Pull::of(image()) else { return };
        pull.proxy.at(part, |request, number| match number {
            0 => Reply::status(500),
            1 => Reply::status(503),
            _ => request.forward(),
        });
        pull.assert_published();
    }
}

#[test]
fn missing_image_is_not_requested_again() {
    let Some(pull) = Pull::of(image()) else { return };
    let digest = top(&pull.image);
    let unknown = json!({ "errors": [{ "code": "BLOB_UNKNOWN", "message": "blob unknown to registry" }] });
    pull.proxy.at(&format!("/blobs/{digest}"), move |_, _| Reply::json(404, &unknown));
    pull.assert_refused(&["BLOB_UNKNOWN", &digest]);
    assert_eq!(pull.proxy.blobs().iter().filter(|&asked| *asked == digest).count(), 1);
}

#[test]
fn layer_that_fails_after_others_leaves_what_was_published() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.assert_published();
    let more = image().layer(|layer| layer.file("etc/more", "above"));
    pull.registry.push_tags(&more, PLACE, ["1"]);
    pull.proxy.at(&format!("/blobs/{}", top(&more)), |_, _| Reply::status(403));
    pull.assert_refused(&["denied"]);
    assert_published(&pull.repository, &pull.image);
}

#[test]
fn tag_is_resolved_once_even_if_it_moves() {
    let Some(pull) = Pull::of(image()) else { return };
    let other = image().layer(|layer| layer.file("etc/other", "other"));
    pull.registry.push_tags(&other, PLACE, ["2"]);
    pull.proxy.at("/manifests/1", |request, number| {
        let path = request.path.clone();
        if number == 0 { request.forward() } else { request.clone().at(path.replace("/1", "/2")).forward() }
    });
    pull.assert_published();
    let link = || pull.repository.tree(&format!("{}/team", pull.proxy.host())).target("image:1");
    assert!(link().ends_with(&pull.image.config_digest()[7..]), "{}", link());
    pull.convert().expect_code(0);
    assert!(link().ends_with(&other.config_digest()[7..]), "{}", link());
    assert_published(&pull.repository, &other);
}

#[test]
fn manifest_of_schema_1_is_refused_with_advice() {
    let Some(pull) = Pull::of(image()) else { return };
    let layout = pull.repository.beside("layout");
    pull.image.write_oci_layout(&layout, "latest");
    pull.registry.push_as("v2s2", &format!("oci:{}:latest", layout.display()), &format!("{PLACE}:old"));
    // To a client without the header `accept`, this registry sends a manifest of schema 1.
    pull.proxy.at("/manifests/", |request, _| request.clone().without("accept").forward());
    let argument = format!("http://{}/{PLACE}:old", pull.proxy.host());
    pull.repository.refuse(["convert", &argument], 1, &["schema 1", "old"]);
}

#[test]
fn login_page_is_not_accepted_as_a_manifest() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.proxy.at("/manifests/", |_, _| {
        Reply::status(200).with("content-type", "text/html").body(|body| body.extend(b"<html>Please log in</html>"))
    });
    pull.assert_refused(&[&pull.proxy.host()]);
}

#[test]
fn endless_manifest_is_not_read_to_its_end() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.proxy.at("/manifests/", |_, _| {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        Reply::status(200).with("content-type", kind).body(|body| body.resize(64 << 20, b' ')).without("content-length")
    });
    pull.assert_refused(&["more than"]);
}

#[test]
fn mirror_is_tried_first_and_the_registry_if_it_fails() {
    let Some(pull) = Pull::of(image()) else { return };
    let (mirror, digest) = (crate::support::FaultProxy::start(pull.registry.port()), top(&pull.image));
    mirror.at(&format!("/blobs/{digest}"), |_, _| Reply::status(500));
    let (host, mirrors) = (pull.proxy.host(), format!("http://{}", mirror.host()));
    let repository = TestRepository::with_settings(&format!("[registries.\"{host}\"]\nmirrors = [\"{mirrors}\"]"));
    repository.run(["convert", &pull.argument()]).expect_code(0);
    assert_published(&repository, &pull.image);
    assert_eq!(
        pull.proxy.served().iter().map(|served| served.path.clone()).collect::<Vec<_>>(),
        [format!("/v2/{PLACE}/blobs/{digest}")]
    );
}
