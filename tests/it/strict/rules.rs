//! The rules for a single row.

use std::collections::BTreeMap;

use super::Findings;
use super::catalog::Row;

pub const DIRECTORY: i64 = 1;
pub const MOUNTPOINT: i64 = 2;
pub const FILE: i64 = 4;
pub const SYMLINK: i64 = 8;
pub const SPECIAL: i64 = 16;
pub const NESTED_ROOT: i64 = 32;
pub const CHUNKED: i64 = 64;
pub const EXTERNAL: i64 = 128;
pub const HASH_ALGORITHM: i64 = 0x700;
pub const UNCOMPRESSED: i64 = 0x800;
pub const BIND_MOUNTPOINT: i64 = 0x4000;
pub const HIDDEN: i64 = 0x8000;

/// Types of entries that a mode can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    Regular,
    Symlink,
    Device,
    FifoOrSocket,
}

impl Kind {
    /// Reads the kind off the type bits of a mode.
    pub fn of(mode: i64) -> Option<Self> {
        match mode & !0o7777 {
            0o040000 => Some(Self::Directory),
            0o100000 => Some(Self::Regular),
            0o120000 => Some(Self::Symlink),
            0o020000 | 0o060000 => Some(Self::Device),
            0o010000 | 0o140000 => Some(Self::FifoOrSocket),
            _ => None,
        }
    }
}

/// Facts about a row from other tables of the catalog.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    /// The row is the root entry of a nested catalog.
    pub is_nested_root: bool,
    /// `nested_catalogs` has its path.
    pub is_mountpoint: bool,
    /// `bind_mountpoints` has its path.
    pub is_bind_mountpoint: bool,
    /// `chunks` has rows for it.
    pub has_chunks: bool,
}

/// Checks a row, without other rows and objects.
pub fn check_row(place: &str, row: &Row, surroundings: Surroundings, findings: &mut Findings) {
    let Some(kind) = Kind::of(row.mode) else {
        findings.note(place, "a mode with a known file type", format_args!("{:o}", row.mode));
        return;
    };
    check_flags(place, row, kind, surroundings, findings);
    check_hash(place, row, kind, findings);
    check_size(place, row, kind, findings);
    check_links(place, row, kind, findings);
    if kind != Kind::Symlink {
        findings.require(place, "link target", "".to_owned(), row.symlink.escape_ascii().to_string());
    } else if row.symlink.is_empty() || row.symlink.contains(&0) {
        findings.note(place, "a link target", format_args!("{:?}", row.symlink.escape_ascii().to_string()));
    }
    if row.mtimens.is_some_and(|nanoseconds| !(0..1_000_000_000).contains(&nanoseconds)) {
        findings.note(place, "mtimens below a second", format_args!("{:?}", row.mtimens));
    }
    for (column, id) in [("uid", row.uid), ("gid", row.gid)] {
        if u32::try_from(id).is_err() {
            findings.note(place, format_args!("{column} of 32 bits"), id);
        }
    }
    if let Some(blob) = &row.xattr
        && let Err(found) = read_xattrs(blob)
    {
        findings.note(place, "a well-formed xattr blob", found);
    }
}

/// Checks every bit of the flags. Only bits that the format leaves open are taken from the flags themselves.
fn check_flags(place: &str, row: &Row, kind: Kind, surroundings: Surroundings, findings: &mut Findings) {
    let choices = match kind {
        Kind::Regular => HASH_ALGORITHM | UNCOMPRESSED | EXTERNAL | HIDDEN,
        _ => HIDDEN,
    };
    let when = |condition: bool, flag: i64| if condition { flag } else { 0 };
    let demanded = match kind {
        Kind::Directory => {
            DIRECTORY
                | when(surroundings.is_nested_root, NESTED_ROOT)
                | when(surroundings.is_mountpoint, MOUNTPOINT)
                | when(surroundings.is_bind_mountpoint, BIND_MOUNTPOINT)
        }
        Kind::Regular => FILE | when(surroundings.has_chunks, CHUNKED),
        Kind::Symlink => FILE | SYMLINK,
        Kind::Device | Kind::FifoOrSocket => FILE | SPECIAL,
    };
    findings.require(place, "flags", demanded | (row.flags & choices), row.flags);
}

