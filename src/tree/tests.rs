//! Compares the tree with the naive implementation in `verify`, on generated images whose names collide often.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::{
    Applied, ApplyError, Directory, LayerForm, Leaf, LeafKind, Node, OPAQUE_XATTRS, ParentDifferences, layer_entries,
};
use crate::layer::{DeviceNumber, EntryKind, LayerEntry, NodeKind};
use crate::metadata::Metadata;
use crate::object::{Content, ContentObjects, ObjectHash};
use crate::path::EntryPath;
use crate::verify::overlay_model::{MountedTree, overlay_mount};
use crate::verify::tests_generate::image;
use crate::verify::{NaiveLayer, NaiveTree};

/// A tree as a map of paths: metadata, type, and a number that all hard links of one inode share.
type Flat = BTreeMap<EntryPath, (Metadata, NodeKind<Content>, usize)>;

fn with_content(layers: &[Vec<LayerEntry<u8>>]) -> Vec<Vec<LayerEntry<Content>>> {
    let content = |byte: u8| Content { raw: false, objects: ContentObjects::Whole(ObjectHash::of(&[byte])) };
    layers.iter().map(|layer| layer.iter().map(|entry| entry.clone().map_content(content)).collect()).collect()
}

fn kind_of(leaf: &Leaf) -> NodeKind<Content> {
    match &leaf.kind {
        LeafKind::File { size, content } => NodeKind::File { size: *size, content: content.clone() },
        LeafKind::Symlink(target) => NodeKind::Symlink(target.clone()),
        LeafKind::CharacterDevice(number) => NodeKind::CharacterDevice(*number),
        LeafKind::BlockDevice(number) => NodeKind::BlockDevice(*number),
        LeafKind::Fifo => NodeKind::Fifo,
    }
}

fn flat(tree: &Directory) -> Flat {
    let mut inodes: HashMap<*const Leaf, usize> = HashMap::new();
    let mut paths = BTreeMap::from([(EntryPath::ROOT, (tree.metadata.clone(), NodeKind::Directory, 0))]);
    tree.walk(&EntryPath::ROOT, &mut |path, node| {
        let next = paths.len();
        let value = match node {
            Node::Directory(directory) => (directory.metadata.clone(), NodeKind::Directory, next),
            Node::Leaf(leaf) => {
                (leaf.metadata.clone(), kind_of(leaf), *inodes.entry(Arc::as_ptr(leaf)).or_insert(next))
            }
        };
        paths.insert(path.clone(), value);
    });
    paths
}

fn flat_naive(tree: &NaiveTree<Content>) -> Flat {
    let mut inodes: HashMap<usize, usize> = HashMap::new();
    let value = |(next, (path, node)): (usize, (&EntryPath, &crate::verify::NaiveNode<Content>))| {
        let inode = *inodes.entry(node.inode).or_insert(next);
        (path.clone(), (node.metadata.clone(), node.kind.clone(), inode))
    };
    tree.entries().enumerate().map(value).collect()
}

fn applied(lower: &Arc<Directory>, layer: &[LayerEntry<Content>]) -> Result<Applied, ApplyError> {
    super::apply(lower, layer)
}

fn apply(lower: &Arc<Directory>, layer: &[LayerEntry<Content>]) -> Result<Arc<Directory>, ApplyError> {
    Ok(applied(lower, layer)?.tree)
}

fn form_of(lower: &Arc<Directory>, layer: &[LayerEntry<Content>]) -> Result<LayerForm, ApplyError> {
    Ok(applied(lower, layer)?.form)
}

