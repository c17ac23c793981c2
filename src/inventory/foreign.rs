//! Images that another program published.
//!
//! They stay as they are as long as their manifest does not change. Nothing that other programs made is ever a base for
//! what is made here: their trees lack owners, attributes and links that the image has.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::catalog::{CatalogReference, FACTS};
use crate::image::{Digest, MAX_DOCUMENT_SIZE};
use crate::layout::{self, ImagePlace};
use crate::object::{ContentObjects, ObjectHash};
use crate::path::EntryPath;
use crate::repository::{CatalogLocation, Repository, RepositoryError};

/// What DUCC keeps of an image manifest. Its keys are capitalised, and only these are left of them.
#[derive(Deserialize)]
struct KeptManifest {
    #[serde(alias = "Config")]
    config: KeptDescriptor,
    #[serde(alias = "Layers", default)]
    layers: Vec<KeptDescriptor>,
}

#[derive(Deserialize)]
struct KeptDescriptor {
    #[serde(alias = "Digest")]
    digest: String,
}

impl KeptManifest {
    fn digests(&self) -> Option<(Digest, Vec<Digest>)> {
        let layers = self.layers.iter().map(|layer| layer.digest.parse().ok()).collect::<Option<_>>()?;
        Some((self.config.digest.parse().ok()?, layers))
    }
}

/// Returns whether another program has published the image with this config and these layers, all of it.
pub(crate) fn is_foreign(
    head: &Repository,
    place: &ImagePlace,
    config: Digest,
    layers: &[Digest],
) -> Result<bool, RepositoryError> {
    if kept_manifest(head, place)?.is_none_or(|kept| kept != (config, layers.to_vec())) {
        return Ok(false);
    }
    // A program that lost a layer on the way published the image all the same.
    for layer in layers {
        if head.get(&layout::layer_root(*layer))?.is_none() {
            return Ok(false);
        }
    }
    let link = head.get(&place.link())?;
    let leads_there = link.is_some_and(|link| link.is_symlink() && link.target() == place.link_target(config));
    Ok(leads_there && head.get(&layout::flat_root(config))?.is_some())
}

/// Returns the root catalog of a published chain or root file system, if strata made it.
pub(crate) fn our_tree(head: &Repository, path: &EntryPath) -> Result<Option<CatalogReference>, RepositoryError> {
    let Some(reference) = head.nested_catalog(path)? else { return Ok(None) };
    let place = CatalogLocation { root: path.clone(), reference };
    Ok(head.open_catalog(&place)?.property(FACTS).map(|_| reference))
}

/// Returns the config digest of an image that another program published, as far as the program kept it.
pub(crate) fn foreign_config(head: &Repository, place: &ImagePlace) -> Result<Option<Digest>, RepositoryError> {
    Ok(kept_manifest(head, place)?.map(|(config, _)| config))
}

/// Returns the object of the manifest that another program published for an image, if one did.
pub(crate) fn foreign_manifest(head: &Repository, place: &ImagePlace) -> Result<Option<ObjectHash>, RepositoryError> {
    let directory = place.metadata();
    let manifest = head.get(&directory.join(b"manifest.json"))?;
    let manifest = manifest.filter(|entry| entry.size.cast_unsigned() <= MAX_DOCUMENT_SIZE);
    if manifest.is_none() || head.get(&directory.join(b"strata.json"))?.is_some() {
        return Ok(None);
    }
    Ok(manifest.and_then(|entry| entry.file_content()).and_then(|content| match content.objects {
        ContentObjects::Whole(hash) => Some(hash),
        ContentObjects::Chunks(_) => None,
    }))
}

/// Returns the trees of an image that another program published.
pub(crate) fn foreign_trees(head: &Repository, place: &ImagePlace) -> Result<BTreeSet<EntryPath>, RepositoryError> {
    let Some((config, layers)) = kept_manifest(head, place)? else { return Ok(BTreeSet::new()) };
    let layers = layers.into_iter().map(layout::layer_directory);
    Ok(layers.chain([layout::flat_root(config)]).collect())
}

/// Returns the config and layers that another program noted for an image, as far as it did.
fn kept_manifest(head: &Repository, place: &ImagePlace) -> Result<Option<(Digest, Vec<Digest>)>, RepositoryError> {
    if foreign_manifest(head, place)?.is_none() {
        return Ok(None);
    }
    let json = head.read(&place.metadata().join(b"manifest.json"), MAX_DOCUMENT_SIZE)?.unwrap_or_default();
    let manifest: Option<KeptManifest> = serde_json::from_slice(&json).ok();
    Ok(manifest.and_then(|manifest| manifest.digests()))
}
