//! `verify` proves that the published trees are those of the image, and names every difference.

pub mod plant;

use std::fs;

use plant::Planted;

use crate::support::{DeviceKind, NAME, TestImage, TestLayer, TestRepository, chain_path, flat_path, layer_path};

const OTHER: &str = "registry.example.org/test/other:2";

/// Returns content of several chunks, of which no two are equal.
fn large() -> Vec<u8> {
    (0..17_u32 << 18).flat_map(|number| (number.wrapping_mul(2_654_435_761) >> 3).to_le_bytes()).collect()
}

fn lowest(layer: TestLayer) -> TestLayer {
    layer
        .dir("etc")
        .file("etc/passwd", "root")
        .mode(0o640)
        .owner(1000, 3_000_000_001)
        .mtime(1_600_000_000, 123_456_789)
        .xattr("user.a", "b")
        .symlink("etc/resolv.conf", "/run/resolv.conf")
        .file("large", large())
        .symlink("link", "$(HOME)/x")
        .dir("bin")
        .mtime(-5, 7)
        .file("bin/tool", "tool")
        .mode(0o6755)
        .hardlink("bin/twin", "bin/tool")
        .hardlink("sbin/far", "bin/tool")
        .device("null", DeviceKind::Character, 1, 3)
        .device("disk", DeviceKind::Block, 259, 70_000)
        .fifo("pipe")
        .file(b"odd \xff\n", "odd")
        .file("listed", "")
        .record("SCHILY.acl.access", "user::rw-")
        .xattr("user.long", vec![b'x'; 300])
        .xattr("trusted.overlay.redirect", "/etc")
        .device("mark", DeviceKind::Character, 0, 0)
        .file("gone", "gone")
        .file("directory/old", "old")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("changed/below", "")
}

fn middle(layer: TestLayer) -> TestLayer {
    layer
        .whiteout("gone")
        .opaque("directory")
        .file("directory/new", "new")
        .hardlink("etc/name", "etc/passwd")
        .file("lib/x", "behind a link")
        .file("tmp/deep/file", "implied")
        .file("marked/.cvmfscatalog", "a marker of the image's own")
        .dir("stray/.cvmfscatalog")
        .dir("closed")
        .mode(0)
        .file("closed/file", "")
        .mode(0)
}

fn highest(layer: TestLayer) -> TestLayer {
    layer
        .dir("etc")
        .mode(0o700)
        .whiteout("never/was")
        .whiteout("usr")
        .dir("usr")
        .file("changed", "no directory any more")
        .file(".singularity.d/runscript", "of another image")
}

fn motley() -> TestImage {
    TestImage::new().layer(lowest).layer(middle).layer(highest).env("A", "b c").entrypoint(["/bin/tool"])
}

fn small() -> TestImage {
    TestImage::new().layer(|layer| layer.file("a", "some text")).layer(|layer| layer.whiteout("a").file("b", "more"))
}

#[track_caller]
fn assert_verified(repository: &TestRepository, image: &TestImage, name: &str) {
    let source = repository.source(image);
    let run = repository.run(["verify", &source, "--name", name]).expect_code(0);
    assert!(run.stdout().contains("no findings"), "{}", run.stdout());
}

#[test]
fn image_with_entries_of_every_type_is_verified_after_conversion() {
    let repository = TestRepository::publish(&motley());
    assert_verified(&repository, &motley(), NAME);
    let source = repository.source(&motley());
    let json = repository.run(["verify", &source, "--name", NAME, "--json", "--threads", "1"]).expect_code(0).json();
    assert_eq!((&json["findings"], &json["trees"], &json["layers"]), (&serde_json::json!([]), &5.into(), &3.into()));
    assert!(json["losses"].as_u64().unwrap() > 4 && json["entries"].as_u64().unwrap() > 100, "{json}");
}

