//! Builds and stores the trees of one image from its layers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::StagedImage;
use super::known_trees::KnownLayer;
use super::plan::BuildPlan;
use super::{StageError, Stager};
use crate::catalog::{BuildError, CatalogBuilder, StoredTree, layer_without_stray_markers, without_stray_markers};
use crate::consumer::apptainer::flat_tree;
use crate::image::{ChainId, Digest};
use crate::ingest::IngestedLayer;
use crate::layer::{EntryKind, LayerEntry, LayerSummary, Loss, LossKind, Losses, is_bookkeeping};
use crate::layout::{self, LayerRecord, LossList, TreeFacts};
use crate::object::Content;
use crate::path::EntryPath;
use crate::repository::Repository;
use crate::source::ImageLayer;
use crate::span::span;
use crate::tree::{
    Applied, Directory, LayerForm, ParentDifferences, apply, join_links, layer_entries, links_across_directories,
};

/// The content of a layer, read from its blob or from its catalogs.
struct LayerContent {
    entries: Vec<LayerEntry<Content>>,
    losses: LossList,
    /// Sizes and diff ID, if the layer was read from its blob.
    summary: Option<LayerSummary>,
    /// The layer as it was stored, if it was read from its catalogs.
    form: Option<LayerForm>,
}

/// A tree that was built and stored.
enum BuiltTree {
    Layer(Digest, StoredTree, Box<LayerRecord>),
    /// A chain or flat tree, with its path.
    Other(EntryPath, StoredTree),
}

