//! Finds trees that need not be built: published trees, and trees that a run has stored but not published.

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

/// A layer whose catalogs are stored, so that its blob need not be read.
pub(crate) struct KnownLayer {
    /// Its root catalog.
    pub(crate) catalog: CatalogReference,
    /// The facts about the layer that its catalogs do not contain.
    pub(crate) record: LayerRecord,
}

impl Stager<'_> {
    /// Returns a text with all settings on which the catalogs of a tree depend.
    pub(super) fn tree_options(&self) -> String {
        let settings = self.settings();
        let suffix = self.staging.algorithm().suffix();
        format!("1 {} {} {:?}{suffix}", settings.compression, settings.catalog_entries, settings.modes)
    }

    /// Finds a layer that is published with its record and without missing objects, or one that an earlier run stored.
    pub(super) fn known_layer(&self, head: &Repository, digest: Digest) -> Result<Option<KnownLayer>, StageError> {
        if let Some(published) = published_layer(head, digest)?
            && self.missing_of_layer(head, digest)?.is_empty()
        {
            return Ok(Some(published));
        }
        self.stored_layer(digest)
    }

    /// Finds a layer that is published with its record, or one that an earlier run stored. Objects of its files may be missing,
    /// so the caller may use only its catalogs and record.
    pub(super) fn known_layer_unchecked(
        &self,
        head: &Repository,
        digest: Digest,
    ) -> Result<Option<KnownLayer>, StageError> {
        match published_layer(head, digest)? {
            Some(published) => Ok(Some(published)),
            None => self.stored_layer(digest),
        }
    }

    fn stored_layer(&self, digest: Digest) -> Result<Option<KnownLayer>, StageError> {
        let Some(note) = self.tree_note(&layout::layer_root(digest))? else { return Ok(None) };
        let record = LayerRecord::parse(note.facts.as_bytes());
        Ok(record.map(|record| KnownLayer { catalog: note.catalog, record }))
    }

    /// Finds a tree that is published without missing objects, or one that an earlier run stored.
    pub(super) fn known_tree(
        &self,
        head: &Repository,
        path: &EntryPath,
    ) -> Result<Option<CatalogReference>, StageError> {
        match our_tree(head, path)? {
            Some(catalog) if self.missing_of_tree(path, catalog)?.is_empty() => Ok(Some(catalog)),
            _ => Ok(self.tree_note(path)?.map(|note| note.catalog)),
        }
    }

    /// Returns the note on the tree that this run or an earlier one stored for `path`, if all of its objects exist.
    pub(super) fn tree_note(&self, path: &EntryPath) -> Result<Option<StoredTreeNote>, StageError> {
        let notes = || self.tree_notes.lock().expect("no thread panics while it holds the notes");
        if let Some(known) = notes().get(path) {
            return Ok(known.clone());
        }
        let found = self.find_tree_note(path)?;
        notes().insert(path.clone(), found.clone());
        Ok(found)
    }

    /// Returns the tree that an earlier run stored for `path`, with its facts. With `force`, returns `None`.
    pub(super) fn stored_tree(
        &self,
        path: &EntryPath,
        options: &ImageOptions,
    ) -> Result<Option<(StoredTree, String)>, StageError> {
        if options.force {
            return Ok(None);
        }
        let Some(note) = self.tree_note(path)? else { return Ok(None) };
        Ok(Some((self.read_tree(path, note.catalog)?.stored, note.facts)))
    }

    fn find_tree_note(&self, path: &EntryPath) -> Result<Option<StoredTreeNote>, StageError> {
        let Some(note) = self.engine.state().tree(&path.to_string(), &self.tree_options())? else { return Ok(None) };
        if !self.staging.has(note.catalog.hash, ObjectKind::Catalog)? {
            return Ok(None);
        }
        Ok(self.is_complete(path, note.catalog)?.then_some(note))
    }

    /// Adds a note on a tree whose catalogs were stored.
    pub(super) fn add_tree_note(&self, path: &EntryPath, stored: &StoredTree, facts: &[u8]) -> Result<(), StageError> {
        let facts = String::from_utf8_lossy(facts).into_owned();
        let note = StoredTreeNote { catalog: stored.reference, facts };
        self.engine.state().add_tree(&path.to_string(), &self.tree_options(), &note)?;
        self.tree_notes.lock().expect("no thread panics while it holds the notes").insert(path.clone(), Some(note));
        Ok(())
    }

    /// Reads a tree from its catalogs.
    pub(super) fn read_tree(&self, path: &EntryPath, catalog: CatalogReference) -> Result<ReadTree, StageError> {
        Ok(read_tree(&|reference| self.read_catalog(reference), path, catalog)?)
    }

    fn read_catalog(&self, reference: CatalogReference) -> Result<Vec<u8>, StoreError> {
        self.staging.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit())
    }

    /// Reads the facts about a chain or flat tree from the properties of its root catalog.
    pub(super) fn tree_facts(
        &self,
        path: &EntryPath,
        reference: CatalogReference,
    ) -> Result<Option<TreeFacts>, StageError> {
        let bytes = self.read_catalog(reference)?;
        let catalog = Catalog::parse_owned(bytes, path).map_err(RepositoryError::from)?;
        Ok(catalog.property(FACTS).and_then(TreeFacts::parse))
    }

    /// Reads a layer from its catalogs and record.
    pub(super) fn read_layer(&self, digest: Digest, known: &KnownLayer) -> Result<LayerForm, StageError> {
        Ok(read_layer(&|reference| self.read_catalog(reference), digest, known)?)
    }
}

/// Returns whether a layer is published, by this or another program.
pub(crate) fn is_layer_published(head: &Repository, digest: Digest) -> Result<bool, RepositoryError> {
    head.has(&layout::layer_root(digest))
}

/// Finds a layer that is published with a readable record.
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
    // A record that is too long counts as missing: the layer is read from its blob.
    let is_readable = head.get(&path)?.is_some_and(|entry| entry.size.cast_unsigned() <= layout::MAX_LAYER_RECORD_SIZE);
    if !is_readable {
        return Ok(None);
    }
    Ok(head.read_if_intact(&path, layout::MAX_LAYER_RECORD_SIZE)?.and_then(|json| LayerRecord::parse(&json)))
}

/// Reads a layer from its catalogs and record.
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
