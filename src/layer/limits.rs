//! How much a layer may ask for before it counts as an attack.

use std::fmt;

/// How much a layer may ask for before it counts as an attack.
///
/// The defaults are far above every honest image that is known, and far below what would hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the unpacked tar stream. Default: 1 TiB.
    pub unpacked_size: u64,
    /// How many times larger than the blob the tar stream may be, once it is larger than `ratio_applies_above`.
    /// Default: 2,000. No gzip stream passes 1,032, however many zeros it holds, so this can only stop zstd, which
    /// reaches 30,000.
    pub ratio: u64,
    /// Bytes of tar stream that may come from however small a blob. Default: 16 GiB.
    pub ratio_applies_above: u64,
    /// Headers in the archive, extended ones counted. Default: 50 million.
    pub headers: u64,
    /// Bytes of all regular files together, holes counted: a hole costs nothing in the archive, but chunks in the
    /// catalog. Default: 64 TiB, which are four million chunks.
    pub content_size: u64,
    /// Zeros of holes that have to be written out, because a chunk has data, too, or because no other hole is as long.
    /// Default: 16 GiB, some seconds' work: one byte in every chunk makes any number of them from next to nothing.
    pub filled_holes: u64,
    /// Bytes of one PAX header or GNU long name. Default: 1 MiB, as in Go's reader and so in every container engine.
    pub extended_header_size: u64,
    /// ContentObjects of data in one sparse file. Default: one million, which take 16 MB while the file is read.
    pub sparse_segments: u64,
    /// Bytes of all paths, link targets and extended attributes together, which stay in memory until the layer is stored.
    /// Default: 512 MiB, as of five million files.
    pub metadata_size: u64,
    /// Bytes of a path. Default: 4,096.
    pub path_length: u64,
    /// Components of a path. Default: 1,000.
    pub path_depth: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_size: 1 << 40,
            ratio: 2_000,
            ratio_applies_above: 16 << 30,
            headers: 50_000_000,
            content_size: 64 << 40,
            filled_holes: 16 << 30,
            extended_header_size: 1 << 20,
            sparse_segments: 1_000_000,
            metadata_size: 512 << 20,
            path_length: 4_096,
            path_depth: 1_000,
        }
    }
}

/// One of the [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::unpacked_size`].
    UnpackedSize,
    /// [`Limits::ratio`].
    Ratio,
    /// [`Limits::headers`].
    Headers,
    /// [`Limits::content_size`].
    ContentSize,
    /// [`Limits::filled_holes`].
    FilledHoles,
    /// [`Limits::extended_header_size`].
    ExtendedHeaderSize,
    /// [`Limits::sparse_segments`].
    SparseSegments,
    /// [`Limits::metadata_size`].
    MetadataSize,
    /// [`Limits::path_length`].
    PathLength,
    /// [`Limits::path_depth`].
    PathDepth,
}

impl Limit {
    /// Refuses a `value` above what is `allowed`.
    pub(super) fn check(self, value: u64, allowed: u64) -> Result<(), LimitExceeded> {
        if value > allowed { Err(LimitExceeded { limit: self, allowed }) } else { Ok(()) }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnpackedSize => "bytes of unpacked archive",
            Self::Ratio => "times the size of the blob",
            Self::Headers => "archive headers",
            Self::ContentSize => "bytes in all files together",
            Self::FilledHoles => "bytes of holes that lie beside data",
            Self::ExtendedHeaderSize => "bytes in one extended header",
            Self::SparseSegments => "pieces of data in one sparse file",
            Self::MetadataSize => "bytes of paths, link targets and extended attributes together",
            Self::PathLength => "bytes in one path",
            Self::PathDepth => "components in one path",
        })
    }
}

/// The layer asks for more than [`Limits`] allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("layer has more than the {allowed} {limit} that are allowed")]
pub struct LimitExceeded {
    /// What there is too much of.
    pub limit: Limit,
    /// How much of it is allowed.
    pub allowed: u64,
}
