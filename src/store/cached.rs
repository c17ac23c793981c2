//! A store whose objects are kept in a directory of limited size, for repositories that are read over a network.
//!
//! Objects are kept as they are stored, and compared with their names whenever they are read: another process may share the
//! directory, and a machine that lost power may leave damaged files. Other files, such as the manifest, are not kept.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use tempfile::NamedTempFile;

use super::content::hash_of;
use super::{SharedStore, Store, StoreError, StoreListing};
use crate::file::{open_regular, read_regular_up_to};
use crate::object::{ObjectHash, ObjectKind};
use crate::observer::Reporter;

/// Age from which on a temporary file in the cache is one of a killed process.
const MAX_AGE_OF_TEMPORARY_FILE: Duration = Duration::from_secs(60 * 60);
/// Prefix of the names of temporary files.
const TEMPORARY: &str = "new-";
/// Number of directories into which the files are distributed by the first two digits of their hashes.
const DIRECTORIES: u32 = 256;

/// A store with a cache of objects on disk.
#[derive(Debug)]
pub struct CachedStore {
    store: SharedStore,
    directory: PathBuf,
    /// Size in bytes of each file in the cache, by its path in the directory.
    files: Cache<String, u64, Size, DefaultHashBuilder, Deletion>,
    /// Maximum size of one file in the cache, in bytes.
    max_size: u64,
    /// Whether an error of the cache was reported.
    is_reported: AtomicBool,
}

/// Weighs a file by its size.
#[derive(Debug, Clone)]
struct Size;

impl Weighter<String, u64> for Size {
    fn weight(&self, _: &String, size: &u64) -> u64 {
        (*size).max(1)
    }
}

/// Deletes the files that are removed from the cache. A process that has opened such a file can still read it.
#[derive(Debug, Clone)]
struct Deletion(PathBuf);

impl Lifecycle<String, u64> for Deletion {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), path: String, _: u64) {
        fs::remove_file(self.0.join(path)).ok();
    }
}

impl CachedStore {
    /// Keeps objects of `store` in `directory`, which is created if it does not exist. All files together have at most `capacity`
    /// bytes; those that were used least are deleted first. Files of an earlier process are used again.
    pub fn new(store: SharedStore, directory: &Path, capacity: u64) -> Result<Self, StoreError> {
        for number in 0..DIRECTORIES {
            let path = directory.join(format!("{number:02x}"));
            fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        }
        let options = OptionsBuilder::new()
            .estimated_items_capacity(10_000)
            .weight_capacity(capacity)
            // Only one shard, because each shard has an equal part of the capacity, which a large file could exceed.
            .shards(1)
            .build()
            .expect("both capacities are set");
        let deletion = Deletion(directory.to_owned());
        let files = Cache::with_options(options, Size, DefaultHashBuilder::default(), deletion);
        for (path, size) in existing_files(directory)? {
            files.insert(path, size);
        }
        let (directory, is_reported) = (directory.to_owned(), AtomicBool::new(false));
        // A file that is larger than the space for the most important files would be deleted at once.
        Ok(Self { store, directory, files, max_size: capacity / 3, is_reported })
    }

    /// Returns the bytes of an object if the cache has them. Damaged files are deleted.
    fn cached(&self, path: &str, limit: u64, hash: ObjectHash) -> Option<Vec<u8>> {
        let file = self.directory.join(path);
        let bytes = read_regular_up_to(limit, &file).ok()??;
        if hash.algorithm().hash(&bytes) == hash {
            self.note_use(path, bytes.len() as u64);
            return Some(bytes);
        }
        fs::remove_file(file).ok();
        None
    }

    /// Opens the file of an object if the cache has it. Damaged files are deleted.
    fn open_cached(&self, path: &str, hash: ObjectHash) -> Option<File> {
        let file = self.directory.join(path);
        let mut opened = open_regular(&file).ok()?;
        if hash_of(hash.algorithm(), &mut opened).is_ok_and(|actual| actual == hash) && opened.rewind().is_ok() {
            self.note_use(path, opened.metadata().ok()?.len());
            return Some(opened);
        }
        fs::remove_file(file).ok();
        None
    }

    /// Records that a file was used. Another process may have added the file.
    fn note_use(&self, path: &str, size: u64) {
        if self.files.get(path).is_none() {
            self.files.insert(path.to_owned(), size);
        }
    }

