//! Reads a whole catalog for a check.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Row};

use super::database::{Cells, Database, Fault, unreadable};
use super::{indexes, sound};
use crate::catalog::database::{PathKey, ROW_COLUMNS, WITH_NANOSECONDS, key_of};
use crate::catalog::guarded::{GuardedDatabase, unusable};

/// A row of the table `catalog`. All rows are in memory at once, so texts and blobs are stored in one buffer of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditedRow {
    /// The rowid, from which clients derive the inode number.
    pub rowid: i64,
    /// Key of the path.
    pub key: PathKey,
    /// Key of the parent directory; zeros for NULL.
    pub parent: PathKey,
    /// Number of the hard link group; 0 if the row is in no group.
    pub link_group: u32,
    /// Link count.
    pub link_count: u32,
    /// Size in bytes, or device number.
    pub size: i64,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Nanosecond part of the modification time.
    pub mtime_nanoseconds: Option<i64>,
    /// File type and permissions.
    pub mode: u32,
    /// Flags, see `catalog::bits`.
    pub flags: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    pub(super) name: Span,
    pub(super) symlink: Span,
    pub(super) hash: Span,
    pub(super) xattr: Span,
}

/// Position of a text or blob in the buffer of a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Span {
    start: u32,
    /// [`Span::NULL`] for a NULL value.
    length: u32,
}

impl Span {
    const NULL: u32 = u32::MAX;

    /// Appends a value to the buffer of a catalog. The buffer has less than 4 GiB, because it is limited by the size of the file.
    pub(super) fn add(buffer: &mut Vec<u8>, bytes: Option<&[u8]>) -> Self {
        let start = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let length = bytes.map_or(Self::NULL, |bytes| bytes.len() as u32);
        buffer.extend_from_slice(bytes.unwrap_or_default());
        Self { start, length }
    }
}

/// A row of the table `chunks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedChunk {
    /// Key of the file's path.
    pub key: PathKey,
    /// Offset in the file.
    pub offset: i64,
    /// Size of the chunk in bytes.
    pub size: i64,
    /// Hash of the object.
    pub hash: Option<Box<[u8]>>,
}

/// A row of `nested_catalogs` or `bind_mountpoints`, without its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedReference {
    /// Hash of the catalog, as stored.
    pub hash: String,
    /// Size of the decompressed catalog in bytes; 0 in old catalogs, which do not store it.
    pub size: i64,
}

/// The content of a catalog.
#[derive(Debug)]
pub struct AuditedCatalog {
    /// Size of the file in bytes.
    pub size: u64,
    /// Rows, ordered by rowid.
    pub rows: Vec<AuditedRow>,
    /// Texts and blobs of the rows.
    pub(super) buffer: Vec<u8>,
    /// Chunks, ordered by file and offset.
    pub chunks: Vec<AuditedChunk>,
    /// Nested catalogs by path.
    pub nested: BTreeMap<Vec<u8>, AuditedReference>,
    /// Bind mountpoints (catalogs that are mounted at a second path), by path.
    pub bound: BTreeMap<Vec<u8>, AuditedReference>,
    /// Counters by name.
    pub statistics: BTreeMap<String, i64>,
    /// The table `properties`.
    pub properties: BTreeMap<String, String>,
    /// Faults of the database and of single values.
    pub faults: Vec<Fault>,
    /// Whether some rows could not be read.
    pub is_damaged: bool,
}

/// Maximum size in bytes of a catalog whose indexes only `integrity_check` checks. For such a catalog, `integrity_check` takes
/// less time than the preparation of the other check.
const SMALL_CATALOG: u64 = 64 << 10;

/// First schema revision with the table `bind_mountpoints`.
const WITH_BIND_MOUNTPOINTS: u32 = 4;

impl AuditedCatalog {
    /// Reads a catalog. Fails only if the file is not a readable database.
    pub fn read(bytes: Vec<u8>) -> Result<Self, Fault> {
        match sound::read(&bytes) {
            Some(sound) => Ok(sound),
            None => Self::read_with_sqlite(bytes),
        }
    }

    /// Reads a catalog that is already open, without copying it.
    pub(crate) fn read_open(database: &mut GuardedDatabase) -> Result<Self, Fault> {
        match database.with_bytes(|bytes| (bytes.len() as u64, sound::read(bytes))) {
            Ok((_, Some(sound))) => Ok(sound),
            Ok((size, None)) => Ok(Self::of_database(Database::borrowed(database)?, size)),
            Err(error) => Err(unreadable(error)),
        }
    }

    /// Reads a catalog with SQLite, which can report damage and read the remaining rows.
    pub(super) fn read_with_sqlite(bytes: Vec<u8>) -> Result<Self, Fault> {
        let size = bytes.len() as u64;
        Ok(Self::of_database(Database::open(bytes)?, size))
    }

