//! Images of every program and format.

use std::fs;
use std::process::Command;

use super::{PLACE, Pull, assert_published, image, top};
use crate::support::{Compression, FaultProxy, TestImage, TestRegistry, TestRepository, need, run};

/// Converts a pushed image, and a copy of it in a layout by skopeo, and compares the results.
#[track_caller]
fn assert_same_as_layout(registry: &TestRegistry, tag: &str) {
    let repository = TestRepository::new();
    repository.run(["convert", &format!("http://{}/{PLACE}:{tag}", registry.host())]).expect_code(0);
    let layout = repository.beside("layout");
    let source = format!("docker://{}/{PLACE}:{tag}", registry.host());
    let target = format!("oci:{}:{tag}", layout.display());
    run(Command::new("skopeo").args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &source, &target]));
    let expected = TestRepository::new();
    expected.run(["convert", &target, "--name", "example.org/team/image:1"]).expect_code(0);
    let flat = repository.tree(&format!("{}/team", registry.host())).target(format!("image:{tag}"));
    let expected_flat = expected.tree("example.org/team").target("image:1");
    let below_root = |link: &str| link.trim_start_matches("../").to_owned();
    // The configs may differ, because skopeo rewrites configs in Docker's own format.
    let tree = repository.tree(&below_root(&flat));
    assert!(tree == expected.tree(&below_root(&expected_flat)), "{:?}", tree.paths());
    assert!(tree.has("etc/made"), "{:?}", tree.paths());
    repository.run(["check"]).expect_code(0);
}

#[test]
fn image_of_a_registry_is_published_under_its_name_there() {
    let Some(pull) = Pull::of(image()) else { return };
    pull.assert_published();
    let name = format!("{}/{PLACE}:1", pull.proxy.host());
    assert!(pull.repository.has(&name));
    let record = pull.repository.json(&format!(".metadata/{name}/strata.json"));
    assert_eq!(record["manifest"], pull.image.manifest_digest());
    pull.repository.run(["verify", &pull.argument()]).expect_code(0);
    let absent = pull.argument().replace(":1", ":2");
    pull.repository.refuse(["convert", &absent], 1, &["MANIFEST_UNKNOWN", &absent["http://".len()..]]);
}

#[test]
fn layers_may_have_any_compression() {
    let plain = |compression| {
        move |layer: crate::support::TestLayer| layer.file(format!("etc/{compression:?}"), "x").compression(compression)
    };
    let image = TestImage::new()
        .layer(plain(Compression::Plain))
        .layer(plain(Compression::Gzip))
        .layer(plain(Compression::Zstd));
    if let Some(pull) = Pull::of(image) {
        pull.assert_published();
    }
}

#[test]
fn image_that_skopeo_pushed_is_read_in_both_formats() {
    let Some(registry) = TestRegistry::start() else { return };
    let layout = tempfile::tempdir().unwrap();
    image().layer(|layer| layer.file("etc/made", "skopeo")).write_oci_layout(layout.path(), "latest");
    for format in ["oci", "v2s2"] {
        registry.push_as(format, &format!("oci:{}:latest", layout.path().display()), &format!("{PLACE}:{format}"));
        assert_same_as_layout(&registry, format);
    }
}

#[test]
fn image_of_umoci_is_read() {
    let (true, Some(registry)) = (need("umoci"), TestRegistry::start()) else { return };
    let home = tempfile::tempdir().unwrap();
    let (layout, file) = (home.path().join("layout"), home.path().join("made"));
    fs::write(&file, "umoci").unwrap();
    let umoci = |arguments: &[&str]| run(Command::new("umoci").args(arguments).current_dir(home.path()));
    umoci(&["init", "--layout", "layout"]);
    umoci(&["new", "--image", "layout:1"]);
    umoci(&["insert", "--image", "layout:1", "made", "/etc/made"]);
    umoci(&["insert", "--image", "layout:1", "made", "/etc/made too"]);
    umoci(&["insert", "--image", "layout:1", "--whiteout", "/etc/made too"]);
    registry.push_from(&format!("oci:{}:1", layout.display()), &format!("{PLACE}:umoci"));
    assert_same_as_layout(&registry, "umoci");
}

