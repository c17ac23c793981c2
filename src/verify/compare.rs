//! Compares published trees with expected trees, path by path and attribute by attribute.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::content::{ContentDigest, ContentHasher};
use super::difference::Difference;
use super::naive_tree::{NaiveNode, NaiveTree, is_directory};
use crate::catalog::{CatalogEntry, MARKER};
use crate::layer::{DeviceNumber, NodeKind};
use crate::message::{causes, on_one_line};
use crate::metadata::{Metadata, Timestamp};
use crate::object::Content;
use crate::path::EntryPath;
use crate::progress::Progress;
use crate::repository::{LocatedDirectory, NamedRow, Repository, Row};

/// Maximum size in bytes of a published file that does not belong to a tree, such as a record or an image manifest.
const MAX_FILE_SIZE: u64 = 256 << 20;

type Node = NaiveNode<ContentDigest>;

/// The entries of one directory, by name.
type Children<'t> = BTreeMap<&'t [u8], &'t Node>;

/// A running comparison.
pub(super) struct Comparison<'r> {
    repository: &'r Repository,
    differences: BTreeSet<Difference>,
    contents: Vec<PendingContent>,
    pub(super) trees: usize,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Content that must still be read and compared.
struct PendingContent {
    path: EntryPath,
    content: Content,
    size: u64,
    expected: ContentDigest,
}

impl<'r> Comparison<'r> {
    pub(super) fn new(repository: &'r Repository) -> Self {
        let (differences, contents) = Default::default();
        Self { repository, differences, contents, trees: 0, entries: 0, bytes: 0 }
    }

    /// Adds a difference.
    pub(super) fn note(
        &mut self,
        path: &EntryPath,
        attribute: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) {
        let (expected, found) = (on_one_line(&expected.to_string()), on_one_line(&found.to_string()));
        self.differences.insert(Difference { path: path.clone(), attribute, expected, found });
    }

    /// Adds a difference unless `found` equals `expected`.
    pub(super) fn require<T: PartialEq + fmt::Display>(
        &mut self,
        path: &EntryPath,
        attribute: &'static str,
        expected: T,
        found: T,
    ) {
        if expected != found {
            self.note(path, attribute, expected, found);
        }
    }

    /// Adds a difference for every element that only one of two sets contains.
    pub(super) fn require_set<T: Ord + fmt::Display>(
        &mut self,
        path: &EntryPath,
        attribute: &'static str,
        expected: &BTreeSet<T>,
        found: &BTreeSet<T>,
    ) {
        expected.difference(found).for_each(|missing| self.note(path, attribute, missing, "nothing"));
        found.difference(expected).for_each(|extra| self.note(path, attribute, "nothing", extra));
    }

    /// Reads a small file. A missing or unreadable file is a difference.
    pub(super) fn file(&mut self, path: &EntryPath) -> Option<Vec<u8>> {
        match self.repository.read(path, MAX_FILE_SIZE) {
            Ok(Some(bytes)) => return Some(bytes),
            Ok(None) => self.note(path, "path", "a file", "nothing"),
            Err(error) => self.note(path, "content", "a readable file", causes(&error)),
        }
        None
    }

    /// Returns all differences, sorted by path.
    pub(super) fn into_differences(self) -> Vec<Difference> {
        self.differences.into_iter().collect()
    }

    /// Removes the differences for which `is_wanted` is true, and returns them.
    pub(super) fn take(&mut self, mut is_wanted: impl FnMut(&Difference) -> bool) -> Vec<Difference> {
        let (taken, remaining) =
            std::mem::take(&mut self.differences).into_iter().partition(|difference| is_wanted(difference));
        self.differences = remaining;
        BTreeSet::into_iter(taken).collect()
    }

    /// Compares the tree that is published at `root`. File content is queued for [`Self::compare_contents`].
    pub(super) fn tree(&mut self, root: &EntryPath, expected: &NaiveTree<ContentDigest>) {
        self.trees += 1;
        let mut children: HashMap<EntryPath, Children<'_>> = HashMap::new();
        for (path, node) in expected.entries() {
            if let Some((directory, name)) = path.split() {
                let name = &path.as_bytes()[path.as_bytes().len() - name.len()..];
                children.entry(directory).or_default().insert(name, node);
            }
        }
        let node = expected.get(&EntryPath::ROOT).expect("every tree has a root");
        match self.repository.row(root) {
            Ok(Some(row)) => self.whole_tree(root, node, &row, &children),
            Ok(None) => self.note(root, "path", describe(&node.kind), "nothing"),
            Err(error) => self.note(root, "catalog", "a readable catalog", causes(&error)),
        }
    }

