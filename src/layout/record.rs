//! The JSON files that strata publishes beside images and trees.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{chain_root, flat_root, layer_directory};
use crate::image::{ChainId, DiffId, Digest, ImageName};
use crate::layer::{LayerSummary, LossKind, Losses};
use crate::path::EntryPath;
use crate::tree::{LayerForm, links_across_directories};

/// Format version of the records. A record of another version is not read.
const FORMAT: u32 = 1;

/// Maximum size of an image's `strata.json` that is read, in bytes.
pub(crate) const MAX_IMAGE_RECORD_SIZE: u64 = 64 << 20;
/// Maximum size of a layer's `strata.json` that is read, in bytes. A longer record counts as missing: the layer is read from its blob.
pub(crate) const MAX_LAYER_RECORD_SIZE: u64 = 256 << 20;
/// Maximum size of a `losses.json` that is read, in bytes.
pub(crate) const MAX_LOSSES_SIZE: u64 = 256 << 20;
/// Maximum size of `candidates.json` and `wishlists.json` that is read, in bytes.
pub(crate) const MAX_LIST_SIZE: u64 = 64 << 20;

/// Format version of a record, and the version of strata that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    format: u32,
    strata: String,
}

impl Default for Stamp {
    /// Returns the value for a record that this version writes.
    fn default() -> Self {
        Self { format: FORMAT, strata: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Record of a layer, `.layers/XX/<digest>/.metadata/strata.json`. Written once, when the layer is published.
///
/// Only a layer with this record can be applied again without its blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerRecord {
    /// Format and writer.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// The layer's diff ID.
    pub diff_id: DiffId,
    /// Size of the blob in bytes.
    pub blob_size: u64,
    /// Size of the tar stream in the blob in bytes.
    pub unpacked_size: u64,
    /// Directories that have no entry of their own in the archive.
    // Published records contain this former name.
    #[serde(rename = "implied-folders")]
    pub implied_directories: BTreeSet<EntryPath>,
    /// Hard links to files in lower layers: path of the link, and of its target.
    pub links_into_lower_layers: BTreeMap<EntryPath, EntryPath>,
    /// Paths of lower layers that the archive hides.
    pub whiteouts: BTreeSet<EntryPath>,
    /// Directories for which the archive hides all entries of lower layers.
    // Published records contain this former name.
    #[serde(rename = "opaque-folders")]
    pub opaque_directories: BTreeSet<EntryPath>,
    /// Whether the published tree and this record together contain all information of the archive.
    pub is_complete: bool,
    /// For each inode with names in several directories, its names.
    // Published records contain this former name.
    #[serde(rename = "links-across-folders")]
    pub links_across_directories: Vec<Vec<EntryPath>>,
    /// Losses: content of the layer that CVMFS cannot store.
    pub losses: LossList,
}

impl LayerRecord {
    /// Returns the record of a layer that was just read.
    pub fn new(summary: &LayerSummary, form: &LayerForm, losses: LossList, is_complete: bool) -> Self {
        Self {
            stamp: Stamp::default(),
            diff_id: summary.diff_id,
            blob_size: summary.blob_size,
            unpacked_size: summary.unpacked_size,
            implied_directories: form.implied.clone(),
            links_into_lower_layers: form.links_below.clone(),
            whiteouts: form.whiteouts.clone(),
            opaque_directories: form.opaques.clone(),
            is_complete,
            links_across_directories: links_across_directories(&form.tree),
            losses,
        }
    }

    /// Parses a record. Returns `None` for invalid JSON or another format version.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(|record: &Self| record.stamp.format == FORMAT)
    }

    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }
}

/// Losses of an image or layer, `losses.json`: content that CVMFS cannot store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LossList(BTreeMap<LossKind, LossesOfAKind>);

/// Losses of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LossesOfAKind {
    /// Number of losses.
    pub count: u64,
    /// The paths of the first [`Losses::MAX_LISTED`].
    pub paths: Vec<EntryPath>,
}

impl LossList {
    /// Returns whether there are no losses.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds losses of one kind, except at paths that are already listed.
    pub fn add_unlisted(&mut self, kind: LossKind, paths: impl IntoIterator<Item = EntryPath>) {
        for path in paths {
            if !self.0.get(&kind).is_some_and(|losses| losses.paths.contains(&path)) {
                self.add_many(kind, 1, &[path]);
            }
        }
    }

    /// Adds the losses of another list.
    pub fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|(kind, losses)| self.add_many(*kind, losses.count, &losses.paths));
    }

    fn add_many(&mut self, kind: LossKind, count: u64, paths: &[EntryPath]) {
        let losses = self.0.entry(kind).or_default();
        losses.count += count;
        let room = Losses::MAX_LISTED.saturating_sub(losses.paths.len());
        losses.paths.extend(paths.iter().take(room).cloned());
    }

    /// Returns the list without the losses of one kind.
    pub fn without(&self, kind: LossKind) -> Self {
        Self(self.0.iter().filter(|(other, _)| **other != kind).map(|(kind, losses)| (*kind, losses.clone())).collect())
    }

    /// Returns the losses by kind.
    pub fn kinds(&self) -> impl Iterator<Item = (LossKind, &LossesOfAKind)> {
        self.0.iter().map(|(kind, losses)| (*kind, losses))
    }

    /// Parses `losses.json`.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }
}