#[test]
fn image_is_verified_however_it_was_published() {
    for settings in ["compression = \"none\"", "compression = \"exact\"", "modes = \"widened\""] {
        let repository = TestRepository::with_settings(settings);
        repository.convert(&motley(), NAME, &["--chains", "all"]).expect_code(0);
        assert_verified(&repository, &motley(), NAME);
    }
    for options in [&["--skip-layers"][..], &["--skip-flat"], &["--chains", "none"]] {
        let repository = TestRepository::new();
        repository.convert(&motley(), NAME, options).expect_code(0);
        assert_verified(&repository, &motley(), NAME);
    }
}

#[test]
fn images_that_share_layers_and_names_are_verified() {
    let repository = TestRepository::publish(&motley());
    let next = motley().layer(|layer| layer.file("top", "top").hardlink("bin/third", "bin/tool").whiteout("etc/name"));
    repository.convert(&next, OTHER, &[]).expect_code(0);
    assert_verified(&repository, &motley(), NAME);
    assert_verified(&repository, &next, OTHER);
    repository.convert(&next, OTHER, &["--force"]).expect_code(0);
    repository.convert(&next, OTHER, &["--chains", "all"]).expect_code(0);
    repository.convert(&next, NAME, &[]).expect_code(0);
    assert_verified(&repository, &next, OTHER);
    assert_verified(&repository, &next, NAME);
}

#[test]
fn every_kind_of_source_is_verified() {
    let repository = TestRepository::publish(&small());
    let (oci, docker) = (repository.beside("oci.tar"), repository.beside("docker.tar"));
    small().write_oci_archive(&oci, "latest");
    small().write_docker_archive(&docker, "registry.example.org/docker:1");
    repository.run(["verify", &format!("oci-archive:{}", oci.display()), "--name", NAME]).expect_code(0);
    let docker = format!("docker-archive:{}", docker.display());
    repository.run(["convert", &docker]).expect_code(0);
    repository.run(["verify", &docker]).expect_code(0);

    let index = repository.source_of_index(&[small(), small().platform("linux", "other")]);
    repository.run(["convert", &index, "--name", OTHER, "--platform", "linux/other"]).expect_code(0);
    repository.run(["verify", &index, "--name", OTHER, "--platform", "linux/other"]).expect_code(0);
    let run = repository.run(["verify", &index, "--name", OTHER]);
    let run = if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) { run.expect_code(4) } else { run };
    assert!(run.stdout().contains("manifest: expected sha256:"), "{}", run.stdout());
}

#[test]
fn verify_uses_no_state_of_earlier_runs() {
    let repository = TestRepository::publish(&motley());
    fs::remove_dir_all(repository.directory().join("state")).unwrap();
    let before = repository.storage_files();
    assert_verified(&repository, &motley(), NAME);
    repository.assert_unchanged(&before);
    assert!(!repository.directory().join("state").exists());
}

#[test]
fn changed_blob_at_the_source_is_an_error() {
    let repository = TestRepository::publish(&small());
    let source = repository.source(&small());
    let digest = &small().layer_digests()[1];
    let blob = source.strip_prefix("oci:").unwrap().to_owned() + "/blobs/sha256/" + &digest[7..];
    let mut bytes = fs::read(&blob).unwrap();
    bytes[9] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let run = repository.run(["verify", &source, "--name", NAME]).expect_one_line(1, &[digest]);
    assert_eq!(run.stdout(), "");
}

#[test]
fn wrong_usage_is_reported_as_such() {
    let repository = TestRepository::publish(&small());
    let source = repository.source(&small());
    repository.run(["verify"]).expect_code(2);
    repository.run(["verify", &source, "--threads", "0"]).expect_code(2);
    repository.run(["verify", &source]).expect_one_line(1, &["--name"]);
}

#[test]
fn image_that_is_not_published_is_a_finding() {
    let repository = TestRepository::publish(&small());
    let source = repository.source(&small());
    let run = repository.run(["verify", &source, "--name", OTHER]).expect_code(4);
    assert!(
        run.stdout().starts_with(&format!("/.metadata/{OTHER}/strata.json: path: expected a file, found nothing\n"))
    );
}

