//! Bad input and a full or read-only disk: one line of error message, the documented exit code, and an unchanged repository.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use flate2::write::GzEncoder;
use rustix::fs::statvfs;
use serde_json::{Value, json};
use std::io::Write as _;
use tar::{EntryType, Header};

use crate::support::random::noise;
use crate::support::{
    Compression, Damage, FQRN, NAME, Run, TestImage, TestLayer, TestMount, TestRepository, blob_file, image_of,
    strata_command,
};

const OTHER: &str = "h.example.org/bad:1";

fn published() -> TestRepository {
    TestRepository::publish(&image_of("before"))
}

#[test]
fn flipped_and_missing_bytes_are_found_at_any_offset() {
    let repository = published();
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let image = TestImage::new().layer(|layer| layer.file("a", noise(1, 2000)).compression(compression));
        let digest = &image.layer_digests()[0];
        let source = repository.source(&image);
        let file = blob_file(&source, digest);
        let bytes = fs::read(&file).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 7).chain([bytes.len() - 1]) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            for damaged in [&flipped[..], &bytes[..at]] {
                fs::write(&file, damaged).unwrap();
                repository.refuse(["convert", &source, "--name", OTHER], 1, &[digest]);
            }
        }
    }
}

#[test]
fn path_of_a_million_directories_is_refused() {
    let repository = published();
    let long = |count: usize| "a/".repeat(count) + "f";
    // Refused because of the size of the header with the path, the length of the path, and its depth.
    for depth in [1_000_000, 400_000, 1_001] {
        let image = TestImage::new().layer(|layer| layer.file("f", "").record("path", long(depth)));
        let run = repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &["allowed"]);
        assert!(run.stderr().contains(&image.layer_digests()[0]));
    }
    // A symbolic link leads 900 directories down, and each layer adds as many below it.
    let deep = "d/".repeat(900);
    let image = TestImage::new()
        .layer(|layer| layer.dir(&deep).symlink("link", &deep))
        .layer(|layer| layer.dir(format!("link/{deep}")));
    repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &["directories", "…"]);
}

#[test]
fn gzip_bomb_is_refused() {
    let repository = published();
    // 140,000 paths of 4,000 bytes, compressed to half a megabyte: members of a gzip stream may be repeated.
    let path = ["p".repeat(200).as_str(); 20].join("/");
    let part = TestLayer::new().file(path, "").compression(Compression::Plain).tar();
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    (0..10_000).for_each(|_| encoder.write_all(&part[..part.len() - 1024]).unwrap());
    let member = encoder.finish().unwrap();
    let names =
        TestImage::new().layer(|layer| layer.blob("application/vnd.oci.image.layer.v1.tar+gzip", member.repeat(14)));
    repository.refuse(["convert", &repository.source(&names), "--name", OTHER], 1, &["bytes of paths"]);
}

#[test]
fn sparse_file_with_too_large_holes_is_refused() {
    // A sparse file of 1 TiB with one byte of data in every 16 MiB.
    let pieces = 65_536_u64;
    let lines: String = (0..pieces).map(|number| format!("{}\n1\n", number << 24)).collect();
    let mut stored = format!("{pieces}\n{lines}").into_bytes();
    stored.resize(stored.len().next_multiple_of(512), 0);
    stored.extend(vec![b'x'; pieces as usize]);
    let image = TestImage::new().layer(|layer| {
        let layer = layer.file("GNUSparseFile.0/f", &stored);
        let layer = layer.record("GNU.sparse.major", "1").record("GNU.sparse.minor", "0");
        layer.record("GNU.sparse.name", "f").record("GNU.sparse.realsize", (1_u64 << 40).to_string())
    });
    let repository = published();
    repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &["f", "holes"]);
}

#[test]
fn header_with_a_wrong_size_is_refused() {
    let repository = published();
    for (size, words) in [(1 << 40, ["liar", "ends inside"]), (3, ["liar", "no valid header"])] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_path("liar").unwrap();
        header.set_size(size);
        header.set_cksum();
        let image = TestImage::new().layer(|layer| layer.raw_entry(header, [b'x'; 1500]).file("after", ""));
        repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &words);
    }
}

#[test]
fn index_without_the_platform_is_refused() {
    let repository = published();
    let image = |architecture: &str| image_of(architecture).platform("linux", architecture);
    let source = repository.source_of_index(&[image("s390x"), image("riscv64")]);
    repository.refuse(["convert", &source, "--name", OTHER], 1, &["s390x", "riscv64"]);
    let words = ["linux/mips", "linux/s390x"];
    repository.refuse(["convert", &source, "--name", OTHER, "--platform", "linux/mips"], 1, &words);
}

