//! The trees of one image, from what its layers say.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ConvertError;
use super::need::{Need, Ready};
use super::run::Run;
use super::stage::StagedImage;
use super::trees::KnownLayer;
use crate::catalog::{BuildError, CatalogBuilder, without_stray_markers};
use crate::image::{ChainId, Digest};
use crate::ingest::IngestedLayer;
use crate::layer::{EntryKind, EntryPath, LayerEntry, LayerSummary, Loss, LossKind, Losses};
use crate::layout::{self, LayerRecord, LossList, TreeFacts, flat_tree};
use crate::object::Content;
use crate::repository::Repository;
use crate::source::ImageLayer;
use crate::stage::stage;
use crate::tree::{Directory, LayerForm, Node, apply, join_links, layer_entries, links_across_folders};

/// What a layer says, and what was left out of it.
struct LayerContent {
    entries: Vec<LayerEntry<Content>>,
    losses: LossList,
    /// What was measured, where the layer was read from its blob.
    summary: Option<LayerSummary>,
    /// The layer as it was stored before, where it was read back.
    form: Option<LayerForm>,
}

impl Run {
    /// Applies the layers above the base one by one, and stores each tree that is needed. Those that were `read` are given; the
    /// others are read back.
    pub(super) fn build(
        &self,
        staged: &mut StagedImage,
        need: &Need,
        mut read: BTreeMap<usize, IngestedLayer>,
        head: &Repository,
    ) -> Result<(), ConvertError> {
        let chains = staged.image.chains();
        let settings = self.folder.settings();
        let builder = CatalogBuilder::new(&self.staging, settings.compression, settings.catalog_entries)
            .map_err(BuildError::from)?;
        let (mut tree, mut losses) = match need.base {
            0 => (Directory::empty_root(), LossList::default()),
            length => self.base(chains[length - 1], head)?,
        };
        for (index, &chain) in chains.iter().enumerate().skip(need.base) {
            let layer = staged.image.layers[index].clone();
            let content = match (read.remove(&index), need.known.get(&index)) {
                (Some(ingested), _) => LayerContent::of_blob(ingested),
                (None, Some(known)) => self.recall_layer(layer.digest, known)?,
                (None, None) => unreachable!("a layer is known or was read"),
            };
            losses.extend(&content.losses);
            if need.layers.contains(&index) {
                self.store_layer(&mut staged.ready, &builder, &tree, &layer, &content)?;
            }
            let _applying = stage!("layers");
            let applied = apply(&tree, &content.entries)
                .map_err(|source| ConvertError::Apply { digest: layer.digest, source })?;
            let (kept, stray) = without_stray_markers(&applied);
            losses.add_unlisted(LossKind::StrayMarker, stray);
            tree = kept;
            if let Some(form) = self.published_form(&content, need.layers.contains(&index), layer.digest, head)? {
                losses.add_unlisted(LossKind::LinkIntoOtherParents, links_with_other_inodes(&form, &tree));
            }
            if need.chains.contains(&(index + 1)) {
                self.store_tree(&mut staged.ready, &builder, &tree, layout::chain_root(chain), &losses)?;
            }
        }
        if need.flat {
            let config = &staged.image.parsed_config.config;
            let store = |bytes: &[u8]| self.staging.put_file(settings.compression, bytes);
            let flat = flat_tree(&tree, config, settings.modes, store)?;
            let path = layout::flat_root(staged.image.config.digest);
            self.store_tree(&mut staged.ready, &builder, &flat, path, &losses)?;
        }
        staged.outcome.losses = losses;
        if let Some(kept) = &self.kept {
            staged.image.layers.iter().for_each(|layer| kept.forget(layer.digest));
        }
        Ok(())
    }

