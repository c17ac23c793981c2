//! Images come from registries as they come from layouts.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::support::fuse::wait_until;
use crate::support::{TestImage, TestRepository, need};

/// Docker's own registry, with nothing in it. It ends with the test.
struct TestRegistry {
    process: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl TestRegistry {
    /// Starts one, unless the programs for it are missing.
    #[track_caller]
    fn start() -> Option<Self> {
        if !need("docker-registry") || !need("skopeo") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let settings = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            folder.path().join("storage").display()
        );
        fs::write(folder.path().join("config.yml"), settings).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(folder.path().join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let registry = Self { process, address, folder };
        wait_until("the registry answers", || TcpStream::connect(&registry.address).is_ok());
        Some(registry)
    }

    /// Pushes an image with skopeo, and returns its name.
    fn push(&self, image: &TestImage, name: &str) -> String {
        let layout = tempfile::tempdir_in(self.folder.path()).unwrap();
        image.write_oci_layout(layout.path(), "x");
        let target = format!("{}/{name}", self.address);
        let run = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:x", layout.path().display()))
            .arg(format!("docker://{target}"))
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        target
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn image_of_a_registry_is_published_under_its_name_there() {
    let Some(registry) = TestRegistry::start() else { return };
    let image = TestImage::new()
        .layer(|layer| layer.file("etc/old", "lower"))
        .layer(|layer| layer.file("etc/new", "upper").whiteout("etc/old"));
    let name = registry.push(&image, "team/image:1");
    let repository = TestRepository::new();
    // This machine is first asked with encryption, which the registry does not know.
    repository.run(["convert", &format!("docker://{name}")]).expect_code(0);
    assert_eq!(repository.flat(&image), TestRepository::publish(&image).flat(&image));
    assert!(repository.has(&name));
    assert_eq!(repository.json(&format!(".metadata/{name}/strata.json"))["manifest"], image.manifest_digest());
    repository.run(["verify", &format!("http://{name}")]).expect_code(0);
    let by_digest = format!("http://{}/team/image@{}", registry.address, image.manifest_digest());
    let run = repository.run(["convert", &by_digest, "--dry-run"]).expect_code(0);
    assert!(run.stdout().contains(&image.manifest_digest()), "{}", run.stdout());
    let absent = format!("{}/team/image:2", registry.address);
    repository.refuse(["convert", &absent], 1, &["MANIFEST_UNKNOWN", &absent]);
}
