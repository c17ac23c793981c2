//! Rules for applying a layer, except hard links, each with a small example and its expected result.

use std::sync::Arc;

use super::*;
use crate::layer::{DeviceNumber, EntryKind};
use crate::metadata::{Timestamp, Xattrs};
use crate::verify::tests_generate::{directory, file, hard_link, node, opaque, path, symlink, unpublished, whiteout};

type Layer = Vec<LayerEntry<u8>>;

pub(super) fn tree_of(layers: &[Layer]) -> Result<NaiveTree<u8>, ApplyError> {
    let mut tree = NaiveTree::new();
    layers.iter().try_for_each(|layer| tree.apply(layer)).map(|()| tree)
}

/// Lists the tree after all layers: `directory/`, `directory/ 0700` if the mode is not 0755, `file=content`, `link->target`,
/// `second==first` for hard links.
pub(super) fn list(layers: &[Layer]) -> Vec<String> {
    let tree = tree_of(layers).unwrap();
    let first_names = tree.first_names();
    let line = |(path, node): (&EntryPath, &NaiveNode<u8>)| {
        let path = path.to_string()[1..].to_owned();
        let first = first_names[&node.inode].to_string()[1..].to_owned();
        match &node.kind {
            _ if first != path => format!("{path}=={first}"),
            NodeKind::Directory if node.metadata.mode == 0o755 => format!("{path}/"),
            NodeKind::Directory => format!("{path}/ {:04o}", node.metadata.mode),
            NodeKind::File { content, .. } => format!("{path}={content}"),
            NodeKind::Symlink(target) => format!("{path}->{}", target.escape_ascii()),
            NodeKind::CharacterDevice(number) => format!("{path} c {}:{}", number.major, number.minor),
            NodeKind::BlockDevice(number) => format!("{path} b {}:{}", number.major, number.minor),
            NodeKind::Fifo => format!("{path} p"),
        }
    };
    tree.entries().skip(1).map(line).collect()
}

pub(super) fn error(layers: &[Layer]) -> ApplyError {
    tree_of(layers).unwrap_err()
}

// Whiteouts and opaque markers.

#[test]
fn whiteout_removes_lower_entries_and_is_not_kept() {
    let lower = vec![file("a", 1), file("b/a", 1), file("b/c/d", 1), file("ba", 1), symlink("l", "ba")];
    assert_eq!(list(&[lower.clone(), vec![whiteout("a"), whiteout("b/c")]]), ["b/", "b/a=1", "ba=1", "l->ba"]);
    assert_eq!(list(&[lower, vec![whiteout("b"), whiteout("l")]]), ["a=1", "ba=1"]);
}

#[test]
fn whiteout_keeps_the_entry_of_its_own_layer_in_either_order() {
    let lower = vec![file("a", 1)];
    assert_eq!(list(&[lower.clone(), vec![file("a", 2), whiteout("a")]]), ["a=2"]);
    assert_eq!(list(&[lower, vec![whiteout("a"), file("a", 2)]]), ["a=2"]);
    assert_eq!(list(&[vec![file("a", 2), whiteout("a")]]), ["a=2"]);
}

#[test]
fn whiteout_of_a_directory_that_the_layer_adds_is_an_opaque_marker() {
    let lower = vec![directory("a", 0o700), file("a/old", 1)];
    let expected = ["a/ 0711", "a/new=2"];
    for mark in [whiteout("a"), opaque("a")] {
        let upper = vec![directory("a", 0o711), file("a/new", 2), mark];
        assert_eq!(list(&[lower.clone(), upper]), expected);
    }
}

#[test]
fn whiteout_removes_the_attributes_of_a_directory_that_its_layer_implies_later() {
    let lower = vec![directory("a", 0o700), file("a/old", 1)];
    assert_eq!(list(&[lower.clone(), vec![whiteout("a"), file("a/new", 2)]]), ["a/", "a/new=2"]);
    assert_eq!(list(&[lower, vec![file("a/new", 2), whiteout("a")]]), ["a/ 0700", "a/new=2"]);
}

