//! A catalog, whole, as it stands.

use std::collections::{BTreeMap, HashMap};

use rusqlite::OptionalExtension;

use super::database::{Cells, Database, Fault};
use crate::catalog::database::{PathKey, key_of};

/// A row of the table `catalog`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedRow {
    /// Its number, from which clients make the inode.
    pub rowid: i64,
    /// Key of its path.
    pub key: PathKey,
    /// Key of the folder around it; zeros for NULL.
    pub parent: PathKey,
    /// Hard link group, 0 for none.
    pub link_group: u32,
    /// Link count.
    pub link_count: u32,
    /// The object of a whole file.
    pub hash: Option<Box<[u8]>>,
    /// Size, or device number.
    pub size: i64,
    /// Type and permissions.
    pub mode: u32,
    /// Seconds of the modification time.
    pub mtime: i64,
    /// Nanoseconds of it.
    pub mtime_nanoseconds: Option<i64>,
    /// What the row is.
    pub flags: u32,
    /// Last component of the path.
    pub name: Box<[u8]>,
    /// Target of a link.
    pub symlink: Box<[u8]>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Packed extended attributes.
    pub xattr: Option<Box<[u8]>>,
}

/// A row of the table `chunks`, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedChunk {
    /// Where it begins.
    pub offset: i64,
    /// Bytes of content.
    pub size: i64,
    /// The object.
    pub hash: Option<Box<[u8]>>,
}

/// A row of `nested_catalogs` or `bind_mountpoints`, without its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedReference {
    /// The text of the hash.
    pub hash: String,
    /// Bytes of the catalog, unpacked; 0 in old catalogs that do not say it.
    pub size: i64,
}

/// All that a catalog holds.
#[derive(Debug)]
pub struct AuditedCatalog {
    /// Bytes of the file.
    pub size: u64,
    /// Rows in the order of their numbers.
    pub rows: Vec<AuditedRow>,
    /// Chunks by file, in order.
    pub chunks: HashMap<PathKey, Vec<AuditedChunk>>,
    /// Nested catalogs by path.
    pub nested: BTreeMap<Vec<u8>, AuditedReference>,
    /// Catalogs that are shown a second time, by path.
    pub bound: BTreeMap<Vec<u8>, AuditedReference>,
    /// Counters by name.
    pub statistics: BTreeMap<String, i64>,
    /// Properties.
    pub properties: BTreeMap<String, String>,
    /// What is wrong with the database, or with single cells.
    pub faults: Vec<Fault>,
    /// Whether there may be more in it that cannot be read.
    pub is_damaged: bool,
}

/// Since this schema revision there are nanoseconds.
const WITH_NANOSECONDS: u32 = 7;
/// Since this schema revision there are bind mountpoints.
const WITH_BIND_MOUNTPOINTS: u32 = 4;

const COLUMNS: [&str; 15] = [
    "md5path_1",
    "md5path_2",
    "parent_1",
    "parent_2",
    "hardlinks",
    "hash",
    "size",
    "mode",
    "mtime",
    "flags",
    "name",
    "symlink",
    "uid",
    "gid",
    "xattr",
];

impl AuditedCatalog {
    /// Reads a catalog's file; fails only where nothing at all can be read.
    pub fn read(bytes: Vec<u8>) -> Result<Self, Fault> {
        let size = bytes.len() as u64;
        let mut database = Database::open(bytes)?;
        let properties = database.properties();
        let revision = properties.get("schema_revision").and_then(|text| text.parse().ok()).unwrap_or(WITH_NANOSECONDS);
        require_index(&mut database);
        let rows = read_rows(&mut database, revision);
        let chunks = read_chunks(&mut database);
        let nested = read_references(&mut database, "nested_catalogs");
        let bound = match revision >= WITH_BIND_MOUNTPOINTS || !database.columns("bind_mountpoints").is_empty() {
            true => read_references(&mut database, "bind_mountpoints"),
            false => BTreeMap::new(),
        };
        let statistics = read_statistics(&mut database);
        Ok(Self {
            size,
            rows,
            chunks,
            nested,
            bound,
            statistics,
            properties,
            faults: database.faults,
            is_damaged: database.is_damaged,
        })
    }
}

fn require_index(database: &mut Database) {
    let sql = "SELECT group_concat(name) FROM pragma_index_info('idx_catalog_parent')";
    let columns: Vec<Option<String>> = database.rows(sql, |row, _| row.get(0));
    if columns != [Some("parent_1,parent_2".to_owned())] {
        let found = columns.into_iter().flatten().next().unwrap_or_else(|| "no such index".to_owned());
        database.faults.push(Fault::new("index idx_catalog_parent on parent_1, parent_2", found));
    }
}

