//! Reads the content of files for a mount, and caches verified, decompressed objects.
//!
//! No byte of an object is returned before the whole object was compared with its name. Small objects are cached in memory,
//! large ones in unlinked temporary files, which disappear with the process.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::mountable::ContentSource;
use crate::cache::{ByteCache, CacheValue};
use crate::object::{Content, ContentObjects, ObjectKind};
use crate::store::{ContentError, ContentObject, SharedStore, StoreError};

/// Errors from reading the content of a mounted file.
#[derive(Debug, thiserror::Error)]
pub enum ReadContentError {
    /// An object cannot be read, or is damaged.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The decompressed content cannot be written to a temporary file, or read from it.
    #[error("cannot store content in the temporary directory '{}'", directory.display())]
    TemporaryFile {
        /// The directory of the temporary file.
        directory: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
}

impl CacheValue for Arc<[u8]> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// An unlinked file with the decompressed content of an object, and its size in bytes.
#[derive(Debug, Clone)]
struct DecompressedFile(Arc<File>, u64);

impl CacheValue for DecompressedFile {
    fn bytes(&self) -> u64 {
        self.1
    }
}

/// Reads the content of files from a store.
#[derive(Debug)]
pub(crate) struct ContentReader {
    store: SharedStore,
    directory: PathBuf,
    memory: ByteCache<ContentObject, Arc<[u8]>>,
    files: ByteCache<ContentObject, DecompressedFile>,
}

/// Maximum size in bytes of content that is cached in memory. This is the maximum size of a chunk.
const MAX_SIZE_IN_MEMORY: u64 = 16 << 20;

/// Size of the cache in memory, in bytes.
const MEMORY_CACHE_SIZE: u64 = 96 << 20;

/// Size of the cache in temporary files, in bytes.
const FILE_CACHE_SIZE: u64 = 32 << 30;

impl ContentReader {
    /// Creates a reader that decompresses large objects into files in `directory`.
    pub(crate) fn new(store: SharedStore, directory: PathBuf) -> Self {
        Self { store, directory, memory: ByteCache::new(MEMORY_CACHE_SIZE), files: ByteCache::new(FILE_CACHE_SIZE) }
    }

    /// Fills `bytes` with the content of the object, starting at `offset`.
    fn read_range(&self, object: ContentObject, offset: u64, bytes: &mut [u8]) -> Result<(), ReadContentError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if object.size > MAX_SIZE_IN_MEMORY {
            return self.read_from_file(object, offset, bytes);
        }
        let read = || self.store.read_content(object, MAX_SIZE_IN_MEMORY + MAX_OVERHEAD);
        let whole = match bytes.len() as u64 == object.size {
            // The object is not added to the cache: the kernel caches a file that was read completely, and does not request
            // it again.
            true => read().map(Arc::from),
            false => self.memory.get(&object, || read().map(Arc::from)),
        };
        match whole {
            Ok(content) => bytes.copy_from_slice(&content[offset as usize..offset as usize + bytes.len()]),
            // The stored bytes do not fit in memory, although the content does.
            Err(ContentError::Store(StoreError::TooLarge { .. })) => return self.read_from_file(object, offset, bytes),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn read_from_file(&self, object: ContentObject, offset: u64, bytes: &mut [u8]) -> Result<(), ReadContentError> {
        let unpacked = self.files.get(&object, || self.decompress_to_file(object))?;
        unpacked.0.read_exact_at(bytes, offset).map_err(|source| self.temporary_file_error(source))
    }

    /// Decompresses a large object into a file, with a small buffer.
    fn decompress_to_file(&self, object: ContentObject) -> Result<DecompressedFile, ReadContentError> {
        let mut file = tempfile::tempfile_in(&self.directory).map_err(|source| self.temporary_file_error(source))?;
        let mut failure = None;
        let unpacked = self.store.stream_content(object, &mut |bytes| {
            // Write errors are stored in `failure`, so that they differ from errors of the object.
            file.write_all(bytes).map_err(|error| {
                let kind = error.kind();
                failure = Some(error);
                kind.into()
            })
        });
        match failure {
            Some(source) => Err(self.temporary_file_error(source)),
            None => Ok(unpacked.map(|()| DecompressedFile(Arc::new(file), object.size))?),
        }
    }

    fn temporary_file_error(&self, source: io::Error) -> ReadContentError {
        ReadContentError::TemporaryFile { directory: self.directory.clone(), source }
    }
}

impl ContentSource for ContentReader {
    fn read(&self, content: &Content, size: u64, offset: u64, length: usize) -> Result<Vec<u8>, ReadContentError> {
        let length = size.saturating_sub(offset).min(length as u64) as usize;
        let mut bytes = vec![0; length];
        match &content.objects {
            ContentObjects::Whole(hash) => {
                let object = ContentObject { hash: *hash, kind: ObjectKind::File, raw: content.raw, size };
                self.read_range(object, offset, &mut bytes)?;
            }
            ContentObjects::Chunks(chunks) => {
                let mut filled = 0;
                while filled < length {
                    let at = offset + filled as u64;
                    let next = chunks.partition_point(|chunk| chunk.offset <= at);
                    let chunk = next.checked_sub(1).map(|index| chunks[index]).ok_or(ContentError::Hole(at))?;
                    let count = (chunk.offset + chunk.size).saturating_sub(at).min((length - filled) as u64) as usize;
                    // In a valid catalog, the chunks of a file cover it without a gap.
                    if count == 0 {
                        return Err(ContentError::Hole(at).into());
                    }
                    let object =
                        ContentObject { hash: chunk.hash, kind: ObjectKind::Chunk, raw: content.raw, size: chunk.size };
                    self.read_range(object, at - chunk.offset, &mut bytes[filled..filled + count])?;
                    filled += count;
                }
            }
            ContentObjects::Unstored { .. } => return Err(ContentError::Hole(offset).into()),
        }
        Ok(bytes)
    }
}

/// Maximum number of bytes by which a zlib stream may be larger than its content.
const MAX_OVERHEAD: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Chunk, Compression, Encoder, ObjectHash};
    use crate::store::{DirectoryStore, Staging};

