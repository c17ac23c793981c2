//! Real registries, each with its own directory.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Reply, Request};
use super::{TestImage, need, write_oci_index};

/// The user of registries that [`TestRegistry::with_password`] starts.
pub const USER: &str = "user";

/// The password of [`USER`].
pub const PASSWORD: &str = "secret word";

/// [`USER`] and [`PASSWORD`] as `htpasswd -B` writes them.
const HTPASSWD: &str = "user:$2y$04$abcdefghijklmnopqrstuuP6/q0obcGuk6SuzN66aTZwHeRCLMzKO\n";

/// A `docker-registry` on this machine, which runs until the value is dropped.
pub struct TestRegistry {
    home: TempDir,
    port: u16,
    server: Child,
    is_secure: bool,
}

impl TestRegistry {
    /// Starts an empty registry without access control. Returns `None` if the program is not installed.
    #[track_caller]
    pub fn start() -> Option<Self> {
        Self::start_with(&json!({}), None)
    }

    /// Starts a registry that only [`USER`] may use.
    #[track_caller]
    pub fn with_password() -> Option<Self> {
        Self::start_with(&json!({ "auth": { "htpasswd": { "realm": "test", "path": "HOME/htpasswd" } } }), None)
    }

    /// Starts a registry with HTTPS and a self-signed certificate for 127.0.0.1.
    #[track_caller]
    pub fn with_certificate() -> Option<Self> {
        need("openssl").then_some(())?;
        let tls = json!({ "certificate": "HOME/registry.crt", "key": "HOME/registry.key" });
        Self::start_with(&json!({}), Some(&tls))
    }

    fn start_with(settings: &Value, tls: Option<&Value>) -> Option<Self> {
        (need("docker-registry") && need("skopeo")).then_some(())?;
        let home = tempfile::tempdir().unwrap();
        if tls.is_some() {
            make_certificate(home.path());
        }
        let mut configuration = json!({
            "version": 0.1,
            // The port is found in the log.
            "log": { "level": "info", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": "HOME/storage" }, "delete": { "enabled": true } },
            "http": { "addr": "127.0.0.1:0", "secret": "test", "tls": tls },
        });
        settings.as_object().unwrap().iter().for_each(|(name, value)| configuration[name] = value.clone());
        // The configuration file is YAML, of which JSON is a subset.
        let configuration = configuration.to_string().replace("HOME", home.path().to_str().unwrap());
        let file = home.path().join("config.yml");
        fs::write(&file, configuration).unwrap();
        fs::write(home.path().join("htpasswd"), HTPASSWD).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none");
        let mut server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let port = port_of(&mut server);
        Some(Self { home, port, server, is_secure: tls.is_some() })
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the registry's host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the file of the certificate.
    pub fn certificate(&self) -> PathBuf {
        assert!(self.is_secure, "this registry has no certificate");
        self.home.path().join("registry.crt")
    }

    /// Stores an image under `repository:tag`, with skopeo.
    pub fn push(&self, image: &TestImage, name: &str) {
        let layout = tempfile::tempdir_in(self.home.path()).unwrap();
        image.write_oci_layout(layout.path(), "latest");
        self.push_from(&format!("oci:{}:latest", layout.path().display()), name);
    }

    /// Stores images, one for each platform, and their index under `repository:tag`, with skopeo.
    pub fn push_index(&self, images: &[TestImage], name: &str) {
        let layout = tempfile::tempdir_in(self.home.path()).unwrap();
        write_oci_index(images, layout.path(), "latest");
        self.push_from(&format!("oci:{}:latest", layout.path().display()), name);
    }

    /// Stores the image that skopeo finds at `source` under `repository:tag`, with all its platforms.
    pub fn push_from(&self, source: &str, name: &str) {
        let mut command = Command::new("skopeo");
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]);
        command.args(["--dest-creds", &format!("{USER}:{PASSWORD}"), source]);
        run(command.arg(format!("docker://{}/{name}", self.host())));
    }

    /// Stores the image that skopeo finds at `source` in another format, `oci` or `v2s2`.
    pub fn push_as(&self, format: &str, source: &str, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--format", format, source]);
        run(command.arg(format!("docker://{}/{name}", self.host())));
    }

    /// Stores an image under several tags of a repository, without skopeo, which would be slow.
    pub fn push_tags<T: AsRef<str>>(&self, image: &TestImage, repository: &str, tags: impl IntoIterator<Item = T>) {
        image.blobs().iter().for_each(|(digest, bytes)| self.put_blob(repository, digest, bytes));
        for tag in tags {
            self.put_manifest(repository, tag.as_ref(), super::image::MANIFEST_TYPE, &image.manifest());
        }
    }

    /// Stores a blob (distribution-spec, "Pushing blobs").
    pub fn put_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let begun = self.ask(202, self.request("POST", &format!("/v2/{repository}/blobs/uploads/")));
        let place = begun.header("location").expect("an upload has a location");
        let place = &place[place.find("/v2/").expect("the location is at this registry")..];
        let mark = if place.contains('?') { '&' } else { '?' };
        self.ask(201, self.request("PUT", &format!("{place}{mark}digest={digest}")).body(bytes));
    }

    /// Stores a manifest under a tag or a digest.
    pub fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, manifest: &[u8]) {
        let request = self.request("PUT", &format!("/v2/{repository}/manifests/{reference}"));
        self.ask(201, request.with("content-type", media_type).body(manifest));
    }

    /// Creates a request that [`Request::forward`] sends to the registry.
    pub fn request(&self, method: &str, path: &str) -> Request {
        // `USER` and `PASSWORD` in base64.
        Request::new(self.port, method, path).with("authorization", "Basic dXNlcjpzZWNyZXQgd29yZA==")
    }

    fn ask(&self, status: u16, request: Request) -> Reply {
        assert!(!self.is_secure, "only skopeo pushes to registries with a certificate");
        let reply = request.forward();
        let body = String::from_utf8_lossy(&reply.body);
        assert_eq!(reply.status, status, "{} {}: {body}", request.method, request.path);
        reply
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Runs a program, which must succeed.
#[track_caller]
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until a registry listens, and returns its port.
fn port_of(server: &mut Child) -> u16 {
    let log = BufReader::new(server.stderr.take().expect("stderr is piped"));
    let mut lines = log.lines().map_while(Result::ok);
    let mut log_lines = Vec::new();
    let port = lines.by_ref().inspect(|line| log_lines.push(line.clone())).find_map(|line| {
        let place = line.split("listening on 127.0.0.1:").nth(1)?;
        place.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
    });
    // A registry whose log is not read would block when the pipe is full.
    thread::spawn(move || lines.for_each(drop));
    port.unwrap_or_else(|| panic!("docker-registry does not start: {log_lines:?}"))
}

fn make_certificate(directory: &Path) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    command.args(["-subj", "/CN=registry of a test", "-addext", "subjectAltName=IP:127.0.0.1,IP:::1,DNS:localhost"]);
    command.args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth"]);
    command.arg("-keyout").arg(directory.join("registry.key")).arg("-out").arg(directory.join("registry.crt"));
    run(&mut command);
}