fn read_rows(database: &mut Database, revision: u32) -> Vec<AuditedRow> {
    let has_nanoseconds = database.columns("catalog").iter().any(|column| column == "mtimens");
    let mut needed = COLUMNS.to_vec();
    if revision >= WITH_NANOSECONDS {
        needed.push("mtimens");
    }
    if !database.requires("catalog", &needed) {
        return Vec::new();
    }
    let nanoseconds = if has_nanoseconds { "mtimens" } else { "NULL AS mtimens" };
    let sql = format!("SELECT rowid AS number, {}, {nanoseconds} FROM catalog ORDER BY rowid", COLUMNS.join(", "));
    database.rows(&sql, |row, faults| {
        let number: i64 = row.get(0)?;
        let mut cells = Cells { row, number: Some(number), faults };
        let hardlinks = cells.integer("hardlinks");
        Ok(AuditedRow {
            rowid: number,
            key: (cells.integer("md5path_1"), cells.integer("md5path_2")),
            parent: (cells.optional_integer("parent_1").unwrap_or(0), cells.optional_integer("parent_2").unwrap_or(0)),
            link_group: (hardlinks >> 32) as u32,
            link_count: hardlinks as u32,
            hash: cells.blob("hash"),
            size: cells.integer("size"),
            mode: cells.unsigned("mode"),
            mtime: cells.integer("mtime"),
            mtime_nanoseconds: cells.optional_integer("mtimens"),
            flags: cells.unsigned("flags"),
            name: cells.text("name"),
            symlink: cells.text("symlink"),
            uid: cells.unsigned("uid"),
            gid: cells.unsigned("gid"),
            xattr: cells.blob("xattr"),
        })
    })
}

fn read_chunks(database: &mut Database) -> HashMap<PathKey, Vec<AuditedChunk>> {
    let mut chunks: HashMap<PathKey, Vec<AuditedChunk>> = HashMap::new();
    if !database.requires("chunks", &["md5path_1", "md5path_2", "offset", "size", "hash"]) {
        return chunks;
    }
    let sql = "SELECT md5path_1, md5path_2, offset, size, hash FROM chunks ORDER BY md5path_1, md5path_2, offset, size";
    let rows = database.rows(sql, |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        let key = (cells.integer("md5path_1"), cells.integer("md5path_2"));
        let (offset, size, hash) = (cells.integer("offset"), cells.integer("size"), cells.blob("hash"));
        Ok((key, AuditedChunk { offset, size, hash }))
    });
    rows.into_iter().for_each(|(key, chunk)| chunks.entry(key).or_default().push(chunk));
    chunks
}

fn read_references(database: &mut Database, table: &str) -> BTreeMap<Vec<u8>, AuditedReference> {
    if !database.requires(table, &["path", "sha1", "size"]) {
        return BTreeMap::new();
    }
    let rows = database.rows(&format!("SELECT path, sha1, size FROM {table}"), |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        let (path, hash) = (cells.text("path").into_vec(), cells.string("sha1"));
        Ok((path, AuditedReference { hash, size: cells.optional_integer("size").unwrap_or(0) }))
    });
    rows.into_iter().collect()
}

fn read_statistics(database: &mut Database) -> BTreeMap<String, i64> {
    if !database.requires("statistics", &["counter", "value"]) {
        return BTreeMap::new();
    }
    let rows = database.rows("SELECT counter, value FROM statistics", |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        Ok((cells.string("counter"), cells.integer("value")))
    });
    rows.into_iter().collect()
}

/// No path has more components: what seems to have more goes round in circles.
const MAXIMUM_DEPTH: usize = 10_000;

/// Returns the paths of rows, by their numbers, in the catalog of the folder `root`; `None` for those that lie in no folder.
pub fn paths_of_rows(bytes: Vec<u8>, root: &[u8], rows: &[i64]) -> Vec<Option<Vec<u8>>> {
    let Ok(database) = Database::open(bytes) else { return vec![None; rows.len()] };
    rows.iter().map(|&row| path_of_row(&database, root, row)).collect()
}

fn path_of_row(database: &Database, root: &[u8], row: i64) -> Option<Vec<u8>> {
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
        if names.len() > MAXIMUM_DEPTH {
            return None;
        }
        (key, parent, name) = find("md5path_1 = ?1 AND md5path_2 = ?2", &[parent.0, parent.1])?;
    }
    let below = names.iter().rev().flat_map(|name| [b"/".as_slice(), name]);
    Some([root].into_iter().chain(below).collect::<Vec<_>>().concat())
}
