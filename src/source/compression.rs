//! Detects the compression of a stream from its first bytes, and decompresses it.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;

/// Compression of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    /// An unsupported format, which is detected for the error message.
    Foreign(&'static str),
}

impl Compression {
    /// Number of bytes that [`detect`](Self::detect) needs.
    pub(super) const MAGIC: usize = 6;

    /// Detects the compression from the first [`MAGIC`](Self::MAGIC) bytes, or all bytes of a shorter stream.
    pub(super) fn detect(start: &[u8]) -> Self {
        match start {
            // RFC 1952, section 2.3.1.
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A skippable frame may come first (RFC 8878, 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Foreign("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', ..] => Self::Foreign("bzip2"),
            _ => Self::None,
        }
    }

    /// Returns the decompressed stream.
    pub(super) fn unpack(self, packed: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::None => Box::new(packed),
            // A gzip file may consist of several members (RFC 1952, section 2.2).
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => Box::new(zstd::Decoder::new(packed)?),
            Self::Foreign(name) => {
                let message = format!("it is compressed with {name}, but only gzip and zstd are supported");
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gzip, zstd};
    use super::*;

    fn unpack(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Compression::detect(&bytes).unpack(io::Cursor::new(bytes))?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn compression_is_detected_and_decompressed() {
        let skippable = [&[0x52, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(b"content")].concat();
        let two_members = [gzip(b"con"), gzip(b"tent")].concat();
        for packed in [b"content".to_vec(), gzip(b"content"), zstd(b"content"), skippable, two_members] {
            assert_eq!(unpack(packed).unwrap(), b"content");
        }
        assert_eq!(unpack(vec![0x1f]).unwrap(), [0x1f]);
        assert!(unpack(Vec::new()).unwrap().is_empty());
    }

    #[test]
    fn damaged_or_foreign_stream_is_an_error() {
        let mut cut = gzip(b"content");
        cut.truncate(cut.len() - 5);
        assert_eq!(unpack(cut).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(unpack(b"\xfd7zXZ\0rest".to_vec()).unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert_eq!(unpack(b"BZh91AY&SY".to_vec()).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
