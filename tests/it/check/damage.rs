//! Each kind of file × missing, truncated, changed, replaced by another: the finding names the file.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use flate2::read::ZlibDecoder;

use super::{has_finding, rich_repository};
use crate::strict_selftest::forge::Forge;
use crate::support::{Served, TestRepository};

/// A file of the repository that is damaged, and the end of the path that needs it.
struct Victim {
    file: String,
    path_end: &'static str,
    /// A valid file of the same kind that replaces it.
    other: Vec<u8>,
    /// Offset of a byte in which a flipped bit is damage.
    position: usize,
}

fn victims(repository: &TestRepository) -> Vec<Victim> {
    let (storage, reader, forged) = (repository.storage(), repository.reader(), Forge::new().build());
    let read = |path: PathBuf| fs::read(path).unwrap();
    let field = |letter: char| reader.field(letter).unwrap().to_owned();
    let object = |hash: &str, letter: &str| format!("data/{}/{}{letter}", &hash[..2], &hash[2..]);
    let large = repository.objects().into_keys().filter(|path| path.ends_with('P')).collect::<Vec<_>>();
    let content = |path: &str| {
        let mut content = Vec::new();
        ZlibDecoder::new(&*read(storage.join(path))).read_to_end(&mut content).map(|_| content).unwrap_or_default()
    };
    let find = |is_it: &dyn Fn(&[u8]) -> bool, end: &str| {
        let found = repository.objects().into_keys().find(|path| path.ends_with(end) && is_it(&content(path)));
        found.unwrap_or_else(|| panic!("no object {end}"))
    };
    let contains =
        |text: &'static str| move |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let whole = find(&|bytes| bytes == b"precious content", "");
    let nested = find(&contains("root_prefix/.flat/"), "C");
    let other_file = read(storage.join(find(&|bytes| bytes == b"linked", "")));
    let other_catalog = read(storage.join(find(&contains("root_prefix/.layers/"), "C")));
    let middle = |file: &str| read(storage.join(file)).len() / 2;
    let victim = |file: String, path_end, other: &[u8]| {
        let position = middle(&file);
        Victim { file, path_end, other: other.to_vec(), position }
    };
    let log = read(storage.join(".cvmfsreflog"));
    let head = field('C');
    let in_log = log.windows(40).position(|window| window == head.as_bytes()).unwrap();
    vec![
        victim(".cvmfspublished".to_owned(), "", &read(forged.path().join(".cvmfspublished"))),
        victim(".cvmfswhitelist".to_owned(), "", &read(forged.path().join(".cvmfswhitelist"))),
        Victim { position: in_log, ..victim(".cvmfsreflog".to_owned(), "", &read(forged.path().join(".cvmfsreflog"))) },
        victim(object(&field('X'), "X"), "", &other_file),
        victim(object(&field('H'), "H"), "", &other_file),
        victim(object(&field('M'), "M"), "", &other_file),
        victim(object(&head, "C"), "/", &other_catalog),
        victim(nested, "", &other_catalog),
        victim(whole, "/precious", &other_file),
        victim(large[0].clone(), "/large", &other_file),
    ]
}

#[test]
fn every_damage_to_every_kind_of_file_is_found_in_that_file() {
    let repository = rich_repository();
    let served = Served::of(&repository);
    for victim in victims(&repository) {
        let path = repository.storage().join(&victim.file);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[victim.position] ^= 1;
        let damaged = [
            None,
            Some(&good[..good.len() / 2]),
            Some(&good[..good.len() - 1]),
            Some(&flipped),
            Some(&victim.other),
            Some(&[]),
        ];
        for (number, bytes) in damaged.into_iter().enumerate() {
            fs::remove_file(&path).unwrap();
            bytes.iter().for_each(|bytes| fs::write(&path, bytes).unwrap());
            let json = repository.run(["check", "--json"]).expect_code(4).json();
            assert!(has_finding(&json, &victim.file, victim.path_end), "{} damaged by {number}: {json}", victim.file);
            // A replica has a reflog of its own, so that of a repository that is read by its URL is not checked.
            if victim.file != ".cvmfsreflog" {
                let json = served.run(["check", "--json"]).expect_code(4).json();
                assert!(has_finding(&json, &victim.file, victim.path_end), "{} by URL, {number}: {json}", victim.file);
            }
            if bytes.is_none_or(<[u8]>::is_empty) {
                let json = repository.run(["check", "--quick", "--json"]).expect_code(4).json();
                assert!(has_finding(&json, &victim.file, victim.path_end), "{} gone, quickly: {json}", victim.file);
            }
            fs::write(&path, &good).unwrap();
        }
    }
    repository.run(["check"]).expect_code(0);
}

#[test]
fn bytes_after_the_end_of_an_object_are_found() {
    let repository = rich_repository();
    let object = repository.objects().into_keys().find(|path| path.ends_with('P')).unwrap();
    let path = repository.storage().join(&object);
    let good = fs::read(&path).unwrap();
    fs::write(&path, [&good[..], b"more"].concat()).unwrap();
    let text = repository.run(["check"]).expect_code(4).stdout();
    assert!(text.starts_with(&format!("{object} (/")), "{text}");
    assert!(text.contains("expected bytes that hash to its name, found "), "{text}");
    fs::write(&path, good).unwrap();
}