#[test]
fn opaque_marker_hides_all_lower_entries_at_any_position_in_the_archive() {
    let lower = vec![directory("a", 0o700), file("a/b/old", 1), file("a/old", 1), file("ab", 1)];
    let expected = ["a/ 0700", "a/b/", "a/b/new=2", "ab=1"];
    assert_eq!(list(&[lower.clone(), vec![opaque("a"), file("a/b/new", 2)]]), expected);
    assert_eq!(list(&[lower, vec![file("a/b/new", 2), opaque("a")]]), expected);
}

#[test]
fn opaque_marker_in_the_root_keeps_the_root_itself() {
    let lower = vec![directory("", 0o700), file("a/b", 1)];
    let layers = [lower, vec![file("b", 2), opaque("")]];
    assert_eq!(list(&layers), ["b=2"]);
    assert_eq!(tree_of(&layers).unwrap().get(&EntryPath::ROOT).unwrap().metadata.mode, 0o700);
}

#[test]
fn whiteouts_of_all_names_equal_an_opaque_marker() {
    let lower = vec![directory("a", 0o700), file("a/b", 1), file("a/c/d", 1)];
    let new = file("a/e", 2);
    let explicit = vec![whiteout("a/b"), whiteout("a/c"), new.clone()];
    assert_eq!(list(&[lower.clone(), explicit]), ["a/ 0700", "a/e=2"]);
    assert_eq!(list(&[lower, vec![opaque("a"), new]]), ["a/ 0700", "a/e=2"]);
}

#[test]
fn whiteout_of_a_missing_entry_is_harmless() {
    let lower = vec![file("a", 1)];
    let upper = vec![whiteout("b"), whiteout("a/b"), whiteout("b/c"), opaque("b"), opaque("a"), whiteout("b")];
    assert_eq!(list(&[lower, upper]), ["a=1"]);
}

#[test]
fn removals_are_looked_up_in_the_result_of_earlier_removals() {
    let lower = vec![symlink("l", "a"), file("a/b", 1), file("a/c", 1)];
    assert_eq!(list(&[lower.clone(), vec![whiteout("l"), whiteout("l/b")]]), ["a/", "a/b=1", "a/c=1"]);
    assert_eq!(list(&[lower.clone(), vec![whiteout("l/b"), whiteout("l")]]), ["a/", "a/c=1"]);
    assert_eq!(list(&[lower, vec![whiteout("a"), whiteout("a/b")]]), ["l->a"]);
}

#[test]
fn removals_follow_symbolic_links_except_in_the_name_of_a_whiteout() {
    let lower =
        vec![symlink("lib", "/usr/lib"), symlink("usr/lib/l", "m"), file("usr/lib/m/a", 1), file("usr/lib/b", 1)];
    let list_with = |mark| list(&[lower.clone(), vec![mark]]);
    assert_eq!(
        list_with(whiteout("lib/b")),
        ["lib->/usr/lib", "usr/", "usr/lib/", "usr/lib/l->m", "usr/lib/m/", "usr/lib/m/a=1"]
    );
    assert_eq!(list_with(whiteout("lib/l"))[1..], ["usr/", "usr/lib/", "usr/lib/b=1", "usr/lib/m/", "usr/lib/m/a=1"]);
    assert_eq!(list_with(opaque("lib/l"))[1..], ["usr/", "usr/lib/", "usr/lib/b=1", "usr/lib/l->m", "usr/lib/m/"]);
    assert_eq!(list_with(opaque("lib")), ["lib->/usr/lib", "usr/", "usr/lib/"]);
}

