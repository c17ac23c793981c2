//! Clients can read repositories of every compression mode, and large files are cut into chunks.

use std::process::Command;
use std::time::Duration;

use crate::strict::Content;
use crate::support::random::noise;
use crate::support::{Compression, NAME, Run, TestImage, TestRepository, flat_path, layer_path};

const MIB: usize = 1 << 20;

/// Returns the path of the object with this hash.
fn object(hash: &str) -> String {
    format!("data/{}/{}", &hash[..2], &hash[2..])
}

#[test]
fn every_mode_publishes_the_same_content() {
    let text = b"all work and no play makes jack a dull boy\n".repeat(3000);
    let image = TestImage::new().layer(|layer| {
        let layer = layer.file("text", &text).file("noise", noise(1, 100_000)).file("empty", "").file("one", "1");
        layer.file("large", [noise(2, 5 * MIB), vec![0; 12 * MIB]].concat()).compression(Compression::Plain)
    });
    let mut sizes = Vec::new();
    let expected = TestRepository::publish(&image).flat(&image);
    for mode in ["exact", "balanced", "fast", "none"] {
        let repository = TestRepository::with_settings(&format!("compression = \"{mode}\""));
        repository.convert(&image, NAME, &[]).expect_code(0);
        assert_eq!(repository.flat(&image), expected, "{mode}");
        assert_eq!(repository.run(["info", "--json"]).json()["compression"], mode);
        sizes.push(repository.objects().values().sum::<u64>());
    }
    let [exact, balanced, fast, none] = sizes.as_slice() else { unreachable!() };
    assert!(balanced * 100 <= exact * 104 && fast * 100 <= exact * 115 && none > &(17 * MIB as u64), "{sizes:?}");
}

#[test]
fn exact_mode_stores_the_objects_of_zlib_level_6() {
    // SHA-1 of zlib.compress(content, 6) in Python with zlib 1.2.13.
    let squares: Vec<u8> = (0..200_000_u64).map(|n| (n * n % 251) as u8).collect();
    let contents: [(&str, Vec<u8>, &str); 4] = [
        ("empty", Vec::new(), "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"),
        ("hello", b"hello\n".to_vec(), "5798f7f4ca7585d850eea64610a1f73d8f8de7a3"),
        ("many", vec![b'a'; 100_000], "77cd5ab78d634142bf65204d0bc9b4be0e3b9577"),
        ("squares", squares, "57d830ed6b95c149e7d73eea1509ded888956e92"),
    ];
    let image = TestImage::new()
        .layer(|layer| contents.iter().fold(layer, |layer, (name, content, _)| layer.file(name, content)));
    let repository = TestRepository::with_settings("compression = \"exact\"");
    repository.convert(&image, NAME, &[]).expect_code(0);
    let objects = repository.objects();
    for (name, _, hash) in contents {
        assert!(objects.contains_key(&object(hash)), "{name}");
    }
}

#[test]
fn none_mode_stores_content_uncompressed() {
    let repository = TestRepository::with_settings("compression = \"none\"");
    repository.convert(&TestImage::new().layer(|layer| layer.file("a", "hello\n")), NAME, &[]).expect_code(0);
    // SHA-1 of the six bytes.
    let path = object("f572d396fae9206628714fb2ce00f72e94f2258f");
    assert_eq!(std::fs::read(repository.storage().join(path)).unwrap(), b"hello\n");
}

#[test]
fn large_file_is_covered_by_its_chunks() {
    let content = noise(1, 30 * MIB);
    let image = TestImage::new().layer(|layer| layer.file("large", &content).compression(Compression::Plain));
    let repository = TestRepository::publish(&image);
    for root in [flat_path(&image), layer_path(&image, 0)] {
        let chunks = repository.reader().chunks(&format!("{root}/large"));
        assert!(chunks.len() >= 2, "{chunks:?}");
        assert_tile(&chunks, 30 * MIB as u64);
    }
    assert_eq!(repository.flat(&image).get("large").content, Some(Content::of(&content)));
}

/// Asserts that chunks cover a file without gaps and overlaps, and that their sizes are within the limits.
#[track_caller]
fn assert_tile(chunks: &[(u64, u64)], size: u64) {
    let mut end = 0;
    for (offset, length) in chunks {
        assert_eq!(*offset, end);
        end += length;
    }
    assert_eq!(end, size);
    let (minimum, maximum) = (4 * MIB as u64, 16 * MIB as u64);
    assert!(chunks.iter().all(|(_, length)| *length <= maximum), "{chunks:?}");
    assert!(chunks[..chunks.len() - 1].iter().all(|(_, length)| *length >= minimum), "{chunks:?}");
}

#[test]
fn files_around_the_size_limits_have_chunks_within_the_limits() {
    let sizes = [4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 16 * MIB - 1, 16 * MIB, 16 * MIB + 1];
    let (zeros, noise) = (vec![0; 17 * MIB], noise(1, 17 * MIB));
    let image = TestImage::new().layer(|layer| {
        let layer = sizes.iter().fold(layer, |layer, &size| {
            layer.file(format!("zeros{size}"), &zeros[..size]).file(format!("noise{size}"), &noise[..size])
        });
        layer.compression(Compression::Plain)
    });
    let repository = TestRepository::with_settings("compression = \"fast\"");
    repository.convert(&image, NAME, &["--skip-layers", "--chains", "none"]).expect_code(0);
    let (reader, flat) = (repository.reader(), repository.flat(&image));
    for size in sizes {
        let chunks = |name: &str| reader.chunks(&format!("{}/{name}{size}", flat_path(&image)));
        // Zeros contain no content-defined boundary, so that only the maximum size cuts them.
        let expected = if size > 16 * MIB { vec![(0, 16 * MIB as u64), (16 * MIB as u64, 1)] } else { Vec::new() };
        assert_eq!(chunks("zeros"), expected, "{size} zeros");
        match chunks("noise").as_slice() {
            [] => assert!(size <= 16 * MIB),
            chunks => assert_tile(chunks, size as u64),
        }
        assert!(size > 4 * MIB || chunks("noise").is_empty());
        assert_eq!(flat.get(format!("zeros{size}")).content, Some(Content::of(&zeros[..size])));
        assert_eq!(flat.get(format!("noise{size}")).content, Some(Content::of(&noise[..size])));
    }
}

#[test]
fn sparse_file_of_a_tebibyte_takes_seconds_and_little_memory() {
    // PAX format 1.0 with one area of data: three bytes at offset 5 GiB.
    let mut stored = format!("1\n{}\n3\n", 5_u64 << 30).into_bytes();
    stored.resize(512, 0);
    stored.extend_from_slice(b"abc");
    let image = TestImage::new().layer(|layer| {
        layer
            .file("GNUSparseFile.0/f", &stored)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", "f")
            .record("GNU.sparse.realsize", (1_u64 << 40).to_string())
    });
    let repository = TestRepository::new();
    let before = repository.objects().len();
    let source = repository.source(&image);
    // The address space includes one thread's stack of 256 MiB, of which little is used: 400 MB remain for everything else.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 700000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_strata"), "convert", &source]);
    command.args(["--name", NAME, "--threads", "1", "--skip-layers", "--chains", "none", "--repo"]);
    command.arg(repository.directory());
    // Compressing and hashing a tebibyte of zeros would take many minutes.
    Run::within(Duration::from_secs(45), &mut command).expect_code(0);
    let chunks = repository.reader().chunks(&format!("{}/f", flat_path(&image)));
    assert_eq!(chunks.len(), 65_536);
    assert_tile(&chunks, 1 << 40);
    assert!(repository.objects().len() < before + 60);
}
