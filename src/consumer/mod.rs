//! The container runtimes that run images from a repository: what each needs there, and how it is started.
//!
//! A [`Consumer`] knows one runtime. What all of them share, the trees of an image and its public link, is published whether a runtime
//! asks for it or not. To support another runtime, implement the trait in a module of its own and add it to [`ALL`].

pub mod apptainer;
pub mod bundle;
mod containerd;
pub mod podman;
pub mod thin;

use std::fmt;

use crate::image::{Document, ImageName};
use crate::inventory::InventoryError;
use crate::layout::{self, ImagePlace, ImageRecord};
use crate::path::EntryPath;
use crate::publish::{EditError, EditList};
use crate::repository::{Repository, RepositoryError};
use crate::store::StoreError;
use podman::{PodmanListing, Refusal, StoreImage};

/// Every consumer, in the order in which commands list them.
pub const ALL: [&dyn Consumer; 4] =
    [&apptainer::Apptainer, &podman::Podman, &containerd::Containerd, &bundle::OciRuntime];

/// A container runtime that reads what is published.
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

    /// Adds the edits that bring the runtime's own directory in step with the names that change.
    ///
    /// `edits` has the edits of trees, links and records already.
    fn revise(&self, edits: &mut EditList<'_>, changes: &ConsumerChanges<'_>) -> Result<(), ConsumerError> {
        let _ = (edits, changes);
        Ok(())
    }

    /// Calls `report` for everything in the repository that the runtime fails on.
    fn audit(&self, repository: &Repository, report: &mut dyn FnMut(AuditResult)) -> Result<(), RepositoryError> {
        let _ = (repository, report);
        Ok(())
    }
}

/// Why the directory of a consumer cannot be brought in step.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// The head cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The images in the head cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A small file cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<EditError> for ConsumerError {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Repository(error) => error.into(),
            EditError::Store(error) => error.into(),
        }
    }
}

/// A published image, as commands need to know it.
pub struct PublishedImage<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// Where the image is.
    pub place: &'a ImagePlace,
    /// What was published for it.
    pub record: &'a ImageRecord,
    /// Whether podman's store has the image under its name.
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

    /// Returns whether the repository has something at a path.
    fn has(&self, path: &EntryPath) -> Result<bool, RepositoryError> {
        Ok(self.repository.get(path)?.is_some())
    }

    /// Returns whether the root file system of the image is published.
    fn has_root(&self) -> Result<bool, RepositoryError> {
        self.has(&layout::flat_root(self.record.config))
    }

    /// Returns where clients mount the repository.
    fn mountpoint(&self) -> String {
        self.repository.client_mountpoint().display().to_string()
    }
}

/// The names that a new revision changes.
pub struct ConsumerChanges<'a> {
    /// Names that get images.
    pub published: &'a [PublishedName<'a>],
    /// Names that are removed.
    pub removed: &'a [ImageName],
}

/// A name that gets images: one, or one for each of several platforms.
pub struct PublishedName<'a> {
    /// The name.
    pub name: &'a ImageName,
    /// Its images.
    pub images: Vec<ImageChange<'a>>,
}

/// An image of a new revision.
pub struct ImageChange<'a> {
    /// Where it is published.
    pub place: &'a ImagePlace,
    /// The image manifest.
    pub manifest: &'a Document,
    /// The image config.
    pub config: &'a Document,
    /// Whether its root file system is published.
    pub has_flat: bool,
    /// Bytes of the files in its root file system; `None` if the head has that already.
    pub flat_size: Option<u64>,
    /// Whether everything that belongs to the image is written again.
    pub is_forced: bool,
    /// Whether podman lists it.
    pub podman: &'a PodmanListing,
}

impl ImageChange<'_> {
    /// Returns the entry of the image in podman's store; `size` is the size in bytes of its root file system.
    pub(crate) fn for_podman(&self, size: u64) -> Result<StoreImage, Refusal> {
        StoreImage::named(&self.place.name, &self.manifest.bytes, &self.config.bytes, size)
    }

    fn is_listed(&self) -> bool {
        *self.podman == PodmanListing::Listed
    }
}

/// Something that a consumer fails on, or that an administrator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditResult {
    /// The runtime fails on it.
    Flaw(Flaw),
    /// The runtime works, but not well.
    Warning(String),
}

/// Something in a repository that a runtime fails on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The path in the repository.
    pub path: EntryPath,
    /// What the runtime needs there.
    pub expected: String,
    /// What it finds.
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
