//! Rules for a single row of a catalog.

use std::fmt;

use super::walk::{RowVisitor, Severity};
use super::{AuditedCatalog, AuditedRow};
use crate::catalog::bits::{
    BIND_MOUNTPOINT, CHUNKED, COMPRESSION, DIRECT_IO, DIRECTORY, EXTERNAL, FILE, HASH_ALGORITHM, HIDDEN, NESTED_ROOT,
    S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK, SPECIAL, SYMLINK, TRANSITION_POINT, UNKNOWN,
    hash_algorithm,
};
use crate::message::escape;

/// Maximum length of a link target in bytes: Linux's `PATH_MAX` without the terminating NUL.
const MAX_TARGET_LENGTH: usize = 4095;

/// Maximum length of a name in bytes, in Linux and CVMFS.
const MAX_NAME_LENGTH: usize = 255;

/// Maximum plausible size of a file or directory in bytes: hashing such a file at 10 GB/s takes three months. Sums of larger
/// sizes could overflow the counters.
const MAX_FILE_SIZE: i64 = 1 << 56;

/// An invalid user or group ID: `chown` interprets it as "do not change", and clients report it as another ID.
const NO_OWNER: u32 = u32::MAX;

/// Maximum number of bytes of a text that a finding quotes.
const MAX_QUOTED: usize = 100;

/// File types that the rules distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Directory,
    Regular,
    Symlink,
    Device,
    FifoOrSocket,
}

impl FileKind {
    /// Reads the file type from the mode. Returns `None` for an unknown type and for bits beyond type and permissions.
    pub(crate) fn of(row: &AuditedRow) -> Option<Self> {
        match row.mode & !0o7777 {
            S_IFDIR => Some(Self::Directory),
            S_IFREG => Some(Self::Regular),
            S_IFLNK => Some(Self::Symlink),
            S_IFCHR | S_IFBLK => Some(Self::Device),
            S_IFIFO | S_IFSOCK => Some(Self::FifoOrSocket),
            _ => None,
        }
    }
}

/// Facts about a row that come from its path and from other tables.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowRelations {
    /// The row is the root entry of a nested catalog.
    pub(super) is_nested_root: bool,
    /// The table `nested_catalogs` has the path of the row.
    pub(super) is_transition_point: bool,
    /// The table `bind_mountpoints` has the path of the row.
    pub(super) is_bind_mountpoint: bool,
    /// The table `chunks` has chunks for the path of the row.
    pub(super) has_chunks: bool,
}

/// Reports the findings of one row to a visitor.
pub(super) struct RowFindings<'f> {
    pub(super) visitor: &'f dyn RowVisitor,
    pub(super) path: &'f [u8],
}

impl RowFindings<'_> {
    pub(super) fn note(&self, expected: impl fmt::Display, found: impl fmt::Display) {
        self.visitor.note(Some(self.path), Severity::Unsound, &expected, &found);
    }
}

/// Checks all rules for a row that need neither other rows nor objects.
pub(super) fn check_row(
    catalog: &AuditedCatalog,
    row: &AuditedRow,
    relations: RowRelations,
    findings: &RowFindings<'_>,
) {
    let Some(kind) = FileKind::of(row) else {
        findings.note("a mode with a known file type and permissions only", format_args!("mode {:o}", row.mode));
        return;
    };
    let flags = expected_flags(row, kind, relations);
    if row.flags != flags {
        findings.note(format_args!("flags {flags:#x}"), format_args!("{:#x}", row.flags));
    }
    let symlink = catalog.symlink(row);
    check_hash(catalog.hash(row), row, kind, findings);
    check_size(symlink, row, kind, findings);
    check_links(row, kind, findings);
    match (kind, symlink.len()) {
        (FileKind::Symlink, 0) => findings.note("a link target", "none"),
        (FileKind::Symlink, 1..=MAX_TARGET_LENGTH) | (_, 0) => {}
        (FileKind::Symlink, length) => findings.note("a link target of up to 4095 bytes", length),
        _ => findings.note("no link target", quoted(symlink)),
    }
    if row.uid == NO_OWNER || row.gid == NO_OWNER {
        let found = format_args!("uid {} and gid {}", row.uid, row.gid);
        findings.note(format_args!("owners below {NO_OWNER}"), found);
    }
    if row.mtime_nanoseconds.is_some_and(|nanoseconds| !(0..1_000_000_000).contains(&nanoseconds)) {
        findings.note("mtimens below a second", row.mtime_nanoseconds.unwrap_or_default());
    }
    if let Some(Err(found)) = catalog.xattr(row).map(check_xattrs) {
        findings.note("extended attributes that clients can read", found);
    }
}

/// Returns the required flags. Bits that the format leaves optional, and bits that strata does not know, are copied from the row.
fn expected_flags(row: &AuditedRow, kind: FileKind, relations: RowRelations) -> u32 {
    let choices = match kind {
        FileKind::Regular => COMPRESSION | HASH_ALGORITHM | EXTERNAL | HIDDEN | DIRECT_IO | UNKNOWN,
        _ => HIDDEN | UNKNOWN,
    };
    let when = |condition: bool, flag: u32| if condition { flag } else { 0 };
    let demanded = match kind {
        FileKind::Directory => {
            DIRECTORY
                | when(relations.is_nested_root, NESTED_ROOT)
                | when(relations.is_transition_point, TRANSITION_POINT)
                | when(relations.is_bind_mountpoint, BIND_MOUNTPOINT)
        }
        FileKind::Regular => FILE | when(relations.has_chunks, CHUNKED),
        FileKind::Symlink => FILE | SYMLINK,
        FileKind::Device | FileKind::FifoOrSocket => FILE | SPECIAL,
    };
    demanded | (row.flags & choices)
}

