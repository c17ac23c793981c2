//! A name for several platforms is a variant link, which each client expands for its own platform.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{NAME, Run, TestImage, TestRepository, need_fuse, write_oci_index};

fn image(architecture: &str) -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("etc/shared", "the same everywhere"))
        .layer(|layer| layer.file("etc/architecture", architecture))
        .platform("linux", architecture)
}

/// Writes an index of images for these architectures and returns the argument that names it.
fn index(repository: &TestRepository, architectures: &[&str]) -> String {
    let images: Vec<TestImage> = architectures.iter().map(|architecture| image(architecture)).collect();
    repository.source_of_index(&images)
}

fn stored_target(repository: &TestRepository, path: &str) -> String {
    let (directory, name) = path.rsplit_once('/').unwrap();
    repository.tree(directory).target(name)
}

const VARIANT: &str = "../../.multiarch/$(CVMFS_ARCH:-amd64)/registry.example.org/app/tool:1";

#[test]
fn all_platforms_of_an_image_are_published_side_by_side() {
    let repository = TestRepository::new();
    let source = index(&repository, &["amd64", "arm64", "ppc64le"]);
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
    let source = index(&repository, &["amd64", "arm64"]);
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
fn name_may_change_between_one_image_and_several_platforms() {
    let repository = TestRepository::new();
    let source = index(&repository, &["amd64", "arm64"]);
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
    convert("all", &index(&repository, &["arm64"]));
    assert!(repository.has(&format!("/.multiarch/arm64/{name}")));
    assert!(!repository.has(&format!("/.multiarch/amd64/{name}")));
    let amd64 = image("amd64").config_digest().replace("sha256:", "");
    let unused = &repository.json("/.metadata/candidates.json")["trees"];
    assert!(unused.get(format!(".flat/{}/{amd64}", &amd64[..2])).is_some(), "{unused}");
    convert("linux/amd64", &source);
    assert!(stored_target(&repository, &format!("/{name}")).ends_with(&amd64));
    assert!(!repository.has(&format!("/.multiarch/arm64/{name}")));
    assert!(!repository.has(&format!("/.metadata/.multiarch/arm64/{name}")));
}

#[test]
fn platform_that_is_not_a_valid_directory_name_is_left_out() {
    let repository = TestRepository::new();
    let source = index(&repository, &["amd64", "../../etc", ".hidden", "a:b", "x86_64", "aarch64"]);
    repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(0);
    let names = repository.list("/.metadata/.multiarch");
    assert_eq!(names.iter().filter(|name| !name.starts_with(".cvmfs")).collect::<Vec<_>>(), ["amd64"]);
    assert_eq!(stored_target(&repository, "/.multiarch/x86_64"), "amd64");
    let source = index(&repository, &["x86_64"]);
    let run = repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(1);
    assert!(run.stderr().contains("there is no image for linux"), "{}", run.stderr());
}

/// Returns images for variants of amd64, each with a file that contains its variant.
fn variants(names: &[&str]) -> Vec<TestImage> {
    let image = |name: &&str| {
        let image = TestImage::new().layer(|layer| layer.file("etc/variant", *name)).platform("linux", "amd64");
        if *name == "plain" { image } else { image.variant(name) }
    };
    names.iter().map(image).collect()
}

#[test]
fn plain_image_is_chosen_before_higher_variants_in_any_order() {
    for order in [["v3", "v2", "plain"], ["plain", "v3", "v2"], ["v2", "plain", "v3"], ["v3", "v2", "v1"]] {
        let repository = TestRepository::new();
        let images = variants(&order);
        let source = repository.source_of_index(&images);
        let chosen = |platform: &[&str]| {
            let name = ["convert", &source, "--name", NAME];
            repository.run([&name[..], platform].concat()).expect_code(0);
            let info = repository.run(["info", "--json", NAME]).expect_code(0).json();
            let platform = info["platform"].as_str().unwrap().to_owned();
            let manifest = &info["record"]["manifest"];
            let image = images.iter().find(|image| *manifest == image.manifest_digest()).unwrap();
            let text = repository.run(["info", NAME]).expect_code(0).stdout();
            assert!(text.contains(&format!("\nplatform   {platform}\n")), "{text}");
            (repository.flat(image).text("etc/variant"), platform)
        };
        let lowest = *order.iter().find(|name| matches!(**name, "plain" | "v1")).unwrap();
        let spelt = if lowest == "plain" { "linux/amd64" } else { "linux/amd64/v1" };
        if std::env::consts::ARCH == "x86_64" {
            assert_eq!(chosen(&[]), (lowest.to_owned(), spelt.to_owned()), "{order:?}");
        }
        for asked in ["linux/amd64", "linux/amd64/v1"] {
            assert_eq!(chosen(&["--platform", asked]), (lowest.to_owned(), spelt.to_owned()), "{order:?}");
        }
        for (asked, name) in [("v2", "v2"), ("v3", "v3"), ("v4", "v3")] {
            let platform = format!("linux/amd64/{name}");
            let asked = format!("linux/amd64/{asked}");
            assert_eq!(chosen(&["--platform", &asked]), (name.to_owned(), platform), "{order:?}");
        }
        repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(0);
        let directories = repository.list("/.multiarch");
        let directories: Vec<&String> = directories.iter().filter(|name| name.starts_with("amd64")).collect();
        assert_eq!(directories, ["amd64", "amd64:v2", "amd64:v3"]);
        assert!(repository.has(&format!("/.multiarch/amd64/{NAME}")));
        for (platform, name) in [("linux/amd64", lowest), ("linux/amd64/v3", "v3")] {
            let run = repository.run(["verify", &source, "--name", NAME, "--platform", platform]).expect_code(0);
            let image = &images[order.iter().position(|other| *other == name).unwrap()];
            assert!(run.stdout().contains(&image.manifest_digest()), "{}", run.stdout());
        }
    }
}

#[test]
fn higher_variants_must_be_named_if_there_is_no_other() {
    let repository = TestRepository::new();
    let source = repository.source_of_index(&variants(&["v3", "v2"]));
    let words = ["linux/amd64/v2", "linux/amd64/v3", "variant"];
    repository.refuse(["convert", &source, "--name", NAME, "--platform", "linux/amd64"], 1, &words);
    if std::env::consts::ARCH == "x86_64" {
        repository.refuse(["convert", &source, "--name", NAME], 1, &words);
    }
    repository.run(["convert", &source, "--name", NAME, "--platform", "linux/amd64/v2"]).expect_code(0);
}

/// Sets the platform of a layout's only image in `index.json`, and returns the argument that names the image.
fn list_for(repository: &TestRepository, name: &str, image: &TestImage, platform: Value) -> String {
    let directory = repository.beside(name);
    image.write_oci_layout(&directory, "latest");
    let path = directory.join("index.json");
    let mut layout: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    layout["manifests"][0]["platform"] = platform;
    fs::write(&path, layout.to_string()).unwrap();
    format!("oci:{}:latest", directory.display())
}

/// Panics unless a conversion warned once that the config of an image for arm64 states amd64, and `info` prints both.
#[track_caller]
fn assert_contradiction_is_told(repository: &TestRepository, run: &Run) {
    let warnings: Vec<String> = run.stderr().lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect();
    assert_eq!(warnings.len(), 1, "{}", run.stderr());
    for word in ["linux/arm64", "linux/amd64", &image("amd64").manifest_digest()] {
        assert!(warnings[0].contains(word), "{warnings:?}");
    }
    let info = repository.run(["info", NAME]).expect_code(0).stdout();
    assert!(info.contains("\nplatform   linux/arm64 (according to its config: linux/amd64)\n"), "{info}");
}

#[test]
fn platform_in_the_list_of_a_layout_counts_like_one_in_an_index() {
    let repository = TestRepository::new();
    let source = list_for(&repository, "other", &image("amd64"), json!({"os": "linux", "architecture": "arm64"}));
    let convert =
        |platform: &'static str| ["convert", &source, "--name", NAME, "--platform", platform].map(str::to_owned);
    repository.refuse(convert("linux/amd64"), 1, &["there is no image for linux/amd64", "linux/arm64"]);
    let run = repository.run(convert("linux/arm64")).expect_code(0);
    assert_contradiction_is_told(&repository, &run);
    let again = repository.run(convert("linux/arm64")).expect_code(0);
    assert!(again.stdout().contains("nothing to do"), "{}", again.stdout());
    repository.run(["verify", &source, "--name", NAME, "--platform", "linux/arm64"]).expect_code(0);
    repository.run(["convert", &source, "--name", "h.org/all:1", "--platform", "all"]).expect_code(0);
    assert!(repository.has("/.multiarch/arm64/h.org/all:1"));
    // Only the list is corrected.
    list_for(&repository, "other", &image("amd64"), json!({"os": "linux", "architecture": "amd64"}));
    repository.run(convert("linux/amd64")).expect_code(0);
    let info = repository.run(["info", NAME]).expect_code(0).stdout();
    assert!(info.contains("\nplatform   linux/amd64\n"), "{info}");
    repository.run(["check"]).expect_code(0);
}

#[test]
fn higher_variant_in_the_list_of_a_layout_must_be_named() {
    let repository = TestRepository::new();
    let platform = json!({"os": "linux", "architecture": "amd64", "variant": "v3"});
    let source = list_for(&repository, "high", &image("amd64"), platform);
    let words = ["linux/amd64/v3", "variant"];
    repository.refuse(["convert", &source, "--name", NAME, "--platform", "linux/amd64"], 1, &words);
    if std::env::consts::ARCH == "x86_64" {
        repository.refuse(["convert", &source, "--name", NAME], 1, &words);
    }
    repository.run(["convert", &source, "--name", NAME, "--platform", "linux/amd64/v3"]).expect_code(0);
    let info = repository.run(["info", "--json", NAME]).expect_code(0).json();
    assert_eq!(info["platform"], "linux/amd64/v3");
}

#[test]
fn name_that_leads_nowhere_without_a_variant_is_reported_and_not_in_the_store() {
    let repository = TestRepository::new();
    let convert = |images: &[TestImage], name: &str| {
        let source = repository.source_of_index(images);
        let run = repository.run(["convert", &source, "--name", name, "--platform", "all", "--json"]).expect_code(0);
        let listed = |image: &Value| image["podman"] == true;
        let listed = run.json()["images"].as_array().unwrap().iter().filter(|image| listed(image)).count();
        let warnings = run.stderr().lines().filter(|line| line.contains("WARN")).map(str::to_owned).collect();
        (warnings, listed)
    };
    for order in [["v3", "v2"], ["v2", "v3"]] {
        let (warnings, listed): (Vec<String>, usize) = convert(&variants(&order), "h.org/high:1");
        let told = warnings.iter().find(|line| line.contains("has no target")).unwrap();
        for word in ["h.org/high:1", "linux/amd64", "/.multiarch/amd64:v2/h.org/", "/.multiarch/amd64:v3/h.org/"] {
            assert!(told.contains(word), "{warnings:?}");
        }
        assert!(warnings.iter().any(|line| line.contains("h.org/high:1") && line.contains("podman")), "{warnings:?}");
        assert_eq!(listed, 0);
    }
    let images = [variants(&["v3"]), vec![image("arm64")]].concat();
    let (warnings, listed) = convert(&images, "h.org/mixed:1");
    assert!(warnings.len() == 1 && warnings[0].contains("amd64:v3") && !warnings[0].contains("arm64"), "{warnings:?}");
    assert_eq!(listed, 1);
    let store = repository.json("podmanStore/overlay-images/images.json");
    let names: Vec<&Value> = store.as_array().unwrap().iter().map(|image| &image["names"]).collect();
    assert_eq!(names, [&json!(["h.org/mixed:1"])]);
    assert_eq!(store[0]["digest"], image("arm64").manifest_digest());
    // An image without a variant is added and removed again, and with it the name in the store.
    let (warnings, listed) = convert(&variants(&["v3", "plain"]), "h.org/high:1");
    assert_eq!((warnings.len(), listed), (0, 1), "{warnings:?}");
    let (_, listed) = convert(&variants(&["v3", "v2"]), "h.org/high:1");
    assert_eq!(listed, 0);
    let store = repository.json("podmanStore/overlay-images/images.json");
    let is_named = |image: &Value| image["names"].as_array().unwrap().contains(&json!("h.org/high:1"));
    assert!(!store.as_array().unwrap().iter().any(is_named), "{store}");
    repository.run(["check"]).expect_code(0);
}

/// Changes the architecture that a layout's only index states for its image.
fn relabel(directory: &Path, from: &str, to: &str) {
    let path = directory.join("index.json");
    let mut layout: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let blob = |digest: &str| directory.join("blobs/sha256").join(digest.replace("sha256:", ""));
    let entry = &mut layout["manifests"][0];
    let index = fs::read_to_string(blob(entry["digest"].as_str().unwrap())).unwrap();
    let index = index.replace(&format!("\"{from}\""), &format!("\"{to}\""));
    let digest: String = Sha256::digest(&index).iter().map(|byte| format!("{byte:02x}")).collect();
    entry["digest"] = json!(format!("sha256:{digest}"));
    entry["size"] = json!(index.len());
    fs::write(blob(&digest), index).unwrap();
    fs::write(&path, layout.to_string()).unwrap();
}

#[test]
fn config_that_contradicts_the_index_is_reported() {
    let repository = TestRepository::new();
    let directory = repository.beside("index");
    write_oci_index(&[image("amd64")], &directory, "latest");
    relabel(&directory, "amd64", "arm64");
    let source = format!("oci:{}", directory.display());
    let run = repository.run(["convert", &source, "--name", NAME, "--platform", "linux/arm64"]).expect_code(0);
    assert_contradiction_is_told(&repository, &run);
}
