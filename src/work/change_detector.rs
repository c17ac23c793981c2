//! Determines which images of a wishlist differ from the published ones, with one small request for each.

use super::artifacts::recorded_artifact;
use super::operation::is_for_podman;
use super::quarantine::Quarantine;
use super::{ConvertError, image_options};
use super::{Event, SyncObserver};
use crate::consumer::podman::listed_platform;
use crate::consumer::podman::{PodmanStore, StoreImage};
use crate::image::{Digest, ImageManifest, ImageName, MAX_DOCUMENT_SIZE};
use crate::inventory;
use crate::inventory::foreign_manifest;
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::metadata::Timestamp;
use crate::registry::Registries;
use crate::repository::{Repository, RepositoryError};
use crate::settings::Settings;
use crate::source::{PlatformSelection, SourceError};
use crate::stage::{ImageOptions, StageError};
use crate::state::StateDatabase;
use crate::wishlist::WantedImage;

/// The result of comparing an image with the published one.
#[derive(Debug)]
pub(super) enum CheckResult {
    /// The published image is up to date.
    Unchanged,
    /// The image has changed or is not published completely. It has this digest at the registry.
    Changed(Digest),
    /// The tag refers to an artifact of this type, according to an earlier conversion.
    Artifact(String),
    /// The comparison failed.
    Failed(ConvertError),
    /// The image failed in an earlier round, for this reason, and was not compared.
    Quarantined(String),
}

/// Compares images at their registries with the published images.
pub(super) struct ChangeDetector<'a> {
    pub(super) settings: &'a Settings,
    pub(super) head: &'a Repository,
    /// The published podman store, if there is one.
    pub(super) podman: Option<PodmanStore>,
    pub(super) state: &'a StateDatabase,
    pub(super) registries: &'a Registries,
    pub(super) now: Timestamp,
}

