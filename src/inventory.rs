//! Which images a repository holds, and what is known about each.

use std::collections::BTreeMap;

use crate::image::{ImageName, NameError};
use crate::layer::EntryPath;
use crate::layout::{self, ImageRecord, LayerRecord, LossList};
use crate::repository::{Repository, RepositoryError};

/// No file of strata's own is read that is longer.
const FILE_LIMIT: u64 = 256 << 20;

/// Why images could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Something below `.metadata` has a name that no image has.
    #[error("'{path}' is not named after an image")]
    Name {
        /// The folder.
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
    /// Its name.
    pub name: ImageName,
    /// What is known about it; `None` for an image that another program published.
    pub record: Option<ImageRecord>,
}

/// Returns every image, by name. This reads one small file for each.
pub fn list(repository: &Repository) -> Result<Vec<ListedImage>, InventoryError> {
    let mut images = Vec::new();
    let root = EntryPath::ROOT.join(b".metadata");
    if repository.get(&root)?.is_some_and(|entry| entry.is_directory()) {
        list_below(repository, &root, &mut images)?;
    }
    Ok(images)
}

fn list_below(
    repository: &Repository,
    folder: &EntryPath,
    images: &mut Vec<ListedImage>,
) -> Result<(), InventoryError> {
    let children = repository.list(folder)?;
    if children.contains_key(&b"manifest.json"[..]) {
        let below = folder.components().skip(1).fold(EntryPath::ROOT, |path, name| path.join(name));
        let text = String::from_utf8_lossy(below.as_bytes()).replace(":sha256:", "@sha256:");
        let name = text.parse().map_err(|source| InventoryError::Name { path: folder.clone(), source })?;
        images.push(ListedImage { name, record: read_record(repository, folder)? });
        return Ok(());
    }
    for (name, entry) in children {
        if entry.is_directory() {
            list_below(repository, &folder.join(&name), images)?;
        }
    }
    Ok(())
}

fn read_record(repository: &Repository, folder: &EntryPath) -> Result<Option<ImageRecord>, InventoryError> {
    let json = repository.read(&folder.join(b"strata.json"), FILE_LIMIT)?;
    Ok(json.and_then(|json| ImageRecord::parse(&json)))
}

/// What a repository says about one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDetails {
    /// What was published for it.
    pub record: ImageRecord,
    /// What CVMFS cannot hold of it.
    pub losses: LossList,
    /// Its layers, from the lowest up: what is known about each, and how many other images have it.
    pub layers: Vec<(Option<LayerRecord>, usize)>,
    /// Other images with the same root file system.
    pub same_flat: Vec<ImageName>,
}

/// Returns what the repository says about one image, and what that image shares with others.
pub fn describe(repository: &Repository, name: &ImageName) -> Result<ImageDetails, InventoryError> {
    let folder = layout::image_metadata(name);
    let record = read_record(repository, &folder)?.ok_or_else(|| InventoryError::NoImage(name.clone()))?;
    let losses = repository.read(&folder.join(b"losses.json"), FILE_LIMIT)?;
    let losses = losses.and_then(|json| LossList::parse(&json)).unwrap_or_default();
    let mut users = BTreeMap::new();
    let mut same_flat = Vec::new();
    for other in list(repository)?.into_iter().filter(|other| other.name != *name) {
        let Some(other_record) = other.record else { continue };
        other_record.layers.iter().for_each(|layer| *users.entry(*layer).or_insert(0) += 1);
        if record.flat && other_record.flat && other_record.config == record.config {
            same_flat.push(other.name);
        }
    }
    let mut layers = Vec::new();
    for layer in &record.layers {
        let json = repository.read(&layout::layer_record(*layer), FILE_LIMIT)?;
        layers.push((json.and_then(|json| LayerRecord::parse(&json)), users.get(layer).copied().unwrap_or(0)));
    }
    Ok(ImageDetails { record, losses, layers, same_flat })
}
