//! Changes an existing repository: loads the catalogs on the paths that change, and writes those anew.
//!
//! What it costs depends on what changes and on the size of those few catalogs, never on the size of the repository:
//! finished trees are hung in by their reference, and nothing below them is looked at.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::build::{BuildError, StoredTree, marker, store};
use super::counters::Counters;
use super::database::{Catalog, Draft, MAXIMUM_CATALOG_BYTES};
use super::entry::{CatalogEntry, CatalogReference, Nesting};
use super::plan::MARKER;
use crate::layer::EntryPath;
use crate::metadata::{Metadata, Timestamp};
use crate::object::{Compression, Content, ObjectKind};
use crate::store::Staging;

/// A catalog of folders that strata keeps itself is cut one level deeper once it has more entries than this.
pub const MAXIMUM_STRUCTURAL_ENTRIES: usize = 50_000;

/// Folders below this stay where they are when the catalog around them is cut.
const WORTH_CUTTING: usize = 1_000;

/// The catalogs of a repository, about to be changed.
#[derive(Debug)]
pub struct Editor<'a> {
    staging: &'a Staging,
    /// The time of everything that strata itself makes.
    now: Timestamp,
    nothing: Content,
    root: Loaded,
    maximum_entries: usize,
}

/// A catalog that was loaded, with those below it that were.
#[derive(Debug)]
struct Loaded {
    draft: Draft,
    /// Where it came from; `None` for a new one.
    origin: Option<(CatalogReference, Counters)>,
    below: BTreeMap<EntryPath, Loaded>,
    is_changed: bool,
}

impl<'a> Editor<'a> {
    /// Opens the repository whose root catalog is `root`.
    ///
    /// `now` becomes the time of what is changed.
    pub fn open(
        staging: &'a Staging,
        compression: Compression,
        root: CatalogReference,
        now: Timestamp,
    ) -> Result<Self, BuildError> {
        let root = Loaded::open(staging, &EntryPath::ROOT, root)?;
        let nothing = staging.put_file(compression, b"").map_err(BuildError::from)?;
        Ok(Self { staging, now, nothing, root, maximum_entries: MAXIMUM_STRUCTURAL_ENTRIES })
    }

    /// Starts a repository that has nothing but its root.
    pub fn create(staging: &'a Staging, compression: Compression, now: Timestamp) -> Result<Self, BuildError> {
        let mut draft = Draft::new(EntryPath::ROOT);
        draft.properties.insert("TTL".to_owned(), DEFAULT_TTL.to_string());
        draft.entries.insert(EntryPath::ROOT, CatalogEntry::of_directory(&own_metadata(0o755, now), 0));
        let root = Loaded { draft, origin: None, below: BTreeMap::new(), is_changed: true };
        let nothing = staging.put_file(compression, b"").map_err(BuildError::from)?;
        Ok(Self { staging, now, nothing, root, maximum_entries: MAXIMUM_STRUCTURAL_ENTRIES })
    }

    /// Returns what is at `path`.
    pub fn get(&mut self, path: &EntryPath) -> Result<Option<&CatalogEntry>, BuildError> {
        Ok(self.root.catalog_of(self.staging, path)?.draft.entries.get(path))
    }

    /// Hangs a finished tree in at `path`, in the place of whatever is there.
    pub fn put_tree(&mut self, path: &EntryPath, tree: &StoredTree) -> Result<(), BuildError> {
        self.put(path, tree.transition_point.clone())?;
        let (parent, _) = path.split().expect("a tree is not the root of the repository");
        let catalog = self.root.catalog_of(self.staging, &parent)?;
        catalog.draft.nested.insert(path.clone(), tree.reference);
        catalog.draft.below += tree.totals;
        Ok(())
    }