    fn of_database(mut database: Database<'_>, size: u64) -> Self {
        let has_whole_pages = size > SMALL_CATALOG && database.has_whole_pages();
        if !has_whole_pages {
            database.check_integrity();
        }
        let properties = database.properties();
        let revision = properties.get("schema_revision").and_then(|text| text.parse().ok()).unwrap_or(WITH_NANOSECONDS);
        require_index(&mut database);
        let (rows, buffer) = read_rows(&mut database, revision);
        let chunks = read_chunks(&mut database);
        let nested = read_references(&mut database, "nested_catalogs");
        let bound = match revision >= WITH_BIND_MOUNTPOINTS || !database.columns("bind_mountpoints").is_empty() {
            true => read_references(&mut database, "bind_mountpoints"),
            false => BTreeMap::new(),
        };
        let statistics = read_statistics(&mut database);
        if has_whole_pages {
            indexes::check(&mut database, &rows);
        }
        Self {
            size,
            rows,
            buffer,
            chunks,
            nested,
            bound,
            statistics,
            properties,
            faults: database.faults,
            is_damaged: database.is_damaged,
        }
    }

    fn bytes(&self, span: Span) -> Option<&[u8]> {
        let start = span.start as usize;
        (span.length != Span::NULL).then(|| &self.buffer[start..start + span.length as usize])
    }

    /// Returns the last component of a row's path.
    pub fn name(&self, row: &AuditedRow) -> &[u8] {
        self.bytes(row.name).unwrap_or_default()
    }

    /// Returns the target of a link.
    pub fn symlink(&self, row: &AuditedRow) -> &[u8] {
        self.bytes(row.symlink).unwrap_or_default()
    }

    /// Returns the hash of the object of a file that is stored as a whole.
    pub fn hash(&self, row: &AuditedRow) -> Option<&[u8]> {
        self.bytes(row.hash)
    }

    /// Returns a row's packed extended attributes.
    pub fn xattr(&self, row: &AuditedRow) -> Option<&[u8]> {
        self.bytes(row.xattr)
    }

    /// Returns the chunks of the file whose path has this key, ordered by offset.
    pub fn chunks_of(&self, key: PathKey) -> &[AuditedChunk] {
        let start = self.chunks.partition_point(|chunk| chunk.key < key);
        let count = self.chunks[start..].iter().take_while(|chunk| chunk.key == key).count();
        &self.chunks[start..start + count]
    }

    /// Returns whether two rows differ only in rowid, key, and name.
    pub fn are_alike(&self, one: &AuditedRow, other: &AuditedRow) -> bool {
        let bare = |row: &AuditedRow| {
            let (name, symlink, hash, xattr) = Default::default();
            AuditedRow { rowid: 0, key: (0, 0), name, symlink, hash, xattr, ..*row }
        };
        bare(one) == bare(other)
            && (self.symlink(one), self.hash(one), self.xattr(one))
                == (self.symlink(other), self.hash(other), self.xattr(other))
            && self.chunks_of(one.key).iter().map(without_key).eq(self.chunks_of(other.key).iter().map(without_key))
    }
}

fn without_key(chunk: &AuditedChunk) -> (i64, i64, &Option<Box<[u8]>>) {
    (chunk.offset, chunk.size, &chunk.hash)
}

fn require_index(database: &mut Database<'_>) {
    if database.schema.is_strata_schema {
        return;
    }
    let sql = "SELECT group_concat(name) FROM pragma_index_info('idx_catalog_parent')";
    let columns: Vec<Option<String>> = database.rows(sql, |row, _| row.get(0));
    if columns != [Some("parent_1,parent_2".to_owned())] {
        let found = columns.into_iter().flatten().next().unwrap_or_else(|| "no such index".to_owned());
        database.faults.push(Fault::new("index idx_catalog_parent on parent_1, parent_2", found));
    }
}

fn read_rows(database: &mut Database<'_>, revision: u32) -> (Vec<AuditedRow>, Vec<u8>) {
    let has_nanoseconds = database.columns("catalog").iter().any(|column| column == "mtimens");
    let mut needed = ROW_COLUMNS.to_vec();
    if revision >= WITH_NANOSECONDS {
        needed.push("mtimens");
    }
    let (mut rows, mut buffer) = (Vec::new(), Vec::new());
    if !database.requires("catalog", &needed) {
        return (rows, buffer);
    }
    let nanoseconds = if has_nanoseconds { "mtimens" } else { "NULL" };
    let sql = format!("SELECT {}, {nanoseconds}, rowid FROM catalog ORDER BY rowid", ROW_COLUMNS.join(", "));
    let most = database.size();
    database.visit(&sql, |row, faults| {
        rows.push(read_row(row, faults, &mut buffer)?);
        // Pages that refer to each other in a cycle return more bytes than the file has.
        if buffer.len() as u64 > most {
            Err(unusable("its rows have more bytes than the file".to_owned()))
        } else {
            Ok(())
        }
    });
    (rows, buffer)
}

