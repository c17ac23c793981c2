use super::*;

fn image_with(content: &str, layers: usize) -> StoreImage {
    let diff_ids: Vec<Digest> = (0..layers).map(|number| Digest::of(format!("{number}").as_bytes())).collect();
    let config = json!({"created": "2017-07-14T02:40:00Z", "author": content, "rootfs": {"diff_ids": diff_ids}});
    image_of(&config.to_string(), "")
}

fn image_of(config: &str, space: &str) -> StoreImage {
    let manifest = json!({
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(config.as_bytes())},
    });
    StoreImage::new(format!("{manifest}{space}").as_bytes(), config.as_bytes(), 77).unwrap()
}

fn written(store: &PodmanStore) -> (String, String) {
    let text = |bytes: Option<Vec<u8>>| bytes.map_or_else(String::new, |bytes| String::from_utf8(bytes).unwrap());
    (text(store.write_images()), text(store.write_layers()))
}

/// Parses written lists as if another program had written them, and expects no flaws.
#[track_caller]
fn reread(store: &PodmanStore) -> PodmanStore {
    let (images, layers) = written(store);
    let (store, flaws) = PodmanStore::parse(images.as_bytes(), layers.as_bytes(), false);
    assert_eq!(flaws, []);
    store
}

fn hex(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()
}

/// Parses entries of another program with one layer each.
fn foreign(images: &[Value]) -> (PodmanStore, Vec<Flaw>) {
    let layers = json!([{"id": hex("l"), "diff-digest": Digest::of(b"l")}]);
    PodmanStore::parse(json!(images).to_string().as_bytes(), layers.to_string().as_bytes(), false)
}

fn names(store: &PodmanStore) -> Vec<Vec<&str>> {
    store.entries().map(|entry| entry.names.iter().map(String::as_str).collect()).collect()
}

#[test]
fn lists_of_one_image_are_those_that_were_tested_with_podman() {
    let config = r#"{"rootfs":{"diff_ids":["sha256:0","sha256:1"]},"created":"2023-05-02T00:00:00Z"}"#;
    let image = image_of(config, "");
    let (cfg, man) = (hex(config), image.manifest.unwrap());
    let mut store = PodmanStore::default();
    store.put(&image, Some("h.org/a:1"));
    let (images, layers) = written(&store);
    let d1 = hex("cvmfs-flat-layer:1");
    let d2 = hex(&format!("cvmfs-flat-layer:{cfg}"));
    let l2 = hex(&format!("{d1}+{d2}"));
    assert_eq!(
        images,
        format!(
            "[{{\"id\":\"{cfg}\",\"digest\":\"{man}\",\"names\":[\"h.org/a:1\"],\"layer\":\"{l2}\",\"metadata\":\"{{}}\",\
             \"big-data-digests\":{{\"manifest\":\"{man}\",\"manifest-{man}\":\"{man}\",\"sha256:{cfg}\":\"sha256:{cfg}\"}},\
             \"created\":\"2023-05-02T00:00:00Z\"}}]"
        )
    );
    assert_eq!(
        layers,
        format!(
            "[{{\"id\":\"{d1}\",\"created\":\"1970-01-01T00:00:00Z\",\"diff-digest\":\"sha256:{d1}\",\"diff-size\":0}},\
             {{\"id\":\"{l2}\",\"parent\":\"{d1}\",\"created\":\"2023-05-02T00:00:00Z\",\
             \"diff-digest\":\"sha256:{d2}\",\"diff-size\":77}}]"
        )
    );
}

#[test]
fn all_names_of_an_image_are_in_one_entry() {
    let (one, other) = (image_with("one", 3), image_with("other", 1));
    let mut store = PodmanStore::default();
    store.put(&one, Some("h.org/a:1"));
    store.put(&other, Some("h.org/b:1"));
    store.put(&one, Some("h.org/a:2"));
    store.put(&one, Some("h.org/a:2"));
    let store = reread(&store);
    assert_eq!(names(&store), [vec!["h.org/a:1", "h.org/a:2"], vec!["h.org/b:1"]]);
    assert_eq!(store.layers_below(one.top()).unwrap().len(), 3);
    assert_eq!(store.named("h.org/a:2").unwrap().config, one.config);
}