#[test]
fn removals_follow_a_link_until_the_layer_replaces_it() {
    let lower = vec![symlink("lib", "usr"), file("usr/a", 1)];
    for mark in [whiteout("lib/a"), opaque("lib")] {
        let after = vec![directory("lib", 0o700), mark.clone()];
        assert_eq!(list(&[lower.clone(), after]), ["lib/ 0700", "usr/", "usr/a=1"]);
        let before = vec![mark, directory("lib", 0o700)];
        assert_eq!(list(&[lower.clone(), before]), ["lib/ 0700", "usr/"]);
    }
}

#[test]
fn removals_through_a_loop_of_links_have_no_effect() {
    let lower = vec![symlink("a", "b"), symlink("b", "a")];
    assert_eq!(list(&[lower, vec![whiteout("a/c"), opaque("b")]]), ["a->b", "b->a"]);
}

// Attributes.

#[test]
fn attributes_equal_those_in_the_layer() {
    let xattrs = Xattrs::from([((*b"security.capability").into(), (*b"\x01\x00").into())]);
    let metadata = Metadata {
        mode: 0o7551,
        uid: u32::MAX,
        gid: 3_000_000_000,
        mtime: Timestamp { seconds: -1, nanoseconds: 999_999_999 },
        xattrs: Some(Arc::new(xattrs)),
    };
    let kinds = [
        NodeKind::Directory,
        NodeKind::File { size: 1, content: 1 },
        NodeKind::Symlink((*b"x").into()),
        NodeKind::Fifo,
    ];
    for kind in kinds {
        let entry = LayerEntry { path: path("a"), kind: EntryKind::Node(metadata.clone(), kind.clone()) };
        let tree = tree_of(&[vec![entry, hard_link("b", "c"), file("c", 1)]]).unwrap();
        let there = tree.get(&path("a")).unwrap();
        assert_eq!((&there.metadata, &there.kind), (&metadata, &kind));
    }
}

#[test]
fn time_of_a_directory_does_not_change_with_its_entries() {
    let metadata = Metadata { mtime: Timestamp { seconds: 7, nanoseconds: 8 }, ..Metadata::of_implied_directory() };
    let entry = |at| LayerEntry { path: path(at), kind: EntryKind::Node(metadata.clone(), NodeKind::Directory) };
    let lower = vec![entry(""), entry("a"), file("a/b", 1), file("a/c", 1)];
    let upper = vec![whiteout("a/b"), file("a/d", 1), hard_link("a/e", "a/c"), opaque("a"), hard_link("f", "a/d")];
    let tree = tree_of(&[lower, upper]).unwrap();
    assert_eq!(tree.get(&path("a")).unwrap().metadata, metadata);
    assert_eq!(tree.get(&EntryPath::ROOT).unwrap().metadata, metadata);
}

#[test]
fn directory_that_the_archive_does_not_name_keeps_its_lower_attributes() {
    assert_eq!(list(&[vec![directory("a", 0o700)], vec![file("a/b", 1)]]), ["a/ 0700", "a/b=1"]);
    let tree = tree_of(&[vec![file("a/b/c", 1)]]).unwrap();
    for implied in ["", "a", "a/b"] {
        assert_eq!(tree.get(&path(implied)).unwrap().metadata, Metadata::of_implied_directory());
    }
}

// Symbolic links in the directories of an entry.

#[test]
fn directory_that_the_archive_does_not_name_is_found_through_links() {
    let lower = vec![symlink("lib", "usr/lib"), directory("usr/lib", 0o711), file("usr/lib/a", 1)];
    let expected = ["lib->usr/lib", "usr/", "usr/lib/ 0711", "usr/lib/a=1", "usr/lib/x=2"];
    assert_eq!(list(&[lower, vec![file("lib/x", 2)]]), expected);
    assert_eq!(list(&[vec![symlink("l", "d"), file("l/x", 1)]]), ["d/", "d/x=1", "l->d"]);
}

