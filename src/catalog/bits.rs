//! Bits of a catalog row: its flags, and the file type bits of its mode.

use crate::object::{HashAlgorithm, UnsupportedCompression};

pub const DIRECTORY: u32 = 1;
pub const TRANSITION_POINT: u32 = 2;
// CVMFS sets this bit for symbolic links and special files, too (`cvmfs/catalog_sql.h`).
pub const FILE: u32 = 4;
pub const SYMLINK: u32 = 8;
pub const SPECIAL: u32 = 16;
pub const NESTED_ROOT: u32 = 32;
pub const CHUNKED: u32 = 64;
pub const EXTERNAL: u32 = 128;
// Three bits with the number of the hash algorithm.
pub const HASH_ALGORITHM: u32 = 7 << HASH_ALGORITHM_SHIFT;
const HASH_ALGORITHM_SHIFT: u32 = 8;
// Three bits with CVMFS's number of the compression: zlib is 0, none is 1.
pub const COMPRESSION: u32 = 7 << COMPRESSION_SHIFT;
const COMPRESSION_SHIFT: u32 = 11;
pub const UNCOMPRESSED: u32 = 1 << COMPRESSION_SHIFT;
pub const BIND_MOUNTPOINT: u32 = 0x4000;
pub const HIDDEN: u32 = 0x8000;
pub const DIRECT_IO: u32 = 0x1_0000;
// Bits without a meaning for strata. Newer releases of CVMFS use some of them, such as the first for files that trigger the
// download of a file bundle.
pub const UNKNOWN: u32 = !0 << 17;

// File type bits of `st_mode` (POSIX `<sys/stat.h>`).
pub const S_IFMT: u32 = 0o170_000;
pub const S_IFDIR: u32 = 0o040_000;
pub const S_IFREG: u32 = 0o100_000;
pub const S_IFLNK: u32 = 0o120_000;
pub const S_IFCHR: u32 = 0o020_000;
pub const S_IFBLK: u32 = 0o060_000;
pub const S_IFIFO: u32 = 0o010_000;
pub const S_IFSOCK: u32 = 0o140_000;

/// Returns the hash algorithm in the flags of a row, or `None` if there is no algorithm with this number.
pub fn hash_algorithm(flags: u32) -> Option<HashAlgorithm> {
    HashAlgorithm::from_number((flags & HASH_ALGORITHM) >> HASH_ALGORITHM_SHIFT)
}

/// Returns whether the objects of a row with these flags are uncompressed; otherwise they are zlib streams.
pub fn is_uncompressed(flags: u32) -> Result<bool, UnsupportedCompression> {
    match (flags & COMPRESSION) >> COMPRESSION_SHIFT {
        0 => Ok(false),
        1 => Ok(true),
        number => Err(UnsupportedCompression(number as u8)),
    }
}

/// Returns the flags for a hash algorithm.
pub fn hash_flags(algorithm: HashAlgorithm) -> u32 {
    u32::from(algorithm.number()) << HASH_ALGORITHM_SHIFT
}
