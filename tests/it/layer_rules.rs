//! The rules for layers, tested with the whole program: the published trees are those that the image defines.
//!
//! Each rule is checked in the root file system (`.flat`) and, where the result differs, in the single layer (`.layers`).

mod attributes;
pub mod generated;
mod order;
mod stacks;

use std::collections::BTreeMap;

use crate::strict::Entry;
use crate::support::{DeviceKind, NAME, TestImage, TestLayer, TestRepository, Tree, chain_path, flat_path, layer_path};

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const BLOCK_DEVICE: u32 = 0o060_000;
const FIFO: u32 = 0o010_000;
const TYPE: u32 = 0o170_000;

/// Attributes of a directory without an entry in any archive: owner root, mode 0755, time 1970.
const IMPLIED: (u32, (i64, u32)) = (DIRECTORY | 0o755, (0, 0));

/// Publishes an image and returns its final chain. Panics unless the root file system contains the same.
fn published(image: &TestImage) -> (TestRepository, Tree) {
    let repository = TestRepository::publish(image);
    let (chain, flat) = (repository.chain(image), repository.flat(image));
    for (path, entry) in chain.entries() {
        let is_root_or_added_to = entry.mode & TYPE == DIRECTORY;
        let same = flat.get(path);
        if is_root_or_added_to {
            assert_eq!((same.mode, same.mtime, same.uid), (entry.mode, entry.mtime, entry.uid));
        } else {
            assert_eq!(same, entry, "{}", path.escape_ascii());
        }
    }
    (repository, chain)
}

fn tree_of(image: &TestImage) -> Tree {
    published(image).1
}

fn is_whiteout(entry: &Entry) -> bool {
    entry.mode & TYPE == CHARACTER_DEVICE && entry.rdev == Some(0)
}

fn is_opaque(entry: &Entry) -> bool {
    let mark = |name: &str| entry.xattrs.get(name.as_bytes()).is_some_and(|value| value == b"y");
    assert_eq!(
        mark("trusted.overlay.opaque"),
        mark("user.overlay.opaque"),
        "mounts by root and in user namespaces read different attributes"
    );
    mark("user.overlay.opaque")
}

#[test]
fn whiteout_removes_entries_of_lower_layers() {
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "").file("d/b", "").file("d/c/e", "").symlink("l", "a"))
        .layer(|layer| layer.whiteout("a").whiteout("d/c").whiteout("l").file("d/.wh.b/", ""));
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "d"]);
    let layer = repository.layer(&image, 1);
    assert_eq!(layer.paths(), ["", "a", "d", "d/b", "d/c", "l"]);
    for path in ["a", "d/b", "d/c", "l"] {
        assert!(is_whiteout(layer.get(path)), "{path}");
    }
}

#[test]
fn whiteout_keeps_entries_of_its_own_layer_in_any_order() {
    let lower = |layer: TestLayer| layer.file("a", "lower").file("d/lower", "").file("e/lower", "").file("f", "lower");
    let image = TestImage::new().layer(lower).layer(|layer| {
        let before = layer.whiteout("a").file("a", "upper").whiteout("d").dir("d").file("d/upper", "");
        before.dir("e").file("e/upper", "").whiteout("e").file("f", "upper").whiteout("f")
    });
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "a", "d", "d/upper", "e", "e/upper", "f"]);
    assert_eq!((tree.text("a"), tree.text("f")), ("upper".to_owned(), "upper".to_owned()));
    let layer = repository.layer(&image, 1);
    assert_eq!(layer.paths(), tree.paths());
    assert!(is_opaque(layer.get("d")) && is_opaque(layer.get("e")) && !is_opaque(layer.get("")));
    assert!(!is_opaque(tree.get("d")), "only published layers have overlay attributes");
}

