//! The storage of a repository: its objects, and the signed files beside them.
//!
//! An object may be added at any time without effect on clients, because only the manifest makes objects reachable, and the
//! manifest is replaced last.

mod cached;
mod content;
#[cfg(test)]
pub(crate) mod contract;
mod directory;
mod error;
mod http;
mod interface;
mod layered;
mod listing;
mod local_server;
mod memory;
mod staging;
mod writable;

use std::time::Duration;

pub use cached::CachedStore;
pub use content::{ContentError, ContentObject};
pub use directory::DirectoryStore;
pub use error::{RepositoryInUse, StoreError};
pub use http::HttpStore;
use interface::is_object_size;
pub use interface::{SharedStore, Store};
pub use layered::LayeredStore;
pub use listing::{EntryForm, ListedEntry, StoreListing};
pub use local_server::{LocalServer, ServerLock};
pub use memory::MemoryStore;
pub use staging::{BatchMover, Staging, WrittenObjects};
pub use writable::{
    KeepsExisting, NewFile, ObjectName, ObjectsVersion, PublishLock, SharedWritableStore, StoreRun, WritableStore,
};

/// Interval between two attempts to take a lock.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(50);
