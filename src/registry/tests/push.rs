//! Pushing: which requests and which credentials are sent to which server.

use super::super::push::{ImageUpload, PushOutcome};
use super::*;

fn image() -> ImageUpload {
    let blobs = vec![b"config".to_vec(), b"layer".to_vec()];
    ImageUpload { manifest: b"{}".to_vec(), media_type: "application/x-manifest", blobs }
}

/// A registry without content, whose uploads go to the URL that `location` returns.
fn registry(location: impl Fn() -> String + Send + Sync + 'static) -> Server {
    Server::start(move |asked| match asked.method.as_str() {
        "HEAD" => Reply::error(404, "UNKNOWN"),
        "POST" => Reply::of(202, "").with("location", location()),
        _ => Reply::of(201, ""),
    })
}

fn push(client: &Client, server: &Server) -> Result<PushOutcome, RegistryError> {
    client.registries.push(&image_at(server, ":1").name, Transport::Plain, &image())
}

#[test]
fn blobs_are_sent_to_the_upload_location_and_the_manifest_last() {
    let server = registry(|| "/upload?state=x".to_owned());
    assert_eq!(push(&client(), &server).unwrap(), PushOutcome::Pushed);
    let [config, layer] = [&b"config"[..], b"layer"].map(|bytes| Digest::of(bytes).to_string());
    let upload = |digest: &str| format!("PUT /upload?state=x&digest={}", digest.replace(':', "%3A"));
    let expected = [
        "HEAD /v2/team/image/manifests/1".to_owned(),
        format!("HEAD /v2/team/image/blobs/{config}"),
        "POST /v2/team/image/blobs/uploads/".to_owned(),
        upload(&config),
        format!("HEAD /v2/team/image/blobs/{layer}"),
        "POST /v2/team/image/blobs/uploads/".to_owned(),
        upload(&layer),
        "PUT /v2/team/image/manifests/1".to_owned(),
    ];
    assert_eq!(server.targets(), expected);
    let asked = server.requests();
    assert_eq!((asked[3].body.as_str(), asked[6].body.as_str(), asked[7].body.as_str()), ("config", "layer", "{}"));
    assert_eq!(asked[7].headers["content-type"], "application/x-manifest");
    assert_eq!(asked[2].headers["content-length"], "0");
}

#[test]
fn existing_blobs_and_manifests_are_not_sent_again() {
    let digest = Digest::of(b"{}").to_string();
    let server = Server::start(move |_| Reply::of(200, "").with("docker-content-digest", &digest));
    assert_eq!(push(&client(), &server).unwrap(), PushOutcome::AlreadyPresent);
    assert_eq!(server.targets(), ["HEAD /v2/team/image/manifests/1"]);
    let other = Digest::of(b"other").to_string();
    let server = Server::start(move |asked| match asked.method.as_str() {
        "HEAD" => Reply::of(200, "").with("docker-content-digest", &other),
        _ => Reply::of(201, ""),
    });
    assert_eq!(push(&client(), &server).unwrap(), PushOutcome::Pushed);
    assert_eq!(server.targets().len(), 4, "the tag has moved, and the blobs are there: {:?}", server.targets());
}

#[test]
fn credentials_for_pushing_are_sent_to_their_registry_only() {
    let elsewhere = Server::start(|_| Reply::of(201, ""));
    let location = format!("http://{}/upload", elsewhere.address);
    let server = Server::start(move |asked| match (asked.method.as_str(), asked.authorization()) {
        (_, None) => Reply::of(401, "").with("www-authenticate", "Basic realm=\"r\""),
        ("HEAD", _) => Reply::error(404, "UNKNOWN"),
        ("POST", _) => Reply::of(202, "").with("location", &location),
        _ => Reply::of(201, ""),
    });
    let environment = |name: &str| (name == "DUCC_OUTPUT_REGISTRY_PASS").then(|| "hunter2".into());
    let name = image_at(&server, ":1").name;
    let push = |host: &str| {
        let login = Some((host, "robot"));
        let registries = Registries::for_pushing(RegistriesSettings::default(), &environment, login).unwrap();
        registries.push(&name, Transport::Plain, &image())
    };
    assert_eq!(push(name.host()).unwrap(), PushOutcome::Pushed);
    let authorizations = |server: &Server| -> Vec<Option<String>> {
        server.requests().iter().map(|asked| asked.authorization().map(str::to_owned)).collect()
    };
    assert!(
        authorizations(&server)[1..].iter().all(|shown| *shown == Some(basic("robot"))),
        "{:?}",
        authorizations(&server)
    );
    assert_eq!(authorizations(&elsewhere), [None, None]);
    let error = push("registry.example.org").unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{error}");
}

#[test]
fn interrupted_upload_starts_again() {
    let failed = Mutex::new(false);
    let server = Server::start(move |asked| match asked.method.as_str() {
        "HEAD" => Reply::error(404, "UNKNOWN"),
        "POST" => Reply::of(202, "").with("location", "/upload"),
        _ if asked.target.starts_with("/upload") && !std::mem::replace(&mut *failed.lock().unwrap(), true) => {
            Reply::of(502, "")
        }
        _ => Reply::of(201, ""),
    });
    assert_eq!(push(&client(), &server).unwrap(), PushOutcome::Pushed);
    let begun = server.targets().iter().filter(|target| target.starts_with("POST")).count();
    assert_eq!(begun, 3);
}

#[test]
fn invalid_responses_are_errors() {
    for (location, words) in [("", "no Location header"), ("file:///etc/passwd", "neither an http")] {
        let server = Server::start(move |asked| match (asked.method.as_str(), location) {
            ("HEAD", _) => Reply::error(404, "UNKNOWN"),
            ("POST", "") => Reply::of(202, ""),
            _ => Reply::of(202, "").with("location", location),
        });
        let error = push(&client(), &server).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(server.targets().iter().all(|target| !target.starts_with("PUT")));
    }
    let other = Digest::of(b"other").to_string();
    let server = Server::start(move |asked| match asked.method.as_str() {
        "HEAD" if asked.target.contains("blobs") => Reply::of(200, ""),
        "HEAD" => Reply::error(404, "UNKNOWN"),
        _ => Reply::of(201, "").with("docker-content-digest", &other),
    });
    assert!(matches!(push(&client(), &server), Err(RegistryError::WrongDigest { .. })));
    let server = registry(|| "/upload".to_owned());
    let name = image_at(&server, &format!("@{}", Digest::of(b""))).name;
    assert!(client().registries.push(&name, Transport::Plain, &image()).is_err());
    assert!(server.targets().is_empty());
}
