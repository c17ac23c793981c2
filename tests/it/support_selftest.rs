//! Other programs can read the images that the test builders write.

mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use flate2::read::GzDecoder;
use serde_json::Value;
use tar::{Archive, EntryType, Header};

use crate::support::{Compression, Damage, DeviceKind, TestImage, TestLayer, need, strata, write_oci_index};

/// Returns the headers and contents of a tar stream by path, as the tar crate reads them.
fn members(tar: &[u8]) -> BTreeMap<Vec<u8>, (Header, Vec<u8>)> {
    let mut archive = Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path_bytes().into_owned(), (entry.header().clone(), content))
    });
    entries.collect()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, digest: &str) -> Vec<u8> {
    fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap()
}

#[test]
fn layer_holds_entries_of_every_kind_in_order() {
    let layer = TestLayer::new()
        .dir("etc")
        .file("etc/x", "text")
        .mode(0o4755)
        .owner(1, 2)
        .symlink("etc/l", "x")
        .hardlink("etc/h", "etc/x")
        .device("dev/null", DeviceKind::Character, 1, 3)
        .device("dev/sda", DeviceKind::Block, 8, 0)
        .fifo("pipe")
        .whiteout("etc/old")
        .whiteout("top")
        .opaque("etc");
    let members = members(&layer.tar());
    let header = |path: &str| &members[path.as_bytes()].0;
    assert_eq!(header("etc/").entry_type(), EntryType::Directory);
    let file = header("etc/x");
    assert_eq!((file.mode().unwrap(), file.uid().unwrap(), file.gid().unwrap()), (0o4755, 1, 2));
    assert_eq!((file.mtime().unwrap(), &members[&b"etc/x"[..]].1), (1_500_000_000, &b"text".to_vec()));
    assert_eq!(header("etc/l").link_name_bytes().as_deref(), Some(&b"x"[..]));
    assert_eq!(header("etc/h").entry_type(), EntryType::Link);
    assert_eq!(
        (header("dev/null").device_major().unwrap(), header("dev/null").device_minor().unwrap()),
        (Some(1), Some(3))
    );
    assert_eq!((header("dev/sda").entry_type(), header("pipe").entry_type()), (EntryType::Block, EntryType::Fifo));
    for marker in ["etc/.wh.old", ".wh.top", "etc/.wh..wh..opq"] {
        assert_eq!(header(marker).entry_type(), EntryType::Regular, "{marker}");
    }
}

#[test]
fn values_that_do_not_fit_into_the_header_are_in_pax_records() {
    let long = [vec![0xff; 150], b"/x".to_vec()].concat();
    let layer = TestLayer::new()
        .file(&long, "")
        .owner(u32::MAX, 0o10000000)
        .mtime(-1, 500_000_000)
        .xattr("user.a", b"\x00=\xff")
        .record("comment", "c".repeat(88))
        .symlink("l", "t".repeat(101))
        .file("\u{e9}", "");
    let tar = layer.tar();
    let mut archive = Archive::new(tar.as_slice());
    let mut entries = archive.entries().unwrap();
    let mut first = entries.next().unwrap().unwrap();
    let records: BTreeMap<Vec<u8>, Vec<u8>> = first
        .pax_extensions()
        .unwrap()
        .unwrap()
        .map(|record| record.map(|record| (record.key_bytes().to_vec(), record.value_bytes().to_vec())).unwrap())
        .collect();
    let record = |name: &str| records[name.as_bytes()].as_slice();
    assert_eq!((record("path"), record("uid"), record("gid")), (long.as_slice(), &b"4294967295"[..], &b"2097152"[..]));
    assert_eq!((record("mtime"), record("comment")), (&b"-0.500000000"[..], "c".repeat(88).as_bytes()));
    assert_eq!(record("SCHILY.xattr.user.a"), b"\x00=\xff");
    let second = entries.next().unwrap().unwrap();
    assert_eq!(second.link_name_bytes().unwrap().len(), 101);
    let third = entries.next().unwrap().unwrap();
    assert_eq!(third.path_bytes().as_ref(), "\u{e9}".as_bytes());
}

