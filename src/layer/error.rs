//! Errors from reading a layer.

use std::io;

use super::{BlobCompression, LimitExceeded};
use crate::image::{DiffId, Digest};
use crate::path::PathError;

/// Errors from reading a layer.
///
/// Paths are those of the archive, escaped, and truncated if they are very long.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Reading the blob from its source failed.
    #[error("cannot read the blob")]
    Read(#[source] io::Error),
    /// The blob ends inside its compressed stream.
    #[error("blob ends inside its {compression} stream, after {actual} of {expected} bytes")]
    Truncated {
        /// Compression of the blob.
        compression: BlobCompression,
        /// Expected size of the blob in bytes.
        expected: u64,
        /// Actual size of the blob in bytes.
        actual: u64,
    },
    /// The compressed stream is damaged, or followed by other data.
    #[error("blob's {compression} stream is damaged near byte {offset}: {reason}")]
    Damaged {
        /// Compression of the blob.
        compression: BlobCompression,
        /// Approximate position in the blob in bytes.
        offset: u64,
        /// Description of the damage.
        reason: String,
    },
    /// The blob is larger than expected. The excess was not read.
    #[error("blob is larger than the expected {expected} bytes")]
    TooLarge {
        /// Expected size of the blob in bytes.
        expected: u64,
    },
    /// The blob is too short, but its archive is complete.
    #[error("blob has {actual} bytes instead of the expected {expected}")]
    WrongSize {
        /// Expected size of the blob in bytes.
        expected: u64,
        /// Actual size of the blob in bytes.
        actual: u64,
    },
    /// The blob has another digest than the requested one.
    #[error("blob has digest {actual} instead of the requested {expected}")]
    WrongDigest {
        /// The requested digest.
        expected: Digest,
        /// Digest of the bytes that were read.
        actual: Digest,
    },
    /// The unpacked archive has another diff ID than the image config states.
    #[error("unpacked layer has diff ID {actual}, but the image config states {expected}")]
    WrongDiffId {
        /// Diff ID that the image config states.
        expected: DiffId,
        /// Diff ID of the unpacked layer.
        actual: DiffId,
    },
    /// The blob is not a tar archive, or its compression is unknown.
    #[error("layer is not a tar archive: neither uncompressed, nor compressed with gzip or zstd")]
    NotAnArchive,
    /// The block at the position of a header is not a valid header.
    #[error("archive has no valid header at byte {offset}, after entry '{after}': {reason}")]
    Header {
        /// Position in the unpacked archive in bytes.
        offset: u64,
        /// Path of the previous entry. The error may be in the size that the header of that entry states.
        after: String,
        /// What is wrong with the block.
        reason: &'static str,
    },
    /// The archive as a whole exceeds a limit.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// One entry is damaged, or CVMFS cannot represent it.
    #[error("cannot publish entry '{path}'")]
    Entry {
        /// Path as in the archive, escaped and truncated.
        path: String,
        /// What is wrong with the entry.
        #[source]
        problem: EntryError,
    },
}

/// What is wrong with one entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The stream ends inside the entry.
    #[error("archive ends inside the entry")]
    Truncated,
    /// The archive ends after a long name or PAX header, without the entry that it extends.
    #[error("archive ends after an extended header, without the entry that the header extends")]
    NothingExtended,
    /// Header and PAX header state different sizes. Readers that know no PAX headers would find other entries than readers
    /// that do.
    #[error("size is {header} in the header, but {extended} in the PAX header")]
    TwoSizes {
        /// Size in bytes that the header states.
        header: u64,
        /// Size in bytes that the PAX header states.
        extended: u64,
    },
    /// The named field is not a number, or the number is out of range.
    #[error("{0} is not a valid number")]
    Number(&'static str),
    /// The PAX header has a malformed record.
    #[error("PAX header has a malformed record")]
    Record,
    /// The map of a sparse file is inconsistent or contradicts the stored data.
    #[error("sparse file is malformed: {0}")]
    Sparse(&'static str),
    /// The path cannot exist on Linux.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The entry has a whiteout's prefix, but no name after it.
    #[error("whiteout does not name the entry that it hides")]
    BadWhiteout,
    /// The target of a link is empty.
    #[error("link has no target")]
    NoTarget,
    /// The target is longer than Linux allows.
    #[error("link target is longer than 4095 bytes")]
    TargetTooLong,
    /// The target contains a NUL byte, which Linux does not allow.
    #[error("link target contains a NUL byte")]
    TargetWithNul,
    /// The ID does not fit into the 32 bits that CVMFS stores, or is 4294967295, which is not a valid user or group ID on
    /// Linux.
    #[error("{field} is {value}, but only 0 to 4294967294 can be published")]
    Id {
        /// `uid` or `gid`.
        field: &'static str,
        /// The ID in the archive.
        value: i64,
    },
    /// The device number does not fit: CVMFS clients pass on only 12 bits of the major and 20 bits of the minor number.
    #[error("device number is {major}:{minor}, but CVMFS supports numbers up to 4095:1048575")]
    Device {
        /// Major number in the archive.
        major: i64,
        /// Minor number in the archive.
        minor: i64,
    },
    /// The entry exceeds a limit.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}
