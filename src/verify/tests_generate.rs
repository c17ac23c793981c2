//! Layers for tests: entries written by hand, and whole images made up by proptest.
//!
//! Few short names, so that everything collides with everything: a path is a file in one layer, a directory in the next
//! and a link in the third, and entries lie below all of them.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::layer::{DeviceNumber, EntryKind, LayerEntry, NodeKind};
use crate::metadata::{Metadata, Timestamp, Xattrs};
use crate::path::EntryPath;
use crate::verify::{ApplyError, NaiveTree};

/// Returns the path that `text` spells.
pub fn path(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).unwrap()
}

/// Returns an entry for a node of mode 0755 at `at`.
pub fn node<C>(at: &str, kind: NodeKind<C>) -> LayerEntry<C> {
    LayerEntry { path: path(at), kind: EntryKind::Node(Metadata::of_implied_directory(), kind) }
}

/// Returns an entry for a regular file.
pub fn file(at: &str, content: u8) -> LayerEntry<u8> {
    node(at, file_of(content))
}

/// Returns an entry for a directory with permissions.
pub fn directory(at: &str, mode: u16) -> LayerEntry<u8> {
    let metadata = Metadata { mode, ..Metadata::of_implied_directory() };
    LayerEntry { path: path(at), kind: EntryKind::Node(metadata, NodeKind::Directory) }
}

/// Returns an entry for a symbolic link.
pub fn symlink(at: &str, target: &str) -> LayerEntry<u8> {
    node(at, NodeKind::Symlink(target.as_bytes().into()))
}

/// Returns an entry for a hard link.
pub fn hard_link(at: &str, target: &str) -> LayerEntry<u8> {
    LayerEntry { path: path(at), kind: EntryKind::HardLink(path(target)) }
}

/// Returns a whiteout of `at`.
pub fn whiteout(at: &str) -> LayerEntry<u8> {
    LayerEntry { path: path(at), kind: EntryKind::Whiteout }
}

/// Returns an entry that cannot be published.
pub fn unpublished<C>(at: &str) -> LayerEntry<C> {
    LayerEntry { path: path(at), kind: EntryKind::Unpublished }
}

/// Returns an opaque marker in the directory `at`.
pub fn opaque(at: &str) -> LayerEntry<u8> {
    LayerEntry { path: path(at), kind: EntryKind::Opaque }
}

/// Makes up images of one to five layers of up to 20 entries each. Five in six of them can be applied without an error.
///
/// What never occurs is what the archive reader never yields: whiteouts of the root, character devices 0:0.
pub fn image() -> impl Strategy<Value = Vec<Vec<LayerEntry<u8>>>> {
    (vec(vec(draft(), 0..=20), 1..=5), prop::bool::weighted(0.75)).prop_map(|(layers, is_tame)| {
        let mut entries_below = Vec::new();
        let mut image: Vec<_> = layers.into_iter().map(|drafts| finish_layer(drafts, &mut entries_below)).collect();
        if is_tame {
            tame(&mut image);
        }
        image
    })
}

/// Takes the entries out of `image` for which it cannot be applied.
///
/// What the naive tree makes of them matters little here: a quarter of the images are not tamed.
fn tame(image: &mut [Vec<LayerEntry<u8>>]) {
    let mut tree = NaiveTree::new();
    for layer in image {
        while let Err(error) = tree.apply(layer) {
            let culprit = match error {
                ApplyError::HardLinkToDirectory { path, .. } | ApplyError::MissingHardLinkTarget { path, .. } => path,
                ApplyError::TooManyLinks(path) | ApplyError::UnusableName(path) => path,
                ApplyError::RootIsNoDirectory => EntryPath::ROOT,
            };
            let is_mark = |kind: &EntryKind<u8>| matches!(kind, EntryKind::Whiteout | EntryKind::Opaque);
            layer.retain(|entry| entry.path != culprit || is_mark(&entry.kind));
        }
    }
}

/// What an entry is to be, before it is known what else the image has.
#[derive(Debug, Clone)]
struct Draft {
    place: Place,
    kind: DraftKind,
}

/// What an entry is to say about its place.
#[derive(Debug, Clone)]
enum DraftKind {
    Is(EntryKind<u8>),
    HardLinkInLayer(Place),
    HardLinkBelow(Place),
}

/// Where something is to be, in relation to other entries.
#[derive(Debug, Clone)]
enum Place {
    Root,
    At(EntryPath),
    /// At the path of one of them.
    Taken(Index),
    /// Where one of them puts something other than a directory.
    NoDirectory(Index),
    /// Where one of them puts a symbolic link.
    Symlink(Index),
    /// Below such a path.
    BelowSymlink(Index, String),
}

