//! Changes an existing repository: loads the catalogs on the changed paths, and changes their rows.
//!
//! The cost depends on the change and on the size of those few catalogs, not on the size of the repository: a finished tree is
//! inserted as a reference to its root catalog, and the catalogs below it are not read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use rayon::prelude::*;

use super::bits::UNKNOWN;
use super::build::{BuildError, StoredTree, marker, put_catalog};
use super::counters::Counters;
use super::database::{Catalog, CatalogError, References, WritableCatalog};
use super::entry::{CatalogEntry, CatalogReference, Nesting};
use super::plan::MARKER;
use crate::metadata::{Metadata, Timestamp};
use crate::object::{Compression, Content, ObjectKind};
use crate::path::EntryPath;
use crate::span::{BYTES, span};
use crate::store::Staging;

/// Maximum number of entries of a catalog that [`Editor`] has loaded and changed, except the root catalog. A larger catalog is
/// split at its subdirectories.
pub const MAX_STRUCTURAL_ENTRIES: i64 = 50_000;

/// Minimum number of entries of a subdirectory that becomes a nested catalog when its catalog is split.
const MIN_SPLIT_ENTRIES: usize = 1_000;

/// Removes a catalog from the cache of the repository and returns it, so that it is not read again. Returns `None` if the catalog
/// is not cached or is in use.
pub type TakeCatalog<'a> = &'a dyn Fn(&EntryPath, CatalogReference) -> Option<Catalog>;

/// Source of the catalogs of a repository: the cache, and for other catalogs the store.
#[derive(Clone, Copy)]
struct CatalogSource<'a> {
    staging: &'a Staging,
    take: TakeCatalog<'a>,
}

/// Changes the catalogs of a repository. No change is stored until [`Self::write`].
pub struct Editor<'a> {
    catalogs: CatalogSource<'a>,
    /// Modification time of changed directories, and of directories and markers that the editor creates.
    now: Timestamp,
    empty_content: Content,
    root: LoadedCatalog,
    max_entries: i64,
    min_split_entries: usize,
}

/// A loaded catalog, with the loaded catalogs below it.
#[derive(Debug)]
struct LoadedCatalog {
    catalog: WritableCatalog,
    /// Reference to the stored catalog, and its total counters before any change; `None` for a new catalog.
    origin: Option<(CatalogReference, Counters)>,
    below: BTreeMap<EntryPath, LoadedCatalog>,
    is_changed: bool,
}

impl<'a> Editor<'a> {
    /// Opens the repository whose root catalog is `root`.
    ///
    /// `now` becomes the modification time of changed directories. A catalog that `take` does not return is read from the store.
    pub fn open(
        staging: &'a Staging,
        compression: Compression,
        root: CatalogReference,
        take: TakeCatalog<'a>,
        now: Timestamp,
    ) -> Result<Self, BuildError> {
        let catalogs = CatalogSource { staging, take };
        let root = LoadedCatalog::open(catalogs, &EntryPath::ROOT, root)?;
        let empty_content = staging.put_file(compression, b"").map_err(BuildError::from)?;
        Ok(Self::of(catalogs, now, empty_content, root))
    }

    /// Creates a repository that contains only its root directory.
    pub fn create(staging: &'a Staging, compression: Compression, now: Timestamp) -> Result<Self, BuildError> {
        let mut root = LoadedCatalog::create(&EntryPath::ROOT)?;
        // Clients take their default, the same value, if a root catalog has no TTL.
        root.catalog.set_property("TTL", &DEFAULT_TTL.to_string())?;
        root.catalog.put(&EntryPath::ROOT, &CatalogEntry::of_directory(&root_owned_metadata(0o755, now), 0))?;
        let empty_content = staging.put_file(compression, b"").map_err(BuildError::from)?;
        Ok(Self::of(CatalogSource { staging, take: &|_, _| None }, now, empty_content, root))
    }

    fn of(catalogs: CatalogSource<'a>, now: Timestamp, empty_content: Content, root: LoadedCatalog) -> Self {
        let (max_entries, min_split_entries) = (MAX_STRUCTURAL_ENTRIES, MIN_SPLIT_ENTRIES);
        Self { catalogs, now, empty_content, root, max_entries, min_split_entries }
    }