#[test]
fn opaque_marker_hides_lower_entries_and_keeps_those_of_its_own_layer() {
    let lower = |layer: TestLayer| layer.file("d/old", "").file("d/sub/old", "").file("e/old", "").file("both", "");
    let image = TestImage::new().layer(lower).layer(|layer| {
        let first = layer.opaque("d").dir("d").mode(0o700).file("d/new", "").file("d/sub/new", "");
        first.file("e/new", "").opaque("e").file("both/f", "").opaque("both")
    });
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "both", "both/f", "d", "d/new", "d/sub", "d/sub/new", "e", "e/new"]);
    assert_eq!(tree.get("d").mode, DIRECTORY | 0o700);
    let layer = repository.layer(&image, 1);
    assert!(is_opaque(layer.get("d")) && is_opaque(layer.get("e")) && layer.get("d/sub").xattrs.is_empty());
}

#[test]
fn opaque_root_hides_everything_below() {
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "").file("d/b", ""))
        .layer(|layer| layer.file(".wh..wh..opq", "").file("d/c", ""));
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "d", "d/c"]);
    let layer = repository.layer(&image, 1);
    assert!(
        is_whiteout(layer.get("a")) && is_opaque(layer.get("d")),
        "overlay mounts ignore an opaque attribute of the root, so that each entry needs a whiteout"
    );
}

#[test]
fn whiteouts_of_every_entry_equal_an_opaque_marker() {
    let lower = |layer: TestLayer| layer.dir("d").file("d/a", "").file("d/b", "");
    let image = TestImage::new().layer(lower).layer(|layer| layer.whiteout("d/a").whiteout("d/b").file("d/c", ""));
    assert_eq!(tree_of(&image).paths(), ["", "d", "d/c"]);
}

#[test]
fn whiteout_of_nothing_is_harmless() {
    let image = TestImage::new().layer(|layer| layer.file("a", "").whiteout("b").whiteout("no/where").opaque("never"));
    let (repository, tree) = published(&image);
    assert!(!tree.has("b") && !tree.has("no/where"));
    assert!(
        is_whiteout(repository.layer(&image, 0).get("b")),
        "another image may have the path in a layer below this one"
    );
}

#[test]
fn whiteout_may_be_a_hard_link() {
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "").file("tmp/key", ""))
        .layer(|layer| layer.hardlink("tmp/.wh.key", "a"));
    assert_eq!(tree_of(&image).paths(), ["", "a", "tmp"]);
}

#[test]
fn internal_files_of_aufs_are_not_whiteouts() {
    let image = TestImage::new().layer(|layer| layer.file("a", "")).layer(|layer| {
        layer.dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "").dir(".wh..wh.orph").file(".wh..wh.aufs", "")
    });
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "a"]);
    assert_eq!(repository.layer(&image, 1).paths(), [""]);
    assert_eq!(repository.losses(), BTreeMap::new());
}

#[test]
fn hard_links_in_one_directory_stay_one_inode() {
    let image = TestImage::new()
        .layer(|layer| layer.dir("d").file("d/a", "text").mode(0o640).owner(1, 2).hardlink("d/b", "d/a"));
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        let (a, b) = (tree.get("d/a"), tree.get("d/b"));
        assert_eq!(a, b);
        assert_eq!((a.linkcount, a.link_group.is_some(), a.mode, a.uid), (2, true, FILE | 0o640, 1));
    }
    assert_eq!(repository.losses(), BTreeMap::new());
}

#[test]
fn hard_links_across_directories_keep_their_content_and_are_losses() {
    let image = TestImage::new().layer(|layer| layer.file("a/x", "text").hardlink("b/y", "a/x"));
    let (repository, tree) = published(&image);
    let (a, b) = (tree.get("a/x"), tree.get("b/y"));
    assert_eq!((tree.text("b/y").as_str(), b.mode, b.mtime), ("text", a.mode, a.mtime));
    assert_eq!((a.linkcount, b.linkcount, &b.link_group), (1, 1, &None));
    assert_eq!(repository.losses()["link-across-folders"], (1, vec!["b/y".to_owned()]));
}

