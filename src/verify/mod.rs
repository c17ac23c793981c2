//! Proves that what is published for an image is what the image says, in a second way that shares nothing with the first.
//!
//! Every blob is read anew from the image's source, whatever earlier runs remember. [`NaiveTree`] applies the layers to one
//! another, [`NaiveLayer`] brings each into the form of overlay mounts, and every attribute and every byte is compared
//! with what the head of the repository shows. A model of overlay mounts tells whether the layers together show the root file system. The rules in those two know neither `tree` nor `ingest` nor `convert`.
//!
//! An error means that nothing can be said: the image cannot be read, or there is no repository. Whatever is published and
//! is not what it should be, unreadable objects among it, is a [`Finding`].

mod compare;
mod content;
mod finding;
mod layer_stack;
mod naive_layer;
mod naive_tree;
mod other_parents;
pub(crate) mod overlay_model;
mod podman;
mod published;
mod records;
mod root;
mod source;

use std::sync::atomic::Ordering;

use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::image::{Digest, FullName, ImageName, Platform};
use crate::inventory;
use crate::layer::{LayerError, Limits};
use crate::layout::{ImagePlace, ImageRecord};
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError};
use crate::source::{self as sources, Image, ImageArgument, NamingError, PlatformRequest, SourceError};
use crate::store::StoreError;
use crate::threads::{self, ThreadsError};

pub use finding::Finding;
pub use naive_layer::NaiveLayer;
pub use naive_tree::{ApplyError, NaiveNode, NaiveTree};

use compare::Comparison;
use published::Published;
use source::ReadLayer;

/// Why nothing can be said about an image.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The image cannot be found or described.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is not clear which name is meant.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// A layer cannot be opened.
    #[error("cannot read layer {digest}")]
    OpenLayer {
        /// The layer's digest.
        digest: Digest,
        /// Why.
        source: SourceError,
    },
    /// A layer is not what the image promises.
    #[error("cannot read layer {digest}")]
    ReadLayer {
        /// The layer's digest.
        digest: Digest,
        /// Why.
        source: LayerError,
    },
    /// A layer cannot be laid over those below it.
    #[error("cannot apply layer {digest}")]
    Apply {
        /// The layer's digest.
        digest: Digest,
        /// Why.
        source: ApplyError,
    },
    /// The repository cannot be read at all.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The repository directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The storage cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The machine refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// The image to verify.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it is.
    pub argument: ImageArgument,
    /// The name that it is published under, if not the one that it carries.
    pub name: Option<FullName>,
    /// The platform that is asked for; this machine's is preferred without.
    pub platform: Option<Platform>,
}

/// How an image is verified.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many threads read.
    pub threads: usize,
    /// What hostile layers may not exceed.
    pub limits: Limits,
}

/// What was compared, and what is not as it should be.
#[derive(Debug)]
pub struct Report {
    /// The name that the image is published under.
    pub name: ImageName,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Layers that were read.
    pub layers: usize,
    /// Published trees that were compared: layers, chains and the root file system.
    pub trees: usize,
    /// Entries in them.
    pub entries: u64,
    /// Bytes of all their files, each name counted.
    pub bytes: u64,
    /// What CVMFS cannot hold of the image.
    pub losses: u64,
    /// What is not as it should be, by path.
    pub findings: Vec<Finding>,
}

/// Reads an image anew and compares it with what the head of the repository has under its name.
pub fn verify(
    directory: &RepositoryDirectory,
    request: &Request,
    options: &Options,
    progress: &Progress,
) -> Result<Report, VerifyError> {
    threads::pool(options.threads)?.install(|| verify_here(directory, request, options, progress))
}

fn verify_here(
    directory: &RepositoryDirectory,
    request: &Request,
    options: &Options,
    progress: &Progress,
) -> Result<Report, VerifyError> {
    let repository = Repository::open(&directory.store()?, directory.name())?;
    let source = sources::open(&request.argument, directory.registries()?)?;
    let image = source.resolve(&PlatformRequest::new(request.platform.clone()))?;
    let name = image.name(request.name.as_ref(), &request.argument)?;
    let place = find_place(&repository, name, &image)?;
    progress.set_activity(format!("reading {place}"));
    progress.expected.fetch_add(image.layers.iter().map(|layer| layer.size).sum(), Ordering::Relaxed);
    let layers = source::read_layers(&*source, &image, options.limits, progress)?;
    progress.set_activity(format!("comparing {place}"));
    let mut comparison = Comparison::new(&repository);
    let losses = match find_record(&mut comparison, &image, &place) {
        Some(record) => {
            let published = Published {
                repository: &repository,
                image: &image,
                place: &place,
                record,
                modes: directory.settings().modes,
            };
            published.compare(&layers, &mut comparison, progress)?
        }
        None => 0,
    };
    let (trees, entries, bytes) = (comparison.trees, comparison.entries, comparison.bytes);
    let findings = comparison.into_findings();
    let name = place.name;
    Ok(Report { name, manifest: image.manifest.digest, layers: layers.len(), trees, entries, bytes, losses, findings })
}

/// Finds where the image is published: under its name alone, or for its platform beside others.
fn find_place(repository: &Repository, name: ImageName, image: &Image) -> Result<ImagePlace, RepositoryError> {
    let is_of_image = |place: &ImagePlace| {
        let platforms = place.platform.as_ref().zip(image.platform.as_ref());
        platforms.is_some_and(|(place, image)| place.is_same_as(image))
    };
    let place = inventory::places(repository, &name)?.into_iter().find(is_of_image);
    Ok(place.unwrap_or(ImagePlace { name, platform: None }))
}

/// Finds the record of an image; what is published of another manifest, or not at all, is a finding.
fn find_record(comparison: &mut Comparison<'_>, image: &Image, place: &ImagePlace) -> Option<ImageRecord> {
    let path = place.metadata().join(b"strata.json");
    let json = comparison.file(&path)?;
    let Some(record) = ImageRecord::parse(&json) else {
        comparison.note(&path, "content", "the record of an image", "something else");
        return None;
    };
    let is_same = record.manifest == image.manifest.digest;
    comparison.require(&path, "manifest", image.manifest.digest, record.manifest);
    is_same.then_some(record)
}

#[cfg(test)]
pub(crate) mod tests_generate;