    /// Returns the entry at `path`.
    pub fn get(&mut self, path: &EntryPath) -> Result<Option<CatalogEntry>, BuildError> {
        Ok(self.root.catalog_of(self.catalogs, path)?.catalog.get(path)?)
    }

    /// Inserts a stored tree at `path`, and replaces an existing tree or directory.
    pub fn put_tree(&mut self, path: &EntryPath, tree: &StoredTree) -> Result<(), BuildError> {
        self.put(path, tree.transition_point.clone())?;
        let (parent, _) = path.split().expect("callers do not insert a tree as the root of the repository");
        let LoadedCatalog { catalog, .. } = self.root.catalog_of(self.catalogs, &parent)?;
        catalog.put_reference(References::Nested, path, tree.reference)?;
        *catalog.below() += tree.totals;
        Ok(())
    }

    /// Writes an entry at `path`, and replaces an existing entry. Missing parent directories are created.
    ///
    /// A directory replaces only a directory, and a file or link replaces only a file or link; otherwise this fails with
    /// [`BuildError::Occupied`].
    pub fn put(&mut self, path: &EntryPath, entry: CatalogEntry) -> Result<(), BuildError> {
        let (parent, _) = path.split().expect("callers do not replace the root of the repository");
        // Only the catalog of the parent directory is read, because the catalog of a replaced tree may be lost.
        let before = self.root.catalog_of(self.catalogs, &parent)?.catalog.get(path)?;
        if before.as_ref().is_some_and(|there| there.is_directory() != entry.is_directory()) {
            return Err(BuildError::Occupied(path.clone()));
        }
        if entry.is_directory() {
            self.remove(path)?;
        }
        self.make_directory(&parent)?;
        let loaded = self.root.catalog_of(self.catalogs, &parent)?;
        loaded.is_changed = true;
        loaded.catalog.put(path, &entry)?;
        if let Some(before) = before {
            loaded.leave_link_group(&parent, &before)?;
        }
        let catalog = &mut loaded.catalog;
        let mut directory = catalog.directory(&parent)?;
        // `cvmfs_swissknife check` requires 2 plus the number of subdirectories, nested catalogs included.
        directory.link_count += u32::from(entry.is_directory());
        touch(&mut directory, self.now);
        Ok(catalog.put(&parent, &directory)?)
    }

    /// Creates the directory `path` and its parents, unless they exist. Fails if an existing entry is a file or link.
    pub fn make_directory(&mut self, path: &EntryPath) -> Result<(), BuildError> {
        match self.get(path)? {
            Some(entry) if entry.is_directory() => Ok(()),
            _ => self.put(path, CatalogEntry::of_directory(&root_owned_metadata(0o755, self.now), 0)),
        }
    }

    /// Makes `path` a nested catalog, and creates the directory if it is missing.
    pub fn make_catalog(&mut self, path: &EntryPath) -> Result<(), BuildError> {
        self.make_directory(path)?;
        let (marker, catalogs) = (marker(&root_owned_metadata(0o644, self.now), &self.empty_content), self.catalogs);
        let (parent, _) =
            path.split().expect("callers do not pass the root of the repository, which always has a catalog");
        let catalog = self.root.catalog_of(catalogs, &parent)?;
        if catalog.has_below(path)? { Ok(()) } else { catalog.split(catalogs, path, &marker) }
    }

    /// Removes the entry at `path` and everything below it. Returns whether the path existed.
    pub fn remove(&mut self, path: &EntryPath) -> Result<bool, BuildError> {
        let Some((parent, _)) = path.split() else { return Ok(false) };
        let (catalogs, now) = (self.catalogs, self.now);
        let catalog = self.root.catalog_of(catalogs, &parent)?;
        let Some(entry) = catalog.catalog.get(path)? else { return Ok(false) };
        catalog.is_changed = true;
        catalog.drop_from(catalogs, path)?;
        catalog.leave_link_group(&parent, &entry)?;
        let mut directory = catalog.catalog.directory(&parent)?;
        // A link count that another program wrote may be too small.
        directory.link_count = directory.link_count.saturating_sub(u32::from(entry.is_directory())).max(2);
        touch(&mut directory, now);
        catalog.catalog.put(&parent, &directory)?;
        Ok(true)
    }

