//! Limits on layers, which protect against hostile layers.

use std::fmt;

/// Maximum sizes and numbers in a layer.
///
/// The defaults are far above what known images need and far below what would exhaust a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of the unpacked tar stream in bytes. Default: 1 TiB.
    pub unpacked_size: u64,
    /// Maximum ratio of tar stream to blob, checked if the tar stream is larger than `ratio_applies_above`.
    /// Default: 2,000. Deflate cannot exceed a ratio of 1,032, so this limit can only stop zstd, which reaches 30,000.
    pub ratio: u64,
    /// Size of the tar stream in bytes up to which the ratio is not checked. Default: 16 GiB.
    pub ratio_applies_above: u64,
    /// Maximum number of headers in the archive, including extended headers. Default: 50 million.
    pub headers: u64,
    /// Maximum size of all regular files together in bytes, including holes: a hole takes no space in the archive, but
    /// chunks in the catalog. Default: 64 TiB, which are four million chunks.
    pub content_size: u64,
    /// Maximum number of zero bytes of holes that must be written out, because their chunk also has data, or because no other
    /// hole has the same length. Default: 16 GiB, which take some seconds. Without this limit, a tiny archive with one data
    /// byte in each chunk could cause any amount of work.
    pub filled_holes: u64,
    /// Maximum size of one PAX header or GNU long name in bytes. Default: 1 MiB, as in Go's reader and so in every container
    /// engine.
    pub extended_header_size: u64,
    /// Maximum number of data segments in one sparse file. Default: one million, which take 16 MB while the file is read.
    pub sparse_segments: u64,
    /// Maximum size of all paths, link targets and extended attributes together in bytes. They stay in memory until the layer
    /// is stored. Default: 512 MiB, about as much as five million files need.
    pub metadata_size: u64,
    /// Maximum length of a path in bytes. Default: 4,096.
    pub path_length: u64,
    /// Maximum number of components of a path. Default: 1,000.
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
            // `PATH_MAX` of Linux: programs cannot pass on a longer path.
            path_length: 4_096,
            // Trees are walked recursively, on the small stacks of threads.
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
    /// Returns an error if `value` is above `allowed`.
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
            Self::FilledHoles => "bytes of holes next to data",
            Self::ExtendedHeaderSize => "bytes in one extended header",
            Self::SparseSegments => "data segments in one sparse file",
            Self::MetadataSize => "bytes of paths, link targets and extended attributes together",
            Self::PathLength => "bytes in one path",
            Self::PathDepth => "components in one path",
        })
    }
}

/// A layer exceeds one of the [`Limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("layer has more than the allowed {allowed} {limit}")]
pub struct LimitExceeded {
    /// The exceeded limit.
    pub limit: Limit,
    /// Value of the limit.
    pub allowed: u64,
}
