//! A revision is published completely or not at all, and concurrent publishers do not lose each other's work.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use flate2::read::ZlibDecoder;
use sha1::{Digest as _, Sha1};

use crate::support::{FQRN, NAME, Run, TestImage, TestRepository, image_of, strata, strata_command};

#[test]
fn init_creates_an_empty_repository() {
    let home = tempfile::tempdir().unwrap();
    let run = Run::of(strata_command(["init", FQRN]).current_dir(home.path())).expect_code(0);
    assert!(run.stdout().contains(FQRN));
    let directory = home.path().join(FQRN);
    crate::strict::check(&directory.join("storage"), FQRN).assert_good();
    for name in ["strata.toml", "storage", "keys"] {
        assert!(directory.join(name).exists(), "{name}");
    }
    let again = Run::of(strata_command(["init", FQRN]).current_dir(home.path()));
    assert!(again.stderr().contains("not empty"), "{}", again.stderr());
    again.expect_code(1);
    crate::strict::check(&directory.join("storage"), FQRN).assert_good();
}

#[test]
fn storage_and_keys_may_be_elsewhere() {
    let other = TestRepository::new();
    let [directory, storage, keys] = ["here", "www/storage", "secret"].map(|name| other.beside(name));
    fs::create_dir(other.beside("www")).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let arguments = ["init", FQRN, "--repo", &text(&directory), "--storage", &text(&storage), "--keys", &text(&keys)];
    Run::of(&mut strata_command(arguments)).expect_code(0);
    let source = other.source(&image_of("x"));
    Run::of(&mut strata_command(["convert", &source, "--name", NAME, "--repo", &text(&directory)])).expect_code(0);
    crate::strict::check(&storage, FQRN).assert_good();
    assert!(keys.join(format!("{FQRN}.masterkey")).is_file() && !directory.join("keys").exists());
    let remote = strata(["init", FQRN, "--repo", &text(&other.beside("remote")), "--storage", "s3://bucket"]);
    assert_eq!(remote.status.code(), Some(2));
}

#[test]
fn keys_are_readable_only_by_their_owner_and_not_in_the_storage() {
    let repository = TestRepository::publish(&image_of("x"));
    let keys = repository.directory().join("keys");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&keys), 0o700);
    for (suffix, expected) in [("masterkey", 0o400), ("key", 0o400), ("pub", 0o444), ("crt", 0o444)] {
        assert_eq!(mode(&keys.join(format!("{FQRN}.{suffix}"))), expected, "{suffix}");
    }
    assert_eq!(mode(&repository.directory().join("state")), 0o700);
    for (path, stored) in repository.storage_files().contents() {
        let mut plain = Vec::new();
        // Objects that are not zlib streams are inspected without decompression.
        let _ = ZlibDecoder::new(stored).read_to_end(&mut plain);
        for bytes in [stored, &plain] {
            let has_secret = bytes.windows(11).any(|window| window == b"PRIVATE KEY");
            assert!(!has_secret, "{}", path.display());
        }
    }
}

#[test]
fn manifest_describes_the_published_revision() {
    let repository = TestRepository::publish(&image_of("x"));
    let reader = repository.reader();
    let field = |letter: char| reader.field(letter).unwrap_or_else(|| panic!("no field {letter}")).to_owned();
    assert_eq!((field('N').as_str(), field('S').as_str(), field('D').as_str()), (FQRN, "2", "240"));
    assert_eq!(
        (field('R').as_str(), field('G').as_str(), field('A').as_str()),
        ("d41d8cd98f00b204e9800998ecf8427e", "yes", "no")
    );
    let root = repository.storage().join(format!("data/{}/{}C", &field('C')[..2], &field('C')[2..]));
    let mut catalog = Vec::new();
    ZlibDecoder::new(File::open(root).unwrap()).read_to_end(&mut catalog).unwrap();
    assert_eq!(field('B'), catalog.len().to_string());
    let reflog = fs::read(repository.storage().join(".cvmfsreflog")).unwrap();
    let hash: String = Sha1::digest(reflog).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(field('Y'), hash);
    for (letter, suffix) in [('X', 'X'), ('H', 'H'), ('M', 'M')] {
        let hash = field(letter);
        assert!(repository.storage().join(format!("data/{}/{}{suffix}", &hash[..2], &hash[2..])).is_file());
    }
    assert!(repository.storage().join(".cvmfs_master_replica").is_file());
}

