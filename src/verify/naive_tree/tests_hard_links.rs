//! Rules for the hard links of a layer, each with a small example and its expected result.

use super::tests_rules::{error, list};
use super::*;
use crate::layer::DeviceNumber;
use crate::verify::tests_generate::{directory, file, hard_link, node, opaque, path, symlink, whiteout};

#[test]
fn hard_link_shares_the_inode_of_its_target_in_either_order() {
    assert_eq!(list(&[vec![file("a", 1), hard_link("b", "a")]]), ["a=1", "b==a"]);
    assert_eq!(list(&[vec![hard_link("b", "a"), file("a", 1)]]), ["a=1", "b==a"]);
    assert_eq!(
        list(&[vec![hard_link("c/d", "b"), hard_link("b", "a"), file("a", 1)]]),
        ["a=1", "b==a", "c/", "c/d==a"]
    );
}

#[test]
fn hard_link_finds_its_target_in_lower_layers() {
    let lower = || vec![file("a", 1)];
    assert_eq!(list(&[lower(), vec![], vec![hard_link("b/c", "a")]]), ["a=1", "b/", "b/c==a"]);
    assert_eq!(list(&[lower(), vec![hard_link("b", "a")], vec![file("a", 2)]]), ["a=2", "b=1"]);
}

#[test]
fn hard_link_refers_to_the_node_at_its_target_at_that_point_of_the_archive() {
    let lower = || vec![file("a", 1)];
    assert_eq!(list(&[lower(), vec![hard_link("b", "a"), file("a", 2)]]), ["a=2", "b=1"]);
    assert_eq!(list(&[vec![file("a", 1), hard_link("b", "a"), file("a", 2)]]), ["a=2", "b=1"]);
    assert_eq!(list(&[lower(), vec![file("a", 2), hard_link("b", "a"), whiteout("a")]]), ["a=2", "b==a"]);
    let moved = vec![file("lib/a", 1), hard_link("usr/a", "lib/a"), symlink("lib/a", "../usr/a")];
    assert_eq!(list(&[moved]), ["lib/", "lib/a->../usr/a", "usr/", "usr/a=1"]);
    assert_eq!(list(&[vec![file("a", 1), hard_link("b", "a"), directory("a", 0o700)]]), ["a/ 0700", "b=1"]);
    let through_link = vec![symlink("l", "d"), file("d/a", 1), hard_link("b", "l/a"), file("d/a", 2)];
    assert_eq!(list(&[through_link]), ["b=1", "d/", "d/a=2", "l->d"]);
    assert_eq!(list(&[lower(), vec![whiteout("a"), hard_link("b", "a"), file("a", 2)]]), ["a=2", "b=1"]);
}

#[test]
fn hard_link_refers_to_the_next_later_entry_if_there_is_no_earlier_one() {
    assert_eq!(list(&[vec![hard_link("b", "a"), file("a", 1), file("a", 2)]]), ["a=2", "b=1"]);
    assert_eq!(list(&[vec![hard_link("b", "a"), file("b", 3), file("a", 1)]]), ["a=1", "b=3"]);
    assert_eq!(
        list(&[vec![hard_link("b", "a"), hard_link("c", "b"), file("b", 3), file("a", 1)]]),
        ["a=1", "b=3", "c==a"]
    );
    assert_eq!(
        list(&[vec![hard_link("b", "l/a"), file("d/a", 1), symlink("l", "d")]]),
        ["b=1", "d/", "d/a==b", "l->d"]
    );
    let to_directory = ApplyError::HardLinkToDirectory { path: path("b"), target: path("a") };
    assert_eq!(error(&[vec![hard_link("b", "a"), directory("a", 0o700)]]), to_directory);
}

#[test]
fn hard_link_to_an_aufs_bookkeeping_file_has_its_content() {
    let hidden = file(".wh..wh.plnk/1.2", 1);
    let links = [hard_link("a", ".wh..wh.plnk/1.2"), hard_link("b/c", ".wh..wh.plnk/1.2")];
    let expected = ["a=1", "b/", "b/c==a"];
    assert_eq!(list(&[[vec![hidden.clone()], links.to_vec()].concat()]), expected);
    assert_eq!(list(&[[links.to_vec(), vec![hidden]].concat()]), expected);
    let of_file = vec![hard_link(".wh..wh.plnk/1.2", "a"), hard_link("b", ".wh..wh.plnk/1.2"), file("a", 1)];
    assert_eq!(list(&[of_file]), ["a=1", "b==a"]);
    let missing = ApplyError::MissingHardLinkTarget { path: path("a"), target: path(".wh..wh.plnk/1.2") };
    assert_eq!(error(&[vec![file(".wh..wh.plnk/1.2", 1)], vec![links[0].clone()]]), missing);
}

