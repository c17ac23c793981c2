//! Unpacks a blob. The compression is detected from the content, not from the media type, because registries state wrong ones.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::LayerError;
use super::blob::Blob;
use super::gzip::Gzip;

/// Maximum window of a zstd frame, as in the `zstd` program by default: 2^27 bytes, 128 MiB.
// A frame states its window, for which the decoder must have memory (RFC 8878, 3.1.1.1.2). A hostile frame could state
// gigabytes.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobCompression {
    /// Not compressed: the blob is the tar archive itself.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

impl BlobCompression {
    /// Detects the compression from the first four bytes of a blob, or fewer if the blob is shorter.
    fn of(start: &[u8]) -> Self {
        match start {
            // ID1 and ID2 of a gzip member (RFC 1952, 2.3.1).
            [0x1f, 0x8b, ..] => Self::Gzip,
            // The magic numbers of a data frame and of a skippable frame, which may come first (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Self::Zstd,
            _ => Self::None,
        }
    }
}

impl fmt::Display for BlobCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Unpacks a blob of `size` bytes with the decompressors that layers use. The caller must verify the digest.
pub fn unpack<R: Read>(blob: R, size: u64) -> Result<impl Read, LayerError> {
    Ok(Unpacked(Unpacker::new(Blob::new(blob, size))?))
}

struct Unpacked<R>(Unpacker<R>);

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // `Read` permits an empty buffer, for which `Unpacker::read` has no answer but "end of the blob".
        if out.is_empty() { Ok(0) } else { self.0.read(out).map_err(io::Error::other) }
    }
}

/// Unpacks a blob to its end.
pub(super) struct Unpacker<R> {
    pub(super) blob: Blob<R>,
    format: Format,
}

enum Format {
    Plain,
    Gzip(Box<Gzip>),
    Zstd(Zstd),
}

impl<R: Read> Unpacker<R> {
    pub(super) fn new(mut blob: Blob<R>) -> Result<Self, LayerError> {
        let format = match BlobCompression::of(blob.peek(4)?) {
            BlobCompression::None => Format::Plain,
            BlobCompression::Gzip => Format::Gzip(Box::new(Gzip::new())),
            BlobCompression::Zstd => Format::Zstd(Zstd::new()?),
        };
        Ok(Self { blob, format })
    }

    pub(super) fn compression(&self) -> BlobCompression {
        match self.format {
            Format::Plain => BlobCompression::None,
            Format::Gzip(_) => BlobCompression::Gzip,
            Format::Zstd(_) => BlobCompression::Zstd,
        }
    }

    /// Unpacks bytes to `out`, which must not be empty. Returns 0 only at the end of the blob.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, LayerError> {
        match &mut self.format {
            Format::Plain => self.blob.read(out),
            Format::Gzip(gzip) => gzip.read(&mut self.blob, out),
            Format::Zstd(zstd) => zstd.read(&mut self.blob, out),
        }
    }
}

struct Zstd {
    decoder: Decoder<'static>,
    in_frame: bool,
}

impl Zstd {
    fn new() -> Result<Self, LayerError> {
        let mut decoder = Decoder::new().map_err(LayerError::Read)?;
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(LayerError::Read)?;
        Ok(Self { decoder, in_frame: false })
    }

    fn read<R: Read>(&mut self, blob: &mut Blob<R>, out: &mut [u8]) -> Result<usize, LayerError> {
        let compression = BlobCompression::Zstd;
        loop {
            let input = blob.available()?;
            let at_end = input.is_empty();
            // A blob is any number of frames (RFC 8878, 3.1), so it can only end between two of them.
            if at_end && !self.in_frame {
                return Ok(0);
            }
            let mut input = InBuffer::around(input);
            let mut output = OutBuffer::around(&mut *out);
            // Called with empty input, too: the decoder may hold bytes for which the previous `out` had no room.
            let outcome = self.decoder.run(&mut input, &mut output);
            let (used, written) = (input.pos(), output.pos());
            // Before the error is created, because the error states the position after the consumed bytes.
            blob.consume(used);
            let wanted = outcome.map_err(|error| LayerError::Damaged {
                compression,
                offset: blob.offset(),
                reason: error.to_string(),
            })?;
            // The decoder returns 0 only when a frame is complete and all its bytes were written.
            self.in_frame = wanted > 0;
            if written > 0 {
                return Ok(written);
            }
            if at_end && self.in_frame {
                let (expected, actual) = (blob.expected_size(), blob.size());
                return Err(LayerError::Truncated { compression, expected, actual });
            }
        }
    }
}