impl Place {
    fn choose(&self, others: &[LayerEntry<u8>]) -> EntryPath {
        let pick = |index: &Index, fits: &dyn Fn(&EntryKind<u8>) -> bool| {
            let fitting = others.iter().filter(|entry| !entry.path.is_root() && fits(&entry.kind));
            let paths: Vec<&EntryPath> = fitting.map(|entry| &entry.path).collect();
            if paths.is_empty() { path("a") } else { (*index.get(&paths)).clone() }
        };
        match self {
            Self::Root => EntryPath::ROOT,
            Self::At(path) => path.clone(),
            Self::Taken(index) => pick(index, &|_| true),
            Self::NoDirectory(index) => pick(index, &|kind| match kind {
                EntryKind::Node(_, kind) => *kind != NodeKind::Directory,
                kind => matches!(kind, EntryKind::HardLink(_)),
            }),
            Self::Symlink(index) => pick(index, &is_symlink),
            Self::BelowSymlink(index, name) => pick(index, &is_symlink).join(name.as_bytes()),
        }
    }
}

fn is_symlink(kind: &EntryKind<u8>) -> bool {
    matches!(kind, EntryKind::Node(_, NodeKind::Symlink(_)))
}

/// Turns drafts into entries and adds them to `below`, the entries of the image so far.
fn finish_layer(drafts: Vec<Draft>, below: &mut Vec<LayerEntry<u8>>) -> Vec<LayerEntry<u8>> {
    let without_target = |draft: &Draft| LayerEntry {
        path: draft.place.choose(below),
        kind: match &draft.kind {
            DraftKind::Is(kind) => kind.clone(),
            DraftKind::HardLinkInLayer(_) | DraftKind::HardLinkBelow(_) => EntryKind::HardLink(EntryPath::ROOT),
        },
    };
    let placed: Vec<LayerEntry<u8>> = drafts.iter().map(without_target).collect();
    let finish = |(draft, entry): (Draft, &LayerEntry<u8>)| LayerEntry {
        path: entry.path.clone(),
        kind: match draft.kind {
            DraftKind::Is(kind) => kind,
            DraftKind::HardLinkInLayer(target) => EntryKind::HardLink(target.choose(&placed)),
            DraftKind::HardLinkBelow(target) => EntryKind::HardLink(target.choose(below)),
        },
    };
    let layer: Vec<LayerEntry<u8>> = drafts.into_iter().zip(&placed).map(finish).collect();
    below.extend_from_slice(&layer);
    layer
}

fn draft() -> impl Strategy<Value = Draft> {
    let draft = |(place, kind)| Draft { place, kind };
    let is_directory = || metadata().prop_map(|metadata| DraftKind::Is(EntryKind::Node(metadata, NodeKind::Directory)));
    let is_whiteout = Just(DraftKind::Is(EntryKind::Whiteout));
    let is_opaque = || Just(DraftKind::Is(EntryKind::Opaque));
    prop_oneof![
        500 => (any_place(3, 2), node_draft()).prop_map(draft),
        40 => (any::<Index>().prop_map(Place::Symlink), is_directory()).prop_map(draft),
        15 => (Just(Place::Root), is_directory()).prop_map(draft),
        1 => (Just(Place::Root), node_draft()).prop_map(draft),
        90 => (any_place(1, 1), hard_link_draft()).prop_map(draft),
        // Mostly where there may be something to hide.
        70 => (any_place(1, 5), is_whiteout.clone()).prop_map(draft),
        30 => (any_place(1, 5), is_opaque()).prop_map(draft),
        15 => (any_place(1, 3), Just(DraftKind::Is(EntryKind::Unpublished))).prop_map(draft),
        30 => (below_symlink(), is_whiteout).prop_map(draft),
        15 => (any::<Index>().prop_map(Place::Symlink), is_opaque()).prop_map(draft),
        3 => (Just(Place::Root), is_opaque()).prop_map(draft),
    ]
}

fn any_place(new: u32, taken: u32) -> impl Strategy<Value = Place> {
    prop_oneof![
        6 * new => any_path().prop_map(Place::At),
        4 * taken => any::<Index>().prop_map(Place::Taken),
        taken => any::<Index>().prop_map(Place::NoDirectory),
        taken => below_symlink(),
    ]
}

fn below_symlink() -> impl Strategy<Value = Place> {
    (any::<Index>(), name()).prop_map(|(index, name)| Place::BelowSymlink(index, name))
}

