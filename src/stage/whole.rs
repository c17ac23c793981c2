//! Whether trees that are used again are all there: every catalog, and every object that these name.
//!
//! What this repository directory published is believed to be there as long as the directories of objects are as its runs left
//! them (see [`crate::store::ObjectDirectoryStates`]). Of any other tree, each object is looked at.

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

/// What a published tree lacks.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// Objects of files that are missing or damaged.
    pub(super) objects: Vec<StoredObject>,
    /// Whether a catalog is missing or damaged, so that nobody knows what else is.
    pub(super) has_lost_catalog: bool,
}

impl Holes {
    /// Tells whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty() && !self.has_lost_catalog
    }
}

/// Looks at all that a tree consists of.
struct Look<'a> {
    /// Tells whether the store has an object.
    has: &'a (dyn Fn(StoredObject) -> Result<bool, StoreError> + Sync),
    /// Returns the SQLite file of a catalog.
    read: &'a (dyn Fn(CatalogReference) -> Result<Vec<u8>, StoreError> + Sync),
    holes: Mutex<Holes>,
}

impl Stager<'_> {
    /// Returns what a published tree lacks, whose root catalog is `reference`.
    ///
    /// A missing or damaged catalog is an error that says how to repair it. In a run that repairs (it compares bytes) the
    /// catalog counts as a hole.
    pub(super) fn holes(&self, path: &EntryPath, reference: CatalogReference) -> Result<Holes, StageError> {
        if self.is_whole(path, reference)? {
            return Ok(Holes::default());
        }
        let holes = self.look(path, reference)?;
        self.note_holes(path, reference, &holes)?;
        Ok(holes)
    }

    /// Returns what a published layer or its record lacks.
    pub(super) fn holes_of_layer(&self, head: &Repository, digest: Digest) -> Result<Holes, StageError> {
        let path = layout::layer_root(digest);
        let Some(reference) = head.nested_catalog(&path)? else { return Ok(Holes::default()) };
        if self.is_whole(&path, reference)? {
            return Ok(Holes::default());
        }
        let mut holes = self.look(&path, reference)?;
        holes.objects.extend(self.missing_of_file(head, &layout::layer_record(digest))?);
        self.note_holes(&path, reference, &holes)?;
        Ok(holes)
    }

    /// Tells whether a published tree was whole before, and nothing has changed since.
    fn is_whole(&self, path: &EntryPath, reference: CatalogReference) -> Result<bool, StageError> {
        if self.whole().contains(&(path.clone(), reference.hash)) {
            return Ok(true);
        }
        match self.epoch.filter(|_| !self.staging.compares_bytes()) {
            Some(epoch) => Ok(self.engine.state().is_whole(&path.to_string(), reference.hash, epoch)?),
            None => Ok(false),
        }
    }

    fn look(&self, path: &EntryPath, reference: CatalogReference) -> Result<Holes, StageError> {
        let is_repairing = self.staging.compares_bytes();
        let store = self.staging.store();
        let has = |(hash, kind, length): StoredObject| match is_repairing {
            true => self.staging.has_of_length(hash, kind, length),
            // What the head leads to is not collected, so it need not be renewed.
            false => {
                Ok(store.stored_size(hash, kind)?.is_some_and(|actual| length.is_none_or(|length| length == actual)))
            }
        };
        let read =
            |reference: CatalogReference| store.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit());
        let look = Look { has: &has, read: &read, holes: Mutex::default() };
        match look.at_catalog(path, reference) {
            Err(RepositoryError::BrokenCatalog { .. }) if is_repairing => look.holes().has_lost_catalog = true,
            result => result?,
        }
        Ok(look.holes.into_inner().expect("no thread panics while it notes a hole"))
    }

    fn note_holes(&self, path: &EntryPath, reference: CatalogReference, holes: &Holes) -> Result<(), StageError> {
        if !holes.is_empty() {
            let lost =
                if holes.has_lost_catalog { "catalogs".to_owned() } else { format!("{} objects", holes.objects.len()) };
            self.reporter()
                .warn(format_args!("{lost} of {path} are missing or damaged: reading the layers of the image"));
            return Ok(());
        }
        self.whole().insert((path.clone(), reference.hash));
        self.note_whole([(path.to_string(), reference.hash)])
    }

    fn whole(&self) -> MutexGuard<'_, HashSet<(EntryPath, ObjectHash)>> {
        self.whole.lock().expect("no thread panics while it notes a tree")
    }

    /// Returns the objects of a file of strata's own that are missing or damaged.
    fn missing_of_file(&self, head: &Repository, path: &EntryPath) -> Result<Vec<StoredObject>, StageError> {
        let Some(entry) = head.get(path)? else { return Ok(Vec::new()) };
        let Some(content) = entry.file_content() else { return Ok(Vec::new()) };
        let length = |size: u64| content.raw.then_some(size);
        let objects: Vec<StoredObject> = match &content.objects {
            ContentObjects::Whole(hash) => vec![(*hash, ObjectKind::File, length(entry.size.cast_unsigned()))],
            ContentObjects::Chunks(chunks) => {
                chunks.iter().map(|chunk| (chunk.hash, ObjectKind::Chunk, length(chunk.size))).collect()
            }
        };
        let mut missing = Vec::new();
        for (hash, kind, length) in objects {
            if !self.staging.has_of_length(hash, kind, length)? {
                missing.push((hash, kind, length));
            }
        }
        Ok(missing)
    }

    /// Tells whether the holes of a tree are filled by now.
    pub(super) fn are_filled(&self, holes: &Holes) -> Result<bool, StageError> {
        if holes.has_lost_catalog {
            return Ok(false);
        }
        for &(hash, kind, length) in &holes.objects {
            if !self.staging.has_of_length(hash, kind, length)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has this run take a published tree for whole, as it has what the tree lacked. The next one may look for itself.
    pub(super) fn count_as_whole(&self, head: &Repository, path: EntryPath) -> Result<(), StageError> {
        if let Some(reference) = head.nested_catalog(&path)? {
            self.whole().insert((path, reference.hash));
        }
        Ok(())
    }

    /// Tells whether every catalog and object of a tree that is stored and not published is in the store. The commit looks at
    /// them once more.
    pub(super) fn is_complete(&self, path: &EntryPath, catalog: CatalogReference) -> Result<bool, StageError> {
        let has = |(hash, kind, length)| self.staging.has_of_length(hash, kind, length);
        let read = |reference: CatalogReference| {
            self.staging.has(reference.hash, ObjectKind::Catalog)?;
            self.staging.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit())
        };
        let look = Look { has: &has, read: &read, holes: Mutex::default() };
        // Any failure only costs the work to be done again.
        Ok(look.at_catalog(path, catalog).is_ok() && look.holes().is_empty())
    }

    /// Notes published trees, by path and root catalog, all of whose objects are in the store.
    pub(crate) fn note_whole(&self, trees: impl IntoIterator<Item = (String, ObjectHash)>) -> Result<(), StageError> {
        let Some(epoch) = self.epoch else { return Ok(()) };
        Ok(self.engine.state().add_whole(&trees.into_iter().collect::<Vec<_>>(), epoch)?)
    }
}

impl Look<'_> {
    fn at_catalog(&self, path: &EntryPath, reference: CatalogReference) -> Result<(), RepositoryError> {
        let bytes = (self.read)(reference).map_err(|error| RepositoryError::of_catalog(path, error))?;
        let catalog = Catalog::parse_owned(bytes, path)?;
        let missing: Vec<StoredObject> = catalog
            .stored_objects()?
            .into_par_iter()
            .map(|object| Ok((!(self.has)(object)?).then_some(object)))
            .filter_map(Result::transpose)
            .collect::<Result<_, StoreError>>()?;
        self.holes().objects.extend(missing);
        let below = catalog.all_nested()?;
        drop(catalog);
        below.into_par_iter().try_for_each(|(path, reference)| self.at_catalog(&path, reference))
    }

    fn holes(&self) -> MutexGuard<'_, Holes> {
        self.holes.lock().expect("no thread panics while it notes a hole")
    }
}
