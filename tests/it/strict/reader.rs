//! Lists a revision of a repository as clients see it, for comparison with the expected content.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use sha1::{Digest as _, Sha1};

use super::catalog::{Catalog, Row, path_hash};
use super::database::{Cells, Database};
use super::hash::hash_in_row;
use super::letter::Manifest;
use super::rules::{CHUNKED, HIDDEN, Kind, UNCOMPRESSED, read_xattrs};
use super::store::{Store, object_path};
use super::{Finding, Findings, hex, is_hash, show};

/// Maximum size of content that is kept; of longer content only the hash is kept.
const KEPT_BYTES: usize = 1 << 20;

/// A repository at one revision. Its methods panic if the repository is damaged; [`super::check`] reports the damage.
pub struct Reader {
    store: Store,
    root: String,
    manifest: Manifest,
}

/// The entry at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The complete `st_mode`, with the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Size in bytes of a file, or of the target of a symbolic link as clients show it; 0 for other types.
    pub size: u64,
    /// The content of a regular file, unless the listing leaves content out.
    pub content: Option<Content>,
    /// The target of a symbolic link as clients show it: `$(:-$()` is `$(` again.
    pub target: Option<Vec<u8>>,
    /// The device number in the encoding of `stat`.
    pub rdev: Option<u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The directory and number of the hard link group.
    pub link_group: Option<(Vec<u8>, u32)>,
    pub linkcount: u32,
    /// Whether listings of clients omit the entry.
    pub hidden: bool,
}

/// The content of a file, or its hash if it is longer than 1 MiB.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    Whole(Vec<u8>),
    Sha1([u8; 20]),
}

impl Content {
    /// Returns `bytes` in the form of listings.
    pub fn of(bytes: &[u8]) -> Self {
        if bytes.len() <= KEPT_BYTES { Self::Whole(bytes.to_vec()) } else { Self::Sha1(Sha1::digest(bytes).into()) }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "b\"{}\"", bytes.escape_ascii()),
            Self::Sha1(digest) => f.write_str(&hex(digest)),
        }
    }
}

impl Reader {
    /// Opens the head of the repository whose published files are in `storage`.
    pub fn open(storage: &Path) -> Self {
        let manifest = sound(Manifest::read(storage));
        let root = manifest.field('C').expect("a manifest that was read has field C").to_owned();
        Self { store: Store::new(storage), root, manifest }
    }

    /// Opens the revision that a tag names.
    pub fn open_tag(storage: &Path, tag: &str) -> Self {
        let mut reader = Self::open(storage);
        let tags = reader.tags();
        reader.root = tags.get(tag).unwrap_or_else(|| panic!("no tag '{tag}' among {:?}", tags.keys())).clone();
        reader
    }

    /// Returns a field of the manifest.
    pub fn field(&self, letter: char) -> Option<&str> {
        self.manifest.field(letter)
    }

    /// Returns the revision in the manifest.
    pub fn revision(&self) -> u64 {
        self.manifest.number('S')
    }

    /// Returns the hash of the root catalog.
    pub fn root_hash(&self) -> &str {
        &self.root
    }

    /// Returns the root catalog's hash of every tag, by name.
    pub fn tags(&self) -> BTreeMap<String, String> {
        let Some(hash) = self.manifest.hash('H') else {
            return BTreeMap::new();
        };
        let mut findings = Findings::default();
        let bytes = sound(self.store.read(hash, "H"));
        let database = Database::open(object_path(hash, "H"), &bytes, &mut findings).expect("a readable tag database");
        let tags = database.query("SELECT name, hash FROM tags", |row| {
            let mut cells = Cells { row, place: "tags", findings: &mut findings };
            Ok((cells.string("name"), cells.string("hash")))
        });
        sound(tags).into_iter().filter(|(_, hash)| is_hash(hash)).collect()
    }

    /// Lists everything at and below a path, by path below it: the path itself is `""`. Links are not followed.
    pub fn walk(&self, below: &str) -> BTreeMap<Vec<u8>, Entry> {
        self.listing(below, true)
    }

    /// Lists like [`Reader::walk`], but without content: for files that are too large to be read in a test.
    pub fn walk_without_content(&self, below: &str) -> BTreeMap<Vec<u8>, Entry> {
        self.listing(below, false)
    }

