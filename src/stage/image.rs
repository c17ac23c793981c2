//! One image, until everything that belongs to it is in the store.

use std::collections::BTreeMap;
use std::thread;

use bytesize::ByteSize;

use super::need::{Need, Ready};
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
use crate::stage::Plan;

/// An image that was found, and of which only the documents that describe it were read.
pub(crate) struct ResolvedImage {
    pub(crate) request: Request,
    pub(crate) source: Box<dyn Source>,
    /// The image for each platform, and where it is published.
    pub(crate) images: Vec<(ImagePlace, Image)>,
}

impl ResolvedImage {
    /// Returns the name that it is published under.
    pub(crate) fn name(&self) -> &ImageName {
        &self.images[0].0.name
    }

    /// Returns the image for each platform.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().map(|(_, image)| image)
    }
}

/// An image all of whose trees are stored.
pub(crate) struct StagedImage {
    pub(crate) image: Image,
    pub(crate) options: ImageOptions,
    /// The image as it was named.
    pub(crate) source: String,
    /// The digest that stands beside the tag in the name that was asked for.
    pub(crate) digest: Option<Digest>,
    /// The trees that the head does not have.
    pub(crate) ready: Ready,
    pub(crate) outcome: Outcome,
    /// Whether the trees of the image tell what CVMFS cannot hold of it. If not, `outcome.losses` is empty.
    pub(crate) knows_losses: bool,
    /// Whether another program has published this very image, so that it is left alone.
    pub(crate) is_foreign: bool,
}

/// An image that did not fail.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Where it is published.
    pub place: ImagePlace,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The digest of its config, which names its root file system.
    pub config: Digest,
    /// What there was to do.
    pub plan: Plan,
    /// What CVMFS cannot hold.
    pub losses: LossList,
    /// Whether podman sees it.
    pub podman: PodmanListing,
    /// Layers that were not published before.
    pub new_layers: Vec<Digest>,
}

