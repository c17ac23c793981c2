//! Compares the records that strata writes about layers and trees with the actual layers and trees.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::compare::Comparison;
use super::content::ContentDigest;
use super::layer_reader::ReadLayer;
use super::naive_layer::NaiveLayer;
use super::naive_tree::NaiveTree;
use super::other_parents::OtherParents;
use crate::catalog::FACTS;
use crate::layer::{LossKind, Losses};
use crate::layout::{self, LayerRecord, LossList, TreeFacts};
use crate::message::causes;
use crate::path::EntryPath;
use crate::repository::Repository;

/// The losses that were found while the layers were read.
#[derive(Debug, Clone, Default)]
pub(super) struct ExpectedLosses(BTreeMap<LossKind, LossesOfOneKind>);

/// Number of losses of one kind, and their first paths in the order of the layers.
#[derive(Debug, Clone, Default)]
struct LossesOfOneKind {
    count: u64,
    paths: Vec<EntryPath>,
}

impl ExpectedLosses {
    /// Adds the losses of one layer. A stray marker counts once, even if several layers leave it in place.
    pub(super) fn add_layer(&mut self, losses: &Losses, stray: Vec<EntryPath>) {
        for (kind, count, paths) in losses.kinds() {
            self.add(kind, count, paths);
        }
        self.add_once(LossKind::StrayMarker, stray);
    }

    /// Adds losses of one kind, skipping paths that are listed already.
    pub(super) fn add_unlisted(&mut self, kind: LossKind, paths: impl IntoIterator<Item = EntryPath>) {
        self.add_once(kind, paths);
    }

    /// Removes the losses of one kind.
    pub(super) fn remove_kind(&mut self, kind: LossKind) {
        self.0.remove(&kind);
    }

    /// Returns the number of losses.
    pub(super) fn total(&self) -> u64 {
        self.0.values().map(|losses| losses.count).sum()
    }

    fn add(&mut self, kind: LossKind, count: u64, paths: &[EntryPath]) {
        let losses = self.0.entry(kind).or_default();
        losses.count += count;
        let room = Losses::MAX_LISTED - losses.paths.len();
        losses.paths.extend(paths.iter().take(room).cloned());
    }

    fn add_once(&mut self, kind: LossKind, paths: impl IntoIterator<Item = EntryPath>) {
        for path in paths {
            if !self.0.get(&kind).is_some_and(|losses| losses.paths.contains(&path)) {
                self.add(kind, 1, &[path]);
            }
        }
    }

    /// Compares these losses with the list that is published at `path`.
    pub(super) fn compare(&self, path: &EntryPath, listed: &LossList, comparison: &mut Comparison<'_>) {
        let listed: BTreeMap<LossKind, _> = listed.kinds().collect();
        let kinds: BTreeSet<LossKind> = self.0.keys().chain(listed.keys()).copied().collect();
        for kind in kinds {
            let none = LossesOfOneKind::default();
            let expected = self.0.get(&kind).unwrap_or(&none);
            let (count, paths) = listed.get(&kind).map_or((0, &[][..]), |losses| (losses.count, &losses.paths));
            let times = |count: u64| format!("{count} x {kind}");
            comparison.require(path, "losses", times(expected.count), times(count));
            let [expected, found] = [&expected.paths, paths].map(|paths| numbered(kind, paths));
            comparison.require_set(path, "losses", &expected, &found);
        }
    }
}

/// Returns each path with its kind, as text. A repeated path also has the number of its occurrence.
fn numbered(kind: LossKind, paths: &[EntryPath]) -> BTreeSet<String> {
    let mut seen: HashMap<&EntryPath, u64> = HashMap::new();
    let number = |path| {
        let times = seen.entry(path).or_default();
        *times += 1;
        if *times == 1 { format!("{kind} at {path}") } else { format!("{kind} at {path} ({times} times)") }
    };
    paths.iter().map(number).collect()
}

/// Returns the names of each inode that has names in several directories.
pub(super) fn links_across_directories(tree: &NaiveTree<ContentDigest>) -> BTreeSet<Vec<EntryPath>> {
    let mut names: HashMap<usize, Vec<EntryPath>> = HashMap::new();
    for (path, node) in tree.entries() {
        names.entry(node.inode).or_default().push(path.clone());
    }
    let directory = |path: &EntryPath| path.split().map(|(directory, _)| directory);
    names.into_values().filter(|names| names.iter().any(|name| directory(name) != directory(&names[0]))).collect()
}