#[test]
fn another_image_under_the_name_is_a_finding() {
    let repository = TestRepository::publish(&small());
    let other = small().env("A", "b");
    let run = repository.run(["verify", &repository.source(&other), "--name", NAME]).expect_code(4);
    let (expected, found) = (other.manifest_digest(), small().manifest_digest());
    let line = format!("/.metadata/{NAME}/strata.json: manifest: expected {expected}, found {found}\n");
    assert!(run.stdout().starts_with(&line), "{}", run.stdout());
}

#[test]
fn links_above_other_parents_are_no_findings_where_they_are_listed_as_losses() {
    let image = |content: &str| {
        TestImage::new()
            .layer(|layer| layer.dir("bin").file("bin/tool", content))
            .layer(|layer| layer.dir("bin").hardlink("bin/link", "bin/tool").file("bin/own", "own"))
    };
    let repository = TestRepository::publish(&image("first"));
    repository.convert(&image("second"), OTHER, &[]).expect_code(0);
    assert_verified(&repository, &image("first"), NAME);
    assert_verified(&repository, &image("second"), OTHER);
    // The losses also stay listed when the image is converted again, with everything of it in the state.
    for options in [&[][..], &["--force"], &["--skip-layers", "--force"]] {
        repository.convert(&image("second"), OTHER, options).expect_code(0);
        assert_verified(&repository, &image("second"), OTHER);
    }
}

/// Adds entries whose published form depends on the lower layers: directories without an entry, and a whiteout whose path may lead
/// through a link.
fn depends_on_parents(layer: TestLayer) -> TestLayer {
    layer.file("implied/own", "own").dir("named").file("named/own", "own").whiteout("lib/gone").opaque("directory")
}

/// Returns one of two images that share all layers except the lowest. The highest layer has an opaque root.
fn above_parents(is_first: bool) -> TestImage {
    let first = |layer: TestLayer| {
        let layer = layer.dir("implied").mode(0o1777).file("usr/lib/gone", "").symlink("lib", "usr/lib");
        layer.file("only in first", "")
    };
    let second = |layer: TestLayer| {
        layer.dir("implied").mode(0o750).file("lib/gone", "").file("lib/kept", "").file("only in second", "")
    };
    let lowest = |layer: TestLayer| {
        let layer = layer.dir("named").file("directory/old", "");
        if is_first { first(layer) } else { second(layer) }
    };
    TestImage::new().layer(lowest).layer(depends_on_parents).layer(|layer| layer.opaque("").file("top", ""))
}

#[test]
fn layer_above_other_parents_is_no_finding_where_losses_list_what_differs() {
    let repository = TestRepository::new();
    repository.convert(&above_parents(true), OTHER, &[]).expect_code(0);
    let run = repository.convert(&above_parents(false), NAME, &[]).expect_code(0);
    assert!(run.stdout().contains("x layer-of-other-parents"), "{}", run.stdout());
    let losses = repository.losses();
    let (count, paths) = &losses["layer-of-other-parents"];
    assert_eq!(paths, &["implied", "lib", "usr", "only in first", "only in second"]);
    assert_eq!(*count, 5);
    assert_verified(&repository, &above_parents(true), OTHER);
    assert_verified(&repository, &above_parents(false), NAME);
    // The losses also stay listed when the image is converted again, with everything of it in the state.
    for options in [&[][..], &["--force"], &["--skip-layers", "--force"]] {
        repository.convert(&above_parents(false), NAME, options).expect_code(0);
        assert_eq!(repository.losses(), losses, "{options:?}");
        assert_verified(&repository, &above_parents(false), NAME);
    }
    repository.convert(&above_parents(true), OTHER, &["--force"]).expect_code(0);
    assert!(!repository.list(&format!(".metadata/{OTHER}")).contains(&"losses.json".to_owned()));
}

#[test]
fn strict_refuses_a_layer_above_other_parents() {
    let repository = TestRepository::new();
    repository.convert(&above_parents(true), OTHER, &[]).expect_code(0);
    let source = repository.source(&above_parents(false));
    repository.refuse(["convert", &source, "--name", NAME, "--strict"], 1, &["layer-of-other-parents"]);
}

