//! Databases as whoever wrote them left them, for a check to judge.
//!
//! [`Catalog`](super::Catalog) refuses what it cannot use. Here nothing is refused but what SQLite itself cannot read: a cell
//! of a wrong type, a missing table or a damaged page becomes a [`Fault`], and the rest is read on.

mod algorithm;
mod catalog;
mod database;
mod indexes;
mod pages;
mod references;
mod rules;
mod sound;
mod walk;

pub(crate) use algorithm::{Algorithm, split_hash};
pub use catalog::{AuditedCatalog, AuditedChunk, AuditedReference, AuditedRow, paths_of_rows};
pub use database::Fault;
pub use references::{AuditedBranch, AuditedHistory, AuditedReflog, AuditedTag};
pub(crate) use rules::Kind;
pub(crate) use walk::{Gravity, RowVisitor, Walk};