/// Reads a row with the columns [`ROW_COLUMNS`], `mtimens` and `rowid`.
fn read_row(row: &Row<'_>, faults: &mut Vec<Fault>, buffer: &mut Vec<u8>) -> rusqlite::Result<AuditedRow> {
    let number: i64 = row.get(16)?;
    let mut cells = Cells { row, number: Some(number), faults };
    let hardlinks = cells.integer(4, "hardlinks");
    let mut keep = |bytes: Option<&[u8]>| Span::add(buffer, bytes);
    Ok(AuditedRow {
        rowid: number,
        key: (cells.integer(0, "md5path_1"), cells.integer(1, "md5path_2")),
        parent: (
            cells.optional_integer(2, "parent_1").unwrap_or(0),
            cells.optional_integer(3, "parent_2").unwrap_or(0),
        ),
        link_group: (hardlinks >> 32) as u32,
        link_count: hardlinks as u32,
        hash: keep(cells.blob(5, "hash")),
        size: cells.integer(6, "size"),
        mode: cells.unsigned(7, "mode"),
        mtime: cells.integer(8, "mtime"),
        flags: cells.unsigned(9, "flags"),
        name: keep(Some(cells.text(10, "name"))),
        symlink: keep(Some(cells.text(11, "symlink"))),
        uid: cells.unsigned(12, "uid"),
        gid: cells.unsigned(13, "gid"),
        xattr: keep(cells.blob(14, "xattr")),
        mtime_nanoseconds: cells.optional_integer(15, "mtimens"),
    })
}

fn read_chunks(database: &mut Database<'_>) -> Vec<AuditedChunk> {
    if !database.requires("chunks", &["md5path_1", "md5path_2", "offset", "size", "hash"]) {
        return Vec::new();
    }
    let sql = "SELECT md5path_1, md5path_2, offset, size, hash FROM chunks ORDER BY md5path_1, md5path_2, offset, size";
    let mut chunks = database.rows(sql, |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        let key = (cells.integer(0, "md5path_1"), cells.integer(1, "md5path_2"));
        let (offset, size, hash) = (cells.integer(2, "offset"), cells.integer(3, "size"), cells.blob(4, "hash"));
        Ok(AuditedChunk { key, offset, size, hash: hash.map(Into::into) })
    });
    // Values of a wrong type were read as 0, which breaks the order of the query.
    chunks.sort_by_key(|chunk| (chunk.key, chunk.offset, chunk.size));
    chunks
}

fn read_references(database: &mut Database<'_>, table: &str) -> BTreeMap<Vec<u8>, AuditedReference> {
    if !database.requires(table, &["path", "sha1", "size"]) {
        return BTreeMap::new();
    }
    let rows = database.rows(&format!("SELECT path, sha1, size FROM {table}"), |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        let (path, hash) = (cells.text(0, "path").to_vec(), cells.string(1, "sha1"));
        Ok((path, AuditedReference { hash, size: cells.optional_integer(2, "size").unwrap_or(0) }))
    });
    rows.into_iter().collect()
}

fn read_statistics(database: &mut Database<'_>) -> BTreeMap<String, i64> {
    if !database.requires("statistics", &["counter", "value"]) {
        return BTreeMap::new();
    }
    let rows = database.rows("SELECT counter, value FROM statistics", |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        Ok((cells.string(0, "counter"), cells.integer(1, "value")))
    });
    rows.into_iter().collect()
}

/// Maximum depth of a path. A longer chain of parents is a cycle.
const MAX_DEPTH: usize = 10_000;

/// Returns the paths of rows of the catalog of the directory `root`. `rows` are rowids; the result is `None` for a row that is not
/// below the root.
pub fn paths_of_rows(bytes: Vec<u8>, root: &[u8], rows: &[i64]) -> Vec<Option<Vec<u8>>> {
    let Ok(database) = Database::open(bytes) else { return vec![None; rows.len()] };
    rows.iter().map(|&row| path_of_row(&database, root, row)).collect()
}

fn path_of_row(database: &Database<'_>, root: &[u8], row: i64) -> Option<Vec<u8>> {
    type Found = (PathKey, PathKey, Vec<u8>);
    let find = |column: &str, values: &[i64]| -> Option<Found> {
        let sql = format!("SELECT md5path_1, md5path_2, parent_1, parent_2, name FROM catalog WHERE {column}");
        let mut statement = database.connection().prepare_cached(&sql).ok()?;
        let found = statement.query_row(rusqlite::params_from_iter(values), |row| {
            let parent = (row.get::<_, Option<_>>(2)?.unwrap_or(0), row.get::<_, Option<_>>(3)?.unwrap_or(0));
            Ok(((row.get(0)?, row.get(1)?), parent, row.get_ref(4)?.as_bytes()?.to_vec()))
        });
        found.optional().ok().flatten()
    };
    let (mut names, root_key) = (Vec::new(), key_of(root));
    let (mut key, mut parent, mut name) = find("rowid = ?1", &[row])?;
    while key != root_key {
        names.push(name);
        if names.len() > MAX_DEPTH {
            return None;
        }
        (key, parent, name) = find("md5path_1 = ?1 AND md5path_2 = ?2", &[parent.0, parent.1])?;
    }
    let below = names.iter().rev().flat_map(|name| [b"/".as_slice(), name]);
    Some([root].into_iter().chain(below).collect::<Vec<_>>().concat())
}
