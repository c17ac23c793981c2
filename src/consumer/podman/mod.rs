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
mod name;
mod place;
mod published;
mod raw;
mod shape;
mod store;
mod time;

use std::fmt;

use crate::path::EntryPath;

pub use audit::{Audit, Documents, audit_image, flat_size, read_documents};
pub use image::{LONGEST_DOCUMENT, Refusal, StoreImage};
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

/// Something in the store that podman stumbles over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The path in the repository.
    pub path: EntryPath,
    /// What podman needs there.
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
