//! Registries whose responses exceed a time limit, or that do not respond.

use std::time::Instant;

use super::super::push::ImageUpload;
use super::*;
use crate::http::HttpError;

/// Time limit of a small request in these tests.
const REQUEST: Duration = Duration::from_millis(300);

fn hasty_client(hosts: &[(&str, RegistrySettings)]) -> Client {
    client_within(hosts, TimeLimits { request: REQUEST, ..TimeLimits::default() })
}

/// Asserts that a request fails soon because of its time limit.
#[track_caller]
fn assert_too_slow<T: fmt::Debug>(what: &str, ask: impl FnOnce() -> Result<T, RegistryError>) {
    let begun = Instant::now();
    let error = ask().unwrap_err();
    assert!(
        matches!(&error, RegistryError::Http(HttpError::TooSlow { limit, .. }) if *limit <= REQUEST),
        "{what}: {error}"
    );
    assert!(error.is_transient() && error.to_string().contains("http://127.0.0.1:"), "{what}: {error}");
    assert!(begun.elapsed() < 5 * REQUEST, "{what}: {:?}", begun.elapsed());
}

#[test]
fn slow_small_response_exceeds_its_time_limit() {
    for from in [Drip::Head, Drip::Body] {
        let body = json!({"tags": ["a"], "repositories": ["a"], "pad": "x".repeat(1000)});
        let server = Server::start(move |_| Reply::json(body.clone()).dripping(from));
        let location = image_at(&server, ":1");
        let registries = || hasty_client(&[]).registries;
        assert_too_slow("manifest", || registries().manifest(&location, None, RetryBudget::Full));
        assert_too_slow("config", || registries().small_blob(&location, &Digest::of(b"")));
        assert_too_slow("tags", || registries().tags(&server.address, "team/image", Transport::Plain));
        assert_too_slow("catalog", || registries().repositories(&server.address, Transport::Plain));
        let url = format!("http://{}/api", server.address);
        assert_too_slow("json", || registries().get_json(&url, AuthScheme::Bearer));
        assert_too_slow("digest", || registries().head(&location));
    }
}

#[test]
fn slow_error_response_exceeds_its_time_limit() {
    let server = Server::start(|_| Reply::of(500, "x".repeat(1000)).dripping(Drip::Body));
    let begun = Instant::now();
    hasty_client(&[]).registries.manifest(&image_at(&server, ":1"), None, RetryBudget::SingleAttempt).unwrap_err();
    assert!(begun.elapsed() < 5 * REQUEST);
}

#[test]
fn slow_token_response_exceeds_its_time_limit() {
    let server = Server::start(|asked| {
        if asked.target.starts_with("/token") {
            return Reply::json(json!({"token": "t".repeat(1000)})).dripping(Drip::Body);
        }
        let challenge = format!(r#"Bearer realm="http://{}/token""#, asked.headers["host"]);
        Reply::error(401, "UNAUTHORIZED").with("www-authenticate", challenge)
    });
    let registries = hasty_client(&[]).registries;
    assert_too_slow("token", || registries.manifest(&image_at(&server, ":1"), None, RetryBudget::Full));
    // Requests that wait for the same token have their own time limits.
    let registries = hasty_client(&[]).registries;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_too_slow("token", || registries.manifest(&image_at(&server, ":1"), None, RetryBudget::Full));
            });
        }
    });
    let registries = hasty_client(&[]).registries;
    assert_too_slow("token for a layer", || {
        registries.open_blob(&image_at(&server, ":1"), &Digest::of(b""), &[], 0).map(|opened| opened.start)
    });
}

#[test]
fn slow_upload_response_exceeds_its_time_limit() {
    for slow in ["HEAD", "POST", "PUT"] {
        let server = Server::start(move |asked| {
            let reply = match asked.method.as_str() {
                "HEAD" | "GET" => Reply::error(404, "UNKNOWN"),
                "POST" => Reply::of(202, "").with("location", "/upload"),
                _ => Reply::of(201, ""),
            };
            if asked.method == slow || slow == "HEAD" { reply.dripping(Drip::Head) } else { reply }
        });
        let image = ImageUpload { manifest: b"{}".to_vec(), media_type: "application/x", blobs: vec![b"x".to_vec()] };
        let registries = hasty_client(&[]).registries;
        assert_too_slow(slow, || registries.push(&image_at(&server, ":1").name, Transport::Plain, &image));
    }
}