#[test]
fn directory_that_the_archive_names_replaces_a_link() {
    let lower = vec![symlink("lib", "usr/lib"), file("usr/lib/a", 1)];
    let expected = ["lib/ 0700", "lib/x=2", "usr/", "usr/lib/", "usr/lib/a=1"];
    assert_eq!(list(&[lower.clone(), vec![directory("lib", 0o700), file("lib/x", 2)]]), expected);
    let through_link = ["lib/ 0700", "usr/", "usr/lib/", "usr/lib/a=1", "usr/lib/x=2"];
    assert_eq!(list(&[lower.clone(), vec![file("lib/x", 2), directory("lib", 0o700)]]), through_link);
    let upper = vec![directory("lib", 0o700), file("lib/x", 2), symlink("lib", "z")];
    assert_eq!(list(&[lower, upper]), ["lib->z", "usr/", "usr/lib/", "usr/lib/a=1"]);
}

#[test]
fn directory_entry_below_a_link_replaces_the_link_at_its_path() {
    let lower = vec![symlink("lib", "usr"), symlink("usr/l", "/d"), file("d/a", 1)];
    for replacing in ["lib/l", "usr/l"] {
        let upper = vec![file("lib/l/x", 2), directory(replacing, 0o700), file("lib/l/y", 2)];
        let expected = ["d/", "d/a=1", "d/x=2", "lib->usr", "usr/", "usr/l/ 0700", "usr/l/y=2"];
        assert_eq!(list(&[lower.clone(), upper]), expected);
    }
}

#[test]
fn links_never_leave_the_root() {
    let target = |target: &str| list(&[vec![file("d/e/f", 1), symlink("d/l", target), file("d/l/x", 2)]]);
    assert_eq!(target("/d"), ["d/", "d/e/", "d/e/f=1", "d/l->/d", "d/x=2"]);
    assert_eq!(target("../../../d/e"), ["d/", "d/e/", "d/e/f=1", "d/e/x=2", "d/l->../../../d/e"]);
    assert_eq!(target("/../.."), ["d/", "d/e/", "d/e/f=1", "d/l->/../..", "x=2"]);
    assert_eq!(target(".//./e/"), ["d/", "d/e/", "d/e/f=1", "d/e/x=2", "d/l->.//./e/"]);
}

#[test]
fn dot_dot_in_a_target_means_the_directory_that_links_led_to() {
    let lower = vec![symlink("l", "a/b"), file("a/b/f", 1), symlink("m", "l/../x")];
    assert_eq!(
        list(&[lower, vec![file("m/y", 2)]]),
        ["a/", "a/b/", "a/b/f=1", "a/x/", "a/x/y=2", "l->a/b", "m->l/../x"]
    );
}

#[test]
fn target_directory_of_a_link_is_created_if_it_is_missing_or_not_a_directory() {
    let lower = vec![symlink("run", "/var/run/x"), file("var/run", 1)];
    assert_eq!(
        list(&[lower, vec![file("run/a", 2)]]),
        ["run->/var/run/x", "var/", "var/run/", "var/run/x/", "var/run/x/a=2"]
    );
    let taken_back = vec![symlink("l", "new/../d"), file("l/a", 1)];
    assert_eq!(list(&[taken_back]), ["d/", "d/a=1", "l->new/../d"], "a directory before '..' is not created");
    let over_a_file = vec![file("f", 1), symlink("l", "f/../d"), file("l/a", 1)];
    assert_eq!(list(&[over_a_file]), ["d/", "d/a=1", "f=1", "l->f/../d"]);
}

/// Returns links from `l1` to `l2` and so on; the last one refers to the directory `d`.
fn chain_of_links(length: usize) -> Layer {
    let link = |n: usize| symlink(&format!("l{n}"), &if n == length { "d".to_owned() } else { format!("l{}", n + 1) });
    (1..=length).map(link).chain([file("d/a", 1)]).collect()
}

