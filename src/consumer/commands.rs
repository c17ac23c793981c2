//! Which container runtimes run an image right from the repository, and by what command.
//!
//! Each needs trees of its own, and is named only where those are published. The commands are for the machines that mount the
//! repository below `/cvmfs`.

use std::collections::HashSet;
use std::fmt;

use crate::image::FullName;
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::message::shell_word;
use crate::repository::{Repository, RepositoryError};
use crate::source::ImageArgument;

/// A program that runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// Apptainer, or Singularity: from the root file system.
    Apptainer,
    /// Podman: from its additional image store.
    Podman,
    /// containerd with the snapshotter for CVMFS: from the layers.
    Containerd,
    /// runc, crun and other OCI runtimes: from the root file system.
    Runc,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Apptainer => "apptainer",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Runc => "runc",
        })
    }
}

/// Returns the runtimes that run an image, with the command for each. Whether podman finds the image under its name is given.
pub fn commands(
    repository: &Repository,
    place: &ImagePlace,
    record: &ImageRecord,
    podman_finds_it: bool,
) -> Result<Vec<(Runtime, String)>, RepositoryError> {
    let mountpoint = repository.client_mountpoint().display().to_string();
    let has = |path| Ok::<_, RepositoryError>(repository.get(&path)?.is_some());
    let mut commands = Vec::new();
    let has_root = has(layout::flat_root(record.config))?;
    if has_root && has(place.link())? {
        commands.push((
            Runtime::Apptainer,
            format!("apptainer run {}", shell_word(&format!("{mountpoint}{}", place.link()))),
        ));
    }
    if podman_finds_it {
        let store = format!("--storage-opt additionalimagestore={mountpoint}/{}", layout::PODMAN_STORE);
        commands.push((Runtime::Podman, format!("podman {store} run {}", shell_word(&place.name.to_string()))));
    }
    if can_mount_layers(repository, record)? {
        let name = pulled_name(place, record).to_string();
        let run = format!("nerdctl --snapshotter cvmfs-snapshotter run {}", shell_word(&name));
        let setting = format!("repository = \"{}\"", repository.manifest().name);
        commands.push((Runtime::Containerd, format!("{run}  # with {setting} in the settings of the snapshotter")));
    }
    if has_root && has(place.metadata().join(b"config.json"))? {
        let platform = place.platform.iter().map(|platform| format!(" --platform {platform}")).collect::<String>();
        let make = format!("strata bundle {} bundle{platform}", shell_word(&place.name.to_string()));
        commands.push((Runtime::Runc, format!("{make} && runc run --bundle bundle container")));
    }
    Ok(commands)
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