impl Stager<'_> {
    /// Finds an image, for each platform that is wanted, and verifies the documents that describe it.
    pub(crate) fn resolve(&self, request: &Request) -> Result<ResolvedImage, StageError> {
        let source = source::open(&request.argument, &self.registries)?;
        let mut images = Vec::new();
        for (platform, image) in request.image.platforms.resolve(&*source)? {
            let name = image.name(request.name.as_ref(), &request.argument)?;
            images.push((ImagePlace { name, platform }, image));
        }
        Ok(ResolvedImage { request: request.clone(), source, images })
    }

    /// Reads what is new in an image and stores its trees.
    ///
    /// `head` is any recent revision: trees that it has are used again. The names in it are not read.
    pub(crate) fn stage(
        &self,
        request: &Request,
        (place, image): (ImagePlace, Image),
        source: &dyn Source,
        head: &Repository,
        progress: &Progress,
    ) -> Result<StagedImage, StageError> {
        self.engine.cancellation().check()?;
        // The threads of the pool work on trees, and are never kept waiting for content.
        let (mut staged, mut need) = self.engine.pool().install(|| self.plan(request, place, image, head))?;
        if self.options.dry_run {
            return Ok(staged);
        }
        if need.is_anything() || need.to_read(&staged.image).next().is_some() {
            let Outcome { place, plan, .. } = &staged.outcome;
            progress.set_activity(format!("reading {place}"));
            self.reporter().info(format_args!("{place}: reading {} of {} layers", plan.layers_to_read, plan.layers));
            if let Some(left) = self.staging.store().bytes_left().filter(|left| *left < plan.bytes_to_read) {
                let (left, needed) = (ByteSize(left), ByteSize(plan.bytes_to_read));
                let storage = self.staging.store().root().display();
                self.reporter().warn(format_args!(
                    "{place}: there are {left} left for '{storage}', and the layers have {needed} as they are packed"
                ));
            }
            thread::scope(|scope| {
                let mover = self.staging.start_mover(scope);
                let read = self.read_layers(&staged.image, &mut need, source, progress)?;
                mover.move_now();
                progress.set_activity(format!("storing the trees of {}", staged.outcome.place));
                let build = || self.build_what_is_missing(&mut staged, &mut need, read, head);
                let (built, saved) = self.engine.pool().install(|| rayon::join(build, || self.index.save()));
                saved?;
                built
            })?;
            if let Some(kept) = &self.kept {
                staged.image.layers.iter().for_each(|layer| kept.forget(layer.digest));
            }
        }
        let is_new = |digest: &&Digest| !staged.ready.replaced.contains(&layout::layer_root(**digest));
        staged.outcome.new_layers = staged.ready.layers.keys().filter(is_new).copied().collect();
        Ok(staged)
    }

    /// Builds the trees that are missing, but for those that only missed content which was read now.
    fn build_what_is_missing(
        &self,
        staged: &mut StagedImage,
        need: &mut Need,
        read: BTreeMap<usize, IngestedLayer>,
        head: &Repository,
    ) -> Result<(), StageError> {
        let chains = staged.image.chains();
        self.fill_holes(need, &staged.image, &chains, head, &mut staged.ready)?;
        if need.is_anything() {
            return self.build(staged, need, read, head);
        }
        self.add_known_losses(staged, &chains, head)
    }

    /// Finds out what has to be done for an image.
    fn plan(
        &self,
        request: &Request,
        place: ImagePlace,
        image: Image,
        head: &Repository,
    ) -> Result<(StagedImage, Need), StageError> {
        let _planning = span!("plan");
        let (chains, options) = (image.chains(), &request.image);
        let (need, ready) = self.need(&image, &chains, options, head)?;
        let plan = need.plan(&image);
        let mut staged = StagedImage { ready, ..StagedImage::new(request, place, image, plan) };
        if !need.is_anything() {
            self.add_known_losses(&mut staged, &chains, head)?;
        }
        Ok((staged, need))
    }

    /// Adds what CVMFS cannot hold of an image that needs nothing built, if its trees tell it.
    fn add_known_losses(
        &self,
        staged: &mut StagedImage,
        chains: &[ChainId],
        head: &Repository,
    ) -> Result<(), StageError> {
        let flat = layout::flat_root(staged.image.config.digest);
        for path in chains.last().map(|&chain| layout::chain_root(chain)).into_iter().chain([flat]) {
            if let Some(catalog) = self.known_tree(head, &path)? {
                staged.outcome.losses = self.facts(&path, catalog)?.unwrap_or_default().losses;
                staged.knows_losses = true;
                return Ok(());
            }
        }
        staged.knows_losses = false;
        Ok(())
    }

    /// Returns what CVMFS cannot hold of an image's layers, as far as they are known.
    pub(crate) fn losses_of_layers(&self, image: &Image, head: &Repository) -> Result<LossList, StageError> {
        let mut losses = LossList::default();
        for layer in &image.layers {
            if let Some(known) = self.described_layer(head, layer.digest)? {
                losses.extend(&known.record.losses);
            }
        }
        Ok(losses)
    }
}

impl StagedImage {
    fn new(request: &Request, place: ImagePlace, image: Image, plan: Plan) -> Self {
        let (manifest, config) = (image.manifest.digest, image.config.digest);
        let (losses, podman, new_layers) = (LossList::default(), PodmanListing::NotAsked, Vec::new());
        let outcome = Outcome { place, manifest, config, plan, losses, podman, new_layers };
        let (source, digest) = (request.argument.to_string(), request.digest_beside_tag());
        let (options, ready) = (request.image.clone(), Ready::default());
        Self { source, digest, options, ready, outcome, image, is_foreign: false, knows_losses: true }
    }

    /// Returns an image that another program has published already, so that it is left alone.
    pub(crate) fn foreign(request: &Request, place: ImagePlace, image: Image) -> Self {
        let plan = Plan { layers: image.layers.len(), base_layers: image.layers.len(), ..Plan::default() };
        Self { is_foreign: true, ..Self::new(request, place, image, plan) }
    }

    /// Returns what the consumers need to know of the image.
    pub(crate) fn for_consumers(&self) -> ImageChange<'_> {
        let flat = self.ready.trees.get(&layout::flat_root(self.outcome.config));
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