#[test]
fn path_may_contain_255_links() {
    for length in [254, 255] {
        assert!(tree_of(&[chain_of_links(length), vec![file("l1/b", 1)]]).unwrap().get(&path("d/b")).is_some());
        assert!(tree_of(&[chain_of_links(length), vec![hard_link("b", "l1/a")]]).is_ok());
        assert!(tree_of(&[chain_of_links(length), vec![whiteout("l1/a")]]).unwrap().get(&path("d/a")).is_none());
    }
    let too_many = ApplyError::TooManyLinks(path("l1/b"));
    assert_eq!(error(&[chain_of_links(256), vec![file("l1/b", 1)]]), too_many);
    assert_eq!(error(&[chain_of_links(256), vec![hard_link("l1/b", "d/a")]]), too_many);
    assert_eq!(error(&[chain_of_links(256), vec![hard_link("b", "l1/a")]]), ApplyError::TooManyLinks(path("b")));
    assert!(tree_of(&[chain_of_links(256), vec![whiteout("l1/a")]]).unwrap().get(&path("d/a")).is_some());
}

#[test]
fn link_to_a_missing_directory_with_an_invalid_name_is_an_error() {
    let through = |name: &str| tree_of(&[vec![symlink("l", name), file("l/a", 1)]]);
    assert!(through(&"n".repeat(255)).is_ok());
    assert_eq!(through(&"n".repeat(256)), Err(ApplyError::UnusableName(path("l/a"))));
    assert_eq!(through("n\0"), Err(ApplyError::UnusableName(path("l/a"))));
}

// Entries that replace others.

#[test]
fn entry_of_another_type_replaces_the_existing_one() {
    let there =
        [vec![file("a", 1)], vec![directory("a", 0o700), file("a/b", 1)], vec![symlink("a", "d"), file("d/b", 1)]];
    for lower in there {
        let list_with = |entry| list(&[lower.clone(), vec![entry]])[0].clone();
        assert_eq!(list_with(file("a", 2)), "a=2");
        assert_eq!(list_with(symlink("a", "x")), "a->x");
        assert_eq!(list_with(node("a", NodeKind::Fifo)), "a p");
        assert!(list_with(directory("a", 0o711)).starts_with("a/ 0711"));
    }
    assert_eq!(list(&[vec![file("a/b", 1), file("a/c/d", 1), file("ab", 1)], vec![file("a", 2)]]), ["a=2", "ab=1"]);
    assert_eq!(list(&[vec![symlink("a", "d"), file("d/b", 1)], vec![file("a", 2)]]), ["a=2", "d/", "d/b=1"]);
}

#[test]
fn directory_over_a_directory_replaces_only_its_attributes() {
    let with_xattr = |mut entry: LayerEntry<u8>| {
        if let EntryKind::Node(metadata, _) = &mut entry.kind {
            metadata.xattrs = Some(Arc::new(Xattrs::from([((*b"user.a").into(), (*b"1").into())])));
        }
        entry
    };
    let layers = [vec![with_xattr(directory("a", 0o700)), file("a/b", 1)], vec![directory("a", 0o711)]];
    assert_eq!(list(&layers), ["a/ 0711", "a/b=1"]);
    assert_eq!(tree_of(&layers).unwrap().get(&path("a")).unwrap().metadata.xattrs, None);
}

#[test]
fn file_in_the_path_of_an_entry_becomes_a_directory() {
    assert_eq!(list(&[vec![file("a", 1)], vec![file("a/b/c", 2)]]), ["a/", "a/b/", "a/b/c=2"]);
    assert_eq!(list(&[vec![node("a", NodeKind::Fifo)], vec![hard_link("a/b", "a")]]), ["a/", "a/b p"]);
}

