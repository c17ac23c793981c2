//! Builds and stores the trees of one image from its layers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::StagedImage;
use super::known_trees::KnownLayer;
use super::plan::BuildPlan;
use super::tree_writer::{NewLayer, TreeWriter};
use super::{StageError, Stager};
use crate::catalog::{layer_without_stray_markers, without_stray_markers};
use crate::consumer::apptainer::flat_tree;
use crate::image::{ChainId, Digest};
use crate::ingest::IngestedLayer;
use crate::layer::{EntryKind, LayerEntry, LayerSummary, Loss, LossKind, Losses, is_bookkeeping};
use crate::layout::{self, LossList, TreeFacts};
use crate::object::Content;
use crate::path::EntryPath;
use crate::repository::Repository;
use crate::source::{Image, ImageLayer};
use crate::span::span;
use crate::tree::{Applied, Directory, LayerForm, ParentDifferences, apply, join_links, layer_entries};

/// The content of a layer, read from its blob or from its catalogs.
struct LayerContent {
    entries: Vec<LayerEntry<Content>>,
    losses: LossList,
    /// Sizes and diff ID, if the layer was read from its blob.
    summary: Option<LayerSummary>,
    /// The layer as it was stored, if it was read from its catalogs.
    form: Option<LayerForm>,
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
        let (image, chains) = (&staged.image, staged.image.chains());
        let (mut tree, mut losses) = match plan.base {
            0 => (Directory::empty_root(), LossList::default()),
            length => self.base(chains[length - 1], head)?,
        };
        let writer = TreeWriter::new(self)?;
        rayon::scope(|scope| -> Result<(), StageError> {
            for (index, &chain) in chains.iter().enumerate().skip(plan.base) {
                self.engine.cancellation().check()?;
                let layer = &image.layers[index];
                let content = self.layer_content(layer.digest, read.remove(&index), plan.known.get(&index))?;
                let is_new = plan.layers.contains(&index);
                let (applied, stray) = self.apply(&tree, layer, &content, is_new, &mut losses, head)?;
                tree = applied.tree;
                if is_new {
                    let is_complete = applied.can_be_read_back && stray.is_empty();
                    let new = content.into_new_layer(layer.digest, applied.form, is_complete, stray);
                    let contains_it_again = image.layers[index + 1..].iter().any(|other| other.digest == layer.digest);
                    writer.add_layer(new, contains_it_again, scope);
                }
                if plan.chains.contains(&(index + 1)) {
                    writer.add_tree(&tree, layout::chain_root(chain), &losses, scope);
                }
            }
            if plan.flat {
                writer.add_tree(&self.flat(&tree, image)?, layout::flat_root(image.config.digest), &losses, scope);
            }
            Ok(())
        })?;
        writer.finish(&mut staged.stored)?;
        staged.outcome.losses = losses;
        Ok(())
    }

    fn flat(&self, chain: &Arc<Directory>, image: &Image) -> Result<Arc<Directory>, StageError> {
        let settings = self.settings();
        let store = |bytes: &[u8]| self.staging.put_file(settings.compression, bytes);
        Ok(flat_tree(chain, &image.parsed_config.config, settings.modes, store)?)
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
        losses.add_unlisted(LossKind::FileBundle, self.file_bundles(&applied.tree)?);
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

    /// Returns the content of a layer that was read from its blob, or reads a known layer from its catalogs.
    fn layer_content(
        &self,
        digest: Digest,
        read: Option<IngestedLayer>,
        known: Option<&KnownLayer>,
    ) -> Result<LayerContent, StageError> {
        if let Some(ingested) = read {
            return Ok(LayerContent::of_blob(ingested));
        }
        let known = known.expect("a layer is known or was read");
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

    /// Returns the layer in the form in which it is stored. The entries are dropped: they must not take memory while catalogs are
    /// written.
    fn into_new_layer(mut self, digest: Digest, form: LayerForm, is_complete: bool, stray: Vec<EntryPath>) -> NewLayer {
        self.losses.add_unlisted(LossKind::StrayMarker, stray);
        let summary = self.summary.expect("a layer that is to be stored was read from its blob");
        NewLayer { digest, form, is_complete, summary, losses: self.losses }
    }
}