    /// Puts an entry at `path`, in the place of whatever is there. Missing folders are made.
    ///
    /// A folder takes the place of nothing but a folder, and a file or link of nothing but those.
    pub fn put(&mut self, path: &EntryPath, entry: CatalogEntry) -> Result<(), BuildError> {
        if self.get(path)?.is_some_and(|there| there.is_directory() != entry.is_directory()) {
            return Err(BuildError::Occupied(path.clone()));
        }
        self.remove(path)?;
        let (parent, _) = path.split().expect("the root of the repository stays a folder");
        self.make_folder(&parent)?;
        let (is_folder, now) = (entry.is_directory(), self.now);
        let catalog = self.root.catalog_of(self.staging, &parent)?;
        catalog.is_changed = true;
        catalog.draft.entries.insert(path.clone(), entry);
        let folder = catalog.draft.entries.get_mut(&parent).expect("was made just now");
        folder.link_count += u32::from(is_folder);
        touch(folder, now);
        Ok(())
    }

    /// Makes sure that `path` and the folders above it are there.
    pub fn make_folder(&mut self, path: &EntryPath) -> Result<(), BuildError> {
        match self.get(path)? {
            Some(entry) if entry.is_directory() => Ok(()),
            _ => self.put(path, CatalogEntry::of_directory(&own_metadata(0o755, self.now), 0)),
        }
    }

    /// Makes sure that `path` is there and is a nested catalog.
    pub fn make_catalog(&mut self, path: &EntryPath) -> Result<(), BuildError> {
        self.make_folder(path)?;
        let (marker, staging) = (marker(&own_metadata(0o644, self.now), &self.nothing), self.staging);
        let (parent, _) = path.split().expect("the root of the repository is a catalog already");
        let catalog = self.root.catalog_of(staging, &parent)?;
        if catalog.draft.nested.contains_key(path) || catalog.below.contains_key(path) {
            return Ok(());
        }
        catalog.split(staging, path, marker)
    }

    /// Removes whatever is at `path`; tells whether there was something.
    pub fn remove(&mut self, path: &EntryPath) -> Result<bool, BuildError> {
        let Some((parent, _)) = path.split() else { return Ok(false) };
        let (staging, now) = (self.staging, self.now);
        let catalog = self.root.catalog_of(staging, &parent)?;
        let Some(entry) = catalog.draft.entries.get(path).cloned() else { return Ok(false) };
        catalog.is_changed = true;
        catalog.drop_below(staging, path)?;
        catalog.draft.entries.remove(path);
        catalog.leave_link_group(&parent, &entry);
        let folder = catalog.draft.entries.get_mut(&parent).expect("an entry lies in a folder");
        folder.link_count -= u32::from(entry.is_directory());
        touch(folder, now);
        Ok(true)
    }

    /// Stores every catalog that changed, with `revision` as that of the root catalog, and returns the new root.
    ///
    /// Catalogs that have grown too large are cut first.
    pub fn write(mut self, revision: u64) -> Result<CatalogReference, BuildError> {
        let marker = marker(&own_metadata(0o644, self.now), &self.nothing);
        for child in self.root.below.values_mut() {
            child.cut(self.staging, self.maximum_entries, &marker)?;
        }
        self.root.is_changed = true;
        let written = self.root.write(self.staging, self.now, Some(revision))?;
        Ok(written.reference)
    }
}

/// Seconds after which clients look for a new revision, as `cvmfs_server` sets it.
const DEFAULT_TTL: u32 = 240;

fn own_metadata(mode: u16, now: Timestamp) -> Metadata {
    Metadata { mode, uid: 0, gid: 0, mtime: now, xattrs: None }
}

fn touch(entry: &mut CatalogEntry, now: Timestamp) {
    entry.mtime = now.seconds;
    entry.mtime_nanoseconds = Some(now.nanoseconds);
}

impl Loaded {
    fn open(staging: &Staging, path: &EntryPath, reference: CatalogReference) -> Result<Self, BuildError> {
        let catalog = open_catalog(staging, path, reference)?;
        Ok(Self {
            draft: Draft::load(&catalog)?,
            origin: Some((reference, catalog.total_counters())),
            below: BTreeMap::new(),
            is_changed: false,
        })
    }