#[test]
fn missing_blob_is_named_once() {
    let repository = published();
    let image = image_of("x").damage(Damage::Omitted(0));
    let source = repository.source(&image);
    let run = repository.refuse(["convert", &source, "--name", OTHER], 1, &[&image.layer_digests()[0]]);
    assert_eq!(run.stderr().matches(source.strip_prefix("oci:").unwrap()).count(), 1, "{}", run.stderr());
}

#[test]
fn failed_image_among_others_is_one_line_and_code_3() {
    let repository = published();
    let [good, bad] = [NAME, OTHER].map(|name| format!("oci:{}:{name}", repository.beside("both").display()));
    image_of("after").write_oci_layout(&repository.beside("both"), NAME);
    let image = image_of("x").damage(Damage::WrongDiffId(0));
    image.write_oci_layout(&repository.beside("both"), OTHER);
    repository.run(["convert", &good, &bad]).expect_one_line(3, &[&image.layer_digests()[0]]);
    assert_eq!(repository.flat(&image_of("after")).text("word"), "after");
    assert!(!repository.has("h.example.org"));
}

#[test]
fn text_from_images_and_registries_cannot_control_the_terminal_or_add_lines() {
    const EVIL: &str = "\u{1b}[2J\nstrata: all is well\r\u{9b}";
    let repository = published();
    let source = repository.source(&image_of("x"));
    let index = Path::new(source.strip_prefix("oci:").unwrap()).join("index.json");
    let good: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    for (field, value) in [
        ("digest", json!(format!("sha256:{EVIL}"))),
        ("mediaType", json!(EVIL)),
        ("annotations", json!({ "org.opencontainers.image.ref.name": EVIL })),
    ] {
        let mut bad = good.clone();
        bad["manifests"][0][field] = value;
        fs::write(&index, bad.to_string()).unwrap();
        let source = format!("{source}:other");
        repository.refuse(["convert", &source, "--name", OTHER], 1, &[]);
        repository.refuse(["convert", &source[..source.len() - 6], "--name", OTHER, "--platform", "a/b"], 1, &[]);
    }
    let missing = format!("oci:{}", repository.beside(EVIL).display());
    repository.refuse(["convert", &missing, "--name", OTHER], 1, &[r"\u{1b}[2J"]);
    let image = TestImage::new().layer(|layer| layer.file("f", "").record("path", format!("{EVIL}/.wh.")));
    repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &[r"\x1b[2J"]);
    let image = TestImage::new().layer(|layer| layer.hardlink("l", EVIL));
    repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &[r"\x1b[2J"]);
}

#[test]
fn very_long_paths_are_shortened_in_messages() {
    let repository = published();
    for path in ["n".repeat(900_000), "a/".repeat(400_000) + "..", "b".repeat(300) + "\0"] {
        let image = TestImage::new().layer(|layer| layer.file("f", "").record("path", &path));
        repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &[&path[..200], "…"]);
    }
    let deep = ["d".repeat(250).as_str(); 15].join("/");
    let image = TestImage::new().layer(|layer| layer.hardlink(&deep, format!("{deep}/e")));
    repository.refuse(["convert", &repository.source(&image), "--name", OTHER], 1, &[&deep[..200], "…"]);
}

#[test]
fn directory_that_is_no_repository_is_refused() {
    let repository = published();
    let source = repository.source(&image_of("x"));
    let [empty, file] = ["empty", "file"].map(|name| repository.beside(name));
    fs::create_dir(&empty).unwrap();
    fs::write(&file, "").unwrap();
    for path in [&empty, &file, &repository.beside("missing")] {
        let path = path.to_str().unwrap();
        let run = Run::of(&mut strata_command(["convert", &source, "--name", NAME, "--repo", path]));
        run.expect_one_line(2, &[path, "strata.toml"]);
    }
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    // The directory is a repository directory, but its storage is missing.
    for missing in ["storage/.cvmfspublished", "storage/data", "keys", "storage/.cvmfswhitelist"] {
        let broken = repository.copy();
        let (path, aside) = (broken.directory().join(missing), broken.beside("aside"));
        fs::rename(&path, &aside).unwrap();
        let name = missing.rsplit('/').next().unwrap();
        broken.run(["convert", &source, "--name", OTHER]).expect_one_line(1, &[name]);
        fs::rename(&aside, &path).unwrap();
    }
}

#[test]
fn error_in_settings_is_one_line_with_its_position() {
    let repository = published();
    let source = repository.source(&image_of("x"));
    for (settings, place) in
        [("[[[", "line 2, column 3"), ("mode = 1", "line 2, column 1"), ("modes = 1", "line 2, column 9")]
    {
        repository.set(settings);
        repository.refuse(["convert", &source, "--name", OTHER], 1, &["strata.toml", place]);
    }
    repository.set("");
}

