//! Decides where a tree is split into nested catalogs.
//!
//! A client loads the catalog of each directory that it enters. Therefore the directories with the most entries become nested
//! catalogs, until the remaining parent catalog is small enough. Files that programs use together usually stay in one catalog.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::layer::DeviceNumber;
use crate::observer::Reporter;
use crate::path::EntryPath;
use crate::tree::{Directory, LeafKind, Node, needed_whiteout};

/// Name of the marker: the file whose presence makes a directory a nested catalog.
pub const MARKER: &[u8] = b".cvmfscatalog";

/// Maximum number of entries of a catalog in a tree. A single directory with more entries exceeds it.
// The value of CVMFS's automatic splits (`kDefaultMaxWeight`). CVMFS warns only at 200,000 entries in a root catalog and
// 500,000 in a nested one.
pub const MAX_ENTRIES: usize = 100_000;

/// Minimum number of entries of a nested catalog. Smaller directories are split off only if the parent would exceed
/// [`MAX_ENTRIES`], because each catalog costs clients a request.
// CVMFS merges automatic catalogs with fewer entries again (`kDefaultMinWeight`).
const MIN_NESTED_ENTRIES: usize = 1_000;

/// Maximum number of markers that the image itself may contain in one tree.
// Clients search the list of nested catalogs linearly, so an image must not be able to create any number of them.
const MAX_PAYLOAD_MARKERS: usize = 1_000;

/// Returns the directories of a tree that become nested catalogs, including its root, so that each catalog has about `target`
/// entries.
///
/// A directory that contains a marker in the image always becomes a nested catalog.
pub(super) fn cuts(tree: &Directory, root: &EntryPath, target: usize, reporter: &Reporter) -> BTreeSet<EntryPath> {
    let mut plan = Plan { target, reporter, cuts: BTreeSet::from([root.clone()]) };
    plan.weigh(tree, root);
    plan.cuts
}

struct Plan<'r> {
    target: usize,
    reporter: &'r Reporter,
    cuts: BTreeSet<EntryPath>,
}

impl Plan<'_> {
    /// Plans the splits below `directory`, and returns the number of entries that remain in the catalog that contains it.
    fn weigh(&mut self, directory: &Directory, path: &EntryPath) -> usize {
        let mut weights = Vec::new();
        let mut total = directory.children.len() + 1;
        for (name, node) in &directory.children {
            if let Node::Directory(child) = node {
                let path = path.join(name);
                let weight = self.weigh(child, &path);
                // `cvmfs_swissknife check` refuses a marker in a directory that is not a nested catalog.
                if child.children.contains_key(MARKER) {
                    self.cuts.insert(path);
                } else {
                    // The child's own entry stays in this catalog, as a plain row or as a transition point.
                    total += weight - 1;
                    weights.push((weight - 1, path));
                }
            }
        }
        // Directories of equal weight are ordered by name, so that the result is deterministic.
        weights.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        for (weight, child) in weights {
            // A split without entries would cost clients a request and save nothing.
            let is_too_much = total > MAX_ENTRIES && weight > 0;
            if !(is_too_much || total > self.target && weight >= MIN_NESTED_ENTRIES) {
                break;
            }
            total -= weight;
            self.cuts.insert(child);
        }
        if total > MAX_ENTRIES {
            self.reporter.warn(format_args!(
                "the catalog of {} has {total} entries (recommended maximum {MAX_ENTRIES}); clients download the catalog as a whole",
                path.shown()
            ));
        }
        total
    }
}

/// Removes stray markers: entries that have the name of a marker, but are not valid markers. Returns the tree and the removed
/// paths.
///
/// A marker must be a regular file, and a tree may have at most 1,000 markers.
pub fn without_stray_markers(tree: &Arc<Directory>) -> (Arc<Directory>, Vec<EntryPath>) {
    let (mut left, mut stray) = (Arc::clone(tree), Vec::new());
    for (number, (path, node)) in named_as_markers(tree).into_iter().enumerate() {
        // CVMFS creates a nested catalog only for a marker that is a regular file.
        if !is_file(node) || number >= MAX_PAYLOAD_MARKERS {
            replace(&mut left, &path, None);
            stray.push(path);
        }
    }
    (left, stray)
}

