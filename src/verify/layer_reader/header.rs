//! One header block. The `tar` crate knows where the fields are; how to read them is decided here.

use super::error::EntryProblem;
use super::numbers;

/// A header block with a valid checksum.
pub(super) struct Header(::tar::Header);

impl Header {
    /// Returns the header in this block, or `None` if the checksum is wrong.
    pub(super) fn of(block: [u8; 512]) -> Option<Self> {
        let mut header = ::tar::Header::new_old();
        *header.as_mut_bytes() = block;
        if !has_valid_checksum(&header) {
            return None;
        }
        // The crate recognises a ustar header only by version "00". Go's reader does not look at the version.
        if block[257..].starts_with(b"ustar\0") {
            header.as_mut_bytes()[263..265].copy_from_slice(b"00");
        }
        Some(Self(header))
    }

    /// Returns the type of the member. NUL, the type of regular files in V7 headers, differs from `0`.
    pub(super) fn type_flag(&self) -> u8 {
        self.0.as_old().linkflag[0]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0.as_old().name);
        let prefix = self.0.as_ustar().map_or(&[][..], |ustar| {
            // star's headers end with its own magic, and have two times in the last 24 bytes of the prefix.
            let is_star = ustar.pad[8..] == *b"tar\0";
            text(if is_star { &ustar.prefix[..131] } else { &ustar.prefix })
        });
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn link(&self) -> &[u8] {
        text(&self.0.as_old().linkname)
    }

    pub(super) fn mode(&self) -> Result<i64, EntryProblem> {
        number(&self.0.as_old().mode, "mode")
    }

    pub(super) fn uid(&self) -> Result<i64, EntryProblem> {
        number(&self.0.as_old().uid, "uid")
    }

    pub(super) fn gid(&self) -> Result<i64, EntryProblem> {
        number(&self.0.as_old().gid, "gid")
    }

    pub(super) fn mtime(&self) -> Result<i64, EntryProblem> {
        number(&self.0.as_old().mtime, "mtime")
    }

    pub(super) fn size(&self) -> Result<u64, EntryProblem> {
        size(&self.0.as_old().size, "size")
    }

    /// Returns major and minor number of a device; 0 for both if the header has no fields for them.
    pub(super) fn device(&self) -> Result<(i64, i64), EntryProblem> {
        let fields = match (self.0.as_ustar(), self.0.as_gnu()) {
            (Some(ustar), _) => [&ustar.dev_major, &ustar.dev_minor],
            (None, Some(gnu)) => [&gnu.dev_major, &gnu.dev_minor],
            (None, None) => return Ok((0, 0)),
        };
        Ok((number(fields[0], "device number")?, number(fields[1], "device number")?))
    }

    /// Returns the fields of a GNU header, which describe a sparse file, or `None` for other headers.
    pub(super) fn gnu(&self) -> Option<&::tar::GnuHeader> {
        self.0.as_gnu()
    }
}

/// Returns whether the sum of all bytes is right. Some old programs added the bytes as signed numbers.
fn has_valid_checksum(header: &::tar::Header) -> bool {
    let Some(stated) = numbers::field(&header.as_old().cksum) else { return false };
    let mut bytes = *header.as_bytes();
    bytes[148..156].fill(b' ');
    let unsigned: i64 = bytes.iter().map(|&b| i64::from(b)).sum();
    let signed: i64 = bytes.iter().map(|&b| i64::from(b.cast_signed())).sum();
    [unsigned, signed].contains(&stated)
}

/// Returns a field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

fn number(field: &[u8], name: &'static str) -> Result<i64, EntryProblem> {
    numbers::field(field).ok_or(EntryProblem::Number(name))
}

/// Parses a number that must not be negative.
pub(super) fn size(field: &[u8], name: &'static str) -> Result<u64, EntryProblem> {
    number(field, name)?.try_into().map_err(|_| EntryProblem::Number(name))
}
