//! What every kind of storage of a repository offers to publishers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Store, StoreError};
use crate::cancel::Cancellation;
use crate::object::{ObjectHash, ObjectKind};

/// A writable store that several operations share.
pub type SharedWritableStore = Arc<dyn WritableStore>;

/// Name and kind of an object.
pub type ObjectName = (ObjectHash, ObjectKind);

/// Decides about an object that exists under the name of a new one of this size in bytes. Returns whether the existing object stays.
pub type KeepsExisting<'k> = dyn Fn(ObjectName, u64) -> Result<bool, StoreError> + Sync + 'k;

/// A store to which objects can be added, and whose other files can be replaced.
pub trait WritableStore: Store {
    /// Starts a run, which writes new objects.
    fn start_run(&self) -> Result<Box<dyn StoreRun>, StoreError>;

    /// Returns the stored size of an object like [`Store::stored_size`], and makes the object as young as a new one, which protects
    /// it from garbage collection. The age of an object that is younger than an hour may stay as it is.
    fn renew(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<u64>, StoreError>;

    /// Returns the time since an object was written or renewed, or `None` if it does not exist. The age of an object from the future
    /// is zero.
    fn age(&self, hash: ObjectHash, kind: ObjectKind) -> Result<Option<Duration>, StoreError>;

    /// Deletes objects. Those that do not exist are skipped. After an error, some of the objects may be deleted.
    fn delete(&self, objects: &[ObjectName]) -> Result<(), StoreError>;

    /// Waits until everything that was written so far is durable.
    fn sync(&self) -> Result<(), StoreError>;

    /// Locks the repository against other publishers, and waits up to `wait` for a publisher that holds the lock.
    ///
    /// The lock is released when the returned value is dropped, or some time after the process has ended.
    fn lock(&self, wait: Duration) -> Result<PublishLock, StoreError>;

    /// Returns a value that changes when an object is deleted, and that may change at other times. A storage that cannot tell whether
    /// another program has deleted objects returns a value that never repeats.
    fn objects_version(&self) -> ObjectsVersion;

    /// Returns the free space in bytes, or `None` if the storage does not report it.
    fn free_bytes(&self) -> Option<u64>;

    /// Returns the token that cancels the operations on this store.
    fn cancellation(&self) -> &Cancellation;
}

/// The new objects of one run, until they have their names in the store. Dropping it deletes the objects that have no name yet.
///
/// [`Staging`](super::Staging) keeps account of the objects; this is only how they are written and made durable.
pub trait StoreRun: fmt::Debug + Send + Sync {
    /// Writes an object, which readers of the store must not see before [`Self::name_objects`]: discarding it must not remove an object
    /// that another run relies on.
    fn write(&self, object: ObjectName, stored: &[u8]) -> Result<(), StoreError>;

    /// Makes written objects durable, and then gives them their names. An object whose name exists is discarded if `keeps_existing`
    /// returns true for it, and otherwise replaces the existing one.
    ///
    /// The names themselves are durable after the next [`WritableStore::sync`]. After an error, some of the objects have their names.
    fn name_objects(&self, objects: &[ObjectName], keeps_existing: &KeepsExisting<'_>) -> Result<(), StoreError>;

    /// Deletes written objects that have no name yet. Those that do not exist are skipped.
    fn discard(&self, objects: &[ObjectName]);

    /// Returns whether [`Self::name_objects`] may overwrite existing objects without noticing them, so that each object must be
    /// looked up before it is written.
    fn overwrites_unnoticed(&self) -> bool;

    /// Returns the version of the objects: at the start of this run, or after its last change.
    fn objects_version(&self) -> ObjectsVersion;

    /// Returns the version of the objects, or `None` if an object may have been deleted during the run. Any later deletion yields
    /// another version.
    fn final_objects_version(&self) -> Option<ObjectsVersion>;

    /// Replaces files beside the objects, such as `.cvmfspublished`, each atomically and in the given order.
    ///
    /// Each file has either its old or its new content, also after an error or a crash. If a file has other content than it must have,
    /// this fails with [`StoreError::Changed`], and that file and the later ones stay. When the last file is replaced, clients see `revision`; it is `None` if no client can see the
    /// store yet. Errors after this replacement are returned as values, because the revision is published.
    fn replace_files(&self, files: &[NewFile<'_>], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError>;
}

/// New content of a file beside the objects.
#[derive(Debug, Clone)]
pub struct NewFile<'f> {
    /// Name of the file.
    pub name: &'f str,
    /// Its new content.
    pub bytes: &'f [u8],
    /// The content that the file must have to be replaced, or `Some(None)` if it must not exist. `None` replaces any content.
    pub replaces: Option<Option<&'f [u8]>>,
}

impl<'f> NewFile<'f> {
    /// Returns new content that replaces any other.
    pub fn new(name: &'f str, bytes: &'f [u8]) -> Self {
        Self { name, bytes, replaces: None }
    }

    /// Returns the same new content, which replaces only this content. `None` means that the file must not exist.
    #[must_use]
    pub fn replacing(self, content: Option<&'f [u8]>) -> Self {
        Self { replaces: Some(content), ..self }
    }

    /// Fails if the file in `store` has other content than it must have.
    pub(super) fn check_replaced(&self, store: &dyn Store) -> Result<(), StoreError> {
        let Some(required) = self.replaces else { return Ok(()) };
        match store.get(self.name, required.map_or(0, |content| content.len() as u64)) {
            Ok(content) if content.as_deref() == required => Ok(()),
            Ok(_) | Err(StoreError::TooLarge { .. }) => Err(StoreError::Changed { address: store.address(self.name) }),
            Err(error) => Err(error),
        }
    }
}

/// Identifies the set of objects in a store: while the value is the same, no object has been deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectsVersion(pub(super) Vec<u8>);

impl ObjectsVersion {
    /// Returns the version in a form that can be stored and compared.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Excludes other publishers until it is dropped.
#[derive(Debug)]
#[must_use = "the lock is released when it is dropped"]
pub struct PublishLock {
    _held: Box<dyn fmt::Debug + Send>,
}

impl PublishLock {
    /// Returns a lock that is released when `held` is dropped.
    pub(super) fn new(held: impl fmt::Debug + Send + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}
