//! The storage of a repository: its objects, and the signed files beside them.
//!
//! An object may be added at any time without effect on clients, because only the manifest makes objects reachable, and the
//! manifest is replaced last.

mod content;
mod directory;
mod directory_states;
mod file_system;
mod local_server;
mod runs;
mod staging;

pub use content::ContentError;
pub(crate) use content::ContentObject;
pub use directory::{DirectoryStore, PublishLock, RepositoryInUse, StoreError};
pub use directory_states::ObjectDirectoryStates;
pub use local_server::{LocalServer, ServerLock};
pub use staging::{BatchMover, Staging, WrittenObjects};
