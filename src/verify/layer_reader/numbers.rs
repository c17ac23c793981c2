//! Parses the numbers of headers and PAX records.

use crate::metadata::Timestamp;

/// Parses a numeric field of a header: octal digits or, if the highest bit is set, base 256 (GNU tar manual, "Extensions").
///
/// The accessors of the `tar` crate refuse empty fields, which mean 0, and know no negative numbers.
pub(super) fn field(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 { base_256(field) } else { octal(field) }
}

/// Parses octal digits between any number of spaces and NULs. Everything after the first NUL behind the digits is ignored.
fn octal(field: &[u8]) -> Option<i64> {
    let start = field.iter().position(|b| !b" \0".contains(b)).unwrap_or(field.len());
    let digits = field[start..].split(|&b| b == 0).next()?.trim_ascii_end();
    if digits.is_empty() {
        return Some(0);
    }
    // Checked first, because `from_str_radix` also accepts a sign.
    let are_octal = digits.iter().all(|b| (b'0'..=b'7').contains(b));
    i64::from_str_radix(str::from_utf8(digits).ok().filter(|_| are_octal)?, 8).ok()
}

/// Parses a big-endian number in two's complement. The highest bit is not part of the number.
fn base_256(field: &[u8]) -> Option<i64> {
    let is_negative = field[0] & 0x40 != 0;
    let mut bytes = [if is_negative { 0xff } else { 0 }; 16];
    let start = bytes.len() - field.len();
    bytes[start..].copy_from_slice(field);
    if !is_negative {
        bytes[start] &= 0x7f;
    }
    i128::from_be_bytes(bytes).try_into().ok()
}

/// Parses decimal digits, without sign or spaces.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let are_digits = text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| are_digits)?.parse().ok()
}

/// Parses decimal digits after an optional minus.
pub(super) fn signed(text: &[u8]) -> Option<i64> {
    let (sign, digits) = sign(text);
    (sign * i128::from(decimal(digits)?)).try_into().ok()
}

/// Parses seconds with an optional fraction, and rounds down to nanoseconds (POSIX.1-2017, pax, "mtime").
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    const NANOSECONDS: i128 = 1_000_000_000;
    let (sign, text) = sign(text);
    let mut parts = text.splitn(2, |&b| b == b'.');
    let seconds = i128::from(decimal(parts.next()?)?);
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nine: Vec<u8> = fraction.iter().copied().chain(*b"000000000").take(9).collect();
    let rest = fraction.iter().skip(9).any(|&b| b != b'0');
    let mut total = sign * (seconds * NANOSECONDS + i128::from(decimal(&nine)?));
    if sign < 0 && rest {
        total -= 1;
    }
    let nanoseconds = total.rem_euclid(NANOSECONDS) as u32;
    Some(Timestamp { seconds: total.div_euclid(NANOSECONDS).try_into().ok()?, nanoseconds })
}

fn sign(text: &[u8]) -> (i128, &[u8]) {
    text.strip_prefix(b"-").map_or((1, text), |text| (-1, text))
}
