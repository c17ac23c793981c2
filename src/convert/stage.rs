//! One image, up to the point where all that belongs to it lies in the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::need::{Need, Ready};
use super::run::Run;
use super::trees::KnownLayer;
use super::{ConvertError, ImageOptions, Outcome, Plan, Request};
use crate::catalog::{BuildError, CatalogBuilder, without_stray_markers};
use crate::image::{ChainId, Digest, ImageName};
use crate::ingest::{Ingest, IngestError, IngestedLayer, LayerToRead};
use crate::layer::{EntryKind, EntryPath, ExpectedLayer, LayerEntry, LayerSummary, Loss, LossKind, Losses};
use crate::layout::{self, ImagePlace, LayerRecord, LossList, TreeFacts, flat_tree};
use crate::object::{ChunkSizes, Content};
use crate::repository::Repository;
use crate::source::{self, Image, ImageLayer, LayerBlob, Source};
use crate::tree::{Directory, LayerForm, Node, apply, join_links, layer_entries, links_across_folders};

/// An image all of whose trees are stored.
pub(crate) struct StagedImage {
    pub(super) image: Image,
    pub(super) options: ImageOptions,
    /// The image as it was named.
    pub(super) source: String,
    /// What the head did not have.
    pub(super) ready: Ready,
    pub(super) outcome: Outcome,
    /// Whether another program has published this very image, so that it is left alone.
    pub(super) is_foreign: bool,
}

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
    /// Reads what is new in an image and stores its trees, for each platform that is wanted. The names `taken` are those of
    /// other images of the run.
    pub(crate) fn stage(
        &self,
        request: &Request,
        head: &Repository,
        taken: &[ImageName],
    ) -> Result<Vec<StagedImage>, ConvertError> {
        let source = source::open(&request.argument)?;
        let images = request.image.platforms.resolve(&*source)?;
        let mut staged = Vec::new();
        for (platform, image) in images {
            let name = image.name(request.name.as_ref(), &request.argument)?;
            if taken.contains(&name) {
                return Err(ConvertError::SameName(name));
            }
            let place = ImagePlace { name, platform };
            staged.push(self.pool.install(|| self.stage_image(request, place, image, &*source, head))?);
            self.index.save()?;
        }
        Ok(staged)
    }

    fn stage_image(
        &self,
        request: &Request,
        place: ImagePlace,
        image: Image,
        source: &dyn Source,
        head: &Repository,
    ) -> Result<StagedImage, ConvertError> {
        let chains = image.chains();
        let (options, source_name) = (request.image.clone(), request.argument.to_string());
        let (manifest, config) = (image.manifest.digest, image.config.digest);
        if !options.force && Self::is_foreign(head, &place, &image)? {
            let plan = Plan { layers: chains.len(), base_layers: chains.len(), ..Plan::default() };
            let outcome = Outcome { place, manifest, config, plan, losses: LossList::default() };
            let ready = Ready::default();
            return Ok(StagedImage { source: source_name, options, ready, outcome, image, is_foreign: true });
        }
        let (mut need, ready) = self.need(&image, &chains, &options, head)?;
        let losses = if need.is_anything() { LossList::default() } else { self.known_losses(&image, &chains, head)? };
        let plan = need.plan(&image);
        let outcome = Outcome { place, manifest, config, plan, losses };
        let mut staged = StagedImage { source: source_name, options, ready, outcome, image, is_foreign: false };
        if !self.options.dry_run {
            if need.is_anything() {
                self.build(&mut staged, &mut need, &chains, source, head)?;
            }
            check_losses(&staged)?;
        }
        Ok(staged)
    }

    /// Returns what was left out of an image that needs nothing built: as its trees say it, or else its layers.
    fn known_losses(&self, image: &Image, chains: &[ChainId], head: &Repository) -> Result<LossList, ConvertError> {
        let flat = layout::flat_root(image.config.digest);
        for path in chains.last().map(|&chain| layout::chain_root(chain)).into_iter().chain([flat]) {
            if let Some(catalog) = self.known_tree(head, &path)? {
                return Ok(self.facts(&path, catalog)?.unwrap_or_default().losses);
            }
        }
        let mut losses = LossList::default();
        for layer in &image.layers {
            if let Some(known) = self.known_layer(head, layer.digest)? {
                losses.extend(&known.record.losses);
            }
        }
        Ok(losses)
    }

    /// Reads the layers above the base, applies them one by one, and stores each tree that is needed.
    fn build(
        &self,
        staged: &mut StagedImage,
        need: &mut Need,
        chains: &[ChainId],
        source: &dyn Source,
        head: &Repository,
    ) -> Result<(), ConvertError> {
        let name = staged.outcome.place.clone();
        self.progress.set_stage(format!("reading {name}"));
        tracing::info!("{name}: reading {} of {} layers", staged.outcome.plan.layers_to_read, chains.len());
        let contents = self.read_layers(&staged.image, need, source)?;
        self.progress.set_stage(format!("storing the trees of {name}"));
        let settings = self.folder.settings();
        let builder = CatalogBuilder::new(&self.staging, settings.compression, settings.catalog_entries)
            .map_err(BuildError::from)?;
        let (mut tree, mut losses) = match need.base {
            0 => (Directory::empty_root(), LossList::default()),
            length => self.base(chains[length - 1], head)?,
        };
        for (content, index) in contents.into_iter().zip(need.base..) {
            let layer = staged.image.layers[index].clone();
            losses.extend(&content.losses);
            if need.layers.contains(&index) {
                self.store_layer(&mut staged.ready, &builder, &tree, &layer, &content)?;
            }
            let applied = apply(&tree, &content.entries)
                .map_err(|source| ConvertError::Apply { digest: layer.digest, source })?;
            let (kept, stray) = without_stray_markers(&applied);
            losses.add_unlisted(LossKind::StrayMarker, stray);
            tree = kept;
            if let Some(form) = self.published_form(&content, need.layers.contains(&index), layer.digest, head)? {
                losses.add_unlisted(LossKind::LinkIntoOtherParents, links_with_other_inodes(&form, &tree));
            }
            if need.chains.contains(&(index + 1)) {
                self.store_tree(&mut staged.ready, &builder, &tree, layout::chain_root(chains[index]), &losses)?;
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

    /// Returns what each layer above the base says, from records or blobs.
    fn read_layers(
        &self,
        image: &Image,
        need: &mut Need,
        source: &dyn Source,
    ) -> Result<Vec<LayerContent>, ConvertError> {
        let to_read: Vec<usize> = need.to_read(image).collect();
        self.progress.expected.fetch_add(need.plan(image).bytes_to_read, Ordering::Relaxed);
        let ingest = Ingest {
            staging: &self.staging,
            index: &self.index,
            compression: self.folder.settings().compression,
            chunk_sizes: ChunkSizes::default(),
            threads: self.options.threads,
            memory: self.options.memory,
            limits: self.options.limits,
        };
        let layer = |&index: &usize| self.layer_to_read(&image.layers[index], source);
        let results = ingest.run(to_read.iter().map(layer).collect(), &|index, layer| {
            // What lies on this machine is read again as fast.
            if let Some(kept) = self.kept.as_ref().filter(|_| source.is_remote()) {
                kept.keep(image.layers[to_read[index]].digest, layer);
            }
        });
        let mut read = std::mem::take(&mut need.kept);
        let mut failure: Option<(Digest, IngestError)> = None;
        for (&index, result) in to_read.iter().zip(results) {
            match result {
                Ok(layer) => drop(read.insert(index, layer)),
                // The first error is the cause; the others were given up for it.
                Err(IngestError::GivenUp) => {}
                Err(error) => failure = failure.or(Some((image.layers[index].digest, error))),
            }
        }
        if let Some((digest, source)) = failure {
            return Err(ConvertError::Layer { digest, source });
        }
        (need.base..image.layers.len())
            .map(|index| match (read.remove(&index), need.known.get(&index)) {
                (Some(ingested), _) => Ok(LayerContent::of_blob(ingested)),
                (None, Some(known)) => self.recall_layer(image.layers[index].digest, known),
                (None, None) => unreachable!("a layer is known or was read"),
            })
            .collect()
    }

    fn layer_to_read<'s>(&'s self, layer: &'s ImageLayer, source: &'s dyn Source) -> LayerToRead<'s> {
        let expected = ExpectedLayer { digest: layer.digest, size: layer.size, diff_id: Some(layer.diff_id) };
        let open = move || {
            let (reader, is_ready) = source.open_layer(layer)?.into_parts();
            Ok(LayerBlob::remote(self.progress.counted(reader), is_ready))
        };
        LayerToRead { open: Box::new(open), is_remote: source.is_remote(), expected }
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

fn check_losses(staged: &StagedImage) -> Result<(), ConvertError> {
    let losses = &staged.outcome.losses;
    if !staged.options.strict || losses.is_empty() {
        return Ok(());
    }
    let kinds: Vec<String> = losses.kinds().map(|(kind, losses)| format!("{} x {kind}", losses.count)).collect();
    Err(ConvertError::Losses(kinds.join(", ")))
}

/// Returns the hard links into lower layers that a layer, stored above other parents, shows with another inode than `tree`.
fn links_with_other_inodes(form: &LayerForm, tree: &Directory) -> Vec<EntryPath> {
    let is_other = |path: &&EntryPath| match (form.tree.get(path), tree.get(path)) {
        (Some(Node::Leaf(stored)), Some(Node::Leaf(real))) => stored != real,
        _ => true,
    };
    form.links_below.keys().filter(is_other).cloned().collect()
}
