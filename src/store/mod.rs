//! The storage of a repository: its objects, and the signed files beside them.
//!
//! An object may be added at any time without effect on clients, because only the manifest makes objects reachable, and the
//! manifest is replaced last.

mod cached;
mod content;
#[cfg(test)]
pub(crate) mod contract;
mod directory;
mod directory_states;
mod error;
mod file_system;
mod http;
mod interface;
mod listing;
mod local_server;
mod runs;
mod staging;

pub use cached::CachedStore;
pub use content::{ContentError, ContentObject};
pub use directory::{DirectoryStore, PublishLock};
pub use directory_states::ObjectDirectoryStates;
pub use error::{RepositoryInUse, StoreError};
pub use http::HttpStore;
pub use interface::{FileVersion, SharedStore, Store};
pub use listing::{EntryForm, ListedEntry, StoreListing};
pub use local_server::{LocalServer, ServerLock};
pub use staging::{BatchMover, Staging, WrittenObjects};
