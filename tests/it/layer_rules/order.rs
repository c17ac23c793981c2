//! Rules that depend on the order of the archive, entries that cannot be published, and differences between `.layers` and `.flat`.

use tar::{EntryType, Header};

use super::{CHARACTER_DEVICE, TYPE, is_opaque, is_whiteout, published};
use crate::support::{DeviceKind, TestImage, TestLayer, TestRepository, losses_of};

/// Publishes an image, verifies it, and returns the final chain with the repository.
fn proved(image: &TestImage) -> (TestRepository, crate::support::Tree) {
    let (repository, tree) = published(image);
    let name = ["verify", &repository.source(image), "--name", crate::support::NAME];
    repository.run(name).expect_code(0);
    (repository, tree)
}

fn paths_of(tree: &crate::support::Tree) -> Vec<String> {
    tree.paths()
}

fn header(kind: EntryType, path: &str, target: &str) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    header
}

#[test]
fn hard_link_has_the_content_that_its_target_had_at_that_point() {
    let image =
        TestImage::new().layer(|layer| layer.file("a", "v1")).layer(|layer| layer.hardlink("b", "a").file("a", "v2"));
    let (repository, tree) = proved(&image);
    assert_eq!([tree.text("a"), tree.text("b")], ["v2", "v1"]);
    assert_eq!(repository.layer(&image, 1).text("b"), "v1");
    let in_one = |fill: fn(TestLayer) -> TestLayer| proved(&TestImage::new().layer(fill)).1;
    let tree = in_one(|layer| layer.file("a", "v1").hardlink("b", "a").file("a", "v2"));
    assert_eq!([tree.text("a"), tree.text("b")], ["v2", "v1"]);
    let tree = in_one(|layer| layer.file("lib/a", "v").hardlink("usr/a", "lib/a").symlink("lib/a", "../usr/a"));
    assert_eq!([tree.text("usr/a"), tree.target("lib/a")], ["v", "../usr/a"]);
    let tree = in_one(|layer| layer.file("a", "v").hardlink("b", "a").dir("a"));
    assert_eq!(tree.text("b"), "v");
    let tree = in_one(|layer| layer.hardlink("b", "a").file("a", "v1").file("a", "v2"));
    assert_eq!([tree.text("a"), tree.text("b")], ["v2", "v1"]);
}

#[test]
fn hard_link_has_what_lower_layers_had_before_whiteouts() {
    let image = TestImage::new()
        .layer(|layer| layer.file("a", "v1").file("d/a", "d1"))
        .layer(|layer| layer.whiteout("a").hardlink("b", "a").file("a", "v2").opaque("d").hardlink("c", "d/a"));
    let (_, tree) = proved(&image);
    assert_eq!([tree.text("a"), tree.text("b"), tree.text("c")], ["v2", "v1", "d1"]);
    assert!(!tree.has("d/a"));
}

#[test]
fn layer_whose_link_targets_were_replaced_is_the_same_when_it_is_converted_again() {
    let lower = |layer: TestLayer| layer.file("a", "v1").file("s/x", "x");
    let upper = |layer: TestLayer| layer.hardlink("b", "a").file("a", "v2").dir("s/y").whiteout("s/x");
    let image = TestImage::new().layer(lower).layer(upper);
    let repository = TestRepository::new();
    repository.convert(&image, "h.example.org/one:1", &["--skip-flat", "--chains", "none"]).expect_code(0);
    repository.convert(&image, "h.example.org/one:2", &[]).expect_code(0);
    let tree = repository.chain(&image);
    assert_eq!([tree.text("a"), tree.text("b")], ["v2", "v1"]);
    assert!(!tree.has("s/x") && tree.has("s/y"));
}

#[test]
fn entry_that_cannot_be_published_hides_the_lower_entry() {
    let socket = || header(EntryType::new(b'?'), "p/socket", "");
    let image = TestImage::new()
        .layer(|layer| {
            layer.file("p/gone", "lower").file("p/socket", "lower").file("p/dir/f", "lower").file("p/kept", "")
        })
        .layer(|layer| {
            layer
                .file("p/gone", "own")
                .device("p/gone", DeviceKind::Character, 0, 0)
                .raw_entry(socket(), "")
                .device("p/dir", DeviceKind::Character, 0, 0)
                .raw_entry(header(EntryType::Link, "p/link", "p/socket"), "")
        });
    let (repository, tree) = proved(&image);
    assert_eq!(paths_of(&tree), ["", "p", "p/kept"]);
    let layer = repository.layer(&image, 1);
    for hidden in ["p/gone", "p/socket", "p/dir"] {
        assert!(is_whiteout(layer.get(hidden)), "{hidden}");
    }
    let losses = repository.losses();
    let at = |paths: [&str; 2]| (2, paths.map(str::to_owned).to_vec());
    assert_eq!(losses["overlay-device"], at(["p/gone", "p/dir"]));
    assert_eq!(losses["unknown-type"], at(["p/socket", "p/link"]));
}

#[test]
fn replaced_entries_do_not_reappear_below_a_directory_of_the_same_layer() {
    let image = TestImage::new()
        .layer(|layer| layer.file("d/old", ""))
        .layer(|layer| layer.file("d", "file").dir("d").file("d/new", ""));
    let (repository, tree) = proved(&image);
    assert_eq!(paths_of(&tree), ["", "d", "d/new"]);
    assert!(is_opaque(repository.layer(&image, 1).get("d")));
}

