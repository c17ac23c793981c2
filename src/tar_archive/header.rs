//! Parses one tar header block, in the dialects V7, ustar, star and GNU.

use super::MemberError;
use super::sparse::Segment;
use super::stream::BLOCK_SIZE;

/// A header block.
pub(crate) struct Header([u8; BLOCK_SIZE]);

/// Tar dialect of a header. The dialects use some of the bytes for different fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    pub(super) fn new(block: [u8; BLOCK_SIZE]) -> Self {
        Self(block)
    }

    /// Returns whether the block is all zeros, as at the end of an archive.
    pub(super) fn is_zero(&self) -> bool {
        self.0 == [0; BLOCK_SIZE]
    }

    /// Returns whether the checksum is valid. It is the sum of all bytes of the block, with the checksum itself counted as
    /// spaces. Some old programs added the bytes as signed numbers, and that sum is valid, too.
    pub(super) fn has_valid_checksum(&self) -> bool {
        let others = || self.0[..148].iter().chain(&self.0[156..]);
        // POSIX (ustar, `chksum`): the checksum field itself counts as eight spaces.
        let unsigned = others().map(|&b| i64::from(b)).sum::<i64>() + 8 * i64::from(b' ');
        let negative = others().filter(|&&b| b >= 0x80).count() as i64;
        number(&self.0[148..156]).is_some_and(|sum| sum == unsigned || sum == unsigned - 256 * negative)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// Returns the path in the header, which an extension header may override.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            // star has access and change time in the last 24 bytes of the prefix.
            Dialect::Star => text(&self.0[345..476]),
            // GNU headers have times and the map of sparse files here, V7 headers nothing that is defined.
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_target(&self) -> &[u8] {
        text(&self.0[157..257])
    }

    pub(crate) fn mode(&self) -> Result<i64, MemberError> {
        number(&self.0[100..108]).ok_or(MemberError::Number("mode"))
    }

    pub(crate) fn uid(&self) -> Result<i64, MemberError> {
        number(&self.0[108..116]).ok_or(MemberError::Number("uid"))
    }

    pub(crate) fn gid(&self) -> Result<i64, MemberError> {
        number(&self.0[116..124]).ok_or(MemberError::Number("gid"))
    }

    pub(super) fn size(&self) -> Result<u64, MemberError> {
        unsigned(&self.0[124..136], "size")
    }

    pub(crate) fn mtime(&self) -> Result<i64, MemberError> {
        number(&self.0[136..148]).ok_or(MemberError::Number("mtime"))
    }

    /// Returns the major and minor device number. V7 has no fields for these numbers, so both are 0.
    pub(crate) fn device(&self) -> Result<(i64, i64), MemberError> {
        if self.dialect() == Dialect::V7 {
            return Ok((0, 0));
        }
        let part = |bytes| number(bytes).ok_or(MemberError::Number("device number"));
        Ok((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }

    pub(super) fn is_gnu(&self) -> bool {
        self.dialect() == Dialect::Gnu
    }

    /// Returns the size in bytes, including holes, of the sparse file that this GNU header describes.
    pub(super) fn sparse_size(&self) -> Result<u64, MemberError> {
        unsigned(&self.0[483..495], "size of the sparse file")
    }

    /// Appends the data segments of a sparse file in this GNU header.
    pub(super) fn read_sparse_segments(&self, segments: &mut Vec<Segment>) -> Result<(), MemberError> {
        // `struct oldgnu_header` has four rows, and a flag after them (GNU tar manual, "Basic Tar Format").
        read_sparse_segments(&self.0[386..482], segments)
    }

    /// Returns whether a block with more segments follows this header of a sparse file.
    pub(super) fn map_continues(&self) -> bool {
        self.is_gnu() && self.0[482] != 0
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            // star writes the magic of ustar and a second one at the end of the block, so this must be tested before ustar.
            [b'u', b's', b't', b'a', b'r', 0, ..] if self.0[508..] == *b"tar\0" => Dialect::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }
}

/// A block that continues the map of a sparse file in a GNU header.
// `struct sparse_header` has 21 rows, and a flag after them (GNU tar manual, "Basic Tar Format").
pub(super) struct MapBlock(pub(super) [u8; BLOCK_SIZE]);

impl MapBlock {
    /// Appends the data segments.
    pub(super) fn read_sparse_segments(&self, segments: &mut Vec<Segment>) -> Result<(), MemberError> {
        read_sparse_segments(&self.0[..504], segments)
    }

    /// Returns whether another such block follows.
    pub(super) fn map_continues(&self) -> bool {
        self.0[504] != 0
    }
}

fn read_sparse_segments(table: &[u8], segments: &mut Vec<Segment>) -> Result<(), MemberError> {
    // A table that is not full ends at the first row without an offset.
    for row in table.chunks_exact(24).take_while(|row| row[0] != 0) {
        let offset = unsigned(&row[..12], "offset in the map of the sparse file")?;
        let length = unsigned(&row[12..], "length in the map of the sparse file")?;
        segments.push(Segment { offset, length });
    }
    Ok(())
}

/// Returns a field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

fn unsigned(field: &[u8], name: &'static str) -> Result<u64, MemberError> {
    number(field).and_then(|number| u64::try_from(number).ok()).ok_or(MemberError::Number(name))
}

/// Parses a numeric field. The field contains octal digits, which spaces or NULs may surround; a field without digits means
/// 0. If the highest bit of the first byte is set, the field contains a number in base 256 (GNU).
fn number(field: &[u8]) -> Option<i64> {
    // GNU tar's form for numbers that do not fit in octal digits, such as a UID above 2,097,151.
    if field.first()? & 0x80 != 0 {
        return base_256(field);
    }
    let is_blank = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !is_blank(b)).unwrap_or(field.len());
    let digits = text(&field[start..]).trim_ascii_end();
    let digit = |b: &u8| matches!(b, b'0'..=b'7').then(|| i64::from(b - b'0'));
    digits.iter().try_fold(0_i64, |value, b| Some(value << 3 | digit(b)?))
}

/// Parses a base-256 number: big-endian two's complement. The highest bit of the field only marks base 256, and is not part
/// of the number.
fn base_256(field: &[u8]) -> Option<i64> {
    // The bit below the marker is the sign, as in Go's reader.
    let is_negative = field[0] & 0x40 != 0;
    let high = if is_negative { field[0] | 0x80 } else { field[0] & 0x7f };
    let sign = if is_negative { -1_i128 } else { 0 };
    // A field has at most 12 bytes, so an i128 cannot overflow.
    let value = [high].iter().chain(&field[1..]).fold(sign, |value, &b| value << 8 | i128::from(b));
    i64::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_number_may_have_spaces_or_nuls_on_both_sides() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"6 44\0\0\0\0", None),
            (b"0x1ff\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn base_256_number_is_accepted_if_it_fits_into_a_signed_64_bit_number() {
        let field = |value: i128| {
            let mut field: [u8; 12] = value.to_be_bytes()[4..].try_into().unwrap();
            field[0] |= 0x80;
            field
        };
        for value in [0, 1, -1, 1 << 40, -(1 << 40), i64::MAX.into(), i64::MIN.into()] {
            assert_eq!(number(&field(value)).map(i128::from), Some(value));
        }
        for value in [i128::from(i64::MAX) + 1, i128::from(i64::MIN) - 1] {
            assert_eq!(number(&field(value)), None);
        }
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Some(0xffff_ffff));
        assert_eq!(number(&[0xff; 8]), Some(-1));
    }
}
