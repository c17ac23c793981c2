//! containerd with the snapshotter for CVMFS, which mounts the layers of an image over one another.

use std::collections::HashSet;

use super::{Consumer, PublishedImage};
use crate::image::FullName;
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::message::shell_word;
use crate::repository::{Repository, RepositoryError};
use crate::source::ImageArgument;

/// containerd, through nerdctl.
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

/// Tells whether every layer is published, and can be mounted over those below it, which no directory can that is among them.
///
/// An image whose layers were left out has none in its record.
fn can_mount_layers(repository: &Repository, record: &ImageRecord) -> Result<bool, RepositoryError> {
    let mut below = HashSet::new();
    for &layer in &record.layers {
        if !below.insert(layer) || repository.get(&layout::layer_root(layer))?.is_none() {
            return Ok(false);
        }
    }
    Ok(!record.layers.is_empty())
}

/// Returns the name by which the image is pulled: containerd takes all but the layers from where the image came from.
fn pulled_name(place: &ImagePlace, record: &ImageRecord) -> FullName {
    match record.source.parse() {
        Ok(ImageArgument::Registry { name, digest, .. }) => FullName { name, digest },
        _ => FullName::from(place.name.clone()),
    }
}
