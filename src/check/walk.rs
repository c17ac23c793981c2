//! Checks the rows of one catalog, and collects the objects to which they refer.

use std::cell::RefCell;
use std::fmt::Display;

use super::Check;
use super::finding::Location;
use super::name::ObjectName;
use super::reference::{Reference, StoredForm};
use super::scope::Scope;
use crate::catalog::Counters;
use crate::catalog::audit::{
    AuditedCatalog, AuditedChunk, AuditedReference, AuditedRow, FileKind, RowVisitor, Severity, Walk,
};
use crate::catalog::bits::{EXTERNAL, hash_algorithm, is_uncompressed};
use crate::object::{ObjectHash, ObjectKind};

/// The rows of a catalog that is being checked.
pub(super) struct CheckedRows<'w> {
    pub(super) check: &'w Check<'w>,
    pub(super) scope: &'w Scope,
    pub(super) catalog: &'w AuditedCatalog,
    /// The file of the catalog.
    pub(super) file: &'w str,
    /// The number of the catalog.
    pub(super) number: u32,
    /// The objects to which the rows refer.
    pub(super) references: RefCell<Vec<Reference>>,
}

impl RowVisitor for CheckedRows<'_> {
    fn note(&self, path: Option<&[u8]>, _: Severity, expected: &dyn Display, found: &dyn Display) {
        let file = Location::file(self.file);
        self.check.findings.note(&path.map_or(file.clone(), |path| file.at(path)), expected, found);
    }

    fn visit(&self, path: &[u8], row: &AuditedRow, chunks: &[AuditedChunk], bound: Option<&AuditedReference>) {
        if let Some(bound) = bound {
            self.references.borrow_mut().extend(self.bound_catalog(path, row, bound));
        }
        if FileKind::of(row) == Some(FileKind::Regular) {
            self.add_content(path, row, chunks);
        }
    }
}

impl CheckedRows<'_> {
    /// Checks all rows below `root`, the index of the root entry, and returns the counters of this catalog without nested
    /// catalogs.
    pub(super) fn walk(&self, root: usize, mountpoint: &[u8]) -> Counters {
        Walk { catalog: self.catalog, mountpoint, visitor: self }.run(root)
    }

    /// Returns the reference to a bind-mounted catalog. Its content is not checked here.
    fn bound_catalog(&self, path: &[u8], row: &AuditedRow, bound: &AuditedReference) -> Option<Reference> {
        let name = ObjectName::of_text(&bound.hash, ObjectKind::Catalog);
        let size = u64::try_from(bound.size).ok().filter(|&size| size > 0).unwrap_or(Reference::ANY_SIZE);
        let (name, catalog, row) = (name.filter(|_| self.scope.holds(path))?, self.number, row.rowid);
        Some(Reference { name, form: StoredForm::Packed, size, catalog, row })
    }

    fn add_content(&self, path: &[u8], row: &AuditedRow, chunks: &[AuditedChunk]) {
        let Some(algorithm) = hash_algorithm(row.flags) else { return };
        // An external file has no object: clients fetch it from another URL.
        if row.flags & EXTERNAL != 0 || !self.scope.holds(path) {
            return;
        }
        let form = match is_uncompressed(row.flags) {
            Ok(true) => StoredForm::Raw,
            Ok(false) => StoredForm::Packed,
            Err(compression) => StoredForm::Unsupported(compression),
        };
        let refer = |hash: Option<&[u8]>, size: i64, kind| {
            let name = ObjectName::of(ObjectHash::new(algorithm, hash?.try_into().ok()?), kind);
            Some(Reference { name, form, size: size.cast_unsigned(), catalog: self.number, row: row.rowid })
        };
        let mut references = self.references.borrow_mut();
        references.extend(refer(self.catalog.hash(row), row.size, ObjectKind::File).filter(|_| row.size >= 0));
        let chunks = chunks.iter().filter(|chunk| chunk.size >= 0);
        references.extend(chunks.filter_map(|chunk| refer(chunk.hash.as_deref(), chunk.size, ObjectKind::Chunk)));
    }
}
