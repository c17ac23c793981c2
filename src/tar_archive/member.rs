//! One member of an archive: its header together with its extension headers.

use super::MemberError;
use super::header::Header;
use super::pax::Extended;

/// Type of an archive member, from the type flag of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemberKind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    Unknown,
}

impl MemberKind {
    pub(super) fn of(type_flag: u8) -> Self {
        match type_flag {
            // NUL: a regular file in V7 headers. '7': a contiguous file. 'S': a sparse file in GNU's old format.
            b'0' | 0 | b'7' | b'S' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            _ => Self::Unknown,
        }
    }

    pub(super) fn has_content(self) -> bool {
        // POSIX (pax, ustar `typeflag`): a reader treats an unknown type as a regular file, so its size states stored
        // content.
        matches!(self, Self::File | Self::Unknown)
    }
}

/// One member of an archive.
pub(crate) struct Member {
    pub(crate) kind: MemberKind,
    pub(crate) path: Vec<u8>,
    /// Size of a file in bytes, including holes; 0 for every other kind. The size of a sparse file is 0 until its map is read.
    pub(crate) size: u64,
    pub(crate) header: Header,
    pub(crate) extended: Extended,
    pub(super) long_link_target: Option<Vec<u8>>,
}

/// The extension headers before a member. Of several headers of one kind, only the last counts. An empty long name has no
/// effect, as in Go's reader.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) long_path: Vec<u8>,
    pub(super) long_link_target: Vec<u8>,
    /// Records of the PAX header.
    pub(super) records: Vec<u8>,
    /// Whether the member has any extension header.
    pub(super) any_present: bool,
}

impl Member {
    /// Returns the target of a hard or symbolic link.
    pub(crate) fn link_target(&self) -> &[u8] {
        // As for paths, a GNU long name counts more than a PAX record, regardless of their order: Go's reader applies it last.
        let (long, extended) = (self.long_link_target.as_deref(), self.extended.link_target.as_deref());
        long.or(extended).unwrap_or_else(|| self.header.link_target())
    }

    /// Returns whether the member is a file of which the archive does not store the holes.
    pub(crate) fn is_sparse(&self) -> bool {
        // An unknown version of the PAX format is an error of the map, but the file is sparse.
        self.kind == MemberKind::File
            && (self.header.type_flag() == b'S' || !matches!(self.extended.sparse.map_location(), Ok(None)))
    }

    /// Returns the number of bytes that the archive stores for the member.
    pub(super) fn stored_size(&self) -> Result<u64, MemberError> {
        /// The largest size in octal digits. If the true size does not fit into the header, some programs write this value
        /// there, and the true size in the PAX header.
        const MAX_SIZE_IN_HEADER: u64 = 0o77_777_777_777;
        if !self.kind.has_content() {
            return Ok(0);
        }
        // Read even if the PAX header has a size, because the two must agree.
        let header = self.header.size()?;
        let size = match self.extended.size {
            None => header,
            Some(extended) if header == extended || header == 0 || header == MAX_SIZE_IN_HEADER => extended,
            // Readers that believe different sizes see different entries, which can hide one from a scanner (tar-rs #454).
            Some(extended) => return Err(MemberError::TwoSizes { header, extended }),
        };
        // Sizes are signed 64-bit numbers in catalogs, and `off_t` on clients.
        if i64::try_from(size).is_err() {
            return Err(MemberError::Number("size"));
        }
        Ok(size)
    }
}

/// Returns `None` for an empty name.
pub(super) fn some_unless_empty(name: Vec<u8>) -> Option<Vec<u8>> {
    (!name.is_empty()).then_some(name)
}