impl ChangeDetector<'_> {
    /// Compares an image with the published one, unless it is in quarantine.
    pub(super) fn check(
        &self,
        image: &WantedImage,
        quarantine: &Quarantine<'_>,
        observer: &dyn SyncObserver,
    ) -> CheckResult {
        if let Some(reason) = quarantine.reason(image.name(), self.now) {
            if let Some(artifact_type) = self.known_artifact(image) {
                return CheckResult::Artifact(artifact_type);
            }
            observer.note(Event::Quarantined(image, &reason));
            return CheckResult::Quarantined(reason);
        }
        match self.changed_digest(image) {
            Ok(None) => {
                observer.note(Event::Unchanged(image));
                CheckResult::Unchanged
            }
            Ok(Some(digest)) => match recorded_artifact(self.state, image, digest) {
                Ok(None) => CheckResult::Changed(digest),
                Ok(Some(artifact_type)) if image.is_found => CheckResult::Artifact(artifact_type),
                // A wish names the tag explicitly, so that the tag must refer to an image.
                Ok(Some(artifact_type)) => CheckResult::Failed(
                    StageError::from(SourceError::Artifact { manifest: digest, artifact_type }).into(),
                ),
                Err(error) => CheckResult::Failed(error.into()),
            },
            Err(error) => CheckResult::Failed(error),
        }
    }

    /// Returns the type of the artifact to which a tag in quarantine refers, if a rule selected it and its digest has not changed.
    fn known_artifact(&self, image: &WantedImage) -> Option<String> {
        if !image.is_found || !self.state.had_artifact(&image.name().to_string()).ok()? {
            return None;
        }
        // An error of this request is ignored: the image stays in quarantine for its earlier error.
        recorded_artifact(self.state, image, self.changed_digest(image).ok()??).ok()?
    }

    /// Returns the digest of an image at its registry, or `None` if the published image is up to date.
    fn changed_digest(&self, image: &WantedImage) -> Result<Option<Digest>, ConvertError> {
        let place = image.argument.registry_location().expect("wishes name images at registries only");
        // With a digest in the name, no request is needed.
        let digest = match place.digest() {
            Some(digest) => digest,
            None => self.registries.head(&place).map_err(|error| StageError::from(SourceError::from(error)))?,
        };
        let is_published = self.is_published(image.name(), &image_options(&image.options), digest)?
            || self.was_seen(image.name(), digest)?;
        Ok((!is_published).then_some(digest))
    }

    /// Returns whether all requested trees, links and entries of the image with this digest are published.
    fn is_published(&self, name: &ImageName, options: &ImageOptions, digest: Digest) -> Result<bool, ConvertError> {
        let is_single = matches!(options.platforms, PlatformSelection::One(_));
        let places = inventory::places(self.head, name)?;
        for place in &places {
            let Some(record) = inventory::intact_record(self.head, place)? else { return Ok(false) };
            let is_same = place.platform.is_none() == is_single
                // For a tag of an index, the registry returns the digest of the index.
                && record.index.unwrap_or(record.manifest) == digest
                && record.platform == options.platforms.asked();
            if !is_same || !self.has_all_trees(place, &record, options)? || !self.is_linked(place, &record, options)? {
                return Ok(false);
            }
        }
        Ok(!places.is_empty()
            && (is_single || options.skip_flat || self.is_variant_link(name)?)
            && self.is_correct_in_podman_store(name, options, &places)?)
    }

    /// Returns whether the entry of a name in podman's store is correct. If podman would refuse the image, the correct state is
    /// that there is no entry.
    fn is_correct_in_podman_store(
        &self,
        name: &ImageName,
        options: &ImageOptions,
        places: &[ImagePlace],
    ) -> Result<bool, ConvertError> {
        if !is_for_podman(self.settings, name, options) {
            return Ok(true);
        }
        let listed = self.podman.as_ref().and_then(|store| store.named(&name.to_string()));
        let Some(index) = listed_platform(places.iter()) else { return Ok(listed.is_none()) };
        let place = &places[index];
        let Some(record) = inventory::intact_record(self.head, place)? else { return Ok(false) };
        if listed.is_some_and(|entry| entry.config == record.config && entry.has_manifest(record.manifest)) {
            return Ok(true);
        }
        let document = |file: &[u8]| self.head.read(&place.metadata().join(file), MAX_DOCUMENT_SIZE);
        let (manifest, config) = (document(b"manifest.json")?, document(b"config.json")?);
        let image = manifest.zip(config).map(|(manifest, config)| StoreImage::named(name, &manifest, &config, 0));
        Ok(image.is_some_and(|image| image.is_err()))
    }

    /// Returns whether a record contains all requested kinds of trees.
    fn has_all_trees(
        &self,
        place: &ImagePlace,
        record: &ImageRecord,
        options: &ImageOptions,
    ) -> Result<bool, RepositoryError> {
        // A record has no layers if the image has none, or if it was converted with `--skip-layers`.
        let layers = match record.layers.len() {
            0 => self.layers(place)?,
            layers => Some(layers),
        };
        Ok(layers.is_some_and(|layers| has_all_trees(record, layers, options)))
    }

    /// Returns the number of layers of a published image, if its manifest can be read.
    fn layers(&self, place: &ImagePlace) -> Result<Option<usize>, RepositoryError> {
        let json = self.head.read(&place.metadata().join(b"manifest.json"), MAX_DOCUMENT_SIZE)?;
        let manifest: Option<ImageManifest> = json.and_then(|json| serde_json::from_slice(&json).ok());
        Ok(manifest.map(|manifest| manifest.layers.len()))
    }

    fn is_linked(
        &self,
        place: &ImagePlace,
        record: &ImageRecord,
        options: &ImageOptions,
    ) -> Result<bool, RepositoryError> {
        let link = self.head.get(&place.link())?;
        let target = place.link_target(record.config);
        Ok(options.skip_flat || link.is_some_and(|link| link.is_symlink() && link.target() == target))
    }

    /// Returns whether the link of a name points to the image for the client's platform.
    fn is_variant_link(&self, name: &ImageName) -> Result<bool, RepositoryError> {
        let link = self.head.get(&layout::public_link(name))?;
        Ok(link.is_some_and(|link| link.is_symlink() && link.symlink == layout::variant_link_target(name)))
    }

    /// Returns whether another program published the image under this name, and an earlier round found that the published image
    /// is up to date with this digest.
    fn was_seen(&self, name: &ImageName, digest: Digest) -> Result<bool, ConvertError> {
        let place = ImagePlace { name: name.clone(), platform: None };
        let Some(published) = foreign_manifest(self.head, &place)? else { return Ok(false) };
        Ok(self.state.seen(&name.to_string(), published)?.as_deref() == Some(&digest.to_string()))
    }
}

/// Returns whether a record contains all requested kinds of trees of an image with this number of layers.
fn has_all_trees(record: &ImageRecord, layers: usize, options: &ImageOptions) -> bool {
    let chains = options.chains.indexes(layers).len();
    let has_layers = options.skip_layers || layers == 0 || !record.layers.is_empty();
    record.chains.len() >= chains && has_layers && (options.skip_flat || record.flat)
}
