//! Parses the records of PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").

use super::MemberError;
use super::sparse::SparseRecords;
use crate::metadata::{Timestamp, Xattrs};

/// Values that extended headers state for a member. If a value is absent, the value in the header block applies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extended {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link_target: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) device_major: Option<i64>,
    pub(crate) device_minor: Option<i64>,
    pub(crate) has_acl: bool,
    pub(super) sparse: SparseRecords,
    schily_xattrs: Xattrs,
    libarchive_xattrs: Xattrs,
}

impl Extended {
    /// Applies the records of an `x` header in order. A record with an empty value removes the value of an earlier record
    /// with the same key.
    pub(super) fn apply(&mut self, records: &[u8]) -> Result<(), MemberError> {
        let mut rest = records;
        while !rest.is_empty() {
            let (key, value, after) = split_record(rest).ok_or(MemberError::Record)?;
            self.set(key, value)?;
            rest = after;
        }
        Ok(())
    }

    /// Removes and returns the extended attributes, by their full names. Attributes in `SCHILY` records, which every program
    /// writes, override those in `LIBARCHIVE` records.
    ///
    /// An attribute with an empty value is dropped: Go's reader treats an empty value as absence, as in any other record, and so
    /// do umoci and podman.
    pub(crate) fn take_xattrs(&mut self) -> Xattrs {
        let mut xattrs = std::mem::take(&mut self.libarchive_xattrs);
        xattrs.append(&mut self.schily_xattrs);
        xattrs.retain(|_, value| !value.is_empty());
        xattrs
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), MemberError> {
        match key {
            // POSIX (pax, "pax Extended Header"): an empty value deletes what an earlier record stated.
            b"path" => self.path = some_unless_empty(value),
            b"linkpath" => self.link_target = some_unless_empty(value),
            b"size" => self.size = parsed(value, decimal, "size")?,
            b"uid" => self.uid = parsed(value, signed, "uid")?,
            b"gid" => self.gid = parsed(value, signed, "gid")?,
            b"mtime" => self.mtime = parsed(value, timestamp, "mtime")?,
            b"SCHILY.devmajor" => self.device_major = parsed(value, signed, "device number")?,
            b"SCHILY.devminor" => self.device_minor = parsed(value, signed, "device number")?,
            _ => self.set_by_prefix(key, value)?,
        }
        Ok(())
    }

    fn set_by_prefix(&mut self, key: &[u8], value: &[u8]) -> Result<(), MemberError> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.schily_xattrs.insert(name.into(), value.into());
        // libarchive's tar(5): the name is URL-encoded, the value base64.
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decoded(name).ok_or(MemberError::Record)?;
            let value = base64_decoded(value).ok_or(MemberError::Record)?;
            self.libarchive_xattrs.insert(name.into(), value.into());
        } else if key.starts_with(b"SCHILY.acl.") {
            self.has_acl |= !value.is_empty();
        } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            self.sparse.set(key, value)?;
        }
        Ok(())
    }
}

/// Returns an error if a record is malformed, even if its key is ignored.
pub(super) fn check_records(records: &[u8]) -> Result<(), MemberError> {
    let mut rest = records;
    while !rest.is_empty() {
        (_, _, rest) = split_record(rest).ok_or(MemberError::Record)?;
    }
    Ok(())
}

/// Splits off the first record, `LENGTH KEY=VALUE\n`, where the length includes the whole record.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // A valid length has fewer than 20 digits, so the search for the space ends there.
    let space = records.iter().take(20).position(|&b| b == b' ')?;
    let length = usize::try_from(decimal(&records[..space])?).ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    // A record with an empty key is malformed, as in Go's reader.
    let equals = record.iter().position(|&b| b == b'=').filter(|&equals| equals > 0)?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

/// Returns `None` for an empty value.
pub(super) fn some_unless_empty(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn parsed<T>(value: &[u8], parse: fn(&[u8]) -> Option<T>, name: &'static str) -> Result<Option<T>, MemberError> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(MemberError::Number(name))
}

/// Parses decimal digits, without sign or spaces.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let digit = |b: &u8| b.is_ascii_digit().then(|| u64::from(b - b'0'));
    let add = |value: u64, b: &u8| value.checked_mul(10)?.checked_add(digit(b)?);
    if digits.is_empty() { None } else { digits.iter().try_fold(0, add) }
}

fn signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0_i64.checked_sub_unsigned(decimal(digits)?),
        None => i64::try_from(decimal(text)?).ok(),
    }
}

/// Parses seconds with or without a fraction, and rounds down to nanoseconds.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (is_negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let point = text.iter().position(|&b| b == b'.').unwrap_or(text.len());
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |n: usize| fraction.get(n).map_or(0, |b| u32::from(b - b'0'));
    let nanoseconds = (0..9).fold(0, |value, n| value * 10 + digit(n));
    if !is_negative {
        return Some(Timestamp { seconds: i64::try_from(decimal(&text[..point])?).ok()?, nanoseconds });
    }
    // Times are rounded down. For a negative time, digits after the ninth therefore mean one nanosecond less.
    let rest = u32::from(fraction.iter().skip(9).any(|&b| b != b'0'));
    let below = nanoseconds + rest;
    let seconds = 0_i64.checked_sub_unsigned(decimal(&text[..point])?)?;
    if below == 0 {
        return Some(Timestamp { seconds, nanoseconds: 0 });
    }
    // The nanosecond part of a time is never negative (`struct timespec`), so the seconds are the next lower number.
    Some(Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - below })
}

