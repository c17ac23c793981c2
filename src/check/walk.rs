//! The walk over the rows of one catalog, from its root entry down.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Check;
use super::finding::{Place, escape, show};
use super::name::{Algorithm, ObjectName};
use super::reference::{Form, Reference};
use super::rules::{self, Kind, Surroundings};
use super::scope::Scope;
use crate::catalog::audit::{AuditedCatalog, AuditedChunk, AuditedReference, AuditedRow, Fault};
use crate::catalog::bits::{BIND_MOUNTPOINT, CHUNKED, EXTERNAL, TRANSITION_POINT, UNCOMPRESSED};
use crate::catalog::key_of;
use crate::object::ObjectKind;

/// What a walk leads to.
pub(super) struct Walked {
    /// The catalog's own counters, by name.
    pub(super) own: BTreeMap<&'static str, i64>,
    /// The objects of its rows.
    pub(super) references: Vec<Reference>,
}

/// A catalog being walked.
pub(super) struct Walk<'w> {
    pub(super) check: &'w Check<'w>,
    pub(super) scope: &'w Scope,
    pub(super) catalog: &'w AuditedCatalog,
    /// The folder that the catalog is mounted on, as catalogs spell it.
    pub(super) mountpoint: &'w [u8],
    /// The object that holds it.
    pub(super) file: &'w str,
    /// Its number.
    pub(super) number: u32,
}

/// What a walk has seen so far.
#[derive(Default)]
struct Seen<'w> {
    walked: Option<Walked>,
    /// Rows by the folder that they lie in.
    children: HashMap<(i64, i64), Vec<&'w AuditedRow>>,
    /// Numbers of rows that the root entry leads to.
    reached: BTreeSet<i64>,
    /// Paths whose rows say that another catalog begins there.
    mountpoints: BTreeSet<Vec<u8>>,
    /// The folder that each hard link group was seen in.
    groups: BTreeMap<u32, Vec<u8>>,
    /// What is wrong with single cells, by row.
    faults: BTreeMap<i64, Vec<&'w Fault>>,
}

impl Seen<'_> {
    fn walked(&mut self) -> &mut Walked {
        self.walked.get_or_insert_with(|| Walked { own: BTreeMap::new(), references: Vec::new() })
    }
}

impl<'w> Walk<'w> {
    /// Checks all rows that `root`, the root entry, leads to, and that there are no others.
    pub(super) fn run(&self, root: &'w AuditedRow) -> Walked {
        let mut seen = Seen::default();
        for row in &self.catalog.rows {
            seen.children.entry(row.parent).or_default().push(row);
        }
        for (number, fault) in self.catalog.faults.iter().filter_map(|fault| Some((fault.row?, fault))) {
            seen.faults.entry(number).or_default().push(fault);
        }
        self.check_root(root, &mut seen);
        let mut folders = vec![(self.mountpoint.to_vec(), root)];
        while let Some((path, folder)) = folders.pop() {
            self.check_folder(&path, folder, &mut seen, &mut folders);
        }
        self.check_leftovers(&seen);
        let nested = self.catalog.nested.len() as i64;
        let chunks = self.catalog.chunks.values().map(Vec::len).sum::<usize>() as i64;
        let walked = seen.walked();
        walked.own.extend([("nested", nested), ("chunks", chunks)]);
        seen.walked.take().expect("it was just made")
    }

    fn place(&self, path: &[u8]) -> Place {
        Place::file(self.file).at(path)
    }

    fn note(&self, path: &[u8], expected: impl std::fmt::Display, found: impl std::fmt::Display) {
        self.check.findings.note(&self.place(path), expected, found);
    }

    fn check_root(&self, root: &'w AuditedRow, seen: &mut Seen<'w>) {
        let slash = self.mountpoint.iter().rposition(|&b| b == b'/');
        if root.parent != slash.map_or((0, 0), |slash| key_of(&self.mountpoint[..slash])) {
            self.note(self.mountpoint, "the key of the folder above as parent", format_args!("{:?}", root.parent));
        }
        if Kind::of(root) != Some(Kind::Directory) {
            self.note(self.mountpoint, "a folder as root entry", format_args!("mode {:o}", root.mode));
        }
        // Clients give the first row the inode of the root.
        if self.mountpoint.is_empty() && root.rowid != 1 {
            self.note(self.mountpoint, "the root entry in row 1", format_args!("row {}", root.rowid));
        }
        let name = slash.map_or(&b""[..], |slash| &self.mountpoint[slash + 1..]);
        if *root.name != *name {
            self.note(
                self.mountpoint,
                format_args!("name '{}'", escape(name)),
                format_args!("'{}'", escape(&root.name)),
            );
        }
        self.check_row(self.mountpoint, root, seen);
    }

