//! `check` finds every fault of a repository, and names the file.

mod damage;
mod faults;
mod newer;
mod scope;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use strata::check::{CheckOptions, CheckReport, CheckedRepository, check};
use strata::directory::RepositoryDirectory;
use strata::metadata::Timestamp;
use strata::progress::Progress;

use crate::support::{DeviceKind, NAME, Run, TestImage, TestLayer, TestRepository};

/// Adds an entry of each type and with each attribute that an image can have.
fn rich_layer(layer: TestLayer) -> TestLayer {
    layer
        .file("precious", "precious content")
        .xattr("user.a", "b")
        .file("empty", "")
        .file("large", vec![7; 17 << 20])
        .symlink("link", "$(HOME)/precious")
        .dir("bin")
        .file("bin/a", "linked")
        .hardlink("bin/b", "bin/a")
        .file(b"odd \xff\n", "odd")
        .device("null", DeviceKind::Character, 1, 3)
        .fifo("pipe")
}

fn rich_repository() -> TestRepository {
    let repository = TestRepository::publish(&TestImage::new().layer(rich_layer));
    let next = TestImage::new().layer(rich_layer).layer(|layer| layer.whiteout("empty").file("new", "new"));
    repository.convert(&next, "registry.example.org/test/next:2", &["--chains", "all"]).expect_code(0);
    repository
}

/// Runs the check in this process, with a clock that is `days` ahead.
fn check_directory(directory: &Path, days: i64) -> CheckReport {
    let now = Timestamp { seconds: Timestamp::now().seconds + days * 86_400, nanoseconds: 0 };
    let options = CheckOptions { path: None, quick: false, threads: 2, now };
    let repository = CheckedRepository::of_directory(&RepositoryDirectory::open(directory).unwrap()).unwrap();
    check(&repository, &options, &Arc::<Progress>::default()).unwrap()
}

/// Returns whether a finding in the JSON report names the file, and a path that ends with `path_end`.
fn has_finding(json: &Value, file: &str, path_end: &str) -> bool {
    let findings = json["findings"].as_array().unwrap();
    findings.iter().any(|finding| finding["file"] == file && finding["path"].as_str().unwrap_or("").ends_with(path_end))
}