#[test]
fn last_of_several_entries_for_a_path_counts() {
    assert_eq!(list(&[vec![file("a", 1), file("a", 2)]]), ["a=2"]);
    assert_eq!(list(&[vec![symlink("a", "x"), file("b", 1), hard_link("a", "b")]]), ["a=1", "b==a"]);
    assert_eq!(list(&[vec![hard_link("a", "nowhere"), file("a", 1)]]), ["a=1"]);
    // The position of the last entry matters as well.
    assert_eq!(list(&[vec![directory("a", 0o700), file("a/b", 1), file("a", 2)]]), ["a=2"]);
    assert_eq!(list(&[vec![file("a", 2), file("a/b", 1), directory("a", 0o700)]]), ["a/ 0700", "a/b=1"]);
}

#[test]
fn replaced_entries_do_not_reappear() {
    let lower = vec![directory("a", 0o700), file("a/old", 1)];
    for between in [file("a", 2), symlink("a", "x"), unpublished("a")] {
        let upper = vec![between.clone(), directory("a", 0o711)];
        assert_eq!(list(&[lower.clone(), upper]), ["a/ 0711"]);
    }
    for between in [file("a", 2), unpublished("a")] {
        let implied = vec![between, file("a/new", 2)];
        assert_eq!(list(&[lower.clone(), implied]), ["a/", "a/new=2"]);
    }
}

#[test]
fn entry_that_cannot_be_published_hides_the_existing_one() {
    let lower = || vec![file("p/gone", 1), file("p/dir/f", 1), file("p/kept", 1)];
    assert_eq!(list(&[lower(), vec![unpublished("p/gone"), unpublished("p/dir")]]), ["p/", "p/kept=1"]);
    let own = vec![file("p/gone", 2), unpublished("p/gone"), unpublished("p/dir"), file("p/dir/new", 2)];
    assert_eq!(list(&[lower(), own]), ["p/", "p/dir/", "p/dir/new=2", "p/kept=1"]);
    assert_eq!(list(&[lower(), vec![unpublished("p/gone"), file("p/gone", 3)]])[3], "p/gone=3");
    assert_eq!(error(&[vec![unpublished("")]]), ApplyError::RootIsNoDirectory);
}

#[test]
fn special_files_and_names_with_a_meaning_for_other_programs_are_kept() {
    let [null, disk] = [(1, 3), (8, 0)].map(|(major, minor)| DeviceNumber { major, minor });
    let layer = vec![
        node("dev/null", NodeKind::CharacterDevice(null)),
        node("dev/sda", NodeKind::BlockDevice(disk)),
        node("dev/initctl", NodeKind::Fifo),
        file("proc/1", 1),
        file("a/.cvmfscatalog", 2),
        file(".cvmfsdirtab", 3),
    ];
    let expected = [
        ".cvmfsdirtab=3",
        "a/",
        "a/.cvmfscatalog=2",
        "dev/",
        "dev/initctl p",
        "dev/null c 1:3",
        "dev/sda b 8:0",
        "proc/",
        "proc/1=1",
    ];
    assert_eq!(list(&[layer]), expected);
}

#[test]
fn root_can_only_be_replaced_by_a_directory() {
    let layers = [vec![directory("", 0o700), file("a", 1)], vec![directory("", 0o711)]];
    let tree = tree_of(&layers).unwrap();
    assert_eq!((tree.get(&EntryPath::ROOT).unwrap().metadata.mode, list(&layers)), (0o711, vec!["a=1".to_owned()]));
    assert_eq!(error(&[vec![file("", 1)]]), ApplyError::RootIsNoDirectory);
    assert_eq!(error(&[vec![file("a", 1), hard_link("", "a")]]), ApplyError::RootIsNoDirectory);
    assert_eq!(error(&[vec![file("", 1), directory("", 0o700)]]), ApplyError::RootIsNoDirectory);
}

#[test]
fn layer_that_fails_leaves_the_tree_as_it_was() {
    let mut tree = tree_of(&[vec![file("a", 1)]]).unwrap();
    let before = tree.clone();
    assert!(tree.apply(&[whiteout("a"), file("b", 2), hard_link("c", "d")]).is_err());
    assert_eq!(tree, before);
}
