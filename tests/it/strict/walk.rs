//! The walk over the rows of one catalog, from its root entry down.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::{Catalog, Chunk, Row, path_hash};
use super::rules::{self, BIND_MOUNTPOINT, CHUNKED, EXTERNAL, Kind, MOUNTPOINT, Surroundings};
use super::show;
use super::tree::{Counters, TreeCheck, zeros};

/// A catalog being walked.
pub struct CatalogWalk<'c, 'a> {
    catalog: &'c Catalog,
    check: &'c mut TreeCheck<'a>,
    counters: Counters,
    /// IDs of rows that are reachable from the root entry.
    reached: BTreeSet<i64>,
    /// Paths of rows with the flag of a nested catalog's mountpoint.
    mountpoints: BTreeSet<Vec<u8>>,
    /// Directory of each hard link group.
    groups: BTreeMap<u32, Vec<u8>>,
}

impl<'c, 'a> CatalogWalk<'c, 'a> {
    /// Checks all rows and returns the catalog's own counters.
    pub fn run(catalog: &'c Catalog, root: &'c Row, check: &'c mut TreeCheck<'a>) -> Counters {
        let (reached, mountpoints, groups) = Default::default();
        let mut walk = Self { catalog, check, counters: zeros(), reached, mountpoints, groups };
        walk.check_root(root);
        let mut directories = vec![(catalog.mountpoint.clone(), root)];
        while let Some((path, directory)) = directories.pop() {
            directories.extend(walk.check_directory(&path, directory));
        }
        walk.check_leftovers();
        walk.counters
    }

    fn check_root(&mut self, root: &Row) {
        let path = self.catalog.mountpoint.as_slice();
        let place = self.catalog.place(path);
        let parent = path.iter().rposition(|&b| b == b'/').map(|slash| &path[..slash]);
        let expected = parent.map_or((0, 0), path_hash);
        self.check.findings.require(&place, "parent hash", expected, root.parent_hash);
        if Kind::of(root.mode) != Some(Kind::Directory) {
            self.check.findings.note(&place, "a directory as root entry", format_args!("mode {:o}", root.mode));
        }
        self.check_row(path, root);
    }

    /// Checks the rows of one directory and returns its subdirectories.
    fn check_directory(&mut self, path: &[u8], directory: &Row) -> Vec<(Vec<u8>, &'c Row)> {
        let place = self.catalog.place(path);
        let (mut directories, mut links, mut below) = (0, BTreeMap::<u32, Vec<&Row>>::new(), Vec::new());
        let mut has_marker = false;
        for row in self.catalog.list(path).filter(|row| !self.reached.contains(&row.rowid)).collect::<Vec<_>>() {
            let path = [path, b"/", &row.name].concat();
            self.check_row(&path, row);
            has_marker |= row.name == b".cvmfscatalog";
            match Kind::of(row.mode) {
                Some(Kind::Directory) => {
                    directories += 1;
                    if self.is_transition(&path, row) {
                        self.check_transition(&path);
                    } else {
                        below.push((path, row));
                    }
                }
                _ if row.link_group > 0 => links.entry(row.link_group).or_default().push(row),
                _ => {}
            }
        }
        self.check.findings.require(&place, "link count", directories + 2, directory.linkcount);
        let is_root = path == self.catalog.mountpoint;
        if has_marker != is_root && !path.is_empty() {
            let found = if has_marker { "one elsewhere" } else { "none" };
            self.check.findings.note(&place, ".cvmfscatalog at the top of each nested catalog, and only there", found);
        }
        for (group, links) in links {
            self.check_link_group(path, group, &links);
        }
        below
    }

    fn is_transition(&self, path: &[u8], row: &Row) -> bool {
        row.flags & (MOUNTPOINT | BIND_MOUNTPOINT) != 0 || self.surroundings(path).is_mountpoint
    }

    fn check_transition(&mut self, path: &[u8]) {
        self.mountpoints.insert(path.to_vec());
        let place = self.catalog.place(path);
        if !self.catalog.list_indices(path).is_empty() {
            self.check.findings.note(&place, "nothing below a transition point in the same catalog", "rows");
        }
        if self.catalog.nested.contains_key(path) && self.catalog.bound.contains_key(path) {
            self.check.findings.note(&place, "a row in one of nested_catalogs and bind_mountpoints", "both");
        }
    }

    fn surroundings(&self, path: &[u8]) -> Surroundings {
        Surroundings {
            is_nested_root: path == self.catalog.mountpoint && !path.is_empty(),
            is_mountpoint: self.catalog.nested.contains_key(path),
            is_bind_mountpoint: self.catalog.bound.contains_key(path),
            has_chunks: self.catalog.chunks.contains_key(&path_hash(path)),
        }
    }

