//! Content of files: objects as catalogs describe them, verified and unpacked.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read};

use libdeflater::{DecompressionError, Decompressor};
use sha1::{Digest as _, Sha1};

use super::{DirectoryStore, StoreError};
use crate::object::{ObjectHash, ObjectKind};

/// Why the content of a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The store failed, or its object is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object is what its name says, but does not unpack, or nobody takes what is in it.
    #[error("object {hash} cannot be unpacked")]
    Unpack {
        /// The object.
        hash: ObjectHash,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The object holds more or less than its catalog says.
    #[error("object {hash} does not hold the {expected} bytes that its catalog says")]
    WrongSize {
        /// The object.
        hash: ObjectHash,
        /// Bytes of content as the catalog says.
        expected: u64,
    },
    /// The chunks do not cover the file.
    #[error("chunks do not cover the file at byte {0}")]
    Hole(u64),
}

impl ContentError {
    /// Tells whether an object is missing or has other bytes than its name or catalog promises.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_damage(),
            Self::Unpack { .. } | Self::WrongSize { .. } => true,
            Self::Hole(_) => false,
        }
    }
}

/// One object of a file, as a catalog describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    pub(crate) hash: ObjectHash,
    pub(crate) kind: ObjectKind,
    /// Whether the object holds the content as it is.
    pub(crate) raw: bool,
    /// Bytes of content.
    pub(crate) size: u64,
}

impl Piece {
    fn wrong_size(&self) -> ContentError {
        ContentError::WrongSize { hash: self.hash, expected: self.size }
    }

    fn unpack_error(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> ContentError {
        ContentError::Unpack { hash: self.hash, source: source.into() }
    }
}

/// What is read of an object at a time, in bytes.
const BUFFER: usize = 256 << 10;

impl DirectoryStore {
    /// Returns the content of an object that fits in memory.
    pub(crate) fn read_piece(&self, piece: Piece) -> Result<Vec<u8>, ContentError> {
        let stored = self.read(piece.hash, piece.kind)?;
        if piece.raw {
            return if stored.len() as u64 == piece.size { Ok(stored) } else { Err(piece.wrong_size()) };
        }
        let mut plain = vec![0; piece.size as usize];
        match Decompressor::new().zlib_decompress(&stored, &mut plain) {
            Ok(length) if length == plain.len() => Ok(plain),
            Ok(_) | Err(DecompressionError::InsufficientSpace) => Err(piece.wrong_size()),
            Err(source) => Err(piece.unpack_error(source)),
        }
    }

    /// Gives the content of an object of any size to `take`, from the first byte to the last.
    ///
    /// Its name is compared with its bytes after they were given away: only success vouches for them.
    pub(crate) fn stream_piece(
        &self,
        piece: Piece,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        let mut stored = Hashing { file: self.open_object(piece.hash, piece.kind)?, sha1: Sha1::new() };
        let unpacked = unpack(piece, &mut stored, take);
        // What is behind the content, or behind the damage that ended it, belongs to the object as well.
        io::copy(&mut stored, &mut io::sink()).map_err(|source| piece.unpack_error(source))?;
        let actual = ObjectHash::from(<[u8; 20]>::from(stored.sha1.finalize()));
        if actual != piece.hash {
            return Err(self.damaged(piece.hash, piece.kind, actual).into());
        }
        match unpacked.map_err(|source| piece.unpack_error(source))? {
            size if size == piece.size => Ok(()),
            _ => Err(piece.wrong_size()),
        }
    }

    /// Tells whether the bytes of an object are those that its name promises. Bytes that cannot be read are not.
    pub(crate) fn is_intact(&self, hash: ObjectHash, kind: ObjectKind) -> bool {
        let Ok(file) = self.open_object(hash, kind) else { return false };
        let mut stored = Hashing { file, sha1: Sha1::new() };
        let is_read = io::copy(&mut stored, &mut io::sink()).is_ok();
        is_read && ObjectHash::from(<[u8; 20]>::from(stored.sha1.finalize())) == hash
    }
}

/// Returns how many bytes there were, but never more than one too many.
fn unpack(piece: Piece, stored: &mut Hashing, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let limit = piece.size.saturating_add(1);
    if piece.raw {
        return give(stored.take(limit), take);
    }
    let plain = flate2::bufread::ZlibDecoder::new(BufReader::with_capacity(BUFFER, stored));
    give(plain.take(limit), take)
}

fn give(mut plain: impl Read, take: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        match plain.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(length) => {
                take(&buffer[..length])?;
                size += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hashes what is read.
struct Hashing {
    file: File,
    sha1: Sha1,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.sha1.update(&buffer[..length]);
        Ok(length)
    }
}