/// Removes stray markers from a layer in overlay form; `lower` is the tree below the layer. Entries that the layer hides must
/// stay hidden.
///
/// If `lower` has a file with the name of a marker, a whiteout of that file is kept, and a stray marker above it is replaced by a
/// whiteout. This is valid because `cvmfs_swissknife check` checks only the name of a marker. A whiteout that hides nothing is
/// removed, because it would cost a nested catalog. At the root, the marker of the catalog itself hides the entry of lower layers.
pub fn layer_without_stray_markers(layer: &Arc<Directory>, lower: &Directory) -> (Arc<Directory>, Vec<EntryPath>) {
    let (mut left, mut stray) = (Arc::clone(layer), Vec::new());
    for (number, (path, node)) in named_as_markers(layer).into_iter().enumerate() {
        let fits = number < MAX_PAYLOAD_MARKERS;
        let is_at_the_root = path.components().count() == 1;
        let whiteout = if is_at_the_root { None } else { needed_whiteout(layer, lower, &path) };
        let is_needless = is_whiteout(node) && whiteout.is_none();
        if fits && (is_file(node) || is_whiteout(node) && !is_needless) {
            continue;
        }
        replace(&mut left, &path, whiteout.filter(|_| fits));
        if !is_needless {
            stray.push(path);
        }
    }
    (left, stray)
}

/// Returns all nodes of a tree that have the name of a marker, with their paths.
fn named_as_markers(tree: &Directory) -> Vec<(EntryPath, &Node)> {
    fn search<'t>(directory: &'t Directory, at: &mut Vec<&'t [u8]>, found: &mut Vec<(EntryPath, &'t Node)>) {
        for (name, node) in &directory.children {
            at.push(name);
            if **name == *MARKER {
                found.push((at.iter().fold(EntryPath::ROOT, |path, name| path.join(name)), node));
            }
            if let Node::Directory(child) = node {
                search(child, at, found);
            }
            at.pop();
        }
    }
    let mut found = Vec::new();
    search(tree, &mut Vec::new(), &mut found);
    found
}

fn is_file(node: &Node) -> bool {
    matches!(node, Node::Leaf(leaf) if matches!(leaf.kind, LeafKind::File { .. }))
}

fn is_whiteout(node: &Node) -> bool {
    let number = DeviceNumber { major: 0, minor: 0 };
    matches!(node, Node::Leaf(leaf) if leaf.kind == LeafKind::CharacterDevice(number))
}