#[test]
fn times_that_no_layer_sets_are_not_losses() {
    let image = |time: i64| {
        let image = TestImage::new().layer(|layer| layer.dir("implied").mtime(time, 0).dir(".").mtime(time, 0));
        image.layer(|layer| layer.file("implied/own", "own"))
    };
    let repository = TestRepository::new();
    repository.convert(&image(1), OTHER, &[]).expect_code(0);
    repository.convert(&image(2), NAME, &["--strict"]).expect_code(0);
    assert_verified(&repository, &image(2), NAME);
    assert_eq!(repository.flat(&image(2)).get("implied").mtime, (2, 0));
}

#[test]
fn layer_that_an_image_has_twice_is_compared_with_both_of_its_places() {
    let twice = |layer: TestLayer| layer.file("implied/own", "own");
    let image = TestImage::new()
        .layer(|layer| layer.dir("implied").mode(0o700))
        .layer(twice)
        .layer(|layer| layer.dir("implied").mode(0o750))
        .layer(twice);
    let repository = TestRepository::publish(&image);
    assert_eq!(repository.losses()["layer-of-other-parents"], (1, vec!["implied".to_owned()]));
    assert_verified(&repository, &image, NAME);
}

#[test]
fn listed_losses_excuse_only_differences_that_depend_on_other_layers() {
    let repository = TestRepository::new();
    repository.convert(&above_parents(true), OTHER, &[]).expect_code(0);
    repository.convert(&above_parents(false), NAME, &[]).expect_code(0);
    let source = repository.source(&above_parents(false));
    let layer = format!("/{}", layer_path(&above_parents(false), 1));
    let faults = [
        ("UPDATE catalog SET mode = mode & ~1 WHERE name = 'named'", "/named", "mode: expected"),
        (
            "UPDATE catalog SET mode = 33188 WHERE name = 'implied'",
            "/implied",
            "type: expected a directory, found a file",
        ),
        ("UPDATE catalog SET xattr = x'01010601757365722e6163' WHERE name = 'own'", "/named/own", "xattr: "),
        (
            "UPDATE catalog SET xattr = NULL WHERE name = 'directory'",
            "/directory",
            "xattr: expected 'user.overlay.opaque'='y'",
        ),
    ];
    for (sql, path, words) in faults {
        let planted = Planted::copy_of(&repository);
        planted.change(&layer, sql);
        assert_found(&planted, &source, sql, &format!("{layer}{path}"), words);
    }
    let list = format!("/.metadata/{NAME}/losses.json");
    let without = |word: &str, other: &str| {
        let text = String::from_utf8(repository.reader().read(&list[1..])).unwrap();
        assert!(text.contains(word), "{text}");
        text.replace(word, other).into_bytes()
    };
    for (word, other, path, words) in [
        ("\"implied\"", "\"named\"", format!("{layer}/implied"), "mode: expected 0750, found 1777"),
        (
            "\"only in first\"",
            "\"named\"",
            list.clone(),
            "losses: expected nothing, found layer-of-other-parents at /named",
        ),
    ] {
        let planted = Planted::copy_of(&repository);
        planted.replace(&Place::Metadata.path(), "losses.json", &without(word, other));
        assert_found(&planted, &source, word, &path, words);
    }
}

/// The part of a repository in which a fault is planted.
enum Place {
    Flat,
    Chain,
    Layer(usize),
    Marked,
    Host,
    Metadata,
}

impl Place {
    fn path(&self) -> String {
        match self {
            Self::Flat => format!("/{}", flat_path(&motley())),
            Self::Chain => format!("/{}", chain_path(&motley(), 3)),
            Self::Layer(number) => format!("/{}", layer_path(&motley(), *number)),
            Self::Marked => format!("/{}/marked", flat_path(&motley())),
            Self::Host => "/registry.example.org".to_owned(),
            Self::Metadata => "/.metadata/registry.example.org".to_owned(),
        }
    }
}