#[test]
fn whitelist_is_valid_for_thirty_days() {
    let repository = TestRepository::new();
    let whitelist = fs::read(repository.storage().join(".cvmfswhitelist")).unwrap();
    let text = String::from_utf8_lossy(&whitelist).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[2], format!("N{FQRN}"));
    let (issued, expires) = (seconds(lines[0]), seconds(lines[1].strip_prefix('E').unwrap()));
    assert_eq!(expires - issued, 30 * 86_400);
    let published: i64 = repository.reader().field('T').unwrap().parse().unwrap();
    assert!((issued - published).abs() < 600, "{issued} {published}");
}

/// Returns the seconds from 1970 to a time of the form `YYYYMMDDhhmmss`. Valid from 1970 to 2099, as it treats 2100 as a leap year.
fn seconds(text: &str) -> i64 {
    assert_eq!(text.len(), 14, "{text}");
    let part = |from: usize, length: usize| text[from..from + length].parse::<i64>().unwrap();
    let (year, month, day) = (part(0, 4), part(4, 2), part(6, 2));
    let days_before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    let leap_days = (year - 1969) / 4 + i64::from(year % 4 == 0 && month > 2);
    let days = (year - 1970) * 365 + leap_days + days_before + day - 1;
    days * 86_400 + part(8, 2) * 3600 + part(10, 2) * 60 + part(12, 2)
}

#[test]
fn tags_name_the_head_and_the_previous_revision() {
    let repository = TestRepository::new();
    let mut roots = vec![repository.reader().root_hash().to_owned()];
    let tags = |repository: &TestRepository| repository.reader().tags().into_iter().collect::<Vec<_>>();
    assert_eq!(tags(&repository), [("trunk".to_owned(), roots[0].clone())]);
    for word in ["one", "two"] {
        repository.convert(&image_of(word), NAME, &[]).expect_code(0);
        roots.push(repository.reader().root_hash().to_owned());
        let [.., former, head] = roots.as_slice() else { unreachable!() };
        let expected = [("trunk", head), ("trunk-previous", former)].map(|(tag, root)| (tag.to_owned(), root.clone()));
        assert_eq!(tags(&repository), expected);
        assert_eq!(repository.reader().revision(), roots.len() as u64);
    }
    let previous = crate::strict::Reader::open_tag(&repository.storage(), "trunk-previous");
    assert_eq!(previous.root_hash(), roots[1]);
    assert!(!previous.walk_without_content(".metadata").contains_key(&b"candidates.json"[..]));
}

#[test]
fn repository_that_another_publisher_has_locked_is_not_changed() {
    let repository = TestRepository::publish(&image_of("before"));
    let before = repository.front_page();
    let lock = repository.lock();
    for wait in ["0s", "100ms"] {
        let run = repository.convert(&image_of("x"), NAME, &["--wait", wait]).expect_code(5);
        assert!(run.stderr().contains("--wait"), "{}", run.stderr());
    }
    assert_eq!(repository.front_page(), before);
    drop(lock);
    let json = repository.convert(&image_of("x"), NAME, &["--wait", "0s", "--json"]).expect_code(0).json();
    assert_eq!(json["images"][0]["layers-read"], 0, "the work of the run that gave up is kept");
}

#[test]
fn publisher_waits_for_another_one() {
    let repository = TestRepository::new();
    let lock = repository.lock();
    let source = repository.source(&image_of("x"));
    let mut command = repository.command(["convert", &source, "--name", NAME, "--wait", "5m"]);
    let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(lock);
    Run::ended(waiting.wait_with_output().unwrap()).expect_code(0);
    assert!(repository.has(NAME));
}