    /// Stores every changed catalog, and returns the reference to the new root catalog. The root catalog gets the number
    /// `revision`.
    ///
    /// Before that, changed catalogs with more than [`MAX_STRUCTURAL_ENTRIES`] entries are split, except the root catalog.
    pub fn write(mut self, revision: u64) -> Result<CatalogReference, BuildError> {
        let marker = marker(&root_owned_metadata(0o644, self.now), &self.empty_content);
        for child in self.root.below.values_mut() {
            child.split_large(self.catalogs, (self.max_entries, self.min_split_entries), &marker)?;
        }
        self.root.is_changed = true;
        let written = self.root.write(self.catalogs.staging, self.now, Some(revision))?;
        Ok(written.reference)
    }
}

/// Time in seconds after which clients look for a new revision; the default of `cvmfs_server`.
const DEFAULT_TTL: u32 = 240;

fn root_owned_metadata(mode: u16, now: Timestamp) -> Metadata {
    Metadata { mode, uid: 0, gid: 0, mtime: now, xattrs: None }
}

fn touch(entry: &mut CatalogEntry, now: Timestamp) {
    entry.mtime = now.seconds;
    entry.mtime_nanoseconds = Some(now.nanoseconds);
}

impl LoadedCatalog {
    /// Creates a catalog without any row.
    fn create(path: &EntryPath) -> Result<Self, BuildError> {
        let catalog = WritableCatalog::create(path)?;
        Ok(Self { catalog, origin: None, below: BTreeMap::new(), is_changed: true })
    }

    fn open(catalogs: CatalogSource<'_>, path: &EntryPath, reference: CatalogReference) -> Result<Self, BuildError> {
        let catalog = catalogs.get(path, reference)?;
        // The next signature also covers the reference, so the size that it states must be correct. References in old catalogs
        // state no size.
        if reference.size != 0 && reference.size != catalog.size() {
            let fault = format!("its reference states {} bytes, but it has {}", reference.size, catalog.size());
            return Err(CatalogError::Invalid { path: path.clone(), fault }.into());
        }
        let mut catalog = WritableCatalog::of(catalog)?;
        let mut totals = catalog.own_counters();
        totals += *catalog.below();
        Ok(Self { catalog, origin: Some((reference, totals)), below: BTreeMap::new(), is_changed: false })
    }

    /// Returns the catalog that contains `path` and its children; for a transition point, the nested catalog.
    fn catalog_of(&mut self, catalogs: CatalogSource<'_>, path: &EntryPath) -> Result<&mut Self, BuildError> {
        match self.next_below(path)? {
            Some(next) => self.load(catalogs, &next)?.catalog_of(catalogs, path),
            None => Ok(self),
        }
    }

    /// Returns the transition point of this catalog that is at or above `path`; `None` if there is no such transition point.
    fn next_below(&self, path: &EntryPath) -> Result<Option<EntryPath>, BuildError> {
        let mut at = Some(path.clone());
        while let Some(here) = at.filter(|here| here != self.catalog.root()) {
            if self.has_below(&here)? {
                return Ok(Some(here));
            }
            at = here.split().map(|(parent, _)| parent);
        }
        Ok(None)
    }

    /// Returns whether `path` is a transition point of this catalog.
    fn has_below(&self, path: &EntryPath) -> Result<bool, BuildError> {
        Ok(self.below.contains_key(path) || self.catalog.nested(path)?.is_some())
    }