#[test]
fn whiteouts_in_directories_that_no_lower_layer_has_publish_nothing() {
    let image = TestImage::new()
        .layer(|layer| layer.file("root/dirA/dirB/f", ""))
        .layer(|layer| layer.whiteout("root/dirA"))
        .layer(|layer| {
            layer.whiteout("root/dirA/dirB/f").dir("root").dir("root/dirA").file("root/dirA/g", "").opaque("root/none")
        });
    let (repository, tree) = proved(&image);
    assert_eq!(paths_of(&tree), ["", "root", "root/dirA", "root/dirA/g"]);
    assert_eq!(paths_of(&repository.layer(&image, 2)), ["", "root", "root/dirA", "root/dirA/g"]);
}

#[test]
fn masked_link_is_a_loss_with_an_explanation() {
    let image = TestImage::new()
        .layer(|layer| layer.dir("usr/lib").file("usr/lib/loader", "").symlink("lib", "usr/lib"))
        .layer(|layer| layer.file("lib/new", ""));
    let repository = TestRepository::new();
    let run = repository.convert(&image, crate::support::NAME, &[]).expect_code(0);
    assert!(
        run.stdout().contains("1 x masked-link") && run.stdout().contains("programs that need"),
        "{}",
        run.stdout()
    );
    assert_eq!(repository.losses(), [("masked-link".to_owned(), (1, vec!["lib".to_owned()]))].into());
    let flat = repository.chain(&image);
    assert_eq!(flat.target("lib"), "usr/lib");
    assert!(flat.has("usr/lib/new"));
    assert_eq!(paths_of(&repository.layer(&image, 1)), ["", "lib", "lib/new"]);
    repository.run(["verify", &repository.source(&image), "--name", crate::support::NAME]).expect_code(0);
    repository.convert(&image, "h.example.org/strict:1", &["--strict", "--force"]).expect_code(1);
    // Without published layers no link is masked.
    let run = TestRepository::new().convert(&image, crate::support::NAME, &["--skip-layers", "--strict", "--json"]);
    assert_eq!(losses_of(&run.expect_code(0).json()["images"][0]["losses"]), [].into());
}

#[test]
fn masked_link_stays_listed_when_the_image_is_converted_again() {
    let image = TestImage::new()
        .layer(|layer| layer.dir("usr/lib").symlink("lib", "usr/lib"))
        .layer(|layer| layer.file("lib/new", ""));
    let repository = TestRepository::new();
    for _ in 0..2 {
        repository.convert(&image, crate::support::NAME, &["--skip-flat", "--chains", "none"]).expect_code(0);
        assert_eq!(repository.losses()["masked-link"], (1, vec!["lib".to_owned()]));
    }
}

#[test]
fn files_of_aufs_may_be_targets_of_links_but_are_not_published() {
    let image = TestImage::new().layer(|layer| {
        layer
            .dir(".wh..wh.plnk")
            .file(".wh..wh.plnk/12.3", "content")
            .hardlink("usr/a", ".wh..wh.plnk/12.3")
            .hardlink("usr/b", ".wh..wh.plnk/12.3")
            .hardlink("etc/c", ".wh..wh.plnk/12.3")
            .file(".wh..wh.aufs", "")
    });
    let (repository, tree) = proved(&image);
    assert_eq!(paths_of(&tree), ["", "etc", "etc/c", "usr", "usr/a", "usr/b"]);
    for name in ["usr/a", "usr/b", "etc/c"] {
        assert_eq!(tree.text(name), "content");
    }
    assert!(tree.get("usr/a").link_group.is_some() && tree.get("usr/a").link_group == tree.get("usr/b").link_group);
    assert_eq!(repository.losses()["link-across-folders"], (1, vec!["etc/c".to_owned()]));
}

#[test]
fn parent_components_in_names_and_targets_are_cleaned_at_the_root() {
    let image = TestImage::new().layer(|layer| {
        layer
            .raw_entry(header(EntryType::Regular, "./../ext/x.jar", ""), "")
            .raw_entry(header(EntryType::Regular, "a/../b", ""), "")
            .raw_entry(header(EntryType::Regular, "../../c", ""), "")
            .raw_entry(header(EntryType::Link, "l", "../ext/../ext/x.jar"), "")
    });
    let (_, tree) = proved(&image);
    assert_eq!(paths_of(&tree), ["", "b", "c", "ext", "ext/x.jar", "l"]);
}

#[test]
fn longest_name_can_be_hidden() {
    let name = "n".repeat(255);
    let image =
        TestImage::new().layer(|layer| layer.file(&name, "")).layer(|layer| layer.whiteout(&name).file("a", ""));
    let (repository, tree) = proved(&image);
    assert_eq!(paths_of(&tree), ["", "a"]);
    assert_eq!(repository.layer(&image, 1).get(&name).mode & TYPE, CHARACTER_DEVICE);
}

#[test]
fn largest_id_is_refused_with_the_name_of_its_entry() {
    let image = TestImage::new().layer(|layer| layer.file("a", "").owner(u32::MAX, 0));
    let repository = TestRepository::new();
    repository.convert(&image, crate::support::NAME, &[]).expect_one_line(1, &["uid is 4294967295", "4294967294"]);
}
