//! Reads tar archives in the dialects V7, ustar, PAX, star and GNU: the members with their extension headers, and the content of
//! files, also of sparse files.
//!
//! Where the tar format is ambiguous, this reader follows Go's `archive/tar`, because every container engine uses that
//! package. Links, directories and devices have no content, even if their header states a size. A single zero block inside
//! the archive is an error, not the end. Of several extension headers of one kind, only the last counts. An archive is
//! refused if header and PAX header state different sizes, because two readers could then find different entries in it.
//!
//! An `Archive` reads from a `BlockStream`, so the caller decides where the bytes come from, and whether skipped bytes are read.

mod archive;
mod content;
mod error;
mod header;
mod member;
mod pax;
mod sparse;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use archive::{Archive, HeaderLimits};
pub use content::ContentPart;
pub use error::{HeaderError, MemberError, TarError};
pub(crate) use member::{Member, MemberKind};
pub(crate) use stream::{BLOCK_SIZE, BlockStream};
