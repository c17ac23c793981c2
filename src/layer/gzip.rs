//! A gzip stream of any number of members (RFC 1952), with or without zeros after the last one.
//!
//! The frame is read here and only the deflate stream inside is left to the library: it can then be reset between
//! members, so that a blob of a million tiny members costs no million allocations.

use std::io::Read;

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::blob::Blob;
use super::{Compression, LayerError};

// Bits of a member's flags (RFC 1952, 2.3.1).
const HEADER_CHECKSUM: u8 = 0x02;
const EXTRA: u8 = 0x04;
const NAME: u8 = 0x08;
const COMMENT: u8 = 0x10;
const RESERVED: u8 = 0xe0;

/// Unpacks the members of one blob.
pub(super) struct Gzip {
    inflate: Decompress,
    crc: Crc,
    state: State,
}

enum State {
    /// At the start of a member, or at the end of them all.
    BetweenMembers,
    InMember,
    AtEnd,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new(false), crc: Crc::new(), state: State::BetweenMembers }
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
        if input.is_empty() {
            return Err(truncated(blob));
        }
        let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
        let status = match self.inflate.decompress(input, out, FlushDecompress::None) {
            Ok(status) => status,
            Err(error) => return Err(damaged(blob, error.message().unwrap_or("it is not a deflate stream"))),
        };
        let used = (self.inflate.total_in() - before_in) as usize;
        let made = (self.inflate.total_out() - before_out) as usize;
        blob.consume(used);
        self.crc.update(&out[..made]);
        if status == Status::StreamEnd {
            self.end_member(blob)?;
        } else if used == 0 && made == 0 {
            return Err(damaged(blob, "it does not go on"));
        }
        Ok(made)
    }

    fn end_member<R: Read>(&mut self, blob: &mut Blob<R>) -> Result<(), LayerError> {
        let [a, b, c, d, size @ ..]: [u8; 8] = blob.array()?.ok_or_else(|| truncated(blob))?;
        if u32::from_le_bytes([a, b, c, d]) != self.crc.sum() {
            return Err(damaged(blob, "a member's checksum is wrong"));
        }
        // The size is kept modulo 2^32.
        if u32::from_le_bytes(size) != self.inflate.total_out() as u32 {
            return Err(damaged(blob, "a member's size is wrong"));
        }
        self.inflate.reset(false);
        self.crc.reset();
        self.state = State::BetweenMembers;
        Ok(())
    }

    fn next_member<R: Read>(&mut self, blob: &mut Blob<R>) -> Result<State, LayerError> {
        match blob.available()? {
            [] => Ok(State::AtEnd),
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

/// Skips the padding that tapes and some tools leave behind. It must be all zeros.
fn skip_zeros<R: Read>(blob: &mut Blob<R>) -> Result<(), LayerError> {
    loop {
        let padding = blob.available()?;
        if padding.is_empty() {
            return Ok(());
        }
        if padding.iter().any(|&b| b != 0) {
            return Err(damaged(blob, "something else follows it"));
        }
        let count = padding.len();
        blob.consume(count);
    }
}

fn skip_header<R: Read>(blob: &mut Blob<R>) -> Result<(), LayerError> {
    let [magic_1, magic_2, method, flags, ..]: [u8; 10] = blob.array()?.ok_or_else(|| truncated(blob))?;
    if [magic_1, magic_2] != [0x1f, 0x8b] {
        return Err(damaged(blob, "something else follows it"));
    }
    if method != 8 || flags & RESERVED != 0 {
        return Err(damaged(blob, "its header asks for what gzip does not have"));
    }
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

/// Skips up to a NUL and the NUL itself.
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
    LayerError::Truncated { compression: Compression::Gzip, expected: blob.expected_size(), actual: blob.size() }
}

fn damaged<R: Read>(blob: &Blob<R>, reason: &str) -> LayerError {
    LayerError::Damaged { compression: Compression::Gzip, offset: blob.offset(), reason: reason.to_owned() }
}
