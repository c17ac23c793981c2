//! Checks trees of catalogs: that of the head, and that of each tag.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use rayon::prelude::*;

use super::Check;
use super::finding::Location;
use super::name::ObjectName;
use super::reference::{Reference, References};
use super::scope::Scope;
use super::walk::CheckedRows;
use crate::catalog::audit::{AuditedCatalog, AuditedReference, AuditedRow};
use crate::catalog::bits::{NESTED_ROOT, TRANSITION_POINT, UNKNOWN};
use crate::catalog::{Counters, PathKey, key_of};
use crate::object::{ObjectKind, SizeLimit};

/// A root catalog at which a walk starts.
pub(super) struct RootCatalog {
    pub(super) name: ObjectName,
    /// Size of the catalog after decompression, in bytes, if the file that refers to it states it.
    pub(super) size: Option<u64>,
    /// The file that refers to the catalog.
    pub(super) referrer: String,
}

/// All catalogs that were read, each once for each path at which it is mounted.
#[derive(Default)]
pub(super) struct CatalogTree {
    nodes: Vec<CatalogNode>,
    numbers: HashMap<(ObjectName, Box<[u8]>), u32>,
}

struct CatalogNode {
    name: ObjectName,
    mountpoint: Box<[u8]>,
    /// The largest size after decompression, in bytes, that a reference to the catalog states.
    size: Option<u64>,
    /// The first file that refers to the catalog.
    referrer: String,
    /// Properties of the catalog; `None` if it cannot be read.
    summary: Option<CatalogSummary>,
}

/// The properties of a catalog that are kept after it was checked.
pub(super) struct CatalogSummary {
    /// Size of the decompressed catalog in bytes.
    pub(super) size: u64,
    /// The property `revision`.
    pub(super) revision: Option<String>,
    entries: u64,
    root: DirectoryRow,
    own: Counters,
    stated: BTreeMap<String, i64>,
    nested: Vec<NestedCatalog>,
    /// Whether all nested catalogs of this catalog are in the scope.
    has_all_nested: bool,
}

/// A nested catalog as its parent catalog describes it.
struct NestedCatalog {
    mountpoint: Box<[u8]>,
    name: ObjectName,
    size: i64,
    transition_point: Option<DirectoryRow>,
    /// The number of the nested catalog in the tree, set when the catalog is added to the tree.
    number: u32,
}

impl CatalogTree {
    /// Returns the root catalog `name`, if it could be read.
    pub(super) fn root(&self, name: ObjectName) -> Option<&CatalogSummary> {
        let number = *self.numbers.get(&(name, Box::default()))?;
        self.nodes[number as usize].summary.as_ref()
    }

    /// Returns the name of the catalog with this number, its mount point, and its size in bytes.
    pub(super) fn catalog(&self, number: u32) -> (ObjectName, &[u8], u64) {
        let node = &self.nodes[number as usize];
        (node.name, &node.mountpoint, node.summary.as_ref().map_or(0, |summary| summary.size))
    }

    /// Returns whether every catalog could be read.
    pub(super) fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| node.summary.is_some())
    }

    /// Returns the number of catalogs that were read, and the number of rows in them.
    pub(super) fn counts(&self) -> (u64, u64) {
        let read = self.nodes.iter().filter_map(|node| node.summary.as_ref());
        read.fold((0, 0), |(catalogs, entries), summary| (catalogs + 1, entries + summary.entries))
    }

    /// Adds a catalog unless the tree contains it, and returns its number.
    fn add(
        &mut self,
        name: ObjectName,
        mountpoint: Box<[u8]>,
        size: Option<u64>,
        referrer: impl FnOnce() -> String,
    ) -> u32 {
        let number = *self.numbers.entry((name, mountpoint)).or_insert_with_key(|(name, mountpoint)| {
            let number = u32::try_from(self.nodes.len()).expect("catalogs fit in memory");
            let (name, mountpoint) = (*name, mountpoint.clone());
            self.nodes.push(CatalogNode { name, mountpoint, size, referrer: referrer(), summary: None });
            number
        });
        let node = &mut self.nodes[number as usize];
        node.size = node.size.max(size);
        number
    }
}

