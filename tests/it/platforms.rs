//! A name that stands for several platforms is a link that each client expands for itself.

use std::path::Path;

use serde_json::json;

use crate::support::{NAME, TestImage, TestRepository, need_fuse, write_oci_index};

fn image(architecture: &str) -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("etc/shared", "the same everywhere"))
        .layer(|layer| layer.file("etc/architecture", architecture))
        .platform("linux", architecture)
}

/// Writes an index of images for these architectures and returns the argument that names it.
fn index(repository: &TestRepository, folder: &str, architectures: &[&str]) -> String {
    let folder = repository.beside(folder);
    let images: Vec<TestImage> = architectures.iter().map(|architecture| image(architecture)).collect();
    write_oci_index(&images, &folder, "latest");
    format!("oci:{}:latest", folder.display())
}

fn stored_target(repository: &TestRepository, path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').unwrap();
    repository.tree(folder).target(name)
}

const VARIANT: &str = "../../.multiarch/$(CVMFS_ARCH:-amd64)/registry.example.org/app/tool:1";

#[test]
fn all_platforms_of_an_image_are_published_side_by_side() {
    let repository = TestRepository::new();
    let source = index(&repository, "three", &["amd64", "arm64", "ppc64le"]);
    let name = "registry.example.org/app/tool:1";
    let run = repository.run(["convert", &source, "--name", name, "--platform", "all", "--json"]).expect_code(0).json();
    let platforms: Vec<_> = run["images"].as_array().unwrap().iter().map(|image| image["platform"].clone()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64", "linux/ppc64le"].map(|platform| json!(platform)));
    assert_eq!(repository.reader().revision(), 2);
    assert_eq!(stored_target(&repository, &format!("/{name}")), VARIANT);
    for architecture in ["amd64", "arm64", "ppc64le"] {
        let flat = image(architecture).config_digest().replace("sha256:", "");
        let link = stored_target(&repository, &format!("/.multiarch/{architecture}/{name}"));
        assert_eq!(link, format!("../../../../.flat/{}/{flat}", &flat[..2]));
        let metadata = format!("/.metadata/.multiarch/{architecture}/{name}");
        assert_eq!(repository.reader().read(&format!("{metadata}/manifest.json")), image(architecture).manifest());
        let text = repository.flat(&image(architecture)).text("etc/architecture");
        assert_eq!(text, architecture);
        let platform = format!("linux/{architecture}");
        repository.run(["verify", &source, "--name", name, "--platform", &platform]).expect_code(0);
    }
    assert!(!repository.has(&format!("/.metadata/{name}")));
    assert_eq!(stored_target(&repository, "/.multiarch/x86_64"), "amd64");
    assert_eq!(stored_target(&repository, "/.multiarch/aarch64"), "arm64");
    assert!(!repository.has("/.multiarch/i386"));
    let list = repository.run(["list"]).expect_code(0).stdout();
    assert_eq!(list.lines().filter(|line| line.starts_with(&format!("{name} (linux/"))).count(), 3, "{list}");
    let info = repository.run(["info", name]).expect_code(0).stdout();
    assert!(info.contains("(linux/arm64)"), "{info}");
    repository.run(["check"]).expect_code(0);
    repository.run(["check", name]).expect_code(0);
    let again = repository.run(["convert", &source, "--name", name, "--platform", "all"]).expect_code(0);
    assert!(again.stdout().contains("nothing to do"));
}

#[test]
fn name_leads_to_the_platform_of_the_machine_it_is_read_on() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::new();
    let source = index(&repository, "two", &["amd64", "arm64"]);
    repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(0);
    let point = repository.beside("point");
    std::fs::create_dir(&point).unwrap();
    for (variable, architecture) in [("x86_64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64")] {
        let mut command = repository.command(["mount"]);
        let mut mount = command.arg(&point).env("CVMFS_ARCH", variable).spawn().unwrap();
        let path = point.join(NAME).join("etc/architecture");
        let text = wait_for(&path);
        rustix::process::kill_process(rustix::process::Pid::from_child(&mount), rustix::process::Signal::TERM).unwrap();
        assert!(mount.wait().unwrap().success());
        assert_eq!(text, architecture, "{variable}");
    }
}

fn wait_for(path: &Path) -> String {
    for _ in 0..500 {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} does not appear", path.display());
}

#[test]
fn name_may_come_to_stand_for_one_image_and_for_several_again() {
    let repository = TestRepository::new();
    let source = index(&repository, "two", &["amd64", "arm64"]);
    let name = "registry.example.org/app/tool:1";
    let convert = |platform: &str, source: &str| {
        repository.run(["convert", source, "--name", name, "--platform", platform]).expect_code(0);
        repository.run(["check"]).expect_code(0);
    };
    convert("linux/amd64", &source);
    assert!(repository.has(&format!("/.metadata/{name}")) && !repository.has("/.multiarch"));
    convert("all", &source);
    assert_eq!(stored_target(&repository, &format!("/{name}")), VARIANT);
    assert!(!repository.has(&format!("/.metadata/{name}")));
    convert("all", &index(&repository, "one", &["arm64"]));
    assert!(repository.has(&format!("/.multiarch/arm64/{name}")));
    assert!(!repository.has(&format!("/.multiarch/amd64/{name}")));
    let amd64 = image("amd64").config_digest().replace("sha256:", "");
    let unused = repository.json("/.metadata/unused.json");
    assert!(unused.get(format!(".flat/{}/{amd64}", &amd64[..2])).is_some(), "{unused}");
    convert("linux/amd64", &source);
    assert!(stored_target(&repository, &format!("/{name}")).ends_with(&amd64));
    assert!(!repository.has(&format!("/.multiarch/arm64/{name}")));
    assert!(!repository.has(&format!("/.metadata/.multiarch/arm64/{name}")));
}

#[test]
fn platform_that_no_folder_can_be_named_after_is_left_out() {
    let repository = TestRepository::new();
    let source = index(&repository, "odd", &["amd64", "../../etc", ".hidden", "a:b", "x86_64", "aarch64"]);
    repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(0);
    let names = repository.list("/.metadata/.multiarch");
    assert_eq!(names.iter().filter(|name| !name.starts_with(".cvmfs")).collect::<Vec<_>>(), ["amd64"]);
    assert_eq!(stored_target(&repository, "/.multiarch/x86_64"), "amd64");
    let source = index(&repository, "none", &["x86_64"]);
    let run = repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(1);
    assert!(run.stderr().contains("there is no image for linux"), "{}", run.stderr());
}