#[test]
fn damaged_manifest_or_whitelist_is_refused() {
    let repository = published();
    let source = repository.source(&image_of("x"));
    for name in [".cvmfspublished", ".cvmfswhitelist"] {
        let path = repository.storage().join(name);
        let good = fs::read(&path).unwrap();
        let flipped = {
            let mut bytes = good.clone();
            bytes[good.len() / 2] ^= 1;
            bytes
        };
        let huge = {
            let mut bytes = good.clone();
            bytes.resize(100 << 20, b'x');
            bytes
        };
        for bad in [&b""[..], &good[..good.len() / 2], &flipped, &huge] {
            fs::write(&path, bad).unwrap();
            let before = repository.front_page();
            repository.run(["convert", &source, "--name", OTHER]).expect_one_line(1, &[]);
            assert!(repository.front_page() == before);
        }
        fs::write(&path, good).unwrap();
    }
    // Devices, which have no end, are not read.
    let published = repository.storage().join(".cvmfspublished");
    let good = fs::read(&published).unwrap();
    fs::remove_file(&published).unwrap();
    symlink("/dev/zero", &published).unwrap();
    repository
        .run(["convert", &source, "--name", OTHER])
        .expect_one_line(1, &[".cvmfspublished", "not a regular file"]);
    fs::remove_file(&published).unwrap();
    fs::write(&published, good).unwrap();
}

/// Returns a small mounted file system, a repository on it that contains an image, and the repository's directory.
fn on_small_disk() -> Option<(TestMount, TestRepository, String)> {
    let repository = published();
    let point = repository.beside("mount");
    fs::create_dir(&point).unwrap();
    let mount = TestMount::new("8m", &point)?;
    repository.move_to(&mount.path().join("repository"));
    Some((mount, repository, point.join("repository").to_str().unwrap().to_owned()))
}

#[test]
fn full_disk_loses_nothing_and_with_room_again_the_run_succeeds() {
    const PAGE: usize = 4096;
    let Some((mut mount, repository, directory)) = on_small_disk() else { return };
    let image = TestImage::new().layer(|layer| layer.file("a", noise(1, 400_000)).file("b", noise(2, 9000)));
    let source = repository.source(&image);
    let arguments = ["convert", &source, "--name", OTHER, "--repo", &directory];
    let ballast = mount.path().join("ballast");
    let mut failures = 0;
    // From no space to nearly enough, so that each file in turn is the one that does not fit.
    for free_pages in (0..40).step_by(4).chain((40..400).step_by(20)) {
        fs::remove_file(&ballast).ok();
        let free = statvfs(mount.path()).unwrap().f_bavail as usize;
        fs::write(&ballast, vec![1; (free - free_pages) * PAGE]).unwrap();
        let before = repository.front_page();
        let run = Run::of(&mut mount.strata(arguments));
        if run.exit_code() == Some(0) {
            break;
        }
        // Before the error, the program may warn that little space is left.
        let message = run.expect_code(1).stderr();
        let complaint = message.lines().last().unwrap();
        assert!(complaint.starts_with("strata: ") && complaint.contains(&directory), "{message}");
        assert!(repository.front_page() == before, "with {free_pages} pages");
        crate::strict::check(&repository.storage(), FQRN).assert_good();
        failures += 1;
    }
    assert!(failures > 10, "{failures}");
    mount.remount("size=64m");
    Run::of(&mut mount.strata(arguments)).expect_code(0);
    assert!(repository.has(OTHER));
    repository.move_to(&repository.beside("back"));
}

#[test]
fn read_only_directory_is_refused() {
    let Some((mut mount, repository, directory)) = on_small_disk() else { return };
    let source = repository.source(&image_of("x"));
    let arguments = ["convert", &source, "--name", OTHER, "--repo", &directory];
    mount.remount("ro");
    repository.refuse_command(&mut mount.strata(arguments), 1, &[&directory, "Read-only file system"]);
    Run::of(&mut mount.strata(["info", "--repo", &directory])).expect_code(0);
    mount.remount("rw");
    Run::of(&mut mount.strata(arguments)).expect_code(0);
    repository.move_to(&repository.beside("back"));
}

#[test]
fn message_to_a_second_publisher_names_the_locked_directory() {
    let repository = published();
    let source = repository.source(&image_of("x"));
    let lock = repository.lock();
    let storage = repository.storage();
    let words = [storage.to_str().unwrap(), "another publisher", "--wait"];
    repository.refuse(["convert", &source, "--name", OTHER, "--wait", "0s"], 5, &words);
    drop(lock);
}