impl Check<'_> {
    /// Reads and checks all catalogs below `roots`, level by level, so that every run assigns the same numbers.
    pub(super) fn walk(
        &self,
        roots: impl Iterator<Item = RootCatalog>,
        scope: &Scope,
        references: &References,
    ) -> CatalogTree {
        let mut tree = CatalogTree::default();
        for root in roots {
            tree.add(root.name, Box::default(), root.size, || root.referrer);
        }
        let mut start = 0;
        while start < tree.nodes.len() {
            self.progress.set_activity(format!("checking catalogs, {start} done"));
            let end = tree.nodes.len();
            let level = tree.nodes[start..end].par_iter().enumerate();
            let summaries: Vec<Option<CatalogSummary>> = level
                .map(|(index, node)| self.check_catalog(node, (start + index) as u32, scope, references))
                .collect();
            for (index, mut summary) in (start..end).zip(summaries) {
                for nested in summary.iter_mut().flat_map(|summary| &mut summary.nested) {
                    let referrer = tree.nodes[index].name;
                    let size = u64::try_from(nested.size).ok().filter(|&size| size > 0);
                    nested.number = tree.add(nested.name, nested.mountpoint.clone(), size, || referrer.to_string());
                }
                tree.nodes[index].summary = summary;
            }
            start = end;
        }
        self.check_nesting(&tree);
        self.check_subtree_counters(&tree);
        tree
    }

    fn check_catalog(
        &self,
        node: &CatalogNode,
        number: u32,
        scope: &Scope,
        references: &References,
    ) -> Option<CatalogSummary> {
        references.add(Reference::known(node.name));
        let file = node.name.to_string();
        let location = Location::file(file.clone()).at(&node.mountpoint).referred_to_by(node.referrer.clone());
        let bytes = self.read_object(node.name, &location, limit_of(node.size))?;
        let catalog = match AuditedCatalog::read(bytes) {
            Ok(catalog) => catalog,
            Err(fault) => {
                self.findings.add_faults(&location, &[fault]);
                return None;
            }
        };
        let own_location = Location::file(file.clone());
        catalog.faults.iter().filter(|fault| fault.row.is_none()).for_each(|fault| {
            self.findings.note(&own_location, &fault.expected, &fault.found);
        });
        if catalog.is_damaged {
            return None;
        }
        self.check_properties(&own_location, &node.mountpoint, &catalog);
        let key = key_of(&node.mountpoint);
        let Some(root) = catalog.rows.iter().position(|row| row.key == key) else {
            self.findings.note(&own_location.at(&node.mountpoint), "a root entry", "none");
            return None;
        };
        let found = RefCell::new(Vec::with_capacity(catalog.rows.len()));
        let rows = CheckedRows { check: self, scope, catalog: &catalog, file: &file, number, references: found };
        let own = rows.walk(root, &node.mountpoint);
        references.extend(rows.references.into_inner());
        let nested = nested_catalogs(&node.mountpoint, &catalog, scope);
        Some(CatalogSummary {
            size: catalog.size,
            revision: catalog.properties.get("revision").cloned(),
            entries: catalog.rows.len() as u64,
            root: DirectoryRow::of(&catalog, &catalog.rows[root]),
            own,
            has_all_nested: nested.len() == catalog.nested.len(),
            nested,
            stated: catalog.statistics,
        })
    }

    fn check_properties(&self, location: &Location, mountpoint: &[u8], catalog: &AuditedCatalog) {
        let property = |key: &str, expected: &str, is_right: &dyn Fn(Option<&str>) -> bool| {
            let found = catalog.properties.get(key).map(String::as_str);
            if !is_right(found) {
                let found = found.map_or_else(|| "none".to_owned(), |found| format!("'{found}'"));
                self.findings.note(location, format_args!("property {key} with {expected}"), found);
            }
        };
        let is_number = |text: Option<&str>| text.is_some_and(|text| text.parse::<u64>().is_ok());
        property("schema", "2.5", &|text| text == Some("2.5"));
        property("schema_revision", "a number", &is_number);
        property("revision", "a number or nothing", &|text| text.is_none() || is_number(text));
        property("previous_revision", "a hash or nothing", &|text| {
            text.is_none_or(|text| text.is_empty() || ObjectName::of_text(text, ObjectKind::Catalog).is_some())
        });
        let prefix = String::from_utf8_lossy(mountpoint);
        match mountpoint {
            b"" => property("root_prefix", "nothing in a root catalog", &|text| text.is_none()),
            _ => property("root_prefix", &format!("'{prefix}'"), &|text| text == Some(&prefix)),
        }
    }

    /// Compares nested catalogs with the sizes and transition points in their parent catalogs.
    fn check_nesting(&self, tree: &CatalogTree) {
        for node in &tree.nodes {
            for nested in node.summary.iter().flat_map(|summary| &summary.nested) {
                let Some(below) = &tree.nodes[nested.number as usize].summary else { continue };
                let location = Location::file(node.name.to_string()).at(&nested.mountpoint);
                if nested.size != 0 && nested.size.cast_unsigned() != below.size {
                    self.findings.note(
                        &location,
                        format_args!("size {} of the nested catalog", below.size),
                        nested.size,
                    );
                }
                if let Some(transition_point) = &nested.transition_point
                    && let Some((expected, found)) = difference(transition_point, &below.root)
                {
                    let location = Location::file(nested.name.to_string()).at(&nested.mountpoint);
                    let location = location.referred_to_by(node.name.to_string());
                    self.findings.note(
                        &location,
                        format_args!("a root entry equal to its transition point, with {expected}"),
                        found,
                    );
                }
            }
        }
    }

    /// Compares all counters with the counted entries, from the deepest catalogs to the root.
    fn check_subtree_counters(&self, tree: &CatalogTree) {
        let mut totals: Vec<Option<Counters>> = vec![None; tree.nodes.len()];
        let mut order: Vec<usize> = (0..tree.nodes.len()).collect();
        // The mount point of a nested catalog is longer than that of its parent, so its totals are known first.
        order.sort_by_key(|&number| std::cmp::Reverse(tree.nodes[number].mountpoint.len()));
        for number in order {
            let node = &tree.nodes[number];
            let Some(summary) = &node.summary else { continue };
            let location = Location::file(node.name.to_string());
            self.compare_counters(&location, "self", summary.own, &summary.stated);
            let mut below = Counters::default();
            let is_known = summary.has_all_nested
                && summary.nested.iter().all(|nested| match totals[nested.number as usize] {
                    Some(counters) => {
                        below += counters;
                        true
                    }
                    None => false,
                });
            if is_known {
                self.compare_counters(&location, "subtree", below, &summary.stated);
                below += summary.own;
                totals[number] = Some(below);
            }
        }
    }

    fn compare_counters(&self, location: &Location, prefix: &str, counted: Counters, stated: &BTreeMap<String, i64>) {
        for (name, count) in counted.named() {
            let name = format!("{prefix}_{name}");
            match stated.get(&name) {
                Some(&found) if found == count => {}
                Some(found) => self.findings.note(location, format_args!("counter {name} {count}"), found),
                None => self.findings.note(location, format_args!("counter {name}"), "none"),
            }
        }
    }
}

