//! Compares conversions from Debian's `docker-registry` on this machine with conversions from a layout.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use reqwest::blocking::{Client, Response};
use serde_json::Value;
use strata::object::Compression;

use super::commands::{Scratch, best, convert, strata, time};
use super::images::{self, Layout};
use super::table::{Promise, Table};

/// Number of runs of each of two alternating commands.
const RUNS: usize = 5;

/// Number of tags in the wishlist.
const TAGS: usize = 1000;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Measures a Debian base system from a registry and from a layout, and 1,000 tags that have not changed.
pub fn compare_with_layout(directory: &Path, scratch: &mut Scratch, table: &mut Table) {
    let layout = images::base(directory);
    let registry = Registry::start(&scratch.path("registry"));
    registry.push(&layout, "base", "bench/image", "0");
    let pushed = format!("docker://{}/bench/image:0", registry.address);
    let (mut remote, mut local) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        remote.push(convert(&scratch.repository(Compression::Balanced), &pushed, "image:1", &[]).time);
        local.push(convert(&scratch.repository(Compression::Balanced), &layout.image("base"), "image:1", &[]).time);
    }
    let reference = "from a layout";
    table.time("a base system from a registry", best(remote), reference, best(local), Promise::AtMost(1.2));
    for tag in 1..TAGS {
        registry.tag(&layout, "base", "bench/image", &tag.to_string());
    }
    let repository = scratch.repository(Compression::Balanced);
    let wishlist = registry.wishlist(scratch, &["bench/image:*"]);
    let sync = || time(strata(&repository).arg("sync").arg(&wishlist));
    let new = sync();
    let unchanged = best((0..RUNS).map(|_| sync()));
    table.time(&format!("`sync` of {TAGS} unchanged tags"), unchanged, "when they were new", new, Promise::AtMost(0.5));
}

/// A registry on this machine, which runs until the value is dropped.
pub struct Registry {
    address: String,
    server: Child,
    client: Client,
}

impl Registry {
    /// Starts a registry with its storage in a directory, which must not exist yet.
    pub fn start(directory: &Path) -> Self {
        fs::create_dir(directory).expect("there is room for a registry");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("this machine has a free port").to_string();
        let settings = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            directory.display()
        );
        let file = directory.join("registry.yml");
        fs::write(&file, settings).expect("there is room for settings");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        let server = command.spawn().expect("docker-registry is installed");
        while TcpStream::connect(&address).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = Client::builder().no_proxy().build().expect("clients can be made");
        Self { address, server, client }
    }

    /// Pushes an image of a layout to a repository of the registry.
    pub fn push(&self, layout: &Layout, tag: &str, repository: &str, as_tag: &str) {
        let manifest: Value = serde_json::from_slice(&layout.manifest(tag)).expect("manifests are JSON");
        let layers = manifest["layers"].as_array().expect("a manifest lists layers");
        for blob in layers.iter().chain([&manifest["config"]]) {
            self.push_blob(layout, repository, blob["digest"].as_str().expect("digests are text"));
        }
        self.tag(layout, tag, repository, as_tag);
    }

    fn push_blob(&self, layout: &Layout, repository: &str, digest: &str) {
        if self
            .client
            .head(self.url(repository, &format!("blobs/{digest}")))
            .send()
            .is_ok_and(|has| has.status().is_success())
        {
            return;
        }
        let upload = done(self.client.post(self.url(repository, "blobs/uploads/")).send());
        let to = upload.headers()["location"].to_str().expect("locations are text").to_owned();
        let blob = fs::File::open(layout.blob(digest)).expect("layouts are whole");
        done(self.client.put(format!("{to}&digest={digest}")).timeout(Duration::from_secs(600)).body(blob).send());
    }

    /// Adds a tag to an image whose blobs the registry has.
    pub fn tag(&self, layout: &Layout, tag: &str, repository: &str, as_tag: &str) {
        let request = self.client.put(self.url(repository, &format!("manifests/{as_tag}")));
        done(request.header("content-type", MANIFEST).body(layout.manifest(tag)).send());
    }

    /// Writes a wishlist of images of this registry.
    pub fn wishlist(&self, scratch: &mut Scratch, images: &[&str]) -> std::path::PathBuf {
        let path = scratch.path("wishlist").with_extension("yaml");
        let images: Vec<String> = images.iter().map(|image| format!("{}/{image}", self.address)).collect();
        let text = format!("version: 2\nimages: {images:?}\n");
        fs::write(&path, text).expect("there is room for a wishlist");
        path
    }

    fn url(&self, repository: &str, rest: &str) -> String {
        format!("http://{}/v2/{repository}/{rest}", self.address)
    }
}

fn done(answer: reqwest::Result<Response>) -> Response {
    answer.and_then(Response::error_for_status).expect("the registry takes what is right")
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The registry stores no data that is still needed.
        self.server.kill().ok();
        self.server.wait().ok();
    }
}
