//! containerd starts containers from `.layers`, through the snapshotter of CVMFS, in the same way as under Kubernetes.

use crate::support::client::mount_with_client;
use crate::support::containerd::{Containerd, with_busybox};
use crate::support::fuse::Mount;
use crate::support::{FaultProxy, Reply, TestImage, TestRegistry, TestRepository, need_fuse};

/// Returns an image of four layers, with every kind of whiteout and a hard link into a lower layer.
fn image() -> TestImage {
    with_busybox(TestImage::new())
        .layer(|layer| {
            let layer = layer.file("data/gone", "").file("data/opaque/old", "").file("data/directory/old", "");
            layer.file("data/tool", "tool").mode(0o4755).owner(7, 70_000).dir("data/sticky").mode(0o1777)
        })
        .layer(|layer| {
            let layer = layer.whiteout("data/gone").opaque("data/opaque").file("data/opaque/new", "new");
            layer.whiteout("data/directory").file("data/directory/new", "new").hardlink("data/link", "data/tool")
        })
        .layer(|layer| layer.symlink("data/to", "tool").file("data/sticky/deep/er", "deep"))
        .env("GREETING", "hello")
        .entrypoint(["/bin/busybox", "sleep", "100000"])
}

/// Returns a registry that serves manifests and configs, but no layers.
fn registry_without_layers(images: &[(&str, &TestImage)]) -> Option<(TestRegistry, FaultProxy)> {
    let registry = TestRegistry::start()?;
    let proxy = FaultProxy::start(registry.port());
    for (repository, image) in images {
        registry.push_tags(image, repository, ["1"]);
        for digest in image.layer_digests() {
            proxy.at(&format!("/blobs/{digest}"), |_, _| Reply::status(403));
        }
    }
    Some((registry, proxy))
}

/// Panics unless a container starts from a mounted repository, although the registry serves no layer of its image.
fn assert_starts(mount: &Mount, repository: &TestRepository, image: &TestImage) {
    let stranger = TestImage::new().layer(|layer| layer.file("not published", ""));
    let Some(containerd) = Containerd::start(&mount.directory) else { return };
    let Some((_registry, proxy)) = registry_without_layers(&[("team/image", image), ("team/other", &stranger)]) else {
        return;
    };
    let name = |repository: &str| format!("{}/{repository}:1", proxy.host());
    let error = containerd.pull(&name("team/other")).unwrap_err();
    assert!(error.contains("403"), "{error}");
    let before = proxy.served().len();
    containerd.pull(&name("team/image")).unwrap_or_else(|error| panic!("{error}\n{}", containerd.log()));
    let asked: Vec<String> = proxy.served().into_iter().skip(before).map(|served| served.path).collect();
    let is_layer = |path: &String| image.layer_digests().iter().any(|digest| path.contains(digest));
    assert!(!asked.is_empty() && !asked.iter().any(is_layer), "{asked:?}");

    let container = containerd.run(&name("team/image"));
    let list = container.exec(&["/bin/busybox", "find", "data"]);
    let mut found: Vec<&str> = list.lines().collect();
    found.sort_unstable();
    let chain = repository.chain(image);
    let expected = chain.paths().into_iter().filter(|path| path.starts_with("data"));
    let mut expected: Vec<String> = expected.collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
    let script = "cat data/to data/link; stat -c ' %a %u %g' data/tool; stat -c %a data/sticky; echo $GREETING";
    let output = container.exec(&["/bin/busybox", "sh", "-c", script]);
    assert_eq!(output, "tooltool 4755 7 70000\n1777\nhello\n");
    container.exec(&["/bin/busybox", "touch", "data/written"]);
    assert_eq!(container.exec(&["/bin/busybox", "ls", "-A", "data/opaque"]), "new\n");
    container.remove();
}

#[test]
fn container_starts_although_its_registry_serves_no_layer() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&image());
    let mount = Mount::start(&repository, &["--allow-other"]);
    assert_starts(&mount, &repository, &image());
}

#[test]
fn container_starts_from_a_mount_of_the_cvmfs_client() {
    let repository = TestRepository::publish(&image());
    let Some(mount) = mount_with_client(&repository) else { return };
    assert_starts(&mount, &repository, &image());
}
