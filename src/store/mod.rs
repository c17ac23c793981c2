//! The storage of a repository: its objects, and the signed files beside them.
//!
//! An object may be added at any time without effect on clients, because only the manifest makes objects reachable, and the
//! manifest is replaced last.

mod content;
mod directory;
mod file_system;
mod local_server;
mod marks;
mod runs;
mod staging;

pub use content::ContentError;
pub(crate) use content::Piece;
pub use directory::{DirectoryStore, Held, Lock, StoreError};
pub use local_server::{LocalServer, ServerLock};
pub use marks::Marks;
pub use runs::{Deadline, Making, Unfinished, abandon_runs};
pub(crate) use runs::{syncing, uninterrupted};
pub use staging::{Mover, Staging, Written};