/// Replaces or removes the node at a path. Does nothing if a directory above it was removed before (as a stray marker).
fn replace(tree: &mut Arc<Directory>, path: &EntryPath, new: Option<Node>) {
    let (parent, name) = path.split().expect("a node with the name of a marker is not the root");
    if tree.directory(parent.components()).is_none() {
        return;
    }
    if let Some(directory) = Arc::make_mut(tree).directory_mut(parent.components()) {
        match new {
            Some(node) => drop(directory.children.insert(name.into(), node)),
            None => drop(directory.children.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Metadata;
    use crate::object::{Content, ContentObjects, ObjectHash};
    use crate::tree::Leaf;

    fn directory(files: usize, directories: Vec<(&str, Directory)>) -> Directory {
        let mut directory = Directory::new(Metadata::of_implied_directory());
        for number in 0..files {
            directory.children.insert(format!("file{number}").into_bytes().into(), fifo());
        }
        for (name, child) in directories {
            directory.children.insert(name.as_bytes().into(), Node::Directory(Arc::new(child)));
        }
        directory
    }

    fn fifo() -> Node {
        Node::Leaf(Arc::new(Leaf { metadata: Metadata::of_implied_directory(), kind: LeafKind::Fifo }))
    }

    fn cut_names(tree: &Directory, target: usize) -> Vec<String> {
        cuts(tree, &EntryPath::ROOT, target, &Reporter::silent()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tree_of_the_target_size_is_one_catalog() {
        assert_eq!(cut_names(&directory(1998, vec![("a", directory(0, vec![]))]), 2000), ["/"]);
    }

    #[test]
    fn largest_directories_are_split_first_and_no_more_than_needed() {
        let tree = directory(
            0,
            vec![("a", directory(1200, vec![])), ("b", directory(1300, vec![])), ("c", directory(1100, vec![]))],
        );
        assert_eq!(cut_names(&tree, 2400), ["/", "/b"]);
        assert_eq!(cut_names(&tree, 1200), ["/", "/a", "/b"]);
    }

    #[test]
    fn small_directories_are_split_only_at_the_hard_limit() {
        let children = || (0..120).map(|number| (format!("d{number:03}"), directory(900, vec![])));
        let named: Vec<(String, Directory)> = children().collect();
        let tree = directory(0, named.iter().map(|(name, child)| (name.as_str(), child.clone())).collect());
        let cuts = cut_names(&tree, 2000);
        assert_eq!(cuts.len() - 1, (120 * 901 + 1 - MAX_ENTRIES).div_ceil(900));
        assert_eq!(cuts[1], "/d000");
    }

    #[test]
    fn directory_with_a_marker_of_the_image_is_a_catalog() {
        let mut marked = directory(1, vec![]);
        marked.children.insert(MARKER.into(), fifo());
        assert_eq!(cut_names(&directory(0, vec![("m", marked)]), 2000), ["/", "/m"]);
    }

    #[test]
    fn marker_that_is_not_a_regular_file_is_removed() {
        let mut marked = directory(1, vec![]);
        marked.children.insert(MARKER.into(), fifo());
        let tree = Arc::new(directory(0, vec![("m", marked)]));
        let (kept, stray) = without_stray_markers(&tree);
        assert_eq!(stray.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/m/.cvmfscatalog"]);
        assert!(kept.get(&stray[0]).is_none() && tree.get(&stray[0]).is_some());
    }

    fn leaf(kind: LeafKind) -> Node {
        Node::Leaf(Arc::new(Leaf { metadata: Metadata::of_implied_directory(), kind }))
    }

    /// Returns a tree that has `marker` under the name of a marker at the root and in each of `directories`.
    fn with_markers(directories: &[&str], marker: &Node) -> Arc<Directory> {
        let mut tree = directory(0, vec![]);
        for name in directories {
            let mut marked = directory(1, vec![]);
            marked.children.insert(MARKER.into(), marker.clone());
            tree.children.insert(name.as_bytes().into(), Node::Directory(Arc::new(marked)));
        }
        tree.children.insert(MARKER.into(), marker.clone());
        Arc::new(tree)
    }

    fn file() -> Node {
        let content = Content { raw: false, objects: ContentObjects::Whole(ObjectHash::of(b"")) };
        leaf(LeafKind::File { size: 0, content })
    }

    fn whiteout() -> Node {
        leaf(LeafKind::CharacterDevice(DeviceNumber { major: 0, minor: 0 }))
    }

    fn at<'t>(tree: &'t Directory, path: &str) -> Option<&'t Node> {
        tree.get(&EntryPath::normalise(path.as_bytes()).unwrap())
    }

    #[test]
    fn whiteout_of_a_marker_is_kept_only_if_it_hides_a_marker_below_the_root() {
        let lower = with_markers(&["hides"], &file());
        let layer = with_markers(&["hides", "useless"], &whiteout());
        let (kept, stray) = layer_without_stray_markers(&layer, &lower);
        assert_eq!(stray, []);
        assert!(at(&kept, "hides/.cvmfscatalog").is_some_and(is_whiteout));
        assert!(at(&kept, "useless/.cvmfscatalog").is_none() && at(&kept, ".cvmfscatalog").is_none());
    }

    #[test]
    fn stray_marker_of_a_layer_becomes_a_whiteout_only_if_it_hides_a_lower_entry() {
        let lower = with_markers(&["a"], &file());
        let (kept, stray) = layer_without_stray_markers(&with_markers(&["a", "b"], &fifo()), &lower);
        let stray: Vec<String> = stray.iter().map(ToString::to_string).collect();
        assert_eq!(stray, ["/.cvmfscatalog", "/a/.cvmfscatalog", "/b/.cvmfscatalog"]);
        assert!(at(&kept, "a/.cvmfscatalog").is_some_and(is_whiteout));
        assert!(at(&kept, "b/.cvmfscatalog").is_none() && at(&kept, ".cvmfscatalog").is_none());
    }

    #[test]
    fn whiteouts_count_towards_the_maximum_number_of_markers() {
        let names: Vec<String> = (0..=MAX_PAYLOAD_MARKERS).map(|number| format!("d{number:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let lower = with_markers(&names, &file());
        let mut layer = with_markers(&names, &whiteout());
        Arc::make_mut(&mut layer).children.remove(MARKER);
        let (kept, stray) = layer_without_stray_markers(&layer, &lower);
        assert_eq!(stray.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/d1000/.cvmfscatalog"]);
        assert!(at(&kept, "d0999/.cvmfscatalog").is_some() && at(&kept, "d1000/.cvmfscatalog").is_none());
    }
}