    /// Returns the names that clients list in a directory, sorted. Non-printable bytes are escaped.
    pub fn list(&self, directory: &str) -> Vec<String> {
        let path = absolute(directory);
        let catalog = self.catalog_for(&path);
        self.entry(&catalog, &path, false);
        let shown = catalog.list(&path).filter(|row| row.flags & HIDDEN == 0);
        let mut names: Vec<String> = shown.map(|row| row.name.escape_ascii().to_string()).collect();
        names.sort();
        names
    }

    /// Returns the content of a regular file.
    pub fn read(&self, path: &str) -> Vec<u8> {
        let path = absolute(path);
        let catalog = self.catalog_for(&path);
        let row = catalog.row(&path).unwrap_or_else(|| panic!("nothing at {}", show(&path)));
        let mut content = Vec::new();
        self.read_content(&catalog, &path, row, &mut |bytes| content.extend_from_slice(bytes));
        content
    }

    /// Returns offset and size of each chunk of a file; an empty list for a file that is not chunked.
    pub fn chunks(&self, path: &str) -> Vec<(u64, u64)> {
        let path = absolute(path);
        let chunks = self.catalog_for(&path).chunks.remove(&path_hash(&path)).unwrap_or_default();
        chunks.iter().map(|chunk| (chunk.offset as u64, chunk.size as u64)).collect()
    }

    /// Returns the counters of the root catalog as they are stored.
    pub fn counters(&self) -> BTreeMap<String, i64> {
        self.load(&self.root, b"").statistics
    }

    /// Returns the mountpoint and the number of rows of every catalog, sorted by mountpoint.
    pub fn catalogs(&self) -> Vec<(String, usize)> {
        self.all_catalogs().into_iter().map(|(mountpoint, (_, rows))| (mountpoint, rows)).collect()
    }

    /// Returns the hash of every catalog, by mountpoint.
    pub fn catalog_hashes(&self) -> BTreeMap<String, String> {
        self.all_catalogs().into_iter().map(|(mountpoint, (hash, _))| (mountpoint, hash)).collect()
    }

