//! Which container runtimes run an image right from the repository, and by what command.
//!
//! Each needs trees of its own, and is named only where those are published. The commands are for the machines that mount the
//! repository below `/cvmfs`.

use std::collections::HashSet;
use std::fmt;

use crate::image::FullName;
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::podman;
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
        commands
            .push((Runtime::Apptainer, format!("apptainer run {}", quoted(&format!("{mountpoint}{}", place.link())))));
    }
    if podman_finds_it {
        let store = format!("--storage-opt additionalimagestore={mountpoint}/{}", podman::STORE);
        commands.push((Runtime::Podman, format!("podman {store} run {}", quoted(&place.name.to_string()))));
    }
    if can_mount_layers(repository, record)? {
        let name = pulled_name(place, record).to_string();
        let run = format!("nerdctl --snapshotter cvmfs-snapshotter run {}", quoted(&name));
        let setting = format!("repository = \"{}\"", repository.manifest().name);
        commands.push((Runtime::Containerd, format!("{run}  # with {setting} in the settings of the snapshotter")));
    }
    if has_root && has(place.metadata().join(b"config.json"))? {
        let platform = place.platform.iter().map(|platform| format!(" --platform {platform}")).collect::<String>();
        let make = format!("strata bundle {} bundle{platform}", quoted(&place.name.to_string()));
        commands.push((Runtime::Runc, format!("{make} && runc run --bundle bundle container")));
    }
    Ok(commands)
}

/// Returns a word as shells take it: with quotes where it has a character that means something to them, such as the brackets
/// around an IPv6 address.
fn quoted(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b':' | b'.' | b'_' | b'-' | b'@' | b'+');
    match word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Tells whether every layer is published, and can be mounted over those below it, which no folder can that is among them.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_is_quoted_only_where_a_shell_would_read_more_into_it() {
        for (word, expected) in [
            ("h.org:5000/a/b:1", "h.org:5000/a/b:1"),
            ("/cvmfs/a.b/h.org/a:sha256:00", "/cvmfs/a.b/h.org/a:sha256:00"),
            ("[::1]:5000/a:1", "'[::1]:5000/a:1'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}