#[test]
fn hard_link_may_precede_its_target() {
    let image = TestImage::new().layer(|layer| layer.hardlink("b", "a").hardlink("c", "b").file("a", "text"));
    let tree = tree_of(&image);
    assert_eq!((tree.text("b").as_str(), tree.text("c").as_str(), tree.get("a").linkcount), ("text", "text", 3));
}

#[test]
fn hard_link_into_a_lower_layer_has_the_content_from_there() {
    let image = TestImage::new()
        .layer(|layer| layer.file("d/a", "lower").mode(0o4711).owner(7, 8))
        .layer(|layer| layer.file("between", ""))
        .layer(|layer| layer.hardlink("d/b", "d/a").hardlink("e/c", "/d/a"));
    let (repository, tree) = published(&image);
    let (a, b) = (tree.get("d/a"), tree.get("d/b"));
    assert_eq!((a, a.linkcount), (b, 2));
    assert_eq!((tree.text("e/c").as_str(), tree.get("e/c").mode), ("lower", FILE | 0o4711));
    let layer = repository.layer(&image, 2);
    assert_eq!(layer.paths(), ["", "d", "d/b", "e", "e/c"]);
    assert_eq!(layer.text("d/b"), "lower");
}

#[test]
fn hard_link_may_lead_to_an_entry_that_its_own_layer_hides_or_replaces() {
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "lower").file("r", "lower"))
        .layer(|layer| layer.hardlink("b", "a").whiteout("a").file("r", "upper").hardlink("s", "r"));
    let tree = tree_of(&image);
    assert_eq!((tree.paths(), tree.text("b")), (["", "b", "r", "s"].map(str::to_owned).to_vec(), "lower".to_owned()));
    assert_eq!((tree.text("s").as_str(), tree.get("r").linkcount), ("upper", 2));
}

#[test]
fn layer_with_links_into_other_parents_has_the_content_of_each_image() {
    let upper = |layer: TestLayer| layer.hardlink("link", "target");
    let image = |content: &str| TestImage::new().layer(|layer| layer.file("target", content)).layer(upper);
    let repository = TestRepository::publish(&image("first"));
    repository.convert(&image("second"), "h.example.org/second:1", &[]).expect_code(0);
    assert_eq!(repository.flat(&image("first")).text("link"), "first");
    assert_eq!(repository.flat(&image("second")).text("link"), "second");
    assert_eq!(repository.layer(&image("second"), 1).text("link"), "first", "a published layer never changes");
    let losses = repository.list(".metadata/h.example.org/second:1");
    assert!(losses.contains(&"losses.json".to_owned()), "the layer differs from the image: {losses:?}");
}

#[test]
fn directory_without_an_entry_keeps_the_attributes_of_lower_layers() {
    let image = TestImage::new()
        .layer(|layer| layer.dir("d").mode(0o1777).owner(3, 4).mtime(5, 6).xattr("user.a", "b"))
        .layer(|layer| layer.file("d/f", "").file("new/f", ""));
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 1)] {
        let directory = tree.get("d");
        assert_eq!((directory.mode, directory.uid, directory.gid, directory.mtime), (DIRECTORY | 0o1777, 3, 4, (5, 6)));
        assert_eq!(directory.xattrs.len(), 1);
        assert_eq!((tree.get("new").mode, tree.get("new").mtime), IMPLIED);
    }
}

#[test]
fn root_has_the_attributes_of_the_image() {
    let image = TestImage::new()
        .layer(|layer| layer.dir(".").mode(0o1750).owner(5, 6).mtime(7, 8))
        .layer(|layer| layer.file("a", ""));
    let (repository, tree) = published(&image);
    for tree in [tree, repository.flat(&image), repository.layer(&image, 1)] {
        let root = tree.get("");
        assert_eq!((root.mode, root.uid, root.gid, root.mtime), (DIRECTORY | 0o1750, 5, 6, (7, 8)));
    }
}

