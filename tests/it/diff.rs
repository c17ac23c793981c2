//! `strata diff REV REV` says what became of every path, and what it costs.

use serde_json::Value;

use crate::support::{NAME, TestImage, TestRepository, flat_path};

fn two_revisions() -> (TestRepository, [TestImage; 2]) {
    let base = |layer: crate::support::TestLayer| layer.file("same", "the same").file("changed", "old");
    let old = TestImage::new().layer(|layer| base(layer).file("gone/a", "x").file("gone/b", "y"));
    let new = TestImage::new().layer(|layer| base(layer).file("changed", "new").mode(0o600).file("come", "same"));
    let repository = TestRepository::publish(&old);
    repository.convert(&new, NAME, &[]).expect_code(0);
    (repository, [old, new])
}

fn change<'v>(json: &'v Value, path: &str) -> Option<&'v Value> {
    json["changes"].as_array().unwrap().iter().find(|change| change["path"] == path)
}

#[test]
fn what_was_added_and_changed_is_named_with_its_bytes() {
    let (repository, [_, new]) = two_revisions();
    let json = repository.run(["diff", "2", "3", "--json"]).expect_code(4).json();
    assert_eq!((json["from"].as_u64(), json["to"].as_u64()), (Some(2), Some(3)));
    let flat = flat_path(&new);
    let top = flat.rsplit_once('/').unwrap().0;
    let added = change(&json, &flat).or_else(|| change(&json, top)).expect("the new tree is named");
    assert_eq!(added["change"], "added");
    assert!(added["entries"].as_u64().unwrap() > 5);
    assert_eq!(change(&json, NAME).unwrap()["attributes"][0], "time");
    let [new, shared] = ["new", "shared"].map(|which| json[which]["objects"].as_u64().unwrap());
    assert!(new > 0 && shared > 0, "{json}");
}

#[test]
fn revisions_are_named_by_number_tag_and_head() {
    let (repository, _) = two_revisions();
    let expected = repository.run(["diff", "2", "3"]).expect_code(4).stdout();
    for [from, to] in [["trunk-previous", "trunk"], ["2", "head"], ["trunk-previous", "3"]] {
        assert_eq!(repository.run(["diff", from, to]).expect_code(4).stdout(), expected, "{from} {to}");
    }
    // The first revision has no tag any more, but its catalog is still there.
    repository.run(["diff", "1", "2"]).expect_code(4);
    repository.run(["diff", "head", "3"]).expect_code(0);
    let unknown = repository.run(["diff", "9", "head"]).expect_code(1);
    assert!(unknown.stderr().contains("keeps no revision 9"), "{}", unknown.stderr());
    let unknown = repository.run(["diff", "no-tag", "head"]).expect_code(1);
    assert!(unknown.stderr().contains("'no-tag'"), "{}", unknown.stderr());
}

#[test]
fn the_other_way_round_added_is_removed() {
    let (repository, _) = two_revisions();
    let forth = repository.run(["diff", "2", "3"]).expect_code(4).stdout();
    let back = repository.run(["diff", "3", "2"]).expect_code(4).stdout();
    let lines = |text: &str, word: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.strip_prefix(word)?.trim().to_owned())).collect()
    };
    assert!(!lines(&forth, "added ").is_empty());
    assert_eq!(lines(&forth, "added "), lines(&back, "removed "));
    assert_eq!(lines(&forth, "removed "), lines(&back, "added "));
}
