//! The container runtimes that run images directly from a repository: the files that each needs there, and its command line.
//!
//! A [`Consumer`] supports one runtime. The trees of an image and its public link, which all runtimes share, are always published. To
//! support another runtime, implement the trait in a new module and add it to [`ALL`].

pub mod apptainer;
pub mod bundle;
mod containerd;
pub mod podman;
pub mod thin;

use std::fmt;

use crate::image::{Document, ImageName};
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::path::EntryPath;
use crate::publish::{EditError, EditList};
use crate::repository::{Repository, RepositoryError};
use podman::{PodmanListing, Refusal, StoreImage};

/// Every consumer, in the order in which commands list them.
pub const ALL: [&dyn Consumer; 4] =
    [&apptainer::Apptainer, &podman::Podman, &containerd::Containerd, &bundle::OciRuntime];

/// A container runtime that runs published images.
pub trait Consumer: Sync {
    /// Returns the name of the program.
    fn name(&self) -> &'static str;

    /// Returns the shell command that runs an image on a machine that mounts the repository below `/cvmfs`, or `None` if the
    /// repository lacks something that the runtime needs for the image.
    fn command(&self, image: &PublishedImage<'_>) -> Result<Option<String>, RepositoryError>;

    /// Returns the directory in the root of the repository that only this runtime reads.
    fn directory(&self) -> Option<&'static str> {
        None
    }

    /// Adds the edits that update the directory of the runtime for the changed names.
    ///
    /// `edits` already contains the edits of trees, links and records.
    fn revise(&self, edits: &mut EditList<'_>, changes: &ConsumerChanges<'_>) -> Result<(), EditError> {
        let _ = (edits, changes);
        Ok(())
    }

    /// Calls `report` for each fault in the repository that affects the runtime.
    fn audit(&self, repository: &Repository, report: &mut dyn FnMut(AuditResult)) -> Result<(), RepositoryError> {
        let _ = (repository, report);
        Ok(())
    }
}

/// A published image, with the facts on which commands depend.
pub struct PublishedImage<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The name and platform of the image.
    pub place: &'a ImagePlace,
    /// The record of what was published for it.
    pub record: &'a ImageRecord,
    /// Whether the image is in podman's store under its name.
    pub is_in_podman_store: bool,
}

impl PublishedImage<'_> {
    /// Returns the name of each runtime that can run the image, with the command for it.
    pub fn commands(&self) -> Result<Vec<(&'static str, String)>, RepositoryError> {
        let mut commands = Vec::new();
        for consumer in ALL {
            commands.extend(consumer.command(self)?.map(|command| (consumer.name(), command)));
        }
        Ok(commands)
    }

    /// Returns whether a path exists in the repository.
    fn has(&self, path: &EntryPath) -> Result<bool, RepositoryError> {
        Ok(self.repository.get(path)?.is_some())
    }

    /// Returns whether the flat tree of the image is published.
    fn has_root(&self) -> Result<bool, RepositoryError> {
        self.has(&layout::flat_root(self.record.config))
    }

    /// Returns the default mountpoint of clients.
    fn mountpoint(&self) -> String {
        self.repository.client_mountpoint().display().to_string()
    }
}

/// The names that a new revision changes.
pub struct ConsumerChanges<'a> {
    /// Names for which images are published.
    pub published: &'a [PublishedName<'a>],
    /// Names that are removed.
    pub removed: &'a [ImageName],
}

/// A name for which images are published: one image, or one for each of several platforms.
pub struct PublishedName<'a> {
    /// The public name.
    pub name: &'a ImageName,
    /// Its images.
    pub images: Vec<ImageChange<'a>>,
}

/// An image of a new revision.
pub struct ImageChange<'a> {
    /// Its name and platform.
    pub place: &'a ImagePlace,
    /// The image manifest.
    pub manifest: &'a Document,
    /// The image config.
    pub config: &'a Document,
    /// Whether its flat tree is published.
    pub has_flat: bool,
    /// Total size of the files in its flat tree in bytes; `None` if the head already has the flat tree.
    pub flat_size: Option<u64>,
    /// Whether all files of the image are written again.
    pub is_forced: bool,
    /// Whether it is listed in podman's store.
    pub podman: &'a PodmanListing,
}

impl ImageChange<'_> {
    /// Returns the entry of the image in podman's store. `size` is the total size of the files in its flat tree in bytes.
    pub(crate) fn for_podman(&self, size: u64) -> Result<StoreImage, Refusal> {
        StoreImage::named(&self.place.name, &self.manifest.bytes, &self.config.bytes, size)
    }

    fn is_listed(&self) -> bool {
        *self.podman == PodmanListing::Listed
    }
}

/// A result of [`Consumer::audit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditResult {
    /// A fault that prevents the runtime from working.
    Flaw(Flaw),
    /// A fault that makes the runtime slow or unreliable.
    Warning(String),
}

/// A fault in a repository that prevents a runtime from working.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The path in the repository.
    pub path: EntryPath,
    /// What the runtime requires at the path.
    pub expected: String,
    /// What was found instead.
    pub found: String,
}

impl Flaw {
    fn new(path: EntryPath, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { path, expected: expected.into(), found: found.into() }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.path, self.expected, self.found)
    }
}