    fn whole_tree(&mut self, root: &EntryPath, node: &Node, row: &Row, children: &HashMap<EntryPath, Children<'_>>) {
        let none = Children::new();
        let of = |path: &EntryPath| children.get(path).unwrap_or(&none);
        self.compare_row(root, node, row, of(&EntryPath::ROOT));
        let mut directories: Vec<(EntryPath, Arc<LocatedDirectory>)> =
            row.directory.iter().map(|directory| (EntryPath::ROOT, Arc::clone(directory))).collect();
        while let Some((below, directory)) = directories.pop() {
            let rows = match self.repository.rows(&directory) {
                Ok(rows) => rows,
                Err(error) => {
                    self.note(&directory.path, "catalog", "a readable catalog", causes(&error));
                    continue;
                }
            };
            let expected = of(&below);
            self.compare_names(&directory, expected, &rows);
            self.compare_links(&directory.path, expected, &rows);
            for NamedRow { name, row } in &rows {
                let Some(node) = expected.get(&**name) else { continue };
                let (path, below) = (directory.path.join(name), below.join(name));
                self.compare_row(&path, node, row, of(&below));
                if let Some(directory) = row.directory.as_ref().filter(|_| is_directory(&node.kind)) {
                    directories.push((below, Arc::clone(directory)));
                }
            }
        }
    }

    /// Compares the set of names in a directory.
    fn compare_names(&mut self, directory: &LocatedDirectory, expected: &Children<'_>, rows: &[NamedRow]) {
        let found: BTreeSet<&[u8]> = rows.iter().map(|row| &*row.name).collect();
        for (name, node) in expected.iter().filter(|(name, _)| !found.contains(*name)) {
            self.note(&directory.path.join(name), "path", describe(&node.kind), "nothing");
        }
        for NamedRow { name, row } in rows {
            let path = directory.path.join(name);
            match expected.contains_key(&**name) {
                true if row.entry.is_hidden() => self.note(&path, "listing", "shown", "hidden"),
                false if !is_marker(directory, name, &row.entry) => {
                    self.note(&path, "path", "nothing", describe_row(&row.entry));
                }
                _ => {}
            }
        }
    }

    /// Compares which names of a directory share an inode.
    fn compare_links(&mut self, directory: &EntryPath, expected: &Children<'_>, rows: &[NamedRow]) {
        let mut inodes: HashMap<usize, BTreeSet<&[u8]>> = HashMap::new();
        for (name, node) in expected.iter().filter(|(_, node)| !is_directory(&node.kind)) {
            inodes.entry(node.inode).or_default().insert(name);
        }
        let mut groups: HashMap<u32, BTreeSet<&[u8]>> = HashMap::new();
        for NamedRow { name, row } in rows.iter().filter(|named| named.row.entry.link_group != 0) {
            // A link group must stay in one directory, or `cvmfs_server check` fails.
            groups.entry(row.entry.link_group).or_default().insert(name);
        }
        for NamedRow { name, row } in rows.iter().filter(|named| !named.row.entry.is_directory()) {
            let Some(node) = expected.get(&**name).filter(|node| !is_directory(&node.kind)) else { continue };
            let (path, alone) = (directory.join(name), BTreeSet::from([&**name]));
            let found = groups.get(&row.entry.link_group).unwrap_or(&alone);
            let expected = &inodes[&node.inode];
            self.require(&path, "links", names(expected), names(found));
            self.require(&path, "link count", expected.len() as u64, row.entry.link_count.into());
        }
    }

    /// Compares one path. A directory that is the root of a nested catalog has two rows, and both are compared.
    fn compare_row(&mut self, path: &EntryPath, node: &Node, row: &Row, children: &Children<'_>) {
        self.entries += 1;
        self.compare_entry(path, node, &row.entry, children);
        let Some(directory) =
            row.directory.as_ref().filter(|directory| directory.location.root == *path && !path.is_root())
        else {
            return;
        };
        match self.repository.open_catalog(&directory.location).and_then(|catalog| Ok(catalog.get(path)?)) {
            Ok(Some(entry)) => self.compare_entry(path, node, &entry, children),
            Ok(None) => self.note(path, "catalog", "a root entry", "nothing"),
            // An unreadable catalog is reported when the directory is listed.
            Err(_) => {}
        }
    }

    fn compare_entry(&mut self, path: &EntryPath, node: &Node, entry: &CatalogEntry, children: &Children<'_>) {
        let expected = describe(&node.kind);
        if expected != describe_row(entry) {
            self.note(path, "type", expected, describe_row(entry));
            return;
        }
        self.compare_metadata(path, &node.metadata, entry);
        match &node.kind {
            NodeKind::Directory => {
                let directories = children.values().filter(|node| is_directory(&node.kind)).count();
                // The name of the directory, its `.`, and the `..` of each subdirectory.
                self.require(path, "link count", 2 + directories as u64, entry.link_count.into());
            }
            NodeKind::Symlink(target) => {
                self.require(path, "target", show(target), show(&entry.target()));
            }
            NodeKind::CharacterDevice(number) | NodeKind::BlockDevice(number) => {
                self.require(path, "device", device(*number), entry.size);
            }
            NodeKind::Fifo => {}
            NodeKind::File { size, content } => self.compare_file(path, *size, *content, entry),
        }
    }