    fn load(&mut self, catalogs: CatalogSource<'_>, path: &EntryPath) -> Result<&mut Self, BuildError> {
        Ok(match self.below.entry(path.clone()) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => {
                let reference = self.catalog.nested(path)?.expect("the caller found a transition point at this path");
                place.insert(Self::open(catalogs, path, reference)?)
            }
        })
    }

    /// Removes everything at and below `path`, including nested catalogs.
    fn drop_from(&mut self, catalogs: CatalogSource<'_>, path: &EntryPath) -> Result<(), BuildError> {
        self.take_nested(catalogs, path)?;
        self.below.retain(|inner, _| !inner.is_in(path));
        // A row in `bind_mountpoints` without its directory would be a finding of `cvmfs_swissknife check`.
        for (inner, _) in self.catalog.references_from(References::Bound, path)? {
            self.catalog.remove_reference(References::Bound, &inner)?;
        }
        for (inner, entry) in self.catalog.rows_from(path)? {
            self.catalog.remove(&inner, &entry)?;
        }
        Ok(())
    }

    /// Removes the references to nested catalogs at and below `path`, and subtracts the counters of these catalogs from the sum.
    /// Returns the references with the total counters.
    fn take_nested(
        &mut self,
        catalogs: CatalogSource<'_>,
        path: &EntryPath,
    ) -> Result<Vec<(EntryPath, CatalogReference, Counters)>, BuildError> {
        let mut taken = Vec::new();
        let mut is_one_lost = false;
        for (nested, reference) in self.catalog.references_from(References::Nested, path)? {
            let totals = match self.totals_below(catalogs, &nested, reference) {
                // A tree with a lost catalog must remain replaceable, because that is how it is repaired.
                Err(BuildError::Store(error)) if error.is_damage() => {
                    is_one_lost = true;
                    Counters::default()
                }
                totals => totals?,
            };
            self.catalog.remove_reference(References::Nested, &nested)?;
            *self.catalog.below() -= totals;
            taken.push((nested, reference, totals));
        }
        if is_one_lost {
            // The counters of a lost catalog are unknown, so the sum is computed again from the remaining catalogs.
            let mut below = Counters::default();
            for (nested, reference) in self.catalog.references_from(References::Nested, &self.catalog.root().clone())? {
                below += self.totals_below(catalogs, &nested, reference)?;
            }
            *self.catalog.below() = below;
        }
        Ok(taken)
    }

    /// Returns the total counters that a nested catalog had before any change.
    fn totals_below(
        &self,
        catalogs: CatalogSource<'_>,
        nested: &EntryPath,
        reference: CatalogReference,
    ) -> Result<Counters, BuildError> {
        match self.below.get(nested) {
            Some(loaded) => Ok(loaded.origin.map(|(_, totals)| totals).unwrap_or_default()),
            None => Ok(catalogs.get(nested, reference)?.total_counters()),
        }
    }

    /// Updates the hard link group of `gone`, a row that was removed from `directory`: decrements the link count of the remaining
    /// rows of the group. Does nothing if `gone` has no group.
    fn leave_link_group(&mut self, directory: &EntryPath, gone: &CatalogEntry) -> Result<(), BuildError> {
        if gone.link_group == 0 || gone.is_directory() {
            return Ok(());
        }
        for (name, mut entry) in self.catalog.list(directory)? {
            if entry.link_group == gone.link_group {
                // `cvmfs_swissknife check` requires that a group has as many names in its directory as the link count
                // states.
                entry.link_count -= 1;
                // A single name is in no group.
                if entry.link_count == 1 {
                    entry.link_group = 0;
                }
                self.catalog.put(&directory.join(&name), &entry)?;
            }
        }
        Ok(())
    }

    /// Moves the plain directory `path` and everything below it into a new nested catalog.
    fn split(
        &mut self,
        catalogs: CatalogSource<'_>,
        path: &EntryPath,
        marker: &CatalogEntry,
    ) -> Result<(), BuildError> {
        let mut child = Self::create(path)?;
        for (inner, reference, totals) in self.take_nested(catalogs, path)? {
            child.catalog.put_reference(References::Nested, &inner, reference)?;
            *child.catalog.below() += totals;
        }
        for (inner, reference) in self.catalog.references_from(References::Bound, path)? {
            self.catalog.remove_reference(References::Bound, &inner)?;
            child.catalog.put_reference(References::Bound, &inner, reference)?;
        }
        let loaded = std::mem::take(&mut self.below).into_iter();
        (child.below, self.below) = loaded.partition(|(inner, _)| inner.is_in(path));
        for (inner, entry) in self.catalog.rows_from(path)? {
            self.catalog.remove(&inner, &entry)?;
            child.catalog.put(&inner, &if inner == *path { entry.with_nesting(Nesting::Root) } else { entry })?;
        }
        // `cvmfs_swissknife check` refuses a nested catalog without a marker.
        if child.catalog.get(&path.join(MARKER))?.is_none() {
            child.catalog.put(&path.join(MARKER), marker)?;
        }
        // `cvmfs_swissknife check` compares this row with the first row of the nested catalog.
        self.catalog.put(path, &child.catalog.transition_point()?)?;
        self.below.insert(path.clone(), child);
        self.is_changed = true;
        Ok(())
    }

    /// Splits this catalog and the loaded catalogs below it if they are too large. A catalog is too large if it was changed and
    /// has more than `maximum` entries. Then each directory directly below its root that has at least `min_split_entries` entries
    /// becomes a nested catalog.
    fn split_large(
        &mut self,
        catalogs: CatalogSource<'_>,
        (maximum, min_split_entries): (i64, usize),
        marker: &CatalogEntry,
    ) -> Result<(), BuildError> {
        if self.is_changed && self.catalog.own_counters().entries() > maximum {
            for path in self.catalog.heavy_directories(min_split_entries)? {
                self.split(catalogs, &path, marker)?;
            }
        }
        self.below.values_mut().try_for_each(|child| child.split_large(catalogs, (maximum, min_split_entries), marker))
    }

    /// Stores the loaded catalogs below this one, and then this catalog. An unchanged catalog is not stored again, and keeps its
    /// reference. `revision` is the number of the new revision in the root catalog, and `None` in a nested catalog.
    fn write(mut self, staging: &Staging, now: Timestamp, revision: Option<u64>) -> Result<StoredTree, BuildError> {
        let below: Vec<_> = std::mem::take(&mut self.below).into_iter().collect();
        let written = below.into_par_iter().map(|(path, child)| {
            let before = child.origin.map(|(_, totals)| totals).unwrap_or_default();
            // Children first: this catalog states the hashes of their objects.
            child.write(staging, now, None).map(|stored| (path, before, stored))
        });
        for (path, before, stored) in written.collect::<Result<Vec<_>, _>>()? {
            if self.catalog.nested(&path)? != Some(stored.reference) {
                self.is_changed = true;
                self.catalog.put_reference(References::Nested, &path, stored.reference)?;
                // The row must follow the first row of the nested catalog, whose link count or time may have changed.
                let unknown = self.catalog.get(&path)?.map_or(0, |row| row.flags & UNKNOWN);
                let row = stored.transition_point;
                self.catalog.put(&path, &CatalogEntry { flags: row.flags | unknown, ..row })?;
                *self.catalog.below() -= before;
                *self.catalog.below() += stored.totals;
            }
        }
        let mut totals = self.catalog.own_counters();
        totals += *self.catalog.below();
        let transition_point = self.catalog.transition_point()?;
        let reference = match self.origin {
            Some((reference, _)) if !self.is_changed => reference,
            _ => {
                self.set_revision_properties(now, revision)?;
                let writing = span!("catalogs");
                self.catalog.write(|bytes| {
                    writing.record(BYTES, bytes.len() as u64);
                    drop(writing);
                    put_catalog(staging, bytes)
                })??
            }
        };
        Ok(StoredTree { reference, transition_point, totals })
    }

    /// Sets the properties `revision`, `last_modified` and `previous_revision`. If `revision` is `None`, the number in the
    /// catalog is incremented.
    fn set_revision_properties(&mut self, now: Timestamp, revision: Option<u64>) -> Result<(), BuildError> {
        let catalog = &mut self.catalog;
        let last = catalog.property("revision").and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        // Clients compare the revision in a new manifest with this property of the root catalog that they have mounted.
        catalog.set_property("revision", &revision.unwrap_or(last + 1).to_string())?;
        // Garbage collection of CVMFS measures the age of a root catalog by it if the reflog has no time.
        catalog.set_property("last_modified", &now.seconds.to_string())?;
        if let Some((reference, _)) = self.origin {
            // Garbage collection and replication of CVMFS follow this chain to older revisions.
            catalog.set_property("previous_revision", &reference.hash.to_string())?;
        }
        Ok(())
    }
}

impl CatalogSource<'_> {
    fn get(self, path: &EntryPath, reference: CatalogReference) -> Result<Catalog, BuildError> {
        match (self.take)(path, reference) {
            Some(catalog) => Ok(catalog),
            None => read_catalog(self.staging, path, reference),
        }
    }
}

fn read_catalog(staging: &Staging, path: &EntryPath, reference: CatalogReference) -> Result<Catalog, BuildError> {
    let bytes = staging.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit())?;
    Ok(Catalog::parse_owned(bytes, path)?)
}

#[cfg(test)]
mod tests;