/// Returns the nested catalogs in the scope that have a valid name and a mount point below this catalog.
fn nested_catalogs(mountpoint: &[u8], catalog: &AuditedCatalog, scope: &Scope) -> Vec<NestedCatalog> {
    let transition_points = transition_points(catalog);
    let read = |(path, reference): (&Vec<u8>, &AuditedReference)| {
        let name = ObjectName::of_text(&reference.hash, ObjectKind::Catalog)?;
        let is_below = path.strip_prefix(mountpoint).is_some_and(|rest| rest.len() > 1 && rest[0] == b'/');
        let transition_point = transition_points.get(&key_of(path)).map(|row| DirectoryRow::of(catalog, row));
        let nested = NestedCatalog {
            mountpoint: path.as_slice().into(),
            name,
            size: reference.size,
            transition_point,
            number: 0,
        };
        (is_below && scope.leads_through(path)).then_some(nested)
    };
    catalog.nested.iter().filter_map(read).collect()
}

/// Returns the maximum size of a catalog after decompression. The maximum is above the stated size, so that a catalog of a
/// slightly different size is reported with its actual size.
fn limit_of(stated: Option<u64>) -> SizeLimit {
    SizeLimit::of_database(stated).at_least(LENIENT_BYTES)
}

/// Catalogs up to this size in bytes are read even if a smaller size is stated.
const LENIENT_BYTES: u64 = 16 << 20;