#[test]
fn image_of_buildah_is_read() {
    let (true, Some(registry)) = (need("buildah"), TestRegistry::start()) else { return };
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("made"), "buildah").unwrap();
    let buildah = |arguments: &[&str]| run(containers("buildah", home.path()).args(arguments));
    buildah(&["from", "--name", "work", "scratch"]);
    buildah(&["copy", "work", "made", "/etc/made"]);
    let target = format!("docker://{}/{PLACE}", registry.host());
    for format in ["oci", "docker"] {
        buildah(&["commit", "--tls-verify=false", "--format", format, "work", &format!("{target}:buildah-{format}")]);
        assert_same_as_layout(&registry, &format!("buildah-{format}"));
    }
}

#[test]
fn image_of_podman_is_read() {
    let (true, Some(registry)) = (need("podman"), TestRegistry::start()) else { return };
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("etc")).unwrap();
    fs::write(home.path().join("etc/made"), "podman").unwrap();
    run(Command::new("tar").args(["-cf", "root.tar", "etc"]).current_dir(home.path()));
    let podman = |arguments: &[&str]| run(containers("podman", home.path()).args(arguments));
    podman(&["import", "root.tar", "localhost/made:1"]);
    let target = format!("docker://{}/{PLACE}:podman", registry.host());
    podman(&["push", "--tls-verify=false", "localhost/made:1", &target]);
    assert_same_as_layout(&registry, "podman");
}

/// Returns a command for a program that stores images and containers, with its storage in `home`.
fn containers(program: &str, home: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    let directory = |name: &str| home.join(name);
    command.arg("--root").arg(directory("storage")).arg("--runroot").arg(directory("run"));
    command.args(["--storage-driver", "vfs"]).current_dir(home).env("HOME", home).env("TMPDIR", home);
    command
}

#[test]
fn index_has_an_image_for_each_platform() {
    let Some(registry) = TestRegistry::start() else { return };
    let images: Vec<TestImage> = ["amd64", "arm64", "ppc64le", "s390x"]
        .map(|architecture| {
            TestImage::new().platform("linux", architecture).layer(|layer| layer.file("etc/for", architecture))
        })
        .into();
    registry.push_index(&images, &format!("{PLACE}:1"));
    for (image, platform) in [(&images[1], "linux/arm64"), (&images[3], "linux/s390x")] {
        let (proxy, repository) = (FaultProxy::start(registry.port()), TestRepository::new());
        let argument = format!("http://{}/{PLACE}:1", proxy.host());
        repository.run(["convert", &argument, "--platform", platform]).expect_code(0);
        assert_published(&repository, image);
        let mut expected = vec![image.config_digest(), top(image)];
        let mut asked = proxy.blobs();
        expected.sort();
        asked.sort();
        assert_eq!(asked, expected, "{platform}");
        let manifests = proxy.served().iter().filter(|served| served.path.contains("/manifests/")).count();
        assert_eq!(manifests, 2, "{platform}");
        let accept = proxy.served()[0].accept.clone().unwrap_or_default();
        assert!(accept.contains("image.index.v1+json") && accept.contains("manifest.list.v2+json"), "{accept}");
    }
    let (repository, argument) = (TestRepository::new(), format!("http://{}/{PLACE}:1", registry.host()));
    let words = ["linux/riscv64", "linux/s390x"];
    repository.refuse(["convert", &argument, "--platform", "linux/riscv64"], 1, &words);
}

#[test]
fn image_is_found_by_its_digest() {
    let Some(pull) = Pull::of(image()) else { return };
    let digest = pull.image.manifest_digest();
    let argument = format!("http://{}/{PLACE}@{digest}", pull.proxy.host());
    pull.repository.run(["convert", &argument]).expect_code(0);
    assert_published(&pull.repository, &pull.image);
    assert!(pull.repository.has(&format!("{}/{PLACE}:{digest}", pull.proxy.host())));
}