/// Compares the facts about a tree that its root catalog stores because rows cannot express them.
pub(super) fn compare_facts(
    repository: &Repository,
    root: &EntryPath,
    tree: &NaiveTree<ContentDigest>,
    losses: &ExpectedLosses,
    comparison: &mut Comparison<'_>,
) {
    let catalog = match repository.catalog_of(root) {
        Ok(catalog) => catalog,
        Err(error) => return comparison.note(root, "catalog", "a readable catalog", causes(&error)),
    };
    let facts = catalog.property(FACTS).map_or_else(|| Some(TreeFacts::default()), TreeFacts::parse);
    let Some(facts) = facts else {
        return comparison.note(root, "facts", "valid facts about a tree", "something else");
    };
    // Deviations that are due to the layers of another image are losses of the published layer, not of this tree.
    let of_tree = facts.losses.without(LossKind::LinkIntoOtherParents).without(LossKind::LayerOfOtherParents);
    losses.compare(root, &of_tree, comparison);
    compare_links(root, &links_across_directories(tree), &facts.links_across_directories, comparison);
}

fn compare_links(
    path: &EntryPath,
    expected: &BTreeSet<Vec<EntryPath>>,
    found: &[Vec<EntryPath>],
    comparison: &mut Comparison<'_>,
) {
    let show = |names: &Vec<EntryPath>| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" = ");
    let [expected, found] = [expected.iter().map(show).collect(), found.iter().map(show).collect()];
    comparison.require_set(path, "links across directories", &expected, &found);
}

/// Compares the record beside a published layer. `form` is the layer without the `stray` markers, and `groups` are its hard
/// links across directories before the markers were removed.
pub(super) fn compare_layer_record(
    layer: &ReadLayer,
    lower: &NaiveTree<ContentDigest>,
    form: &NaiveLayer<ContentDigest>,
    groups: &BTreeSet<Vec<EntryPath>>,
    stray: &[EntryPath],
    parents: &OtherParents,
    comparison: &mut Comparison<'_>,
) {
    let path = layout::layer_record(layer.digest);
    let Some(json) = comparison.file(&path) else { return };
    let Some(record) = LayerRecord::parse(&json) else {
        return comparison.note(&path, "content", "the record of a layer", "something else");
    };
    comparison.require(&path, "diff-id", layer.diff_id, record.diff_id);
    comparison.require(&path, "blob-size", layer.blob_size, record.blob_size);
    comparison.require(&path, "unpacked-size", layer.unpacked_size, record.unpacked_size);
    let [expected, found] =
        [&form.implied, &record.implied_directories].map(|directories| parents.without_marks(directories));
    comparison.require_set(&path, "implied-folders", &expected, &found);
    comparison.require_set(&path, "whiteouts", &form.whiteouts, &record.whiteouts);
    comparison.require_set(&path, "opaque-folders", &form.opaque_directories, &record.opaque_directories);
    let links: BTreeSet<EntryPath> = record.links_into_lower_layers.keys().cloned().collect();
    comparison.require_set(&path, "links-into-lower-layers", &form.linked_below, &links);
    for (link, target) in &record.links_into_lower_layers {
        let is_true = form.tree.linked(link).map(|node| node.inode) == lower.linked(target).map(|node| node.inode);
        if !is_true && !parents.has_link(link) {
            comparison.note(&path, "links-into-lower-layers", format_args!("what {link} is"), target);
        }
    }
    let [expected, found] = [groups.iter().collect(), record.links_across_directories.iter().collect::<Vec<_>>()].map(
        |groups: Vec<&Vec<EntryPath>>| {
            groups.into_iter().filter(|names| !names.iter().any(|name| parents.has_link(name))).cloned()
        },
    );
    compare_links(&path, &expected.collect(), &found.collect::<Vec<_>>(), comparison);
    // An incomplete record is harmless: a later run reads the layer again.
    comparison.require(&path, "is-complete", true, stray.is_empty() || !record.is_complete);
    let mut losses = ExpectedLosses::default();
    losses.add_layer(&layer.losses, stray.to_vec());
    losses.compare(&path, &record.losses, comparison);
}
