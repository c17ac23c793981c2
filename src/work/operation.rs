//! An operation on a repository: staging and publishing images on top of the current head.

use std::sync::Mutex;

use super::ConvertError;
use super::variants::warn_of_high_variants;
use crate::cancel::Cancellation;
use crate::consumer::podman::{PodmanListing, listed_platform};
use crate::engine::Engine;
use crate::image::ImageName;
use crate::inventory;
use crate::layer::LossKind;
use crate::layout::{ImagePlace, LossList, MAX_LOSSES_SIZE};
use crate::message::causes;
use crate::observer::Reporter;
use crate::progress::Progress;
use crate::publish::{Edit, Publication, PublishOptions, check_clock};
use crate::registry::Registries;
use crate::repository::Repository;
use crate::revise::{self, Changes};
use crate::settings::Settings;
use crate::source::Image;
use crate::stage::{ImageOptions, ResolvedImage, StageOptions, StagedImage, Stager};
use crate::state::StateDatabase;
use crate::store::{SharedStore, WrittenObjects};

/// An operation that stages images and publishes them.
pub(crate) struct Operation<'e> {
    engine: &'e Engine,
    pub(super) stager: Stager<'e>,
    dry_run: bool,
    publish: PublishOptions,
    /// The head as it was opened last.
    head: Mutex<Option<Repository>>,
}

impl<'e> Operation<'e> {
    /// Starts an operation.
    pub(crate) fn start(
        engine: &'e Engine,
        stage: StageOptions,
        registries: Registries,
        publish: PublishOptions,
    ) -> Result<Self, ConvertError> {
        let stager = Stager::start(engine, stage, registries)?;
        if let Some(publisher) = engine.publisher() {
            publisher.repair_head(stager.staging())?;
        }
        Ok(Self { engine, stager, dry_run: stage.dry_run, publish, head: Mutex::default() })
    }