    fn compare_metadata(&mut self, path: &EntryPath, expected: &Metadata, entry: &CatalogEntry) {
        let found = entry.metadata();
        let mode = |metadata: &Metadata| format!("{:04o}", metadata.mode);
        self.require(path, "mode", mode(expected), mode(&found));
        self.require(path, "owner", expected.uid, found.uid);
        self.require(path, "group", expected.gid, found.gid);
        let time = |time: Timestamp| format!("{}.{:09}", time.seconds, time.nanoseconds);
        self.require(path, "time", time(expected.mtime), time(found.mtime));
        if entry.xattr.is_some() && found.xattrs.is_none() {
            self.note(path, "xattr", "readable attributes", "attributes that cannot be parsed");
        }
        let xattrs = |metadata: &Metadata| -> BTreeSet<String> {
            let pairs = metadata.xattrs.iter().flat_map(|xattrs| xattrs.iter());
            pairs.map(|(name, value)| format!("{}={}", show(name), show(value))).collect()
        };
        self.require_set(path, "xattr", &xattrs(expected), &xattrs(&found));
    }

    fn compare_file(&mut self, path: &EntryPath, size: u64, expected: ContentDigest, entry: &CatalogEntry) {
        self.bytes += size;
        let found = entry.size.cast_unsigned();
        self.require(path, "size", size, found);
        match entry.file_content() {
            Ok(content) => self.contents.push(PendingContent { path: path.clone(), content, size: found, expected }),
            Err(reason) => self.note(path, "content", "content that strata can read", reason),
        }
    }

    /// Compares the content of all files that were compared so far. Content with the same list of objects is read only once.
    pub(super) fn compare_contents(&mut self, progress: &Progress) {
        let pending = std::mem::take(&mut self.contents);
        let mut files: HashMap<(Content, u64), Vec<(EntryPath, ContentDigest)>> = HashMap::new();
        for PendingContent { path, content, size, expected } in pending {
            files.entry((content, size)).or_default().push((path, expected));
        }
        progress.expected.fetch_add(files.keys().map(|(_, size)| size).sum(), Ordering::Relaxed);
        let results: Vec<_> = files
            .into_par_iter()
            .map(|((content, size), names)| {
                let result = self.digest(&content, size);
                progress.read.fetch_add(size, Ordering::Relaxed);
                (result, names)
            })
            .collect();
        for (result, names) in results {
            for (path, expected) in names {
                match &result {
                    Ok(found) => self.require(&path, "content", expected.to_string(), found.to_string()),
                    Err(causes) => self.note(&path, "content", "readable content", causes),
                }
            }
        }
    }

    /// Returns the digest of the content, or the reason why it cannot be read.
    fn digest(&self, content: &Content, size: u64) -> Result<ContentDigest, String> {
        let mut hasher = ContentHasher::new();
        let read = self.repository.stream_content(content, size, &mut |bytes| hasher.data(bytes));
        read.map(|()| hasher.finish()).map_err(|error| causes(&error))
    }
}

/// Returns whether a row is the hidden marker file that strata adds to every nested catalog.
fn is_marker(directory: &LocatedDirectory, name: &[u8], entry: &CatalogEntry) -> bool {
    name == MARKER
        && entry.is_hidden()
        && entry.is_regular()
        && entry.size == 0
        && directory.location.root == directory.path
}

fn describe(kind: &NodeKind<ContentDigest>) -> &'static str {
    match kind {
        NodeKind::Directory => "a directory",
        NodeKind::File { .. } => "a file",
        NodeKind::Symlink(_) => "a symbolic link",
        NodeKind::CharacterDevice(DeviceNumber { major: 0, minor: 0 }) => "a whiteout",
        NodeKind::CharacterDevice(_) => "a character device",
        NodeKind::BlockDevice(_) => "a block device",
        NodeKind::Fifo => "a named pipe",
    }
}

fn describe_row(entry: &CatalogEntry) -> &'static str {
    match entry.mode >> 12 {
        0o04 => "a directory",
        0o10 => "a file",
        0o12 => "a symbolic link",
        0o02 if entry.size == 0 => "a whiteout",
        0o02 => "a character device",
        0o06 => "a block device",
        0o01 => "a named pipe",
        _ => "something else",
    }
}

/// Returns a device number in the encoding of catalogs and of `stat`.
fn device(number: DeviceNumber) -> i64 {
    let (major, minor) = (i64::from(number.major), i64::from(number.minor));
    major << 8 | minor & 0xff | (minor >> 8) << 20
}

fn show(bytes: &[u8]) -> String {
    format!("'{}'", bytes.escape_ascii())
}

fn names(names: &BTreeSet<&[u8]>) -> String {
    match names.len() {
        1 => "an inode of its own".to_owned(),
        _ => format!("one inode with {}", names.iter().map(|name| show(name)).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_encoded_as_in_stat() {
        for (major, minor, encoded) in [(1, 3, 0x103), (259, 70_000, 0x1111_0370), (4095, 0xf_ffff, 0xffff_ffff)] {
            assert_eq!(device(DeviceNumber { major, minor }), encoded);
        }
    }
}