    /// Copies an object to a temporary file.
    fn copy(&self, path: &str, mut stored: impl Read) -> io::Result<(NamedTempFile, u64)> {
        let directory = self.directory.join(path).parent().map_or_else(|| self.directory.clone(), Path::to_owned);
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory)?;
        let size = io::copy(&mut stored, &mut file)?;
        file.rewind()?;
        Ok((file, size))
    }

    /// Adds a verified object. An error does not matter to the reader of the object, and is reported once.
    fn keep(&self, path: &str, file: NamedTempFile, size: u64) {
        if size > self.max_size {
            return;
        }
        match file.persist(self.directory.join(path)) {
            Ok(_) => self.files.insert(path.to_owned(), size),
            Err(error) => self.report(&error.error),
        }
    }

    fn report(&self, error: &io::Error) {
        if !self.is_reported.swap(true, Ordering::Relaxed) {
            let directory = self.directory.display();
            self.reporter().warn(format_args!("cannot keep objects in '{directory}': {error}"));
        }
    }
}

/// Returns the path of an object in the cache.
fn path_of(hash: ObjectHash, kind: ObjectKind) -> String {
    hash.path(kind).trim_start_matches("data/").to_owned()
}

/// Returns the paths and sizes of the files in the cache, those first that were written first. Deletes the temporary files of
/// killed processes.
fn existing_files(directory: &Path) -> Result<Vec<(String, u64)>, StoreError> {
    let mut files = Vec::new();
    for number in 0..DIRECTORIES {
        let below = format!("{number:02x}");
        let path = directory.join(&below);
        for entry in fs::read_dir(&path).map_err(StoreError::io("list", &path))? {
            let entry = entry.map_err(StoreError::io("list", &path))?;
            // Another process may have deleted the file.
            let (Ok(metadata), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else { continue };
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if !name.starts_with(TEMPORARY) {
                files.push((written, format!("{below}/{name}"), metadata.len()));
            } else if written.elapsed().is_ok_and(|age| age > MAX_AGE_OF_TEMPORARY_FILE) {
                fs::remove_file(entry.path()).ok();
            }
        }
    }
    files.sort_unstable();
    Ok(files.into_iter().map(|(_, path, size)| (path, size)).collect())
}

impl Store for CachedStore {
    fn address(&self, name: &str) -> String {
        self.store.address(name)
    }

    fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(name, limit)
    }

    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError> {
        self.store.open(name)
    }

    fn head(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.store.head(name)
    }

    fn servers(&self) -> Vec<SharedStore> {
        self.store.servers()
    }

    fn listing(&self) -> Option<&dyn StoreListing> {
        self.store.listing()
    }

    fn reporter(&self) -> &Reporter {
        self.store.reporter()
    }

    fn read_up_to(&self, limit: u64, hash: ObjectHash, kind: ObjectKind) -> Result<Vec<u8>, StoreError> {
        let path = path_of(hash, kind);
        if let Some(bytes) = self.cached(&path, limit, hash) {
            return Ok(bytes);
        }
        let bytes = self.store.read_up_to(limit, hash, kind)?;
        match self.copy(&path, bytes.as_slice()) {
            Ok((file, size)) => self.keep(&path, file, size),
            Err(error) => self.report(&error),
        }
        Ok(bytes)
    }

    /// The returned bytes are verified.
    fn open_object(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Box<dyn Read + Send>, StoreError> {
        let path = path_of(hash, kind);
        if let Some(file) = self.open_cached(&path, hash) {
            return Ok(Box::new(file));
        }
        let read_error = |source| StoreError::Read { address: self.address(&hash.path(kind)), source };
        let (mut file, size) = self.copy(&path, self.store.open_object(hash, kind)?).map_err(read_error)?;
        let actual = hash_of(hash.algorithm(), &mut file)
            .and_then(|actual| file.rewind().map(|()| actual))
            .map_err(read_error)?;
        if actual != hash {
            return Err(self.damaged(hash, kind, actual));
        }
        let opened = file.reopen().map_err(read_error)?;
        self.keep(&path, file, size);
        Ok(Box::new(opened))
    }
}

impl From<CachedStore> for SharedStore {
    fn from(store: CachedStore) -> Self {
        std::sync::Arc::new(store)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::object::ObjectHash;
    use crate::store::{DirectoryStore, Staging};

    struct Fixture {
        home: tempfile::TempDir,
        below: DirectoryStore,
    }

    impl Fixture {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let below = DirectoryStore::create(&home.path().join("storage")).unwrap();
            Self { home, below }
        }

        fn put(&self, bytes: &[u8]) -> ObjectHash {
            let staging = Staging::start(&self.below).unwrap();
            let hash = staging.put_stored(ObjectKind::File, bytes).unwrap();
            staging.flush().unwrap();
            hash
        }

        fn cache(&self, capacity: u64) -> CachedStore {
            let store: SharedStore = Arc::new(self.below.clone());
            CachedStore::new(store, &self.home.path().join("cache"), capacity).unwrap()
        }

        fn remove(&self, hash: ObjectHash) {
            fs::remove_file(self.below.path(&hash.path(ObjectKind::File))).unwrap();
        }

        fn kept(&self) -> Vec<(String, u64)> {
            existing_files(&self.home.path().join("cache")).unwrap()
        }
    }

    fn read(store: &CachedStore, hash: ObjectHash) -> Result<Vec<u8>, StoreError> {
        let mut streamed = Vec::new();
        store.open_object(hash, ObjectKind::File)?.read_to_end(&mut streamed).unwrap();
        let whole = store.read(hash, ObjectKind::File)?;
        assert_eq!(streamed, whole);
        Ok(whole)
    }

    #[test]
    fn files_are_read_through_the_cache_and_again_from_it() {
        let fixture = Fixture::new();
        for (name, bytes) in crate::store::contract::files() {
            fs::write(fixture.below.path(&name), bytes).unwrap();
        }
        let cache = fixture.cache(1 << 20);
        crate::store::contract::assert_reads(&cache);
        crate::store::contract::assert_reads(&cache);
    }

    #[test]
    fn kept_object_is_read_again_also_by_the_next_process() {
        let fixture = Fixture::new();
        let hash = fixture.put(b"stored");
        let cache = fixture.cache(1 << 20);
        assert_eq!(read(&cache, hash).unwrap(), b"stored");
        fixture.remove(hash);
        assert_eq!(read(&cache, hash).unwrap(), b"stored");
        assert_eq!(read(&fixture.cache(1 << 20), hash).unwrap(), b"stored");
    }

    #[test]
    fn damaged_file_in_the_cache_is_never_returned() {
        let fixture = Fixture::new();
        let hash = fixture.put(b"stored");
        let cache = fixture.cache(1 << 20);
        read(&cache, hash).unwrap();
        let file = fixture.home.path().join("cache").join(path_of(hash, ObjectKind::File));
        for damage in [&b"Stored"[..], b"", b"stored and more"] {
            fs::write(&file, damage).unwrap();
            assert_eq!(cache.read(hash, ObjectKind::File).unwrap(), b"stored");
            fs::write(&file, damage).unwrap();
            assert_eq!(read(&cache, hash).unwrap(), b"stored");
        }
    }

    #[test]
    fn damaged_object_of_the_store_is_not_kept() {
        let fixture = Fixture::new();
        let hash = fixture.put(b"stored");
        fs::write(fixture.below.path(&hash.path(ObjectKind::File)), "damaged").unwrap();
        let cache = fixture.cache(1 << 20);
        assert!(matches!(cache.read(hash, ObjectKind::File), Err(StoreError::WrongHash { .. })));
        assert!(matches!(cache.open_object(hash, ObjectKind::File), Err(StoreError::WrongHash { .. })));
        assert_eq!(fixture.kept(), []);
    }

    #[test]
    fn files_have_no_more_than_the_capacity_together() {
        let fixture = Fixture::new();
        let hashes: Vec<ObjectHash> = (0..40).map(|number| fixture.put(&vec![number; 1000])).collect();
        let cache = fixture.cache(10_000);
        hashes.iter().for_each(|hash| assert_eq!(read(&cache, *hash).unwrap().len(), 1000));
        let size = |files: &[(String, u64)]| files.iter().map(|(_, size)| size).sum::<u64>();
        let kept = fixture.kept();
        assert!((1000..=10_000).contains(&size(&kept)), "{kept:?}");
        // A smaller cache deletes files of an earlier process.
        drop(fixture.cache(3_000));
        assert!(size(&fixture.kept()) <= 3_000);
        // An object that does not fit is read nevertheless.
        let large = fixture.put(&[7; 20_000]);
        assert_eq!(read(&cache, large).unwrap().len(), 20_000);
    }
}
