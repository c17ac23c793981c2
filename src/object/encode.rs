//! Encodes content for the store, and decodes stored bytes.
//!
//! Every client can unpack any zlib stream, so the choice of the encoder is free. The encoder is part of the key in the content
//! index, because the same content from another encoder is another object.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use libdeflater::{CompressionLvl, Compressor};

#[cfg(feature = "isal")]
use super::igzip::Igzip;
use super::inflate::{Inflated, Inflater};
use super::size_limit::SizeLimit;
use super::unsupported::UnsupportedCompression;
use super::zlib::StockZlib;

/// Compression mode of a repository's file content. Each mode bounds the size of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Bit-equal to zlib level 6, so that objects deduplicate against those that `cvmfs_server` wrote.
    Exact,
    /// At most 4 % larger than zlib level 6 on real images.
    #[default]
    Balanced,
    /// At most 15 % larger than zlib level 6 on real images; the fastest mode with compression.
    Fast,
    /// Stored uncompressed.
    None,
}

impl Compression {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Exact, "exact"), (Self::Balanced, "balanced"), (Self::Fast, "fast"), (Self::None, "none")];
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) = Self::ALL.iter().find(|(mode, _)| mode == self).expect("every mode has a name");
        f.write_str(name)
    }
}

/// A text is not a compression mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a compression mode: use exact, balanced, fast or none")]
pub struct ParseCompressionError(String);

impl FromStr for Compression {
    type Err = ParseCompressionError;

    fn from_str(text: &str) -> Result<Self, ParseCompressionError> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(mode, _)| *mode).ok_or_else(|| ParseCompressionError(text.to_owned()))
    }
}

/// Identifies an encoder with its version and level: equal IDs mean equal output for equal content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EncoderId(pub u8);

impl Compression {
    /// Returns the ID of this mode's encoder. Every change of an encoder's output requires a new number.
    pub fn encoder_id(self) -> EncoderId {
        EncoderId(match self {
            Self::Exact => 1,
            Self::Balanced => 2,
            // ISA-L and libdeflate write different bytes for the same content, so the two builds must not share index
            // entries.
            Self::Fast if cfg!(feature = "isal") => 5,
            Self::Fast => 3,
            Self::None => 4,
        })
    }

    /// Returns why this mode would be faster in another build, or `None` if this build has the fastest encoder.
    pub fn lack(self) -> Option<&'static str> {
        let is_slower = self == Self::Fast && cfg!(not(feature = "isal"));
        is_slower.then_some(
            "this build of strata lacks ISA-L (feature isal): with ISA-L, compression mode 'fast' takes less time",
        )
    }

    /// Returns library and level of this mode's encoder.
    pub fn encoder_name(self) -> &'static str {
        match self {
            Self::Exact => "zlib 6",
            Self::Balanced => "libdeflate 6",
            Self::Fast if cfg!(feature = "isal") => "ISA-L igzip 2",
            Self::Fast => "libdeflate 1",
            Self::None => "none",
        }
    }
}

/// Minimum size in bytes of content for which samples decide whether it is compressed. For smaller content, samples would
/// cost as much as compression.
const MIN_SAMPLED_SIZE: usize = 128 << 10;
/// Size of each of the three samples in bytes.
// With three samples of this size, libdeflate 6 took 60 s for the content of a 7 GB image on two cores, and 68 s without
// samples.
const SAMPLE_SIZE: usize = 16 << 10;

/// Encodes content. State and buffers are reused.
pub struct Encoder {
    method: Method,
    out: Vec<u8>,
}

enum Method {
    Exact(StockZlib),
    Sampled { main: Engine, sampler: Engine, stored: Engine },
    Raw,
}

/// A library that writes zlib streams.
enum Engine {
    Libdeflate(Compressor),
    #[cfg(feature = "isal")]
    Igzip(Igzip),
}