#[test]
fn path_through_a_link_of_a_lower_layer_follows_the_link() {
    let lower = |layer: TestLayer| {
        let layer = layer.dir("usr/lib").file("usr/lib/old", "").symlink("lib", "usr/lib");
        layer.symlink("abs", "/usr/lib").symlink("up", "../../../usr/lib").symlink("chain", "lib")
    };
    let image = TestImage::new().layer(lower).layer(|layer| {
        layer.file("lib/a", "").file("abs/b", "").file("up/c", "").file("chain/d", "").whiteout("lib/old")
    });
    let (repository, tree) = published(&image);
    assert_eq!(tree.target("lib"), "usr/lib");
    let below: Vec<String> = tree.paths().into_iter().filter(|path| path.starts_with("usr/lib/")).collect();
    assert_eq!(below, ["usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/lib/d"]);
    assert!(repository.layer(&image, 1).has("lib/a"), "a single layer is published literally");
}

#[test]
fn directory_entry_replaces_a_link() {
    let image = TestImage::new()
        .layer(|layer| layer.dir("real").file("real/old", "").symlink("l", "real"))
        .layer(|layer| layer.dir("l").mode(0o700).file("l/new", ""));
    let tree = tree_of(&image);
    assert_eq!(tree.paths(), ["", "l", "l/new", "real", "real/old"]);
    assert_eq!(tree.get("l").mode, DIRECTORY | 0o700);
}

#[test]
fn entry_of_another_type_replaces_the_lower_one() {
    type Put = fn(TestLayer) -> TestLayer;
    let kinds: [(&str, Put, u32); 6] = [
        ("file", |layer| layer.file("x", "new"), FILE),
        ("directory", |layer| layer.dir("x").file("x/new", ""), DIRECTORY),
        ("link", |layer| layer.symlink("x", "new"), 0o120_000),
        ("character device", |layer| layer.device("x", DeviceKind::Character, 1, 1), CHARACTER_DEVICE),
        ("block device", |layer| layer.device("x", DeviceKind::Block, 1, 1), BLOCK_DEVICE),
        ("pipe", |layer| layer.fifo("x"), FIFO),
    ];
    let repository = TestRepository::new();
    let mut images = Vec::new();
    for (below, put_below, _) in kinds {
        for (above, put_above, kind) in kinds {
            let name = format!("h.example.org/{}-{}:1", below.replace(' ', "-"), above.replace(' ', "-"));
            let image = TestImage::new().layer(|layer| put_below(layer).file("beside", "")).layer(put_above);
            images.push((name, image, kind));
        }
    }
    let named: Vec<(&str, &TestImage)> = images.iter().map(|(name, image, _)| (name.as_str(), image)).collect();
    repository.convert_together(&named, &[]).expect_code(0);
    for (name, image, kind) in &images {
        let tree = repository.chain(image);
        assert_eq!(tree.get("x").mode & TYPE, *kind, "{name}");
        assert_eq!(tree.has("x/new"), *kind == DIRECTORY, "{name}");
        assert!(tree.has("beside"));
    }
}

#[test]
fn directory_over_a_directory_changes_only_attributes() {
    let image = TestImage::new()
        .layer(|layer| layer.dir("d").mode(0o700).xattr("user.a", "b").file("d/kept", ""))
        .layer(|layer| layer.dir("d").mode(0o755).owner(1, 1));
    let tree = tree_of(&image);
    assert!(tree.has("d/kept"));
    assert_eq!((tree.get("d").mode, tree.get("d").uid, tree.get("d").xattrs.len()), (DIRECTORY | 0o755, 1, 0));
}

