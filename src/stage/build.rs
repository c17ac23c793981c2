//! The trees of one image, from what its layers say.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::StagedImage;
use super::need::Need;
use super::trees::KnownLayer;
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

/// What a layer says, and what was left out of it.
struct LayerContent {
    entries: Vec<LayerEntry<Content>>,
    losses: LossList,
    /// What was measured, where the layer was read from its blob.
    summary: Option<LayerSummary>,
    /// The layer as it was stored before, where it was read back.
    form: Option<LayerForm>,
}

/// A tree that was stored.
enum Made {
    Layer(Digest, StoredTree, Box<LayerRecord>),
    Tree(EntryPath, StoredTree),
}

impl Stager<'_> {
    /// Applies the layers above the base one by one, and stores each tree that is needed. Those that were `read` are given; the
    /// others are read back.
    ///
    /// Trees are stored side by side in rayon's current pool, while the next layers are applied.
    pub(super) fn build(
        &self,
        staged: &mut StagedImage,
        need: &Need,
        mut read: BTreeMap<usize, IngestedLayer>,
        head: &Repository,
    ) -> Result<(), StageError> {
        let chains = staged.image.chains();
        let settings = self.settings();
        let builder = CatalogBuilder::new(&self.staging, settings.compression, settings.catalog_entries)
            .map_err(BuildError::from)?;
        let builder = &builder;
        let (mut tree, mut losses) = match need.base {
            0 => (Directory::empty_root(), LossList::default()),
            length => self.base(chains[length - 1], head)?,
        };
        let (image, made) = (&staged.image, Mutex::new(Vec::new()));
        let add = |result| made.lock().expect("no thread panics while it adds a tree").push(result);
        rayon::scope(|scope| -> Result<(), StageError> {
            let store_tree = |tree: &Arc<Directory>, path, losses: &LossList| {
                let (tree, losses) = (Arc::clone(tree), losses.clone());
                scope.spawn(move |_| add(self.store_tree(builder, &tree, path, losses)));
            };
            for (index, &chain) in chains.iter().enumerate().skip(need.base) {
                self.engine.cancellation().check()?;
                let layer = &image.layers[index];
                let content = match (read.remove(&index), need.known.get(&index)) {
                    (Some(ingested), _) => LayerContent::of_blob(ingested),
                    (None, Some(known)) => self.recall_layer(layer.digest, known)?,
                    (None, None) => unreachable!("a layer is known or was read"),
                };
                let is_new = need.layers.contains(&index);
                let (applied, stray) = self.apply(&tree, layer, &content, is_new, &mut losses, head)?;
                tree = applied.tree;
                let comes_again = || image.layers[index + 1..].iter().any(|other| other.digest == layer.digest);
                let (form, is_complete) = (applied.form, applied.can_be_read_back && stray.is_empty());
                // What the layer says is not needed while its catalogs are written.
                let (summary, mut lost) = (content.summary, content.losses);
                lost.add_unlisted(LossKind::StrayMarker, stray);
                let store = move || self.store_layer(builder, layer, form, is_complete, summary, lost);
                if is_new && comes_again() {
                    // It is compared with what is stored now.
                    add(store());
                } else if is_new {
                    scope.spawn(move |_| add(store()));
                }
                if need.chains.contains(&(index + 1)) {
                    store_tree(&tree, layout::chain_root(chain), &losses);
                }
            }
            if need.flat {
                let store = |bytes: &[u8]| self.staging.put_file(settings.compression, bytes);
                let flat = flat_tree(&tree, &image.parsed_config.config, settings.modes, store)?;
                store_tree(&flat, layout::flat_root(image.config.digest), &losses);
            }
            Ok(())
        })?;
        for result in made.into_inner().expect("no thread panics while it adds a tree") {
            match result? {
                Made::Layer(digest, stored, record) => drop(staged.ready.layers.insert(digest, (stored, *record))),
                Made::Tree(path, stored) => drop(staged.ready.trees.insert(path, stored)),
            }
        }
        staged.outcome.losses = losses;
        Ok(())
    }

    /// Applies a layer to a tree, and adds what CVMFS cannot hold of the result. Returns the stray markers of the layer by itself, too.
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

    /// Reads the chain that an image starts from, and what was lost on the way there.
    fn base(&self, chain: ChainId, head: &Repository) -> Result<(Arc<Directory>, LossList), StageError> {
        let path = layout::chain_root(chain);
        let catalog = self.known_tree(head, &path)?.expect("the base was seen just now");
        let mut read = self.read_tree(&path, catalog)?;
        let facts = read.facts.as_deref().and_then(TreeFacts::parse).unwrap_or_default();
        join_links(&mut read.tree, &facts.links_across_directories);
        Ok((read.tree, facts.losses))
    }

    fn recall_layer(&self, digest: Digest, known: &KnownLayer) -> Result<LayerContent, StageError> {
        let form = self.read_layer(digest, known)?;
        let entries = layer_entries(&form);
        Ok(LayerContent { entries, losses: known.record.losses.clone(), summary: None, form: Some(form) })
    }

    /// Returns a layer as it was stored before, above whatever parents it had then; `None` for one that is stored now.
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
        let known = self.described_layer(head, digest)?;
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
    ) -> Result<Made, StageError> {
        let _forming = span!("trees");
        let path = layout::layer_root(layer.digest);
        let stored = builder.build(&form.tree, &path, None)?;
        let summary = summary.expect("a layer that is to be stored was read from its blob");
        let record = LayerRecord::new(&summary, &form, losses, is_complete);
        self.note(&path, &stored, &record.write())?;
        Ok(Made::Layer(layer.digest, stored, Box::new(record)))
    }

    /// Stores a chain or root file system, of which CVMFS cannot hold `losses`.
    fn store_tree(
        &self,
        builder: &CatalogBuilder<'_>,
        tree: &Arc<Directory>,
        path: EntryPath,
        losses: LossList,
    ) -> Result<Made, StageError> {
        let _forming = span!("trees");
        // Even where there are none: they say who made the tree.
        let facts = TreeFacts { losses, links_across_directories: links_across_directories(tree) }.write();
        let stored = builder.build(tree, &path, Some(facts))?;
        self.note(&path, &stored, b"")?;
        Ok(Made::Tree(path, stored))
    }
}

impl LayerContent {
    fn of_blob(ingested: IngestedLayer) -> Self {
        let mut losses: Losses = ingested.summary.losses.clone();
        // The first link to one of AUFS's own files is published as the file.
        let mut published: HashMap<&EntryPath, &EntryPath> = HashMap::new();
        for entry in &ingested.entries {
            if let EntryKind::HardLink(target) = &entry.kind
                && !is_bookkeeping(&entry.path)
            {
                let is_hidden = is_bookkeeping(target);
                let other = if is_hidden { *published.entry(target).or_insert(&entry.path) } else { target };
                if !entry.path.is_sibling_of(other) {
                    losses.add(Loss { path: entry.path.clone(), kind: LossKind::LinkAcrossDirectories });
                }
            }
        }
        Self { losses: LossList::from(&losses), entries: ingested.entries, summary: Some(ingested.summary), form: None }
    }
}