/// The variant and fields of an error, which both implementations share.
fn error_kind(error: &impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn tree_and_naive_implementation_agree(image in image()) {
        let (mut tree, mut naive) = (Directory::empty_root(), NaiveTree::new());
        for layer in with_content(&image) {
            match (apply(&tree, &layer), naive.apply(&layer)) {
                (Ok(next), Ok(())) => {
                    prop_assert_eq!(flat(&next), flat_naive(&naive));
                    tree = next;
                }
                (Err(ours), Err(theirs)) => {
                    prop_assert_eq!(error_kind(&ours), error_kind(&theirs));
                    break;
                }
                (ours, theirs) => prop_assert!(false, "{:?} against {:?}", ours.map(|tree| flat(&tree)), theirs),
            }
        }
    }

    #[test]
    fn applying_a_layer_does_not_change_the_tree_below(image in image()) {
        let mut tree = Directory::empty_root();
        for layer in with_content(&image) {
            let before = flat(&tree);
            let Ok(next) = apply(&tree, &layer) else { break };
            prop_assert_eq!(flat(&tree), before);
            tree = next;
        }
    }

    #[test]
    fn layer_form_and_naive_layer_agree(image in image()) {
        let (mut tree, mut naive) = (Directory::empty_root(), NaiveTree::new());
        for layer in with_content(&image) {
            let (Ok(form), Ok(expected)) = (form_of(&tree, &layer), NaiveLayer::of(&naive, &layer)) else { break };
            prop_assert_eq!(flat(&form.tree), flat_naive(&expected.tree));
            prop_assert_eq!(form.implied, expected.implied);
            prop_assert_eq!(form.links_below.into_keys().collect::<BTreeSet<_>>(), expected.linked_below);
            let Ok(next) = apply(&tree, &layer) else { break };
            naive.apply(&layer).unwrap();
            tree = next;
        }
    }

    #[test]
    fn a_layer_read_back_from_its_published_form_gives_the_same_tree(image in image()) {
        let mut tree = Directory::empty_root();
        for layer in with_content(&image) {
            let Ok(applied) = applied(&tree, &layer) else { break };
            if applied.can_be_read_back {
                let read_back = apply(&tree, &layer_entries(&applied.form)).unwrap();
                prop_assert_eq!(without_inodes(&read_back), without_inodes(&applied.tree));
            }
            tree = applied.tree;
        }
    }

    #[test]
    fn a_layer_read_back_gives_the_same_tree_above_other_parents(image in image(), left_out in any::<prop::sample::Index>()) {
        let mut layers = with_content(&image);
        let layer = layers.pop().unwrap();
        let lower = |layers: &[Vec<LayerEntry<Content>>]| {
            layers.iter().try_fold(Directory::empty_root(), |tree, layer| apply(&tree, layer)).ok()
        };
        let one = lower(&layers);
        if !layers.is_empty() {
            layers.remove(left_out.index(layers.len()));
        }
        let (Some(one), Some(other)) = (one, lower(&layers)) else { return Ok(()) };
        let (Ok(published), Ok(expected)) = (applied(&one, &layer), applied(&other, &layer)) else { return Ok(()) };
        // The order of entries matters if a symbolic link of lower layers leads from one directory of the layer to another.
        let is_real = |path: &EntryPath| super::walk::resolve(&other, path).is_ok_and(|place| super::walk::path_of(&place) == *path);
        let is_mark = |entry: &&LayerEntry<Content>| matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque);
        let parents = layer.iter().filter(is_mark).map(|mark| match mark.kind {
            EntryKind::Opaque => mark.path.clone(),
            _ => mark.path.split().map_or(EntryPath::ROOT, |(parent, _)| parent),
        });
        let is_plain = published.masked_links.is_empty()
            && expected.masked_links.is_empty()
            && { parents }.all(|parent| is_real(&parent));
        if published.can_be_read_back && is_plain {
            let read_back = applied(&other, &layer_entries(&published.form)).unwrap();
            prop_assert_eq!(without_inodes(&read_back.tree), without_inodes(&expected.tree));
            prop_assert_eq!(without_inodes(&read_back.form.tree), without_inodes(&expected.form.tree));
        }
    }

    #[test]
    fn differences_above_other_parents_are_listed(image in image(), left_out in any::<prop::sample::Index>()) {
        let mut layers = with_content(&image);
        let layer = layers.pop().unwrap();
        let lower = |layers: &[Vec<LayerEntry<Content>>]| {
            layers.iter().try_fold(Directory::empty_root(), |tree, layer| apply(&tree, layer)).ok()
        };
        let one = lower(&layers);
        if !layers.is_empty() {
            layers.remove(left_out.index(layers.len()));
        }
        let (Some(one), Some(other)) = (one, lower(&layers)) else { return Ok(()) };
        let forms = [one, other].map(|lower| form_of(&lower, &layer));
        let [Ok(one), Ok(other)] = forms else { return Ok(()) };
        prop_assert_eq!(ParentDifferences::between(&one, &one), ParentDifferences::default());
        let listed = ParentDifferences::between(&one, &other);
        let depends_on_parents = DependsOnParents {
            implied: one.implied.union(&other.implied).cloned().collect(),
            links: one.links_below.keys().chain(other.links_below.keys()).cloned().collect(),
        };
        let (one, other) = (depends_on_parents.flat(&one.tree), depends_on_parents.flat(&other.tree));
        let paths: BTreeSet<&EntryPath> = one.keys().chain(other.keys()).collect();
        for path in paths.into_iter().filter(|path| one.get(path) != other.get(path)) {
            let is_listed = |path: &EntryPath| listed.marks.contains(path) || listed.links.contains(path);
            prop_assert!(is_listed(path) || path.ancestors().any(|directory| is_listed(&directory)), "{}", path);
        }
        for path in listed.marks.iter().chain(&listed.links) {
            prop_assert!(one.get(path) != other.get(path), "{}", path);
        }
    }

    #[test]
    fn mounted_layer_forms_equal_the_merged_tree_except_at_masked_links(image in image()) {
        let mut tree = Directory::empty_root();
        let mut forms: Vec<MountedTree<Content>> = Vec::new();
        let mut explained = BTreeSet::new();
        for layer in with_content(&image) {
            let Ok(applied) = applied(&tree, &layer) else { break };
            forms.push(without_inodes(&applied.form.tree));
            explained.extend(applied.masked_links.into_iter().flat_map(|(link, places)| std::iter::once(link).chain(places)));
            tree = applied.tree;
        }
        if !forms.is_empty() {
            let (mounted, merged) = (overlay_mount(&forms), without_inodes(&tree));
            let paths: BTreeSet<&EntryPath> = mounted.keys().chain(merged.keys()).collect();
            let is_explained = |path: &EntryPath| {
                explained.iter().any(|explained| path.is_in(explained) || !path.is_root() && explained.is_in(path))
            };
            // A directory below a masked link may exist in one layer only. Linux lists its whiteouts.
            let is_listed_whiteout = |path: &EntryPath| {
                !explained.is_empty()
                    && matches!(mounted.get(path), Some((_, NodeKind::CharacterDevice(DeviceNumber { major: 0, minor: 0 }))))
            };
            for path in paths.into_iter().filter(|path| !is_explained(path)) {
                let found = mounted.get(path).filter(|_| !is_listed_whiteout(path));
                prop_assert_eq!(found, merged.get(path), "{}", path);
            }
        }
    }
}