fn hard_link_draft() -> impl Strategy<Value = DraftKind> {
    let target = || {
        prop_oneof![
            20 => any::<Index>().prop_map(Place::NoDirectory),
            1 => any::<Index>().prop_map(Place::Taken),
            1 => any_path().prop_map(Place::At),
            1 => below_symlink(),
        ]
    };
    prop_oneof![target().prop_map(DraftKind::HardLinkInLayer), target().prop_map(DraftKind::HardLinkBelow),]
}

fn any_path() -> impl Strategy<Value = EntryPath> {
    let depth = prop_oneof![4 => Just(1), 5 => Just(2), 3 => Just(3), 1 => Just(4)];
    depth.prop_flat_map(|depth| vec(name(), depth)).prop_map(|names| path(&names.join("/")))
}

fn name() -> impl Strategy<Value = String> {
    select(vec!["a", "a", "a", "b", "b", "b", "aa", "ab", "ba", "bb"]).prop_map(str::to_owned)
}

fn node_draft() -> impl Strategy<Value = DraftKind> {
    (metadata(), node_kind()).prop_map(|(metadata, kind)| DraftKind::Is(EntryKind::Node(metadata, kind)))
}

fn node_kind() -> impl Strategy<Value = NodeKind<u8>> {
    let number = (1..3_u32, 0..3_u32).prop_map(|(major, minor)| DeviceNumber { major, minor });
    prop_oneof![
        20 => (0..4_u8).prop_map(file_of),
        14 => Just(NodeKind::Directory),
        8 => symlink_target().prop_map(|target| NodeKind::Symlink(target.into_bytes().into())),
        1 => number.clone().prop_map(NodeKind::CharacterDevice),
        1 => number.prop_map(NodeKind::BlockDevice),
        1 => Just(NodeKind::Fifo),
    ]
}

/// Returns what a file with `content` is.
fn file_of(content: u8) -> NodeKind<u8> {
    NodeKind::File { size: u64::from(content), content }
}

fn symlink_target() -> impl Strategy<Value = String> {
    let part = prop_oneof![8 => name(), 2 => Just("..".to_owned()), 1 => select(vec![".", ""]).prop_map(str::to_owned)];
    let parts = prop_oneof![3 => vec(part.clone(), 1), 2 => vec(part.clone(), 2), 1 => vec(part, 3)];
    (prop::bool::weighted(0.4), parts).prop_map(|(is_absolute, parts)| {
        let slash = if is_absolute { "/" } else { "" };
        format!("{slash}{}", parts.join("/"))
    })
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let mtime = (-1..3_i64, select(vec![0, 1, 999_999_999]))
        .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds });
    let xattrs = option::weighted(0.2, select(vec![("user.a", "a"), ("user.a", ""), ("security.capability", "\0")]));
    (select(vec![0o755, 0o644, 0o4755, 0o1777, 0]), 0..3_u32, 0..3_u32, mtime, xattrs).prop_map(
        |(mode, uid, gid, mtime, xattr)| {
            let xattrs =
                xattr.map(|(name, value)| Arc::new(Xattrs::from([(name.as_bytes().into(), value.as_bytes().into())])));
            Metadata { mode, uid, gid, mtime, xattrs }
        },
    )
}

mod tests {
    use std::collections::BTreeMap;

    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    use super::*;

    /// Counts what becomes of 2,000 made-up images.
    fn outcomes() -> BTreeMap<&'static str, usize> {
        let mut runner = TestRunner::deterministic();
        let mut outcomes = BTreeMap::new();
        for _ in 0..2_000 {
            let image = image().new_tree(&mut runner).unwrap().current();
            let mut tree = NaiveTree::new();
            let outcome = match image.iter().try_for_each(|layer| tree.apply(layer)) {
                Ok(()) => "applied",
                Err(ApplyError::HardLinkToDirectory { .. }) => "hard link to directory",
                Err(ApplyError::MissingHardLinkTarget { .. }) => "missing hard link target",
                Err(ApplyError::TooManyLinks(_)) => "too many links",
                Err(ApplyError::RootIsNoDirectory) => "root is no directory",
                Err(ApplyError::UnusableName(_)) => "unusable name",
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        outcomes
    }

    #[test]
    fn most_images_apply_and_every_error_occurs() {
        let outcomes = outcomes();
        println!("{outcomes:?}");
        assert!(outcomes["applied"] >= 1_400, "{outcomes:?}");
        for error in ["hard link to directory", "missing hard link target", "too many links", "root is no directory"] {
            assert!(outcomes.contains_key(error), "no image fails with '{error}': {outcomes:?}");
        }
    }
}
