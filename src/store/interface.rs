//! What every kind of storage of a repository offers to readers.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use super::content::{self, ContentError, ContentObject};
use super::{StoreError, StoreListing};
use crate::object::{ObjectHash, ObjectKind, SizeLimit, decode};
use crate::observer::Reporter;

/// A store that several readers share.
pub type SharedStore = Arc<dyn Store>;

/// Maximum size in bytes of every file beside the objects, except the reflog.
const MAX_SMALL_FILE: u64 = 64 << 10;

/// The storage of one repository: files by their names relative to its root, such as `.cvmfspublished` and
/// `data/3f/c8…a1C`.
///
/// An implementation returns files as they are stored. The provided methods compare objects with their names, and decompress
/// them.
pub trait Store: fmt::Debug + Send + Sync {
    /// Returns the path or URL of a file, for messages.
    fn address(&self, name: &str) -> String;

    /// Returns a whole file, or `None` if it does not exist. A file of more than `limit` bytes is an error.
    fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError>;

    /// Opens a file of any size, or returns `None` if it does not exist.
    fn open(&self, name: &str) -> Result<Option<Box<dyn Read + Send>>, StoreError>;

    /// Returns the size of a file in bytes, or `None` if it does not exist.
    fn head(&self, name: &str) -> Result<Option<u64>, StoreError>;

    /// Returns the servers with this storage, each by itself. A storage that is not on servers returns none.
    ///
    /// Requests to all servers begin with the server that answered last, also if it was asked by itself.
    fn servers(&self) -> Vec<SharedStore> {
        Vec::new()
    }

    /// Returns the interface that lists the files, if this kind of storage can list them.
    fn listing(&self) -> Option<&dyn StoreListing>;

    /// Returns the reporter to the observer of this store.
    fn reporter(&self) -> &Reporter;

    /// Returns the content of a small file beside the objects, or `None` if it does not exist.
    fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(name, MAX_SMALL_FILE)
    }

    /// Returns the stored size of an object in bytes, or `None` if it does not exist.
    ///
    /// An empty file counts as missing, because other tools leave empty files after a crash. The only valid empty object is
    /// that of an empty file which is stored uncompressed.
    fn stored_size(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError> {
        Ok(self.head(&hash.path(kind))?.filter(|&size| is_object_size(size, hash)))
    }

    /// Opens an object. The caller must compare the bytes with the name.
    fn open_object(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Box<dyn Read + Send>, StoreError> {
        let name = hash.path(kind);
        self.open(&name)?.ok_or_else(|| StoreError::Missing { address: self.address(&name) })
    }

    /// Returns the error for an object whose bytes hash to `actual`.
    fn damaged(&self, hash: ObjectHash, kind: ObjectKind, actual: ObjectHash) -> StoreError {
        StoreError::WrongHash { address: self.address(&hash.path(kind)), actual }
    }

    /// Returns the stored size of an object in bytes.
    fn object_size(&self, hash: ObjectHash, kind: ObjectKind) -> Result<u64, StoreError> {
        let name = hash.path(kind);
        self.head(&name)?.ok_or_else(|| StoreError::Missing { address: self.address(&name) })
    }

    /// Returns the stored bytes of an object, after comparing them with its name.
    fn read(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Vec<u8>, StoreError> {
        self.read_up_to(u64::MAX, hash, kind)
    }

    /// Returns the stored bytes of an object like [`Self::read`]. More than `limit` bytes are an error.
    fn read_up_to(&self, limit: u64, hash: ObjectHash, kind: ObjectKind) -> Result<Vec<u8>, StoreError> {
        let name = hash.path(kind);
        let bytes = self.get(&name, limit)?.ok_or_else(|| StoreError::Missing { address: self.address(&name) })?;
        match hash.algorithm().hash(&bytes) {
            actual if actual == hash => Ok(bytes),
            actual => Err(self.damaged(hash, kind, actual)),
        }
    }

    /// Returns the decompressed content of an object that is a zlib stream.
    fn read_decoded(&self, hash: ObjectHash, kind: ObjectKind, limit: SizeLimit) -> Result<Vec<u8>, StoreError> {
        let undecodable = |source| StoreError::Undecodable { address: self.address(&hash.path(kind)), source };
        decode(&self.read_up_to(limit.stored(), hash, kind)?, limit).map_err(undecodable)
    }

    /// Returns the content of a file that fits in memory. An object that is stored in more than `limit` bytes is an error.
    fn read_content(&self, object: ContentObject, limit: u64) -> Result<Vec<u8>, ContentError> {
        content::decompress(object, self.read_up_to(limit, object.hash, object.kind)?)
    }

    /// Passes the content of an object of any size to `receive`, from the first byte to the last.
    ///
    /// The hash of the object is known only at the end. Therefore the passed bytes are verified only if this returns `Ok`.
    fn stream_content(
        &self,
        object: ContentObject,
        receive: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ContentError> {
        let actual = content::stream(object, self.open_object(object.hash, object.kind)?, receive);
        match actual? {
            (actual, _) if actual != object.hash => Err(self.damaged(object.hash, object.kind, actual).into()),
            (_, unpacked) => unpacked,
        }
    }

    /// Returns whether the bytes of an object match its name. An object that cannot be read does not match.
    fn is_intact(&self, hash: ObjectHash, kind: ObjectKind) -> bool {
        self.open_object(hash, kind)
            .is_ok_and(|stored| content::hash_of(hash.algorithm(), stored).is_ok_and(|actual| actual == hash))
    }
}

/// Returns whether a file of this size can be the object with this hash.
pub(super) fn is_object_size(size: u64, hash: ObjectHash) -> bool {
    // A zlib stream of no content still has 8 bytes, so only an uncompressed object can be empty.
    size > 0 || hash == hash.algorithm().hash(b"")
}
