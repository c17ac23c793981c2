//! The store that podman runs images from: `additionalimagestores` of containers/storage.
//!
//! Each image has one entry with all of its names, as many layers as it really has, of which only the topmost has a
//! directory, and that leads to the root file system in `.flat`. An entry whose names have moved on stays as long as its root
//! file system: containers that were made from it go on, and it runs by its ID.
//!
//! The one thing to know is that podman is unforgiving: one name, type, file or row that it does not like, in one image, and
//! it lists none of them. So [`StoreImage`] and [`store_name`] let nothing in that podman refuses, and what others wrote
//! into the store is looked through before it is continued ([`PodmanStore::parse`], [`audit_image`]). All that is
//! refused here is known from trying it with podman 4.3.

mod audit;
mod image;
mod listing;
mod name;
mod place;
mod published;
mod raw;
mod revise;
mod shape;
mod store;
mod time;

use super::{AuditResult, Consumer, ConsumerChanges, ConsumerError, Flaw, PublishedImage};
use crate::layout::PODMAN_STORE;
use crate::message::shell_word;
use crate::publish::EditList;
use crate::repository::{Repository, RepositoryError};

pub use audit::{Audit, Documents, audit_image, flat_size, read_documents};
pub use image::{LONGEST_DOCUMENT, Refusal, StoreImage};
pub use listing::PodmanListing;
pub(crate) use listing::listed_platform;
pub use name::store_name;
pub use place::{
    FlatLayer, FlatLayers, diff_target, document, image_directory, images, images_list, images_lock, layer_diff,
    layer_directory, layer_link, layers_list, layers_lock, link_id, lock_token, manifest_key, short_link,
    short_link_target,
};
pub use published::PublishedStore;
pub use store::{Entry, PodmanStore};

/// Podman takes seconds to list more images than this: the time grows with the square of their number.
pub const MANY_IMAGES: usize = 1_000;

/// Podman, which reads its own store in the repository.
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

    fn revise(&self, edits: &mut EditList<'_>, changes: &ConsumerChanges<'_>) -> Result<(), ConsumerError> {
        revise::update_store(edits, changes)
    }

    fn audit(&self, repository: &Repository, report: &mut dyn FnMut(AuditResult)) -> Result<(), RepositoryError> {
        let Some(published) = PublishedStore::read(repository)? else { return Ok(()) };
        published.flaws.iter().for_each(|flaw| report(AuditResult::Flaw(flaw.clone())));
        published.warnings.iter().for_each(|warning| report(AuditResult::Warning(warning.to_string())));
        for entry in published.store.entries() {
            // What cannot be read is reported where its objects are checked.
            if let Ok(audit) = audit_image(repository, &published.store, entry) {
                audit.flaws.into_iter().for_each(|flaw| report(AuditResult::Flaw(flaw)));
            }
        }
        Ok(())
    }
}
