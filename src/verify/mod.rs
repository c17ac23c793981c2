//! Proves that the published form of an image is correct, by a second implementation of reading and applying layers.
//!
//! Every blob is read from the image's source again; nothing that earlier runs stored is used. `layer_reader` turns each blob
//! into entries, [`NaiveTree`] applies the layers on top of each other, [`NaiveLayer`] converts each layer into the form that
//! overlay mounts need, and every attribute and every byte is compared with the head of the repository. A model of overlayfs
//! checks that a mount of all layers equals the root file system.
//!
//! Shared with `convert` is only:
//! - the transport of documents and blobs ([`crate::source`]), and decompression ([`crate::layer::unpack`]). Sizes and
//!   digests prove that the results of both are right.
//! - plain types: the entries of a layer, its losses and limits, the errors of blobs, paths and their normal form, metadata, digests.
//! - the names and formats of what is published ([`crate::layout`]), the files that runtimes need ([`crate::consumer`]), and
//!   reading a repository ([`crate::repository`]).
//!
//! Not shared is what decides which tree an archive means: headers, PAX records, sparse maps, whiteouts, attributes, losses,
//! and how layers are applied. No code of `tree`, `ingest`, `stage` or `tar_archive` and no parser of [`crate::layer`] is used.
//! (A source finds blobs in the archive of an image with `tar_archive`, but their digests prove that they are the right ones.)
//!
//! An error means that the comparison is impossible: the image cannot be read, or there is no repository. Published data
//! that is wrong or unreadable is a [`Difference`].

mod compare;
mod content;
mod difference;
mod file_bundles;
mod layer_reader;
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

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::directory::DirectoryError;
use crate::image::{Digest, FullName, ImageName, Platform};
use crate::inventory;
use crate::layer::Limits;
use crate::layout::{ImagePlace, ImageRecord};
use crate::progress::Progress;
use crate::registry::Registries;
use crate::repository::{Repository, RepositoryError};
use crate::settings::Modes;
use crate::source::{self as sources, Image, ImageArgument, NamingError, PlatformRequest, SourceError};
use crate::store::StoreError;
use crate::threads::{self, ThreadsError};

pub use difference::Difference;
pub use layer_reader::{EntryProblem, ReadLayerError};
pub use naive_layer::NaiveLayer;
pub use naive_tree::{ApplyError, NaiveNode, NaiveTree};

use compare::Comparison;
use published::VerifiedImage;

/// Errors that prevent a comparison.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The image cannot be found, or its manifest or config cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The name of the image is missing or ambiguous.
    #[error(transparent)]
    Naming(#[from] NamingError),
    /// A layer cannot be opened.
    #[error("cannot read layer {digest}")]
    OpenLayer {
        /// The layer's digest.
        digest: Digest,
        /// The error of the image's source.
        source: SourceError,
    },
    /// A layer cannot be read, or does not match the digest, size or diff ID in the image.
    #[error("cannot read layer {digest}")]
    ReadLayer {
        /// The layer's digest.
        digest: Digest,
        /// What is wrong with the layer.
        source: ReadLayerError,
    },
    /// A layer cannot be applied to the lower layers.
    #[error("cannot apply layer {digest}")]
    Apply {
        /// The layer's digest.
        digest: Digest,
        /// The entry that cannot be applied.
        source: ApplyError,
    },
    /// The head of the repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The repository directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The storage cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refuses to start threads.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
}

/// The repository with the published image.
#[derive(Debug)]
pub struct VerifiedRepository<'a> {
    /// Its head.
    pub head: Repository,
    /// The client of registries, from which the image is read again.
    pub registries: &'a Registries,
    /// The permissions that the repository is set to have in `.flat`.
    pub modes: Modes,
}

/// The image to verify.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// The source of the image.
    pub argument: ImageArgument,
    /// The name under which the image is published. Needed if the image itself does not state a name.
    pub name: Option<FullName>,
    /// The requested platform. Without it, the platform of this machine is preferred.
    pub platform: Option<Platform>,
}

/// Settings of a verification.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Number of threads that read layers and content.
    pub threads: usize,
    /// Limits on the size of hostile layers.
    pub limits: Limits,
}

/// The result of a verification.
#[derive(Debug)]
pub struct VerifyReport {
    /// The name under which the image is published.
    pub name: ImageName,
    /// The digest of the image manifest.
    pub manifest: Digest,
    /// Number of layers that were read.
    pub layers: usize,
    /// Number of published trees that were compared: layers, chains and the root file system.
    pub trees: usize,
    /// Number of entries in these trees.
    pub entries: u64,
    /// Total size in bytes of the files in these trees. A file with several names counts once per name.
    pub bytes: u64,
    /// Number of properties of the image that CVMFS cannot represent.
    pub losses: u64,
    /// All differences, sorted by path.
    pub differences: Vec<Difference>,
}

/// Reads an image from its source and compares it with the published image of that name in the head of the repository.
pub fn verify(
    repository: &VerifiedRepository<'_>,
    request: &VerifyRequest,
    options: &VerifyOptions,
    progress: &Arc<Progress>,
) -> Result<VerifyReport, VerifyError> {
    let reporter = repository.head.store().reporter();
    let _reported = reporter.start(request.argument.to_string(), progress);
    threads::pool(options.threads, reporter)?.install(|| verify_here(repository, request, options, progress))
}

fn verify_here(
    repository: &VerifiedRepository<'_>,
    request: &VerifyRequest,
    options: &VerifyOptions,
    progress: &Progress,
) -> Result<VerifyReport, VerifyError> {
    let VerifiedRepository { head, registries, modes } = repository;
    let source = sources::open(&request.argument, registries)?;
    let image = source.resolve(&PlatformRequest::new(request.platform.clone()))?;
    let name = image.name(request.name.as_ref(), &request.argument)?;
    let place = find_place(head, name, &image)?;
    progress.set_activity(format!("reading {place}"));
    progress.expected.fetch_add(image.layers.iter().map(|layer| layer.size).sum(), Ordering::Relaxed);
    let layers = source::read_layers(&*source, &image, options.limits, progress)?;
    progress.set_activity(format!("comparing {place}"));
    let mut comparison = Comparison::new(head);
    let losses = match find_record(&mut comparison, &image, &place) {
        Some(record) => {
            let published = VerifiedImage { repository: head, image: &image, place: &place, record, modes: *modes };
            published.compare(&layers, &mut comparison, progress)?
        }
        None => 0,
    };
    let (trees, entries, bytes) = (comparison.trees, comparison.entries, comparison.bytes);
    let differences = comparison.into_differences();
    let name = place.name;
    Ok(VerifyReport {
        name,
        manifest: image.manifest.digest,
        layers: layers.len(),
        trees,
        entries,
        bytes,
        losses,
        differences,
    })
}

/// Returns where the image is published: under its name alone or, if the name has several platforms, under the name and its
/// platform.
fn find_place(repository: &Repository, name: ImageName, image: &Image) -> Result<ImagePlace, RepositoryError> {
    let is_of_image = |place: &ImagePlace| {
        let platforms = place.platform.as_ref().zip(image.platform.as_ref());
        platforms.is_some_and(|(place, image)| place.is_same_as(image))
    };
    let place = inventory::places(repository, &name)?.into_iter().find(is_of_image);
    Ok(place.unwrap_or(ImagePlace { name, platform: None }))
}

/// Reads the record of an image. Adds a difference if the record is missing, or is the record of another manifest.
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
