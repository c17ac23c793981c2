//! An overlay mount of the published layers of an image has the content of its root file system.
//!
//! The layers come from a mount of the repository, and are mounted as containerd and podman do: by root, and with `userxattr`
//! by another user in a user namespace.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::layer_rules::generated::generated_image_of;
use crate::strict::Entry;
use crate::support::client::mount_with_client;
use crate::support::fuse::{Mount, seen_in_overlay, walk};
use crate::support::{
    DeviceKind, MountNamespace, TestImage, TestLayer, TestRepository, flat_path, layer_path, need_fuse, skip,
};

/// Number of generated images.
const IMAGES: u64 = 60;

/// The owner of the user namespace if the test runs as root: the user `nobody`.
const NOBODY: u32 = 65_534;

/// Number of directory levels with whiteouts.
const DEPTH: usize = 10;

type Tree = BTreeMap<Vec<u8>, Entry>;

/// The user that mounts the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounter {
    Root,
    UserNamespace,
}

impl Mounter {
    /// Returns a namespace to mount in. Returns `None` where the machine forbids it.
    fn namespace(self) -> Option<MountNamespace> {
        let is_root = rustix::process::geteuid().is_root();
        match self {
            Self::Root if !is_root => None,
            Self::Root => MountNamespace::new("-m", None),
            Self::UserNamespace => MountNamespace::new("-Urm", is_root.then_some(NOBODY)),
        }
    }

    /// Returns the owner of the files that only their owner can read.
    fn owner(self) -> u32 {
        match self {
            Self::UserNamespace if rustix::process::geteuid().is_root() => NOBODY,
            _ => rustix::process::geteuid().as_raw(),
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Root => "ro",
            Self::UserNamespace => "ro,userxattr",
        }
    }
}

/// Returns an image with whiteouts of every kind at every depth: each level of nested directories has the same names.
fn marked_at_every_depth(owner: u32) -> TestImage {
    let directories = || (0..DEPTH).map(|depth| "x/".repeat(depth));
    let each = |layer: TestLayer, say: &dyn Fn(TestLayer, &str) -> TestLayer| {
        directories().fold(layer, |layer, directory| say(layer, &directory))
    };
    let lowest = |layer: TestLayer, at: &str| {
        let layer = layer.dir(format!("{at}directory")).mode(0o700).owner(owner, owner);
        let layer = ["gone", "back", "kept", "opaque/old", "replaced/old", "directory/old", "typed"]
            .iter()
            .fold(layer, |layer, name| layer.file(format!("{at}{name}"), "lowest").owner(owner, owner));
        layer.dir(format!("{at}emptied")).mode(0o1777).file(format!("{at}emptied/only"), "")
    };
    let middle = |layer: TestLayer, at: &str| {
        let layer =
            layer.whiteout(format!("{at}gone")).whiteout(format!("{at}back")).whiteout(format!("{at}directory"));
        let layer = layer.opaque(format!("{at}opaque")).file(format!("{at}opaque/new"), "middle");
        let layer = layer.whiteout(format!("{at}replaced")).file(format!("{at}replaced/new"), "middle");
        let layer = layer.whiteout(format!("{at}emptied/only")).dir(format!("{at}typed")).mode(0o711);
        layer.file(format!("{at}typed/inside"), "middle").whiteout(format!("{at}never was"))
    };
    let highest = |layer: TestLayer, at: &str| {
        let layer = layer.file(format!("{at}back"), "highest").file(format!("{at}directory/newest"), "highest");
        layer.whiteout(format!("{at}replaced/new")).symlink(format!("{at}typed"), "kept").opaque(format!("{at}opaque"))
    };
    TestImage::new()
        .layer(|layer| each(layer, &lowest))
        .layer(|layer| each(layer, &middle))
        .layer(|layer| each(layer, &highest))
}

/// Returns an image with an opaque root, links into lower layers, and entries of other types.
fn motley() -> TestImage {
    TestImage::new()
        .layer(|layer| layer.file("a/x", "x").mode(0o4755).file("b", "b").file("c/y", "y").symlink("l", "a/x"))
        .layer(|layer| layer.hardlink("a/link", "a/x").hardlink("far/link", "b").file("c/z", "z"))
        .layer(|layer| layer.opaque("").hardlink("kept", "a/x").file("c/new", "new").dir("b").mode(0o1777))
        .layer(|layer| {
            layer.device("null", DeviceKind::Character, 1, 3).fifo("pipe").file("x", "x").xattr("user.a", "b")
        })
}

