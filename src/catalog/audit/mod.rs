//! Reads databases for a check, without refusing invalid content.
//!
//! [`Catalog`](super::Catalog) refuses an invalid database. Here a value of a wrong type, a missing table or a damaged page becomes a
//! [`Fault`], and reading continues. Only a file that SQLite cannot open at all is an error.

mod catalog;
mod database;
mod indexes;
mod pages;
mod references;
mod rules;
mod sound;
mod walk;

pub use catalog::{AuditedCatalog, AuditedChunk, AuditedReference, AuditedRow, paths_of_rows};
pub use database::Fault;
pub use references::{AuditedBranch, AuditedHistory, AuditedReflog, AuditedTag};
pub(crate) use rules::FileKind;
pub(crate) use walk::{RowVisitor, Severity, Walk};