impl Encoder {
    /// Sets up an encoder for file content.
    pub fn new(compression: Compression) -> Self {
        let method = match compression {
            // Only zlib itself: other libraries write other bytes at the same level, which would be other objects.
            Compression::Exact => Method::Exact(StockZlib::new()),
            // Samples are compressed with a library that every build has, because their result affects the output.
            // libdeflate 6 compresses as well as zlib 6, at 88 instead of 38 MB/s (Python sources and shared libraries).
            Compression::Balanced => Method::sampled(Engine::libdeflate(6), Engine::libdeflate(1)),
            Compression::Fast => Method::sampled(Engine::fastest(), Engine::fastest()),
            Compression::None => Method::Raw,
        };
        Self { method, out: Vec::new() }
    }

    /// Sets up the encoder for catalogs and other databases, which must be zlib streams in every mode. Its output differs between
    /// builds with and without ISA-L.
    pub fn of_databases() -> Self {
        Self { method: Method::sampled(Engine::fastest(), Engine::fastest()), out: Vec::new() }
    }

    /// Returns the bytes that are stored for `plain`.
    pub fn encode<'a>(&'a mut self, plain: &'a [u8]) -> &'a [u8] {
        let out = &mut self.out;
        let length = match &mut self.method {
            Method::Exact(zlib) => zlib.compress(plain, out),
            Method::Sampled { main, sampler, stored } => {
                let shrinks = plain.len() < MIN_SAMPLED_SIZE || sampler.shrinks(plain, out);
                let packed = if shrinks { main.compress(plain, out) } else { None };
                // Level 0 writes stored blocks: still a zlib stream, so that the catalog row needs no other flag.
                packed.or_else(|| stored.compress(plain, out)).expect("libdeflate compresses any content")
            }
            Method::Raw => return plain,
        };
        &out[..length]
    }
}

impl Method {
    fn sampled(main: Engine, sampler: Engine) -> Self {
        Self::Sampled { main, sampler, stored: Engine::libdeflate(0) }
    }
}

impl Engine {
    fn libdeflate(level: i32) -> Self {
        Self::Libdeflate(Compressor::new(CompressionLvl::new(level).expect("levels 0 to 12 exist")))
    }

    /// Returns the fastest library in this build.
    fn fastest() -> Self {
        #[cfg(feature = "isal")]
        return Self::Igzip(Igzip::new());
        #[cfg(not(feature = "isal"))]
        Self::libdeflate(1)
    }

    /// Compresses `plain` into `out`, which is enlarged if necessary, and returns the compressed size. ISA-L returns `None` for
    /// content that does not shrink.
    fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        match self {
            Self::Libdeflate(compressor) => {
                let bound = compressor.zlib_compress_bound(plain.len());
                grow(out, bound);
                Some(compressor.zlib_compress(plain, out).expect("the bound is enough"))
            }
            #[cfg(feature = "isal")]
            Self::Igzip(igzip) => igzip.compress(plain, out),
        }
    }

    /// Returns whether compression saves at least 1/32 of the size of three samples of `plain`.
    fn shrinks(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let last = plain.len() - SAMPLE_SIZE;
        let mut packed = |start| self.compress(&plain[start..start + SAMPLE_SIZE], out).unwrap_or(SAMPLE_SIZE);
        [0, last / 2, last].into_iter().map(&mut packed).sum::<usize>() < 3 * SAMPLE_SIZE / 32 * 31
    }
}

/// Makes `out` at least `length` bytes long. Its content may be lost.
pub(super) fn grow(out: &mut Vec<u8>, length: usize) {
    if out.len() < length {
        // A new zeroed vector instead of `resize`: the old content is not needed, and zeroed memory is not allocated until it is
        // written.
        *out = vec![0; length];
    }
}

/// Errors from decoding stored bytes.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not a zlib stream, or it is damaged.
    #[error("the bytes are not a complete zlib stream")]
    Damaged(#[source] io::Error),
    /// The content is larger than the limit.
    #[error("the object unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes are no zlib stream, but the start of an object that another program compressed. The object is not damaged.
    #[error("the object is compressed with {0}, which strata does not support")]
    Unsupported(UnsupportedCompression),
    /// Other bytes follow the stream.
    #[error("{0} bytes follow the zlib stream")]
    TrailingBytes(u64),
}

