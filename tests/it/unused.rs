//! `strata list --unused` lists the trees that no name leads to, and the time since when.

use std::collections::BTreeMap;

use serde_json::json;

use crate::support::{
    Foreign, NAME, Run, TestImage, TestRepository, chain_path, flat_path, layer_path, publish_foreign,
};

const OTHER: &str = "h.example.org/other:1";

fn image_of(word: &str) -> TestImage {
    TestImage::new().layer(|layer| layer.file("base", "shared")).layer(|layer| layer.file("word", word))
}

fn layer_directory(image: &TestImage, number: usize) -> String {
    layer_path(image, number).trim_end_matches("/layerfs").to_owned()
}

/// Returns the unused trees: the time since when each is unused, and the name that referred to it before.
fn unused(repository: &TestRepository) -> BTreeMap<String, (String, Option<String>)> {
    let list = repository.run(["list", "--unused", "--json"]).expect_code(0).json();
    let tree = |tree: &serde_json::Value| {
        let text = |key: &str| tree[key].as_str().map(str::to_owned);
        (text("path").unwrap().trim_start_matches('/').to_owned(), (text("since").unwrap(), text("left-by")))
    };
    list.as_array().unwrap().iter().map(tree).collect()
}

fn candidates(repository: &TestRepository) -> Vec<String> {
    let list = repository.json("/.metadata/candidates.json");
    list["trees"].as_object().unwrap().keys().cloned().collect()
}

fn sorted<const N: usize>(paths: [String; N]) -> Vec<String> {
    let mut paths = paths.to_vec();
    paths.sort();
    paths
}

#[test]
fn tree_that_another_image_uses_is_a_candidate_and_not_unused() {
    let (old, new, other) =
        (image_of("old"), TestImage::new().layer(|layer| layer.file("a", "new")), image_of("other"));
    let repository = TestRepository::publish(&old);
    repository.convert(&other, OTHER, &[]).expect_code(0);
    repository.convert(&new, NAME, &[]).expect_code(0);
    let shared = layer_directory(&old, 0);
    assert_eq!(shared, layer_directory(&other, 0));
    let own = [layer_directory(&old, 1), chain_path(&old, 2), flat_path(&old)];
    let [layer, chain, flat] = own.clone();
    assert_eq!(candidates(&repository), sorted([shared.clone(), layer, chain, flat]));
    let unused = unused(&repository);
    assert_eq!(unused.keys().cloned().collect::<Vec<_>>(), sorted(own));
    assert!(unused.values().all(|(since, by)| since.starts_with("20") && by.as_deref() == Some(NAME)), "{unused:?}");
    let text = repository.run(["list", "--unused"]).expect_code(0).stdout();
    assert!(!text.contains(&shared) && text.contains(&format!("/{}  since 20", flat_path(&old))), "{text}");
    assert!(text.contains(&format!("left by {NAME}")), "{text}");
    let about = repository.json("/.metadata/candidates.json")["about"].as_str().unwrap().to_owned();
    assert!(about.starts_with("Candidates for removal") && about.contains("strata list --unused"), "{about}");
}

#[test]
fn tree_is_unused_since_its_last_name_was_removed() {
    let (old, new) = (image_of("old"), image_of("new"));
    let repository = TestRepository::publish(&old);
    repository.convert(&old, OTHER, &[]).expect_code(0);
    let leave = |name: &str, epoch: &str| {
        let source = repository.source(&new);
        let mut command = repository.command(["convert", &source, "--name", name, "--accept-clock"]);
        Run::of(command.env("SOURCE_DATE_EPOCH", epoch)).expect_code(0);
    };
    leave(NAME, "2000000000");
    assert_eq!(unused(&repository), BTreeMap::new());
    leave(OTHER, "2000086400");
    let unused = unused(&repository);
    let expected = ("2033-05-19T03:33:20Z".to_owned(), Some(OTHER.to_owned()));
    assert_eq!(unused.get(&flat_path(&old)), Some(&expected), "{unused:?}");
}

#[test]
fn list_of_candidates_under_its_former_name_is_read_and_renamed_by_the_next_publication() {
    let (old, new) = (image_of("old"), image_of("new"));
    let repository = TestRepository::publish(&old);
    repository.convert(&new, NAME, &[]).expect_code(0);
    let (flat, chain) = (flat_path(&old), chain_path(&old, 2));
    let former = json!({&flat: {"since": 7, "by": "h.org/former:1"}}).to_string().into_bytes();
    publish_foreign(
        &repository,
        [
            (".metadata/unused.json".to_owned(), Foreign::File(former)),
            (".metadata/candidates.json".to_owned(), Foreign::Gone),
        ],
    );
    let former_entry = ("1970-01-01T00:00:07Z".to_owned(), Some("h.org/former:1".to_owned()));
    assert_eq!(unused(&repository)[&flat], former_entry);
    repository.convert(&image_of("third"), NAME, &[]).expect_code(0);
    assert!(!repository.has("/.metadata/unused.json"));
    let candidates = repository.json("/.metadata/candidates.json");
    assert_eq!(candidates["trees"][&flat], json!({"since": 7, "by": "h.org/former:1"}));
    assert!(candidates["trees"].get(&chain).is_none() && candidates["trees"].get(flat_path(&new)).is_some());
    assert_eq!(unused(&repository)[&flat], former_entry);
}

