//! Stages one image: from its name to all of its trees in the store.

use std::collections::BTreeMap;
use std::thread;

use bytesize::ByteSize;

use super::plan::{BuildPlan, StoredTrees};
use super::{ImageOptions, Request, StageError, Stager};
use crate::consumer::ImageChange;
use crate::consumer::podman::PodmanListing;
use crate::image::{ChainId, Digest, ImageName};
use crate::ingest::IngestedLayer;
use crate::layout::{self, ImagePlace, LossList};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::source::{self, Image, Source};
use crate::span::span;
use crate::stage::PlanSummary;

/// An image whose manifest and config were read and verified, but no layer.
pub(crate) struct ResolvedImage {
    pub(crate) request: Request,
    pub(crate) source: Box<dyn Source>,
    /// The image for each platform, and its name and platform in the repository.
    pub(crate) images: Vec<(ImagePlace, Image)>,
}

impl ResolvedImage {
    /// Returns the name under which the image is published.
    pub(crate) fn name(&self) -> &ImageName {
        &self.images[0].0.name
    }

    /// Returns the image for each platform.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().map(|(_, image)| image)
    }
}

/// An image with all of its trees in the store.
pub(crate) struct StagedImage {
    pub(crate) image: Image,
    pub(crate) options: ImageOptions,
    /// The argument that named the image.
    pub(crate) source: String,
    /// The digest that the requested name contains in addition to a tag.
    pub(crate) digest: Option<Digest>,
    /// The trees that the head does not have.
    pub(crate) stored: StoredTrees,
    pub(crate) outcome: ImageOutcome,
    /// Whether the losses of the image were read from its trees. If not, `outcome.losses` is empty.
    pub(crate) knows_losses: bool,
    /// Whether another program has published the same image, so that it is not published again.
    pub(crate) is_foreign: bool,
}

/// The result of converting an image without an error.
#[derive(Debug, Clone)]
pub struct ImageOutcome {
    /// Its name and platform in the repository.
    pub place: ImagePlace,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The digest of its config, which is part of the path of its flat tree.
    pub config: Digest,
    /// The amount of work.
    pub plan: PlanSummary,
    /// What CVMFS cannot represent of the image.
    pub losses: LossList,
    /// Whether it is listed in podman's store.
    pub podman: PodmanListing,
    /// Digests of the layers that are published for the first time.
    pub new_layers: Vec<Digest>,
}

