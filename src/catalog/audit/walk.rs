//! Walks over the rows of one catalog from its root entry downwards, and checks them.
//!
//! A check reports all violations. An edit refuses a catalog that is [unsound](Severity::Unsound), because the new signature also covers
//! the rows that it does not change. A quick check spends most of its time here, so no memory is allocated for a correct row.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use md5::{Digest as _, Md5};

use super::rules::{self, FileKind, RowFindings, RowRelations};
use super::{AuditedCatalog, AuditedChunk, AuditedReference, AuditedRow, Fault};
use crate::catalog::bits::{BIND_MOUNTPOINT, CHUNKED, EXTERNAL, TRANSITION_POINT};
use crate::catalog::{Counters, key_of, key_of_hash};
use crate::message::{escape, show};
use crate::object::ObjectHash;

/// Maximum plausible size of a catalog in bytes. CVMFS warns of catalogs from 1 GiB on.
const MAX_CATALOG_SIZE: i64 = 4 << 30;

/// Severity of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// No catalog writer causes this violation. strata refuses to change the catalog, because the new signature would cover the
    /// violation.
    Unsound,
    /// Some catalog writers cause this violation, and clients can read the catalog.
    Untidy,
}

/// Receives the findings and the rows of a walk.
pub(crate) trait RowVisitor {
    /// Receives a violation. `path` is `None` if the violation concerns the catalog as a whole.
    fn note(&self, path: Option<&[u8]>, severity: Severity, expected: &dyn Display, found: &dyn Display);

    /// Receives a row with its chunks and its reference in `bind_mountpoints`.
    fn visit(&self, path: &[u8], row: &AuditedRow, chunks: &[AuditedChunk], bound: Option<&AuditedReference>);
}

/// The input of a walk.
pub(crate) struct Walk<'w> {
    pub(crate) catalog: &'w AuditedCatalog,
    /// The directory that the catalog describes, in the form of paths in catalogs.
    pub(crate) mountpoint: &'w [u8],
    pub(crate) visitor: &'w dyn RowVisitor,
}

/// State of a walk.
struct WalkState<'w> {
    own: Tally,
    /// Indices of all rows, sorted by the key of their parent directory.
    children: Vec<u32>,
    /// By row index, whether the row was reached from the root entry.
    reached: Vec<bool>,
    /// Paths whose rows have the flag of a transition point or bind mountpoint.
    mountpoints: BTreeSet<Vec<u8>>,
    /// The directory in which each hard link group was found.
    groups: BTreeMap<u32, Vec<u8>>,
    /// Faults of single values that were not reported yet, by rowid.
    faults: BTreeMap<i64, Vec<&'w Fault>>,
}

/// A directory that was not walked yet: its path, and the index of its row.
type PendingDirectory = (Vec<u8>, u32);

impl<'w> Walk<'w> {
    /// Walks over all rows that are reachable from the root entry, whose index is `root`, and reports unreachable rows. Returns the
    /// catalog's own counters.
    pub(crate) fn run(&self, root: usize) -> Counters {
        let rows = &self.catalog.rows;
        let mut children: Vec<u32> =
            (0..u32::try_from(rows.len()).expect("a catalog of at most 4 GiB has fewer than 2^32 rows")).collect();
        // The sort is stable: rows of one directory stay in the order of their rowids.
        children.sort_by_key(|&index| rows[index as usize].parent);
        let mut seen = WalkState {
            own: Tally::default(),
            children,
            reached: vec![false; rows.len()],
            mountpoints: BTreeSet::new(),
            groups: BTreeMap::new(),
            faults: BTreeMap::new(),
        };
        for (number, fault) in self.catalog.faults.iter().filter_map(|fault| Some((fault.row?, fault))) {
            seen.faults.entry(number).or_default().push(fault);
        }
        self.check_root(root, &mut seen);
        let mut pending: Vec<PendingDirectory> = vec![(self.mountpoint.to_vec(), root as u32)];
        while let Some((path, directory)) = pending.pop() {
            self.check_directory(path, &self.catalog.rows[directory as usize], &mut seen, &mut pending);
        }
        self.check_leftovers(&seen);
        self.check_references();
        seen.own.counters(self.catalog)
    }