    /// Returns the catalog that holds what lies in or at `path`: of a transition point the one below it.
    fn catalog_of(&mut self, staging: &Staging, path: &EntryPath) -> Result<&mut Self, BuildError> {
        match self.next_below(path) {
            Some(next) => self.load(staging, &next)?.catalog_of(staging, path),
            None => Ok(self),
        }
    }

    /// Returns the transition point of this catalog on the way to `path`.
    fn next_below(&self, path: &EntryPath) -> Option<EntryPath> {
        let mut at = Some(path.clone());
        while let Some(here) = at.filter(|here| *here != self.draft.root) {
            if self.draft.nested.contains_key(&here) || self.below.contains_key(&here) {
                return Some(here);
            }
            at = here.split().map(|(parent, _)| parent);
        }
        None
    }

    fn load(&mut self, staging: &Staging, path: &EntryPath) -> Result<&mut Self, BuildError> {
        if !self.below.contains_key(path) {
            let child = Self::open(staging, path, self.draft.nested[path])?;
            self.below.insert(path.clone(), child);
        }
        Ok(self.below.get_mut(path).expect("was inserted just now"))
    }

    /// Takes out everything below `path`, nested catalogs included.
    fn drop_below(&mut self, staging: &Staging, path: &EntryPath) -> Result<(), BuildError> {
        for nested in paths_from(&self.draft.nested, path) {
            let reference = self.draft.nested.remove(&nested).expect("was listed just now");
            self.draft.below -= match self.below.remove(&nested) {
                Some(child) => child.origin.map(|(_, totals)| totals).unwrap_or_default(),
                None => open_catalog(staging, &nested, reference)?.total_counters(),
            };
        }
        for inner in paths_from(&self.below, path) {
            self.below.remove(&inner);
        }
        for inner in paths_from(&self.draft.entries, path).into_iter().filter(|inner| inner != path) {
            self.draft.entries.remove(&inner);
        }
        for bound in paths_from(&self.draft.bound, path) {
            self.draft.bound.remove(&bound);
        }
        Ok(())
    }

    /// Tells the other names of a hard link in `folder` that one of them is gone.
    fn leave_link_group(&mut self, folder: &EntryPath, gone: &CatalogEntry) {
        if gone.link_group == 0 || gone.is_directory() {
            return;
        }
        let is_sibling = |path: &EntryPath| path.split().is_some_and(|(parent, _)| parent == *folder);
        for (path, entry) in self.draft.entries.range_mut(folder..) {
            if entry.link_group == gone.link_group && is_sibling(path) {
                entry.link_count -= 1;
                if entry.link_count == 1 {
                    entry.link_group = 0;
                }
            }
        }
    }

    /// Makes the plain folder `path` a catalog of its own.
    fn split(&mut self, staging: &Staging, path: &EntryPath, marker: CatalogEntry) -> Result<(), BuildError> {
        let mut child =
            Self { draft: Draft::new(path.clone()), origin: None, below: BTreeMap::new(), is_changed: true };
        for inner in paths_from(&self.draft.entries, path) {
            let entry = self.draft.entries.remove(&inner).expect("was listed just now");
            child.draft.entries.insert(inner, entry);
        }
        for inner in paths_from(&self.draft.nested, path) {
            let reference = self.draft.nested.remove(&inner).expect("was listed just now");
            let totals = match self.below.get(&inner) {
                Some(loaded) => loaded.origin.map(|(_, totals)| totals).unwrap_or_default(),
                None => open_catalog(staging, &inner, reference)?.total_counters(),
            };
            child.draft.nested.insert(inner, reference);
            child.draft.below += totals;
            self.draft.below -= totals;
        }
        for inner in paths_from(&self.below, path) {
            let loaded = self.below.remove(&inner).expect("was listed just now");
            child.below.insert(inner, loaded);
        }
        for inner in paths_from(&self.draft.bound, path) {
            let reference = self.draft.bound.remove(&inner).expect("was listed just now");
            child.draft.bound.insert(inner, reference);
        }
        self.draft.entries.insert(path.clone(), child.draft.transition_point());
        let root = child.draft.entries.get_mut(path).expect("the folder was moved with its entries");
        *root = root.clone().with_nesting(Nesting::Root);
        child.draft.entries.entry(path.join(MARKER)).or_insert(marker);
        self.below.insert(path.clone(), child);
        self.is_changed = true;
        Ok(())
    }

