//! Unpacks a gzip stream of any number of members (RFC 1952), optionally followed by zeros.
//!
//! A library unpacks only the part after a member's header, so that the state of the library can be reset between members.
//! Therefore a blob of a million tiny members does not need a million allocations.

#[cfg(feature = "isal")]
mod igzip;
#[cfg(any(test, not(feature = "isal")))]
mod zlib_rs;

use std::io::Read;

use super::blob::Blob;
use super::{BlobCompression, LayerError};

#[cfg(feature = "isal")]
use igzip::Member;
#[cfg(not(feature = "isal"))]
use zlib_rs::Member;

// Bits of a member's flag byte (RFC 1952, 2.3.1).
const HEADER_CHECKSUM: u8 = 0x02;
const EXTRA: u8 = 0x04;
const NAME: u8 = 0x08;
const COMMENT: u8 = 0x10;
const RESERVED: u8 = 0xe0;

/// Unpacks the members of one blob.
pub(super) struct Gzip {
    member: Member,
    state: State,
}

enum State {
    /// At the start of a member, or at the end of the blob.
    BetweenMembers,
    InMember,
    AtEnd,
}

/// Result of one call that unpacks a part of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InflateProgress {
    /// Number of input bytes consumed.
    used: usize,
    /// Number of bytes unpacked.
    written: usize,
    /// Whether the member ended, including its checksum and size.
    is_end: bool,
}

/// Description of why a member is damaged.
type Damage = String;

const WRONG_CHECKSUM: &str = "wrong checksum or size at the end of a member";

const TRAILING_DATA: &str = "other data after the last member";

impl Gzip {
    pub(super) fn new() -> Self {
        Self { member: Member::new(), state: State::BetweenMembers }
    }

    /// Unpacks bytes to `out`, which must not be empty. Returns 0 only at the end of the blob.
    pub(super) fn read<R: Read>(&mut self, blob: &mut Blob<R>, out: &mut [u8]) -> Result<usize, LayerError> {
        loop {
            match self.state {
                State::BetweenMembers => self.state = self.next_member(blob)?,
                State::AtEnd => return Ok(0),
                State::InMember => {
                    let count = self.inflate(blob, out)?;
                    if count > 0 {
                        return Ok(count);
                    }
                }
            }
        }
    }

    fn inflate<R: Read>(&mut self, blob: &mut Blob<R>, out: &mut [u8]) -> Result<usize, LayerError> {
        let input = blob.available()?;
        let at_end = input.is_empty();
        let InflateProgress { used, written, is_end } = match self.member.inflate(input, out) {
            Ok(progress) => progress,
            Err(reason) => return Err(damaged(blob, &reason)),
        };
        blob.consume(used);
        if is_end {
            // Another member may follow (RFC 1952, 2.2). eStargz layers have one for each file.
            self.member.reset();
            self.state = State::BetweenMembers;
        // Without this test, a truncated or damaged member would cause an endless loop.
        } else if used == 0 && written == 0 {
            return Err(if at_end { truncated(blob) } else { damaged(blob, "decompressor makes no progress") });
        }
        Ok(written)
    }

    fn next_member<R: Read>(&mut self, blob: &mut Blob<R>) -> Result<State, LayerError> {
        match blob.available()? {
            [] => Ok(State::AtEnd),
            // GNU gzip ignores zeros after the last member, too.
            [0, ..] => {
                skip_zeros(blob)?;
                Ok(State::AtEnd)
            }
            _ => {
                skip_header(blob)?;
                Ok(State::InMember)
            }
        }
    }
}

/// Skips the zero padding that tapes and some tools append. Any other byte is an error.
fn skip_zeros<R: Read>(blob: &mut Blob<R>) -> Result<(), LayerError> {
    loop {
        let padding = blob.available()?;
        if padding.is_empty() {
            return Ok(());
        }
        if padding.iter().any(|&b| b != 0) {
            return Err(damaged(blob, TRAILING_DATA));
        }
        let count = padding.len();
        blob.consume(count);
    }
}