#[test]
fn hard_link_finds_a_target_that_its_own_layer_hides() {
    let lower = vec![file("a", 1), file("b/c", 2)];
    let upper = vec![whiteout("a"), hard_link("d", "a"), opaque("b"), hard_link("e", "b/c")];
    assert_eq!(list(&[lower, upper]), ["b/", "d=1", "e=2"]);
}

#[test]
fn hard_link_to_a_symbolic_link_or_device_shares_that_node() {
    let null = NodeKind::CharacterDevice(DeviceNumber { major: 1, minor: 3 });
    let layer = vec![symlink("a", "x"), hard_link("b", "a"), node("c", null), hard_link("d", "c")];
    assert_eq!(list(&[layer]), ["a->x", "b==a", "c c 1:3", "d==c"]);
}

#[test]
fn hard_link_without_a_target_is_an_error_and_never_an_empty_file() {
    let missing = |at, target| ApplyError::MissingHardLinkTarget { path: path(at), target: path(target) };
    assert_eq!(error(&[vec![file("x", 1), hard_link("b", "a")]]), missing("b", "a"));
    assert_eq!(error(&[vec![hard_link("a", "a")]]), missing("a", "a"));
    assert_eq!(error(&[vec![hard_link("a", "b"), hard_link("b", "a")]]), missing("a", "b"));
    assert_eq!(error(&[vec![hard_link("c", "d"), hard_link("a", "b"), hard_link("b", "a")]]), missing("c", "d"));
    assert_eq!(error(&[vec![file("a", 1), hard_link("b", "a/c")]]), missing("b", "a/c"));
}

#[test]
fn hard_links_in_a_loop_refer_to_files_of_lower_layers() {
    let lower = || vec![file("a", 1)];
    assert_eq!(list(&[lower(), vec![hard_link("a", "a")]]), ["a=1"]);
    assert_eq!(list(&[lower(), vec![hard_link("b", "a"), hard_link("a", "b")]]), ["a=1", "b==a"]);
    let of_three = vec![hard_link("c", "b"), hard_link("b", "a"), hard_link("a", "c")];
    assert_eq!(list(&[vec![file("b", 1)], of_three]), ["a=1", "b==a", "c==a"]);
    // The first link in the archive replaces the target of the second one.
    let missing = ApplyError::MissingHardLinkTarget { path: path("a"), target: path("b") };
    assert_eq!(error(&[lower(), vec![hard_link("a", "b"), hard_link("b", "a")]]), missing);
}

#[test]
fn hard_link_to_a_directory_is_an_error() {
    let to_directory = |at, target| ApplyError::HardLinkToDirectory { path: path(at), target: path(target) };
    assert_eq!(error(&[vec![directory("a", 0o755), hard_link("b", "a")]]), to_directory("b", "a"));
    assert_eq!(error(&[vec![file("a/c", 1)], vec![hard_link("b", "a")]]), to_directory("b", "a"));
    assert_eq!(error(&[vec![hard_link("b", "")]]), to_directory("b", ""));
}

#[test]
fn hard_link_follows_links_in_the_directories_of_its_path_and_target() {
    let lower = vec![symlink("lib", "usr"), symlink("usr/l", "f"), file("usr/f", 1)];
    let upper = vec![hard_link("a", "lib/f"), hard_link("lib/b", "lib/l")];
    assert_eq!(list(&[lower, upper]), ["a=1", "lib->usr", "usr/", "usr/b->f", "usr/f==a", "usr/l==usr/b"]);
}

#[test]
fn hard_link_to_its_own_path_changes_nothing() {
    let lower = vec![symlink("lib", "usr"), file("usr/f", 1)];
    assert_eq!(list(&[lower, vec![hard_link("usr/f", "lib/f")]]), ["lib->usr", "usr/", "usr/f=1"]);
}

#[test]
fn hard_link_replaces_the_entry_at_its_path() {
    let lower = vec![file("a/b", 1), file("c", 2)];
    assert_eq!(list(&[lower.clone(), vec![hard_link("a", "c")]]), ["a=2", "c==a"]);
    assert_eq!(list(&[lower.clone(), vec![hard_link("a", "a/b")]]), ["a=1", "c=2"]);
    assert_eq!(list(&[lower, vec![hard_link("c/d", "c")]]), ["a/", "a/b=1", "c/", "c/d=2"]);
}