    /// Cuts off the folders of a catalog that has grown too large.
    fn cut(&mut self, staging: &Staging, maximum: usize, marker: &CatalogEntry) -> Result<(), BuildError> {
        if self.is_changed && self.draft.entries.len() > maximum {
            for path in self.heavy_folders() {
                self.split(staging, &path, marker.clone())?;
            }
        }
        self.below.values_mut().try_for_each(|child| child.cut(staging, maximum, marker))
    }

    /// Returns the folders right below this catalog's own that hold many entries.
    fn heavy_folders(&self) -> Vec<EntryPath> {
        let mut weights: BTreeMap<EntryPath, usize> = BTreeMap::new();
        let depth = self.draft.root.components().count() + 1;
        for path in self.draft.entries.keys() {
            if path.components().count() > depth {
                let folder = path.components().take(depth).fold(EntryPath::ROOT, |folder, name| folder.join(name));
                *weights.entry(folder).or_default() += 1;
            }
        }
        weights.into_iter().filter(|(_, weight)| *weight >= WORTH_CUTTING).map(|(folder, _)| folder).collect()
    }

    /// Stores this catalog and those below it, if they changed.
    fn write(mut self, staging: &Staging, now: Timestamp, revision: Option<u64>) -> Result<StoredTree, BuildError> {
        let below: Vec<_> = std::mem::take(&mut self.below).into_iter().collect();
        let written = below.into_par_iter().map(|(path, child)| {
            let before = child.origin.map(|(_, totals)| totals).unwrap_or_default();
            child.write(staging, now, None).map(|stored| (path, before, stored))
        });
        for (path, before, stored) in written.collect::<Result<Vec<_>, _>>()? {
            if self.draft.nested.insert(path.clone(), stored.reference) != Some(stored.reference) {
                self.is_changed = true;
                self.draft.below -= before;
                self.draft.below += stored.totals;
                self.draft.entries.insert(path, stored.transition_point);
            }
        }
        let mut totals = self.draft.own_counters();
        totals += self.draft.below;
        let transition_point = self.draft.transition_point();
        let reference = match self.origin {
            Some((reference, _)) if !self.is_changed => reference,
            _ => {
                self.date(now, revision);
                store(staging, self.draft)?
            }
        };
        Ok(StoredTree { reference, transition_point, totals })
    }

    /// Sets what a catalog says about its own version.
    fn date(&mut self, now: Timestamp, revision: Option<u64>) {
        let properties = &mut self.draft.properties;
        let last = properties.get("revision").and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        let mut set = |name: &str, value: String| properties.insert(name.to_owned(), value);
        set("revision", revision.unwrap_or(last + 1).to_string());
        set("last_modified", now.seconds.to_string());
        if let Some((reference, _)) = self.origin {
            set("previous_revision", reference.hash.to_string());
        }
    }
}

fn open_catalog(staging: &Staging, path: &EntryPath, reference: CatalogReference) -> Result<Catalog, BuildError> {
    let bytes = staging.read_decoded(reference.hash, ObjectKind::Catalog, MAXIMUM_CATALOG_BYTES)?;
    Ok(Catalog::parse(&bytes, path)?)
}

/// Returns the keys at and below `path`, which lie side by side in the order of paths.
fn paths_from<V>(map: &BTreeMap<EntryPath, V>, path: &EntryPath) -> Vec<EntryPath> {
    map.range(path..).map(|(key, _)| key).take_while(|key| key.is_in(path)).cloned().collect()
}

#[cfg(test)]
mod tests;
