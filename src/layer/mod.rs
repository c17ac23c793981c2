//! Turns the blob of a layer into entries that are known to be what the image promised.
//!
//! Everything streams: compressed bytes are hashed as they arrive, unpacked bytes as they leave the decompressor, and
//! neither a file nor the archive is ever whole in memory. Nothing that [`LayerReader::next_entry`] returns may be made
//! public before [`LayerReader::finish`] has succeeded: only then is it known that the blob, to its last byte, has the
//! digest, the size and the diff ID that were asked for.
//!
//! What a layer says is kept apart from what CVMFS can hold: an entry or attribute that no catalog can express becomes
//! a [`Loss`] when the image is still usable without it, and an error when it is not.
//!
//! The order of rooms: `blob` (bytes as they arrive) → `decompress` → `feed` → `stream` (tar bytes) → `archive` (members, with
//! `header`, `pax` and `sparse`) → `mapping` (entries, with `xattrs`) → [`LayerReader`].

mod archive;
mod blob;
mod decompress;
mod entry;
mod error;
mod feed;
mod gzip;
mod header;
mod limits;
mod losses;
mod mapping;
mod pax;
mod reader;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
mod xattrs;

pub use archive::ContentPart;
pub use decompress::{BlobCompression, unpack};
pub use entry::{DeviceNumber, EntryKind, LayerEntry, NodeKind};
pub use error::{EntryError, LayerError};
pub use limits::{Limit, LimitExceeded, Limits};
pub use losses::{Loss, LossKind, Losses};
pub(crate) use mapping::is_bookkeeping;
pub use reader::{ExpectedLayer, LayerReader, LayerSummary};
