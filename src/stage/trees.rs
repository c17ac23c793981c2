//! Trees that are known already: published, or stored by a run that did not come to publishing them.

use super::{ImageOptions, StageError, Stager};
use crate::catalog::{Catalog, CatalogReference, FACTS, StoredTree};
use crate::image::Digest;
use crate::inventory::our_tree;
use crate::layout::{self, LayerRecord, TreeFacts};
use crate::object::ObjectKind;
use crate::path::EntryPath;
use crate::repository::{ReadCatalog, ReadTree, Repository, RepositoryError, read_tree};
use crate::state::StoredTreeNote;
use crate::store::StoreError;
use crate::tree::{LayerForm, join_links};

/// No record is read that is longer.
const RECORD_LIMIT: u64 = 256 << 20;

/// A layer that need not be read from its blob.
pub(crate) struct KnownLayer {
    /// Its catalogs.
    pub(crate) catalog: CatalogReference,
    /// What they do not say.
    pub(crate) record: LayerRecord,
}

impl Stager<'_> {
    /// Returns everything but a tree's path and content that its catalogs depend on.
    pub(super) fn tree_options(&self) -> String {
        let settings = self.settings();
        format!("1 {} {} {:?}", settings.compression, settings.catalog_entries, settings.modes)
    }

    /// Finds a layer that is published with its record and whole, or that was stored for that by an earlier run.
    pub(super) fn known_layer(&self, head: &Repository, digest: Digest) -> Result<Option<KnownLayer>, StageError> {
        if let Some(published) = published_layer(head, digest)?
            && self.holes_of_layer(head, digest)?.is_empty()
        {
            return Ok(Some(published));
        }
        self.noted_layer(digest)
    }

    /// Finds a layer that is published with its record, or else one that was stored by an earlier run, for what its catalogs say.
    pub(super) fn described_layer(&self, head: &Repository, digest: Digest) -> Result<Option<KnownLayer>, StageError> {
        match published_layer(head, digest)? {
            Some(published) => Ok(Some(published)),
            None => self.noted_layer(digest),
        }
    }

    fn noted_layer(&self, digest: Digest) -> Result<Option<KnownLayer>, StageError> {
        let Some(note) = self.noted(&layout::layer_root(digest))? else { return Ok(None) };
        let record = LayerRecord::parse(note.facts.as_bytes());
        Ok(record.map(|record| KnownLayer { catalog: note.catalog, record }))
    }

    /// Finds a tree that is published and whole, or that was stored for that by an earlier run.
    pub(super) fn known_tree(
        &self,
        head: &Repository,
        path: &EntryPath,
    ) -> Result<Option<CatalogReference>, StageError> {
        match our_tree(head, path)? {
            Some(catalog) if self.holes(path, catalog)?.is_empty() => Ok(Some(catalog)),
            _ => Ok(self.noted(path)?.map(|note| note.catalog)),
        }
    }

    /// Returns what an earlier run, or this one, stored for `path`, if all of it is still there.
    pub(super) fn noted(&self, path: &EntryPath) -> Result<Option<StoredTreeNote>, StageError> {
        let noted = || self.noted.lock().expect("no thread panics while it looks for a note");
        if let Some(known) = noted().get(path) {
            return Ok(known.clone());
        }
        let found = self.look_for_note(path)?;
        noted().insert(path.clone(), found.clone());
        Ok(found)
    }

    /// Returns a tree that an earlier run stored for `path`, with its facts. With `force`, nothing is recalled.
    pub(super) fn recall(
        &self,
        path: &EntryPath,
        options: &ImageOptions,
    ) -> Result<Option<(StoredTree, String)>, StageError> {
        if options.force {
            return Ok(None);
        }
        let Some(note) = self.noted(path)? else { return Ok(None) };
        Ok(Some((self.read_tree(path, note.catalog)?.stored, note.facts)))
    }

    fn look_for_note(&self, path: &EntryPath) -> Result<Option<StoredTreeNote>, StageError> {
        let Some(note) = self.engine.state().tree(&path.to_string(), &self.tree_options())? else { return Ok(None) };
        if !self.staging.has(note.catalog.hash, ObjectKind::Catalog)? {
            return Ok(None);
        }
        Ok(self.is_complete(path, note.catalog)?.then_some(note))
    }

    /// Notes a tree whose catalogs were stored.
    pub(super) fn note(&self, path: &EntryPath, stored: &StoredTree, facts: &[u8]) -> Result<(), StageError> {
        let facts = String::from_utf8_lossy(facts).into_owned();
        let note = StoredTreeNote { catalog: stored.reference, facts };
        self.engine.state().add_tree(&path.to_string(), &self.tree_options(), &note)?;
        self.noted.lock().expect("no thread panics while it looks for a note").insert(path.clone(), Some(note));
        Ok(())
    }

    /// Reads a tree back from its catalogs.
    pub(super) fn read_tree(&self, path: &EntryPath, catalog: CatalogReference) -> Result<ReadTree, StageError> {
        Ok(read_tree(&|reference| self.read_catalog(reference), path, catalog)?)
    }

    fn read_catalog(&self, reference: CatalogReference) -> Result<Vec<u8>, StoreError> {
        self.staging.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit())
    }

    /// Reads what the catalogs of a chain or root file system do not say.
    pub(super) fn facts(&self, path: &EntryPath, reference: CatalogReference) -> Result<Option<TreeFacts>, StageError> {
        let bytes = self.read_catalog(reference)?;
        let catalog = Catalog::parse_owned(bytes, path).map_err(RepositoryError::from)?;
        Ok(catalog.property(FACTS).and_then(TreeFacts::parse))
    }

    /// Reads a layer back in overlay form, with what the form does not say.
    pub(super) fn read_layer(&self, digest: Digest, known: &KnownLayer) -> Result<LayerForm, StageError> {
        Ok(read_layer(&|reference| self.read_catalog(reference), digest, known)?)
    }
}

