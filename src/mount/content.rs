//! Content of files: objects that were verified and unpacked, kept for the next read.
//!
//! No byte of an object leaves before the whole of it was compared with its name. Small objects are kept in memory; large
//! ones in files without a name, which are gone with the process.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use libdeflater::{DecompressionError, Decompressor};
use sha1::{Digest as _, Sha1};

use super::shown::ContentSource;
use crate::cache::{ByteCache, Kept};
use crate::object::{Content, ObjectHash, ObjectKind, Pieces};
use crate::store::{DirectoryStore, StoreError};

/// Why content could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The store failed, or its object is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object is what its name says, but does not unpack.
    #[error("object {hash} cannot be unpacked: {source}")]
    Undecodable {
        /// The object.
        hash: ObjectHash,
        /// What the decoder says.
        source: DecompressionError,
    },
    /// The object holds more or less than its catalog says.
    #[error("object {hash} does not hold the {expected} bytes that its catalog says")]
    WrongSize {
        /// The object.
        hash: ObjectHash,
        /// Bytes of content as the catalog says.
        expected: u64,
    },
    /// A large object could not be unpacked into a file.
    #[error("cannot unpack object {hash} in '{}'", folder.display())]
    Unpack {
        /// The object.
        hash: ObjectHash,
        /// Where the file was to be.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was read from the image cannot be read back.
    #[error("cannot read what was kept of the image in '{}'", folder.display())]
    Pack {
        /// Where it is kept.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The chunks do not cover the file.
    #[error("chunks do not cover the file at byte {0}")]
    Hole(u64),
}

/// One object as a catalog describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Piece {
    hash: ObjectHash,
    kind: ObjectKind,
    raw: bool,
    size: u64,
}

impl Kept for Arc<[u8]> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// A file without a name, and its size.
#[derive(Debug, Clone)]
struct Unpacked(Arc<File>, u64);

impl Kept for Unpacked {
    fn bytes(&self) -> u64 {
        self.1
    }
}

/// Reads content of a store.
#[derive(Debug)]
pub(crate) struct ContentReader {
    store: DirectoryStore,
    folder: PathBuf,
    memory: ByteCache<Piece, Arc<[u8]>>,
    files: ByteCache<Piece, Unpacked>,
}

/// Objects that unpack to no more than this, which is the largest chunk, are kept in memory.
const MEMORY_LIMIT: u64 = 16 << 20;

/// Bytes of content that are kept in memory.
const MEMORY_CACHE: u64 = 96 << 20;

/// Bytes of content that are kept in files.
const FILE_CACHE: u64 = 32 << 30;

impl ContentReader {
    /// Makes a reader that unpacks large objects in `folder`.
    pub(crate) fn new(store: DirectoryStore, folder: PathBuf) -> Self {
        Self { store, folder, memory: ByteCache::new(MEMORY_CACHE), files: ByteCache::new(FILE_CACHE) }
    }