    /// Reads the chain that an image starts from, and what was lost on the way there.
    fn base(&self, chain: ChainId, head: &Repository) -> Result<(Arc<Directory>, LossList), ConvertError> {
        let path = layout::chain_root(chain);
        let catalog = self.known_tree(head, &path)?.expect("the base was seen just now");
        let mut read = self.read_tree(&path, catalog)?;
        let facts = read.facts.as_deref().and_then(TreeFacts::parse).unwrap_or_default();
        join_links(&mut read.tree, &facts.links_across_folders);
        Ok((read.tree, facts.losses))
    }

    fn recall_layer(&self, digest: Digest, known: &KnownLayer) -> Result<LayerContent, ConvertError> {
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
    ) -> Result<Option<LayerForm>, ConvertError> {
        if is_new || content.form.is_some() {
            return Ok(content.form.clone());
        }
        let known = self.known_layer(head, digest)?;
        known.map(|known| self.read_layer(digest, &known)).transpose()
    }

    /// Stores a layer by itself.
    fn store_layer(
        &self,
        ready: &mut Ready,
        builder: &CatalogBuilder<'_>,
        lower: &Arc<Directory>,
        layer: &ImageLayer,
        content: &LayerContent,
    ) -> Result<(), ConvertError> {
        let failed = |source| ConvertError::Apply { digest: layer.digest, source };
        let form = LayerForm::build(lower, &content.entries).map_err(failed)?;
        let path = layout::layer_root(layer.digest);
        let (tree, stray) = without_stray_markers(&form.tree);
        let stored = builder.build(&tree, &path, None)?;
        // Whiteouts of markers cannot be stored, but are recorded.
        let is_whiteout = |path: &EntryPath| form.whiteouts.contains(path);
        let stray: Vec<EntryPath> = stray.into_iter().filter(|path| !is_whiteout(path)).collect();
        let (mut losses, is_complete) = (content.losses.clone(), stray.is_empty() && form.can_be_read_back());
        losses.add_unlisted(LossKind::StrayMarker, stray);
        let summary = content.summary.as_ref().expect("a layer that is to be stored was read from its blob");
        let record = LayerRecord::new(summary, &form, losses, is_complete);
        self.note(&path, &stored, &record.write())?;
        ready.layers.insert(layer.digest, (stored, record));
        Ok(())
    }

    /// Stores a chain or root file system, of which CVMFS cannot hold `losses`.
    fn store_tree(
        &self,
        ready: &mut Ready,
        builder: &CatalogBuilder<'_>,
        tree: &Arc<Directory>,
        path: EntryPath,
        losses: &LossList,
    ) -> Result<(), ConvertError> {
        let facts = TreeFacts { losses: losses.clone(), links_across_folders: links_across_folders(tree) };
        // Even where there are none: they say who made the tree.
        let stored = builder.build(tree, &path, Some(&facts.write()))?;
        self.note(&path, &stored, b"")?;
        ready.trees.push((path, stored));
        Ok(())
    }
}

impl LayerContent {
    fn of_blob(ingested: IngestedLayer) -> Self {
        let mut losses: Losses = ingested.summary.losses.clone();
        for entry in &ingested.entries {
            if let EntryKind::HardLink(target) = &entry.kind
                && entry.path.split().map(|(parent, _)| parent) != target.split().map(|(parent, _)| parent)
            {
                losses.add(Loss { path: entry.path.clone(), kind: LossKind::LinkAcrossFolders });
            }
        }
        Self { losses: LossList::from(&losses), entries: ingested.entries, summary: Some(ingested.summary), form: None }
    }
}

/// Returns the hard links into lower layers that a layer, stored above other parents, shows with another inode than `tree`.
fn links_with_other_inodes(form: &LayerForm, tree: &Directory) -> Vec<EntryPath> {
    let is_other = |path: &&EntryPath| match (form.tree.get(path), tree.get(path)) {
        (Some(Node::Leaf(stored)), Some(Node::Leaf(real))) => stored != real,
        _ => true,
    };
    form.links_below.keys().filter(is_other).cloned().collect()
}
