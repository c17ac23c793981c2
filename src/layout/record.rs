//! The JSON files in which strata tells what a tree by itself cannot.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{chain_root, flat_root, layer_directory};
use crate::image::{ChainId, DiffId, Digest, ImageName};
use crate::layer::{LayerSummary, LossKind, Losses};
use crate::path::EntryPath;
use crate::tree::{LayerForm, links_across_directories};

/// The form of these files. Another one is not read.
const FORMAT: u32 = 1;

/// Which form a file has, and who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    format: u32,
    strata: String,
}

impl Default for Stamp {
    /// Returns the stamp of what this version writes.
    fn default() -> Self {
        Self { format: FORMAT, strata: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// `.layers/XX/<digest>/.metadata/strata.json`: written once, when the layer is published.
///
/// Only a layer with this record can be applied again without its blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerRecord {
    /// Form and writer.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// The layer's diff ID.
    pub diff_id: DiffId,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Bytes of the tar stream in it.
    pub unpacked_size: u64,
    /// Directories that the archive never named.
    #[serde(rename = "implied-folders")]
    pub implied_directories: BTreeSet<EntryPath>,
    /// Hard links whose inode lies in lower layers, by path.
    pub links_into_lower_layers: BTreeMap<EntryPath, EntryPath>,
    /// What the archive hides of lower layers.
    pub whiteouts: BTreeSet<EntryPath>,
    /// Directories in which the archive hides everything of lower layers.
    #[serde(rename = "opaque-folders")]
    pub opaque_directories: BTreeSet<EntryPath>,
    /// Whether the published tree and this record say all that the archive says.
    pub is_complete: bool,
    /// The names of each inode that has some in several directories.
    #[serde(rename = "links-across-folders")]
    pub links_across_directories: Vec<Vec<EntryPath>>,
    /// What CVMFS cannot hold.
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

    /// Parses a record; `None` for one of another form.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(|record: &Self| record.stamp.format == FORMAT)
    }
    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }
}

/// What of an image or layer CVMFS cannot hold: `losses.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LossList(BTreeMap<LossKind, LossesOfAKind>);

/// The losses of one kind: their number, and the first paths.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LossesOfAKind {
    /// How many there are.
    pub count: u64,
    /// The paths of the first [`Losses::MAX_LISTED`].
    pub paths: Vec<EntryPath>,
}

impl LossList {
    /// Tells whether nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes losses of one kind at paths that are not listed yet.
    pub fn add_unlisted(&mut self, kind: LossKind, paths: impl IntoIterator<Item = EntryPath>) {
        for path in paths {
            if !self.0.get(&kind).is_some_and(|losses| losses.paths.contains(&path)) {
                self.add_many(kind, 1, &[path]);
            }
        }
    }

    /// Notes the losses of another list, too.
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

/// What the rows of a tree cannot tell: kept in a property of its root catalog.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeFacts {
    /// What CVMFS cannot hold of the tree.
    pub losses: LossList,
    /// The names of each inode that has some in several directories.
    #[serde(rename = "links_across_folders")]
    pub links_across_directories: Vec<Vec<EntryPath>>,
}

impl TreeFacts {
    /// Parses the property; facts of another form count as none.
    pub fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// Returns the text of the property.
    pub fn write(&self) -> String {
        serde_json::to_string(self).expect("these types have text keys and no failing parts")
    }
}

/// `.metadata/<image>/strata.json`: where an image came from and what was published for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageRecord {
    /// Form and writer.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// The image as it was named on the command line.
    pub source: String,
    /// The platform that was asked for, if one was.
    pub platform: Option<String>,
    /// The platform that the list of a layout names for the image, where it stands in no index and its config says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listed_platform: Option<String>,
    /// The digest that was given beside the tag of its name, if one was: of the index or of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The digest of the index that the name stood for, if it stood for one.
    pub index: Option<Digest>,
    /// The digest of the image manifest.
    pub manifest: Digest,
    /// Whether the source had no image manifest, so that one was made.
    pub manifest_is_made: bool,
    /// The digest of the image config.
    pub config: Digest,
    /// The layers that were published, from the lowest up.
    pub layers: Vec<Digest>,
    /// The chains that were published, from the lowest up.
    pub chains: Vec<ChainId>,
    /// Whether the root file system was published.
    pub flat: bool,
    /// Whether podman was to see it under its name.
    #[serde(default)]
    pub podman: bool,
    /// When, in seconds since 1970.
    pub published: i64,
    /// The revision that brought it.
    pub revision: u64,
}

impl ImageRecord {
    /// Parses a record; `None` for one of another form.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().filter(|record: &Self| record.stamp.format == FORMAT)
    }

    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }

    /// Takes over what is published for the same image by another record, and the digest of its name.
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

