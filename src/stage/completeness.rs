//! Checks that reused trees are complete: that the store has every catalog, and every object that the catalogs name.
//!
//! A tree that this repository directory published counts as complete as long as only its own runs have changed the directories of
//! objects (see [`crate::store::ObjectsVersion`]). Of any other tree, each object is checked.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use rayon::prelude::*;

use super::{StageError, Stager};
use crate::catalog::{Catalog, CatalogReference, StoredObject};
use crate::image::Digest;
use crate::layout;
use crate::object::{ContentObjects, ObjectHash, ObjectKind};
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};
use crate::store::StoreError;

/// The objects that a published tree lacks.
#[derive(Debug, Default)]
pub(super) struct MissingObjects {
    /// Objects of files that are missing or damaged.
    pub(super) objects: Vec<StoredObject>,
    /// Whether a catalog is missing or damaged, so that `objects` is incomplete.
    pub(super) has_missing_catalog: bool,
}

impl MissingObjects {
    /// Returns whether the tree is complete.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty() && !self.has_missing_catalog
    }
}

/// A check of all catalogs and objects of a tree.
struct CompletenessCheck<'a> {
    /// Returns whether the store has an object.
    has: &'a (dyn Fn(StoredObject) -> Result<bool, StoreError> + Sync),
    /// Returns the SQLite file of a catalog.
    read: &'a (dyn Fn(CatalogReference) -> Result<Vec<u8>, StoreError> + Sync),
    missing: Mutex<MissingObjects>,
}

