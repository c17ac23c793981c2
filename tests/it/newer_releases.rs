//! Rows and objects that newer releases of CVMFS write: flags and compressions that strata does not know stay as they are, and
//! whatever cannot be read is named.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use flate2::read::ZlibDecoder;
use strata::catalog::CatalogEntry;
use strata::directory::RepositoryDirectory;
use strata::path::EntryPath;
use strata::repository::Repository;

use crate::strict_selftest::forge::{put, zstd};
use crate::support::fuse::Mount;
use crate::support::{NAME, Run, TestImage, TestRepository, flat_path, need_fuse};
use crate::verify::plant::Planted;

/// What every message about an object compressed with zstd contains.
const ZSTD: &str = "compressed with zstd, which strata does not support";

fn image() -> TestImage {
    TestImage::new().layer(|layer| layer.file("plain", "plain text").file("other", "x").dir("d").symlink("l", "plain"))
}

fn run(planted: &Planted, arguments: &[&str]) -> Run {
    Run::of(&mut planted.command(arguments))
}

/// Publishes another image, so that the catalogs above its trees change.
fn publish_next(repository: &TestRepository, planted: &Planted) {
    let next = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    run(planted, &["convert", &next, "--name", "registry.example.org/test/next:1"]).expect_code(0);
}

fn row(planted: &Planted, path: &str) -> CatalogEntry {
    let directory = RepositoryDirectory::open(&planted.file("..")).unwrap();
    let repository = Repository::open(directory.store().unwrap(), directory.name()).unwrap();
    repository.get(&EntryPath::normalise(path.as_bytes()).unwrap()).unwrap().unwrap()
}

/// Mounts the repository, and runs `with_mount` on the mount point. Returns what was logged; `None` if nothing can be mounted.
fn mounted(planted: &Planted, with_mount: impl FnOnce(&Path)) -> Option<String> {
    if !need_fuse() {
        return None;
    }
    let directory = planted.beside("mount");
    fs::create_dir(&directory).unwrap();
    let command = planted.command(["mount".as_ref(), directory.as_os_str()]);
    let log = planted.beside("mount.log");
    let mount = Mount::of(command, directory, log.clone());
    with_mount(&mount.directory);
    drop(mount);
    Some(fs::read_to_string(log).unwrap())
}

#[test]
fn unknown_flags_are_kept_by_publications_and_no_reader_fails() {
    let repository = TestRepository::publish(&image());
    let planted = Planted::copy_of(&repository);
    for catalog in ["", "/.flat", "/.layers", &format!("/{}", flat_path(&image()))] {
        planted.change(catalog, "UPDATE catalog SET flags = flags | 0x20000 | 0x80000000");
    }
    publish_next(&repository, &planted);
    for path in ["", ".flat", ".layers", &format!("{}/plain", flat_path(&image()))] {
        assert_eq!(row(&planted, path).flags & !0 << 17, 0x8002_0000, "{path}");
    }
    let check = run(&planted, &["check"]);
    assert_eq!(check.exit_code(), Some(0), "{check:?}");
    planted.verify(&repository.source(&image())).expect_code(0);
    run(&planted, &["diff", "1", "head"]).expect_code(4);
    mounted(&planted, |point| {
        assert_eq!(fs::read_to_string(point.join(NAME).join("plain")).unwrap(), "plain text");
        assert!(point.join(NAME).join("d").is_dir());
    });
}

#[test]
fn file_compressed_with_zstd_is_kept_and_named_by_every_reader() {
    let repository = TestRepository::publish(&image());
    let planted = Planted::copy_of(&repository);
    let hash = put(&planted.file(""), &zstd(b"plain text"), "");
    let tree = flat_path(&image());
    let sql = format!("UPDATE catalog SET flags = flags | 0x1000, hash = x'{hash}' WHERE name = 'plain'");
    planted.change(&format!("/{tree}"), &sql);
    publish_next(&repository, &planted);

    let file = row(&planted, &format!("{tree}/plain"));
    assert_eq!((file.flags, file.objects().len()), (0x1004, 1));
    let check = run(&planted, &["check"]).expect_code(0);
    assert!(
        check.stdout().contains("no findings") && check.stderr().contains(&format!("1 object {ZSTD}")),
        "{check:?}"
    );
    let verify = planted.verify(&repository.source(&image())).expect_code(4);
    assert!(verify.stdout().contains(&format!("/{tree}/plain: content")), "{verify:?}");
    assert_eq!(verify.stdout().matches(ZSTD).count(), verify.stdout().lines().count() - 1, "{verify:?}");
    let diff = run(&planted, &["diff", "1", "head"]).expect_code(4);
    assert!(!diff.stdout().contains("error"), "{diff:?}");
    let log = mounted(&planted, |point| {
        let error = fs::read(point.join(NAME).join("plain")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
        assert_eq!(fs::read_to_string(point.join(NAME).join("other")).unwrap(), "x");
    });
    assert!(log.is_none_or(|log| log.contains(ZSTD) && log.contains("plain")));
}

#[test]
fn files_that_strata_reads_itself_are_named_and_not_replaced() {
    let repository = TestRepository::publish(&image());
    let planted = Planted::copy_of(&repository);
    let images = repository.reader().read("podmanStore/overlay-images/images.json");
    let hash = put(&planted.file(""), &zstd(&images), "");
    let sql = format!("UPDATE catalog SET flags = flags | 0x1000, hash = x'{hash}' WHERE name = 'images.json'");
    planted.change("/podmanStore/overlay-images", &sql);
    let before = planted.front_page();
    let next = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    let convert = run(&planted, &["convert", &next, "--name", "registry.example.org/test/next:1"]).expect_code(1);
    assert!(convert.stderr().contains(ZSTD) && convert.stderr().contains("images.json"), "{convert:?}");
    assert_eq!(planted.front_page(), before);
    assert_eq!(run(&planted, &["check"]).stdout().matches("images.json").count(), 0);
}

#[test]
fn catalog_compressed_with_zstd_is_named_and_no_advice_to_repair_it_is_given() {
    let repository = TestRepository::publish(&image());
    let planted = Planted::copy_of(&repository);
    let hash = &repository.reader().catalog_hashes()["/.layers"];
    let mut catalog = Vec::new();
    let stored = fs::File::open(planted.file(&format!("data/{}/{}C", &hash[..2], &hash[2..]))).unwrap();
    ZlibDecoder::new(stored).read_to_end(&mut catalog).unwrap();
    let packed = put(&planted.file(""), &zstd(&catalog), "C");
    planted.change("", &format!("UPDATE nested_catalogs SET sha1 = '{packed}' WHERE path = '/.layers'"));
    let next = repository.source(&TestImage::new().layer(|layer| layer.file("next", "y")));
    for arguments in
        [&["convert", &next, "--name", "registry.example.org/test/next:1"][..], &["diff", "1", "head"], &["info", NAME]]
    {
        let run = run(&planted, arguments).expect_code(1);
        assert!(run.stderr().contains(ZSTD) && !run.stderr().contains("damaged"), "{run:?}");
        assert!(!run.stderr().contains("repair") && !run.stderr().contains("replica"), "{run:?}");
    }
    let check = run(&planted, &["check", "/.layers"]);
    assert!(check.stderr().contains(&format!("1 object {ZSTD}")), "{check:?}");
}