/// `.metadata/candidates.json`: trees that a name left, and when.
///
/// They are candidates for removal and no more: other images may use them. What is published again is taken off the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateTrees {
    /// Tells a reader of the file what it is.
    about: String,
    trees: BTreeMap<EntryPath, Left>,
}

/// What the list of candidates says of itself.
const ABOUT_CANDIDATES: &str = "Candidates for removal: a name led to each of these trees and went elsewhere. Other images may \
                                use them; 'strata list --unused' finds out which trees no name leads to.";

/// When a tree was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Seconds since 1970.
    pub since: i64,
    /// The image whose name went elsewhere.
    pub by: String,
}

impl Default for CandidateTrees {
    fn default() -> Self {
        Self { about: ABOUT_CANDIDATES.to_owned(), trees: BTreeMap::new() }
    }
}

impl CandidateTrees {
    /// Parses the file; an unreadable one counts as empty, which only postpones what is deleted.
    pub fn parse(json: &[u8]) -> Self {
        let parsed: Option<Self> = serde_json::from_slice(json).ok();
        Self { trees: parsed.map(|parsed| parsed.trees).unwrap_or_default(), ..Self::default() }
    }

    /// Parses the file in its former form, which had the trees alone.
    pub fn parse_former(json: &[u8]) -> Self {
        Self { trees: serde_json::from_slice(json).unwrap_or_default(), ..Self::default() }
    }

    /// Adds what another list has. Of two times for a tree the later one holds: a name led to it until then.
    pub fn merge(&mut self, other: Self) {
        for (tree, left) in other.trees {
            if self.trees.get(&tree).is_none_or(|ours| ours.since < left.since) {
                self.trees.insert(tree, left);
            }
        }
    }

    /// Notes that `image` left `trees` at the time `now`, in seconds since 1970. It used them until then, so an earlier note
    /// holds no longer.
    pub fn leave(&mut self, trees: impl IntoIterator<Item = EntryPath>, image: &str, now: i64) {
        for tree in trees {
            self.trees.insert(tree, Left { since: now, by: image.to_owned() });
        }
    }

    /// Takes trees that are in use off the list.
    pub fn keep<'a>(&mut self, trees: impl IntoIterator<Item = &'a EntryPath>) {
        trees.into_iter().for_each(|tree| drop(self.trees.remove(tree)));
    }

    /// Tells whether there is no tree on the list.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    /// Returns when a tree was left, if it is on the list.
    pub fn get(&self, tree: &EntryPath) -> Option<&Left> {
        self.trees.get(tree)
    }

    /// Returns the text of the file.
    pub fn write(&self) -> Vec<u8> {
        write_json(self)
    }
}

/// `.metadata/wishlists.json`: the names that each wishlist held when it was last published for.
///
/// So a later run knows what a wishlist no longer holds, and leaves alone what it never held.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WishedNames(BTreeMap<String, BTreeSet<String>>);

impl WishedNames {
    /// Parses the file; an unreadable one counts as empty, so that nothing is taken for unwanted.
    pub fn parse(json: &[u8]) -> Self {
        serde_json::from_slice(json).unwrap_or_default()
    }

    /// Returns the names that a wishlist held.
    pub fn of(&self, wishlist: &str) -> BTreeSet<ImageName> {
        self.0.get(wishlist).into_iter().flatten().filter_map(|name| name.parse().ok()).collect()
    }

    /// Returns the names that wishlists other than `wishlist` hold.
    pub fn of_others(&self, wishlist: &str) -> BTreeSet<ImageName> {
        let others = self.0.iter().filter(|(name, _)| *name != wishlist);
        others.flat_map(|(_, names)| names).filter_map(|name| name.parse().ok()).collect()
    }

    /// Notes the names that a wishlist holds; tells whether they are others than before.
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
    let mut text = serde_json::to_vec_pretty(value).expect("these types have text keys and no failing parts");
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
    fn list_of_candidates_says_what_it_is_and_is_read_back() {
        let mut list = CandidateTrees::default();
        list.leave([tree(".flat/ab/abc")], "h.org/a:1", 7);
        let text = String::from_utf8(list.write()).unwrap();
        assert!(text.contains("Candidates for removal") && text.contains("strata list --unused"), "{text}");
        assert_eq!(CandidateTrees::parse(text.as_bytes()), list);
        assert!(CandidateTrees::parse(b"no JSON").is_empty());
    }

    #[test]
    fn list_of_the_former_form_is_read() {
        let list = CandidateTrees::parse_former(br#"{".flat/ab/abc": {"since": 7, "by": "h.org/a:1"}}"#);
        assert_eq!(list.get(&tree(".flat/ab/abc")), Some(&Left { since: 7, by: "h.org/a:1".to_owned() }));
        assert!(CandidateTrees::parse_former(b"no JSON").is_empty());
    }

    #[test]
    fn tree_counts_from_when_the_last_name_left_it() {
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