/// Removes all names of an image without noting candidates, as another program might.
fn orphan(repository: &TestRepository, name: &str) {
    publish_foreign(repository, [(format!(".metadata/{name}"), Foreign::Gone), (name.to_owned(), Foreign::Gone)]);
}

#[test]
fn tree_that_another_program_orphaned_is_unused_since_it_was_first_found() {
    let image = image_of("x");
    let repository = TestRepository::publish(&image);
    repository.convert(&image_of("other"), OTHER, &[]).expect_code(0);
    assert_eq!(unused(&repository), BTreeMap::new());
    orphan(&repository, NAME);
    let first = unused(&repository);
    let own = sorted([layer_directory(&image, 1), chain_path(&image, 2), flat_path(&image)]);
    assert_eq!(first.keys().cloned().collect::<Vec<_>>(), own);
    assert!(first.values().all(|(_, by)| by.is_none()));
    let database = rusqlite::Connection::open(repository.directory().join("state/state.db")).unwrap();
    assert_eq!(database.execute("UPDATE unused SET since = 86400", []).unwrap(), 3);
    drop(database);
    let later = unused(&repository);
    assert!(later.values().all(|(since, _)| since == "1970-01-02T00:00:00Z"), "{later:?}");
    let text = repository.run(["list", "--unused"]).expect_code(0).stdout();
    assert!(text.contains("since 1970-01-02T00:00:00Z, first found unused at that time"), "{text}");
    // The tree was in use and is unused again, so that its time starts anew.
    repository.convert(&image, NAME, &[]).expect_code(0);
    assert_eq!(unused(&repository), BTreeMap::new());
    orphan(&repository, NAME);
    assert!(unused(&repository).values().all(|(since, _)| since.starts_with("20")));
}

#[test]
fn trees_with_names_from_another_program_are_in_use() {
    let image = image_of("x");
    let repository = TestRepository::publish(&image);
    let manifest = json!({
        "Config": {"Digest": image.config_digest()},
        "Layers": image.layer_digests().iter().map(|digest| json!({"Digest": digest})).collect::<Vec<_>>(),
    });
    let link = |to: &str| Foreign::Link(format!("../{to}"));
    publish_foreign(
        &repository,
        [
            (format!(".metadata/{NAME}/strata.json"), Foreign::Gone),
            (format!(".metadata/{NAME}/manifest.json"), Foreign::File(manifest.to_string().into_bytes())),
        ],
    );
    // An image of another program has no chain of strata.
    assert_eq!(unused(&repository).into_keys().collect::<Vec<_>>(), [chain_path(&image, 2)]);
    orphan(&repository, NAME);
    publish_foreign(&repository, [("h.example.org/alone".to_owned(), link(&flat_path(&image)))]);
    assert!(!unused(&repository).contains_key(&flat_path(&image)), "a public link is a name");
    let absolute = format!("/cvmfs/unpacked.example.org/{}", chain_path(&image, 2));
    publish_foreign(&repository, [("h.example.org/alone".to_owned(), Foreign::Link(absolute))]);
    let unused = unused(&repository);
    assert!(unused.contains_key(&flat_path(&image)) && !unused.contains_key(&chain_path(&image, 2)), "{unused:?}");
}

#[test]
fn nothing_is_listed_as_unused_while_a_record_cannot_be_read() {
    let repository = TestRepository::publish(&image_of("x"));
    for (file, content) in [("strata.json", "{\"format\": 2}"), ("strata.json", "no JSON")] {
        publish_foreign(
            &repository,
            [(format!(".metadata/{NAME}/{file}"), Foreign::File(content.as_bytes().to_vec()))],
        );
        let run = repository.run(["list", "--unused"]);
        run.expect_one_line(1, &[&format!("/.metadata/{NAME}"), "cannot determine unused trees"]);
    }
    publish_foreign(
        &repository,
        [
            (format!(".metadata/{NAME}/strata.json"), Foreign::Gone),
            (format!(".metadata/{NAME}/manifest.json"), Foreign::File(b"no JSON".to_vec())),
        ],
    );
    repository.run(["list", "--unused"]).expect_one_line(1, &[NAME]);
}