/// Decodes percent encoding such as `%3D`. Like libarchive, keeps a `%` that is not followed by two hexadecimal digits.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            // libarchive encodes `%`, `=` and bytes outside of printable ASCII in this way.
            (b'%', &[high, low, ..]) if digit(high).is_some() && digit(low).is_some() => {
                decoded.push(u8::try_from(digit(high)? << 4 | digit(low)?).ok()?);
                rest = &after[2..];
            }
            _ => decoded.push(first),
        }
    }
    Some(decoded)
}

/// Decodes base64 in the standard alphabet (RFC 4648, 4), with or without padding.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let sextet = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let end = text.iter().rposition(|&b| b != b'=').map_or(0, |last| last + 1);
    let mut decoded = Vec::with_capacity(end * 3 / 4);
    for quartet in text[..end].chunks(4) {
        let bits = quartet.iter().try_fold(0_u32, |bits, &b| Some(bits << 6 | u32::from(sextet(b)?)))?;
        let bytes = (bits << (6 * (4 - quartet.len()))).to_be_bytes();
        // A single character encodes only six bits, which is less than a byte.
        let count = quartet.len().checked_sub(1).filter(|&count| count > 0)?;
        decoded.extend_from_slice(&bytes[1..=count]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(records: &[u8]) -> Result<Extended, MemberError> {
        let mut extended = Extended::default();
        extended.apply(records)?;
        Ok(extended)
    }

    #[test]
    fn record_length_must_match_the_record() {
        assert_eq!(applied(b"9 path=a\n12 path=b\nc\n").unwrap().path.unwrap(), b"b\nc");
        for wrong in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"9 path=a ",
            b"9 patha\n\n",
            b"4 =a\n",
            b"0 path=a\n",
            b"+9 path=a\n",
            b" path=a\n",
            b"99999999999999999999 path=a\n",
            b"9 path=a\n\0\0",
            b"9",
        ] {
            assert_eq!(applied(wrong).unwrap_err(), MemberError::Record, "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn empty_value_removes_an_earlier_record() {
        let extended = applied(b"9 uid=12\n7 uid=\n").unwrap();
        assert_eq!(extended.uid, None);
    }

    #[test]
    fn time_is_rounded_down() {
        for (text, seconds, nanoseconds) in [
            (&b"1"[..], 1, 0),
            (b"1.", 1, 0),
            (b"1.5", 1, 500_000_000),
            (b"1.0000000019", 1, 1),
            (b"-1", -1, 0),
            (b"-1.5", -2, 500_000_000),
            (b"-0.25", -1, 750_000_000),
            (b"-0.000000001", -1, 999_999_999),
            (b"-1.0000000001", -2, 999_999_999),
            (b"-1.9999999999", -2, 0),
            (b"9223372036854775807.9", i64::MAX, 900_000_000),
            (b"-9223372036854775808", i64::MIN, 0),
        ] {
            assert_eq!(timestamp(text), Some(Timestamp { seconds, nanoseconds }), "{}", text.escape_ascii());
        }
        for wrong in [&b""[..], b".5", b"-", b"1.x", b"1e3", b"--1", b"9223372036854775808", b"-9223372036854775808.1"]
        {
            assert_eq!(timestamp(wrong), None, "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn libarchive_attributes_are_decoded() {
        assert_eq!(percent_decoded(b"user.a%3Db%2").unwrap(), b"user.a=b%2");
        for (text, decoded) in [
            (&b""[..], Some(&b""[..])),
            (b"AA", Some(b"\0")),
            (b"AA==", Some(b"\0")),
            (b"aGk", Some(b"hi")),
            (b"aGkh", Some(b"hi!")),
            (b"aGkh+/8", Some(b"hi!\xfb\xff")),
            (b"a", None),
            (b"aGkhA", None),
            (b"a-_b", None),
        ] {
            assert_eq!(base64_decoded(text).as_deref(), decoded, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn attribute_with_an_empty_value_is_dropped() {
        let mut extended = applied(
            b"24 SCHILY.xattr.user.a=\n25 SCHILY.xattr.user.b=1\n24 SCHILY.xattr.user.b=\n28 LIBARCHIVE.xattr.user.c=\n",
        )
        .unwrap();
        assert!(extended.take_xattrs().is_empty());
    }

    #[test]
    fn schily_attribute_overrides_libarchive_attribute() {
        let mut extended =
            applied(b"25 SCHILY.xattr.user.a=S\n30 LIBARCHIVE.xattr.user.a=TA\n30 LIBARCHIVE.xattr.user.b=TA\n")
                .unwrap();
        let xattrs = extended.take_xattrs();
        assert_eq!(xattrs[&b"user.a"[..]][..], b"S"[..]);
        assert_eq!(xattrs[&b"user.b"[..]][..], b"L"[..]);
    }
}