    fn note(&self, path: &[u8], expected: impl Display, found: impl Display) {
        self.visitor.note(Some(path), Severity::Unsound, &expected, &found);
    }

    fn note_untidy(&self, path: &[u8], expected: impl Display, found: impl Display) {
        self.visitor.note(Some(path), Severity::Untidy, &expected, &found);
    }

    fn note_of_catalog(&self, expected: impl Display, found: impl Display) {
        self.visitor.note(None, Severity::Unsound, &expected, &found);
    }

    fn check_root(&self, root: usize, seen: &mut WalkState<'w>) {
        let row = &self.catalog.rows[root];
        let slash = self.mountpoint.iter().rposition(|&b| b == b'/');
        if row.parent != slash.map_or((0, 0), |slash| key_of(&self.mountpoint[..slash])) {
            self.note(self.mountpoint, "the key of the directory above as parent", format_args!("{:?}", row.parent));
        }
        if FileKind::of(row) != Some(FileKind::Directory) {
            self.note(self.mountpoint, "a directory as root entry", format_args!("mode {:o}", row.mode));
        }
        // Clients give the first row the inode of the root.
        if self.mountpoint.is_empty() && row.rowid != 1 {
            self.note(self.mountpoint, "the root entry in row 1", format_args!("row {}", row.rowid));
        }
        let (name, found) = (slash.map_or(&b""[..], |slash| &self.mountpoint[slash + 1..]), self.catalog.name(row));
        if found != name {
            let expected = format!("name '{}'", escape(name));
            self.note(self.mountpoint, expected, format_args!("'{}'", escape(found)));
        }
        self.check_row(self.mountpoint, key_of(self.mountpoint), root, seen);
    }

    /// Returns the range of the sorted rows whose parent directory has this key.
    fn children(&self, seen: &WalkState<'_>, key: (i64, i64)) -> std::ops::Range<usize> {
        let parent = |index: &u32| self.catalog.rows[*index as usize].parent;
        let start = seen.children.partition_point(|index| parent(index) < key);
        let count = seen.children[start..].iter().take_while(|index| parent(index) == key).count();
        start..start + count
    }

    /// Checks the children of one directory, and adds its subdirectories to `pending`.
    fn check_directory(
        &self,
        mut path: Vec<u8>,
        directory: &AuditedRow,
        seen: &mut WalkState<'w>,
        pending: &mut Vec<PendingDirectory>,
    ) {
        let (mut directories, mut links, mut has_marker) = (0, BTreeMap::<u32, Vec<&AuditedRow>>::new(), false);
        let children = self.children(seen, key_of(&path));
        let length = path.len();
        path.push(b'/');
        // The keys of all children are hashes that begin with the path of the directory.
        let hash = Md5::new_with_prefix(&path);
        for position in children {
            let index = seen.children[position] as usize;
            if std::mem::replace(&mut seen.reached[index], true) {
                continue;
            }
            let row = &self.catalog.rows[index];
            let name = self.catalog.name(row);
            path.truncate(length + 1);
            path.extend_from_slice(name);
            let key = key_of_hash(hash.clone().chain_update(name).finalize().into());
            self.check_row(&path, key, index, seen);
            has_marker |= name == b".cvmfscatalog";
            match FileKind::of(row) {
                Some(FileKind::Directory) => {
                    directories += 1;
                    if self.is_mountpoint(&path, row) {
                        self.check_mountpoint(&path, key, seen);
                    } else {
                        pending.push((path.clone(), index as u32));
                    }
                }
                _ if row.link_group > 0 => links.entry(row.link_group).or_default().push(row),
                _ => {}
            }
        }
        path.truncate(length);
        if directory.link_count != directories + 2 {
            let expected = format!("link count {} of a directory with {directories} others in it", directories + 2);
            self.note_untidy(&path, expected, directory.link_count);
        }
        if has_marker != (path == self.mountpoint) && !path.is_empty() {
            let found = if has_marker { "one elsewhere" } else { "none" };
            self.note_untidy(&path, ".cvmfscatalog at the top of each nested catalog, and only there", found);
        }
        for (group, links) in links {
            self.check_link_group(&path, group, &links, seen);
        }
    }

