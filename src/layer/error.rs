//! Errors from reading a layer.

use std::io;

use super::{BlobCompression, Limit, LimitExceeded};
use crate::image::{DiffId, Digest};
use crate::path::PathError;
use crate::tar_archive::{HeaderError, MemberError, TarError};

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
    #[error(transparent)]
    Header(HeaderError),
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
    /// The entry is malformed in the archive.
    #[error(transparent)]
    Malformed(MemberError),
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

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::NotAnArchive => Self::NotAnArchive,
            TarError::Header(error) => Self::Header(error),
            TarError::TooManyHeaders { allowed } => Self::Limit(LimitExceeded { limit: Limit::Headers, allowed }),
            TarError::Member { path, problem } => Self::Entry { path, problem: problem.into() },
        }
    }
}

impl From<MemberError> for EntryError {
    fn from(problem: MemberError) -> Self {
        match problem {
            MemberError::ExtendedHeaderTooLarge { allowed } => {
                Self::Limit(LimitExceeded { limit: Limit::ExtendedHeaderSize, allowed })
            }
            MemberError::TooManySegments { allowed } => {
                Self::Limit(LimitExceeded { limit: Limit::SparseSegments, allowed })
            }
            malformed => Self::Malformed(malformed),
        }
    }
}