impl Stager<'_> {
    /// Applies the layers above the base of the plan one by one, and stores each tree of the plan.
    ///
    /// `read` contains layers that were read from their blobs, by index. The other layers are read from their catalogs. Trees are
    /// stored in parallel in rayon's current pool, while the next layers are applied.
    pub(super) fn build(
        &self,
        staged: &mut StagedImage,
        plan: &BuildPlan,
        mut read: BTreeMap<usize, IngestedLayer>,
        head: &Repository,
    ) -> Result<(), StageError> {
        let chains = staged.image.chains();
        let settings = self.settings();
        let builder = CatalogBuilder::new(&self.staging, settings.compression, settings.catalog_entries)
            .map_err(BuildError::from)?;
        let builder = &builder;
        let (mut tree, mut losses) = match plan.base {
            0 => (Directory::empty_root(), LossList::default()),
            length => self.base(chains[length - 1], head)?,
        };
        let (image, built) = (&staged.image, Mutex::new(Vec::new()));
        let add = |result| built.lock().expect("no thread panics while it adds a tree").push(result);
        rayon::scope(|scope| -> Result<(), StageError> {
            let store_tree = |tree: &Arc<Directory>, path, losses: &LossList| {
                let (tree, losses) = (Arc::clone(tree), losses.clone());
                scope.spawn(move |_| add(self.store_tree(builder, &tree, path, losses)));
            };
            for (index, &chain) in chains.iter().enumerate().skip(plan.base) {
                self.engine.cancellation().check()?;
                let layer = &image.layers[index];
                let content = match (read.remove(&index), plan.known.get(&index)) {
                    (Some(ingested), _) => LayerContent::of_blob(ingested),
                    (None, Some(known)) => self.read_stored_layer(layer.digest, known)?,
                    (None, None) => unreachable!("a layer is known or was read"),
                };
                let is_new = plan.layers.contains(&index);
                let (applied, stray) = self.apply(&tree, layer, &content, is_new, &mut losses, head)?;
                tree = applied.tree;
                let comes_again = || image.layers[index + 1..].iter().any(|other| other.digest == layer.digest);
                let (form, is_complete) = (applied.form, applied.can_be_read_back && stray.is_empty());
                // `store` must not keep the entries of the layer in memory while it writes the catalogs.
                let (summary, mut layer_losses) = (content.summary, content.losses);
                layer_losses.add_unlisted(LossKind::StrayMarker, stray);
                let store = move || self.store_layer(builder, layer, form, is_complete, summary, layer_losses);
                if is_new && comes_again() {
                    // The image contains this layer again. The later one is compared with the stored layer, so this layer is
                    // stored immediately.
                    add(store());
                } else if is_new {
                    scope.spawn(move |_| add(store()));
                }
                if plan.chains.contains(&(index + 1)) {
                    store_tree(&tree, layout::chain_root(chain), &losses);
                }
            }
            if plan.flat {
                let store = |bytes: &[u8]| self.staging.put_file(settings.compression, bytes);
                let flat = flat_tree(&tree, &image.parsed_config.config, settings.modes, store)?;
                store_tree(&flat, layout::flat_root(image.config.digest), &losses);
            }
            Ok(())
        })?;
        for result in built.into_inner().expect("no thread panics while it adds a tree") {
            match result? {
                BuiltTree::Layer(digest, stored, record) => {
                    drop(staged.stored.layers.insert(digest, (stored, *record)))
                }
                BuiltTree::Other(path, stored) => drop(staged.stored.trees.insert(path, stored)),
            }
        }
        staged.outcome.losses = losses;
        Ok(())
    }

    /// Applies a layer to a tree. Adds to `losses` what CVMFS cannot represent of the layer and of the result. Also returns the
    /// stray markers in the layer.
    fn apply(
        &self,
        lower: &Arc<Directory>,
        layer: &ImageLayer,
        content: &LayerContent,
        is_new: bool,
        losses: &mut LossList,
        head: &Repository,
    ) -> Result<(Applied, Vec<EntryPath>), StageError> {
        let _applying = span!("trees");
        losses.extend(&content.losses);
        let failed = |source| StageError::Apply { digest: layer.digest, source };
        let mut applied = apply(lower, &content.entries).map_err(failed)?;
        let (tree, stray) = without_stray_markers(&applied.tree);
        applied.tree = tree;
        losses.add_unlisted(LossKind::StrayMarker, stray);
        let (tree, stray) = layer_without_stray_markers(&applied.form.tree, lower);
        applied.form.tree = tree;
        losses.add_unlisted(LossKind::StrayMarker, stray.iter().cloned());
        losses.add_unlisted(LossKind::MaskedLink, applied.masked_links.keys().cloned());
        if let Some(published) = self.published_form(content, is_new, layer.digest, head)? {
            let differences = ParentDifferences::between(&applied.form, &published);
            losses.add_unlisted(LossKind::LinkIntoOtherParents, differences.links);
            losses.add_unlisted(LossKind::LayerOfOtherParents, differences.marks);
        }
        Ok((applied, stray))
    }

    /// Reads the chain from which the build starts, with its losses.
    fn base(&self, chain: ChainId, head: &Repository) -> Result<(Arc<Directory>, LossList), StageError> {
        let path = layout::chain_root(chain);
        let catalog = self.known_tree(head, &path)?.expect("the plan has found the base");
        let mut read = self.read_tree(&path, catalog)?;
        let facts = read.facts.as_deref().and_then(TreeFacts::parse).unwrap_or_default();
        join_links(&mut read.tree, &facts.links_across_directories);
        Ok((read.tree, facts.losses))
    }

    /// Reads a layer from its catalogs.
    fn read_stored_layer(&self, digest: Digest, known: &KnownLayer) -> Result<LayerContent, StageError> {
        let form = self.read_layer(digest, known)?;
        let entries = layer_entries(&form);
        Ok(LayerContent { entries, losses: known.record.losses.clone(), summary: None, form: Some(form) })
    }

    /// Returns a layer as it was stored before, possibly on top of other layers; `None` for a layer that this run stores.
    fn published_form(
        &self,
        content: &LayerContent,
        is_new: bool,
        digest: Digest,
        head: &Repository,
    ) -> Result<Option<LayerForm>, StageError> {
        if is_new || content.form.is_some() {
            return Ok(content.form.clone());
        }
        let known = self.known_layer_unchecked(head, digest)?;
        known.map(|known| self.read_layer(digest, &known)).transpose()
    }

    /// Stores a layer by itself.
    fn store_layer(
        &self,
        builder: &CatalogBuilder<'_>,
        layer: &ImageLayer,
        form: LayerForm,
        is_complete: bool,
        summary: Option<LayerSummary>,
        losses: LossList,
    ) -> Result<BuiltTree, StageError> {
        let _forming = span!("trees");
        let path = layout::layer_root(layer.digest);
        let stored = builder.build(&form.tree, &path, None)?;
        let summary = summary.expect("a layer that is to be stored was read from its blob");
        let record = LayerRecord::new(&summary, &form, losses, is_complete);
        self.add_tree_note(&path, &stored, &record.write())?;
        Ok(BuiltTree::Layer(layer.digest, stored, Box::new(record)))
    }

    /// Stores a chain or flat tree with its losses.
    fn store_tree(
        &self,
        builder: &CatalogBuilder<'_>,
        tree: &Arc<Directory>,
        path: EntryPath,
        losses: LossList,
    ) -> Result<BuiltTree, StageError> {
        let _forming = span!("trees");
        // Empty facts are written, too: their presence marks a tree that strata created.
        let facts = TreeFacts { losses, links_across_directories: links_across_directories(tree) }.write();
        let stored = builder.build(tree, &path, Some(facts))?;
        self.add_tree_note(&path, &stored, b"")?;
        Ok(BuiltTree::Other(path, stored))
    }
}

impl LayerContent {
    fn of_blob(ingested: IngestedLayer) -> Self {
        let mut losses: Losses = ingested.summary.losses.clone();
        // The first hard link to a bookkeeping file of AUFS (`.wh..wh.*`), which is not published itself, is published as the file.
        let mut published: HashMap<&EntryPath, &EntryPath> = HashMap::new();
        for entry in &ingested.entries {
            if let EntryKind::HardLink(target) = &entry.kind
                && !is_bookkeeping(&entry.path)
            {
                let is_hidden = is_bookkeeping(target);
                let published_target = if is_hidden { *published.entry(target).or_insert(&entry.path) } else { target };
                if !entry.path.is_sibling_of(published_target) {
                    losses.add(Loss { path: entry.path.clone(), kind: LossKind::LinkAcrossDirectories });
                }
            }
        }
        Self { losses: LossList::from(&losses), entries: ingested.entries, summary: Some(ingested.summary), form: None }
    }
}
