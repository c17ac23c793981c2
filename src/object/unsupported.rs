//! Compressions that other programs use and strata can neither read nor write.

use std::fmt;

/// A compression that strata does not support, identified by the number that CVMFS has for it.
///
/// An object with such a compression is valid: its bytes can be compared with its name, but its content cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnsupportedCompression(pub(crate) u8);

impl UnsupportedCompression {
    /// Zstandard. CVMFS counts from zlib (0) and uncompressed objects (1).
    pub const ZSTD: Self = Self(2);

    /// Returns the compression of an object that no catalog row describes, such as a catalog, by its first bytes. Returns `None`
    /// if the bytes are not known to belong to an unsupported compression.
    pub(crate) fn of_object(stored: &[u8]) -> Option<Self> {
        // No zlib stream begins with these bytes: the first two would fail the check of its header (RFC 1950).
        stored.starts_with(&ZSTD_MAGIC).then_some(Self::ZSTD)
    }
}

/// Magic number at the start of each zstd frame (RFC 8878).
pub(crate) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

impl fmt::Display for UnsupportedCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ZSTD => f.write_str("zstd"),
            Self(number) => write!(f, "compression algorithm {number}"),
        }
    }
}