impl From<&Losses> for LossList {
    fn from(losses: &Losses) -> Self {
        let mut list = Self::default();
        losses.kinds().for_each(|(kind, count, paths)| list.add_many(kind, count, paths));
        list
    }
}

/// Facts about a tree that its rows cannot express, stored in a property of its root catalog.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeFacts {
    /// Losses: content of the tree that CVMFS cannot store.
    pub losses: LossList,
    /// For each inode with names in several directories, its names.
    // Published catalogs contain this former name.
    #[serde(rename = "links_across_folders")]
    pub links_across_directories: Vec<Vec<EntryPath>>,
}

impl TreeFacts {
    /// Parses the property. Returns `None` for invalid JSON.
    pub fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// Returns the text of the property.
    pub fn write(&self) -> String {
        serde_json::to_string(self).expect("all maps in these types have text keys, so they are valid JSON")
    }
}

/// Record of an image, `.metadata/<image>/strata.json`: its origin, and what was published for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageRecord {
    /// Format and writer.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// The image as given on the command line or in the wishlist.
    pub source: String,
    /// The requested platform, if any.
    pub platform: Option<String>,
    /// The platform that `index.json` of an OCI layout states for the image, if the image is in no other index and its config states
    /// another platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_platform: Option<String>,
    /// The digest that was given in addition to the tag, if any: that of the index or of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The digest of the index, if the name referred to one.
    pub index: Option<Digest>,
    /// The digest of the image manifest.
    pub manifest: Digest,
    /// Whether strata generated the image manifest because the source had none.
    pub manifest_is_made: bool,
    /// The digest of the image config.
    pub config: Digest,
    /// The published layers, lowest first.
    pub layers: Vec<Digest>,
    /// The published chains, lowest first.
    pub chains: Vec<ChainId>,
    /// Whether the flat tree was published.
    pub flat: bool,
    /// Whether the image was published for podman under its name.
    #[serde(default)]
    pub podman: bool,
    /// Time of publication in seconds since 1970.
    pub published: i64,
    /// The revision in which it was published.
    pub revision: u64,
}

impl ImageRecord {
    /// Parses a record. Returns `None` for invalid JSON or another format version.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(|record: &Self| record.stamp.format == FORMAT)
    }

    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }

    /// Adds the trees of another record of the same image, and its requested digest.
    pub fn keep_trees_of(&mut self, other: &Self) {
        let add = |digest: &Digest| !self.layers.contains(digest);
        let layers: Vec<Digest> = other.layers.iter().copied().filter(add).collect();
        self.layers.extend(layers);
        let add = |chain: &ChainId| !self.chains.contains(chain);
        let chains: Vec<ChainId> = other.chains.iter().copied().filter(add).collect();
        self.chains.extend(chains);
        self.flat |= other.flat;
        self.podman |= other.podman;
        self.digest = self.digest.or(other.digest);
    }

    /// Returns the directories of all trees that were published for the image.
    pub fn trees(&self) -> BTreeSet<EntryPath> {
        let layers = self.layers.iter().map(|&digest| layer_directory(digest));
        let chains = self.chains.iter().map(|&chain| chain_root(chain));
        let flat = self.flat.then(|| flat_root(self.config));
        layers.chain(chains).chain(flat).collect()
    }
}

/// List of candidates for removal, `.metadata/candidates.json`: trees that an image name referred to before and no longer does.
///
/// Other images may still use a tree on the list. A tree that is published again is removed from the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateTrees {
    /// Explanation for a human reader of the file.
    about: String,
    trees: BTreeMap<EntryPath, LastUse>,
}

/// Explanation in the list of candidates.
const ABOUT_CANDIDATES: &str = "Candidates for removal: a name led to each of these trees and went elsewhere. Other images may \
                                use them; 'strata list --unused' finds out which trees no name leads to.";

/// When and by which image a tree was last used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastUse {
    /// Since when the image no longer uses the tree, in seconds since 1970.
    pub since: i64,
    /// The image, by its name.
    pub by: String,
}

impl Default for CandidateTrees {
    fn default() -> Self {
        Self { about: ABOUT_CANDIDATES.to_owned(), trees: BTreeMap::new() }
    }
}

impl CandidateTrees {
    /// Parses the file. Invalid JSON counts as an empty list, which only delays removals.
    pub fn parse(json: &[u8]) -> Self {
        let parsed: Option<Self> = serde_json::from_slice(json).ok();
        Self { trees: parsed.map(|parsed| parsed.trees).unwrap_or_default(), ..Self::default() }
    }