    /// Returns what ends the operation.
    pub(super) fn cancellation(&self) -> &'e Cancellation {
        self.engine.cancellation()
    }

    /// Returns the reporter to the observer of the engine.
    pub(crate) fn reporter(&self) -> &'e Reporter {
        self.engine.reporter()
    }

    /// Returns the database of facts that are kept between runs.
    pub(crate) fn state(&self) -> &'e StateDatabase {
        self.engine.state()
    }

    /// Returns the objects that were added to the store so far.
    pub(crate) fn written(&self) -> WrittenObjects {
        self.stager.staging().written()
    }

    /// Opens the current head of the repository. Catalogs that were opened before are not read again.
    pub(crate) fn head(&self) -> Result<Repository, ConvertError> {
        let mut last = self.head.lock().expect("no thread panics while it opens a head");
        let head = match &*last {
            Some(last) => last.open_head()?,
            None => Repository::open(self.engine.store().clone() as SharedStore, self.engine.directory().name())?,
        };
        Ok(last.insert(head).clone())
    }

    /// Reads the new layers of an image and stores its trees, for each platform.
    pub(crate) fn stage(
        &self,
        resolved: ResolvedImage,
        head: &Repository,
        progress: &Progress,
    ) -> Result<Vec<StagedImage>, ConvertError> {
        let ResolvedImage { request, source, images } = resolved;
        if !self.dry_run {
            check_clock(head, self.publish.now, self.publish.accept_clock)?;
        }
        let mut staged = Vec::new();
        for (place, image) in images {
            if !request.image.force && is_foreign(head, &place, &image)? {
                staged.push(StagedImage::foreign(&request, place, image));
                continue;
            }
            let mut image = self.stager.stage(&request, (place, image), &*source, head, progress)?;
            self.add_losses(&mut image, head)?;
            staged.push(image);
        }
        let has_foreign = staged.iter().any(|image| image.is_foreign);
        if !request.image.skip_flat && !has_foreign {
            warn_of_high_variants(staged.iter().map(|image| &image.outcome.place), self.engine.reporter());
        }
        if !has_foreign {
            self.choose_for_podman(&mut staged);
        }
        Ok(staged)
    }

    /// Completes the losses of an image. With `strict`, any loss is an error.
    fn add_losses(&self, staged: &mut StagedImage, head: &Repository) -> Result<(), ConvertError> {
        if !staged.knows_losses {
            staged.outcome.losses = match published_losses(staged, head)? {
                Some(losses) => losses,
                None => self.stager.losses_of_layers(&staged.image, head)?,
            };
        }
        if self.dry_run {
            return Ok(());
        }
        let losses = &mut staged.outcome.losses;
        if staged.options.skip_layers {
            *losses = losses.without(LossKind::MaskedLink);
        }
        if !staged.options.strict || losses.is_empty() {
            return Ok(());
        }
        let kinds: Vec<String> = losses.kinds().map(|(kind, losses)| format!("{} x {kind}", losses.count)).collect();
        Err(ConvertError::Losses(kinds.join(", ")))
    }

    /// Determines which of the images of a name is listed in podman's store, if any.
    fn choose_for_podman(&self, images: &mut [StagedImage]) {
        let Some(first) = images.first() else { return };
        if !is_for_podman(self.engine.settings(), &first.outcome.place.name, &first.options) {
            return;
        }
        let Some(listed) = listed_platform(images.iter().map(|image| &image.outcome.place)) else {
            let name = &images[0].outcome.place.name;
            self.engine.reporter().warn(format_args!(
                "{name}: not listed for podman, because no image of it runs on every machine of its architecture"
            ));
            return;
        };
        images[listed].outcome.podman = match images[listed].for_consumers().for_podman(0) {
            Ok(_) => PodmanListing::Listed,
            Err(refusal) => PodmanListing::Refused(refusal),
        };
    }

    /// Publishes changes of the current head as one revision; returns `None` if nothing changes.
    pub(crate) fn publish(&self, changes: &Changes<'_>) -> Result<Option<Publication>, ConvertError> {
        let publisher = self.engine.publisher().expect("only an engine that may publish is asked to");
        let (staging, settings) = (self.stager.staging(), self.engine.settings());
        let known = self.head()?;
        let mut trees = Vec::new();
        let prepare = |head: &Repository| {
            let edits = revise::edits(head, staging, settings, self.publish.now, changes)?;
            trees.extend(edits.iter().filter_map(|(path, edit)| match edit {
                Edit::Tree(tree) => Some((path.to_string(), tree.reference.hash)),
                _ => None,
            }));
            Ok(edits)
        };
        let publication = self.engine.pool().install(|| publisher.commit(staging, &known, &self.publish, prepare))?;
        if publication.is_none() {
            // Missing objects that were stored again do not change the head, but must become durable.
            staging.flush()?;
        }
        // The revision is published, so that this error must not fail the operation.
        if let (Some(_), Err(error)) = (&publication, self.stager.record_complete_trees(trees)) {
            self.engine.reporter().warn(format_args!("{}", causes(&error)));
        }
        Ok(publication)
    }
}

/// Returns whether the image of a name should be listed in podman's store.
pub(super) fn is_for_podman(settings: &Settings, name: &ImageName, options: &ImageOptions) -> bool {
    !options.skip_flat && !options.skip_podman && settings.lists_for_podman(name)
}

fn is_foreign(head: &Repository, place: &ImagePlace, image: &Image) -> Result<bool, ConvertError> {
    let layers: Vec<_> = image.layers.iter().map(|layer| layer.digest).collect();
    Ok(inventory::is_foreign(head, place, image.config.digest, &layers)?)
}

/// Returns the published losses of an image; `None` if another image is published or the list is lost.
fn published_losses(staged: &StagedImage, head: &Repository) -> Result<Option<LossList>, ConvertError> {
    let place = &staged.outcome.place;
    let record = inventory::intact_record(head, place)?;
    if record.is_none_or(|record| record.manifest != staged.image.manifest.digest) {
        return Ok(None);
    }
    let path = place.metadata().join(b"losses.json");
    let json = head.read_if_intact(&path, MAX_LOSSES_SIZE)?;
    // The caller composes a lost list from the losses of the layers.
    if json.is_none() && head.has(&path)? {
        return Ok(None);
    }
    Ok(Some(json.and_then(|json| LossList::parse(&json)).unwrap_or_default()))
}