/// Returns the rows of the directories on which nested catalogs are mounted, by path key.
fn transition_points(catalog: &AuditedCatalog) -> HashMap<PathKey, &AuditedRow> {
    let keys: HashSet<PathKey> = catalog.nested.keys().map(|path| key_of(path)).collect();
    match keys.is_empty() {
        true => HashMap::new(),
        false => catalog.rows.iter().filter(|row| keys.contains(&row.key)).map(|row| (row.key, row)).collect(),
    }
}

/// The row of a directory, independent of its catalog.
#[derive(Debug)]
struct DirectoryRow {
    row: AuditedRow,
    name: Box<[u8]>,
    symlink: Box<[u8]>,
    hash: Option<Box<[u8]>>,
    xattr: Option<Box<[u8]>>,
}

impl DirectoryRow {
    fn of(catalog: &AuditedCatalog, row: &AuditedRow) -> Self {
        Self {
            row: *row,
            name: catalog.name(row).into(),
            symlink: catalog.symlink(row).into(),
            hash: catalog.hash(row).map(Into::into),
            xattr: catalog.xattr(row).map(Into::into),
        }
    }
}

/// Returns bytes as text. Long values are shortened to their beginning, length and MD5, so that different values have
/// different texts.
fn quoted(bytes: Option<&[u8]>) -> String {
    const QUOTED: usize = 256;
    match bytes {
        Some(bytes) if bytes.len() > QUOTED => {
            let (start, (first, second)) = (&bytes[..QUOTED], key_of(bytes));
            format!("{start:02x?} and so on, {} bytes with MD5 key {first:x} {second:x}", bytes.len())
        }
        bytes => format!("{bytes:02x?}"),
    }
}

/// Returns the first attribute in which a transition point and the root entry of its catalog differ, with both values.
fn difference(above: &DirectoryRow, below: &DirectoryRow) -> Option<(String, String)> {
    // Flags that strata does not know may be only in one of the rows.
    const IGNORED: u32 = TRANSITION_POINT | NESTED_ROOT | UNKNOWN;
    let attributes = |directory: &DirectoryRow| {
        let row = &directory.row;
        [
            format!("name {:?}", String::from_utf8_lossy(&directory.name)),
            format!("link count {} and group {}", row.link_count, row.link_group),
            format!("mode {:o}", row.mode),
            format!("size {}", row.size),
            format!("flags {:#x}", row.flags & !IGNORED),
            format!("uid {} and gid {}", row.uid, row.gid),
            format!("mtime {}", row.mtime),
            format!("hash {} and link target {}", quoted(directory.hash.as_deref()), quoted(Some(&directory.symlink))),
            format!("extended attributes {}", quoted(directory.xattr.as_deref())),
        ]
    };
    // Catalogs of older schema revisions have no nanoseconds.
    let nanoseconds = above.row.mtime_nanoseconds.zip(below.row.mtime_nanoseconds);
    let nanoseconds = nanoseconds.filter(|(above, below)| above != below);
    let nanoseconds = nanoseconds.map(|(above, below)| (format!("mtimens {above}"), below.to_string()));
    attributes(above).into_iter().zip(attributes(below)).find(|(above, below)| above != below).or(nanoseconds)
}
