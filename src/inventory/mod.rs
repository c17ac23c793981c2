//! Lists the images of a repository, with their records.

mod foreign;

use crate::image::{ImageName, NameError, Platform};
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

pub(crate) use foreign::{foreign_config, foreign_manifest, foreign_trees, is_foreign, our_tree};

/// Errors from listing images.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The path of a directory below `.metadata` is not an image name.
    #[error("the path of '{path}' is not the name of an image")]
    Name {
        /// The directory.
        path: EntryPath,
        /// Error from parsing the name.
        source: NameError,
    },
    /// The image is not in the repository, or has no record.
    #[error("'{0}' is not in the repository")]
    NoImage(ImageName),
}

/// One image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedImage {
    /// Its name and platform in the repository.
    pub place: ImagePlace,
    /// Its record; `None` for an image that another program published.
    pub record: Option<ImageRecord>,
}

/// Returns all images: first those without platform, by name, then the others, by platform and name. Reads one small file for each.
pub fn list(repository: &Repository) -> Result<Vec<ListedImage>, InventoryError> {
    list_with(repository, read_record)
}

/// Returns all images like [`list`]. An image with a missing or damaged record is returned without record.
pub(crate) fn list_intact(repository: &Repository) -> Result<Vec<ListedImage>, InventoryError> {
    list_with(repository, read_intact_record)
}

/// Function that reads the record in the directory of an image.
type ReadRecord = fn(&Repository, &EntryPath) -> Result<Option<ImageRecord>, RepositoryError>;

fn list_with(repository: &Repository, read: ReadRecord) -> Result<Vec<ListedImage>, InventoryError> {
    let mut images = Vec::new();
    let root = EntryPath::ROOT.join(b".metadata");
    for name in directories(repository, &root)? {
        if name != layout::PLATFORM_DIRECTORY.as_bytes() {
            list_below(repository, read, &root, &root.join(&name), None, &mut images)?;
        }
    }
    let root = root.join(layout::PLATFORM_DIRECTORY.as_bytes());
    for name in directories(repository, &root)? {
        let root = root.join(&name);
        if let Some(platform) = layout::platform_of_directory(&name) {
            list_below(repository, read, &root, &root, Some(&platform), &mut images)?;
        }
    }
    Ok(images)
}

/// Returns the names of the directories in `directory`; none if `directory` does not exist.
pub(crate) fn directories(repository: &Repository, directory: &EntryPath) -> Result<Vec<Vec<u8>>, RepositoryError> {
    if !repository.get(directory)?.is_some_and(|entry| entry.is_directory()) {
        return Ok(Vec::new());
    }
    let children = repository.list(directory)?.into_iter().filter(|(_, entry)| entry.is_directory());
    Ok(children.map(|(name, _)| name).collect())
}

/// Adds the images below `directory`. The name of an image is its path relative to `root`.
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
        // A digest follows a colon in a path, and an `@` in a name.
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

/// Returns the images of a name: one, or one for each of several platforms.
pub fn places(repository: &Repository, name: &ImageName) -> Result<Vec<ImagePlace>, RepositoryError> {
    let mut places = vec![ImagePlace { name: name.clone(), platform: None }];
    let directory = EntryPath::ROOT.join(layout::PLATFORM_DIRECTORY.as_bytes());
    if repository.get(&directory)?.is_some_and(|entry| entry.is_directory()) {
        let platforms = repository.list(&directory)?;
        let platforms = platforms.iter().filter(|(_, entry)| entry.is_directory());
        let platforms = platforms.filter_map(|(directory, _)| layout::platform_of_directory(directory));
        places.extend(platforms.map(|platform| ImagePlace { name: name.clone(), platform: Some(platform) }));
    }
    let mut existing = Vec::new();
    for place in places {
        if repository.get(&place.metadata())?.is_some() {
            existing.push(place);
        }
    }
    Ok(existing)
}

/// Returns the record of an image; `None` if another program published it.
pub fn record(repository: &Repository, place: &ImagePlace) -> Result<Option<ImageRecord>, RepositoryError> {
    read_record(repository, &place.metadata())
}

/// Returns the record of an image like [`record`], but `None` if it is missing or damaged.
pub(crate) fn intact_record(
    repository: &Repository,
    place: &ImagePlace,
) -> Result<Option<ImageRecord>, RepositoryError> {
    read_intact_record(repository, &place.metadata())
}

fn read_intact_record(repository: &Repository, directory: &EntryPath) -> Result<Option<ImageRecord>, RepositoryError> {
    let json = repository.read_if_intact(&directory.join(b"strata.json"), layout::MAX_IMAGE_RECORD_SIZE)?;
    Ok(json.and_then(|json| ImageRecord::parse(&json)))
}

fn read_record(repository: &Repository, directory: &EntryPath) -> Result<Option<ImageRecord>, RepositoryError> {
    let json = repository.read(&directory.join(b"strata.json"), layout::MAX_IMAGE_RECORD_SIZE)?;
    Ok(json.and_then(|json| ImageRecord::parse(&json)))
}
