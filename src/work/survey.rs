//! Finds out which images are not as their registries have them, with one small request for each.

use super::artifacts::noted_artifact;
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
use crate::source::{Platforms, SourceError};
use crate::stage::{Chains, ImageOptions, StageError};
use crate::state::StateDatabase;
use crate::wishlist::WantedImage;

/// What the survey says about an image.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is as it is published.
    Unchanged,
    /// It is something else by now, or it is not published: what its registry has under its name.
    Changed(Digest),
    /// The name stands for an artifact of this type, as was found before.
    Artifact(String),
    /// Nothing can be said about it.
    Failed(ConvertError),
    /// It failed in an earlier round, and nobody asked for it.
    Quarantined(String),
}

/// Knows what is published, and asks registries what they have.
pub(super) struct Survey<'a> {
    pub(super) settings: &'a Settings,
    pub(super) head: &'a Repository,
    /// The store that podman reads, if there is one.
    pub(super) podman: Option<PodmanStore>,
    pub(super) state: &'a StateDatabase,
    pub(super) registries: &'a Registries,
    pub(super) now: Timestamp,
}

impl Survey<'_> {
    /// Looks at an image, unless it failed before and is not to be looked at yet.
    pub(super) fn find(&self, image: &WantedImage, quarantine: &Quarantine<'_>, observer: &dyn SyncObserver) -> Answer {
        if let Some(reason) = quarantine.holds(image.name(), self.now) {
            if let Some(artifact_type) = self.known_artifact(image) {
                return Answer::Artifact(artifact_type);
            }
            observer.note(Event::Quarantined(image, &reason));
            return Answer::Quarantined(reason);
        }
        match self.look(image) {
            Ok(None) => {
                observer.note(Event::Unchanged(image));
                Answer::Unchanged
            }
            Ok(Some(digest)) => match noted_artifact(self.state, image, digest) {
                Ok(None) => Answer::Changed(digest),
                Ok(Some(artifact_type)) if image.is_found => Answer::Artifact(artifact_type),
                // A wish names it.
                Ok(Some(artifact_type)) => {
                    Answer::Failed(StageError::from(SourceError::Artifact { manifest: digest, artifact_type }).into())
                }
                Err(error) => Answer::Failed(error.into()),
            },
            Err(error) => Answer::Failed(error),
        }
    }

    /// Returns the type of the artifact that a rule found, if it failed for another reason since it was found to be one, and is
    /// still the same.
    fn known_artifact(&self, image: &WantedImage) -> Option<String> {
        if !image.is_found || !self.state.had_artifact(&image.name().to_string()).ok()? {
            return None;
        }
        // The image stays in quarantine for its earlier error, even if it fails for another one now.
        noted_artifact(self.state, image, self.look(image).ok()??).ok()?
    }

    /// Returns what a registry has under the name of an image, unless that is what is published.
    fn look(&self, image: &WantedImage) -> Result<Option<Digest>, ConvertError> {
        let place = image.argument.registry_location().expect("wishes name images at registries only");
        // What is named by its digest cannot change.
        let digest = match place.digest() {
            Some(digest) => digest,
            None => self.registries.head(&place).map_err(|error| StageError::from(SourceError::from(error)))?,
        };
        let is_published = self.is_published(image.name(), &image_options(&image.options), digest)?
            || self.was_seen(image.name(), digest)?;
        Ok((!is_published).then_some(digest))
    }

    /// Tells whether all that is wanted of an image is published, and from what has this digest.
    fn is_published(&self, name: &ImageName, options: &ImageOptions, digest: Digest) -> Result<bool, ConvertError> {
        let is_single = matches!(options.platforms, Platforms::One(_));
        let places = inventory::places(self.head, name)?;
        for place in &places {
            let Some(record) = self.record(place)? else { return Ok(false) };
            let is_same = place.platform.is_none() == is_single
                && record.index.unwrap_or(record.manifest) == digest
                && record.platform == options.platforms.asked();
            if !is_same || !self.holds_all(place, &record, options)? || !self.is_linked(place, &record, options)? {
                return Ok(false);
            }
        }
        Ok(!places.is_empty()
            && (is_single || options.skip_flat || self.is_variant(name)?)
            && self.is_shown_to_podman(name, options, &places)?)
    }

    /// Tells whether podman finds under a name what it is to find, or would refuse that.
    fn is_shown_to_podman(
        &self,
        name: &ImageName,
        options: &ImageOptions,
        places: &[ImagePlace],
    ) -> Result<bool, ConvertError> {
        if !is_for_podman(self.settings, name, options) {
            return Ok(true);
        }
        let listed = self.podman.as_ref().and_then(|store| store.named(&name.to_string()));
        let Some(shown) = listed_platform(places.iter()) else { return Ok(listed.is_none()) };
        let place = &places[shown];
        let Some(record) = self.record(place)? else { return Ok(false) };
        if listed.is_some_and(|entry| entry.config == record.config && entry.has_manifest(record.manifest)) {
            return Ok(true);
        }
        let document = |file: &[u8]| self.head.read(&place.metadata().join(file), MAX_DOCUMENT_SIZE);
        let (manifest, config) = (document(b"manifest.json")?, document(b"config.json")?);
        let image = manifest.zip(config).map(|(manifest, config)| StoreImage::named(name, &manifest, &config, 0));
        Ok(image.is_some_and(|image| image.is_err()))
    }

    /// Tells whether a record names every kind of tree that is wanted of an image and that it can have.
    fn holds_all(
        &self,
        place: &ImagePlace,
        record: &ImageRecord,
        options: &ImageOptions,
    ) -> Result<bool, RepositoryError> {
        // A record without layers is of an image without them, or of one whose layers were not wanted.
        let layers = match record.layers.len() {
            0 => self.layers(place)?,
            layers => Some(layers),
        };
        Ok(layers.is_some_and(|layers| holds_all(record, layers, options)))
    }

    /// Returns how many layers a published image has, if its manifest can be read.
    fn layers(&self, place: &ImagePlace) -> Result<Option<usize>, RepositoryError> {
        let json = self.head.read(&place.metadata().join(b"manifest.json"), MAX_DOCUMENT_SIZE)?;
        let manifest: Option<ImageManifest> = json.and_then(|json| serde_json::from_slice(&json).ok());
        Ok(manifest.map(|manifest| manifest.layers.len()))
    }

    fn record(&self, place: &ImagePlace) -> Result<Option<ImageRecord>, RepositoryError> {
        inventory::intact_record(self.head, place)
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

    /// Tells whether the link of a name leads to the platforms.
    fn is_variant(&self, name: &ImageName) -> Result<bool, RepositoryError> {
        let link = self.head.get(&layout::public_link(name))?;
        Ok(link.is_some_and(|link| link.is_symlink() && link.symlink == layout::variant_link_target(name)))
    }

    /// Tells whether another program's image under this name was found to be what has this digest.
    fn was_seen(&self, name: &ImageName, digest: Digest) -> Result<bool, ConvertError> {
        let place = ImagePlace { name: name.clone(), platform: None };
        let Some(published) = foreign_manifest(self.head, &place)? else { return Ok(false) };
        Ok(self.state.seen(&name.to_string(), published)?.as_deref() == Some(&digest.to_string()))
    }
}

/// Tells whether a record names every kind of tree that is wanted of an image with this number of layers.
fn holds_all(record: &ImageRecord, layers: usize, options: &ImageOptions) -> bool {
    let chains = match options.chains {
        Chains::None => 0,
        Chains::Final => layers.min(1),
        Chains::All => layers,
    };
    let has_layers = options.skip_layers || layers == 0 || !record.layers.is_empty();
    record.chains.len() >= chains && has_layers && (options.skip_flat || record.flat)
}