#[test]
fn xattr_may_contain_text_that_looks_like_the_end_of_its_record() {
    let tar = TestLayer::new().file("a", "").xattr("user.a", b"1\n9 x=\n").tar();
    let record = b"31 SCHILY.xattr.user.a=1\n9 x=\n\n";
    assert_eq!(&tar[512..512 + record.len()], record);
}

#[test]
fn raw_entries_are_written_unchanged() {
    let mut header = Header::new_gnu();
    header.set_size(3);
    let tar = TestLayer::new().file("a", "").raw_entry(header.clone(), "abc").raw_bytes(b"tail").tar();
    assert_eq!(&tar[512..1024], header.as_bytes());
    assert_eq!((&tar[1024..1028], &tar[1536..1540]), (&b"abc\0"[..], &b"tail"[..]));
}

#[test]
fn layout_holds_the_image_under_its_digests() {
    let directory = tempfile::tempdir().unwrap();
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "1"))
        .layer(|layer| layer.file("b", "2").compression(Compression::Zstd))
        .layer(|layer| layer.file("c", "3").compression(Compression::Plain))
        .env("PATH", "/bin")
        .env("HOME", "/")
        .entrypoint(["/bin/sh", "-c"])
        .cmd(["true"])
        .label("a.b", "c")
        .setting("WorkingDir", "/tmp".into());
    image.write_oci_layout(directory.path(), "one");
    assert_eq!(json(&directory.path().join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let descriptor = json(&directory.path().join("index.json"))["manifests"][0].clone();
    assert_eq!(descriptor["annotations"]["org.opencontainers.image.ref.name"], "one");
    assert_eq!(descriptor["digest"], image.manifest_digest());
    let manifest: Value = serde_json::from_slice(&blob(directory.path(), &image.manifest_digest())).unwrap();
    assert_eq!(manifest["config"]["digest"], image.config_digest());
    let config: Value = serde_json::from_slice(&blob(directory.path(), &image.config_digest())).unwrap();
    assert_eq!(config["config"]["Env"], serde_json::json!(["PATH=/bin", "HOME=/"]));
    assert_eq!(config["config"]["Labels"]["a.b"], "c");
    for (number, digest) in image.layer_digests().iter().enumerate() {
        let bytes = blob(directory.path(), digest);
        assert_eq!(manifest["layers"][number]["size"], bytes.len());
        let tar = match number {
            0 => gunzip(&bytes),
            1 => zstd::decode_all(bytes.as_slice()).unwrap(),
            _ => bytes,
        };
        assert_eq!(config["rootfs"]["diff_ids"][number], image.diff_ids()[number]);
        assert!(members(&tar).contains_key(["a", "b", "c"][number].as_bytes()));
    }
}

#[test]
fn layout_may_contain_several_images_and_an_index_of_platforms() {
    let directory = tempfile::tempdir().unwrap();
    let image = |content: &str| TestImage::new().layer(|layer| layer.file("a", content));
    image("1").write_oci_layout(directory.path(), "one");
    image("2").write_oci_layout(directory.path(), "two");
    image("3").write_oci_layout(directory.path(), "one");
    let platforms = [image("4").platform("linux", "amd64"), image("5").platform("linux", "arm64")];
    let digest = write_oci_index(&platforms, directory.path(), "many");
    let manifests = json(&directory.path().join("index.json"))["manifests"].clone();
    let digests: Vec<&str> = manifests.as_array().unwrap().iter().map(|m| m["digest"].as_str().unwrap()).collect();
    assert_eq!(digests, [image("2").manifest_digest(), image("3").manifest_digest(), digest.clone()]);
    let index: Value = serde_json::from_slice(&blob(directory.path(), &digest)).unwrap();
    assert_eq!(index["manifests"][1]["platform"]["architecture"], "arm64");
    assert_eq!(index["manifests"][1]["digest"], platforms[1].manifest_digest());
}

#[test]
fn archives_hold_the_image_and_the_same_calls_give_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let image = || TestImage::new().layer(|layer| layer.file("a", "1")).layer(|layer| layer.file("b", "2"));
    let (one, two, docker) = (directory.path().join("1"), directory.path().join("2"), directory.path().join("docker"));
    image().write_oci_archive(&one, "r");
    image().write_oci_archive(&two, "r");
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    let index: Value = serde_json::from_slice(&members(&fs::read(&one).unwrap())[&b"index.json"[..]].1).unwrap();
    assert_eq!(index["manifests"][0]["digest"], image().manifest_digest());

    image().write_docker_archive(&docker, "host/name:tag");
    let files = members(&fs::read(&docker).unwrap());
    let manifest: Value = serde_json::from_slice(&files[&b"manifest.json"[..]].1).unwrap();
    assert_eq!(manifest[0]["RepoTags"][0], "host/name:tag");
    let layer = &files[manifest[0]["Layers"][1].as_str().unwrap().as_bytes()].1;
    assert!(members(layer).contains_key(&b"b"[..]));
    assert_eq!(files[manifest[0]["Config"].as_str().unwrap().as_bytes()].1, image().config());
}