fn skip_header<R: Read>(blob: &mut Blob<R>) -> Result<(), LayerError> {
    let [magic_1, magic_2, method, flags, ..]: [u8; 10] = blob.array()?.ok_or_else(|| truncated(blob))?;
    if [magic_1, magic_2] != [0x1f, 0x8b] {
        return Err(damaged(blob, TRAILING_DATA));
    }
    // RFC 1952, 2.3.1.2: a decompressor must refuse reserved bits, because they may stand for fields that it cannot skip.
    if method != 8 || flags & RESERVED != 0 {
        return Err(damaged(blob, "unknown method or reserved flag in a member's header"));
    }
    // The optional fields have a fixed order (RFC 1952, 2.3).
    if flags & EXTRA != 0 {
        let length = blob.array()?.ok_or_else(|| truncated(blob))?;
        skip(blob, usize::from(u16::from_le_bytes(length)))?;
    }
    if flags & NAME != 0 {
        skip_text(blob)?;
    }
    if flags & COMMENT != 0 {
        skip_text(blob)?;
    }
    // The checksum of the header is not compared, because the digest of the blob covers the header.
    if flags & HEADER_CHECKSUM != 0 {
        skip(blob, 2)?;
    }
    Ok(())
}

fn skip<R: Read>(blob: &mut Blob<R>, mut count: usize) -> Result<(), LayerError> {
    while count > 0 {
        let available = blob.available()?.len().min(count);
        if available == 0 {
            return Err(truncated(blob));
        }
        blob.consume(available);
        count -= available;
    }
    Ok(())
}

/// Skips a text that ends with a NUL, including the NUL.
fn skip_text<R: Read>(blob: &mut Blob<R>) -> Result<(), LayerError> {
    loop {
        let available = blob.available()?;
        if available.is_empty() {
            return Err(truncated(blob));
        }
        let end = available.iter().position(|&b| b == 0);
        let count = end.map_or(available.len(), |end| end + 1);
        blob.consume(count);
        if end.is_some() {
            return Ok(());
        }
    }
}

fn truncated<R: Read>(blob: &Blob<R>) -> LayerError {
    LayerError::Truncated { compression: BlobCompression::Gzip, expected: blob.expected_size(), actual: blob.size() }
}

fn damaged<R: Read>(blob: &Blob<R>, reason: &str) -> LayerError {
    LayerError::Damaged { compression: BlobCompression::Gzip, offset: blob.offset(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    /// Returns a member without its header.
    fn member(plain: &[u8], level: u32) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap().split_off(10)
    }

    /// Unpacks a member from inputs of `step` bytes into outputs of `room` bytes. Returns the content and the input size.
    fn unpack(
        mut inflate: impl FnMut(&[u8], &mut [u8]) -> Result<InflateProgress, Damage>,
        blob: &[u8],
        step: usize,
        room: usize,
    ) -> Result<(Vec<u8>, usize), Damage> {
        let (mut plain, mut out, mut position) = (Vec::new(), vec![0; room], 0);
        loop {
            let input = &blob[position..blob.len().min(position + step)];
            let InflateProgress { used, written, is_end } = inflate(input, &mut out)?;
            position += used;
            plain.extend_from_slice(&out[..written]);
            if is_end {
                return Ok((plain, position));
            }
            if used + written == 0 {
                return Err("cut off".to_owned());
            }
        }
    }

    proptest! {
        #[test]
        fn all_libraries_unpack_the_same_bytes(
            words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..40),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..3000),
            level in 0_u32..10,
            step in 1_usize..3000,
            room in 1_usize..9000,
            damage in prop::option::of((any::<prop::sample::Index>(), 1_u8..)),
        ) {
            let plain: Vec<u8> = order.iter().flat_map(|index| index.get(&words).clone()).collect();
            let mut blob = member(&plain, level);
            let length = blob.len();
            if let Some((position, bits)) = damage {
                blob[position.index(length)] ^= bits;
            }
            blob.extend_from_slice(b"the next member");
            let (mut chosen, mut other) = (Member::new(), zlib_rs::Member::new());
            let first = unpack(|input, out| chosen.inflate(input, out), &blob, step, room);
            let second = unpack(|input, out| other.inflate(input, out), &blob, step, room);
            if damage.is_none() {
                prop_assert_eq!(&first, &Ok((plain, length)));
            }
            // The libraries may describe damage in different words.
            prop_assert_eq!(first.ok(), second.ok());
            chosen.reset();
            other.reset();
            let (again, expected) = (member(b"again", 6), b"again".to_vec());
            let first = unpack(|input, out| chosen.inflate(input, out), &again, step, room);
            let second = unpack(|input, out| other.inflate(input, out), &again, step, room);
            prop_assert_eq!(&first, &Ok((expected, again.len())));
            prop_assert_eq!(first, second);
        }
    }
}