/// Moves a file away until the value is dropped.
struct Taken {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Taken {
    fn take(path: PathBuf) -> Self {
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        Self { path, bytes }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        fs::write(&self.path, &self.bytes).unwrap();
    }
}

#[test]
fn good_repository_has_no_findings() {
    let repository = rich_repository();
    let run = repository.run(["check"]).expect_code(0);
    assert!(run.stdout().starts_with("no findings in ") && run.stderr().is_empty(), "{run:?}");
    let json = repository.run(["check", "--json"]).expect_code(0).json();
    assert_eq!((&json["findings"], &json["warnings"]), (&Value::Array(vec![]), &Value::Array(vec![])));
    let reader = repository.reader();
    let entries: usize = reader.catalogs().iter().map(|(_, entries)| entries).sum();
    assert!(json["entries"].as_u64().unwrap() >= entries as u64, "{json}");
    assert!(json["catalogs"].as_u64().unwrap() >= reader.catalogs().len() as u64, "{json}");
    repository.run(["check", "--quick"]).expect_code(0);
}

#[test]
fn repository_without_compression_has_no_findings() {
    let repository = TestRepository::with_settings("compression = \"none\"");
    repository.convert(&TestImage::new().layer(rich_layer), NAME, &[]).expect_code(0);
    repository.run(["check"]).expect_code(0);
}

#[test]
fn private_keys_are_not_needed() {
    let repository = TestRepository::new();
    for end in ["masterkey", "key", "crt"] {
        fs::remove_file(repository.directory().join(format!("keys/{}.{end}", crate::support::FQRN))).unwrap();
    }
    repository.run(["check"]).expect_code(0);
}

#[test]
fn whitelist_that_expires_soon_is_a_warning_and_one_that_expired_a_finding() {
    let repository = TestRepository::new();
    for (days, warnings, findings) in [(20, 0, 0), (25, 1, 0), (31, 0, 1)] {
        let report = check_directory(&repository.directory(), days);
        assert_eq!((report.warnings.len(), report.findings.len()), (warnings, findings), "{days} days: {report:?}");
        assert!(report.findings.iter().all(|finding| finding.file == ".cvmfswhitelist"));
    }
}

#[test]
fn log_of_references_ahead_of_the_manifest_is_a_warning() {
    let repository = TestRepository::new();
    let path = repository.storage().join(".cvmfsreflog");
    let before = fs::read(&path).unwrap();
    let log = rusqlite::Connection::open(&path).unwrap();
    log.execute("INSERT INTO refs VALUES (?1, 0, 1)", ["0123456789abcdef0123456789abcdef01234567"]).unwrap();
    drop(log);
    let run = repository.run(["check"]).expect_code(0);
    assert!(run.stderr().contains("WARN") && run.stderr().contains(".cvmfsreflog"), "{run:?}");
    fs::write(path, before).unwrap();
}

#[test]
fn unreferenced_objects_and_leftovers_of_killed_runs_are_counted_but_not_findings() {
    let repository = TestRepository::new();
    let before = repository.run(["check", "--json"]).expect_code(0).json();
    let storage = repository.storage();
    fs::write(storage.join("data/00/00000000000000000000000000000000000000"), "nobody's").unwrap();
    fs::create_dir(storage.join("data/txn/strata-1-0")).unwrap();
    fs::write(storage.join(".strata-abc"), "half a manifest").unwrap();
    let json = repository.run(["check", "--json"]).expect_code(0).json();
    assert_eq!(json["leftovers"], 2);
    let number = |json: &Value, key: &str| json["unreferenced"][key].as_u64().unwrap();
    assert_eq!(number(&json, "objects"), number(&before, "objects") + 1);
    assert_eq!(number(&json, "bytes"), number(&before, "bytes") + 8);
    fs::remove_file(storage.join("data/00/00000000000000000000000000000000000000")).unwrap();
    fs::remove_dir(storage.join("data/txn/strata-1-0")).unwrap();
    fs::remove_file(storage.join(".strata-abc")).unwrap();
}

#[test]
fn directory_that_is_not_a_repository_is_wrong_usage() {
    let directory = tempfile::tempdir().unwrap();
    let run = crate::support::strata([Path::new("check"), Path::new("--repo"), directory.path()]);
    assert_eq!(run.status.code(), Some(2));
}

#[test]
fn findings_are_the_same_for_any_number_of_threads_and_at_most_a_thousand_are_printed() {
    let image = TestImage::new().layer(|layer| {
        (0..1100).fold(layer, |layer, number| layer.file(format!("f{number}"), format!("content {number}")))
    });
    let repository = TestRepository::publish(&image);
    let objects = repository.objects().into_keys().filter(|path| !path.ends_with(['C', 'H', 'X', 'M']));
    let taken: Vec<Taken> = objects.map(|path| Taken::take(repository.storage().join(path))).collect();
    let run = |threads| repository.run(["check", "--threads", threads]).expect_code(4).stdout();
    let text = run("1");
    assert_eq!(text, run("4"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[1000]), (1002, &*format!("and {} more", taken.len() - 1000)));
    let json = repository.run(["check", "--json", "--quick"]).expect_code(4).json();
    assert_eq!(json["findings"].as_array().unwrap().len(), taken.len());
}

#[test]
fn pipe_in_the_place_of_an_object_is_found_without_blocking() {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "x")));
    for suffix in ["C", "H", "X", ""] {
        let damaged = repository.copy();
        let path = damaged
            .objects()
            .into_keys()
            .find(|path| path.ends_with(suffix) && (!suffix.is_empty() || !path.ends_with(['C', 'H', 'X', 'M'])));
        let path = path.expect("the repository has objects of every kind");
        let file = damaged.storage().join(&path);
        fs::remove_file(&file).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for options in [&["check"][..], &["check", "--quick"]] {
            let run = Run::within(Duration::from_secs(20), &mut damaged.command(options)).expect_code(4);
            assert!(run.stdout().contains(&path), "{}", run.stdout());
        }
        fs::remove_file(&file).unwrap();
        fs::copy(repository.storage().join(&path), &file).unwrap();
    }
}
