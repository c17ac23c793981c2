//! Stores the trees of one image, several of them in parallel.

use std::sync::{Arc, Mutex};

use rayon::Scope;

use super::plan::StoredTrees;
use super::{StageError, Stager};
use crate::catalog::{BuildError, CatalogBuilder, StoredTree};
use crate::image::Digest;
use crate::layer::LayerSummary;
use crate::layout::{self, LayerRecord, LossList, TreeFacts};
use crate::path::EntryPath;
use crate::span::span;
use crate::tree::{Directory, LayerForm, links_across_directories};

/// Stores trees while further ones are built.
pub(super) struct TreeWriter<'a> {
    stager: &'a Stager<'a>,
    builder: CatalogBuilder<'a>,
    results: Mutex<Vec<Result<WrittenTree, StageError>>>,
}

/// A layer to store.
pub(super) struct NewLayer {
    pub(super) digest: Digest,
    pub(super) form: LayerForm,
    /// Whether reading the stored form gives the same layer.
    pub(super) is_complete: bool,
    pub(super) summary: LayerSummary,
    pub(super) losses: LossList,
}

/// A tree that was stored.
enum WrittenTree {
    Layer(Digest, StoredTree, Box<LayerRecord>),
    /// A chain or flat tree, with its path.
    Other(EntryPath, StoredTree),
}

impl<'a> TreeWriter<'a> {
    pub(super) fn new(stager: &'a Stager<'a>) -> Result<Self, StageError> {
        let settings = stager.settings();
        let builder = CatalogBuilder::new(&stager.staging, settings.compression, settings.catalog_entries)
            .map_err(BuildError::from)?;
        Ok(Self { stager, builder, results: Mutex::default() })
    }

    /// Stores a layer by itself. If the image `contains_it_again`, the layer is stored immediately, because the later one is
    /// compared with the stored layer.
    pub(super) fn add_layer<'s>(&'s self, layer: NewLayer, contains_it_again: bool, scope: &Scope<'s>) {
        let write = move || self.add(self.write_layer(layer));
        if contains_it_again { write() } else { scope.spawn(move |_| write()) }
    }

    /// Stores a chain or flat tree with its losses.
    pub(super) fn add_tree<'s>(&'s self, tree: &Arc<Directory>, path: EntryPath, losses: &LossList, scope: &Scope<'s>) {
        let (tree, losses) = (Arc::clone(tree), losses.clone());
        scope.spawn(move |_| self.add(self.write_tree(&tree, path, losses)));
    }

    /// Adds the stored trees to `stored`, or returns the first error. All trees must be stored: the scope has ended.
    pub(super) fn finish(self, stored: &mut StoredTrees) -> Result<(), StageError> {
        for result in self.results.into_inner().expect("no thread panics while it adds a tree") {
            match result? {
                WrittenTree::Layer(digest, tree, record) => drop(stored.layers.insert(digest, (tree, *record))),
                WrittenTree::Other(path, tree) => drop(stored.trees.insert(path, tree)),
            }
        }
        Ok(())
    }

    fn add(&self, result: Result<WrittenTree, StageError>) {
        self.results.lock().expect("no thread panics while it adds a tree").push(result);
    }

    fn write_layer(&self, layer: NewLayer) -> Result<WrittenTree, StageError> {
        let _forming = span!("trees");
        let NewLayer { digest, form, is_complete, summary, losses } = layer;
        let path = layout::layer_root(digest);
        let stored = self.builder.build(&form.tree, &path, None)?;
        let record = LayerRecord::new(&summary, &form, losses, is_complete);
        self.stager.add_tree_note(&path, &stored, &record.write())?;
        Ok(WrittenTree::Layer(digest, stored, Box::new(record)))
    }

    fn write_tree(&self, tree: &Arc<Directory>, path: EntryPath, losses: LossList) -> Result<WrittenTree, StageError> {
        let _forming = span!("trees");
        // Empty facts are written, too: their presence marks a tree that strata created.
        let facts = TreeFacts { losses, links_across_directories: links_across_directories(tree) }.write();
        let stored = self.builder.build(tree, &path, Some(facts))?;
        self.stager.add_tree_note(&path, &stored, b"")?;
        Ok(WrittenTree::Other(path, stored))
    }
}
