//! How long it takes to convert an image from a registry, beside the same image from an OCI layout, and to find that
//! none of 1,000 tags has changed.
//!
//! Run with `cargo bench --bench registry`. The image is `oci:DIR:TAG` in `STRATA_BENCH_IMAGE`; without it, a Debian base
//! system is made with mmdebstrap and umoci. The registry is Debian's `docker-registry` on this machine, filled by skopeo.

mod side_by_side;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use side_by_side::{RUNS, convert, image, init, median, strata, time};

/// Tags that are looked after.
const TAGS: usize = 1000;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn main() {
    let folder = tempfile::tempdir().expect("there is room for a benchmark");
    let image = image(folder.path());
    let registry = Registry::start(folder.path());
    let pushed = format!("docker://{}/bench/image:0", registry.address);
    time(Command::new("skopeo").args(["copy", "--quiet", "--dest-tls-verify=false", &image, &pushed]));
    let (mut remote, mut local) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        // Nothing is deleted in between: that would slow down whoever creates files next.
        let [from_registry, from_layout] =
            ["registry", "layout"].map(|name| folder.path().join(format!("{name}{run}.example.org")));
        [&from_registry, &from_layout].into_iter().for_each(|repository| init(repository));
        remote.push(time(convert(&from_registry).arg(&pushed)));
        local.push(time(convert(&from_layout).args([&image, "--name", "bench.example.org/image:1"])));
    }
    let (remote, local) = (median(remote), median(local));
    println!("from the registry  {:.2} s", remote.as_secs_f64());
    println!("from the layout    {:.2} s", local.as_secs_f64());
    println!("ratio              {:.2}", remote.as_secs_f64() / local.as_secs_f64());
    registry.tag();
    let (repository, wishlist) = (folder.path().join("registry0.example.org"), folder.path().join("wishlist.yaml"));
    let text = format!("version: 2\nimages: [\"{}/bench/image:*\"]\n", registry.address);
    std::fs::write(&wishlist, text).expect("there is room for a wishlist");
    let sync = || time(strata().args(["sync", "--quiet", "--repo"]).arg(&repository).arg(&wishlist));
    println!("{TAGS} new tags of a known image  {:.2} s", sync().as_secs_f64());
    let unchanged = median((0..RUNS).map(|_| sync()).collect());
    println!("{TAGS} unchanged tags             {:.2} s", unchanged.as_secs_f64());
}

/// A registry on this machine, until the value is dropped.
struct Registry {
    address: String,
    server: Child,
}

impl Registry {
    fn start(folder: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("this machine has a free port").to_string();
        let settings = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            folder.join("registry").display()
        );
        let file = folder.join("registry.yml");
        std::fs::write(&file, settings).expect("there is room for settings");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        let server = command.spawn().expect("docker-registry is installed");
        while TcpStream::connect(&address).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        Self { address, server }
    }

    /// Gives the image its other tags.
    fn tag(&self) {
        let manifest = self.ask("GET", 0, "accept", &[]);
        let body = manifest.windows(4).position(|end| end == b"\r\n\r\n").expect("the registry has the image") + 4;
        for tag in 1..TAGS {
            let answer = self.ask("PUT", tag, "content-type", &manifest[body..]);
            assert!(answer.starts_with(b"HTTP/1.0 201"), "{}", String::from_utf8_lossy(&answer));
        }
    }

    /// Asks for a manifest, or puts it there, and returns head and body of the answer.
    fn ask(&self, method: &str, tag: usize, header: &str, body: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).expect("the registry listens");
        let length = body.len();
        let head = format!(
            "{method} /v2/bench/image/manifests/{tag} HTTP/1.0\r\n{header}: {MANIFEST}\r\ncontent-length: {length}\r\n\r\n"
        );
        let mut answer = Vec::new();
        let asked = stream.write_all(&[head.as_bytes(), body].concat());
        asked.and_then(|()| stream.read_to_end(&mut answer)).expect("the registry answers");
        answer
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It has nothing left to do.
        self.server.kill().ok();
        self.server.wait().ok();
    }
}
