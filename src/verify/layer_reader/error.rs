//! Errors from reading a layer.

use super::bytes::layer_error;
use crate::layer::{LayerError, LimitExceeded};
use crate::path::PathError;

/// Errors from reading a layer.
///
/// Paths are those of the archive, escaped, and truncated if they are very long.
#[derive(Debug, thiserror::Error)]
pub enum ReadLayerError {
    /// The blob cannot be read or unpacked, is no archive, exceeds a limit as a whole, or does not match the image.
    #[error(transparent)]
    Blob(#[from] LayerError),
    /// The block at the position of a header is not a valid header.
    #[error("archive has no valid header at byte {offset}, after entry '{after}': {reason}")]
    Header {
        /// Position in the unpacked archive in bytes.
        offset: u64,
        /// Path of the previous entry.
        after: String,
        /// What is wrong with the block.
        reason: &'static str,
    },
    /// One entry is damaged, exceeds a limit, or cannot be published.
    #[error("cannot read entry '{path}'")]
    Entry {
        /// Path of the entry.
        path: String,
        /// What is wrong with the entry.
        #[source]
        problem: EntryProblem,
    },
}

impl From<std::io::Error> for ReadLayerError {
    fn from(error: std::io::Error) -> Self {
        Self::Blob(layer_error(error))
    }
}

/// What is wrong with one entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// The archive ends inside the entry.
    #[error("archive ends inside the entry")]
    Truncated,
    /// The archive ends after an extension header.
    #[error("archive ends after an extension header, without the entry that it extends")]
    NothingExtended,
    /// Header and PAX header state different sizes.
    #[error("header and PAX header state different sizes")]
    TwoSizes,
    /// The named field is not a number, or the number is out of range.
    #[error("{0} is not a valid number")]
    Number(&'static str),
    /// A PAX record is malformed.
    #[error("PAX header has a malformed record")]
    Record,
    /// The map of a sparse file is malformed.
    #[error("sparse file is malformed: {0}")]
    Sparse(&'static str),
    /// The path cannot exist on Linux.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A whiteout does not name what it hides.
    #[error("whiteout does not name the entry that it hides")]
    BadWhiteout,
    /// The target of a link cannot exist on Linux.
    #[error("link target is empty, longer than 4095 bytes, or contains a NUL byte")]
    Target,
    /// The entry exceeds a limit.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}