    fn check_row(&mut self, path: &[u8], row: &Row) {
        self.reached.insert(row.rowid);
        let place = self.catalog.place(path);
        let findings = &mut *self.check.findings;
        findings.require(&place, "halves of the path's MD5", path_hash(path), row.path_hash);
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        if path == self.catalog.mountpoint {
            findings.require(&place, "name", show(name), show(&row.name));
        }
        rules::check_name(&place, &row.name, path.is_empty(), findings);
        rules::check_row(&place, row, self.surroundings(path), self.check.findings);
        self.count(path, row);
        if Kind::of(row.mode) == Some(Kind::Regular) && row.flags & EXTERNAL == 0 {
            self.check_content(path, row, &place);
        }
    }

    fn count(&mut self, path: &[u8], row: &Row) {
        let mut add = |name, count| *self.counters.get_mut(name).expect("all counters are there") += count;
        if row.xattr.is_some() {
            add("xattr", 1);
        }
        match Kind::of(row.mode) {
            Some(Kind::Directory) => {
                add("dir", 1);
                add("nested", i64::from(self.catalog.nested.contains_key(path)));
            }
            Some(Kind::Regular) => {
                add("regular", 1);
                add("file_size", row.size);
                for (flag, files, sizes) in
                    [(CHUNKED, "chunked", "chunked_size"), (EXTERNAL, "external", "external_file_size")]
                {
                    if row.flags & flag != 0 {
                        add(files, 1);
                        add(sizes, row.size);
                    }
                }
                add("chunks", self.catalog.chunks.get(&row.path_hash).map_or(0, Vec::len) as i64);
            }
            Some(Kind::Symlink) => add("symlink", 1),
            Some(Kind::Device | Kind::FifoOrSocket) => add("special", 1),
            None => {}
        }
    }

    fn check_content(&mut self, path: &[u8], row: &Row, place: &str) {
        if let Some(hash) = row.hash.as_ref().filter(|hash| hash.len() == 20) {
            self.check.check_content(place, hash, "", row.flags, row.size);
        }
        if row.flags & CHUNKED != 0 {
            let chunks = self.catalog.chunks.get(&path_hash(path)).map_or(&[][..], Vec::as_slice);
            self.check_chunks(place, row, chunks);
        }
    }

    fn check_chunks(&mut self, place: &str, row: &Row, chunks: &[Chunk]) {
        let mut end = 0;
        for chunk in chunks {
            self.check.findings.require(place, "chunk at offset", end, chunk.offset);
            end = chunk.offset.saturating_add(chunk.size);
            if chunk.size <= 0 {
                self.check.findings.note(place, "chunks of at least one byte", chunk.size);
            }
            match chunk.hash.as_ref().filter(|hash| hash.len() == 20) {
                Some(hash) => self.check.check_content(place, hash, "P", row.flags, chunk.size),
                None => self.check.findings.note(place, "a chunk's hash of 20 bytes", format_args!("{:?}", chunk.hash)),
            }
        }
        self.check.findings.require(place, "chunks up to the file's end at", row.size, end);
    }

    /// Checks that all links of a group are in one directory and differ only in their names.
    fn check_link_group(&mut self, directory: &[u8], group: u32, links: &[&Row]) {
        let place = self.catalog.place(directory);
        let findings = &mut *self.check.findings;
        let what = format!("link count in group {group}");
        findings.require(&place, &what, links.len() as u32, links[0].linkcount);
        let bare = |row: &Row| {
            let (name, path_hash) = (Vec::new(), (0, 0));
            let chunks = self.catalog.chunks.get(&row.path_hash).cloned();
            (Row { rowid: 0, name, path_hash, ..row.clone() }, chunks)
        };
        for link in links.iter().filter(|link| bare(link) != bare(links[0])) {
            let found = format!("'{}'", link.name.escape_ascii());
            findings.note(&place, format_args!("links of group {group} that differ only in name"), found);
        }
        if let Some(other) = self.groups.insert(group, directory.to_vec()) {
            findings.note(
                &place,
                format_args!("group {group} in one directory"),
                format_args!("it in {} too", show(&other)),
            );
        }
    }

    /// Finds rows that are not reachable from the root entry.
    fn check_leftovers(&mut self) {
        let catalog = self.catalog;
        for row in catalog.rows.iter().filter(|row| !self.reached.contains(&row.rowid)) {
            let found = format!("row {} with name '{}'", row.rowid, row.name.escape_ascii());
            self.check.findings.note(&catalog.object, "only rows that the root entry leads to", found);
        }
        let with_chunks: BTreeSet<_> =
            catalog.rows.iter().filter(|row| row.flags & CHUNKED != 0).map(|row| row.path_hash).collect();
        for path in catalog.chunks.keys().filter(|path| !with_chunks.contains(*path)) {
            self.check.findings.note(
                &catalog.object,
                "chunks of chunked files only",
                format_args!("some for {path:?}"),
            );
        }
        let registered: BTreeSet<Vec<u8>> = catalog.nested.keys().chain(catalog.bound.keys()).cloned().collect();
        for path in registered.symmetric_difference(&self.mountpoints) {
            let found = if registered.contains(path) { "a reference alone" } else { "a transition point alone" };
            self.check.findings.note(catalog.place(path), "a transition point and a reference to its catalog", found);
        }
    }
}
