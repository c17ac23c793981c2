//! Requests that are repeated with another method or authentication scheme, and mirrors in error messages.

use super::super::push::{ImageUpload, PushOutcome};
use super::*;

fn methods(server: &Server) -> Vec<String> {
    server.requests().into_iter().map(|asked| asked.method).collect()
}

#[test]
fn head_that_fails_in_any_way_is_confirmed_by_one_get() {
    for status in [400, 401, 403, 404, 405, 406, 410, 418, 500, 501, 502, 503] {
        let server = Server::start(move |asked| match asked.method.as_str() {
            "HEAD" => Reply::of(status, ""),
            _ => Reply::of(200, b"x"),
        });
        assert_eq!(client().registries.head(&image_at(&server, ":1")).unwrap(), Digest::of(b"x"), "{status}");
        assert_eq!(methods(&server).iter().filter(|method| *method == "GET").count(), 1, "{status}");
    }
}

#[test]
fn head_without_a_response_or_with_a_wrong_one_is_confirmed_by_one_get() {
    let odd = [
        Reply::of(200, "").with("docker-content-digest", Digest::of(b"other")).with("content-length", 1),
        Reply::of(302, "").with("location", "ftp://h.org/"),
        Reply::of(401, "").with("www-authenticate", r#"Bearer realm="file:///token""#),
        Reply::of(200, "").dripping(Drip::Head),
    ];
    for head in odd {
        let server = Server::start(move |asked| match asked.method.as_str() {
            "HEAD" => head.clone(),
            _ => Reply::of(200, b"x"),
        });
        let limits = TimeLimits { request: Duration::from_millis(800), ..TimeLimits::default() };
        let location = ImageLocation { digest: Some(Digest::of(b"x")), ..image_at(&server, ":1") };
        assert_eq!(client_within(&[], limits).registries.head(&location).unwrap(), Digest::of(b"x"));
    }
}

#[test]
fn result_of_get_counts_and_get_is_sent_once() {
    for (head, get, is_missing) in [(404, 404, true), (500, 404, true), (404, 500, false), (500, 500, false)] {
        let server = Server::start(move |asked| match asked.method.as_str() {
            "HEAD" => Reply::of(head, ""),
            _ => Reply::error(get, "SAID_BY_GET"),
        });
        let error = client().registries.head(&image_at(&server, ":1")).unwrap_err();
        assert_eq!(error.is_not_found(), is_missing, "{head} {get}: {error}");
        assert!(error.to_string().contains("SAID_BY_GET"), "{error}");
        let gets = methods(&server).iter().filter(|method| *method == "GET").count();
        assert!(gets == 1 || (head, get) == (404, 500), "{head} {get}: {gets}");
    }
}

#[test]
fn parked_registry_gets_no_get_request_after_head() {
    let server = Server::start(|_| Reply::error(429, "TOOMANYREQUESTS").with("retry-after", 1200));
    let error = client().registries.head(&image_at(&server, ":1")).unwrap_err();
    assert!(error.parked_until().is_some() && methods(&server) == ["HEAD"]);
}

#[test]
fn status_429_of_head_alone_is_confirmed_by_get_which_is_then_used() {
    let server = Server::start(|asked| match asked.method.as_str() {
        "HEAD" => Reply::of(429, ""),
        _ => Reply::of(200, b"x"),
    });
    let client = client();
    assert_eq!(client.registries.head(&image_at(&server, ":1")).unwrap(), Digest::of(b"x"));
    let methods_before = methods(&server);
    assert_eq!(methods_before.iter().filter(|method| *method == "GET").count(), 1, "{methods_before:?}");
    assert!(
        methods_before.len() > 5 && client.clock.passed() <= PATIENCE,
        "HEAD was repeated after pauses, within the patience"
    );
    assert_eq!(client.registries.head(&image_at(&server, ":2")).unwrap(), Digest::of(b"x"));
    assert_eq!(methods(&server)[methods_before.len()..], ["GET"]);
}

#[test]
fn status_429_of_all_methods_is_confirmed_by_one_get_in_each_pause() {
    let server = Server::start(|_| Reply::of(429, ""));
    let client = client();
    for image in [":1", ":2"] {
        let error = client.registries.head(&image_at(&server, image)).unwrap_err();
        assert!(error.parked_until().is_some(), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("answers 429 (too many requests) without a time to wait; the next request is sent in "),
            "{text}"
        );
        assert_eq!(methods(&server).iter().filter(|method| *method == "GET").count(), 1);
    }
}

#[test]
fn push_to_a_registry_without_head_uses_get() {
    let server = Server::start(|asked| match asked.method.as_str() {
        "HEAD" => Reply::of(405, ""),
        "GET" if asked.target.contains("/blobs/") => Reply::of(200, "blob"),
        "GET" => Reply::error(404, "MANIFEST_UNKNOWN"),
        _ => Reply::of(201, ""),
    });
    let image = ImageUpload { manifest: b"{}".to_vec(), media_type: "application/x", blobs: vec![b"blob".to_vec()] };
    let push = || client().registries.push(&image_at(&server, ":1").name, Transport::Plain, &image);
    assert_eq!(push().unwrap(), PushOutcome::Pushed);
    assert_eq!(methods(&server), ["HEAD", "GET", "HEAD", "GET", "PUT"]);
}

/// A registry that offers the `first` challenges, and the `second` ones after the request contains any authorization.
fn fickle(first: &'static [&'static str], second: &'static [&'static str], token_status: u16) -> Server {
    Server::start(move |asked| {
        if asked.target.starts_with("/token") {
            return Reply::of(token_status, r#"{"token":"t"}"#);
        }
        let shown = asked.authorization().unwrap_or_default();
        if shown == basic("robot") {
            return Reply::of(200, "{}");
        }
        let challenges = if shown.is_empty() { first } else { second };
        let of_host = |challenge: &str| challenge.replace("HOST", &asked.headers["host"]);
        challenges.iter().fold(Reply::error(401, "UNAUTHORIZED"), |reply, challenge| {
            reply.with("www-authenticate", of_host(challenge))
        })
    })
}

const TOKEN: &str = r#"Bearer realm="http://HOST/token""#;
const BASIC: &str = r#"Basic realm="x""#;

#[test]
fn second_challenge_for_user_and_password_is_tried_within_the_same_request() {
    for (first, second, token_status) in [
        (&[TOKEN][..], &[BASIC][..], 200),
        (&[TOKEN, BASIC], &[TOKEN], 200),
        (&[TOKEN, BASIC], &[], 200),
        (&[BASIC, TOKEN], &[TOKEN, BASIC], 200),
        (&[TOKEN, BASIC], &[], 404),
        (&[TOKEN, BASIC], &[], 401),
    ] {
        let server = fickle(first, second, token_status);
        let client = client_with(&[(&server.address, user("robot"))]);
        fetch(&client, &server).unwrap_or_else(|error| panic!("{first:?} {second:?} {token_status}: {error}"));
        let before = server.requests().len();
        assert!(before <= 4, "{:?}", server.targets());
        // Later requests start with the authorization that was accepted.
        fetch(&client, &server).unwrap();
        assert_eq!(server.requests().len(), before + 1);
    }
}

#[test]
fn each_authentication_scheme_is_tried_once() {
    let server = fickle(&[TOKEN, BASIC], &[TOKEN, BASIC], 200);
    let client = client_with(&[(&server.address, user("other"))]);
    let error = fetch(&client, &server).unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{error}");
    assert_eq!(server.requests().len(), 4, "nothing, a token in two steps, and the password: {:?}", server.targets());
    let server = fickle(&[TOKEN, BASIC], &[TOKEN, BASIC], 404);
    let error = fetch(&client_with(&[]), &server).unwrap_err().to_string();
    assert!(error.contains("a token for manifest"), "there is no password to show: {error}");
}

#[test]
fn error_at_a_mirror_names_the_mirror() {
    for status in [401, 403, 404, 429, 500] {
        let mirror = Server::start(move |_| Reply::of(status, "").with("retry-after", 1200));
        let url = format!("http://{}/prefix", mirror.address);
        let settings = RegistrySettings { mirrors: vec![url.clone()], mirrors_only: true, ..Default::default() };
        let client = client_with(&[("h.org", settings)]);
        let name = "h.org/team/image:1".parse().unwrap();
        let location = ImageLocation { name, digest: None, transport: Transport::Secure };
        let error = client.registries.head(&location).unwrap_err().to_string();
        assert!(error.contains(&mirror.address), "{status}: {error}");
        let error = client.registries.manifest(&location, None, RetryBudget::Full).unwrap_err().to_string();
        assert!(error.contains(&mirror.address), "{status}: {error}");
    }
    let mirror = Server::start(|_| Reply::of(200, "wrong"));
    let url = format!("http://{}/prefix", mirror.address);
    let registry = Server::start(|_| Reply::of(200, "right"));
    for (mirrors_only, is_found) in [(true, false), (false, true)] {
        let settings = RegistrySettings { mirrors: vec![url.clone()], mirrors_only, ..Default::default() };
        let client = client_with(&[(&registry.address, settings)]);
        let blob = client.registries.small_blob(&image_at(&registry, ":1"), &Digest::of(b"right"));
        assert_eq!(blob.as_ref().is_ok_and(|blob| blob == b"right"), is_found);
        assert!(is_found || blob.unwrap_err().to_string().contains(&mirror.address));
    }
    let mirror = Server::start(|_| Reply::of(404, ""));
    let url = format!("http://{}/prefix", mirror.address);
    let settings = RegistrySettings { mirrors: vec![url.clone()], mirrors_only: true, ..Default::default() };
    let client = client_with(&[("h.org", settings)]);
    let error = client.registries.tags("h.org", "team/image", Transport::Secure).unwrap_err().to_string();
    assert_eq!(error, format!("mirror {url} has no tags of h.org/team/image"));
}