impl Stager<'_> {
    /// Returns the objects that a published tree with the root catalog `reference` lacks. Warns about missing objects, and
    /// records a complete tree for later runs.
    ///
    /// A missing or damaged catalog is an error whose message says how to repair it. In a repairing run (with `force`, which compares
    /// bytes), it is reported in the result.
    pub(super) fn missing_of_tree(
        &self,
        path: &EntryPath,
        reference: CatalogReference,
    ) -> Result<MissingObjects, StageError> {
        if self.is_known_complete(path, reference)? {
            return Ok(MissingObjects::default());
        }
        let missing = self.check_completeness(path, reference)?;
        self.record_completeness(path, reference, &missing)?;
        Ok(missing)
    }

    /// Returns the objects that a published layer or its record lacks. Warns about missing objects, and records a complete layer
    /// for later runs.
    pub(super) fn missing_of_layer(&self, head: &Repository, digest: Digest) -> Result<MissingObjects, StageError> {
        let path = layout::layer_root(digest);
        let Some(reference) = head.nested_catalog(&path)? else { return Ok(MissingObjects::default()) };
        if self.is_known_complete(&path, reference)? {
            return Ok(MissingObjects::default());
        }
        let mut missing = self.check_completeness(&path, reference)?;
        missing.objects.extend(self.missing_objects_of_file(head, &layout::layer_record(digest))?);
        self.record_completeness(&path, reference, &missing)?;
        Ok(missing)
    }

    /// Returns whether a published tree was complete before, and no other program has changed the directories of objects since.
    fn is_known_complete(&self, path: &EntryPath, reference: CatalogReference) -> Result<bool, StageError> {
        if self.complete_trees().contains(&(path.clone(), reference.hash)) {
            return Ok(true);
        }
        match self.epoch.filter(|_| !self.staging.compares_bytes()) {
            Some(epoch) => Ok(self.engine.state().is_whole(&path.to_string(), reference.hash, epoch)?),
            None => Ok(false),
        }
    }

    /// Checks each catalog and object of a published tree.
    fn check_completeness(&self, path: &EntryPath, reference: CatalogReference) -> Result<MissingObjects, StageError> {
        let is_repairing = self.staging.compares_bytes();
        let store = self.staging.store();
        let has = |(hash, kind, length): StoredObject| match is_repairing {
            true => self.staging.has_of_length(hash, kind, length),
            // A garbage collection spares the objects of the head, so their age need not be renewed.
            false => {
                Ok(store.stored_size(hash, kind)?.is_some_and(|actual| length.is_none_or(|length| length == actual)))
            }
        };
        let read =
            |reference: CatalogReference| store.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit());
        let check = CompletenessCheck { has: &has, read: &read, missing: Mutex::default() };
        match check.check_catalog(path, reference) {
            Err(RepositoryError::BrokenCatalog { .. }) if is_repairing => check.missing().has_missing_catalog = true,
            result => result?,
        }
        Ok(check.missing.into_inner().expect("no thread panics while it records a missing object"))
    }

    /// Warns about the missing objects of a tree. If there are none, records for later runs that the tree is complete.
    fn record_completeness(
        &self,
        path: &EntryPath,
        reference: CatalogReference,
        missing: &MissingObjects,
    ) -> Result<(), StageError> {
        if !missing.is_empty() {
            let lost = if missing.has_missing_catalog {
                "catalogs".to_owned()
            } else {
                format!("{} objects", missing.objects.len())
            };
            self.reporter().warn(format_args!(
                "{lost} of the tree {path} are missing or damaged: reading the layers of the image again"
            ));
            return Ok(());
        }
        self.complete_trees().insert((path.clone(), reference.hash));
        self.record_complete_trees([(path.to_string(), reference.hash)])
    }

    fn complete_trees(&self) -> MutexGuard<'_, HashSet<(EntryPath, ObjectHash)>> {
        self.complete_trees.lock().expect("no thread panics while it notes a tree")
    }

    /// Returns the missing or damaged objects of a file that strata created.
    fn missing_objects_of_file(&self, head: &Repository, path: &EntryPath) -> Result<Vec<StoredObject>, StageError> {
        let Some(entry) = head.get(path)? else { return Ok(Vec::new()) };
        let Ok(content) = entry.file_content() else { return Ok(Vec::new()) };
        let length = |size: u64| content.raw.then_some(size);
        let objects: Vec<StoredObject> = match &content.objects {
            ContentObjects::Whole(hash) => vec![(*hash, ObjectKind::File, length(entry.size.cast_unsigned()))],
            ContentObjects::Chunks(chunks) => {
                chunks.iter().map(|chunk| (chunk.hash, ObjectKind::Chunk, length(chunk.size))).collect()
            }
            ContentObjects::Unstored { .. } => Vec::new(),
        };
        let mut missing = Vec::new();
        for (hash, kind, length) in objects {
            if !self.staging.has_of_length(hash, kind, length)? {
                missing.push((hash, kind, length));
            }
        }
        Ok(missing)
    }

    /// Returns whether the store has all objects that a tree lacked.
    pub(super) fn are_stored(&self, missing: &MissingObjects) -> Result<bool, StageError> {
        if missing.has_missing_catalog {
            return Ok(false);
        }
        for &(hash, kind, length) in &missing.objects {
            if !self.staging.has_of_length(hash, kind, length)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts a published tree as complete in this run, because its missing objects were stored again. This is not recorded for later
    /// runs, which check the tree themselves.
    pub(super) fn assume_complete(&self, head: &Repository, path: EntryPath) -> Result<(), StageError> {
        if let Some(reference) = head.nested_catalog(&path)? {
            self.complete_trees().insert((path, reference.hash));
        }
        Ok(())
    }

    /// Returns whether the store has every catalog and object of a tree that is stored but not published. The commit checks them
    /// again.
    pub(super) fn is_complete(&self, path: &EntryPath, catalog: CatalogReference) -> Result<bool, StageError> {
        let has = |(hash, kind, length)| self.staging.has_of_length(hash, kind, length);
        let read = |reference: CatalogReference| {
            self.staging.has(reference.hash, ObjectKind::Catalog)?;
            self.staging.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit())
        };
        let check = CompletenessCheck { has: &has, read: &read, missing: Mutex::default() };
        // An error counts as an incomplete tree, which only costs time.
        Ok(check.check_catalog(path, catalog).is_ok() && check.missing().is_empty())
    }

    /// Records published trees that are complete, by path and root catalog, for later runs.
    pub(crate) fn record_complete_trees(
        &self,
        trees: impl IntoIterator<Item = (String, ObjectHash)>,
    ) -> Result<(), StageError> {
        let Some(epoch) = self.epoch else { return Ok(()) };
        Ok(self.engine.state().add_whole(&trees.into_iter().collect::<Vec<_>>(), epoch)?)
    }
}

impl CompletenessCheck<'_> {
    fn check_catalog(&self, path: &EntryPath, reference: CatalogReference) -> Result<(), RepositoryError> {
        let bytes = (self.read)(reference).map_err(|error| RepositoryError::of_catalog(path, error))?;
        let catalog = Catalog::parse_owned(bytes, path)?;
        let missing: Vec<StoredObject> = catalog
            .stored_objects()?
            .into_par_iter()
            .map(|object| Ok((!(self.has)(object)?).then_some(object)))
            .filter_map(Result::transpose)
            .collect::<Result<_, StoreError>>()?;
        self.missing().objects.extend(missing);
        let below = catalog.all_nested()?;
        drop(catalog);
        below.into_par_iter().try_for_each(|(path, reference)| self.check_catalog(&path, reference))
    }

    fn missing(&self) -> MutexGuard<'_, MissingObjects> {
        self.missing.lock().expect("no thread panics while it records a missing object")
    }
}