/// Unpacks the zlib stream at the start of `stored`.
pub fn decode(stored: &[u8], limit: SizeLimit) -> Result<Vec<u8>, DecodeError> {
    Ok(unpack(stored, limit)?.0)
}

/// Unpacks a zlib stream, after which no other bytes may follow.
pub fn decode_alone(stored: &[u8], limit: SizeLimit) -> Result<Vec<u8>, DecodeError> {
    match unpack(stored, limit)? {
        (plain, read) if read == stored.len() as u64 => Ok(plain),
        (_, read) => Err(DecodeError::TrailingBytes(stored.len() as u64 - read)),
    }
}

/// Returns the content of a zlib stream, and the size of the stream in bytes.
fn unpack(stored: &[u8], limit: SizeLimit) -> Result<(Vec<u8>, u64), DecodeError> {
    let (stated, limit) = (limit.stated(), limit.unpacked(stored.len() as u64));
    // Memory that is never written is not allocated, but a wrong size must not request more than the machine has.
    let trusted = stated.unwrap_or(0).min((stored.len() as u64).saturating_mul(TRUSTED_RATIO));
    let usual = (SAMPLE_SIZE + stored.len().saturating_mul(DATABASE_RATIO)) as u64;
    let mut plain = vec![0; limit.min(trusted.max(usual)) as usize];
    if let Ok(Inflated { read, written }) = Inflater::new().inflate(stored, &mut plain) {
        plain.truncate(written);
        plain.shrink_to_fit();
        return Ok((plain, read as u64));
    }
    if let Some(compression) = UnsupportedCompression::of_object(stored) {
        return Err(DecodeError::Unsupported(compression));
    }
    // The content is larger than the buffer, or the stream is damaged. Unpacking as a stream distinguishes these cases.
    plain = Vec::new();
    let mut stream = flate2::bufread::ZlibDecoder::new(stored).take(limit.saturating_add(1));
    stream.read_to_end(&mut plain).map_err(DecodeError::Damaged)?;
    if plain.len() as u64 > limit {
        return Err(DecodeError::TooLarge { limit });
    }
    plain.shrink_to_fit();
    // For a stream that is truncated within its header, the decoder returns no content and no error.
    match stream.into_inner().total_in() {
        0 => Err(DecodeError::Damaged(io::ErrorKind::UnexpectedEof.into())),
        read => Ok((plain, read)),
    }
}

/// Usual upper bound of the compression ratio of catalogs, because a third of a row are hashes.
const DATABASE_RATIO: usize = 4;

