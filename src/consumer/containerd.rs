//! containerd with the CVMFS snapshotter, which creates an overlay mount of the layers of an image.

use std::collections::HashSet;

use super::{Consumer, PublishedImage};
use crate::image::FullName;
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::message::shell_word;
use crate::repository::{Repository, RepositoryError};
use crate::source::ImageArgument;

/// containerd, started with nerdctl.
pub struct Containerd;

impl Consumer for Containerd {
    fn name(&self) -> &'static str {
        "containerd"
    }

    fn command(&self, image: &PublishedImage<'_>) -> Result<Option<String>, RepositoryError> {
        if !can_mount_layers(image.repository, image.record)? {
            return Ok(None);
        }
        let name = pulled_name(image.place, image.record).to_string();
        let run = format!("nerdctl --snapshotter cvmfs-snapshotter run {}", shell_word(&name));
        let setting = format!("repository = \"{}\"", image.repository.manifest().name);
        Ok(Some(format!("{run}  # with {setting} in the settings of the snapshotter")))
    }
}

/// Returns whether all layers are published and can be mounted together. An overlay mount cannot contain the same directory twice, so
/// an image with a repeated layer cannot be mounted.
///
/// The record of an image that was converted with `--skip-layers` has no layers.
fn can_mount_layers(repository: &Repository, record: &ImageRecord) -> Result<bool, RepositoryError> {
    // If one layer is missing, containerd downloads that layer and all layers above it.
    let mut below = HashSet::new();
    for &layer in &record.layers {
        if !below.insert(layer) || repository.get(&layout::layer_root(layer))?.is_none() {
            return Ok(false);
        }
    }
    Ok(!record.layers.is_empty())
}

/// Returns the name with which containerd pulls the image: containerd fetches everything except the layers from the image's
/// origin.
fn pulled_name(place: &ImagePlace, record: &ImageRecord) -> FullName {
    match record.source.parse() {
        Ok(ImageArgument::Registry { name, digest, .. }) => FullName { name, digest },
        _ => FullName::from(place.name.clone()),
    }
}
