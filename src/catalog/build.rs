//! Writes a tree as catalogs into the store, nested catalogs before their parents.
//!
//! The stored bytes depend only on the tree, its path and the settings, not on the time, the head of the repository or the number of
//! threads. Therefore the catalogs of a tree can be stored as soon as the tree is complete.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::counters::Counters;
use super::database::{CatalogError, Draft};
use super::entry::{CatalogEntry, CatalogReference, Nesting};
use super::plan::{self, MARKER};
use crate::metadata::Metadata;
use crate::object::{Compression, Content, ObjectKind};
use crate::path::EntryPath;
use crate::span::{BYTES, span};
use crate::store::{Staging, StoreError};
use crate::tree::{Directory, Leaf, Node};

/// Errors from storing a tree or changing a repository.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A catalog could not be read or written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// An object could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The path has an entry of another type, which strata did not create: a directory in place of a file or link, or a file or
    /// link in place of a directory.
    #[error(
        "cannot publish {0}: the path exists and is a directory instead of a file or link, or a file or link instead of a directory"
    )]
    Occupied(EntryPath),
}

/// Name of the property in a tree's root catalog that stores facts which its rows cannot express, as JSON. Other programs preserve
/// unknown properties.
pub const FACTS: &str = "strata_facts";

/// A tree whose catalogs are stored, ready to be referenced from a parent catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTree {
    /// The catalog of the tree's root.
    pub reference: CatalogReference,
    /// The row of the tree's root in the parent catalog.
    pub transition_point: CatalogEntry,
    /// Sum of the counters of all its catalogs.
    pub totals: Counters,
}

/// Writes trees as nested catalogs into the store.
#[derive(Debug)]
pub struct CatalogBuilder<'a> {
    staging: &'a Staging,
    /// The content of markers: an empty file.
    empty_content: Content,
    target: usize,
    /// Locked while a catalog with more than [`plan::MAX_ENTRIES`] entries is written. Writing such a catalog needs several
    /// hundred bytes of memory per row. A large directory of an image is in three trees: the layer, the chain and the flat tree.
    /// The lock prevents that all three are written at the same time.
    large: Mutex<()>,
}

impl<'a> CatalogBuilder<'a> {
    /// Creates a builder of catalogs with about `target` entries each.
    pub fn new(staging: &'a Staging, compression: Compression, target: usize) -> Result<Self, StoreError> {
        Ok(Self { staging, empty_content: staging.put_file(compression, b"")?, target, large: Mutex::new(()) })
    }

    /// Stores `tree` as the directory `root` of the repository, with `facts` (JSON) in the property [`FACTS`].
    ///
    /// The tree must not contain stray markers. Nested catalogs are written in parallel in the current rayon pool.
    pub fn build(&self, tree: &Directory, root: &EntryPath, facts: Option<String>) -> Result<StoredTree, BuildError> {
        let cuts = plan::cuts(tree, root, self.target, self.staging.store().reporter());
        self.build_catalog(tree, root, &cuts, facts)
    }

    fn build_catalog(
        &self,
        directory: &Directory,
        root: &EntryPath,
        cuts: &BTreeSet<EntryPath>,
        facts: Option<String>,
    ) -> Result<StoredTree, BuildError> {
        let mut below = Vec::new();
        find_cuts(directory, root, cuts, &mut below);
        let below: Vec<(EntryPath, StoredTree)> = below
            // Children first: the row of a nested catalog needs the hash of its object.
            .into_par_iter()
            .map(|(path, directory)| self.build_catalog(directory, &path, cuts, None).map(|stored| (path, stored)))
            .collect::<Result<_, BuildError>>()?;
        // The code that holds the lock must not wait for rayon: a rayon thread could steal a job that needs the same lock.
        let is_large = directory.children.len() > plan::MAX_ENTRIES;
        let _alone = is_large.then(|| self.large.lock().unwrap_or_else(PoisonError::into_inner));
        let mut rows = RowCollector { cuts, draft: Draft::new(root.clone()), link_groups: 0 };
        {
            let _gathering = span!("catalogs");
            rows.add_root(directory, &self.empty_content);
        }
        let mut draft = rows.draft;
        for (path, stored) in below {
            draft.nested.insert(path, stored.reference);
            draft.below += stored.totals;
        }
        // Always 1: clients compare only the revision of the root catalog, and the same tree must give the same bytes.
        draft.properties.insert("revision".to_owned(), "1".to_owned());
        draft.properties.extend(facts.map(|facts| (FACTS.to_owned(), facts)));
        let mut totals = draft.own_counters();
        totals += draft.below;
        let transition_point = draft.transition_point();
        Ok(StoredTree { reference: store(self.staging, draft)?, transition_point, totals })
    }
}