/// Paths of a layer whose metadata or inode come from the layers below.
struct DependsOnParents {
    implied: BTreeSet<EntryPath>,
    links: BTreeSet<EntryPath>,
}

impl DependsOnParents {
    /// Returns metadata and type at each path, without the times of directories that no layer names. For hard links into lower
    /// layers, also returns the other links to the same inode.
    fn flat(&self, tree: &Directory) -> BTreeMap<EntryPath, (Metadata, NodeKind<Content>, BTreeSet<EntryPath>)> {
        let flat = flat(tree);
        let names = |inode: usize| -> BTreeSet<EntryPath> {
            self.links
                .iter()
                .filter(|link| flat.get(*link).is_some_and(|(.., other)| *other == inode))
                .cloned()
                .collect()
        };
        let value = |(path, (metadata, kind, inode)): (&EntryPath, &(Metadata, NodeKind<Content>, usize))| {
            let mut metadata = metadata.clone();
            if self.implied.contains(path) {
                metadata.mtime = crate::metadata::Timestamp::default();
            }
            let names = if self.links.contains(path) { names(*inode) } else { BTreeSet::new() };
            (path.clone(), (metadata, kind.clone(), names))
        };
        flat.iter().map(value).collect()
    }
}

fn without_inodes(tree: &Directory) -> MountedTree<Content> {
    flat(tree).into_iter().map(|(path, (metadata, kind, _))| (path, (metadata, kind))).collect()
}

fn path(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).unwrap()
}

fn directory(text: &str, mode: u16) -> LayerEntry<Content> {
    let metadata = Metadata { mode, ..Metadata::of_implied_directory() };
    LayerEntry { path: path(text), kind: EntryKind::Node(metadata, NodeKind::Directory) }
}

fn file(text: &str, byte: u8) -> LayerEntry<Content> {
    let content = Content { raw: false, objects: ContentObjects::Whole(ObjectHash::of(&[byte])) };
    let kind = EntryKind::Node(Metadata::of_implied_directory(), NodeKind::File { size: 1, content });
    LayerEntry { path: path(text), kind }
}

fn mark(text: &str, kind: EntryKind<Content>) -> LayerEntry<Content> {
    LayerEntry { path: path(text), kind }
}