    /// Fills `bytes` with what the object holds from `offset` on.
    fn read_piece(&self, piece: Piece, offset: u64, bytes: &mut [u8]) -> Result<(), ContentError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if piece.size > MEMORY_LIMIT || self.store.size(piece.hash, piece.kind)? > MEMORY_LIMIT + SLACK {
            let unpacked = self.files.get(&piece, || self.unpack_to_file(piece))?;
            return unpacked.0.read_exact_at(bytes, offset).map_err(|source| self.unpack_error(piece, source));
        }
        let range = offset as usize..offset as usize + bytes.len();
        if bytes.len() as u64 == piece.size {
            // The kernel keeps it, and asks no more.
            bytes.copy_from_slice(&self.unpack(piece)?);
        } else {
            bytes.copy_from_slice(
                &self.memory.get(&piece, || Ok::<_, ContentError>(self.unpack(piece)?.into()))?[range],
            );
        }
        Ok(())
    }

    fn unpack(&self, piece: Piece) -> Result<Vec<u8>, ContentError> {
        let stored = self.store.read(piece.hash, piece.kind)?;
        let wrong_size = ContentError::WrongSize { hash: piece.hash, expected: piece.size };
        if piece.raw {
            return if stored.len() as u64 == piece.size { Ok(stored) } else { Err(wrong_size) };
        }
        let mut plain = vec![0; piece.size as usize];
        match Decompressor::new().zlib_decompress(&stored, &mut plain) {
            Ok(length) if length == plain.len() => Ok(plain),
            Ok(_) | Err(DecompressionError::InsufficientSpace) => Err(wrong_size),
            Err(source) => Err(ContentError::Undecodable { hash: piece.hash, source }),
        }
    }

    /// Unpacks a large object piece by piece.
    fn unpack_to_file(&self, piece: Piece) -> Result<Unpacked, ContentError> {
        let file = self.store.open_object(piece.hash, piece.kind)?;
        let mut stored = Hashing { file, sha1: Sha1::new() };
        let unpacked = self.unpack_stream(piece, &mut stored);
        // What is behind the content, or behind the damage that ended it, belongs to the object as well.
        io::copy(&mut stored, &mut io::sink()).map_err(|source| self.unpack_error(piece, source))?;
        let actual = ObjectHash::from(<[u8; 20]>::from(stored.sha1.finalize()));
        if actual != piece.hash {
            return Err(self.store.damaged(piece.hash, piece.kind, actual).into());
        }
        let (file, size) = unpacked.map_err(|source| self.unpack_error(piece, source))?;
        if size != piece.size {
            return Err(ContentError::WrongSize { hash: piece.hash, expected: piece.size });
        }
        Ok(Unpacked(Arc::new(file), size))
    }

    fn unpack_stream(&self, piece: Piece, stored: &mut Hashing) -> io::Result<(File, u64)> {
        let mut file = tempfile::tempfile_in(&self.folder)?;
        let limit = piece.size.saturating_add(1);
        let size = if piece.raw {
            io::copy(&mut stored.take(limit), &mut file)?
        } else {
            let plain = flate2::bufread::ZlibDecoder::new(BufReader::with_capacity(1 << 20, stored));
            io::copy(&mut plain.take(limit), &mut file)?
        };
        Ok((file, size))
    }

    fn unpack_error(&self, piece: Piece, source: io::Error) -> ContentError {
        ContentError::Unpack { hash: piece.hash, folder: self.folder.clone(), source }
    }
}

impl ContentSource for ContentReader {
    fn read(&self, content: &Content, size: u64, offset: u64, length: usize) -> Result<Vec<u8>, ContentError> {
        let length = size.saturating_sub(offset).min(length as u64) as usize;
        let mut bytes = vec![0; length];
        match &content.pieces {
            Pieces::Whole(hash) => {
                let piece = Piece { hash: *hash, kind: ObjectKind::File, raw: content.raw, size };
                self.read_piece(piece, offset, &mut bytes)?;
            }
            Pieces::Chunks(chunks) => {
                let mut filled = 0;
                while filled < length {
                    let at = offset + filled as u64;
                    let next = chunks.partition_point(|chunk| chunk.offset <= at);
                    let chunk = next.checked_sub(1).map(|index| chunks[index]).ok_or(ContentError::Hole(at))?;
                    let left = (chunk.offset + chunk.size).saturating_sub(at).min((length - filled) as u64) as usize;
                    if left == 0 {
                        return Err(ContentError::Hole(at));
                    }
                    let piece = Piece { hash: chunk.hash, kind: ObjectKind::Chunk, raw: content.raw, size: chunk.size };
                    self.read_piece(piece, at - chunk.offset, &mut bytes[filled..filled + left])?;
                    filled += left;
                }
            }
        }
        Ok(bytes)
    }
}

