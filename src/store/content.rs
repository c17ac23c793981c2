//! Reads the content of files: fetches the objects that a catalog row names, verifies them and decompresses them.

use std::error::Error;
use std::io::{self, BufReader, Read};

use libdeflater::{DecompressionError, Decompressor};

use super::StoreError;
use crate::object::{HashAlgorithm, ObjectHash, ObjectHasher, ObjectKind};

/// Errors from reading the content of a file.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// An object cannot be read, or its bytes do not match its name.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object's bytes match its name, but cannot be decompressed, or the receiver of the content returned an error.
    #[error("object {hash} cannot be decompressed")]
    Unpack {
        /// The object.
        hash: ObjectHash,
        /// The error of the decompressor, or of the receiver.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The content of the object is longer or shorter than the catalog states.
    #[error("the content of object {hash} does not have the {expected} bytes that the catalog states")]
    WrongSize {
        /// The object.
        hash: ObjectHash,
        /// Size of the content in bytes, as the catalog states it.
        expected: u64,
    },
    /// The chunks leave a gap at this byte of the file.
    #[error("chunks do not cover the file at byte {0}")]
    Hole(u64),
}

impl ContentError {
    /// Returns whether an object is missing, or its bytes do not match its name or its catalog row.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_damage(),
            Self::Unpack { .. } | Self::WrongSize { .. } => true,
            Self::Hole(_) => false,
        }
    }
}

/// One object that holds a file or a chunk of it, as a catalog row describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentObject {
    /// Hash of the object.
    pub hash: ObjectHash,
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Whether the object is stored uncompressed.
    pub raw: bool,
    /// Size of the content in bytes, after decompression.
    pub size: u64,
}

impl ContentObject {
    fn wrong_size(&self) -> ContentError {
        ContentError::WrongSize { hash: self.hash, expected: self.size }
    }

    fn unpack_error(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> ContentError {
        ContentError::Unpack { hash: self.hash, source: source.into() }
    }
}

/// Size of the read buffer, in bytes.
const BUFFER_SIZE: usize = 256 << 10;

/// Decompresses the stored bytes of an object.
pub(super) fn decompress(object: ContentObject, stored: Vec<u8>) -> Result<Vec<u8>, ContentError> {
    if object.raw {
        return if stored.len() as u64 == object.size { Ok(stored) } else { Err(object.wrong_size()) };
    }
    let mut plain = vec![0; object.size as usize];
    match Decompressor::new().zlib_decompress(&stored, &mut plain) {
        Ok(length) if length == plain.len() => Ok(plain),
        // The buffer has the stated size, so content that does not fit is longer than stated.
        Ok(_) | Err(DecompressionError::InsufficientSpace) => Err(object.wrong_size()),
        Err(source) => Err(object.unpack_error(source)),
    }
}

/// Reads the stored bytes of an object to their end, and passes its content to `receive`. Returns the hash of the stored bytes, by
/// the algorithm of the object's name, and whether the content is what the catalog states.
pub(super) fn stream(
    object: ContentObject,
    stored: impl Read,
    receive: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(ObjectHash, Result<(), ContentError>), ContentError> {
    let mut stored = HashingReader { stored, hasher: object.hash.algorithm().hasher() };
    let unpacked = unpack(object, &mut stored, receive);
    // The hash covers the whole object, so the rest after the content, or after the damage, is read too.
    io::copy(&mut stored, &mut io::sink()).map_err(|source| object.unpack_error(source))?;
    let content = match unpacked {
        Ok(size) if size == object.size => Ok(()),
        Ok(_) => Err(object.wrong_size()),
        Err(source) => Err(object.unpack_error(source)),
    };
    Ok((stored.hasher.finish(), content))
}

/// Returns the hash of all bytes.
pub(super) fn hash_of(algorithm: HashAlgorithm, stored: impl Read) -> io::Result<ObjectHash> {
    let mut stored = HashingReader { stored, hasher: algorithm.hasher() };
    io::copy(&mut stored, &mut io::sink())?;
    Ok(stored.hasher.finish())
}

/// Decompresses an object, passes its content to `receive`, and returns the number of passed bytes. Stops after one byte more
/// than the size that the catalog states.
fn unpack(
    object: ContentObject,
    stored: &mut HashingReader<impl Read>,
    receive: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    // One byte more than stated shows that the content is too long. The rest of the stream is not decompressed.
    let limit = object.size.saturating_add(1);
    if object.raw {
        return pass_on(stored.take(limit), receive);
    }
    let plain = flate2::bufread::ZlibDecoder::new(BufReader::with_capacity(BUFFER_SIZE, stored));
    pass_on(plain.take(limit), receive)
}

fn pass_on(mut plain: impl Read, receive: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut size = 0;
    loop {
        match plain.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(length) => {
                receive(&buffer[..length])?;
                size += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Computes the hash of all bytes that are read.
struct HashingReader<R> {
    stored: R,
    hasher: ObjectHasher,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stored.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}