#[test]
fn concurrent_publishers_both_succeed() {
    let repository = TestRepository::new();
    let names: Vec<String> = (0..4).map(|number| format!("h{number}.example.org/a:1")).collect();
    let running: Vec<_> = names
        .iter()
        .map(|name| {
            let image = image_of(name).layer(|layer| layer.file("shared", "by all"));
            let source = repository.source(&image);
            let mut command = repository.command(["convert", &source, "--name", name]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in running {
        Run::ended(child.wait_with_output().unwrap()).expect_code(0);
    }
    assert!(names.iter().all(|name| repository.has(name)));
    assert_eq!(repository.reader().revision(), 5);
}

#[test]
fn same_image_from_concurrent_publishers_is_published_once() {
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let start = || {
        let mut command = repository.command(["convert", &source, "--name", NAME]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for child in [start(), start(), start()] {
        Run::ended(child.wait_with_output().unwrap()).expect_code(0);
    }
    assert_eq!(repository.reader().revision(), 2);
}

#[test]
fn leftovers_of_a_dead_run_are_deleted() {
    let repository = TestRepository::new();
    let (dead, live) = ("data/txn/strata-99999-0", "data/txn/strata-99999-1");
    let [dead, live] = [dead, live].map(|path| repository.storage().join(path));
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("0123456789abcdef0123456789abcdef01234567"), "half an object").unwrap();
    fs::create_dir(&live).unwrap();
    let held = File::open(&live).unwrap();
    held.lock().unwrap();
    repository.convert(&image_of("x"), NAME, &[]).expect_code(0);
    assert!(!dead.exists() && live.exists());
    drop(held);
    repository.convert(&image_of("y"), NAME, &[]).expect_code(0);
    assert!(!live.exists());
}

#[test]
fn known_content_is_not_stored_again() {
    let files = |prefix: &str| {
        TestImage::new().layer(|layer| {
            (0..50).fold(layer, |layer, number| layer.file(format!("{prefix}{number}"), format!("content {number}")))
        })
    };
    let repository = TestRepository::publish(&files("a"));
    let before = repository.objects();
    let run = repository.convert(&files("b"), "h.example.org/b:1", &["--json"]).expect_code(0).json();
    let new: Vec<String> = repository.objects().into_keys().filter(|path| !before.contains_key(path)).collect();
    assert_eq!(run["new-objects"], new.len());
    let files = new.iter().filter(|path| !path.ends_with(['C', 'H', 'X', 'M'])).count();
    // New objects: records of image and layer, manifest and config; podman's two lists with their locks, and a name of the layer.
    assert_eq!(files, 4 + 5, "{new:?}");
}

#[test]
fn object_that_the_index_has_and_the_store_lacks_is_stored_again() {
    let image = TestImage::new().layer(|layer| layer.file("a", "precious").file("large", vec![7; 17 << 20]));
    let repository = TestRepository::publish(&image);
    let lost = |objects: std::collections::BTreeMap<String, u64>| -> Vec<String> {
        objects.into_keys().filter(|path| !path.ends_with(['C', 'H', 'X', 'M'])).collect()
    };
    let lost = lost(repository.objects());
    assert!(lost.iter().any(|path| path.ends_with('P')));
    // Records and files for podman are not content of the image, and are read before anything is stored.
    let reader = repository.reader();
    let own: Vec<Vec<u8>> = [format!(".metadata/{NAME}/strata.json"), format!(".metadata/{NAME}/manifest.json")]
        .iter()
        .chain([format!(".metadata/{NAME}/config.json")].iter())
        .map(|path| reader.read(path))
        .chain(["images.json", "images.lock"].map(|name| reader.read(&format!("podmanStore/overlay-images/{name}"))))
        .chain(["layers.json", "layers.lock"].map(|name| reader.read(&format!("podmanStore/overlay-layers/{name}"))))
        .collect();
    for path in lost {
        let file = repository.storage().join(&path);
        let mut plain = Vec::new();
        ZlibDecoder::new(File::open(&file).unwrap()).read_to_end(&mut plain).unwrap();
        let is_record = own.contains(&plain) || plain.starts_with(b"{\n  \"format\"");
        if !is_record {
            fs::remove_file(file).unwrap();
        }
    }
    assert!(!crate::strict::check(&repository.storage(), FQRN).findings.is_empty());
    repository.convert(&image, NAME, &["--force"]).expect_code(0);
    assert_eq!(repository.flat(&image).text("a"), "precious");
}

#[test]
fn publishing_leaves_no_unreferenced_objects_except_those_of_old_revisions() {
    let repository = TestRepository::publish(&image_of("one"));
    repository.convert(&image_of("two"), NAME, &[]).expect_code(0);
    let report = crate::strict::check(&repository.storage(), FQRN);
    report.assert_good();
    // The first revision no longer has a tag: a collection would remove its root catalog and the old tag databases.
    assert!(report.unreachable.iter().all(|path| path.ends_with(['C', 'H'])), "{:?}", report.unreachable);
}

#[test]
fn objects_and_manifest_are_readable_by_web_servers() {
    let repository = TestRepository::publish(&image_of("x"));
    for path in repository.front_page().into_keys() {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{}", path.display());
    }
}
