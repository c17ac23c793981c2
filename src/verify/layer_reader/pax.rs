//! PAX records (POSIX.1-2017, pax, "pax Extended Header").
//!
//! The parser of the `tar` crate ends a record at its first line feed, but values may contain line feeds, as those of binary
//! attributes do. Only the length at the start of a record says where the record ends.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::error::EntryProblem;
use super::numbers::{decimal, signed, time};
use super::sparse::SparseRecords;
use crate::metadata::{Timestamp, Xattrs};

/// Keys and values in the order of the header.
pub(super) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Maximum number of digits of a record's length. No header has room for a longer record.
const MAX_LENGTH_DIGITS: usize = 19;

/// Base64 whose padding was removed. The bits that fill the last character may have any value.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// Splits the content of a PAX header into records, `LENGTH KEY=VALUE\n` each.
pub(super) fn split(mut data: &[u8]) -> Result<Records, EntryProblem> {
    let mut records = Records::new();
    while !data.is_empty() {
        let (record, rest) = first_record(data).ok_or(EntryProblem::Record)?;
        let equals = record.iter().position(|&b| b == b'=').filter(|&at| at > 0).ok_or(EntryProblem::Record)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = rest;
    }
    Ok(records)
}

/// Returns `KEY=VALUE` of the first record, and the records after it.
fn first_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let digits = data.iter().position(|&b| b == b' ').filter(|&digits| digits <= MAX_LENGTH_DIGITS)?;
    let length = usize::try_from(decimal(&data[..digits])?).ok()?;
    let (record, rest) = data.split_at_checked(length)?;
    Some((record.get(digits + 1..)?.strip_suffix(b"\n")?, rest))
}

/// What the records of one member state.
///
/// Of several records with one key, the last one counts. An empty value means that the member has no such property.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) device_major: Option<i64>,
    pub(super) device_minor: Option<i64>,
    pub(super) has_acl: bool,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: SparseRecords,
}

impl Pax {
    /// Interprets the records of a member. Every number must be valid, even if a later record replaces it.
    pub(super) fn of(records: &Records) -> Result<Self, EntryProblem> {
        Ok(Self {
            path: last(records, b"path", "path", |value| Some(value.to_vec()))?,
            link: last(records, b"linkpath", "linkpath", |value| Some(value.to_vec()))?,
            size: last(records, b"size", "size", decimal)?,
            uid: last(records, b"uid", "uid", signed)?,
            gid: last(records, b"gid", "gid", signed)?,
            mtime: last(records, b"mtime", "mtime", time)?,
            device_major: last(records, b"SCHILY.devmajor", "device number", signed)?,
            device_minor: last(records, b"SCHILY.devminor", "device number", signed)?,
            has_acl: with_prefix(records, b"SCHILY.acl.").any(|(_, value)| !value.is_empty()),
            xattrs: xattrs(records)?,
            sparse: SparseRecords::of(with_prefix(records, b"GNU.sparse."))?,
        })
    }
}

fn last<T>(
    records: &Records,
    key: &[u8],
    name: &'static str,
    parse: fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, EntryProblem> {
    let mut last = None;
    for (_, value) in records.iter().filter(|record| record.0 == key) {
        last = if value.is_empty() { None } else { Some(parse(value).ok_or(EntryProblem::Number(name))?) };
    }
    Ok(last)
}

/// Returns the records whose keys start with `prefix`, without the prefix.
fn with_prefix<'r>(records: &'r Records, prefix: &'static [u8]) -> impl Iterator<Item = (&'r [u8], &'r [u8])> {
    records.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value.as_slice())))
}

/// Returns the extended attributes. A record of star (`SCHILY`) counts more than one of libarchive.
///
/// Go's reader treats an empty value as absent, so podman and umoci never see such an attribute.
fn xattrs(records: &Records) -> Result<Xattrs, EntryProblem> {
    let mut xattrs = Xattrs::new();
    for (name, value) in with_prefix(records, b"LIBARCHIVE.xattr.") {
        let padding = value.iter().rev().take_while(|&&b| b == b'=').count();
        let value = BASE64.decode(&value[..value.len() - padding]).map_err(|_| EntryProblem::Record)?;
        xattrs.insert(percent_decoded(name).into(), value.into());
    }
    xattrs.extend(with_prefix(records, b"SCHILY.xattr.").map(|(name, value)| (name.into(), value.into())));
    xattrs.retain(|_, value| !value.is_empty());
    Ok(xattrs)
}

/// Replaces `%` and two hexadecimal digits by the byte. Any other `%` stands for itself (libarchive, `url_decode`).
fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < name.len() {
        let code = name[at..].strip_prefix(b"%").and_then(|after| after.get(..2)).and_then(hexadecimal);
        decoded.push(code.unwrap_or(name[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    decoded
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    let are_digits = digits.iter().all(u8::is_ascii_hexdigit);
    u8::from_str_radix(str::from_utf8(digits).ok().filter(|_| are_digits)?, 16).ok()
}