#[test]
fn requested_damage_is_in_the_image() {
    let whole = TestImage::new().layer(|layer| layer.file("a", "1")).layer(|layer| layer.file("b", "2"));
    let layout_of = |damage: Damage| {
        let directory = tempfile::tempdir().unwrap();
        let image = whole.clone().damage(damage);
        image.write_oci_layout(directory.path(), "r");
        let manifest: Value = serde_json::from_slice(&image.manifest()).unwrap();
        let blob = directory.path().join("blobs").join(image.layer_digests()[1].replace(':', "/"));
        (image, manifest, fs::read(blob).ok(), directory)
    };
    let right = whole.layer_digests();
    let (image, _, blob, _directory) = layout_of(Damage::WrongDigest(1));
    assert!(image.layer_digests()[1] != right[1] && image.diff_ids() == whole.diff_ids() && blob.is_some());
    let (_, manifest, blob, _directory) = layout_of(Damage::WrongSize(1));
    assert_eq!(manifest["layers"][1]["size"], blob.unwrap().len() + 1);
    let (image, _, blob, _directory) = layout_of(Damage::WrongDiffId(1));
    assert!(image.layer_digests() == right && image.diff_ids()[1] != whole.diff_ids()[1] && blob.is_some());
    let (image, _, _, _directory) = layout_of(Damage::MissingDiffId);
    assert_eq!(image.diff_ids(), whole.diff_ids()[..1]);
    let (_, manifest, blob, _directory) = layout_of(Damage::Truncated(1));
    assert!((blob.unwrap().len() as u64) < manifest["layers"][1]["size"].as_u64().unwrap());
    assert_eq!(layout_of(Damage::Omitted(1)).2, None);
}

#[test]
fn unusual_packing_keeps_the_diff_id() {
    let plain = TestLayer::new().file("a", "1").compression(Compression::Plain);
    let packed = zstd::encode_all(plain.tar().as_slice(), 1).unwrap();
    let image = TestImage::new().layer(|_| plain.clone().blob("application/x-odd", &packed));
    let manifest: Value = serde_json::from_slice(&image.manifest()).unwrap();
    assert_eq!(
        (&manifest["layers"][0]["mediaType"], image.diff_ids()),
        (&"application/x-odd".into(), vec![plain.diff_id()])
    );
}

#[test]
fn outside_programs_read_what_the_builders_write() {
    if !need("tar") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layer.tar");
    let layer = TestLayer::new().file("n".repeat(200), "x").mtime(1, 5).xattr("user.a", "b").symlink("l", "t");
    fs::write(&path, layer.tar()).unwrap();
    let output = Command::new("tar").arg("-tvf").arg(&path).output().unwrap();
    let listing = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && listing.contains(&"n".repeat(200)) && listing.contains("l -> t"), "{listing}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn missing_program_is_recognised() {
    assert!(strata(["--version"]).status.code().is_some());
    assert!(need("sh"));
    if std::env::var_os("STRATA_TEST_ALL").is_none() {
        assert!(!need("no-such-program-anywhere"));
    }
}
