//! Images that another program, usually DUCC, published.
//!
//! strata does not change such an image as long as its manifest does not change. Trees of other programs are never reused for
//! new images, because they lack the owners, extended attributes and links of the image.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::catalog::{CatalogReference, FACTS};
use crate::image::{Digest, MAX_DOCUMENT_SIZE};
use crate::layout::{self, ImagePlace};
use crate::object::{ObjectHash, ObjectKind};
use crate::path::EntryPath;
use crate::repository::{CatalogLocation, Repository, RepositoryError};

/// A manifest as DUCC writes it: only these members, with capitalised keys.
#[derive(Deserialize)]
struct DuccManifest {
    // Both spellings occur, because programs in Go ignore the case of keys.
    #[serde(alias = "Config")]
    config: DuccDescriptor,
    #[serde(alias = "Layers", default)]
    layers: Vec<DuccDescriptor>,
}

#[derive(Deserialize)]
struct DuccDescriptor {
    #[serde(alias = "Digest")]
    digest: String,
}

impl DuccManifest {
    fn digests(&self) -> Option<(Digest, Vec<Digest>)> {
        let layers = self.layers.iter().map(|layer| layer.digest.parse().ok()).collect::<Option<_>>()?;
        Some((self.config.digest.parse().ok()?, layers))
    }
}

/// Returns whether another program has published the image with this config and these layers completely.
pub(crate) fn is_foreign(
    head: &Repository,
    place: &ImagePlace,
    config: Digest,
    layers: &[Digest],
) -> Result<bool, RepositoryError> {
    if foreign_digests(head, place)?.is_none_or(|digests| digests != (config, layers.to_vec())) {
        return Ok(false);
    }
    // DUCC publishes an image even if one of its layers could not be published.
    for layer in layers {
        if head.get(&layout::layer_root(*layer))?.is_none() {
            return Ok(false);
        }
    }
    let link = head.get(&place.link())?;
    let is_linked = link.is_some_and(|link| link.is_symlink() && link.target() == place.link_target(config));
    Ok(is_linked && head.get(&layout::flat_root(config))?.is_some())
}

/// Returns the root catalog of a published chain or flat tree, if strata created it.
pub(crate) fn our_tree(head: &Repository, path: &EntryPath) -> Result<Option<CatalogReference>, RepositoryError> {
    let Some(reference) = head.nested_catalog(path)? else { return Ok(None) };
    let place = CatalogLocation { root: path.clone(), reference };
    Ok(head.open_catalog(&place)?.property(FACTS).map(|_| reference))
}

/// Returns the config digest of an image that another program published, if its manifest contains it.
pub(crate) fn foreign_config(head: &Repository, place: &ImagePlace) -> Result<Option<Digest>, RepositoryError> {
    Ok(foreign_digests(head, place)?.map(|(config, _)| config))
}

/// Returns the hash of the manifest that another program published for an image, or `None` if no other program published it.
pub(crate) fn foreign_manifest(head: &Repository, place: &ImagePlace) -> Result<Option<ObjectHash>, RepositoryError> {
    let directory = place.metadata();
    let manifest = head.get(&directory.join(b"manifest.json"))?;
    let manifest = manifest.filter(|entry| entry.size.cast_unsigned() <= MAX_DOCUMENT_SIZE);
    if manifest.is_none() || head.get(&directory.join(b"strata.json"))?.is_some() {
        return Ok(None);
    }
    // The compression does not matter: the name of the object identifies the manifest.
    Ok(manifest.and_then(|entry| match entry.objects()[..] {
        [(hash, ObjectKind::File)] => Some(hash),
        _ => None,
    }))
}

/// Returns the trees of an image that another program published.
pub(crate) fn foreign_trees(head: &Repository, place: &ImagePlace) -> Result<BTreeSet<EntryPath>, RepositoryError> {
    let Some((config, layers)) = foreign_digests(head, place)? else { return Ok(BTreeSet::new()) };
    let layers = layers.into_iter().map(layout::layer_directory);
    Ok(layers.chain([layout::flat_root(config)]).collect())
}

/// Returns the digests of the config and the layers in the manifest that another program published for an image.
fn foreign_digests(head: &Repository, place: &ImagePlace) -> Result<Option<(Digest, Vec<Digest>)>, RepositoryError> {
    if foreign_manifest(head, place)?.is_none() {
        return Ok(None);
    }
    let json = head.read(&place.metadata().join(b"manifest.json"), MAX_DOCUMENT_SIZE)?.unwrap_or_default();
    let manifest: Option<DuccManifest> = serde_json::from_slice(&json).ok();
    Ok(manifest.and_then(|manifest| manifest.digests()))
}