/// What a zlib stream may be larger than its content.
const SLACK: u64 = 64 << 10;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Chunk, Compression, Encoder};
    use crate::store::Staging;

    struct Fixture {
        home: tempfile::TempDir,
        reader: ContentReader,
    }

    impl Fixture {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let store = DirectoryStore::create(&home.path().join("storage")).unwrap();
            let reader = ContentReader::new(store, home.path().to_owned());
            Self { home, reader }
        }

        fn put(&self, kind: ObjectKind, stored: &[u8]) -> ObjectHash {
            let staging = Staging::start(&self.reader.store).unwrap();
            let hash = staging.put_stored(kind, stored).unwrap();
            staging.flush().unwrap();
            hash
        }

        fn damage(&self, hash: ObjectHash, at: usize) {
            let path = self.home.path().join("storage").join(hash.path(ObjectKind::File));
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    }

    fn noise(length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn whole(raw: bool, hash: ObjectHash) -> Content {
        Content { raw, pieces: Pieces::Whole(hash) }
    }

    #[test]
    fn any_range_of_a_small_and_of_a_large_object_reads_back() {
        for (raw, size) in [(false, 1000), (true, 1000), (false, MEMORY_LIMIT + 1), (true, MEMORY_LIMIT + 1)] {
            let (fixture, plain) = (Fixture::new(), noise(size));
            let mode = if raw { Compression::None } else { Compression::Fast };
            let hash = fixture.put(ObjectKind::File, Encoder::new(mode).encode(&plain));
            let read = |offset, length| fixture.reader.read(&whole(raw, hash), size, offset, length).unwrap();
            assert!(read(0, plain.len()) == plain);
            assert_eq!(read(size - 10, 100), plain[plain.len() - 10..]);
            assert_eq!(read(500, 7), plain[500..507]);
            assert_eq!(read(size, 10), [0; 0]);
            assert_eq!(read(u64::MAX, 10), [0; 0]);
        }
    }

    #[test]
    fn chunks_are_read_across_their_edges() {
        let (fixture, plain) = (Fixture::new(), noise(3000));
        let chunk = |offset: u64| {
            let bytes = &plain[offset as usize..offset as usize + 1000];
            let hash = fixture.put(ObjectKind::Chunk, Encoder::new(Compression::Fast).encode(bytes));
            Chunk { offset, size: 1000, hash }
        };
        let chunks = [0, 1000, 2000].map(chunk);
        let read = |chunks: &[Chunk], offset, length| {
            fixture.reader.read(&Content { raw: false, pieces: Pieces::Chunks(chunks.into()) }, 3000, offset, length)
        };
        assert!(read(&chunks, 0, 3000).unwrap() == plain);
        assert_eq!(read(&chunks, 999, 1002).unwrap(), plain[999..2001]);
        assert!(matches!(read(&[chunks[0], chunks[2]], 999, 2), Err(ContentError::Hole(1000))));
        assert!(matches!(read(&chunks[1..], 0, 2), Err(ContentError::Hole(0))));
    }

    #[test]
    fn damage_and_false_sizes_are_errors_whatever_part_is_read() {
        for (raw, size) in [(false, 1000), (true, 1000), (false, MEMORY_LIMIT + 1), (true, MEMORY_LIMIT + 1)] {
            let (fixture, plain) = (Fixture::new(), noise(size));
            let mode = if raw { Compression::None } else { Compression::Fast };
            let stored = Encoder::new(mode).encode(&plain).to_vec();
            let hash = fixture.put(ObjectKind::File, &stored);
            for wrong in [size - 1, size + 1] {
                let read = fixture.reader.read(&whole(raw, hash), wrong, 0, 10);
                assert!(matches!(read, Err(ContentError::WrongSize { .. })), "{raw} {size} {wrong}: {read:?}");
            }
            fixture.damage(hash, stored.len() - 1);
            let read = fixture.reader.read(&whole(raw, hash), size, 0, 10);
            assert!(matches!(read, Err(ContentError::Store(StoreError::WrongHash { .. }))), "{raw} {size}: {read:?}");
            fixture.damage(hash, stored.len() - 1);
            assert_eq!(fixture.reader.read(&whole(raw, hash), size, 0, 10).unwrap(), plain[..10]);
        }
    }
}