impl Stager<'_> {
    /// Finds the image for each requested platform, and verifies its manifest and config.
    pub(crate) fn resolve(&self, request: &Request) -> Result<ResolvedImage, StageError> {
        let source = source::open(&request.argument, &self.registries)?;
        let mut images = Vec::new();
        for (platform, image) in request.image.platforms.resolve(&*source)? {
            let name = image.name(request.name.as_ref(), &request.argument)?;
            images.push((ImagePlace { name, platform }, image));
        }
        Ok(ResolvedImage { request: request.clone(), source, images })
    }

    /// Reads the new layers of an image and stores its trees.
    ///
    /// `head` is any recent revision, whose trees are reused. The names in it are not read.
    pub(crate) fn stage(
        &self,
        request: &Request,
        (place, image): (ImagePlace, Image),
        source: &dyn Source,
        head: &Repository,
        progress: &Progress,
    ) -> Result<StagedImage, StageError> {
        self.engine.cancellation().check()?;
        // Reading layers waits for the network. That happens outside the pool, whose threads build trees.
        let (mut staged, mut build_plan) = self.engine.pool().install(|| self.plan(request, place, image, head))?;
        if self.options.dry_run {
            return Ok(staged);
        }
        if build_plan.builds_anything() || build_plan.layers_to_read(&staged.image).next().is_some() {
            let ImageOutcome { place, plan, .. } = &staged.outcome;
            progress.set_activity(format!("reading {place}"));
            self.reporter().info(format_args!("{place}: reading {} of {} layers", plan.layers_to_read, plan.layers));
            if let Some(left) = self.staging.store().free_bytes().filter(|left| *left < plan.bytes_to_read) {
                let (left, needed) = (ByteSize(left), ByteSize(plan.bytes_to_read));
                let storage = self.staging.store().address("data");
                self.reporter().warn(format_args!(
                    "{place}: the file system of '{storage}' has {left} of free space, but the compressed layers have a size of {needed}"
                ));
            }
            thread::scope(|scope| {
                let mover = self.staging.start_mover(scope);
                let read = self.read_layers(&staged.image, &mut build_plan, source, progress)?;
                mover.move_now();
                progress.set_activity(format!("storing the trees of {}", staged.outcome.place));
                let build = || self.build_missing_trees(&mut staged, &mut build_plan, read, head);
                let (built, saved) = self.engine.pool().install(|| rayon::join(build, || self.index.save()));
                saved?;
                built
            })?;
            if let Some(cache) = &self.layer_cache {
                // The trees are stored now, so that no later run needs the layers.
                staged.image.layers.iter().for_each(|layer| cache.remove(layer.digest));
            }
        }
        let is_new = |digest: &&Digest| !staged.stored.replaced.contains(&layout::layer_root(**digest));
        staged.outcome.new_layers = staged.stored.layers.keys().filter(is_new).copied().collect();
        Ok(staged)
    }

    /// Builds the trees of the plan, except published trees whose missing objects were stored while the layers were read.
    fn build_missing_trees(
        &self,
        staged: &mut StagedImage,
        plan: &mut BuildPlan,
        read: BTreeMap<usize, IngestedLayer>,
        head: &Repository,
    ) -> Result<(), StageError> {
        let chains = staged.image.chains();
        self.skip_completed_trees(plan, &staged.image, &chains, head, &mut staged.stored)?;
        if plan.builds_anything() {
            return self.build(staged, plan, read, head);
        }
        self.add_known_losses(staged, &chains, head)
    }

    /// Determines what must be read and built for an image.
    fn plan(
        &self,
        request: &Request,
        place: ImagePlace,
        image: Image,
        head: &Repository,
    ) -> Result<(StagedImage, BuildPlan), StageError> {
        let _planning = span!("plan");
        let (chains, options) = (image.chains(), &request.image);
        let (plan, stored) = self.build_plan(&image, &chains, options, head)?;
        let summary = plan.summary(&image);
        let mut staged = StagedImage { stored, ..StagedImage::new(request, place, image, summary) };
        if !plan.builds_anything() {
            self.add_known_losses(&mut staged, &chains, head)?;
        }
        Ok((staged, plan))
    }

    /// If nothing is built for an image, reads its losses from its trees, if one of the trees contains the list.
    fn add_known_losses(
        &self,
        staged: &mut StagedImage,
        chains: &[ChainId],
        head: &Repository,
    ) -> Result<(), StageError> {
        let flat = layout::flat_root(staged.image.config.digest);
        for path in chains.last().map(|&chain| layout::chain_root(chain)).into_iter().chain([flat]) {
            if let Some(catalog) = self.known_tree(head, &path)? {
                staged.outcome.losses = self.tree_facts(&path, catalog)?.unwrap_or_default().losses;
                staged.knows_losses = true;
                return Ok(());
            }
        }
        staged.knows_losses = false;
        Ok(())
    }

    /// Returns the losses of the image's layers that are stored; the losses of other layers are not included.
    pub(crate) fn losses_of_layers(&self, image: &Image, head: &Repository) -> Result<LossList, StageError> {
        let mut losses = LossList::default();
        for layer in &image.layers {
            if let Some(known) = self.known_layer_unchecked(head, layer.digest)? {
                losses.extend(&known.record.losses);
            }
        }
        Ok(losses)
    }
}

impl StagedImage {
    fn new(request: &Request, place: ImagePlace, image: Image, plan: PlanSummary) -> Self {
        let (manifest, config) = (image.manifest.digest, image.config.digest);
        let (losses, podman, new_layers) = (LossList::default(), PodmanListing::NotAsked, Vec::new());
        let outcome = ImageOutcome { place, manifest, config, plan, losses, podman, new_layers };
        let (source, digest) = (request.argument.to_string(), request.digest_beside_tag());
        let (options, stored) = (request.image.clone(), StoredTrees::default());
        Self { source, digest, options, stored, outcome, image, is_foreign: false, knows_losses: true }
    }

    /// Returns an image that another program has published, so that it is not published again.
    pub(crate) fn foreign(request: &Request, place: ImagePlace, image: Image) -> Self {
        let plan =
            PlanSummary { layers: image.layers.len(), base_layers: image.layers.len(), ..PlanSummary::default() };
        Self { is_foreign: true, ..Self::new(request, place, image, plan) }
    }

    /// Returns the properties of the image that consumers use.
    pub(crate) fn for_consumers(&self) -> ImageChange<'_> {
        let flat = self.stored.trees.get(&layout::flat_root(self.outcome.config));
        ImageChange {
            place: &self.outcome.place,
            manifest: &self.image.manifest,
            config: &self.image.config,
            has_flat: !self.options.skip_flat,
            flat_size: flat.map(|stored| stored.totals.file_size().cast_unsigned()),
            is_forced: self.options.force,
            podman: &self.outcome.podman,
        }
    }

    /// Returns whether podman lists the image.
    pub(crate) fn is_listed(&self) -> bool {
        self.outcome.podman == PodmanListing::Listed
    }
}
