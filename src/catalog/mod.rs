//! Catalogs: the SQLite databases in which clients look up every path. They form a tree.
//!
//! The *root catalog* describes the root of the repository. A *nested catalog* describes everything below a *transition point*, a
//! directory that has a row in the parent catalog and another row in the nested catalog. Each catalog also stores counters: clients
//! refuse a catalog without one of its counters, and `cvmfs_swissknife check` compares all counters with a recount.

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
pub use edit::{Editor, MAX_STRUCTURAL_ENTRIES, TakeCatalog};
pub use entry::{CatalogEntry, CatalogReference, Nesting, NoContent};
pub(crate) use guarded::forbid_execution;
pub use history::{HistoryError, ReferenceKind, Tag, TaggedRevision, next_history, next_reflog, read_tags};
pub use plan::{MARKER, MAX_ENTRIES, layer_without_stray_markers, without_stray_markers};
