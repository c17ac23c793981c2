//! The servers of the tests: a real registry, and a proxy with chosen faults.

use serde_json::{Value, json};

use crate::support::{Delivery, FaultProxy, Reply, Request, TestImage, TestRegistry};

fn image() -> TestImage {
    TestImage::new().layer(|layer| layer.file("a", "b"))
}

fn get(port: u16, path: &str) -> Reply {
    Request::new(port, "GET", path).forward()
}

#[test]
fn registry_holds_what_was_pushed_in_either_way() {
    let Some(registry) = TestRegistry::start() else { return };
    let image = image();
    registry.push(&image, "a/b:skopeo");
    registry.push_tags(&image, "a/b", (0..10).map(|number| format!("t{number}")));
    for tag in ["skopeo", "t0", "t9"] {
        let request = registry.request("GET", &format!("/v2/a/b/manifests/{tag}"));
        let reply = request.with("accept", "application/vnd.oci.image.manifest.v1+json").forward();
        assert_eq!((reply.status, reply.body), (200, image.manifest()));
    }
}

#[test]
fn registry_with_a_password_requires_it() {
    let Some(registry) = TestRegistry::with_password() else { return };
    registry.push(&image(), "a:1");
    assert_eq!(get(registry.port(), "/v2/a/tags/list").status, 401);
    assert_eq!(registry.request("GET", "/v2/a/tags/list").forward().status, 200);
}

#[test]
fn proxy_forwards_and_records_requests_without_a_rule() {
    let Some(registry) = TestRegistry::start() else { return };
    let (image, proxy) = (image(), FaultProxy::start(registry.port()));
    registry.push_tags(&image, "a", ["1"]);
    let (digest, blob) = image.blobs().pop_last().unwrap();
    let path = format!("/v2/a/blobs/{digest}");
    let part = Request::new(proxy.port(), "GET", &path).with("range", "bytes=2-").forward();
    assert_eq!((part.status, &part.body), (206, &blob[2..].to_vec()));
    let whole = Request::new(proxy.port(), "GET", &path).with("range", "bytes=2-").without("range").forward();
    assert_eq!((whole.status, whole.body), (200, blob.clone()));
    let head = Request::new(proxy.port(), "HEAD", &path).forward();
    assert_eq!(head.header("content-length"), Some(blob.len().to_string().as_str()));
    let served = proxy.served();
    let sent: Vec<(&str, usize)> = served.iter().map(|served| (served.method.as_str(), served.sent)).collect();
    assert_eq!(sent, [("GET", blob.len() - 2), ("GET", blob.len()), ("HEAD", 0)]);
    assert_eq!((served[0].range.as_deref(), served[0].status), (Some("bytes=2-"), 206));
    assert_eq!(proxy.blobs(), [&*digest; 3]);
}

#[test]
fn pages_of_tags_follow_one_another() {
    let Some(registry) = TestRegistry::start() else { return };
    registry.push_tags(&image(), "a", ["1", "2", "3"]);
    let proxy = FaultProxy::start(registry.port());
    proxy.page_tags(2);
    let tags = |reply: &Reply| serde_json::from_slice::<Value>(&reply.body).unwrap()["tags"].clone();
    let first = get(proxy.port(), "/v2/a/tags/list?n=1000");
    assert_eq!(
        (tags(&first), first.header("link")),
        (json!(["1", "2"]), Some("</v2/a/tags/list?last=2&n=2>; rel=\"next\""))
    );
    let second = get(proxy.port(), "/v2/a/tags/list?last=2&n=2");
    assert_eq!((tags(&second), second.header("link")), (json!(["3"]), None));
}

#[test]
fn proxy_follows_the_last_matching_rule() {
    let proxy = FaultProxy::start(9);
    proxy.at("/", |_, _| Reply::status(200).body(|body| body.extend(b"0123456789")));
    proxy.at("/cut", |_, _| Reply::status(200).body(|body| body.extend(b"0123456789")).delivery(Delivery::Cut(4)));
    proxy.at("/busy", |_, number| Reply::status(if number < 2 { 503 } else { 200 }).with("retry-after", 1));
    assert_eq!(get(proxy.port(), "/").body.len(), 10);
    assert_eq!(get(proxy.port(), "/cut").body, b"0123");
    let statuses: Vec<u16> = (0..3).map(|_| get(proxy.port(), "/busy").status).collect();
    assert_eq!(statuses, [503, 503, 200]);
}

#[test]
fn token_is_valid_for_a_number_of_requests_and_never_sent_to_the_registry() {
    let Some(registry) = TestRegistry::start() else { return };
    registry.push_tags(&image(), "a/b", ["1"]);
    let proxy = FaultProxy::start(registry.port());
    proxy.demand_tokens(2);
    let path = "/v2/a/b/tags/list";
    let refused = get(proxy.port(), path);
    let challenge = refused.header("www-authenticate").unwrap_or_default();
    assert!(refused.status == 401 && challenge.contains("scope=\"repository:a/b:pull\""), "{challenge}");
    let token: Value = serde_json::from_slice(&get(proxy.port(), "/token").body).unwrap();
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let statuses =
        (0..3).map(|_| Request::new(proxy.port(), "GET", path).with("authorization", &bearer).forward().status);
    assert_eq!(statuses.collect::<Vec<_>>(), [200, 200, 401]);
}
