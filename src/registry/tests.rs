//! Edge cases of the protocol, against a server whose responses a test chooses.

mod confirmed;
mod push;
mod slow;

use std::net::TcpListener;
use std::sync::{Condvar, Mutex};
use std::thread;

use serde_json::json;

use super::clock::tests::ManualClock;
use super::*;
use crate::http::HttpError;
use crate::http::testing::{Drip, ReceivedRequest, Reply, Server};
use crate::source::testing::{CONFIG, Files, INDEX, MANIFEST, assert_source_contract, blob_name, on};
use crate::source::{PlatformRequest, RegistryImage, Source as _, SourceError};

struct Client {
    registries: Registries,
    clock: Arc<ManualClock>,
}

/// A client with settings for these hosts and without other credentials.
fn client_with(hosts: &[(&str, RegistrySettings)]) -> Client {
    let stall = Duration::from_millis(500);
    client_within(hosts, TimeLimits { connect: Duration::from_secs(5), stall, ..TimeLimits::default() })
}

fn client_within(hosts: &[(&str, RegistrySettings)], limits: TimeLimits) -> Client {
    let hosts = hosts.iter().map(|(host, registry)| ((*host).to_owned(), registry.clone())).collect();
    let settings = RegistriesSettings { hosts, ..RegistriesSettings::default() };
    let clock = Arc::new(ManualClock::default());
    let registries = Registries::with_clock(settings, &|_| None, limits, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    Client { registries, clock }
}

fn client() -> Client {
    client_with(&[])
}

fn user(name: &str) -> RegistrySettings {
    RegistrySettings { username: Some(name.to_owned()), password: Some(Secret::new("hunter2")), ..Default::default() }
}

/// Returns the location of an image at a server.
fn image_at(server: &Server, reference: &str) -> ImageLocation {
    let name = format!("{}/team/image{reference}", server.address).parse().unwrap();
    ImageLocation { name, digest: None, transport: Transport::Plain }
}

/// `Authorization` header for the user with the password `hunter2`.
fn basic(name: &str) -> String {
    credentials::Credentials::new(name, "hunter2").basic().unwrap().to_str().unwrap().to_owned()
}

/// Serves the files of a layout as a registry. `reference` is a tag of `root`.
fn registry_of(
    files: Files,
    reference: &str,
    root: serde_json::Value,
) -> impl Fn(&ReceivedRequest) -> Reply + Send + Sync + 'static {
    let digest = root["digest"].as_str().unwrap().to_owned();
    let path = format!("/v2/team/image/manifests/{reference}");
    move |asked| {
        let target =
            if asked.target == path { format!("/v2/team/image/manifests/{digest}") } else { asked.target.clone() };
        let (kind, named) = target.rsplit_once('/').unwrap();
        let Some(bytes) = named.parse().ok().and_then(|digest| files.0.get(&blob_name(&digest))) else {
            return Reply::error(404, if kind.ends_with("blobs") { "BLOB_UNKNOWN" } else { "MANIFEST_UNKNOWN" });
        };
        let is_manifest = serde_json::from_slice::<serde_json::Value>(bytes)
            .is_ok_and(|json| json.get("layers").is_some() || json.get("manifests").is_some());
        if is_manifest != kind.ends_with("manifests") {
            return Reply::error(404, "BLOB_UNKNOWN");
        }
        Reply::of(200, bytes).with("docker-content-digest", named)
    }
}

fn small_image() -> (Files, serde_json::Value) {
    let mut files = Files::layout();
    let image = files.image("linux/amd64", &["lower", "upper"]);
    (files, image)
}

fn resolve(client: &Client, location: &ImageLocation) -> Result<crate::source::Image, SourceError> {
    RegistryImage::new(client.registries.clone(), location.clone())
        .resolve(&PlatformRequest::new(Some("linux/amd64".parse().unwrap())))
}