#[test]
fn image_whose_name_moved_is_found_by_its_id() {
    let (old, new) = (image_with("old", 2), image_with("new", 2));
    let mut store = PodmanStore::default();
    store.put(&old, Some("h.org/a:1"));
    store.put(&new, Some("h.org/a:1"));
    let mut store = reread(&store);
    assert_eq!(names(&store), [vec![], vec!["h.org/a:1"]]);
    assert!(store.layers_below(old.top()).is_ok());
    store.put(&old, Some("h.org/a:1"));
    store.remove_name("h.org/b:1");
    let mut store = reread(&store);
    assert_eq!(names(&store), [vec!["h.org/a:1"], vec![]]);
    store.remove_name("h.org/a:1");
    assert_eq!(names(&reread(&store)), [Vec::<&str>::new(), vec![]]);
}

#[test]
fn unchanged_lists_are_not_written() {
    let image = image_with("a", 2);
    let mut store = PodmanStore::default();
    store.put(&image, Some("h.org/a:1"));
    let (images, layers) = written(&store);
    let (mut store, _) = PodmanStore::parse(images.as_bytes(), layers.as_bytes(), true);
    store.put(&image, Some("h.org/a:1"));
    store.remove_name("h.org/b:1");
    assert_eq!(written(&store), Default::default());
    store.mark_changed();
    assert_eq!(written(&store), (images, layers));
}

#[test]
fn image_with_two_manifests_is_found_by_both() {
    let config = r#"{"rootfs":{"diff_ids":["sha256:0"]}}"#;
    let (one, other) = (image_of(config, ""), image_of(config, " "));
    assert_ne!(one.manifest, other.manifest);
    let mut store = PodmanStore::default();
    store.put(&one, Some("h.org/a:1"));
    store.put(&other, Some("h.org/b:1"));
    let (images, _) = written(&store);
    let store = reread(&store);
    let entry = store.entry(one.config).unwrap();
    assert!(entry.has_manifest(one.manifest.unwrap()) && entry.has_manifest(other.manifest.unwrap()));
    assert_eq!(entry.digest, one.manifest.map(|digest| digest.to_string()));
    let entry: Value = serde_json::from_str::<Value>(&images).unwrap()[0].clone();
    let key = manifest_key(other.manifest.unwrap());
    assert_eq!(entry["big-data-digests"].as_object().unwrap().len(), 4);
    assert_eq!(entry["big-data-digests"][&key], json!(other.manifest));
}

#[test]
fn removing_an_image_removes_its_own_layer() {
    let (one, other) = (image_with("one", 2), image_with("other", 3));
    let mut store = PodmanStore::default();
    store.put(&one, Some("h.org/a:1"));
    store.put(&other, Some("h.org/b:1"));
    let layer = store.own_layer(store.entry(one.config).unwrap());
    assert_eq!(layer, Some(one.top()));
    store.remove(one.config, layer);
    assert_eq!(store.len(), 1);
    let store = reread(&store);
    assert!(store.layers_below(one.top()).is_err() && store.layers_below(other.top()).is_ok());
    assert_eq!(names(&store), [["h.org/b:1"]]);
}

#[test]
fn unknown_members_keep_their_exact_text() {
    let entry = format!(
        "{{\"id\":\"{}\",\"x-odd\":{{\"b\":1.0e2,\"a\":[ ]}},\"names\":[\"h.org/a:1\"],\"layer\":\"{}\"}}",
        hex("i"),
        hex("l")
    );
    let layers = format!("[{{\"id\":\"{}\",\"diff-digest\":\"sha256:{}\",\"x\":7.0}}]", hex("l"), hex("l"));
    let (mut store, flaws) = PodmanStore::parse(format!("[{entry}]").as_bytes(), layers.as_bytes(), true);
    assert_eq!(flaws, []);
    store.put(&image_with("new", 1), Some("h.org/a:1"));
    let (images, rows) = written(&store);
    let expected = entry.replace("\"names\":[\"h.org/a:1\"]", "\"names\":[]");
    assert!(images.starts_with(&format!("[{expected},{{")), "{images}");
    assert!(rows.starts_with(&layers[..layers.len() - 1]), "{rows}");
}

#[test]
fn names_that_podman_refuses_are_removed() {
    let digest = Digest::of(b"m");
    let entry = |id: &str, names: &[&str]| json!({"id": hex(id), "layer": hex("l"), "names": names});
    let (store, flaws) = foreign(&[
        entry("1", &["h.org/a:1", &format!("h.org/a:{digest}"), "h.org/A:1", "h.org/b:1"]),
        entry("2", &["h.org/b:1", "h.org/b:1"]),
    ]);
    let by_digest = format!("h.org/a@{digest}");
    assert_eq!(names(&store), [vec!["h.org/a:1", &by_digest], vec!["h.org/b:1"]]);
    assert_eq!(flaws.len(), 3, "{flaws:?}");
    assert_eq!(names(&reread(&store)), names(&store));
}

