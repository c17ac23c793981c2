//! What a repository says about one image, and what the image shares with others.

use std::collections::BTreeMap;

use crate::consumer::podman::{PublishedStore, Refusal, StoreImage};
use crate::image::{ImageConfig, ImageIndex, Platform};
use crate::inventory::{self, InventoryError};
use crate::layout::{self, ImagePlace, ImageRecord, LayerRecord, LossList};
use crate::path::EntryPath;
use crate::repository::Repository;

/// Maximum size in bytes of a file below `.metadata` or of a layer's record that is read.
const FILE_LIMIT: u64 = 256 << 20;

/// What a repository says about one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDetails {
    /// What was published for it.
    pub record: ImageRecord,
    /// What it is for, if anything says it: the place, the index, the list of a layout, or else the config.
    pub platform: Option<Platform>,
    /// What its config says that it is for.
    pub config_platform: Option<Platform>,
    /// What CVMFS cannot hold of it.
    pub losses: LossList,
    /// Its layers, from the lowest up: what is known about each, and how many other images have it.
    pub layers: Vec<(Option<LayerRecord>, usize)>,
    /// Other images with the same root file system.
    pub same_flat: Vec<ImagePlace>,
    /// Whether podman sees it under its name, or why it would see nothing with it; `None` where nobody asked for that.
    pub podman: Option<Result<(), Refusal>>,
}

/// Returns what the repository says about one image, and what that image shares with others.
pub fn describe(repository: &Repository, place: &ImagePlace) -> Result<ImageDetails, InventoryError> {
    let directory = place.metadata();
    let record = inventory::record(repository, place)?.ok_or_else(|| InventoryError::NoImage(place.name.clone()))?;
    let losses = repository.read(&directory.join(b"losses.json"), FILE_LIMIT)?;
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
        let json = repository.read(&layout::layer_record(*layer), FILE_LIMIT)?;
        layers.push((json.and_then(|json| LayerRecord::parse(&json)), users.get(layer).copied().unwrap_or(0)));
    }
    let podman = podman_sees(repository, place, &record)?;
    let config = repository.read(&directory.join(b"config.json"), FILE_LIMIT)?;
    let config_platform = config.and_then(|config| ImageConfig::parse(&config).ok()?.platform());
    let in_index = platform_in_index(repository, &directory, &record)?;
    let listed = record.listed_platform.as_deref().and_then(|platform| platform.parse().ok());
    let platform = place.platform.clone().or(in_index).or(listed).or_else(|| config_platform.clone());
    Ok(ImageDetails { record, platform, config_platform, losses, layers, same_flat, podman })
}

/// Returns what the index of an image says that it is for, if there is one that lists it.
fn platform_in_index(
    repository: &Repository,
    directory: &EntryPath,
    record: &ImageRecord,
) -> Result<Option<Platform>, InventoryError> {
    let index = repository.read(&directory.join(b"index.json"), FILE_LIMIT)?;
    let index: Option<ImageIndex> = index.and_then(|index| serde_json::from_slice(&index).ok());
    let entries = index.into_iter().flat_map(|index| index.manifests);
    let mut entry = entries.filter(|entry| entry.digest == record.manifest.to_string());
    Ok(entry.find_map(|entry| entry.platform()))
}

fn podman_sees(
    repository: &Repository,
    place: &ImagePlace,
    record: &ImageRecord,
) -> Result<Option<Result<(), Refusal>>, InventoryError> {
    let published = PublishedStore::read(repository)?.unwrap_or_default();
    if published.store.named(&place.name.to_string()).is_some_and(|entry| entry.config == record.config) {
        return Ok(Some(Ok(())));
    }
    let document = |file: &[u8]| repository.read(&place.metadata().join(file), FILE_LIMIT);
    let documents = document(b"manifest.json")?.zip(document(b"config.json")?);
    let image = documents.map(|(manifest, config)| StoreImage::named(&place.name, &manifest, &config, 0));
    Ok(image.and_then(Result::err).map(Err))
}