fn registry_error<T: fmt::Debug>(result: Result<T, SourceError>) -> RegistryError {
    match result {
        Err(SourceError::Registry(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn image_is_found_by_tag_and_by_digest_and_its_layers_are_read() {
    let (mut files, image) = small_image();
    let arm = files.image("linux/arm64", &["arm"]);
    let index = files.nested(json!([on(arm, "linux/arm64"), on(image, "linux/amd64")]));
    let digest: Digest = index["digest"].as_str().unwrap().parse().unwrap();
    let server = Server::start(registry_of(files, "1", index));
    let client = client();
    let location = image_at(&server, ":1");
    let image = resolve(&client, &location).unwrap();
    assert_eq!(image.names, [location.name.clone().into()]);
    assert_eq!(image.index.as_ref().map(|index| index.digest), Some(digest));
    assert_eq!(
        assert_source_contract(&RegistryImage::new(client.registries.clone(), location.clone()), &image),
        [b"lower", b"upper"]
    );
    assert!(server.targets()[0].ends_with("/manifests/1"));
    let first = &server.requests()[0];
    assert_eq!(first.headers["accept"], MANIFEST_TYPES);
    assert!(first.headers["user-agent"].starts_with("strata/") && first.authorization().is_none());
    let both = ImageLocation { digest: Some(digest), ..image_at(&server, ":moved") };
    assert_eq!(resolve(&client, &both).unwrap().manifest, image.manifest);
    assert_eq!(resolve(&client, &image_at(&server, &format!("@{digest}"))).unwrap().manifest, image.manifest);
    assert!(MANIFEST_TYPES.contains(INDEX) && MANIFEST_TYPES.contains(MANIFEST));
}

#[test]
fn error_for_a_missing_image_contains_its_name() {
    let (files, image) = small_image();
    let server = Server::start(registry_of(files, "1", image));
    let error = registry_error(resolve(&client(), &image_at(&server, ":2")));
    assert!(error.is_not_found() && !error.is_transient());
    let expected = format!("registry has no manifest of {}/team/image:2: MANIFEST_UNKNOWN, so it is", server.address);
    assert_eq!(error.to_string(), expected);
    assert!(client().registries.head(&image_at(&server, ":2")).unwrap_err().is_not_found());
}

#[test]
fn manifest_with_another_digest_than_stated_is_rejected() {
    let other = Digest::of(b"other");
    let server = Server::start(move |asked| {
        let header =
            if asked.target.ends_with("sha512") { format!("sha512:{}", "0".repeat(128)) } else { other.to_string() };
        Reply::of(200, r#"{"schemaVersion":2,"config":{},"layers":[]}"#).with("docker-content-digest", header)
    });
    let error = registry_error(resolve(&client(), &image_at(&server, ":1")));
    assert!(matches!(error, RegistryError::WrongDigest { expected, .. } if expected == other), "{error}");
    let error = registry_error(resolve(&client(), &image_at(&server, &format!("@{}", Digest::of(b"asked")))));
    assert!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
    assert!(matches!(resolve(&client(), &image_at(&server, ":sha512")), Err(SourceError::InvalidDocument { .. })));
    let location = image_at(&server, &format!("@{}", Digest::of(b"asked")));
    assert!(matches!(client().registries.head(&location), Err(RegistryError::WrongDigest { .. })));
}

#[test]
fn schema_1_and_web_pages_are_rejected() {
    let server = Server::start(|asked| match asked.target.rsplit_once('/').unwrap().1 {
        "schema1" => Reply::of(200, r#"{"schemaVersion":1,"fsLayers":[]}"#)
            .with("content-type", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        "page" => Reply::of(200, "<html>log in</html>").with("content-type", "text/html; charset=utf-8"),
        "error-page" => Reply::of(400, "<html>no</html>").with("content-type", "text/html"),
        "large" => Reply::of(200, vec![b' '; MAX_DOCUMENT_SIZE as usize + 1]),
        _ => Reply::of(200, "<html>"),
    });
    let client = client();
    assert!(matches!(resolve(&client, &image_at(&server, ":schema1")), Err(SourceError::Schema1 { .. })));
    let error = registry_error(resolve(&client, &image_at(&server, ":page")));
    assert!(error.to_string().contains("web page"), "{error}");
    let error = registry_error(resolve(&client, &image_at(&server, ":error-page"))).to_string();
    assert!(error.ends_with("returned status 400"), "{error}");
    let error = registry_error(resolve(&client, &image_at(&server, ":large")));
    assert!(matches!(error, RegistryError::Http(HttpError::TooLarge { .. })), "{error}");
    assert!(matches!(resolve(&client, &image_at(&server, ":other")), Err(SourceError::InvalidDocument { .. })));
}

#[test]
fn head_requests_the_digest_only_and_falls_back_to_get() {
    let digest = Digest::of(b"x");
    let server = Server::start(move |asked| match (asked.method.as_str(), asked.target.rsplit_once('/').unwrap().1) {
        ("HEAD", "given") => Reply::of(200, "").with("docker-content-digest", digest),
        ("HEAD", "unknown") => Reply::of(405, ""),
        ("HEAD", _) => Reply::of(200, ""),
        _ => Reply::of(200, b"x"),
    });
    let client = client();
    for (tag, requests) in [(":given", 1), (":unknown", 3), (":silent", 5)] {
        assert_eq!(client.registries.head(&image_at(&server, tag)).unwrap(), digest);
        assert_eq!(server.requests().len(), requests, "{tag}");
    }
}

/// A registry that requires the last issued token, and whose token service requires the user `wanted`, if any.
fn guarded(wanted: Option<&'static str>, life: u64) -> Server {
    let issued = Mutex::new(0);
    Server::start(move |asked| {
        let mut issued = issued.lock().unwrap();
        if asked.target.starts_with("/token") {
            if wanted.is_some_and(|user| asked.authorization() != Some(&basic(user))) {
                return Reply::of(401, r#"{"details":"incorrect username or password"}"#);
            }
            *issued += 1;
            return Reply::json(json!({"access_token": format!("t{issued}"), "expires_in": life}));
        }
        if asked.authorization() == Some(&format!("Bearer t{issued}")) && *issued > 0 {
            return Reply::of(200, "{}");
        }
        let realm = format!("http://{}/token?x=1", asked.headers["host"]);
        let scope = "repository:team/image:pull,push";
        let challenge = format!(r#"Bearer realm="{realm}",service="a, b",scope="{scope}""#);
        Reply::error(401, "UNAUTHORIZED")
            .with("www-authenticate", r#"Basic realm="x""#)
            .with("www-authenticate", challenge)
    })
}

fn fetch(client: &Client, server: &Server) -> Result<Digest, RegistryError> {
    Ok(client.registries.manifest(&image_at(server, ":1"), None, RetryBudget::Full)?.0.digest)
}

#[test]
fn token_is_fetched_once_and_renewed_after_four_fifths_of_its_life() {
    let server = guarded(None, 100);
    let client = client();
    fetch(&client, &server).unwrap();
    let token = "GET /token?x=1&service=a%2C+b&scope=repository%3Ateam%2Fimage%3Apull%2Cpush";
    let manifest = "GET /v2/team/image/manifests/1";
    assert_eq!(server.targets(), [manifest, token, manifest]);
    client.clock.sleep(Duration::from_secs(79));
    fetch(&client, &server).unwrap();
    assert_eq!(server.targets()[3..], [manifest]);
    client.clock.sleep(Duration::from_secs(1));
    fetch(&client, &server).unwrap();
    assert_eq!(server.targets()[4..], [token, manifest]);
}

#[test]
fn token_that_is_refused_before_it_expires_is_renewed_once() {
    let refusing = Arc::new(Mutex::new(false));
    let refuses = Arc::clone(&refusing);
    let issued = Mutex::new(0);
    let registry = Server::start(move |asked| {
        if asked.target.starts_with("/token") {
            *issued.lock().unwrap() += 1;
            return Reply::json(json!({"token": format!("t{}", issued.lock().unwrap())}));
        }
        let accepted = if *refuses.lock().unwrap() { "Bearer t9" } else { "Bearer t" };
        match asked.authorization() {
            Some(shown) if shown.starts_with(accepted) => Reply::of(200, "{}"),
            _ => {
                let realm = format!("http://{}/token", asked.headers["host"]);
                Reply::error(401, "UNAUTHORIZED").with("www-authenticate", format!(r#"Bearer realm="{realm}""#))
            }
        }
    });
    let client = client();
    fetch(&client, &registry).unwrap();
    *refusing.lock().unwrap() = true;
    let error = fetch(&client, &registry).unwrap_err();
    assert!(matches!(&error, RegistryError::Unauthorized { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("UNAUTHORIZED") && error.to_string().contains("no credentials"), "{error}");
    let tokens = registry.targets().iter().filter(|target| target.contains("/token")).count();
    assert_eq!(tokens, 2);
}

#[test]
fn credentials_are_sent_to_the_token_service_only() {
    let server = guarded(Some("robot"), 100);
    let client = client_with(&[(&server.address, user("robot"))]);
    fetch(&client, &server).unwrap();
    let asked = server.requests();
    assert!(asked[1].target.ends_with("&account=robot"), "{}", asked[1].target);
    for request in asked {
        let is_token = request.target.starts_with("/token");
        assert_eq!(request.authorization() == Some(&basic("robot")), is_token, "{request:?}");
    }
}

#[test]
fn error_for_refused_credentials_names_their_source_only() {
    let server = guarded(Some("robot"), 100);
    let wrong = client_with(&[(&server.address, user("other"))]);
    let error = fetch(&wrong, &server).unwrap_err().to_string();
    assert!(error.starts_with("unauthorized: a token for manifest of "), "{error}");
    assert!(error.contains("incorrect username") && error.contains("credentials of the settings"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    let error = fetch(&client(), &server).unwrap_err().to_string();
    assert!(error.contains("there are no credentials for it in the settings, DUCC_AUTH_REGISTRIES"), "{error}");
}

#[test]
fn identity_token_is_posted_for_a_token() {
    let server = Server::start(|asked| match (asked.target.as_str(), asked.authorization()) {
        ("/token", None) => Reply::json(json!({"access_token": "t"})),
        (_, Some("Bearer t")) => Reply::of(200, "{}"),
        _ => {
            let realm = format!("http://{}/token", asked.headers["host"]);
            Reply::of(401, "").with("www-authenticate", format!(r#"Bearer realm="{realm}",service="s""#))
        }
    });
    fetch(&client_with(&[(&server.address, user("<token>"))]), &server).unwrap();
    let posted = &server.requests()[1];
    assert_eq!(posted.method, "POST");
    let expected = "grant_type=refresh_token&client_id=strata&service=s\
                    &scope=repository%3Ateam%2Fimage%3Apull&refresh_token=hunter2";
    assert_eq!(posted.body, expected);
}

#[test]
fn registry_may_require_basic_authentication() {
    let server = Server::start(|asked| match asked.authorization() == Some(&basic("robot")) {
        true => Reply::of(200, "{}"),
        false => Reply::of(401, "").with("www-authenticate", r#"BASIC realm="Registry, of sorts""#),
    });
    let client = client_with(&[(&server.address, user("robot"))]);
    fetch(&client, &server).unwrap();
    fetch(&client, &server).unwrap();
    assert_eq!(server.requests().len(), 3);
    let wrong = client_with(&[(&server.address, user("other"))]);
    for _ in 0..2 {
        assert!(matches!(fetch(&wrong, &server), Err(RegistryError::Unauthorized { .. })));
    }
}

#[test]
fn two_threads_fetch_a_token_once() {
    let server = guarded(None, 100);
    let client = client();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| fetch(&client, &server).unwrap());
        }
    });
    assert_eq!(server.targets().iter().filter(|target| target.contains("/token")).count(), 1);
}

#[test]
fn redirect_to_another_origin_carries_no_authorization() {
    let cdn = Server::start(|_| Reply::of(200, "layer"));
    let away = format!("http://{}/x?sig=secret", cdn.address);
    let server = Server::start(move |asked| {
        if asked.authorization() != Some(&basic("robot")) {
            return Reply::of(401, "").with("www-authenticate", "Basic");
        }
        match asked.target.as_str() {
            "/within" => Reply::of(307, "").with("location", &away),
            _ => Reply::of(307, "").with("location", "/within"),
        }
    });
    let client = client_with(&[(&server.address, user("robot"))]);
    let opened = client.registries.open_blob(&image_at(&server, ":1"), &Digest::of(b"layer"), &[], 0).unwrap();
    assert_eq!((opened.start, opened.length), (0, Some(5)));
    assert_eq!(std::io::read_to_string(opened.body).unwrap(), "layer");
    assert_eq!(cdn.requests()[0].authorization(), None);
    assert_eq!(server.requests()[2].target, "/within");
    assert!(server.requests()[2].authorization().is_some());
}

#[test]
fn challenge_after_a_redirect_to_another_origin_is_ignored() {
    let elsewhere = Server::start(|_| Reply::of(401, "").with("www-authenticate", "Basic"));
    let away = format!("http://{}/x?sig=secret", elsewhere.address);
    let server = Server::start(move |_| Reply::of(302, "").with("location", &away));
    let client = client_with(&[(&server.address, user("robot")), (&elsewhere.address, user("robot"))]);
    let error = fetch(&client, &server).unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert!(!error.to_string().contains("secret") && elsewhere.requests().len() == 1);
}

#[test]
fn redirect_loop_is_rejected() {
    let server = Server::start(|_| Reply::of(302, "").with("location", "/again"));
    assert!(matches!(fetch(&client(), &server), Err(RegistryError::Http(HttpError::Redirect { .. }))));
    assert_eq!(server.requests().len(), 11);
}

#[test]
fn parked_registry_gets_no_request_from_any_thread() {
    let server = Server::start(|asked| match asked.target.ends_with("/busy") {
        true => Reply::error(429, "TOOMANYREQUESTS").with("retry-after", 1200),
        false => Reply::of(200, "{}"),
    });
    let client = client();
    let begin = client.clock.now();
    let error = registry_error(resolve(&client, &image_at(&server, ":busy")));
    assert_eq!(error.parked_until(), Some(begin + Duration::from_secs(1200)));
    assert!(error.is_transient() && error.to_string().contains("asks clients to wait 20m"), "{error}");
    assert!(fetch(&client, &server).unwrap_err().parked_until().is_some());
    assert_eq!(server.requests().len(), 1);
    let patient = Client { registries: client.registries.with_patience(Duration::from_secs(1300)), ..client };
    fetch(&patient, &server).unwrap();
    assert_eq!(patient.clock.passed(), Duration::from_secs(1200));
}

#[test]
fn request_waits_for_a_short_pause() {
    let busy = Mutex::new(3);
    let server = Server::start(move |_| {
        let mut busy = busy.lock().unwrap();
        match *busy {
            0 => Reply::of(200, "{}"),
            left => {
                *busy = left - 1;
                if left == 3 { Reply::of(503, "").with("retry-after", "7") } else { Reply::of(429, "") }
            }
        }
    });
    let client = client();
    fetch(&client, &server).unwrap();
    assert_eq!(client.clock.passed(), Duration::from_secs(7 + 1 + 2));
    let impatient = client.registries.with_patience(Duration::ZERO);
    assert!(impatient.head(&image_at(&server, ":1")).is_ok());
}

#[test]
fn exhausted_limit_delays_manifests_only() {
    let server = Server::start(|asked| match asked.target.contains("manifests") {
        true => Reply::of(200, "{}")
            .with("ratelimit-limit", "100;w=108000")
            .with("ratelimit-remaining", "0;w=108000")
            .with("docker-content-digest", Digest::of(b"{}")),
        false => Reply::of(200, "blob"),
    });
    let client = client();
    fetch(&client, &server).unwrap();
    let error = fetch(&client, &server).unwrap_err();
    assert_eq!(error.parked_until(), Some(client.clock.now() + Duration::from_secs(1080)));
    client.registries.head(&image_at(&server, ":1")).unwrap();
    assert!(client.registries.open_blob(&image_at(&server, ":1"), &Digest::of(b"blob"), &[], 0).is_ok());
}

#[test]
fn temporary_errors_are_retried_with_growing_pauses() {
    let server = Server::start(|asked| match asked.target.rsplit_once('/').unwrap().1 {
        "gone" => Reply::error(404, "MANIFEST_UNKNOWN"),
        "broken" => Reply::of(200, "{").with("content-length", 10),
        _ => Reply::of(500, ""),
    });
    for (tag, attempts, seconds) in [(":gone", 1, 0.0), (":down", 5, 7.5), (":broken", 5, 7.5)] {
        let client = client();
        let before = server.requests().len();
        client.registries.manifest(&image_at(&server, tag), None, RetryBudget::Full).unwrap_err();
        assert_eq!(server.requests().len() - before, attempts, "{tag}");
        assert_eq!(client.clock.passed().as_secs_f64(), seconds, "{tag}");
    }
}

#[test]
fn blob_starts_at_the_requested_offset_or_reports_another() {
    let server = Server::start(|asked| match asked.headers.get("range").map(String::as_str) {
        Some("bytes=2-") => Reply::of(206, "yer").with("content-range", "bytes 2-4/5"),
        Some("bytes=3-") => Reply::of(206, "yer").with("content-range", "bytes 2-4/5"),
        Some("bytes=9-") => Reply::of(416, ""),
        _ => Reply::of(200, "layer"),
    });
    let client = client();
    let open = |offset| client.registries.open_blob(&image_at(&server, ":1"), &Digest::of(b"layer"), &[], offset);
    let opened = open(2).unwrap();
    assert_eq!((opened.start, opened.length), (2, Some(3)));
    assert_eq!(open(1).unwrap().start, 0);
    assert!(matches!(open(3).err(), Some(RegistryError::Http(HttpError::InvalidResponse { .. }))));
    assert!(matches!(open(9).err(), Some(RegistryError::Range { offset: 9, .. })));
}

#[test]
fn foreign_layer_is_fetched_from_its_urls_first_without_credentials() {
    let other = Server::start(|asked| match asked.target.as_str() {
        "/there" => Reply::of(200, "layer"),
        _ => Reply::of(404, ""),
    });
    let server = Server::start(|_| Reply::of(200, "registry"));
    let client = client_with(&[(&other.address, user("robot"))]);
    let urls =
        |path: &str| vec!["ftp://x.org/".to_owned(), "no url".to_owned(), format!("http://{}{path}", other.address)];
    let read = |path: &str| {
        let opened =
            client.registries.open_blob(&image_at(&server, ":1"), &Digest::of(b"layer"), &urls(path), 0).unwrap();
        std::io::read_to_string(opened.body).unwrap()
    };
    assert_eq!(read("/there"), "layer");
    assert_eq!(server.requests().len(), 0);
    assert_eq!(read("/gone"), "registry");
    assert!(other.requests().iter().all(|asked| asked.authorization().is_none()));
}

#[test]
fn lists_are_read_page_by_page() {
    let server = Server::start(|asked| match asked.target.as_str() {
        "/v2/team/image/tags/list?n=1000" => Reply::json(json!({"name": "x", "tags": ["b", "no/tag", "a"]}))
            .with("link", r#"</v2/team/image/tags/list?last=b%2C&n=1000>; rel="next""#),
        "/v2/team/image/tags/list?last=b%2C&n=1000" => Reply::json(json!({"tags": ["c", "b"]})),
        "/v2/_catalog?n=1000" => Reply::json(json!({"repositories": ["team/image", "../etc", "UPPER"]})),
        "/v2/empty/tags/list?n=1000" => Reply::json(json!({"name": "empty", "tags": null})),
        "/v2/away/tags/list?n=1000" => {
            Reply::json(json!({"tags": []})).with("link", "<http://evil.example.org/v2/>; rel=next")
        }
        "/v2/odd/tags/list?n=1000" => Reply::json(json!({"tags": "a"})),
        _ => Reply::error(404, "NAME_UNKNOWN"),
    });
    let client = client();
    let tags = |repository| client.registries.tags(&server.address, repository, Transport::Plain);
    assert_eq!(tags("team/image").unwrap(), ["a", "b", "c"]);
    assert_eq!(tags("empty").unwrap(), [""; 0]);
    assert!(tags("absent").unwrap_err().is_not_found());
    assert!(matches!(tags("away"), Err(RegistryError::Link { .. })));
    assert!(matches!(tags("odd"), Err(RegistryError::Http(HttpError::InvalidResponse { .. }))));
    assert_eq!(client.registries.repositories(&server.address, Transport::Plain).unwrap(), ["team/image"]);
}

#[test]
fn json_page_contains_the_url_of_the_next_page() {
    let server = Server::start(|asked| match asked.target.as_str() {
        "/api?page=1" => Reply::json(json!([1])).with("link", r#"</api?page=2>; rel="next""#).with("X-Total-Count", 2),
        "/page" => Reply::of(200, "<html>").with("content-type", "text/html"),
        _ => Reply::of(403, "{}"),
    });
    let client = client_with(&[(&server.address, user("robot"))]);
    let get = |path: &str, shown_as| client.registries.get_json(&format!("http://{}{path}", server.address), shown_as);
    let page = get("/api?page=1", AuthScheme::Basic).unwrap();
    assert_eq!((page.body, page.next), (json!([1]), Some(format!("http://{}/api?page=2", server.address))));
    assert!(matches!(get("/page", AuthScheme::Bearer), Err(RegistryError::Http(HttpError::InvalidResponse { .. }))));
    assert!(matches!(get("/other", AuthScheme::Bearer), Err(RegistryError::Unauthorized { status: 403, .. })));
    let shown: Vec<_> = server.requests().iter().map(|asked| asked.authorization().unwrap().to_owned()).collect();
    assert_eq!(shown, [basic("robot"), "Bearer hunter2".to_owned(), "Bearer hunter2".to_owned()]);
    assert!(matches!(client.registries.get_json("file:///etc/passwd", AuthScheme::Bearer), Err(RegistryError::Url(_))));
}

#[test]
fn registry_is_tried_after_a_failing_mirror() {
    let (files, image) = small_image();
    let server = Server::start(registry_of(files, "1", image));
    let mirror = Server::start(|_| Reply::of(500, ""));
    let mirrors = vec![format!("http://{}/prefix", mirror.address)];
    let settings = RegistrySettings { mirrors, ..user("robot") };
    let client = client_with(&[(&server.address, settings.clone())]);
    assert!(resolve(&client, &image_at(&server, ":1")).is_ok());
    assert!(mirror.targets().iter().all(|target| target.starts_with("GET /v2/prefix/team/image/")));
    assert_eq!((mirror.requests().len(), client.clock.passed()), (2, Duration::ZERO));
    let only = client_with(&[(&server.address, RegistrySettings { mirrors_only: true, ..settings })]);
    assert!(matches!(
        registry_error(resolve(&only, &image_at(&server, ":1"))),
        RegistryError::Status { status: 500, .. }
    ));
}

#[test]
fn registry_on_this_machine_may_use_plain_http() {
    let (files, image) = small_image();
    let server = Server::start(registry_of(files, "1", image));
    let location = ImageLocation { transport: Transport::Secure, ..image_at(&server, ":1") };
    let client = client();
    assert_eq!(resolve(&client, &location).unwrap().layers.len(), 2);
    let plain = server.targets().iter().filter(|target| target.starts_with("GET ")).count();
    assert_eq!(plain, 2);
    let image = resolve(&client, &location).unwrap();
    assert_eq!(
        assert_source_contract(&RegistryImage::new(client.registries.clone(), location.clone()), &image).len(),
        2
    );
}

#[test]
fn number_of_concurrent_requests_is_limited() {
    let busy = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let counted = Arc::clone(&busy);
    let server = Server::start(move |_| {
        let mut count = counted.0.lock().unwrap();
        count.0 += 1;
        count.1 = count.1.max(count.0);
        // A third request at the same time would be seen here.
        let waited = counted.1.wait_timeout(count, Duration::from_millis(3)).unwrap();
        let mut count = waited.0;
        count.0 -= 1;
        Reply::of(200, "{}")
    });
    let client = client_with(&[(&server.address, RegistrySettings { connections: Some(2), ..Default::default() })]);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| fetch(&client, &server).unwrap());
        }
    });
    assert!(busy.0.lock().unwrap().1 <= 2);
    assert_eq!(server.requests().len(), 8);
}

#[test]
fn request_to_a_silent_server_ends_with_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stall = Duration::from_millis(5);
    let limits = TimeLimits { connect: Duration::from_secs(5), stall, ..TimeLimits::default() };
    let clock = Arc::new(ManualClock::default());
    let registries = Registries::with_clock(RegistriesSettings::default(), &|_| None, limits, clock).unwrap();
    let name = format!("{address}/a:1").parse().unwrap();
    let location = ImageLocation { name, digest: None, transport: Transport::Plain };
    let error = registries.open_blob(&location, &Digest::of(b""), &[], 0).err().unwrap();
    assert!(error.is_transient() && error.to_string().contains(&address), "{error}");
    assert!(CONFIG.contains("config"));
}