/// Maximum ratio of content to stored bytes at which memory for the stated size is reserved. Higher ratios are common only
/// for files, not for databases.
const TRUSTED_RATIO: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectHash;

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|i| b"all work and no play makes jack a dull boy. "[(i * i / 7 + i) % 44]).collect()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut reader = blake3::Hasher::new().finalize_xof();
        let mut bytes = vec![0; length];
        reader.fill(&mut bytes);
        bytes
    }

    #[test]
    fn every_mode_except_none_writes_a_zlib_stream_of_the_content() {
        for mode in [Compression::Exact, Compression::Balanced, Compression::Fast] {
            let mut encoder = Encoder::new(mode);
            for plain in
                [vec![], vec![7], text(100_000), noise(MIN_SAMPLED_SIZE), text(MIN_SAMPLED_SIZE + 1), noise(1 << 20)]
            {
                let stored = encoder.encode(&plain).to_vec();
                assert_eq!(decode(&stored, SizeLimit::of(plain.len() as u64)).unwrap(), plain, "in mode {mode}");
            }
        }
        assert_eq!(Encoder::new(Compression::None).encode(b"as it is"), b"as it is");
    }

    #[test]
    fn exact_mode_encodes_the_empty_file_as_cvmfs_does() {
        let mut encoder = Encoder::new(Compression::Exact);
        let hash = ObjectHash::of(encoder.encode(b""));
        assert_eq!(hash.to_string(), "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78");
    }

    #[test]
    fn exact_mode_writes_the_bytes_of_stock_zlib() {
        // Python's zlib.compress(bytes(range(256)) * 400), hashed with SHA-1.
        let plain: Vec<u8> = (0..=255).cycle().take(256 * 400).collect();
        let mut encoder = Encoder::new(Compression::Exact);
        let first = ObjectHash::of(encoder.encode(&plain));
        assert_eq!(first.to_string(), include_str!("testdata/zlib6.sha1").trim_end());
        assert_eq!(ObjectHash::of(encoder.encode(&plain)), first, "after a reset");
    }

    #[test]
    fn content_that_does_not_shrink_is_stored_uncompressed() {
        let plain = noise(1 << 20);
        let stored = Encoder::new(Compression::Balanced).encode(&plain).len();
        assert!(stored > plain.len() && stored < plain.len() + 200);
    }

    #[test]
    fn decode_stops_at_its_limit_and_refuses_damage() {
        let stored = Encoder::new(Compression::Fast).encode(&text(1000)).to_vec();
        let limit = SizeLimit::of;
        assert!(matches!(decode(&stored, limit(999)), Err(DecodeError::TooLarge { limit: 999 })));
        assert_eq!(decode(&stored, limit(1000)).unwrap().len(), 1000);
        let more = [&stored[..], b"xy"].concat();
        assert_eq!(decode(&more, limit(1000)).unwrap().len(), 1000);
        assert!(matches!(decode_alone(&more, limit(1000)), Err(DecodeError::TrailingBytes(2))));
        assert_eq!(decode_alone(&stored, limit(u64::MAX)).unwrap().len(), 1000);
        for bad in [&stored[..stored.len() - 1], &stored[1..], b"", b"\x1f\x8b\x08"] {
            assert!(matches!(decode(bad, limit(1000)), Err(DecodeError::Damaged(_))), "{bad:?}");
        }
    }

    #[test]
    fn zstd_frame_is_named_and_no_other_bytes_are_taken_for_one() {
        let frame = zstd::bulk::compress(&text(1000), 3).unwrap();
        assert!(matches!(
            decode(&frame, SizeLimit::of(1000)),
            Err(DecodeError::Unsupported(UnsupportedCompression::ZSTD))
        ));
        let message = decode_alone(&frame, SizeLimit::of(1000)).unwrap_err().to_string();
        assert_eq!(message, "the object is compressed with zstd, which strata does not support");
        for other in [&frame[1..], &frame[..3], b"\x28\xb5\x2f\xfc more", b"\x50\x2a\x4d\x18 more"] {
            assert!(matches!(decode(other, SizeLimit::of(1000)), Err(DecodeError::Damaged(_))), "{other:?}");
        }
        assert_eq!(UnsupportedCompression(5).to_string(), "compression algorithm 5");
    }

    #[test]
    fn zlib_bomb_is_not_unpacked() {
        let bomb = Encoder::new(Compression::Exact).encode(&vec![0; 100 << 20]).to_vec();
        assert!(matches!(decode(&bomb, SizeLimit::of_database(None)), Err(DecodeError::TooLarge { .. })));
        assert!(matches!(
            decode(&bomb, SizeLimit::of_database(Some(8192))),
            Err(DecodeError::TooLarge { limit: 8192 })
        ));
        assert_eq!(decode(&bomb, SizeLimit::of_database(Some(100 << 20))).unwrap().len(), 100 << 20);
    }

    #[test]
    fn mode_has_one_text_form() {
        for (mode, name) in Compression::ALL {
            assert_eq!((mode.to_string().as_str(), name.parse()), (name, Ok(mode)));
        }
        assert!("zstd".parse::<Compression>().is_err());
    }
}