/// Returns an image with `.cvmfscatalog` files of its own, and entries that hide them.
fn markers_of_catalogs(owner: u32) -> TestImage {
    let names = ["whiteout", "device", "link", "opaque", "file"];
    let marker = |name: &str| format!("{name}/.cvmfscatalog");
    TestImage::new()
        .layer(|layer| names.iter().fold(layer, |layer, name| layer.file(marker(name), "lower").owner(owner, owner)))
        .layer(|layer| {
            let layer = layer.whiteout(marker("whiteout")).device(marker("device"), DeviceKind::Character, 0, 0);
            let layer = layer.symlink(marker("link"), "x").opaque("opaque");
            layer.file(marker("file"), "upper").owner(owner, owner)
        })
}

fn images(owner: u32) -> Vec<(String, TestImage)> {
    let generate = (1..=IMAGES).map(|seed| generated_image_of(owner, seed));
    let images = generate.chain([marked_at_every_depth(owner), motley(), markers_of_catalogs(owner)]);
    let images = images.filter(TestImage::has_distinct_layers);
    images.enumerate().map(|(number, image)| (format!("h.example.org/image:{number}"), image)).collect()
}

/// Publishes images in a directory that every user may enter, but only its owner may list.
fn publish(images: &[(String, TestImage)]) -> TestRepository {
    let repository = TestRepository::new();
    fs::set_permissions(repository.beside(""), fs::Permissions::from_mode(0o711)).unwrap();
    let named: Vec<(&str, &TestImage)> = images.iter().map(|(name, image)| (name.as_str(), image)).collect();
    repository.convert_together(&named, &[]).expect_code(0);
    repository
}

/// Returns the mounted root file system of an image, without the files for Apptainer.
fn without_apptainer(mount: &Path, repository: &TestRepository, image: &TestImage) -> Tree {
    let mut flat = walk(&mount.join(flat_path(image)));
    let chain = repository.chain(image);
    flat.retain(|path, _| chain.has(path));
    assert_eq!(flat.len(), chain.entries().len());
    seen_in_overlay(flat)
}

/// Panics unless an overlay mount of the layers of each image has the content of its root file system.
///
/// With the CVMFS client, a local directory is added to the layers, because the client does not report a maximum name length.
fn assert_mounts(mount: &Path, repository: &TestRepository, images: &[(String, TestImage)], by: Mounter, local: bool) {
    let Some(mut namespace) = by.namespace() else {
        return skip(&format!("mount namespaces are not possible: {by:?}"));
    };
    let [point, empty] = ["merged", "empty"].map(|name| {
        let directory = repository.beside(name);
        fs::create_dir_all(&directory).unwrap();
        directory
    });
    for (name, image) in images {
        let layers = (0..image.layer_digests().len()).rev().map(|number| mount.join(layer_path(image, number)));
        let mut layers: Vec<PathBuf> = layers.collect();
        if local || layers.len() == 1 {
            layers.push(empty.clone());
        }
        let lower: Vec<&str> = layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        let options = format!("{},lowerdir={}", by.options(), lower.join(":"));
        namespace
            .run(&format!("mount -t overlay -o '{options}' overlay '{}'", point.display()))
            .unwrap_or_else(|error| panic!("{name}: {options}: {error}"));
        let found = seen_in_overlay(walk(&namespace.path(&point)));
        let expected = without_apptainer(mount, repository, image);
        for (path, entry) in &expected {
            assert_eq!(found.get(path), Some(entry), "{name} at '{}', mounted by {by:?}", path.escape_ascii());
        }
        let paths = |tree: &Tree| tree.keys().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>();
        assert_eq!(paths(&found), paths(&expected), "{name}, mounted by {by:?}");
        namespace.unmount(&point);
    }
}

fn assert_mounts_by(by: Mounter) {
    if !need_fuse() {
        return;
    }
    let images = images(by.owner());
    let repository = publish(&images);
    // Only root may use `--allow-other`. Other users do not need it.
    let options: &[&str] = if rustix::process::geteuid().is_root() { &["--allow-other"] } else { &[] };
    let mount = Mount::start(&repository, options);
    assert_mounts(&mount.directory, &repository, &images, by, false);
}

#[test]
fn layers_mounted_by_root_equal_the_root_file_system() {
    assert_mounts_by(Mounter::Root);
}

#[test]
fn layers_mounted_in_a_user_namespace_equal_the_root_file_system() {
    assert_mounts_by(Mounter::UserNamespace);
}

#[test]
fn layers_from_the_cvmfs_client_equal_the_root_file_system() {
    for by in [Mounter::Root, Mounter::UserNamespace] {
        let images = images(by.owner());
        let repository = publish(&images);
        let Some(mount) = mount_with_client(&repository) else { return };
        assert_mounts(&mount.directory, &repository, &images, by, true);
    }
}
