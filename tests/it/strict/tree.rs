//! Trees of catalogs: transition points, counters, and the objects that rows refer to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::catalog::{COUNTERS, Catalog, Row};
use super::hash::hash_in_row;
use super::rules::{MOUNTPOINT, NESTED_ROOT, UNCOMPRESSED};
use super::store::{Store, StoredObject, object_path};
use super::walk::CatalogWalk;
use super::{Findings, show};

/// A checked catalog with everything below it.
pub struct Subtree {
    pub root: Row,
    pub size: i64,
    pub revision: Option<String>,
    pub last_modified: Option<String>,
    pub previous_revision: Option<String>,
    counters: Counters,
}

/// Values of [`COUNTERS`].
pub type Counters = BTreeMap<&'static str, i64>;

/// Checks trees of catalogs, each catalog once for each mountpoint.
pub struct TreeCheck<'a> {
    store: &'a Store,
    objects: &'a BTreeMap<String, StoredObject>,
    pub findings: &'a mut Findings,
    referenced: BTreeSet<String>,
    done: HashMap<(String, Vec<u8>), Option<Rc<Subtree>>>,
}

impl<'a> TreeCheck<'a> {
    /// Creates a check that knows the existing objects.
    pub fn new(store: &'a Store, objects: &'a BTreeMap<String, StoredObject>, findings: &'a mut Findings) -> Self {
        Self { store, objects, findings, referenced: BTreeSet::new(), done: HashMap::new() }
    }

    /// Returns the paths of all objects that something referred to.
    pub fn into_referenced(self) -> BTreeSet<String> {
        self.referenced
    }

    /// Records a reference to an object, and returns the object if it exists.
    pub fn refer(&mut self, place: &str, hash: &str, suffix: &str) -> Option<StoredObject> {
        let path = object_path(hash, suffix);
        let object = self.objects.get(&path).copied();
        if object.is_none() {
            self.findings.note(place, format_args!("object {path}"), "none");
        }
        self.referenced.insert(path);
        object
    }

    /// Returns whether an object exists, without recording a reference.
    pub fn has(&self, hash: &str, suffix: &str) -> bool {
        self.objects.contains_key(&object_path(hash, suffix))
    }

    /// Checks the catalog `hash` at `mountpoint` and everything below it. Returns `None` if it cannot be read.
    pub fn check(&mut self, hash: &str, mountpoint: &[u8]) -> Option<Rc<Subtree>> {
        let key = (hash.to_owned(), mountpoint.to_vec());
        if let Some(done) = self.done.get(&key) {
            return done.clone();
        }
        self.referenced.insert(object_path(hash, "C"));
        let catalog = Catalog::load(self.store, hash, mountpoint, self.findings);
        let subtree = self.findings.keep(catalog).and_then(|catalog| self.check_catalog(&catalog)).map(Rc::new);
        self.done.insert(key, subtree.clone());
        subtree
    }

    fn check_catalog(&mut self, catalog: &Catalog) -> Option<Subtree> {
        let Some(root) = catalog.row(&catalog.mountpoint) else {
            self.findings.note(catalog.place(&catalog.mountpoint), "a root entry", "none");
            return None;
        };
        let own = CatalogWalk::run(catalog, root, self);
        let below = self.check_nested(catalog);
        self.check_counters(catalog, &own, &below);
        let counters = own.iter().map(|(&name, count)| (name, count + below[name])).collect();
        Some(Subtree {
            root: root.clone(),
            size: catalog.size,
            revision: catalog.property("revision"),
            last_modified: catalog.property("last_modified"),
            previous_revision: catalog.property("previous_revision"),
            counters,
        })
    }

    /// Checks all nested catalogs of one catalog and returns the sum of their counters.
    fn check_nested(&mut self, catalog: &Catalog) -> Counters {
        let mut sum = zeros();
        for (path, reference) in &catalog.nested {
            let place = catalog.place(path);
            if !path.starts_with(&catalog.mountpoint) || path.len() <= catalog.mountpoint.len() {
                self.findings.note(&place, "a nested catalog below its parent", show(&catalog.mountpoint));
                continue;
            }
            if self.refer(&place, &reference.hash, "C").is_none() {
                continue;
            }
            let Some(nested) = self.check(&reference.hash, path) else {
                continue;
            };
            self.findings.require(&place, "size of the nested catalog", nested.size, reference.size);
            if let Some(transition) = catalog.row(path) {
                self.check_transition(&place, transition, &nested.root);
            }
            for (name, count) in &nested.counters {
                *sum.get_mut(name).expect("all counters are in the sum") += count;
            }
        }
        sum
    }

    /// Checks that a transition point and the root entry of the nested catalog differ only in one flag each.
    fn check_transition(&mut self, place: &str, transition: &Row, root: &Row) {
        let bare = |row: &Row| Row { rowid: 0, flags: row.flags & !(MOUNTPOINT | NESTED_ROOT), ..row.clone() };
        if bare(transition) != bare(root) {
            let found = format!("{:?}", bare(root));
            self.findings.note(
                place,
                format_args!("a nested root like its transition point {:?}", bare(transition)),
                found,
            );
        }
    }

    fn check_counters(&mut self, catalog: &Catalog, own: &Counters, below: &Counters) {
        let mut expected = BTreeMap::new();
        for name in COUNTERS {
            expected.insert(format!("self_{name}"), own[name]);
            expected.insert(format!("subtree_{name}"), below[name]);
        }
        for (name, count) in &expected {
            let found = catalog.statistics.get(name).copied();
            self.findings.require(&catalog.object, &format!("counter {name}"), Some(*count), found);
        }
        for name in catalog.statistics.keys().filter(|name| !expected.contains_key(*name)) {
            self.findings.note(&catalog.object, "24 counters", format_args!("another, '{name}'"));
        }
    }

    /// Checks that the content of a regular file or chunk exists in its full length.
    pub fn check_content(&mut self, place: &str, hash: &[u8], suffix: &str, flags: i64, size: i64) {
        let Some(hash) = hash_in_row(hash, flags) else {
            self.findings.note(place, "flags with a known hash algorithm", format_args!("{flags:#x}"));
            return;
        };
        let Some(object) = self.refer(place, &hash, suffix) else {
            return;
        };
        let found = if flags & UNCOMPRESSED != 0 { Some(object.stored) } else { object.inflated };
        let what = format!("length of the content in {}", object_path(&hash, suffix));
        self.findings.require(place, &what, Some(size as u64), found);
    }
}

/// Returns all counters with the value zero.
pub fn zeros() -> Counters {
    COUNTERS.iter().map(|&name| (name, 0)).collect()
}