/// SQL that changes a row, and the end of the path and the attribute that the finding must name.
const FAULTS: &[(Place, &str, &str, &str)] = &[
    (
        Place::Flat,
        "UPDATE catalog SET mode = mode | 1 WHERE name = 'passwd'",
        "/etc/passwd",
        "mode: expected 0640, found 0641",
    ),
    (Place::Chain, "UPDATE catalog SET mode = mode & ~2048 WHERE name = 'tool'", "/bin/tool", "mode: expected 6755"),
    (Place::Flat, "UPDATE catalog SET uid = 1 WHERE name = 'passwd'", "/etc/passwd", "owner: expected 1000, found 1"),
    (
        Place::Layer(0),
        "UPDATE catalog SET gid = 1 WHERE name = 'passwd'",
        "/etc/passwd",
        "group: expected 3000000001, found 1",
    ),
    (
        Place::Flat,
        "UPDATE catalog SET xattr = x'01010601757365722e6163' WHERE name = 'passwd'",
        "/etc/passwd",
        "xattr: ",
    ),
    (Place::Flat, "UPDATE catalog SET xattr = x'010106' WHERE name = 'passwd'", "/etc/passwd", "xattr: "),
    (
        Place::Chain,
        "UPDATE catalog SET xattr = NULL WHERE name = 'passwd'",
        "/etc/passwd",
        "xattr: expected 'user.a'='b', found nothing",
    ),
    (
        Place::Chain,
        "UPDATE catalog SET xattr = x'01010601757365722e6162' WHERE name = 'pipe'",
        "/pipe",
        "xattr: expected nothing",
    ),
    (
        Place::Flat,
        "UPDATE catalog SET mtime = mtime + 1 WHERE name = 'passwd'",
        "/etc/passwd",
        "time: expected 1600000000.123456789, found 1600000001.1",
    ),
    (
        Place::Flat,
        "UPDATE catalog SET mtimens = mtimens + 1 WHERE name = 'passwd'",
        "/etc/passwd",
        "found 1600000000.123456790",
    ),
    (Place::Flat, "UPDATE catalog SET mtime = 0 WHERE name = 'bin'", "/bin", "time: expected -5.000000007, found 0."),
    (
        Place::Flat,
        "UPDATE catalog SET symlink = '$(HOME)/x' || 'y' WHERE name = 'link'",
        "/link",
        "target: expected '$(HOME)/x', found '$(HOME)/xy'",
    ),
    (Place::Flat, "DELETE FROM catalog WHERE name = 'pipe'", "/pipe", "path: expected a named pipe, found nothing"),
    (Place::Flat, "DELETE FROM catalog WHERE name = 'bin'", "/bin", "path: expected a directory, found nothing"),
    (Place::Flat, "UPDATE catalog SET name = 'extra' WHERE name = 'pipe'", "", "the row 'extra' in"),
    (Place::Layer(1), "DELETE FROM catalog WHERE name = 'gone'", "/gone", "path: expected a whiteout, found nothing"),
    (
        Place::Layer(0),
        "UPDATE catalog SET size = 0, mode = 8192 WHERE name = 'null'",
        "/null",
        "type: expected a character device, found a whiteout",
    ),
    (Place::Layer(1), "UPDATE catalog SET name = 'left' WHERE name = 'gone'", "", "the row 'left' in"),
    (
        Place::Layer(1),
        "UPDATE catalog SET xattr = NULL WHERE name = 'directory'",
        "/directory",
        "xattr: expected 'trusted.overlay.opaque'='y'",
    ),
    (
        Place::Layer(2),
        "UPDATE catalog SET xattr = NULL WHERE name = 'usr'",
        "/usr",
        "xattr: expected 'user.overlay.opaque'='y'",
    ),
    (
        Place::Flat,
        "UPDATE chunks SET hash = (SELECT hash FROM chunks other WHERE other.rowid = 3 - chunks.rowid) WHERE rowid < 3",
        "/large",
        "content: ",
    ),
    (
        Place::Flat,
        "UPDATE chunks SET offset = offset + 1 WHERE offset > 0",
        "/large",
        "content: expected readable content, found chunks do not cover",
    ),
    (
        Place::Flat,
        "UPDATE catalog SET size = size + 1 WHERE name = 'passwd'",
        "/etc/passwd",
        "size: expected 4, found 5",
    ),
    (
        Place::Flat,
        "UPDATE catalog SET hardlinks = 1 WHERE name = 'twin'",
        "/bin/twin",
        "links: expected one inode with 'tool', 'twin', found an inode of its own",
    ),
    (
        Place::Chain,
        "UPDATE catalog SET hardlinks = (77 << 32) | 2 WHERE name IN ('null', 'disk')",
        "/disk",
        "links: expected an inode of its own, found one inode with 'disk', 'null'",
    ),
    (Place::Flat, "UPDATE catalog SET size = size + 1 WHERE name = 'null'", "/null", "device: expected 259, found 260"),
    (
        Place::Flat,
        "UPDATE catalog SET mode = 24576 | 438 WHERE name = 'null'",
        "/null",
        "type: expected a character device, found a block device",
    ),
    (
        Place::Flat,
        "UPDATE catalog SET flags = flags | 32768 WHERE name = 'pipe'",
        "/pipe",
        "listing: expected shown, found hidden",
    ),
    (Place::Flat, "UPDATE catalog SET uid = 7 WHERE name = 'marked'", "/marked", "owner: expected 0, found 7"),
    (Place::Marked, "UPDATE catalog SET gid = 7 WHERE name = 'marked'", "/marked", "group: expected 0, found 7"),
    (
        Place::Flat,
        "UPDATE catalog SET mode = mode & ~64 WHERE name = 'runscript'",
        "/.singularity.d/runscript",
        "mode: expected 0755",
    ),
    (
        Place::Host,
        "UPDATE catalog SET symlink = replace(symlink, '.flat', '.chains') WHERE name = 'image:1'",
        "/test/image:1",
        "target: expected a link to",
    ),
    (Place::Host, "DELETE FROM catalog WHERE name = 'image:1'", "/test/image:1", "found nothing"),
    (
        Place::Metadata,
        "DELETE FROM catalog WHERE name = 'config.json'",
        "/config.json",
        "path: expected a file, found nothing",
    ),
    (
        Place::Metadata,
        "DELETE FROM catalog WHERE name = 'losses.json'",
        "/losses.json",
        "losses: expected 1 x acl, found 0 x acl",
    ),
    (Place::Metadata, "UPDATE catalog SET name = 'more.json' WHERE name = 'losses.json'", "", "the row 'more.json' in"),
    (
        Place::Chain,
        "UPDATE properties SET value = replace(value, 'sbin/far', 'sbin/fat') WHERE key = 'strata_facts'",
        "",
        "links across directories",
    ),
    (Place::Flat, "DELETE FROM properties WHERE key = 'strata_facts'", "", "losses: expected 1 x acl, found 0 x acl"),
];

