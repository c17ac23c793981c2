//! `check PATH` checks one path or one image, and the catalogs on the way to it.

use super::Taken;
use crate::support::{NAME, TestImage, TestRepository, flat_path};

fn content_object(repository: &TestRepository, path: &str) -> std::path::PathBuf {
    // Only this file's object is used by no other path: the absence of any other object would also affect other paths.
    let content = repository.reader().read(path);
    let is_it = |bytes: &[u8]| {
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::ZlibDecoder::new(bytes), &mut plain).is_ok() && plain == content
    };
    let objects = repository.objects().into_keys().map(|object| repository.storage().join(object));
    objects.into_iter().find(|object| is_it(&std::fs::read(object).unwrap())).expect("the file has an object")
}

#[test]
fn only_the_path_and_everything_below_is_checked() {
    let image = |text: &str| {
        TestImage::new()
            .layer(|layer| layer.dir("a").file("a/f", format!("one {text}")).file("g", format!("two {text}")))
    };
    let (this, other) = (image("this"), image("other"));
    let repository = TestRepository::publish(&this);
    repository.convert(&other, "h.example.org/other:1", &[]).expect_code(0);
    let flat = flat_path(&this);
    let taken = Taken::take(content_object(&repository, &format!("{flat}/a/f")));
    let code = |path: &str, code| drop(repository.run(["check", path]).expect_code(code));
    code(NAME, 4);
    code("h.example.org/other:1", 0);
    code(&flat, 4);
    code(&format!("{flat}/a"), 4);
    code(&format!("/{flat}/a/f"), 4);
    code(&format!("{flat}/g"), 0);
    code(&format!("{NAME}/g"), 0);
    drop(taken);
    let json = repository.run(["check", "--json", NAME]).expect_code(0).json();
    assert!(json["unreferenced"].is_null());
    let everything = repository.run(["check", "--json"]).expect_code(0).json();
    assert!(json["catalogs"].as_u64() < everything["catalogs"].as_u64(), "{json} {everything}");
}

#[test]
fn missing_path_is_an_error() {
    let repository = TestRepository::new();
    let run = repository.run(["check", "h.example.org/none:1"]).expect_code(1);
    assert!(run.stderr().contains("h.example.org/none:1"), "{run:?}");
    repository.run(["check", "/none"]).expect_code(1);
    repository.run(["check", "/"]).expect_code(0);
}

#[test]
fn damaged_catalog_on_the_way_is_a_finding() {
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("f", "x")));
    let root = repository.reader().field('C').unwrap().to_owned();
    let file = format!("data/{}/{}C", &root[..2], &root[2..]);
    let taken = Taken::take(repository.storage().join(&file));
    let json = repository.run(["check", "--json", NAME]).expect_code(4).json();
    assert!(super::has_finding(&json, &file, "/"), "{json}");
    drop(taken);
}
