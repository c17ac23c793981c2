//! State that strata keeps between runs, in the directory `state`: the content index, finished trees, verified blobs and failures.
//!
//! The state only saves time. The directory may be deleted while no strata runs, and every entry is verified against the store
//! before it is used.

mod database;
mod index;

pub use database::{ContentKey, ImageFailure, KnownObject, StateDatabase, StateError, StoredTreeNote, VerifiedBlob};
pub use index::{ContentIndex, IndexError};