#[test]
fn entries_of_one_image_are_merged() {
    let entry = |names: &[&str]| json!({"id": hex("1"), "layer": hex("l"), "names": names});
    let (store, flaws) = foreign(&[entry(&["h.org/a:1"]), entry(&["h.org/b:1", "h.org/a:1"])]);
    assert_eq!((names(&store), flaws), (vec![vec!["h.org/a:1", "h.org/b:1"]], vec![]));
    let (images, _) = written(&store);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&images).unwrap().len(), 1);
}

#[test]
fn entries_that_podman_cannot_read_are_removed_and_others_are_kept() {
    let good = json!({"id": hex("1"), "layer": hex("l"), "names": ["h.org/a:1"], "flags": {"x": 1}, "created": null});
    for bad in [
        json!(null),
        json!("x"),
        json!({}),
        json!({"id": "x"}),
        json!({"id": hex("2"), "metadata": 5}),
        json!({"id": hex("2"), "names": ["h.org/b:1", 5]}),
        json!({"id": hex("2"), "created": "yesterday"}),
        json!({"id": hex("2"), "big-data-sizes": {"a": "x"}}),
        json!({"id": hex("2"), "big-data-names": 5}),
    ] {
        let (store, flaws) = foreign(&[bad.clone(), good.clone()]);
        assert_eq!((names(&store), flaws.len()), (vec![vec!["h.org/a:1"]], 1), "{bad}");
        reread(&store);
    }
    let (store, flaws) = foreign(&[json!({"id": hex("2"), "layer": hex("l"), "digest": "x"})]);
    assert_eq!((store.entries().next().unwrap().digest.as_deref(), flaws.len()), (None, 1));
    assert!(!written(&store).0.contains("digest"));
}

#[test]
fn list_that_is_not_json_counts_as_empty_as_in_podman() {
    for wrong in ["[", "{}", "[{}", "x"] {
        let (mut store, flaws) = PodmanStore::parse(wrong.as_bytes(), wrong.as_bytes(), false);
        assert_eq!((store.len(), flaws.len()), (0, 2), "{wrong}");
        store.put(&image_with("a", 2), Some("h.org/a:1"));
        assert_eq!(reread(&store).len(), 1);
    }
    let (store, flaws) = PodmanStore::parse(b"", b"null", false);
    assert!(store.is_empty() && flaws.is_empty());
}

#[test]
fn repeated_rows_are_merged_and_missing_layers_are_reported() {
    let row = |id: &str, parent: Option<&str>| json!({"id": hex(id), "parent": parent.map(hex), "diff-digest": Digest::of(id.as_bytes())});
    let bare = json!({"id": hex("bare")});
    let rows = json!([
        row("a", None),
        row("b", Some("a")),
        row("a", None),
        row("c", Some("missing")),
        row("d", Some("e")),
        row("e", Some("d")),
        bare,
        row("f", Some("bare")),
        5,
    ]);
    let (store, flaws) = PodmanStore::parse(b"[]", rows.to_string().as_bytes(), false);
    assert_eq!(flaws.len(), 1, "{flaws:?}");
    let below = |id: &str| store.layers_below(Digest::of(id.as_bytes()));
    assert_eq!(below("b").unwrap(), [Digest::of(b"b"), Digest::of(b"a")]);
    for (id, fault) in [("c", "no layer"), ("d", "below itself"), ("f", "without a digest"), ("none", "no layer")] {
        assert!(below(id).unwrap_err().contains(fault), "{id}");
    }
    let (_, layers) = written(&store);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&layers).unwrap().len(), 7);
}

#[test]
fn replaced_entry_keeps_its_names_and_its_position_in_the_list() {
    let (one, other) = (image_with("one", 2), image_with("other", 1));
    let broken = json!([
        {"id": one.config.hex(), "names": ["h.org/a:1"], "layer": ""},
        {"id": other.config.hex(), "names": ["h.org/b:1"], "layer": hex("l")},
    ]);
    let (mut store, _) = PodmanStore::parse(broken.to_string().as_bytes(), b"[]", false);
    assert_eq!(store.entry(one.config).unwrap().layer, None);
    store.replace(&one);
    store.replace(&other);
    let store = reread(&store);
    assert_eq!(names(&store), [["h.org/a:1"], ["h.org/b:1"]]);
    assert_eq!(store.layers_below(one.top()).unwrap().len(), 2);
    assert_eq!(store.entry(other.config).unwrap().layer, Some(other.top()));
}