#[test]
fn last_of_several_entries_of_one_path_counts() {
    let image = TestImage::new().layer(|layer| {
        let layer = layer.file("f", "a long first content").file("f", "short").symlink("l", "one").symlink("l", "two");
        layer.file("t", "").dir("t").file("t/x", "").dir("u").file("u/x", "").file("u", "")
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        assert_eq!(tree.paths(), ["", "f", "l", "t", "t/x", "u"]);
        assert_eq!((tree.text("f"), tree.target("l")), ("short".to_owned(), "two".to_owned()));
    }
}

#[test]
fn spellings_of_a_path_mean_the_same() {
    let image = TestImage::new().layer(|layer| {
        layer.dir("./a").file("./a/one", "").file("/a/two", "").file("a//three", "").file("a/./four", "").dir(".")
    });
    assert_eq!(tree_of(&image).paths(), ["", "a", "a/four", "a/one", "a/three", "a/two"]);
}

#[test]
fn links_never_lead_out_of_the_image() {
    let image = TestImage::new()
        .layer(|layer| layer.symlink("out", "/../../etc").dir("etc").symlink("loop", "loop"))
        .layer(|layer| layer.file("out/passwd", "inside"));
    let tree = tree_of(&image);
    assert_eq!((tree.text("etc/passwd").as_str(), tree.target("out").as_str()), ("inside", "/../../etc"));
}

#[test]
fn payload_marker_makes_its_directory_a_catalog_and_stays_unchanged() {
    let image = TestImage::new().layer(|layer| {
        layer.file("d/.cvmfscatalog", "payload").mode(0o600).owner(1, 2).file("d/a", "").file(".cvmfscatalog", "root")
    });
    let (repository, tree) = published(&image);
    assert_eq!((tree.text("d/.cvmfscatalog").as_str(), tree.get("d/.cvmfscatalog").mode), ("payload", FILE | 0o600));
    assert_eq!((tree.text(".cvmfscatalog").as_str(), tree.get("d/.cvmfscatalog").uid), ("root", 1));
    let catalogs = repository.reader().catalog_hashes();
    for root in [flat_path(&image), chain_path(&image, 1), layer_path(&image, 0)] {
        assert!(catalogs.contains_key(&format!("/{root}")) && catalogs.contains_key(&format!("/{root}/d")));
    }
    assert_eq!(repository.losses(), BTreeMap::new());
}

#[test]
fn marker_that_is_not_a_file_is_a_loss() {
    let image =
        TestImage::new().layer(|layer| layer.dir("d/.cvmfscatalog").file("d/a", "").symlink("e/.cvmfscatalog", "x"));
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "d", "d/a", "e"]);
    let expected = ["d/.cvmfscatalog", "e/.cvmfscatalog"].map(str::to_owned).to_vec();
    assert_eq!(repository.losses()["stray-marker"], (2, expected));
}

#[test]
fn payload_marker_that_a_layer_hides_is_hidden_in_mounts_of_the_layers() {
    let lower = |layer: TestLayer| layer.file("d/.cvmfscatalog", "hey").file("d/x", "");
    let upper: [(&str, &dyn Fn(TestLayer) -> TestLayer); 4] = [
        ("", &|layer| layer.whiteout("d/.cvmfscatalog")),
        ("overlay-device", &|layer| layer.device("d/.cvmfscatalog", DeviceKind::Character, 0, 0)),
        ("stray-marker", &|layer| layer.symlink("d/.cvmfscatalog", "x")),
        ("stray-marker", &|layer| layer.file("d/.cvmfscatalog/y", "")),
    ];
    for (loss, upper) in upper {
        let image = TestImage::new().layer(lower).layer(upper);
        let (repository, tree) = published(&image);
        assert_eq!(tree.paths(), ["", "d", "d/x"], "{loss}");
        let layer = repository.layer(&image, 1);
        assert!(is_whiteout(layer.get("d/.cvmfscatalog")), "{loss}");
        let losses: Vec<String> = repository.losses().into_keys().collect();
        assert_eq!(losses, if loss.is_empty() { vec![] } else { vec![loss.to_owned()] });
        let catalogs = repository.reader().catalog_hashes();
        assert!(
            catalogs.contains_key(&format!("/{}/d", layer_path(&image, 1))),
            "the checker asks for a nested catalog"
        );
        repository.run(["check"]).expect_code(0);
        let source = repository.source(&image);
        repository.run(["verify", &source, "--name", NAME]).expect_code(0);
    }
}