#[test]
fn directories_that_a_layer_does_not_touch_are_shared() {
    let lower = apply(&Directory::empty_root(), &[file("a/x", 1), file("b/y", 1)]).unwrap();
    let upper = apply(&lower, &[file("a/z", 1)]).unwrap();
    let directory = |tree: &Directory, name: &str| match &tree.children[name.as_bytes()] {
        Node::Directory(directory) => Arc::as_ptr(directory),
        Node::Leaf(_) => panic!("{name} is not a directory"),
    };
    assert_eq!(directory(&lower, "b"), directory(&upper, "b"));
    assert_ne!(directory(&lower, "a"), directory(&upper, "a"));
}

#[test]
fn layer_form_has_metadata_of_implied_directories_and_content_of_links_from_lower_layers() {
    let lower = apply(&Directory::empty_root(), &[directory("tmp", 0o1777), file("bin/tool", 7)]).unwrap();
    let layer = [file("tmp/new", 1), mark("tmp/link", EntryKind::HardLink(path("bin/tool")))];
    let form = form_of(&lower, &layer).unwrap();
    assert_eq!(form.tree.directory([&b"tmp"[..]]).unwrap().metadata.mode, 0o1777);
    assert_eq!(form.implied.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/", "/tmp"]);
    assert_eq!(form.links_below[&path("tmp/link")], path("bin/tool"));
    let Some(Node::Leaf(link)) = form.tree.get(&path("tmp/link")) else { panic!("the link is missing") };
    assert!(
        matches!(&link.kind, LeafKind::File { content, .. } if content.objects == ContentObjects::Whole(ObjectHash::of(&[7])))
    );
}

#[test]
fn layer_form_marks_hidden_entries() {
    let lower = apply(&Directory::empty_root(), &[file("a/x", 1), file("b/y", 1), file("c/z", 1)]).unwrap();
    let layer = [
        mark("a/x", EntryKind::Whiteout),
        mark("b", EntryKind::Whiteout),
        file("b/new", 2),
        mark("c", EntryKind::Opaque),
        mark("c/z", EntryKind::Whiteout),
    ];
    let form = form_of(&lower, &layer).unwrap();
    let is_whiteout = |text: &str| match form.tree.get(&path(text)) {
        Some(Node::Leaf(leaf)) => leaf.kind == LeafKind::CharacterDevice(DeviceNumber { major: 0, minor: 0 }),
        _ => false,
    };
    let is_opaque = |name: &str| {
        let directory = form.tree.directory([name.as_bytes()]).unwrap();
        directory
            .metadata
            .xattrs
            .as_ref()
            .is_some_and(|xattrs| OPAQUE_XATTRS.iter().all(|mark| xattrs.contains_key(*mark)))
    };
    assert!(is_whiteout("a/x") && is_opaque("b") && is_opaque("c") && !is_opaque("a"));
    assert!(form.tree.get(&path("c/z")).is_none(), "Linux would list a whiteout in an opaque directory as a name");
}

#[test]
fn layer_with_a_mark_whose_path_leads_through_a_cycle_of_links_is_not_read_back() {
    let link = |text: &str, target: &str| {
        let kind = NodeKind::Symlink(target.as_bytes().into());
        LayerEntry { path: path(text), kind: EntryKind::Node(Metadata::of_implied_directory(), kind) }
    };
    let lower = [link("cycle", "cycle/x"), link("up", "b/.."), file("b", 1), file("hidden", 2)];
    let lower = apply(&Directory::empty_root(), &lower).unwrap();
    // `b` is a file, so that `up` is the root, until the layer replaces it.
    for mark in [mark("up", EntryKind::Opaque), mark("up/hidden", EntryKind::Whiteout)] {
        let in_order = applied(&lower, &[link("b", "cycle"), mark.clone()]).unwrap();
        assert!(in_order.tree.get(&path("hidden")).is_some() && !in_order.can_be_read_back, "{mark:?}");
        let mark_first = applied(&lower, &[mark, link("b", "cycle")]).unwrap();
        assert!(mark_first.tree.get(&path("hidden")).is_none());
    }
}

#[test]
fn opaque_root_hides_each_lower_name_because_overlay_mounts_ignore_its_attribute() {
    let lower = apply(&Directory::empty_root(), &[file("a/x", 1), file("b/y", 1)]).unwrap();
    let form = form_of(&lower, &[mark("", EntryKind::Opaque), file("b/new", 2)]).unwrap();
    assert!(matches!(form.tree.get(&path("a")), Some(Node::Leaf(_))));
    let own = form.tree.directory([&b"b"[..]]).unwrap();
    assert!(own.metadata.xattrs.is_some(), "a directory of the layer must hide the lower directory of that name");
}