fn store(staging: &Staging, draft: Draft) -> Result<CatalogReference, BuildError> {
    let writing = span!("catalogs");
    let bytes = draft.write()?;
    writing.record(BYTES, bytes.len() as u64);
    drop(writing);
    put_catalog(staging, &bytes)
}

/// Stores the bytes of a catalog.
pub(super) fn put_catalog(staging: &Staging, bytes: &[u8]) -> Result<CatalogReference, BuildError> {
    let hash = staging.put_database(ObjectKind::Catalog, bytes)?;
    Ok(CatalogReference { hash, size: bytes.len() as u64 })
}

/// Returns the row of the marker of a nested catalog.
pub(super) fn marker(metadata: &Metadata, empty_content: &Content) -> CatalogEntry {
    let metadata = Metadata { mode: 0o644, xattrs: None, ..metadata.clone() };
    CatalogEntry::of_file(&metadata, 0, empty_content)
}

/// Collects the directories that become nested catalogs directly below one catalog.
fn find_cuts<'t>(
    directory: &'t Directory,
    path: &EntryPath,
    cuts: &BTreeSet<EntryPath>,
    found: &mut Vec<(EntryPath, &'t Directory)>,
) {
    for (name, node) in &directory.children {
        if let Node::Directory(child) = node {
            let path = path.join(name);
            if cuts.contains(&path) {
                found.push((path, child));
            } else {
                find_cuts(child, &path, cuts, found);
            }
        }
    }
}

/// Collects the rows of one catalog.
struct RowCollector<'t> {
    cuts: &'t BTreeSet<EntryPath>,
    draft: Draft,
    /// Number of hard link groups so far.
    link_groups: u32,
}

impl RowCollector<'_> {
    fn add_root(&mut self, directory: &Directory, empty_content: &Content) {
        let root = self.draft.root.clone();
        let row =
            CatalogEntry::of_directory(&directory.metadata, directory.subdirectories()).with_nesting(Nesting::Root);
        self.draft.push(root.clone(), row);
        self.add_children(directory, &root);
        // The marker is hidden, so that a container lists only the files of its image.
        self.draft.add_missing(root.join(MARKER), marker(&directory.metadata, empty_content).hidden());
    }

    fn add_children(&mut self, directory: &Directory, path: &EntryPath) {
        let mut links = LinkGroups::of(directory);
        for (name, node) in &directory.children {
            let path = path.join(name);
            match node {
                Node::Leaf(leaf) => {
                    let mut row = CatalogEntry::of_leaf(leaf);
                    if let Some((group, count)) = links.get(leaf, &mut self.link_groups) {
                        (row.link_group, row.link_count) = (group, count);
                    }
                    self.draft.push(path, row);
                }
                Node::Directory(child) => {
                    let row = CatalogEntry::of_directory(&child.metadata, child.subdirectories());
                    if self.cuts.contains(&path) {
                        self.draft.push(path, row.with_nesting(Nesting::TransitionPoint));
                    } else {
                        self.draft.push(path.clone(), row);
                        self.add_children(child, &path);
                    }
                }
            }
        }
    }
}

/// The inodes that have several names in one directory.
///
/// Hard links across directories are not included: a CVMFS catalog stores them as independent entries.
struct LinkGroups {
    names: HashMap<*const Leaf, u32>,
    groups: HashMap<*const Leaf, u32>,
}

impl LinkGroups {
    fn of(directory: &Directory) -> Self {
        let shared = directory.children.values().filter_map(|node| match node {
            // A reference count of 1 means that the inode has one name. This excludes most inodes.
            Node::Leaf(leaf) if Arc::strong_count(leaf) > 1 => Some(Arc::as_ptr(leaf)),
            _ => None,
        });
        let mut inodes: Vec<*const Leaf> = shared.collect();
        inodes.sort_unstable();
        let linked = inodes.chunk_by(|a, b| a == b).filter(|names| names.len() > 1);
        let names = linked
            .map(|names| {
                (names[0], u32::try_from(names.len()).expect("a directory in memory has fewer than 2^32 entries"))
            })
            .collect();
        Self { names, groups: HashMap::new() }
    }

    /// Returns the number of the inode's hard link group in the catalog, and the number of names in the group. `None` if the
    /// inode has only one name in the directory.
    ///
    /// `last` is the highest number of a group so far. A new group increments it.
    fn get(&mut self, leaf: &Arc<Leaf>, last: &mut u32) -> Option<(u32, u32)> {
        let inode = Arc::as_ptr(leaf);
        let count = *self.names.get(&inode)?;
        let group = *self.groups.entry(inode).or_insert_with(|| {
            *last += 1;
            *last
        });
        Some((group, count))
    }
}