    fn is_mountpoint(&self, path: &[u8], row: &AuditedRow) -> bool {
        row.flags & (TRANSITION_POINT | BIND_MOUNTPOINT) != 0 || self.catalog.nested.contains_key(path)
    }

    fn check_mountpoint(&self, path: &[u8], key: (i64, i64), seen: &mut WalkState<'w>) {
        if !self.children(seen, key).is_empty() {
            self.note(path, "nothing below a transition point in the same catalog", "rows");
        }
        if self.catalog.nested.contains_key(path) && self.catalog.bound.contains_key(path) {
            self.note(path, "a row in one of nested_catalogs and bind_mountpoints", "both");
        }
        seen.mountpoints.insert(path.to_vec());
    }

    fn check_row(&self, path: &[u8], key: (i64, i64), index: usize, seen: &mut WalkState<'w>) {
        seen.reached[index] = true;
        let row = &self.catalog.rows[index];
        let findings = RowFindings { visitor: self.visitor, path };
        if row.key != key {
            findings.note(format_args!("the key {key:?} of the path"), format_args!("{:?}", row.key));
        }
        if !seen.faults.is_empty() {
            for fault in seen.faults.remove(&row.rowid).unwrap_or_default() {
                findings.note(&fault.expected, &fault.found);
            }
        }
        let (kind, bound) = (FileKind::of(row), self.catalog.bound.get(path));
        let chunks = if self.catalog.chunks.is_empty() { &[][..] } else { self.catalog.chunks_of(key) };
        let relations = RowRelations {
            is_nested_root: path == self.mountpoint && !path.is_empty(),
            is_transition_point: kind == Some(FileKind::Directory) && self.catalog.nested.contains_key(path),
            is_bind_mountpoint: bound.is_some(),
            has_chunks: !chunks.is_empty(),
        };
        rules::check_name(self.catalog.name(row), path.is_empty(), &findings);
        rules::check_row(self.catalog, row, relations, &findings);
        seen.own.add(row, kind, self.catalog.xattr(row).is_some());
        if kind == Some(FileKind::Regular) && row.flags & CHUNKED != 0 {
            self.check_chunks(path, row, chunks);
        }
        self.visitor.visit(path, row, chunks, bound);
    }

    fn check_chunks(&self, path: &[u8], row: &AuditedRow, chunks: &[AuditedChunk]) {
        let mut end = 0;
        for chunk in chunks {
            if chunk.offset != end {
                self.note(path, format_args!("a chunk at offset {end}"), chunk.offset);
            }
            if chunk.size < 0 || chunk.size == 0 && row.size > 0 {
                self.note(path, "chunks of at least one byte", chunk.size);
            }
            if chunk.hash.as_ref().is_none_or(|hash| hash.len() != 20) {
                self.note(path, "a hash of 20 bytes for each chunk", format_args!("{:02x?}", chunk.hash));
            }
            end = chunk.offset.saturating_add(chunk.size);
        }
        if end != row.size || chunks.is_empty() {
            self.note(path, format_args!("chunks up to the end of the file at {}", row.size), end);
        }
    }

    /// Checks a hard link group: all links must be in one directory and differ only in their names.
    fn check_link_group(&self, directory: &[u8], group: u32, links: &[&AuditedRow], seen: &mut WalkState<'w>) {
        if links[0].link_count as usize != links.len() {
            let expected = format!("link count {} in group {group}", links.len());
            self.note(directory, expected, links[0].link_count);
        }
        for link in links.iter().filter(|link| !self.catalog.are_alike(link, links[0])) {
            let found = format!("other attributes for '{}'", escape(self.catalog.name(link)));
            self.note(directory, format_args!("links of group {group} that differ only in their names"), found);
        }
        if let Some(other) = seen.groups.insert(group, directory.to_vec()) {
            self.note(
                directory,
                format_args!("hard link group {group} in one directory"),
                format_args!("it in {} too", show(&other)),
            );
        }
    }

