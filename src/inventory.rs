//! Which images a repository holds, and what is known about each.

use std::collections::BTreeMap;

use crate::consumer::podman::{PublishedStore, Refusal, StoreImage};
use crate::image::{ImageConfig, ImageIndex, ImageName, NameError, Platform};
use crate::layout::{self, ImagePlace, ImageRecord, LayerRecord, LossList};
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

/// No file of strata's own is read that is longer.
const FILE_LIMIT: u64 = 256 << 20;

/// No record is read that is longer.
const RECORD_LIMIT: u64 = 64 << 20;

/// Why images could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Something below `.metadata` has a name that no image has.
    #[error("'{path}' is not named after an image")]
    Name {
        /// The directory.
        path: EntryPath,
        /// Why.
        source: NameError,
    },
    /// The image is not there, or nothing tells what it is.
    #[error("'{0}' is not in the repository")]
    NoImage(ImageName),
}

/// One image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// Where it is published.
    pub place: ImagePlace,
    /// What is known about it; `None` for an image that another program published.
    pub record: Option<ImageRecord>,
}

/// Returns every image, by name; then those of names that stand for several platforms. This reads one small file for each.
pub fn list(repository: &Repository) -> Result<Vec<ListedImage>, InventoryError> {
    list_with(repository, read_record)
}

/// Does the same; a record that is lost or damaged counts as none.
pub(crate) fn list_intact(repository: &Repository) -> Result<Vec<ListedImage>, InventoryError> {
    list_with(repository, read_intact_record)
}

/// Reads the record in the directory of an image.
type ReadRecord = fn(&Repository, &EntryPath) -> Result<Option<ImageRecord>, RepositoryError>;

fn list_with(repository: &Repository, read: ReadRecord) -> Result<Vec<ListedImage>, InventoryError> {
    let mut images = Vec::new();
    let root = EntryPath::ROOT.join(b".metadata");
    for name in directories(repository, &root)? {
        if name != layout::PLATFORMS.as_bytes() {
            list_below(repository, read, &root, &root.join(&name), None, &mut images)?;
        }
    }
    let root = root.join(layout::PLATFORMS.as_bytes());
    for name in directories(repository, &root)? {
        let root = root.join(&name);
        if let Some(platform) = layout::platform_of_directory(&name) {
            list_below(repository, read, &root, &root, Some(&platform), &mut images)?;
        }
    }
    Ok(images)
}

/// Returns the names of the directories in `directory`, which may not be there.
pub(crate) fn directories(repository: &Repository, directory: &EntryPath) -> Result<Vec<Vec<u8>>, RepositoryError> {
    if !repository.get(directory)?.is_some_and(|entry| entry.is_directory()) {
        return Ok(Vec::new());
    }
    let children = repository.list(directory)?.into_iter().filter(|(_, entry)| entry.is_directory());
    Ok(children.map(|(name, _)| name).collect())
}

/// Adds the images in `directory`, whose names are their paths below `root`.
fn list_below(
    repository: &Repository,
    read: ReadRecord,
    root: &EntryPath,
    directory: &EntryPath,
    platform: Option<&Platform>,
    images: &mut Vec<ListedImage>,
) -> Result<(), InventoryError> {
    let children = repository.list(directory)?;
    if children.contains_key(&b"manifest.json"[..]) {
        let below = directory.components().skip(root.components().count());
        let below = below.fold(EntryPath::ROOT, |path, name| path.join(name));
        let text = String::from_utf8_lossy(below.as_bytes()).replace(":sha256:", "@sha256:");
        let name = text.parse().map_err(|source| InventoryError::Name { path: directory.clone(), source })?;
        let place = ImagePlace { name, platform: platform.cloned() };
        images.push(ListedImage { place, record: read(repository, directory)? });
        return Ok(());
    }
    for (name, entry) in children {
        if entry.is_directory() {
            list_below(repository, read, root, &directory.join(&name), platform, images)?;
        }
    }
    Ok(())
}

/// Returns where a name has images: one place, or several if it stands for platforms side by side.
pub fn places(repository: &Repository, name: &ImageName) -> Result<Vec<ImagePlace>, RepositoryError> {
    let mut places = vec![ImagePlace { name: name.clone(), platform: None }];
    let directory = EntryPath::ROOT.join(layout::PLATFORMS.as_bytes());
    if repository.get(&directory)?.is_some_and(|entry| entry.is_directory()) {
        let platforms = repository.list(&directory)?;
        let platforms = platforms.iter().filter(|(_, entry)| entry.is_directory());
        let platforms = platforms.filter_map(|(directory, _)| layout::platform_of_directory(directory));
        places.extend(platforms.map(|platform| ImagePlace { name: name.clone(), platform: Some(platform) }));
    }
    let mut there = Vec::new();
    for place in places {
        if repository.get(&place.metadata())?.is_some() {
            there.push(place);
        }
    }
    Ok(there)
}

/// Returns what is known about the image at a place; nothing where another program published it.
pub fn record(repository: &Repository, place: &ImagePlace) -> Result<Option<ImageRecord>, RepositoryError> {
    read_record(repository, &place.metadata())
}

/// Does the same; a record that is lost or damaged counts as none.
pub(crate) fn intact_record(
    repository: &Repository,
    place: &ImagePlace,
) -> Result<Option<ImageRecord>, RepositoryError> {
    read_intact_record(repository, &place.metadata())
}

fn read_intact_record(repository: &Repository, directory: &EntryPath) -> Result<Option<ImageRecord>, RepositoryError> {
    let json = repository.read_if_intact(&directory.join(b"strata.json"), RECORD_LIMIT)?;
    Ok(json.and_then(|json| ImageRecord::parse(&json)))
}

fn read_record(repository: &Repository, directory: &EntryPath) -> Result<Option<ImageRecord>, RepositoryError> {
    let json = repository.read(&directory.join(b"strata.json"), RECORD_LIMIT)?;
    Ok(json.and_then(|json| ImageRecord::parse(&json)))
}

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
    let record = read_record(repository, &directory)?.ok_or_else(|| InventoryError::NoImage(place.name.clone()))?;
    let losses = repository.read(&directory.join(b"losses.json"), FILE_LIMIT)?;
    let losses = losses.and_then(|json| LossList::parse(&json)).unwrap_or_default();
    let mut users = BTreeMap::new();
    let mut same_flat = Vec::new();
    for other in list(repository)?.into_iter().filter(|other| other.place != *place) {
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