fn check_hash(hash: Option<&[u8]>, row: &AuditedRow, kind: FileKind, findings: &RowFindings<'_>) {
    match (hash, kind) {
        (Some(hash), FileKind::Regular) if hash.len() == 20 && hash.iter().any(|&byte| byte != 0) => {}
        (Some(hash), FileKind::Regular) => {
            findings.note("a hash of 20 bytes that are not all 0", format_args!("{hash:02x?}"));
        }
        (None, FileKind::Regular) if row.flags & (CHUNKED | EXTERNAL) == 0 => {
            findings.note("the hash of a regular file", "none");
        }
        (Some(_), _) => findings.note("no hash, because the entry is not a regular file", "a hash"),
        (None, _) => {}
    }
    if kind == FileKind::Regular && hash_algorithm(row.flags).is_none() {
        findings
            .note("a known hash algorithm in the flags", format_args!("number {}", (row.flags & HASH_ALGORITHM) >> 8));
    }
}

fn check_size(symlink: &[u8], row: &AuditedRow, kind: FileKind, findings: &RowFindings<'_>) {
    match kind {
        // Readers use the length of the target; some writers store size 0.
        FileKind::Symlink if row.size != 0 && row.size != symlink.len() as i64 => {
            findings.note(format_args!("the size {} of the link target", symlink.len()), row.size);
        }
        FileKind::FifoOrSocket if row.size != 0 => findings.note("size 0", row.size),
        // Clients report 12 bits of the major and 20 bits of the minor number.
        FileKind::Device if u32::try_from(row.size).is_err() => {
            findings.note("a device number of 32 bits", row.size);
        }
        FileKind::Directory | FileKind::Regular if row.size < 0 => findings.note("a size", row.size),
        FileKind::Directory | FileKind::Regular if row.size > MAX_FILE_SIZE => {
            findings.note(format_args!("a size of up to {MAX_FILE_SIZE} bytes"), row.size);
        }
        _ => {}
    }
}

fn check_links(row: &AuditedRow, kind: FileKind, findings: &RowFindings<'_>) {
    let is_lawful = match kind {
        FileKind::Directory => row.link_count >= 2 && row.link_group == 0,
        _ => row.link_count == 1 || row.link_count > 1 && row.link_group > 0,
    };
    if !is_lawful {
        let found = format!("link count {} in group {}", row.link_count, row.link_group);
        findings.note("a hard link group where, and only where, a file has several links", found);
    }
}

/// Checks the name of a row. The name of the root of the repository must be empty; no other name may be empty.
pub(super) fn check_name(name: &[u8], is_repository_root: bool, findings: &RowFindings<'_>) {
    let is_component = !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME_LENGTH
        && !name.iter().any(|b| b"/\0".contains(b));
    if is_repository_root != name.is_empty() || !(name.is_empty() || is_component) {
        let expected = if is_repository_root { "an empty name" } else { "a name that is one component of a path" };
        findings.note(expected, quoted(name));
    }
}

/// Returns the beginning of a text in quotes, with the total length if it was shortened.
fn quoted(text: &[u8]) -> String {
    match text.get(..MAX_QUOTED) {
        Some(start) if text.len() > MAX_QUOTED => format!("'{}…' of {} bytes", escape(start), text.len()),
        _ => format!("'{}'", escape(text)),
    }
}

/// Checks packed extended attributes. The error describes what clients cannot read.
fn check_xattrs(packed: &[u8]) -> Result<(), String> {
    let (count, mut rest) = match packed {
        [1, count, rest @ ..] if *count > 0 => (*count, rest),
        _ => return Err(format!("the head {:?}", &packed[..packed.len().min(2)])),
    };
    for number in 1..=count {
        let [name, value, bytes @ ..] = rest else { return Err(format!("an end before attribute {number}")) };
        let length = usize::from(*name) + usize::from(*value);
        if *name == 0 || bytes.len() < length {
            return Err(format!("attribute {number} with a name of {name} and a value of {value} bytes"));
        }
        rest = &bytes[length..];
    }
    if rest.is_empty() { Ok(()) } else { Err(format!("{} bytes after the last attribute", rest.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_attributes_are_read_to_the_last_byte() {
        for good in [&b"\x01\x01\x01\x00a"[..], b"\x01\x02\x01\x00b\x01\x01ax"] {
            assert_eq!(check_xattrs(good), Ok(()));
        }
        for bad in [
            &b""[..],
            b"\x01\x00",
            b"\x02\x01\x01\x00a",
            b"\x01\x01\x00\x01a",
            b"\x01\x01\x01\x01a",
            b"\x01\x01\x01\x00ab",
        ] {
            assert!(check_xattrs(bad).is_err(), "{bad:?}");
        }
    }
}