#[test]
fn whiteout_of_a_marker_that_no_lower_layer_has_creates_no_catalog() {
    let image = TestImage::new()
        .layer(|layer| layer.file("d/x", ""))
        .layer(|layer| layer.whiteout("d/.cvmfscatalog").whiteout(".cvmfscatalog").file("d/y", ""));
    let (repository, _) = published(&image);
    assert_eq!(repository.layer(&image, 1).paths(), ["", "d", "d/y"]);
    assert!(!repository.reader().catalog_hashes().contains_key(&format!("/{}/d", layer_path(&image, 1))));
    assert_eq!(repository.losses(), BTreeMap::new());
}

#[test]
fn parent_directory_of_a_file_may_be_named_like_a_whiteout() {
    let image = TestImage::new().layer(|layer| layer.file("b", "b")).layer(|layer| layer.file("a/.wh.b/c", "c"));
    assert_eq!(tree_of(&image).paths(), ["", "a", "a/.wh.b", "a/.wh.b/c", "b"]);
}

#[test]
fn other_files_that_cvmfs_reads_are_ordinary_in_images() {
    let image = TestImage::new()
        .layer(|layer| layer.file(".cvmfsdirtab", "/*").file("d/.cvmfsautocatalog", "x").file("d/a", ""));
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", ".cvmfsdirtab", "d", "d/.cvmfsautocatalog", "d/a"]);
    assert!(!repository.reader().catalog_hashes().contains_key(&format!("/{}/d", flat_path(&image))));
}

#[test]
fn same_layer_may_occur_twice() {
    let one = |layer: TestLayer| layer.file("a", "1");
    let image = TestImage::new().layer(one).layer(|layer| layer.whiteout("a").file("b", "")).layer(one);
    let (_, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "a", "b"]);
}

#[test]
fn empty_layers_are_layers() {
    let image = TestImage::new().layer(|layer| layer).layer(|layer| layer.file("a", "")).layer(|layer| layer);
    let (repository, tree) = published(&image);
    assert_eq!(tree.paths(), ["", "a"]);
    assert_eq!(repository.layer(&image, 0).paths(), [""]);
}

#[test]
fn root_file_system_has_the_files_of_apptainer_and_keeps_those_of_the_image() {
    let image = TestImage::new()
        .layer(|layer| {
            layer.dir("tmp").mode(0o1777).file("etc/hosts", "own").symlink("etc/resolv.conf", "/run/resolv.conf")
        })
        .env("GREETING", "it's")
        .cmd(["echo"])
        .label("a", "b");
    let repository = TestRepository::publish(&image);
    let flat = repository.flat(&image);
    assert_eq!((flat.text("etc/hosts").as_str(), flat.text("etc/resolv.conf").as_str()), ("own", ""));
    assert_eq!((flat.get("tmp").mode, flat.get("dev").mode), (DIRECTORY | 0o1777, DIRECTORY | 0o755));
    assert_eq!(flat.target("singularity"), ".singularity.d/runscript");
    assert!(flat.text(".singularity.d/env/10-docker2singularity.sh").contains("GREETING"));
    assert_eq!(flat.get(".singularity.d/runscript").mode, FILE | 0o755);
    assert!(flat.text(".singularity.d/labels.json").contains("\"a\": \"b\""));
    assert!(!repository.chain(&image).has(".singularity.d"), "chains contain only what the image defines");
}