    /// Parses the file in its former format, without the explanation.
    pub fn parse_former(json: &[u8]) -> Self {
        Self { trees: serde_json::from_slice(json).unwrap_or_default(), ..Self::default() }
    }

    /// Adds the trees of another list. If both have a tree, the later time is kept, because a name referred to the tree until then.
    pub fn merge(&mut self, other: Self) {
        for (tree, left) in other.trees {
            if self.trees.get(&tree).is_none_or(|ours| ours.since < left.since) {
                self.trees.insert(tree, left);
            }
        }
    }

    /// Records that `image` no longer uses `trees` since `now` (seconds since 1970). Replaces earlier times, because the image used the
    /// trees until now.
    pub fn leave(&mut self, trees: impl IntoIterator<Item = EntryPath>, image: &str, now: i64) {
        for tree in trees {
            self.trees.insert(tree, LastUse { since: now, by: image.to_owned() });
        }
    }

    /// Removes trees that are in use from the list.
    pub fn keep<'a>(&mut self, trees: impl IntoIterator<Item = &'a EntryPath>) {
        trees.into_iter().for_each(|tree| drop(self.trees.remove(tree)));
    }

    /// Returns whether the list has no tree.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    /// Returns the last use of a tree, if it is on the list.
    pub fn get(&self, tree: &EntryPath) -> Option<&LastUse> {
        self.trees.get(tree)
    }

    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }
}

/// Image names by wishlist, `.metadata/wishlists.json`: the names that each wishlist contained at its last publication.
///
/// With this list, a later run finds out which names were removed from a wishlist. Names that were never on the wishlist are not
/// in the list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WishedNames(BTreeMap<String, BTreeSet<String>>);

impl WishedNames {
    /// Parses the file. Invalid JSON counts as an empty list, so that no image is removed by mistake.
    pub fn parse(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_default()
    }

    /// Returns the recorded names of a wishlist.
    pub fn of(&self, wishlist: &str) -> BTreeSet<ImageName> {
        self.0.get(wishlist).into_iter().flatten().filter_map(|name| name.parse().ok()).collect()
    }

    /// Returns the recorded names of all wishlists except `wishlist`.
    pub fn of_others(&self, wishlist: &str) -> BTreeSet<ImageName> {
        let others = self.0.iter().filter(|(name, _)| *name != wishlist);
        others.flat_map(|(_, names)| names).filter_map(|name| name.parse().ok()).collect()
    }

    /// Replaces the names of a wishlist. Returns whether they changed.
    pub fn replace(&mut self, wishlist: &str, names: &BTreeSet<ImageName>) -> bool {
        let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
        if names.is_empty() && !self.0.contains_key(wishlist) {
            return false;
        }
        let before = self.0.insert(wishlist.to_owned(), names);
        before.as_ref() != self.0.get(wishlist)
    }

    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }
}

fn write_json(value: &impl Serialize) -> Vec<u8> {
    let mut text =
        serde_json::to_vec_pretty(value).expect("all maps in these types have text keys, so they are valid JSON");
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> EntryPath {
        EntryPath::normalise(text.as_bytes()).unwrap()
    }

    #[test]
    fn list_of_candidates_has_an_explanation_and_is_read_back() {
        let mut list = CandidateTrees::default();
        list.leave([tree(".flat/ab/abc")], "h.org/a:1", 7);
        let text = String::from_utf8(list.write()).unwrap();
        assert!(text.contains("Candidates for removal") && text.contains("strata list --unused"), "{text}");
        assert_eq!(CandidateTrees::parse(text.as_bytes()), list);
        assert!(CandidateTrees::parse(b"no JSON").is_empty());
    }

    #[test]
    fn list_of_the_former_format_is_read() {
        let list = CandidateTrees::parse_former(br#"{".flat/ab/abc": {"since": 7, "by": "h.org/a:1"}}"#);
        assert_eq!(list.get(&tree(".flat/ab/abc")), Some(&LastUse { since: 7, by: "h.org/a:1".to_owned() }));
        assert!(CandidateTrees::parse_former(b"no JSON").is_empty());
    }

    #[test]
    fn time_of_the_last_use_is_kept() {
        let mut list = CandidateTrees::default();
        list.leave([tree("a"), tree("b")], "h.org/a:1", 7);
        list.leave([tree("a")], "h.org/b:1", 9);
        let mut former = CandidateTrees::default();
        former.leave([tree("a")], "h.org/c:1", 8);
        former.leave([tree("b"), tree("c")], "h.org/c:1", 8);
        list.merge(former);
        let left = |path: &str| list.get(&tree(path)).map(|left| (left.since, left.by.clone()));
        assert_eq!(left("a"), Some((9, "h.org/b:1".to_owned())));
        assert_eq!(left("b"), Some((8, "h.org/c:1".to_owned())));
        assert_eq!(left("c"), Some((8, "h.org/c:1".to_owned())));
    }
}