/// Returns the findings, unless a line names the path and contains the words.
fn missed(planted: &Planted, source: &str, fault: &str, path: &str, words: &str) -> Option<String> {
    let run = planted.verify(source);
    let is_found = |line: &str| line.starts_with(&format!("{path}: ")) && line.contains(words);
    let is_missed = !run.stdout().lines().any(is_found);
    let output = format!("{fault}\n{path}: {words}\n{}", run.stdout());
    is_missed.then_some(output).or_else(|| {
        run.expect_code(4);
        None
    })
}

#[track_caller]
fn assert_found(planted: &Planted, source: &str, fault: &str, path: &str, words: &str) {
    assert_eq!(missed(planted, source, fault, path, words), None);
}

#[test]
fn every_fault_of_a_published_row_is_found_at_its_path() {
    let repository = TestRepository::publish(&motley());
    let source = repository.source(&motley());
    let mut all_missed = Vec::new();
    for (place, sql, path, words) in FAULTS {
        let planted = Planted::copy_of(&repository);
        planted.change(&place.path(), sql);
        let directory = match place {
            Place::Marked => Place::Flat.path(),
            Place::Metadata => format!("/.metadata/{NAME}"),
            place => place.path(),
        };
        all_missed.extend(missed(&planted, &source, sql, &format!("{directory}{path}"), words));
    }
    assert!(all_missed.is_empty(), "{}", all_missed.join("\n"));
}