    /// Returns the hash and the number of rows of every catalog, by mountpoint.
    fn all_catalogs(&self) -> BTreeMap<String, (String, usize)> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![(self.root.clone(), Vec::new())];
        while let Some((hash, mountpoint)) = waiting.pop() {
            let catalog = self.load(&hash, &mountpoint);
            found.insert(mountpoint.escape_ascii().to_string(), (hash, catalog.rows.len()));
            waiting.extend(catalog.nested.into_iter().map(|(path, reference)| (reference.hash, path)));
        }
        found
    }

    fn listing(&self, below: &str, with_content: bool) -> BTreeMap<Vec<u8>, Entry> {
        let top = absolute(below);
        let catalog = self.catalog_for(&top);
        let mut entries = BTreeMap::from([(Vec::new(), self.entry(&catalog, &top, with_content))]);
        let mut directories = vec![top.clone()];
        let mut nested: Vec<(Vec<u8>, String)> = Vec::new();
        let mut catalog = Some(catalog);
        while let Some(open) = catalog.take() {
            while let Some(directory) = directories.pop() {
                if let Some(reference) = open.nested.get(&directory).filter(|_| directory != open.mountpoint) {
                    nested.push((directory, reference.hash.clone()));
                    continue;
                }
                for row in open.list(&directory) {
                    let path = [&directory, b"/".as_slice(), &row.name].concat();
                    let entry = self.describe(&open, &path, row, with_content);
                    if Kind::of(row.mode) == Some(Kind::Directory) {
                        directories.push(path.clone());
                    }
                    entries.insert(path[top.len() + 1..].to_vec(), entry);
                }
            }
            if let Some((path, hash)) = nested.pop() {
                catalog = Some(self.load(&hash, &path));
                directories.push(path);
            }
        }
        entries
    }

    fn entry(&self, catalog: &Catalog, path: &[u8], with_content: bool) -> Entry {
        let row = catalog.row(path).unwrap_or_else(|| panic!("nothing at {}", show(path)));
        self.describe(catalog, path, row, with_content)
    }

    fn describe(&self, catalog: &Catalog, path: &[u8], row: &Row, with_content: bool) -> Entry {
        let kind = Kind::of(row.mode).unwrap_or_else(|| panic!("unknown type at {}", show(path)));
        let directory = &path[..path.iter().rposition(|&b| b == b'/').unwrap_or(0)];
        let target = (kind == Kind::Symlink).then(|| unescape(&row.symlink));
        Entry {
            mode: row.mode as u32,
            uid: row.uid as u32,
            gid: row.gid as u32,
            mtime: (row.mtime, row.mtimens.unwrap_or(0) as u32),
            size: match (&target, kind) {
                (Some(target), _) => target.len() as u64,
                (None, Kind::Regular) => row.size as u64,
                _ => 0,
            },
            content: (kind == Kind::Regular && with_content).then(|| self.content(catalog, path, row)),
            target,
            rdev: (kind == Kind::Device).then_some(row.size as u64),
            xattrs: row.xattr.as_deref().map_or_else(BTreeMap::new, |blob| read_xattrs(blob).expect("readable xattrs")),
            link_group: (row.link_group > 0).then(|| (directory.to_vec(), row.link_group)),
            linkcount: row.linkcount,
            hidden: row.flags & HIDDEN != 0,
        }
    }

    fn content(&self, catalog: &Catalog, path: &[u8], row: &Row) -> Content {
        let mut whole = Vec::new();
        let mut sha1 = Sha1::new();
        self.read_content(catalog, path, row, &mut |bytes| {
            sha1.update(bytes);
            if row.size as usize <= KEPT_BYTES {
                whole.extend_from_slice(bytes);
            }
        });
        if row.size as usize <= KEPT_BYTES { Content::Whole(whole) } else { Content::Sha1(sha1.finalize().into()) }
    }

    /// Passes the content of a regular file to `sink`, chunk by chunk.
    fn read_content(&self, catalog: &Catalog, path: &[u8], row: &Row, sink: &mut dyn FnMut(&[u8])) {
        let read = |hash: &Option<Vec<u8>>, suffix: &str| {
            let hash = hash.as_ref().and_then(|hash| hash_in_row(hash, row.flags));
            let hash = hash.unwrap_or_else(|| panic!("no content of {}", show(path)));
            let is_raw = row.flags & UNCOMPRESSED != 0;
            sound(if is_raw {
                self.store.read_raw(&object_path(&hash, suffix))
            } else {
                self.store.read(&hash, suffix)
            })
        };
        let mut length = 0;
        let mut pass_on = |bytes: Vec<u8>| {
            length += bytes.len() as i64;
            sink(&bytes);
        };
        if row.flags & CHUNKED == 0 {
            pass_on(read(&row.hash, ""));
        } else {
            catalog
                .chunks
                .get(&path_hash(path))
                .into_iter()
                .flatten()
                .for_each(|chunk| pass_on(read(&chunk.hash, "P")));
        }
        assert_eq!(length, row.size, "length of the content of {}", show(path));
    }

    /// Returns the catalog with the row of a path. For a transition point, this is the nested catalog.
    fn catalog_for(&self, path: &[u8]) -> Catalog {
        let mut catalog = self.load(&self.root, b"");
        loop {
            let holds = |mountpoint: &[u8]| {
                path.strip_prefix(mountpoint).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            };
            match catalog.nested.iter().find(|(mountpoint, _)| holds(mountpoint)) {
                Some((mountpoint, reference)) => catalog = self.load(&reference.hash, mountpoint),
                None => return catalog,
            }
        }
    }

    fn load(&self, hash: &str, mountpoint: &[u8]) -> Catalog {
        sound(Catalog::load(&self.store, hash, mountpoint, &mut Findings::default()))
    }
}

#[track_caller]
fn sound<T>(step: Result<T, Finding>) -> T {
    step.unwrap_or_else(|finding| panic!("{finding}"))
}

/// Returns a path in the form that catalogs hash: with a leading slash, or empty for the root.
fn absolute(path: &str) -> Vec<u8> {
    let path = path.trim_matches('/');
    if path.is_empty() { Vec::new() } else { format!("/{path}").into_bytes() }
}

/// Reverts the escaping that keeps clients from expanding a link target.
fn unescape(target: &[u8]) -> Vec<u8> {
    const ESCAPED: &[u8] = b"$(:-$()";
    let mut plain = Vec::with_capacity(target.len());
    let mut rest = target;
    while let Some((&first, after)) = rest.split_first() {
        match rest.strip_prefix(ESCAPED) {
            Some(after) => {
                plain.extend_from_slice(b"$(");
                rest = after;
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    plain
}
