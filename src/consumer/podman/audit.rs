//! Checks the documents and layers to which an entry of the store refers.

use super::Flaw;
use super::image::{MAX_DOCUMENT_SIZE, StoreImage};
use super::paths;
use super::store::{PodmanStore, StoreEntry};
use crate::catalog::CatalogEntry;
use crate::image::Digest;
use crate::layout;
use crate::layout::PODMAN_STORE;
use crate::path::EntryPath;
use crate::repository::{CatalogLocation, Repository, RepositoryError};

/// The manifest and the config of an image in the store.
pub type Documents = (Vec<u8>, Vec<u8>);

/// Result of the check of an image in the store.
#[derive(Debug)]
pub struct ImageAudit {
    /// Faults that podman does not accept.
    pub flaws: Vec<Flaw>,
    /// Manifest and config, if both exist and the digest of the config is the image's ID.
    pub documents: Option<Documents>,
}

/// Checks the documents and layers of an image in the store.
pub fn audit_image(
    repository: &Repository,
    store: &PodmanStore,
    entry: &StoreEntry,
) -> Result<ImageAudit, RepositoryError> {
    let mut flaws = Vec::new();
    let documents = match read_documents(repository, entry.config)? {
        Err(flaw) => {
            flaws.push(flaw);
            None
        }
        Ok(documents) => {
            if let Err(refusal) = StoreImage::new(&documents.0, &documents.1, 0) {
                let path = paths::image_directory(entry.config);
                flaws.push(Flaw::new(path, "documents that podman accepts", refusal.to_string()));
            }
            Some(documents)
        }
    };
    flaws.extend(flaws_of_layers(repository, store, entry)?);
    Ok(ImageAudit { flaws, documents })
}

fn flaws_of_layers(
    repository: &Repository,
    store: &PodmanStore,
    entry: &StoreEntry,
) -> Result<Vec<Flaw>, RepositoryError> {
    let mut flaws = Vec::new();
    let no_layer = |found| Flaw::new(paths::layers_list(), format!("the layers of {}", entry.config.hex()), found);
    let Some(top) = entry.layer else {
        // Without `layer`, podman starts the container with an empty root file system.
        return Ok(vec![no_layer("no topmost layer".to_owned())]);
    };
    if let Err(found) = store.layers_below(top) {
        flaws.push(no_layer(found));
    }
    for layer in &entry.mapped_layers {
        let found = format!("a layer {} with other owners", layer.escape_debug());
        flaws.push(Flaw::new(paths::images_list(), "images that podman can read", found));
    }
    flaws.extend(flaws_of_layer(repository, top)?);
    Ok(flaws)
}

/// Reads the documents of an image, and checks that the digest of the config is the image's ID.
pub fn read_documents(repository: &Repository, config: Digest) -> Result<Result<Documents, Flaw>, RepositoryError> {
    let path = paths::document(config, "manifest");
    let manifest = match read(repository, &path)? {
        Ok(bytes) => bytes,
        Err(found) => return Ok(Err(Flaw::new(path, "a manifest", found))),
    };
    let path = paths::document(config, &config.to_string());
    Ok(match read(repository, &path)? {
        // With other bytes, `podman images` fails for the whole store. The bytes of the manifest are not checked.
        Ok(bytes) if Digest::of(&bytes) == config => Ok((manifest, bytes)),
        Ok(bytes) => Err(Flaw::new(path, config.to_string(), Digest::of(&bytes).to_string())),
        Err(found) => Err(Flaw::new(path, "a config", found)),
    })
}

/// Reads a file, following links, or returns what was found instead.
fn read(repository: &Repository, path: &EntryPath) -> Result<Result<Vec<u8>, String>, RepositoryError> {
    let bytes = repository.follow(path).and_then(|(at, _)| repository.read(&at, MAX_DOCUMENT_SIZE as u64));
    match bytes {
        Ok(bytes) => Ok(bytes.ok_or_else(|| "nothing".to_owned())),
        Err(RepositoryError::Unresolved { .. }) => Ok(Err("nothing".to_owned())),
        Err(RepositoryError::Unreadable { fault, .. }) => Ok(Err(fault.to_owned())),
        Err(error) => Err(error),
    }
}

/// Checks that a layer can be mounted.
fn flaws_of_layer(repository: &Repository, layer: Digest) -> Result<Vec<Flaw>, RepositoryError> {
    let mut flaws = Vec::new();
    let diff = paths::layer_diff(layer);
    if !leads_to_directory(repository, &diff)? {
        flaws.push(Flaw::new(diff, "a link to a directory", "none"));
    }
    let path = paths::layer_link(layer);
    match read(repository, &path)? {
        Err(found) => flaws.push(Flaw::new(path, "a short name", found)),
        Ok(name) => {
            let link = paths::short_link(&String::from_utf8_lossy(&name));
            if !is_link_to(repository, &link, &paths::short_link_target(layer))? {
                flaws.push(Flaw::new(link, format!("a link to layer {}", layer.hex()), "none"));
            }
        }
    }
    let lower = paths::layer_lower(layer);
    if repository.get(&lower)?.is_some() {
        let names = read(repository, &lower)?.unwrap_or_default();
        let overlay = EntryPath::ROOT.join(PODMAN_STORE.as_bytes()).join(b"overlay");
        for name in names.split(|&byte| byte == b':') {
            let path = EntryPath::normalise(&[overlay.as_bytes(), b"/", name].concat());
            let is_there = path.is_ok_and(|path| matches!(repository.get(&path), Ok(Some(_))));
            if !is_there {
                let found = format!("'{}'", name.escape_ascii());
                flaws.push(Flaw::new(lower.clone(), "short names of layers", found));
            }
        }
    }
    Ok(flaws)
}

fn is_link_to(repository: &Repository, link: &EntryPath, target: &str) -> Result<bool, RepositoryError> {
    Ok(repository.get(link)?.is_some_and(|entry| entry.is_symlink() && entry.target() == target.as_bytes()))
}

/// Returns whether a link leads to a directory. An absolute link out of the repository counts as valid, because it cannot be checked.
fn leads_to_directory(repository: &Repository, link: &EntryPath) -> Result<bool, RepositoryError> {
    match repository.follow(link) {
        Ok((_, entry)) => Ok(entry.is_directory()),
        Err(RepositoryError::Unresolved { .. }) => {
            Ok(repository.get(link)?.is_some_and(|entry| entry.is_symlink() && entry.target().starts_with(b"/")))
        }
        Err(error) => Err(error),
    }
}

/// Returns the total size in bytes of the files in a published flat tree; `None` if it is not published. A file with several names
/// counts for each name.
pub fn flat_size(repository: &Repository, config: Digest) -> Result<Option<u64>, RepositoryError> {
    let root = layout::flat_root(config);
    if let Some(reference) = repository.nested_catalog(&root)? {
        let catalog = repository.open_catalog(&CatalogLocation { root, reference })?;
        return Ok(Some(catalog.total_counters().file_size().cast_unsigned()));
    }
    Ok(repository.get(&root)?.filter(CatalogEntry::is_directory).map(|_| 0))
}