#[test]
fn every_fault_of_published_content_is_found_at_its_path() {
    let repository = TestRepository::publish(&motley());
    let source = repository.source(&motley());
    let metadata = |name: &str| repository.reader().read(&format!(".metadata/{NAME}/{name}"));
    let flip = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 1;
        bytes
    };
    let without =
        |bytes: Vec<u8>, word: &str, other: &str| String::from_utf8(bytes).unwrap().replace(word, other).into_bytes();
    let record = repository.reader().read(&layer_path(&motley(), 1).replace("layerfs", ".metadata/strata.json"));
    let layer = layer_path(&motley(), 1).replace("/layerfs", "");
    let directory = format!(".metadata/{NAME}");
    let faults = [
        (Place::Flat.path(), "passwd", b"roor".to_vec(), format!("{}/etc/passwd", Place::Flat.path()), "content: "),
        (Place::Layer(1).path(), "x", b"behind a lint".to_vec(), format!("{}/lib/x", Place::Layer(1).path()), ""),
        (
            Place::Flat.path(),
            "startscript",
            b"#!/bin/ls\n".to_vec(),
            format!("{}/.singularity.d/startscript", Place::Flat.path()),
            "content: ",
        ),
        (
            Place::Metadata.path(),
            "manifest.json",
            flip(metadata("manifest.json"), 2),
            format!("/{directory}/manifest.json"),
            "content: ",
        ),
        (
            Place::Metadata.path(),
            "config.json",
            flip(metadata("config.json"), 2),
            format!("/{directory}/config.json"),
            "content: ",
        ),
        (
            Place::Metadata.path(),
            "losses.json",
            without(metadata("losses.json"), "\"sbin/far\"", ""),
            format!("/{directory}/losses.json"),
            "losses: expected link-across-folders at /sbin/far, found nothing",
        ),
        (
            Place::Metadata.path(),
            "strata.json",
            without(metadata("strata.json"), &motley().layer_digests()[0], &motley().config_digest()),
            format!("/{directory}/strata.json"),
            "layers: ",
        ),
        (
            format!("/{layer}"),
            "strata.json",
            without(record, "\"gone\"", "\"bone\""),
            format!("/{layer}/.metadata/strata.json"),
            "whiteouts: expected /gone, found nothing",
        ),
    ];
    for (catalog, name, content, path, words) in faults {
        let planted = Planted::copy_of(&repository);
        planted.replace(&catalog, name, &content);
        assert_found(&planted, &source, name, &path, words);
    }
}

#[test]
fn damaged_and_missing_objects_are_findings() {
    let repository = TestRepository::publish(&small());
    let source = repository.source(&small());
    let objects: Vec<String> = repository.objects().into_keys().collect();
    let mut found = 0;
    for object in objects.iter().filter(|object| object.ends_with(|digit: char| !digit.is_ascii_uppercase())) {
        let planted = Planted::copy_of(&repository);
        let file = planted.file(object);
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&file, bytes).unwrap();
        let damaged = planted.verify(&source).stdout();
        fs::remove_file(&file).unwrap();
        let missing = planted.verify(&source).stdout();
        found += usize::from(!missing.contains("no findings"));
        assert!(missing.contains("no findings") || missing.contains(&object[8..]), "{object}: {missing}");
        assert!(damaged.contains("no findings") || damaged.contains("is damaged"), "{object}: {damaged}");
    }
    assert!(found > 20, "{found} objects are read");
}
