//! One image, up to the point where all that belongs to it lies in the store.

use std::collections::BTreeMap;
use std::thread;

use bytesize::ByteSize;

use super::need::{Need, Ready};
use super::podman::warn_of_high_variants;
use super::run::Run;
use super::{ConvertError, ImageOptions, Outcome, PodmanListing, Request};
use crate::image::{ChainId, Digest, ImageName};
use crate::ingest::IngestedLayer;
use crate::inventory;
use crate::layer::LossKind;
use crate::layout::{self, ImagePlace, LossList};
use crate::progress::Progress;
use crate::publish::check_clock;
use crate::repository::Repository;
use crate::source::{self, Image, Source};
use crate::span::span;

/// Bytes of the longest list of losses that is read.
const LOSSES_LIMIT: u64 = 256 << 20;

/// An image that was found, and of which nothing was read but what describes it.
pub(crate) struct ResolvedImage {
    request: Request,
    source: Box<dyn Source>,
    /// The image for each platform, and where it is published.
    images: Vec<(ImagePlace, Image)>,
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
    pub(super) image: Image,
    pub(super) options: ImageOptions,
    /// The image as it was named.
    pub(super) source: String,
    /// The digest that stands beside the tag in the name that was asked for.
    pub(super) digest: Option<Digest>,
    /// What the head did not have.
    pub(super) ready: Ready,
    pub(crate) outcome: Outcome,
    /// Whether another program has published this very image, so that it is left alone.
    pub(super) is_foreign: bool,
}

impl StagedImage {
    /// Tells whether another program has published this very image, so that it is left alone.
    pub(crate) fn is_foreign(&self) -> bool {
        self.is_foreign
    }
}

impl Run {
    /// Finds an image, for each platform that is wanted, and verifies what describes it.
    pub(crate) fn resolve(&self, request: &Request) -> Result<ResolvedImage, ConvertError> {
        let source = source::open(&request.argument, &self.registries)?;
        let mut images = Vec::new();
        for (platform, image) in request.image.platforms.resolve(&*source)? {
            let name = image.name(request.name.as_ref(), &request.argument)?;
            images.push((ImagePlace { name, platform }, image));
        }
        Ok(ResolvedImage { request: request.clone(), source, images })
    }

    /// Reads what is new in an image and stores its trees, for each platform.
    pub(crate) fn stage(
        &self,
        resolved: ResolvedImage,
        head: &Repository,
        progress: &Progress,
    ) -> Result<Vec<StagedImage>, ConvertError> {
        let ResolvedImage { request, source, images } = resolved;
        if !self.options.dry_run {
            check_clock(head, self.options.now, self.options.accept_clock)?;
        }
        let mut staged = Vec::new();
        for (place, image) in images {
            staged.push(self.stage_image(&request, place, image, &*source, head, progress)?);
        }
        if !request.image.skip_flat && !staged.iter().any(StagedImage::is_foreign) {
            warn_of_high_variants(&staged);
        }
        self.decide_for_podman(&mut staged);
        Ok(staged)
    }

    fn stage_image(
        &self,
        request: &Request,
        place: ImagePlace,
        image: Image,
        source: &dyn Source,
        head: &Repository,
        progress: &Progress,
    ) -> Result<StagedImage, ConvertError> {
        // The threads of the pool work on trees, and are never kept waiting for content.
        let (mut staged, mut need) = self.pool.install(|| self.plan(request, place, image, head))?;
        if self.options.dry_run {
            return Ok(staged);
        }
        if need.is_anything() || need.to_read(&staged.image).next().is_some() {
            let Outcome { place, plan, .. } = &staged.outcome;
            progress.set_stage(format!("reading {place}"));
            tracing::info!("{place}: reading {} of {} layers", plan.layers_to_read, plan.layers);
            if let Some(left) = self.staging.store().bytes_left().filter(|left| *left < plan.bytes_to_read) {
                let (left, needed) = (ByteSize(left), ByteSize(plan.bytes_to_read));
                let storage = self.staging.store().root().display();
                tracing::warn!(
                    "{place}: there are {left} left for '{storage}', and the layers have {needed} as they are packed"
                );
            }
            thread::scope(|scope| {
                let mover = self.staging.move_aside(scope);
                let read = self.read_layers(&staged.image, &mut need, source, progress)?;
                mover.hurry();
                progress.set_stage(format!("storing the trees of {}", staged.outcome.place));
                let build = || self.build_what_is_missing(&mut staged, &mut need, read, head);
                let (built, saved) = self.pool.install(|| rayon::join(build, || self.index.save()));
                saved?;
                built
            })?;
            if let Some(kept) = &self.kept {
                staged.image.layers.iter().for_each(|layer| kept.forget(layer.digest));
            }
        }
        let is_new = |digest: &&Digest| !staged.ready.replaced.contains(&layout::layer_root(**digest));
        staged.outcome.new_layers = staged.ready.layers.keys().filter(is_new).copied().collect();
        if staged.options.skip_layers {
            let losses = &mut staged.outcome.losses;
            *losses = losses.without(LossKind::MaskedLink);
        }
        check_losses(&staged)?;
        Ok(staged)
    }