fn check_hash(place: &str, row: &Row, kind: Kind, findings: &mut Findings) {
    match (&row.hash, kind) {
        (Some(hash), Kind::Regular) if hash.len() == 20 && hash.iter().any(|&byte| byte != 0) => {}
        (None, Kind::Regular) if row.flags & CHUNKED != 0 => {}
        (Some(hash), Kind::Regular) => findings.note(place, "a hash of 20 bytes", format_args!("{hash:02x?}")),
        (None, Kind::Regular) => findings.note(place, "the hash of a regular file", "NULL"),
        (Some(hash), _) => findings.note(place, "no hash", format_args!("{hash:02x?}")),
        (None, _) => {}
    }
}

fn check_size(place: &str, row: &Row, kind: Kind, findings: &mut Findings) {
    match kind {
        Kind::Symlink => findings.require(place, "size of the link target", row.symlink.len() as i64, row.size),
        Kind::FifoOrSocket => findings.require(place, "size", 0, row.size),
        // Clients pass 12 bits of the major and 20 bits of the minor number on.
        Kind::Device if u32::try_from(row.size).is_err() => {
            findings.note(place, "a device number of 32 bits", row.size)
        }
        Kind::Device => {}
        Kind::Directory | Kind::Regular if row.size < 0 => findings.note(place, "a size", row.size),
        Kind::Directory | Kind::Regular => {}
    }
}

fn check_links(place: &str, row: &Row, kind: Kind, findings: &mut Findings) {
    let is_lawful = match kind {
        Kind::Directory => row.linkcount >= 2 && row.link_group == 0,
        _ => row.linkcount == 1 && row.link_group == 0 || row.linkcount > 1 && row.link_group > 0,
    };
    if !is_lawful {
        let found = format!("link count {} in group {}", row.linkcount, row.link_group);
        findings.note(place, "a group where, and only where, a file has several links", found);
    }
}

/// Checks a row's own name. With `is_repository_root`, it must be empty.
pub fn check_name(place: &str, name: &[u8], is_repository_root: bool, findings: &mut Findings) {
    let is_component =
        !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.iter().any(|b| b"/\0".contains(b));
    if is_repository_root != name.is_empty() || !(name.is_empty() || is_component) {
        let expected = if is_repository_root { "an empty name" } else { "a name that is one path component" };
        findings.note(place, expected, format_args!("'{}'", name.escape_ascii()));
    }
}

/// Reads an xattr blob. An error describes its fault.
pub fn read_xattrs(blob: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let (count, mut rest) = match blob {
        [1, count, rest @ ..] if *count > 0 => (*count, rest),
        _ => return Err(format!("the head {:?}", &blob[..blob.len().min(2)])),
    };
    let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for number in 1..=count {
        let [key_length, value_length, pairs @ ..] = rest else {
            return Err(format!("the end before attribute {number}"));
        };
        let (key_length, value_length) = (usize::from(*key_length), usize::from(*value_length));
        if key_length == 0 || pairs.len() < key_length + value_length {
            return Err(format!("attribute {number} with a key of {key_length} and a value of {value_length} bytes"));
        }
        let (key, pairs) = pairs.split_at(key_length);
        let (value, pairs) = pairs.split_at(value_length);
        if key.contains(&0) || xattrs.last_key_value().is_some_and(|(last, _)| last.as_slice() >= key) {
            return Err(format!("key '{}' out of order", key.escape_ascii()));
        }
        xattrs.insert(key.to_vec(), value.to_vec());
        rest = pairs;
    }
    if rest.is_empty() { Ok(xattrs) } else { Err(format!("{} bytes after the last attribute", rest.len())) }
}
