//! What strata remembers between runs, in the directory `state`: the content index, finished trees, verified blobs and failures.
//!
//! All of it saves time and nothing else. It may be deleted while no strata runs, and is never relied upon without a look at the
//! store.

mod database;
mod index;

pub use database::{ContentKey, ImageFailure, KnownObject, StateDatabase, StateError, StoredTreeNote, VerifiedBlob};
pub use index::{ContentIndex, IndexError};
