//! Describes a published image: its record, layers and losses, and the content that it shares with other images.

use std::collections::BTreeMap;

use crate::consumer::podman::{PublishedStore, Refusal, StoreImage};
use crate::image::{ImageConfig, ImageIndex, MAX_DOCUMENT_SIZE, Platform};
use crate::inventory::{self, InventoryError};
use crate::layout::{self, ImagePlace, ImageRecord, LayerRecord, LossList};
use crate::path::EntryPath;
use crate::repository::Repository;

/// The description of a published image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDetails {
    /// Its record.
    pub record: ImageRecord,
    /// Its platform, from the first of these sources that states a platform: its place in the repository, its index, the index of
    /// its OCI layout, its config.
    pub platform: Option<Platform>,
    /// Its platform according to its config.
    pub config_platform: Option<Platform>,
    /// Content of the image that CVMFS cannot represent.
    pub losses: LossList,
    /// Its layers, from the lowest to the topmost: the record of each, and the number of other images that contain it.
    pub layers: Vec<(Option<LayerRecord>, usize)>,
    /// Other images with the same flat tree.
    pub same_flat: Vec<ImagePlace>,
    /// `Ok` if it is in podman's store under its name; the reason if podman would refuse it; `None` if it was not requested.
    pub podman: Option<Result<(), Refusal>>,
}

/// Describes one image.
pub fn describe(repository: &Repository, place: &ImagePlace) -> Result<ImageDetails, InventoryError> {
    let directory = place.metadata();
    let record = inventory::record(repository, place)?.ok_or_else(|| InventoryError::NoImage(place.name.clone()))?;
    let losses = repository.read(&directory.join(b"losses.json"), layout::MAX_LOSSES_SIZE)?;
    let losses = losses.and_then(|json| LossList::parse(&json)).unwrap_or_default();
    let mut users = BTreeMap::new();
    let mut same_flat = Vec::new();
    for other in inventory::list(repository)?.into_iter().filter(|other| other.place != *place) {
        let Some(other_record) = other.record else { continue };
        other_record.layers.iter().for_each(|layer| *users.entry(*layer).or_insert(0) += 1);
        if record.flat && other_record.flat && other_record.config == record.config {
            same_flat.push(other.place);
        }
    }
    let mut layers = Vec::new();
    for layer in &record.layers {
        let json = repository.read(&layout::layer_record(*layer), layout::MAX_LAYER_RECORD_SIZE)?;
        layers.push((json.and_then(|json| LayerRecord::parse(&json)), users.get(layer).copied().unwrap_or(0)));
    }
    let podman = podman_listing(repository, place, &record)?;
    let config = repository.read(&directory.join(b"config.json"), MAX_DOCUMENT_SIZE)?;
    let config_platform = config.and_then(|config| ImageConfig::parse(&config).ok()?.platform());
    let in_index = platform_in_index(repository, &directory, &record)?;
    let listed = record.listed_platform.as_deref().and_then(|platform| platform.parse().ok());
    let platform = place.platform.clone().or(in_index).or(listed).or_else(|| config_platform.clone());
    Ok(ImageDetails { record, platform, config_platform, losses, layers, same_flat, podman })
}

/// Returns the platform of an image according to its index, if it has one.
fn platform_in_index(
    repository: &Repository,
    directory: &EntryPath,
    record: &ImageRecord,
) -> Result<Option<Platform>, InventoryError> {
    let index = repository.read(&directory.join(b"index.json"), MAX_DOCUMENT_SIZE)?;
    let index: Option<ImageIndex> = index.and_then(|index| serde_json::from_slice(&index).ok());
    let entries = index.into_iter().flat_map(|index| index.manifests);
    let mut entry = entries.filter(|entry| entry.digest == record.manifest.to_string());
    Ok(entry.find_map(|entry| entry.platform()))
}

fn podman_listing(
    repository: &Repository,
    place: &ImagePlace,
    record: &ImageRecord,
) -> Result<Option<Result<(), Refusal>>, InventoryError> {
    let published = PublishedStore::read(repository)?.unwrap_or_default();
    if published.store.named(&place.name.to_string()).is_some_and(|entry| entry.config == record.config) {
        return Ok(Some(Ok(())));
    }
    let document = |file: &[u8]| repository.read(&place.metadata().join(file), MAX_DOCUMENT_SIZE);
    let documents = document(b"manifest.json")?.zip(document(b"config.json")?);
    let image = documents.map(|(manifest, config)| StoreImage::named(&place.name, &manifest, &config, 0));
    Ok(image.and_then(Result::err).map(Err))
}
