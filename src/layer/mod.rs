//! Reads the blob of a layer as a sequence of entries, and verifies that it is the blob that the image refers to.
//!
//! Everything streams: compressed bytes are hashed as they arrive, unpacked bytes as they leave the decompressor, and
//! neither a file nor the archive is ever whole in memory. Nothing that [`LayerReader::next_entry`] returns may be
//! published before [`LayerReader::finish`] has succeeded: only that call proves that the whole blob has the requested
//! digest, size and diff ID.
//!
//! An entry or attribute that CVMFS catalogs cannot express becomes a [`Loss`] if the image is still usable without it,
//! otherwise an error.
//!
//! Data passes the modules in this order: `blob` (bytes as they arrive) → `decompress` → `feed` → `stream` (tar bytes) →
//! [`tar_archive`](crate::tar_archive) (members) → `mapping` (entries, with `xattrs`) → [`LayerReader`].

mod blob;
mod decompress;
mod entry;
mod error;
mod feed;
mod gzip;
mod limits;
mod losses;
mod mapping;
mod reader;
mod stream;
#[cfg(test)]
mod tests;
mod xattrs;

pub use crate::tar_archive::ContentPart;
pub use decompress::{BlobCompression, unpack};
pub use entry::{DeviceNumber, EntryKind, LayerEntry, NodeKind};
pub use error::{EntryError, LayerError};
pub use limits::{Limit, LimitExceeded, Limits};
pub use losses::{Loss, LossKind, Losses};
pub(crate) use mapping::is_bookkeeping;
pub use reader::{ExpectedLayer, LayerReader, LayerSummary};
