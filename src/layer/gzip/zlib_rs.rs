//! Unpacks the deflate stream of a gzip member with zlib-rs.

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::{Damage, InflateProgress, WRONG_CHECKSUM};

/// Size of the trailer in bytes: a checksum and a size of four bytes each.
const TRAILER_SIZE: usize = 8;

/// Decompressor for the part of a member after its header. Reused for all members.
pub(super) struct Member {
    inflate: Decompress,
    crc: Crc,
    /// Bytes read of the trailer; `None` until the deflate stream has ended.
    trailer: Option<Vec<u8>>,
}

impl Member {
    pub(super) fn new() -> Self {
        // `false`: the stream has no zlib header. `Gzip` reads the gzip header itself.
        Self { inflate: Decompress::new(false), crc: Crc::new(), trailer: None }
    }

    /// Resets the state for the next member.
    pub(super) fn reset(&mut self) {
        self.inflate.reset(false);
        self.crc.reset();
        self.trailer = None;
    }

    /// Unpacks from `input` to `out`. Empty input means the end of the blob.
    pub(super) fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> Result<InflateProgress, Damage> {
        if self.trailer.is_some() {
            return self.end(input, InflateProgress { used: 0, written: 0, is_end: false });
        }
        let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(input, out, FlushDecompress::None);
        let status = status.map_err(|error| error.message().unwrap_or("not a valid deflate stream").to_owned())?;
        let used = (self.inflate.total_in() - before_in) as usize;
        let written = (self.inflate.total_out() - before_out) as usize;
        self.crc.update(&out[..written]);
        let progress = InflateProgress { used, written, is_end: false };
        if status != Status::StreamEnd {
            return Ok(progress);
        }
        self.trailer = Some(Vec::with_capacity(TRAILER_SIZE));
        self.end(&input[used..], progress)
    }

    /// Reads the trailer after the deflate stream. `progress` is what this call has done so far.
    fn end(&mut self, input: &[u8], progress: InflateProgress) -> Result<InflateProgress, Damage> {
        let trailer = self.trailer.as_mut().expect("the deflate stream is at its end");
        let count = input.len().min(TRAILER_SIZE - trailer.len());
        trailer.extend_from_slice(&input[..count]);
        let is_end = trailer.len() == TRAILER_SIZE;
        // The trailer states the size modulo 2^32 (RFC 1952, ISIZE).
        let expected = [self.crc.sum().to_le_bytes(), (self.inflate.total_out() as u32).to_le_bytes()].concat();
        if is_end && *trailer != expected {
            return Err(WRONG_CHECKSUM.to_owned());
        }
        Ok(InflateProgress { used: progress.used + count, is_end, ..progress })
    }
}
