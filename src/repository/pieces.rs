//! Content of files of any size, object by object, with little memory.

use std::fs::File;
use std::io::{self, BufReader, Read};

use sha1::{Digest as _, Sha1};

use super::Repository;
use crate::object::{Content, ObjectHash, ObjectKind, Pieces};
use crate::store::StoreError;

/// Why the content of a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The store failed, or its object is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object is what its name says, but does not unpack.
    #[error("object {hash} cannot be unpacked")]
    Unpack {
        /// The object.
        hash: ObjectHash,
        /// Why.
        source: io::Error,
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

/// One object, as a catalog describes it.
struct Object {
    hash: ObjectHash,
    kind: ObjectKind,
    raw: bool,
    size: u64,
}

/// What is read at a time, in bytes.
const BUFFER: usize = 256 << 10;

impl Repository {
    /// Gives the content of a file of `size` bytes to `take`, from the first byte to the last.
    ///
    /// An object's name is compared with its bytes after they were given away: only success vouches for them.
    pub fn read_pieces(&self, content: &Content, size: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), ContentError> {
        let raw = content.raw;
        let chunks = match &content.pieces {
            Pieces::Whole(hash) => {
                return self.read_object(&Object { hash: *hash, kind: ObjectKind::File, raw, size }, take);
            }
            Pieces::Chunks(chunks) => chunks,
        };
        let mut at = 0;
        for chunk in &**chunks {
            if chunk.offset != at {
                return Err(ContentError::Hole(at));
            }
            self.read_object(&Object { hash: chunk.hash, kind: ObjectKind::Chunk, raw, size: chunk.size }, take)?;
            at = at.saturating_add(chunk.size);
        }
        if at == size { Ok(()) } else { Err(ContentError::Hole(at.min(size))) }
    }

    fn read_object(&self, object: &Object, take: &mut dyn FnMut(&[u8])) -> Result<(), ContentError> {
        let mut stored = Hashing { file: self.store.open_object(object.hash, object.kind)?, sha1: Sha1::new() };
        let unpacked = unpack(object, &mut stored, take);
        let unpack_error = |source| ContentError::Unpack { hash: object.hash, source };
        // What is behind the content, or behind the damage that ended it, belongs to the object as well.
        io::copy(&mut stored, &mut io::sink()).map_err(unpack_error)?;
        let actual = ObjectHash::from(<[u8; 20]>::from(stored.sha1.finalize()));
        if actual != object.hash {
            return Err(self.store.damaged(object.hash, object.kind, actual).into());
        }
        if unpacked.map_err(unpack_error)? != object.size {
            return Err(ContentError::WrongSize { hash: object.hash, expected: object.size });
        }
        Ok(())
    }
}

/// Returns how many bytes there were, but never more than one too many.
fn unpack(object: &Object, stored: &mut Hashing, take: &mut dyn FnMut(&[u8])) -> io::Result<u64> {
    let limit = object.size.saturating_add(1);
    if object.raw {
        return give(stored.take(limit), take);
    }
    let plain = flate2::bufread::ZlibDecoder::new(BufReader::with_capacity(BUFFER, stored));
    give(plain.take(limit), take)
}

fn give(mut plain: impl Read, take: &mut dyn FnMut(&[u8])) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut size = 0;
    loop {
        match plain.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(length) => {
                take(&buffer[..length]);
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
