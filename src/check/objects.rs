//! Compares the references to objects with the objects in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::finding::Location;
use super::layout::StoredObject;
use super::reader::{Examiner, ITS_HASH, NOTHING, NoStream, WHOLE_STREAM, read_failure};
use super::reference::{Reference, References, StoredForm};
use super::tree::CatalogTree;
use super::{Check, Unreferenced};
use crate::catalog::audit::paths_of_rows;
use crate::store::StoreError;

/// Number and size of the objects in the store.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ObjectTotals {
    /// Objects to which a checked catalog or the front page refers.
    pub(super) objects: u64,
    /// Their stored size in bytes.
    pub(super) bytes: u64,
    pub(super) unreferenced: Unreferenced,
}

impl AddAssign for ObjectTotals {
    fn add_assign(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.unreferenced.objects += other.unreferenced.objects;
        self.unreferenced.bytes += other.unreferenced.bytes;
    }
}

/// A fault of an object, with the first row that refers to the object.
struct ObjectFault {
    reference: Reference,
    /// Number of further rows that refer to the object.
    others: usize,
    expected: String,
    found: String,
}

impl Check<'_> {
    /// Checks every object that has a reference; if `is_whole_store`, also all other files of the store.
    pub(super) fn check_objects(
        &self,
        references: &References,
        tree: &CatalogTree,
        is_whole_store: bool,
    ) -> ObjectTotals {
        self.progress.set_activity("checking objects".to_owned());
        let faults = Mutex::default();
        let totals = (0..=255u8).into_par_iter().map(|directory| {
            let references = references.take(directory);
            let stored = match self.store.listing() {
                Some(listing) if is_whole_store => self.list_objects(listing, directory),
                _ => self.find_objects(directory, &references),
            };
            stored.map_or_else(ObjectTotals::default, |stored| self.check_directory(&references, &stored, &faults))
        });
        let totals = totals.reduce(ObjectTotals::default, |mut sum, more| {
            sum += more;
            sum
        });
        self.report_faults(faults.into_inner().expect("no thread panics while it adds a fault"), tree);
        totals
    }

    /// Looks up the objects that have a reference, and ignores all other objects. Returns `None`, and adds a finding, if an
    /// error prevents the lookup.
    fn find_objects(&self, directory: u8, references: &[Reference]) -> Option<Vec<StoredObject>> {
        let mut found = Vec::new();
        for name in references.chunk_by(|a, b| a.name == b.name).map(|group| group[0].name) {
            match self.store.head(&name.to_string()) {
                Ok(Some(bytes)) => found.push(StoredObject { name, bytes }),
                Ok(None) => {}
                Err(error) if error.is_obstacle() => {
                    self.end_with(&name.to_string(), error);
                    return None;
                }
                Err(error) => {
                    let location = Location::file(format!("data/{directory:02x}"));
                    self.note_unreadable(&location, "a directory whose files can be accessed", error);
                    return None;
                }
            }
        }
        Some(found)
    }

    fn check_directory(
        &self,
        references: &[Reference],
        stored: &[StoredObject],
        faults: &Mutex<Vec<ObjectFault>>,
    ) -> ObjectTotals {
        // Both lists are sorted by name.
        let (mut groups, mut remaining, mut totals) = (Vec::new(), stored, ObjectTotals::default());
        for group in references.chunk_by(|a, b| a.name == b.name) {
            let skipped = remaining.iter().take_while(|object| object.name < group[0].name).count();
            remaining = &remaining[skipped..];
            let object = remaining.first().copied().filter(|object| object.name == group[0].name);
            totals.objects += u64::from(object.is_some());
            totals.bytes += object.map_or(0, |object| object.bytes);
            groups.push((group, object));
        }
        totals.unreferenced.objects = stored.len() as u64 - totals.objects;
        totals.unreferenced.bytes = stored.iter().map(|object| object.bytes).sum::<u64>() - totals.bytes;
        if !self.options.quick {
            self.progress.expected.fetch_add(totals.bytes, Ordering::Relaxed);
        }
        let check = |examiner: &mut Examiner, (group, object): (&[Reference], Option<StoredObject>)| {
            if group[0].form != StoredForm::Known {
                let found = self.check_object(group, object, examiner);
                if !found.is_empty() {
                    faults.lock().expect("no thread panics while it adds a fault").extend(found);
                }
            }
        };
        match self.options.quick {
            // If content is not read, the work for one directory is too small to be shared between threads.
            true => {
                let mut examiner = Examiner::new();
                groups.into_iter().for_each(|group| check(&mut examiner, group));
            }
            false => groups.into_par_iter().for_each_init(Examiner::new, check),
        }
        totals
    }

    /// Compares one object with all references to it.
    fn check_object(
        &self,
        group: &[Reference],
        stored: Option<StoredObject>,
        examiner: &mut Examiner,
    ) -> Vec<ObjectFault> {
        let name = group[0].name;
        let is_bare = |reference: &Reference| reference.form == StoredForm::Raw && reference.size == 0;
        match stored {
            None => vec![fault(group, "an object", NOTHING.to_owned())],
            // Only raw content can be empty. A compressed object has at least the zlib header.
            Some(object) if object.bytes == 0 && !group.iter().all(is_bare) => {
                vec![fault(group, "an object with content", "an empty file".to_owned())]
            }
            Some(_) if self.options.quick => Vec::new(),
            Some(object) => match self.examine(object, group, examiner) {
                Ok(faults) => faults,
                Err(error) => {
                    let found = read_failure(&error);
                    match self.note_obstacle(&name.to_string(), error) {
                        true => Vec::new(),
                        false => vec![fault(group, "a readable object", found)],
                    }
                }
            },
        }
    }

    fn examine(
        &self,
        stored: StoredObject,
        group: &[Reference],
        examiner: &mut Examiner,
    ) -> Result<Vec<ObjectFault>, StoreError> {
        let is_packed = group.iter().any(|reference| reference.form == StoredForm::Packed);
        let name = stored.name.to_string();
        let missing = || StoreError::Missing { address: self.store.address(&name) };
        let file = self.store.open(&name)?.ok_or_else(missing)?;
        let examined = examiner.examine(file, stored.name.hash().algorithm(), is_packed);
        let examined = examined.map_err(|source| StoreError::Read { address: self.store.address(&name), source })?;
        self.progress.read.fetch_add(stored.bytes, Ordering::Relaxed);
        if stored.name.hash() != examined.hash {
            return Ok(vec![fault(group, ITS_HASH, examined.hash.to_string())]);
        }
        Ok(self.compare_content(stored, group, &examined.unpacked))
    }

    /// Compares the content of an object whose hash is right with what the rows state. Counts the object if strata cannot read it.
    fn compare_content(
        &self,
        stored: StoredObject,
        group: &[Reference],
        unpacked: &Result<u64, NoStream>,
    ) -> Vec<ObjectFault> {
        let (mut faults, mut unsupported) = (Vec::new(), BTreeSet::new());
        for alike in group.chunk_by(|a, b| (a.form, a.size) == (b.form, b.size)) {
            let expected = alike[0].size;
            match content_size(stored, alike[0].form, unpacked) {
                Ok(actual) if expected == actual || expected == Reference::ANY_SIZE => {}
                Ok(actual) => faults.push(fault(alike, &format!("{expected} bytes of content"), actual.to_string())),
                Err(NoStream::Unsupported(compression)) => drop(unsupported.insert(compression)),
                Err(NoStream::Damaged(found)) => faults.push(fault(alike, WHOLE_STREAM, found)),
            }
        }
        unsupported.into_iter().for_each(|compression| self.count_unsupported(compression));
        faults
    }

    /// Looks up the paths that the faulty objects belong to, catalog by catalog, and adds the faults to the findings.
    fn report_faults(&self, faults: Vec<ObjectFault>, tree: &CatalogTree) {
        let mut by_catalog: BTreeMap<u32, Vec<ObjectFault>> = BTreeMap::new();
        faults.into_iter().for_each(|fault| by_catalog.entry(fault.reference.catalog).or_default().push(fault));
        by_catalog.into_par_iter().for_each(|(catalog, faults)| {
            let (name, mountpoint, size) = tree.catalog(catalog);
            let rows: Vec<i64> = faults.iter().map(|fault| fault.reference.row).collect();
            let paths = self.reread_catalog(name, size).map(|bytes| paths_of_rows(bytes, mountpoint, &rows));
            let paths = paths.unwrap_or_else(|| vec![None; rows.len()]);
            for (fault, path) in faults.into_iter().zip(paths) {
                let location = Location::file(fault.reference.name.to_string()).referred_to_by(name.to_string());
                let location = match path {
                    Some(path) => location.at(&path),
                    None => location,
                };
                let more = if fault.others == 0 {
                    String::new()
                } else {
                    format!(" ({} more rows refer to it)", fault.others)
                };
                self.findings.note(&location, fault.expected, format_args!("{}{more}", fault.found));
            }
        });
    }
}

/// Returns the size of the content of an object in the form that rows state.
fn content_size(stored: StoredObject, form: StoredForm, unpacked: &Result<u64, NoStream>) -> Result<u64, NoStream> {
    match (form, unpacked) {
        (StoredForm::Raw, _) => Ok(stored.bytes),
        (StoredForm::Unsupported(compression), _) => Err(NoStream::Unsupported(compression)),
        // Clients read the object as the row states, and fail.
        (_, Err(found @ NoStream::Unsupported(_))) if stored.name.has_row() => {
            Err(NoStream::Damaged(found.to_string()))
        }
        (_, unpacked) => unpacked.clone(),
    }
}

fn fault(group: &[Reference], expected: &str, found: String) -> ObjectFault {
    let first =
        // The same row in every run, regardless of the order of the threads.
        group.iter().min_by_key(|reference| (reference.catalog, reference.row)).expect("a group is never empty");
    ObjectFault { reference: *first, others: group.len() - 1, expected: expected.to_owned(), found }
}