    /// Reports rows, chunks and references that were not reached from the root entry.
    fn check_leftovers(&self, seen: &WalkState<'w>) {
        let rows = self.catalog.rows.iter().zip(&seen.reached);
        for (row, _) in rows.filter(|(_, is_reached)| !**is_reached) {
            let found = format!("row {} with name '{}'", row.rowid, escape(self.catalog.name(row)));
            self.note_of_catalog("only rows that the root entry leads to", found);
        }
        for fault in seen.faults.values().flatten() {
            self.note_of_catalog(&fault.expected, &fault.found);
        }
        let stray: BTreeSet<_> = match self.catalog.chunks.is_empty() {
            true => BTreeSet::new(),
            false => {
                let chunked = self.catalog.rows.iter().filter(|row| row.flags & CHUNKED != 0);
                let with_chunks: BTreeSet<_> = chunked.map(|row| row.key).collect();
                let keys = self.catalog.chunks.iter().map(|chunk| chunk.key);
                keys.filter(|key| !with_chunks.contains(key)).collect()
            }
        };
        for key in stray {
            self.note_of_catalog("chunks of chunked files only", format_args!("some for the path with key {key:?}"));
        }
        let registered: BTreeSet<Vec<u8>> =
            self.catalog.nested.keys().chain(self.catalog.bound.keys()).cloned().collect();
        for path in registered.symmetric_difference(&seen.mountpoints) {
            let found = if registered.contains(path) { "a reference alone" } else { "a transition point alone" };
            self.note(path, "a transition point and a reference to its catalog", found);
        }
    }

    /// Checks the references to other catalogs: hash, size, and a path below this catalog.
    fn check_references(&self) {
        for (table, references) in
            [("nested_catalogs", &self.catalog.nested), ("bind_mountpoints", &self.catalog.bound)]
        {
            for (path, reference) in references {
                if reference.hash.parse::<ObjectHash>().is_err() {
                    self.note(path, format_args!("a hash in {table}"), &reference.hash);
                }
                if !path.strip_prefix(self.mountpoint).is_some_and(|rest| rest.len() > 1 && rest[0] == b'/') {
                    self.note(path, "a nested catalog below the one that refers to it", "another path");
                }
                if !(0..=MAX_CATALOG_SIZE).contains(&reference.size) {
                    self.note(path, format_args!("a size of up to {MAX_CATALOG_SIZE} in {table}"), reference.size);
                }
            }
        }
    }
}

/// Counters of rows. Sums saturate, because sizes come from an untrusted file.
#[derive(Default)]
struct Tally {
    regular: i64,
    symlink: i64,
    special: i64,
    dir: i64,
    chunked: i64,
    file_size: i64,
    chunked_size: i64,
    xattr: i64,
    external: i64,
    external_file_size: i64,
}

impl Tally {
    fn add(&mut self, row: &AuditedRow, kind: Option<FileKind>, has_xattr: bool) {
        self.xattr += i64::from(has_xattr);
        match kind {
            Some(FileKind::Directory) => self.dir += 1,
            Some(FileKind::Symlink) => self.symlink += 1,
            Some(FileKind::Device | FileKind::FifoOrSocket) => self.special += 1,
            Some(FileKind::Regular) => self.add_regular(row),
            None => {}
        }
    }

    fn add_regular(&mut self, row: &AuditedRow) {
        self.regular += 1;
        self.file_size = self.file_size.saturating_add(row.size);
        if row.flags & CHUNKED != 0 {
            self.chunked += 1;
            self.chunked_size = self.chunked_size.saturating_add(row.size);
        }
        if row.flags & EXTERNAL != 0 {
            self.external += 1;
            self.external_file_size = self.external_file_size.saturating_add(row.size);
        }
    }

    fn counters(&self, catalog: &AuditedCatalog) -> Counters {
        let value = |name| {
            Some(match name {
                "regular" => self.regular,
                "symlink" => self.symlink,
                "special" => self.special,
                "dir" => self.dir,
                "nested" => catalog.nested.len() as i64,
                "chunked" => self.chunked,
                "chunks" => catalog.chunks.len() as i64,
                "file_size" => self.file_size,
                "chunked_size" => self.chunked_size,
                "xattr" => self.xattr,
                "external" => self.external,
                "external_file_size" => self.external_file_size,
                _ => return None,
            })
        };
        Counters::from_named(value).expect("the closure returns a value for every counter")
    }
}
