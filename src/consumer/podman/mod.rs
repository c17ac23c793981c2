//! The image store for podman (`additionalimagestores` of containers/storage).
//!
//! Each image has one entry with all of its names, and as many layers as the real image. Only the topmost layer has a directory, which is
//! a link to the flat tree. An entry without names is kept as long as its flat tree, so that existing containers keep working; it can
//! also be run by its ID.
//!
//! A single name, type, file or row that podman does not accept makes podman list no image of the store at all. Therefore
//! [`StoreImage`] and [`store_name`] refuse everything that podman refuses, and content that other programs wrote into the store is
//! checked before strata adds to it ([`PodmanStore::parse`], [`audit_image`]). All rules come from experiments with podman 4.3.

mod audit;
mod image;
mod listing;
mod name;
mod paths;
mod published;
mod raw;
mod revise;
mod shape;
mod store;
mod time;

use super::{AuditResult, Consumer, ConsumerChanges, Flaw, PublishedImage};
use crate::layout::PODMAN_STORE;
use crate::message::shell_word;
use crate::publish::{EditError, EditList};
use crate::repository::{Repository, RepositoryError};

pub use audit::{Documents, ImageAudit, audit_image, flat_size, read_documents};
pub use image::{MAX_DOCUMENT_SIZE, Refusal, StoreImage};
pub use listing::PodmanListing;
pub(crate) use listing::listed_platform;
pub use name::store_name;
pub use paths::{
    FlatLayer, FlatLayers, diff_target, document, image_directory, images, images_list, images_lock, layer_diff,
    layer_directory, layer_link, layers_list, layers_lock, link_id, lock_token, manifest_key, short_link,
    short_link_target,
};
pub use published::PublishedStore;
pub use store::{PodmanStore, StoreEntry};

/// Number of images above which podman needs seconds to list them. The time grows with the square of the number.
// Measured with podman 4.3: 0.7 s for 500 images, 2.1 s for 1,000, 7.8 s for 2,000, and 56 s for 5,000.
pub const MANY_IMAGES: usize = 1_000;

/// Podman, which runs images from the store for podman in the repository.
pub struct Podman;

impl Consumer for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn command(&self, image: &PublishedImage<'_>) -> Result<Option<String>, RepositoryError> {
        let store = format!("--storage-opt additionalimagestore={}/{PODMAN_STORE}", image.mountpoint());
        let command = || format!("podman {store} run {}", shell_word(&image.place.name.to_string()));
        Ok(image.is_in_podman_store.then(command))
    }

    fn directory(&self) -> Option<&'static str> {
        Some(PODMAN_STORE)
    }

    fn revise(&self, edits: &mut EditList<'_>, changes: &ConsumerChanges<'_>) -> Result<(), EditError> {
        revise::update_store(edits, changes)
    }

    fn audit(&self, repository: &Repository, report: &mut dyn FnMut(AuditResult)) -> Result<(), RepositoryError> {
        let Some(published) = PublishedStore::read(repository)? else { return Ok(()) };
        published.flaws.iter().for_each(|flaw| report(AuditResult::Flaw(flaw.clone())));
        published.warnings.iter().for_each(|warning| report(AuditResult::Warning(warning.to_string())));
        for entry in published.store.entries() {
            // An unreadable file is not reported here, but by the check of its objects.
            if let Ok(audit) = audit_image(repository, &published.store, entry) {
                audit.flaws.into_iter().for_each(|flaw| report(AuditResult::Flaw(flaw)));
            }
        }
        Ok(())
    }
}