/// Returns whether a layer is published, by this or another program.
pub(crate) fn is_layer_published(head: &Repository, digest: Digest) -> Result<bool, RepositoryError> {
    Ok(head.get(&layout::layer_root(digest))?.is_some())
}

/// Finds a layer that is published with its record.
pub(crate) fn published_layer(head: &Repository, digest: Digest) -> Result<Option<KnownLayer>, RepositoryError> {
    if let Some(record) = published_record(head, digest)?
        && let Some(catalog) = head.nested_catalog(&layout::layer_root(digest))?
    {
        return Ok(Some(KnownLayer { catalog, record }));
    }
    Ok(None)
}

/// Returns the record of a published layer, if it has one that can be read.
pub(super) fn published_record(head: &Repository, digest: Digest) -> Result<Option<LayerRecord>, RepositoryError> {
    let path = layout::layer_record(digest);
    // A layer whose record is too long to be read is read from its blob.
    let is_readable = head.get(&path)?.is_some_and(|entry| entry.size.cast_unsigned() <= RECORD_LIMIT);
    if !is_readable {
        return Ok(None);
    }
    Ok(head.read_if_intact(&path, RECORD_LIMIT)?.and_then(|json| LayerRecord::parse(&json)))
}

/// Reads a layer back in overlay form, with what the form does not say.
pub(crate) fn read_layer(
    read: ReadCatalog<'_>,
    digest: Digest,
    known: &KnownLayer,
) -> Result<LayerForm, RepositoryError> {
    let mut tree = read_tree(read, &layout::layer_root(digest), known.catalog)?.tree;
    join_links(&mut tree, &known.record.links_across_directories);
    Ok(LayerForm {
        tree,
        implied: known.record.implied_directories.clone(),
        links_below: known.record.links_into_lower_layers.clone(),
        whiteouts: known.record.whiteouts.clone(),
        opaques: known.record.opaque_directories.clone(),
    })
}