#[test]
fn lost_response_is_requested_again_within_the_time_limit() {
    let asked = Mutex::new(0);
    let server = Server::start(move |_| {
        let mut asked = asked.lock().unwrap();
        *asked += 1;
        let reply = Reply::of(200, "{}");
        if *asked == 1 { reply.dripping(Drip::Head) } else { reply }
    });
    let limits =
        TimeLimits { request: Duration::from_secs(20), stall: Duration::from_millis(100), ..Default::default() };
    let client = client_within(&[], limits);
    assert_eq!(fetch(&client, &server).unwrap(), Digest::of(b"{}"));
}

#[test]
fn endless_list_exceeds_its_time_limit() {
    let client = client();
    let clock = Arc::clone(&client.clock);
    let server = Server::start(move |asked| {
        clock.sleep(Duration::from_secs(50));
        let page: u32 = asked.target.rsplit_once('=').unwrap().1.parse().unwrap();
        Reply::json(json!({"tags": []})).with("link", format!("</v2/a/tags/list?n={}>; rel=next", page + 1))
    });
    let error = client.registries.tags(&server.address, "a", Transport::Plain).unwrap_err();
    let limit = 10 * TimeLimits::default().request;
    assert!(matches!(error, RegistryError::ListTooSlow { limit: actual, .. } if actual == limit), "{error}");
    assert!(error.to_string().ends_with("within 10m, which is ten times [requests] timeout"), "{error}");
    assert_eq!(server.requests().len(), 13);
}

#[test]
fn limits_of_a_registry_precede_the_defaults() {
    let server = Server::start(|_| Reply::of(200, "x".repeat(1000)).dripping(Drip::Body));
    let second = Duration::from_secs(1);
    let limit = |of_registry: Option<Duration>, default: Duration| {
        let registry = RegistrySettings { request_timeout: of_registry, ..Default::default() };
        let requests = RequestSettings { timeout: Some(default), ..Default::default() };
        let hosts = [(server.address.clone(), registry)].into();
        let settings = RegistriesSettings { hosts, requests, ..Default::default() };
        let clock = Arc::new(ManualClock::default());
        let registries = Registries::with_clock(settings, &|_| None, TimeLimits::default(), clock).unwrap();
        match registries.manifest(&image_at(&server, ":1"), None, RetryBudget::Full) {
            Err(RegistryError::Http(HttpError::TooSlow { limit, .. })) => limit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(limit(None, second), second);
    assert_eq!(limit(Some(second), 60 * second), second);
}

#[test]
fn registry_gets_no_request_after_three_missing_responses() {
    let server = Server::start(|asked| match asked.target.ends_with("/good") {
        true => Reply::of(200, "{}"),
        false => Reply::of(200, "{}").dripping(Drip::Head),
    });
    let client = hasty_client(&[]);
    let manifest =
        |tag| client.registries.manifest(&image_at(&server, tag), None, RetryBudget::SingleAttempt).map(drop);
    (0..3).for_each(|_| assert!(matches!(manifest(":1"), Err(RegistryError::Http(HttpError::TooSlow { .. })))));
    let before = server.requests().len();
    let error = manifest(":good").unwrap_err();
    assert!(matches!(error, RegistryError::GivenUp { .. }) && error.is_postponed(), "{error}");
    assert!(error.to_string().contains(&server.address), "{error}");
    assert!(matches!(client.registries.head(&image_at(&server, ":2")), Err(RegistryError::GivenUp { .. })));
    assert_eq!(server.requests().len(), before);
    client.clock.sleep(Duration::from_secs(60));
    manifest(":good").unwrap();
    assert!(matches!(manifest(":1"), Err(RegistryError::Http(HttpError::TooSlow { .. }))), "it has answered meanwhile");
}

#[test]
fn waiting_for_a_parked_token_service_delays_no_other_request() {
    let asked = Mutex::new(0);
    let server = Server::start(move |request| {
        if request.target.starts_with("/token") {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            let busy = Reply::error(429, "TOOMANYREQUESTS").with("retry-after", 40);
            return if *asked == 1 { busy } else { Reply::json(json!({"token": "t"})) };
        }
        // Another name for the same machine counts as another host, which is parked separately.
        let realm = format!("http://{}/token", request.headers["host"].replace("127.0.0.1", "localhost"));
        match request.authorization() {
            Some("Bearer t") => Reply::of(200, "{}"),
            _ => Reply::error(401, "UNAUTHORIZED").with("www-authenticate", format!(r#"Bearer realm="{realm}""#)),
        }
    });
    let client = hasty_client(&[]);
    fetch(&client, &server).unwrap();
    assert_eq!(client.clock.passed(), Duration::from_secs(40));
}