    /// Builds the trees that are missing, but for those that only missed content which was read now.
    fn build_what_is_missing(
        &self,
        staged: &mut StagedImage,
        need: &mut Need,
        read: BTreeMap<usize, IngestedLayer>,
        head: &Repository,
    ) -> Result<(), ConvertError> {
        let chains = staged.image.chains();
        self.fill_holes(need, &staged.image, &chains, head, &mut staged.ready)?;
        if need.is_anything() {
            return self.build(staged, need, read, head);
        }
        staged.outcome.losses = self.known_losses(&staged.image, &staged.outcome.place, &chains, head)?;
        Ok(())
    }

    /// Finds out what there is to do for an image.
    fn plan(
        &self,
        request: &Request,
        place: ImagePlace,
        image: Image,
        head: &Repository,
    ) -> Result<(StagedImage, Need), ConvertError> {
        let _planning = span!("plan");
        let (chains, options) = (image.chains(), request.image.clone());
        let is_foreign = !options.force && Self::is_foreign(head, &place, &image)?;
        let (need, ready) = match is_foreign {
            true => Default::default(),
            false => self.need(&image, &chains, &options, head)?,
        };
        let losses = match need.is_anything() || is_foreign {
            true => LossList::default(),
            false => self.known_losses(&image, &place, &chains, head)?,
        };
        let plan = need.plan(&image);
        let (manifest, config) = (image.manifest.digest, image.config.digest);
        let (podman, new_layers) = (PodmanListing::NotAsked, Vec::new());
        let outcome = Outcome { place, manifest, config, plan, losses, podman, new_layers };
        let (source, digest) = (request.argument.to_string(), request.digest_beside_tag());
        Ok((StagedImage { source, digest, options, ready, outcome, image, is_foreign }, need))
    }

    /// Returns what was left out of an image that needs nothing built: as its trees say it, or what is published of it, or else as
    /// its layers say it.
    fn known_losses(
        &self,
        image: &Image,
        place: &ImagePlace,
        chains: &[ChainId],
        head: &Repository,
    ) -> Result<LossList, ConvertError> {
        let flat = layout::flat_root(image.config.digest);
        for path in chains.last().map(|&chain| layout::chain_root(chain)).into_iter().chain([flat]) {
            if let Some(catalog) = self.known_tree(head, &path)? {
                return Ok(self.facts(&path, catalog)?.unwrap_or_default().losses);
            }
        }
        if inventory::intact_record(head, place)?.is_some_and(|record| record.manifest == image.manifest.digest) {
            let path = place.metadata().join(b"losses.json");
            let json = head.read_if_intact(&path, LOSSES_LIMIT)?;
            // A list that is lost is put together again from the layers.
            if json.is_some() || !head.has(&path)? {
                return Ok(json.and_then(|json| LossList::parse(&json)).unwrap_or_default());
            }
        }
        let mut losses = LossList::default();
        for layer in &image.layers {
            if let Some(known) = self.described_layer(head, layer.digest)? {
                losses.extend(&known.record.losses);
            }
        }
        Ok(losses)
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