    /// Checks what lies in one folder, and adds its own folders to those to be checked.
    fn check_folder(
        &self,
        path: &[u8],
        folder: &AuditedRow,
        seen: &mut Seen<'w>,
        ahead: &mut Vec<(Vec<u8>, &'w AuditedRow)>,
    ) {
        let (mut folders, mut links, mut has_marker) = (0, BTreeMap::<u32, Vec<&AuditedRow>>::new(), false);
        for row in seen.children.remove(&key_of(path)).unwrap_or_default() {
            if !seen.reached.insert(row.rowid) {
                continue;
            }
            let path = [path, b"/", &row.name].concat();
            self.check_row(&path, row, seen);
            has_marker |= *row.name == *b".cvmfscatalog";
            match Kind::of(row) {
                Some(Kind::Directory) => {
                    folders += 1;
                    if self.is_mountpoint(&path, row) {
                        self.check_mountpoint(&path, seen);
                    } else {
                        ahead.push((path, row));
                    }
                }
                _ if row.link_group > 0 => links.entry(row.link_group).or_default().push(row),
                _ => {}
            }
        }
        if folder.link_count != folders + 2 {
            let expected = format!("link count {} of a folder with {folders} others in it", folders + 2);
            self.note(path, expected, folder.link_count);
        }
        if has_marker != (path == self.mountpoint) && !path.is_empty() {
            let found = if has_marker { "one elsewhere" } else { "none" };
            self.note(path, ".cvmfscatalog at the top of each nested catalog, and only there", found);
        }
        for (group, links) in links {
            self.check_link_group(path, group, &links, seen);
        }
    }

    fn is_mountpoint(&self, path: &[u8], row: &AuditedRow) -> bool {
        row.flags & (TRANSITION_POINT | BIND_MOUNTPOINT) != 0 || self.catalog.nested.contains_key(path)
    }

    fn check_mountpoint(&self, path: &[u8], seen: &mut Seen<'w>) {
        if seen.children.contains_key(&key_of(path)) {
            self.note(path, "nothing below a transition point in the same catalog", "rows");
        }
        if self.catalog.nested.contains_key(path) && self.catalog.bound.contains_key(path) {
            self.note(path, "a row in one of nested_catalogs and bind_mountpoints", "both");
        }
        seen.mountpoints.insert(path.to_vec());
    }

    fn check_row(&self, path: &[u8], row: &'w AuditedRow, seen: &mut Seen<'w>) {
        seen.reached.insert(row.rowid);
        let (place, findings, key) = (self.place(path), &self.check.findings, key_of(path));
        if row.key != key {
            findings.note(&place, format_args!("the key {key:?} of the path"), format_args!("{:?}", row.key));
        }
        for fault in seen.faults.remove(&row.rowid).unwrap_or_default() {
            findings.note(&place, &fault.expected, &fault.found);
        }
        let surroundings = Surroundings {
            is_nested_root: path == self.mountpoint && !path.is_empty(),
            is_transition_point: self.catalog.nested.contains_key(path),
            is_bind_mountpoint: self.catalog.bound.contains_key(path),
            has_chunks: self.catalog.chunks.contains_key(&key),
        };
        rules::check_name(&place, &row.name, path.is_empty(), findings);
        rules::check_row(&place, row, surroundings, findings);
        count(&mut seen.walked().own, row);
        if let Some(bound) = self.catalog.bound.get(path) {
            seen.walked().references.extend(self.bound_catalog(path, row, bound));
        }
        if Kind::of(row) == Some(Kind::Regular) {
            self.check_content(path, row, seen);
        }
    }

    /// Returns the reference to a catalog that is shown here a second time. What lies in it is not checked here.
    fn bound_catalog(&self, path: &[u8], row: &AuditedRow, bound: &AuditedReference) -> Option<Reference> {
        let name = ObjectName::of_text(&bound.hash, ObjectKind::Catalog);
        if name.is_none() {
            self.note(path, "a hash in bind_mountpoints", &bound.hash);
        }
        let size = u64::try_from(bound.size).ok().filter(|&size| size > 0).unwrap_or(Reference::ANY_SIZE);
        let (name, catalog, row) = (name.filter(|_| self.scope.holds(path))?, self.number, row.rowid);
        Some(Reference { name, form: Form::Packed, size, catalog, row })
    }

    fn check_content(&self, path: &[u8], row: &'w AuditedRow, seen: &mut Seen<'w>) {
        let chunks = self.catalog.chunks.get(&row.key).map_or(&[][..], Vec::as_slice);
        if row.flags & CHUNKED != 0 {
            self.check_chunks(path, row, chunks);
        }
        let Some(algorithm) = Algorithm::of_flags(row.flags) else { return };
        if row.flags & EXTERNAL != 0 || !self.scope.holds(path) {
            return;
        }
        let form = if row.flags & UNCOMPRESSED != 0 { Form::Raw } else { Form::Packed };
        let refer = |hash: &Option<Box<[u8]>>, size: i64, kind| {
            let digest: [u8; 20] = hash.as_deref()?.try_into().ok()?;
            let name = ObjectName::new(digest, algorithm, kind);
            Some(Reference { name, form, size: size.cast_unsigned(), catalog: self.number, row: row.rowid })
        };
        let references = &mut seen.walked().references;
        references.extend(refer(&row.hash, row.size, ObjectKind::File).filter(|_| row.size >= 0));
        let chunks = chunks.iter().filter(|chunk| chunk.size >= 0);
        references.extend(chunks.filter_map(|chunk| refer(&chunk.hash, chunk.size, ObjectKind::Chunk)));
    }

    fn check_chunks(&self, path: &[u8], row: &AuditedRow, chunks: &[AuditedChunk]) {
        let mut end = 0;
        for chunk in chunks {
            if chunk.offset != end {
                self.note(path, format_args!("a chunk at offset {end}"), chunk.offset);
            }
            if chunk.size <= 0 && row.size > 0 {
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

    /// All links of a group lie in one folder and differ in nothing but their names.
    fn check_link_group(&self, folder: &[u8], group: u32, links: &[&AuditedRow], seen: &mut Seen<'w>) {
        if links[0].link_count as usize != links.len() {
            let expected = format!("link count {} in group {group}", links.len());
            self.note(folder, expected, links[0].link_count);
        }
        let bare = |row: &AuditedRow| {
            let chunks = self.catalog.chunks.get(&row.key);
            (AuditedRow { rowid: 0, key: (0, 0), name: Box::default(), ..row.clone() }, chunks)
        };
        for link in links.iter().filter(|link| bare(link) != bare(links[0])) {
            let found = format!("other attributes for '{}'", escape(&link.name));
            self.note(folder, format_args!("links of group {group} that differ only in their names"), found);
        }
        if let Some(other) = seen.groups.insert(group, folder.to_vec()) {
            self.note(
                folder,
                format_args!("hard link group {group} in one folder"),
                format_args!("it in {} too", show(&other)),
            );
        }
    }

    /// Looks for what the root entry does not lead to.
    fn check_leftovers(&self, seen: &Seen<'w>) {
        let (findings, place) = (&self.check.findings, Place::file(self.file));
        for row in self.catalog.rows.iter().filter(|row| !seen.reached.contains(&row.rowid)) {
            let found = format!("row {} with name '{}'", row.rowid, escape(&row.name));
            findings.note(&place, "only rows that the root entry leads to", found);
        }
        let leftover: Vec<Fault> = seen.faults.values().flatten().map(|&fault| fault.clone()).collect();
        findings.add_faults(&place, &leftover);
        let with_chunks: BTreeSet<_> =
            self.catalog.rows.iter().filter(|row| row.flags & CHUNKED != 0).map(|row| row.key).collect();
        let stray: BTreeSet<_> = self.catalog.chunks.keys().filter(|key| !with_chunks.contains(*key)).collect();
        for key in stray {
            findings.note(&place, "chunks of chunked files only", format_args!("some for the path with key {key:?}"));
        }
        let registered: BTreeSet<Vec<u8>> =
            self.catalog.nested.keys().chain(self.catalog.bound.keys()).cloned().collect();
        for path in registered.symmetric_difference(&seen.mountpoints) {
            let found = if registered.contains(path) { "a reference alone" } else { "a transition point alone" };
            self.note(path, "a transition point and a reference to its catalog", found);
        }
    }
}

/// Counts one row.
fn count(own: &mut BTreeMap<&'static str, i64>, row: &AuditedRow) {
    let mut add = |name, count: i64| {
        let counter: &mut i64 = own.entry(name).or_default();
        *counter = counter.saturating_add(count);
    };
    if row.xattr.is_some() {
        add("xattr", 1);
    }
    match Kind::of(row) {
        Some(Kind::Directory) => add("dir", 1),
        Some(Kind::Symlink) => add("symlink", 1),
        Some(Kind::Device | Kind::FifoOrSocket) => add("special", 1),
        Some(Kind::Regular) => {
            add("regular", 1);
            add("file_size", row.size);
            for (flag, files, bytes) in
                [(CHUNKED, "chunked", "chunked_size"), (EXTERNAL, "external", "external_file_size")]
            {
                if row.flags & flag != 0 {
                    add(files, 1);
                    add(bytes, row.size);
                }
            }
        }
        None => {}
    }
}
