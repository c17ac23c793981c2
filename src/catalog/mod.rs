//! Catalogs: the SQLite databases in which clients look up every path, one below the other.
//!
//! A *root catalog* holds the root of the repository; a *nested catalog* holds what lies below a *transition point*, a
//! directory that has a row in both. Their numbers must agree to the last one, or clients refuse to attach the file.

pub mod audit;
pub(crate) mod bits;
mod build;
mod counters;
mod database;
mod edit;
mod entry;
mod guarded;
mod history;
mod plan;
mod xattr;

pub use build::{BuildError, CatalogBuilder, FACTS, StoredTree};
pub use counters::Counters;
pub use database::{Catalog, CatalogError, StoredObject};
pub(crate) use database::{PathKey, key_of, key_of_hash};
pub use edit::{Editor, MAXIMUM_STRUCTURAL_ENTRIES, TakeCatalog};
pub use entry::{CatalogEntry, CatalogReference, Nesting};
pub(crate) use guarded::forbid_execution;
pub use history::{HistoryError, ReferenceKind, Tag, TaggedRevision, next_history, next_reflog, read_tags};
pub use plan::{MARKER, MAXIMUM_ENTRIES, layer_without_stray_markers, without_stray_markers};
