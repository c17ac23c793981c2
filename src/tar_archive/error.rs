//! Errors from reading a tar archive.

/// Errors from reading a tar archive.
///
/// Paths are those of the archive, escaped, and truncated if they are very long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The bytes do not start with a tar header.
    #[error("not a tar archive: the first block is not a valid header")]
    NotAnArchive,
    /// The block at the position of a header is not a valid header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The archive has too many headers, including extended headers.
    #[error("archive has more than the allowed {allowed} headers")]
    TooManyHeaders {
        /// Maximum number of headers.
        allowed: u64,
    },
    /// One member is malformed.
    #[error("cannot read entry '{path}'")]
    Member {
        /// Path as in the archive, escaped and truncated.
        path: String,
        /// What is wrong with the member.
        #[source]
        problem: MemberError,
    },
}

/// The block at the position of a header is not a valid header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("archive has no valid header at byte {offset}, after entry '{after}': {reason}")]
pub struct HeaderError {
    /// Position in the unpacked archive in bytes.
    pub offset: u64,
    /// Path of the previous member, escaped and truncated. The error may be in the size that the header of that member states.
    pub after: String,
    /// What is wrong with the block.
    pub reason: &'static str,
}

/// What is malformed in one member of an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The stream ends inside the member.
    #[error("archive ends inside the entry")]
    Truncated,
    /// The archive ends after a long name or PAX header, without the member that it extends.
    #[error("archive ends after an extended header, without the entry that the header extends")]
    NothingExtended,
    /// Header and PAX header state different sizes. Readers that know no PAX headers would find other members than readers
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
    /// A PAX header or GNU long name is too large.
    #[error("extended header has more than the allowed {allowed} bytes")]
    ExtendedHeaderTooLarge {
        /// Maximum size in bytes.
        allowed: u64,
    },
    /// A sparse file has too many data segments.
    #[error("sparse file has more than the allowed {allowed} data segments")]
    TooManySegments {
        /// Maximum number of segments.
        allowed: u64,
    },
}
