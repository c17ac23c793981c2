//! `strata diff` lists each path that differs, or would differ after a conversion, and the cost.

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
fn added_and_changed_paths_are_listed_with_their_bytes() {
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
    // The first revision no longer has a tag, but its root catalog still exists.
    repository.run(["diff", "1", "2"]).expect_code(4);
    repository.run(["diff", "head", "3"]).expect_code(0);
    let unknown = repository.run(["diff", "9", "head"]).expect_code(1);
    assert!(unknown.stderr().contains("has no revision 9"), "{}", unknown.stderr());
    let unknown = repository.run(["diff", "no-tag", "head"]).expect_code(1);
    assert!(unknown.stderr().contains("'no-tag'"), "{}", unknown.stderr());
}

#[test]
fn reverse_diff_lists_added_paths_as_removed() {
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

#[test]
fn image_is_compared_with_its_tag_and_nothing_is_written() {
    let (repository, [old, new]) = two_revisions();
    let before = repository.storage_files();
    let source = repository.source(&old);
    let json = repository.run(["diff", &source, "--name", NAME, "--json"]).expect_code(4).json();
    let attributes = |path: &str| change(&json, path).unwrap_or_else(|| panic!("no {path} in {json}"));
    assert_eq!(attributes("changed")["attributes"], serde_json::json!(["mode", "content"]));
    assert_eq!(attributes("come")["change"], "removed");
    assert_eq!(
        (attributes("gone")["change"].as_str(), attributes("gone")["entries"].as_u64()),
        (Some("added"), Some(3))
    );
    assert_eq!(attributes("changed")["layer"], old.layer_digests()[0]);
    assert!(attributes("come")["layer"].is_null(), "no layer of the old image has the path");
    assert!(change(&json, "same").is_none() && change(&json, ".cvmfscatalog").is_none(), "{json}");
    let published = repository.run(["diff", &repository.source(&new), "--name", NAME]).expect_code(0);
    assert!(published.stdout().contains("nothing would change"), "{}", published.stdout());
    repository.assert_unchanged(&before);
}

#[test]
fn predicted_cost_of_a_new_image_equals_the_actual_cost() {
    let base = TestImage::new().layer(|layer| layer.file("a", vec![1; 50_000]).file("b", "b"));
    let image = base.clone().layer(|layer| layer.file("c", "new").file("d", "b"));
    let repository = TestRepository::publish(&base);
    let before = repository.storage_files();
    let source = repository.source(&image);
    let name = "other.example.org/x:1";
    let json = repository.run(["diff", &source, "--name", name, "--json"]).expect_code(4).json();
    repository.assert_unchanged(&before);
    assert_eq!(json["is-published"], false);
    let layers = json["layers"].as_array().unwrap();
    assert_eq!((&layers[0]["is-published"], &layers[1]["is-published"]), (&true.into(), &false.into()));
    assert_eq!(layers[1]["new-objects"], 1, "'b' is there: {json}");
    let objects = repository.objects();
    let done = repository.convert(&image, name, &["--json"]).expect_code(0).json();
    let new: Vec<String> = repository.objects().into_keys().filter(|path| !objects.contains_key(path)).collect();
    assert_eq!(done["new-objects"], new.len());
    // Every revision has a new tag database, and the image's record contains the time of publication.
    let catalogs = new.iter().filter(|path| path.ends_with('C')).count();
    assert_eq!(json["catalogs"], catalogs, "{json}");
    assert_eq!(json["stored"]["objects"], new.len() - 1, "{json}");
    assert_eq!(change(&json, "c").unwrap()["layer"], image.layer_digests()[1]);
    assert_eq!(change(&json, "b").unwrap()["layer"], image.layer_digests()[0]);
    let top = json["folders"].as_array().unwrap().iter().find(|directory| directory["path"] == "c").unwrap();
    assert_eq!((&top["added"], &top["bytes"]), (&1.into(), &3.into()));
}

#[test]
fn temporary_directory_of_a_killed_run_is_deleted_by_the_next() {
    let (repository, [old, _]) = two_revisions();
    let temporary = repository.beside("temporary");
    std::fs::create_dir_all(temporary.join("strata-diff-dead/storage")).unwrap();
    let source = repository.source(&old);
    let mut command = repository.command(["diff", &source, "--name", NAME]);
    crate::support::Run::of(command.env("TMPDIR", &temporary)).expect_code(4);
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn argument_that_is_not_an_image_is_wrong_usage() {
    let (repository, _) = two_revisions();
    let run = repository.run(["diff", "nonsense"]).expect_code(2);
    assert_eq!(run.stderr().lines().count(), 1, "{}", run.stderr());
    let missing = repository.run(["diff", "oci:/no/such/directory", "--name", NAME]).expect_code(1);
    assert!(missing.stderr().contains("/no/such/directory"), "{}", missing.stderr());
}
