//! Why a layer could not be read.

use std::io;

use super::{BlobCompression, LimitExceeded};
use crate::image::{DiffId, Digest};
use crate::path::PathError;

/// Why a layer could not be read.
///
/// Paths are given as the archive spells them, cut when they are very long.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source of the blob failed.
    #[error("cannot read the blob")]
    Read(#[source] io::Error),
    /// The blob ends inside its compressed stream.
    #[error("blob ends in the middle of its {compression} stream, after {actual} of {expected} bytes")]
    Truncated {
        /// What the blob is compressed with.
        compression: BlobCompression,
        /// Bytes that the blob should have.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// The compressed stream is damaged, or followed by something else.
    #[error("blob's {compression} stream is damaged near byte {offset}: {reason}")]
    Damaged {
        /// What the blob is compressed with.
        compression: BlobCompression,
        /// Where in the blob, as far as it is known.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The blob has not ended after as many bytes as it should have. The rest was not read.
    #[error("blob is larger than the {expected} bytes that it should have")]
    TooLarge {
        /// Bytes that the blob should have.
        expected: u64,
    },
    /// The blob ended early, in a place where its archive may end.
    #[error("blob has {actual} bytes, but should have {expected}")]
    WrongSize {
        /// Bytes that the blob should have.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// The blob is another one than was asked for.
    #[error("blob has digest {actual}, but {expected} was asked for")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The archive in the blob is not the one that the image config names.
    #[error("layer unpacks to {actual}, but the image config promises {expected}")]
    WrongDiffId {
        /// What the image config promises.
        expected: DiffId,
        /// What the layer unpacks to.
        actual: DiffId,
    },
    /// The blob is compressed in an unknown way or no archive at all.
    #[error("layer is not a tar archive, neither plain nor in gzip nor in zstd")]
    NotAnArchive,
    /// What should be a header of the archive is none.
    #[error("archive has no valid header at byte {offset}, after entry '{after}': {reason}")]
    Header {
        /// Where in the unpacked archive.
        offset: u64,
        /// The entry before, which may be the one that lies about its size.
        after: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The archive as a whole asks for too much.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// One entry is damaged, or CVMFS cannot hold it.
    #[error("cannot take entry '{path}'")]
    Entry {
        /// The path as the archive spells it.
        path: String,
        /// What is wrong with it.
        #[source]
        problem: EntryError,
    },
}

/// What is wrong with one entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The stream ends before the entry does.
    #[error("archive ends inside the entry")]
    Truncated,
    /// A name or PAX header stands at the end, with no entry after it.
    #[error("archive ends after the extended header, without the entry that it belongs to")]
    NothingExtended,
    /// The size differs between header and extension: old readers would find other entries than new ones.
    #[error("size is {header} in the header, but {extended} in the PAX header")]
    TwoSizes {
        /// Bytes by the header.
        header: u64,
        /// Bytes by the PAX header.
        extended: u64,
    },
    /// A field does not hold a number, or one that means nothing.
    #[error("{0} is not a valid number")]
    Number(&'static str),
    /// The PAX header does not consist of records.
    #[error("PAX header has a malformed record")]
    Record,
    /// The map of a sparse file contradicts itself or the file.
    #[error("sparse file is malformed: {0}")]
    Sparse(&'static str),
    /// No file system holds the path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A whiteout that hides no name.
    #[error("whiteout has no name to hide")]
    BadWhiteout,
    /// A link to nowhere.
    #[error("link has no target")]
    NoTarget,
    /// Linux takes no such link.
    #[error("link target is longer than 4095 bytes")]
    TargetTooLong,
    /// Linux takes no such link.
    #[error("link target has a NUL byte in it")]
    TargetWithNul,
    /// CVMFS holds 32 bits, and Linux has no user or group of the largest number.
    #[error("{field} is {value}, but only 0 to 4294967294 can be published")]
    Id {
        /// `uid` or `gid`.
        field: &'static str,
        /// The number.
        value: i64,
    },
    /// CVMFS clients pass 12 and 20 bits on.
    #[error("device number is {major}:{minor}, but CVMFS holds up to 4095:1048575")]
    Device {
        /// Which driver.
        major: i64,
        /// Which of its devices.
        minor: i64,
    },
    /// The entry asks for too much.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
}