    struct Fixture {
        home: tempfile::TempDir,
        store: DirectoryStore,
        reader: ContentReader,
    }

    impl Fixture {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let store = DirectoryStore::create(&home.path().join("storage")).unwrap();
            let reader = ContentReader::new(store.clone().into(), home.path().to_owned());
            Self { home, store, reader }
        }

        fn put(&self, kind: ObjectKind, stored: &[u8]) -> ObjectHash {
            let staging = Staging::start(&self.store).unwrap();
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
        Content { raw, objects: ContentObjects::Whole(hash) }
    }

    #[test]
    fn any_range_of_a_small_and_of_a_large_object_is_read_correctly() {
        for (raw, size) in
            [(false, 1000), (true, 1000), (false, MAX_SIZE_IN_MEMORY + 1), (true, MAX_SIZE_IN_MEMORY + 1)]
        {
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
    fn ranges_across_chunk_boundaries_are_read_correctly() {
        let (fixture, plain) = (Fixture::new(), noise(3000));
        let chunk = |offset: u64| {
            let bytes = &plain[offset as usize..offset as usize + 1000];
            let hash = fixture.put(ObjectKind::Chunk, Encoder::new(Compression::Fast).encode(bytes));
            Chunk { offset, size: 1000, hash }
        };
        let chunks = [0, 1000, 2000].map(chunk);
        let read = |chunks: &[Chunk], offset, length| {
            fixture.reader.read(
                &Content { raw: false, objects: ContentObjects::Chunks(chunks.into()) },
                3000,
                offset,
                length,
            )
        };
        assert!(read(&chunks, 0, 3000).unwrap() == plain);
        assert_eq!(read(&chunks, 999, 1002).unwrap(), plain[999..2001]);
        assert!(matches!(
            read(&[chunks[0], chunks[2]], 999, 2),
            Err(ReadContentError::Content(ContentError::Hole(1000)))
        ));
        assert!(matches!(read(&chunks[1..], 0, 2), Err(ReadContentError::Content(ContentError::Hole(0)))));
    }

    #[test]
    fn damage_and_wrong_sizes_are_errors_for_any_range() {
        for (raw, size) in
            [(false, 1000), (true, 1000), (false, MAX_SIZE_IN_MEMORY + 1), (true, MAX_SIZE_IN_MEMORY + 1)]
        {
            let (fixture, plain) = (Fixture::new(), noise(size));
            let mode = if raw { Compression::None } else { Compression::Fast };
            let stored = Encoder::new(mode).encode(&plain).to_vec();
            let hash = fixture.put(ObjectKind::File, &stored);
            for wrong in [size - 1, size + 1] {
                let read = fixture.reader.read(&whole(raw, hash), wrong, 0, 10);
                assert!(
                    matches!(read, Err(ReadContentError::Content(ContentError::WrongSize { .. }))),
                    "{raw} {size} {wrong}: {read:?}"
                );
            }
            fixture.damage(hash, stored.len() - 1);
            let read = fixture.reader.read(&whole(raw, hash), size, 0, 10);
            let is_damage = |error: &ContentError| matches!(error, ContentError::Store(StoreError::WrongHash { .. }));
            assert!(
                matches!(&read, Err(ReadContentError::Content(error)) if is_damage(error)),
                "{raw} {size}: {read:?}"
            );
            fixture.damage(hash, stored.len() - 1);
            assert_eq!(fixture.reader.read(&whole(raw, hash), size, 0, 10).unwrap(), plain[..10]);
        }
    }
}
