//! Catalogs as SQLite files: reading rows, writing a new catalog, and changing an existing one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use md5::{Digest as _, Md5};
use rusqlite::serialize::Data;
use rusqlite::types::{ToSqlOutput, Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, Statement, ToSql, params};

use super::bits::hash_algorithm;
use super::counters::Counters;
use super::entry::{CatalogEntry, CatalogReference};
use super::guarded::{Access, GuardedDatabase, Table, explain_timeout, text, wrong_value};
use crate::object::{Chunk, ContentObjects, HashAlgorithm, ObjectHash, ObjectKind};
use crate::path::EntryPath;

mod draft;
mod sound;
mod writable;

pub(super) use draft::Draft;
pub(super) use writable::{References, WritableCatalog};

/// Maximum depth of a directory: 1,000 within an image, plus the directories above its tree. Tree walks are recursive, and the stacks
/// of threads are small.
const MAX_DEPTH: usize = 1_100;

/// First schema revision with the column `mtimens`.
pub(super) const WITH_NANOSECONDS: u32 = 7;

/// Columns of the table `catalog` that every schema revision has.
pub(super) const ROW_COLUMNS: [&str; 15] = [
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

/// Tables that every schema revision has.
const TABLES: &[Table] = &[
    ("catalog", &ROW_COLUMNS),
    ("chunks", &["md5path_1", "md5path_2", "offset", "size", "hash"]),
    ("nested_catalogs", &["path", "sha1", "size"]),
    ("statistics", &["counter", "value"]),
    ("properties", &["key", "value"]),
];

/// Errors from reading or writing a catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// SQLite reported an error.
    #[error("catalog of {path} is not a usable database")]
    Database {
        /// The directory that the catalog describes.
        path: EntryPath,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// The file is a database, but it violates the catalog format.
    #[error("catalog of {path} is not valid: {fault}")]
    Invalid {
        /// The directory that the catalog describes.
        path: EntryPath,
        /// Description of the violation.
        fault: String,
    },
}

/// Hash and kind of an object, and its size in the store in bytes if the catalog states it.
pub type StoredObject = (ObjectHash, ObjectKind, Option<u64>);

/// Key of a path in all tables: the two halves of its MD5 hash as little-endian signed integers.
pub type PathKey = (i64, i64);

/// Returns a path in the form that catalogs use: empty for the root, otherwise with a leading slash.
fn catalog_path(path: &EntryPath) -> Vec<u8> {
    // CVMFS hashes the empty path for the root. With "/", no client would find anything.
    if path.is_root() { Vec::new() } else { [b"/", path.as_bytes()].concat() }
}

fn key(path: &EntryPath) -> PathKey {
    key_of(&catalog_path(path))
}

/// Returns the key of a path that is in the form of [`catalog_path`].
pub fn key_of(catalog_path: &[u8]) -> PathKey {
    key_of_hash(Md5::digest(catalog_path).into())
}

/// Returns the key of the path that has this MD5 hash.
pub fn key_of_hash(digest: [u8; 16]) -> PathKey {
    // CVMFS copies the digest into two integers in memory, and runs on little-endian machines.
    let digest = u128::from_le_bytes(digest);
    (digest as i64, (digest >> 64) as i64)
}

/// Bytes to store with the type TEXT. File names need not be UTF-8.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        // A `String` would have to be UTF-8. As a blob, it would have another type than the names that CVMFS writes.
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// Turns off rollback and foreign keys. A database in memory needs neither, because it is written once and discarded after an
/// error.
// Never WAL: CVMFS aborts on a file whose header requires it. Readers do not enforce foreign keys either.
pub(super) const UNJOURNALED: &str = "PRAGMA journal_mode = OFF; PRAGMA foreign_keys = OFF;";

/// Creates a database in memory with the given schema and pages of 4 KiB.
pub(crate) fn create_database(schema: &str) -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    // CVMFS writes pages of 1 KiB, but its clients read pages of any size.
    connection.execute_batch("PRAGMA page_size = 4096")?;
    connection.execute_batch(UNJOURNALED)?;
    connection.execute_batch(schema)?;
    Ok(connection)
}

/// Returns a database in memory as the bytes of an SQLite file.
pub(crate) fn database_bytes(mut connection: Connection) -> rusqlite::Result<Vec<u8>> {
    let bytes = match connection.serialize("main")? {
        Data::Owned(bytes) => bytes,
        Data::Shared(bytes) => return Ok(bytes.to_vec()),
    };
    // `to_vec` copies the buffer of SQLite; closing the database first keeps two instead of three copies in memory.
    drop(connection);
    Ok(bytes.to_vec())
}

/// One catalog, read-only.
#[derive(Debug)]
pub struct Catalog {
    root: EntryPath,
    size: u64,
    database: Mutex<GuardedDatabase>,
    properties: BTreeMap<String, String>,
    own: Counters,
    below: Counters,
}

impl Catalog {
    /// Opens the catalog of the directory `root` from the bytes of its SQLite file.
    pub fn parse(bytes: &[u8], root: &EntryPath) -> Result<Self, CatalogError> {
        // Opened as writable, because the caller may later convert the catalog into a `WritableCatalog`.
        Self::opened(GuardedDatabase::open(bytes, Access::Writable), bytes.len(), root)
    }

    /// Like [`Self::parse`], but frees the bytes while SQLite copies them, so that a large catalog is not in memory twice.
    pub fn parse_owned(bytes: Vec<u8>, root: &EntryPath) -> Result<Self, CatalogError> {
        let size = bytes.len();
        Self::opened(GuardedDatabase::open_owned(bytes, Access::Writable), size, root)
    }

    fn opened(
        database: rusqlite::Result<GuardedDatabase>,
        size: usize,
        root: &EntryPath,
    ) -> Result<Self, CatalogError> {
        let database = database.map_err(|source| CatalogError::Database { path: root.clone(), source })?;
        Self::of(database, size as u64, root)
    }

    /// Wraps the database after checking that it is the catalog of the directory `root`.
    fn of(database: GuardedDatabase, size: u64, root: &EntryPath) -> Result<Self, CatalogError> {
        let failed = |source| CatalogError::Database { path: root.clone(), source: explain_timeout(source) };
        let invalid = |fault| CatalogError::Invalid { path: root.clone(), fault };
        let schema = database.require(TABLES).map_err(failed)?;
        let properties = read_properties(&database).map_err(failed)?;
        if properties.get("schema").map(String::as_str) != Some("2.5") {
            let found = properties.get("schema").map_or("missing", String::as_str);
            return Err(invalid(format!("expected schema 2.5, found {found}")));
        }
        // Keys are hashes of whole paths, so below another directory none of the rows would be found.
        let prefix = properties.get("root_prefix").map_or("", String::as_str);
        if prefix.as_bytes() != catalog_path(root) {
            return Err(invalid(format!("it is the catalog of another directory, '{prefix}'")));
        }
        let revision = properties.get("schema_revision").and_then(|text| text.parse().ok()).unwrap_or(0);
        if revision >= WITH_NANOSECONDS && !schema.missing("catalog", &["mtimens"]).is_empty() {
            return Err(invalid("table catalog lacks the column mtimens".to_owned()));
        }
        let statistics = read_statistics(&database).map_err(failed)?;
        let counters = |prefix: &str| {
            Counters::from_named(|name| statistics.get(&format!("{prefix}_{name}")).copied())
                .map_err(|name| invalid(format!("counter {prefix}_{name} is missing")))
        };
        let (own, below) = (counters("self")?, counters("subtree")?);
        Ok(Self { root: root.clone(), size, database: Mutex::new(database), properties, own, below })
    }

    /// Returns the directory that the catalog describes.
    pub fn root(&self) -> &EntryPath {
        &self.root
    }

    /// Returns the size of the SQLite file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the property `revision`: in a root catalog the revision of the repository, in a nested catalog the number of times that
    /// it was written.
    pub fn revision(&self) -> Option<u64> {
        self.property("revision")?.parse().ok()
    }

    /// Returns a property, such as `revision`.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }

    /// Returns the counters of this catalog alone.
    pub fn own_counters(&self) -> Counters {
        self.own
    }

    /// Returns the sum of the counters of this catalog and of all catalogs below it.
    pub fn total_counters(&self) -> Counters {
        let mut total = self.own;
        total += self.below;
        total
    }

    /// Returns the row of `path`.
    pub fn get(&self, path: &EntryPath) -> Result<Option<CatalogEntry>, CatalogError> {
        let (first, second) = key(path);
        let database = self.database();
        let sql = format!("SELECT {} FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2", self.columns());
        let read = || database.connection().prepare_cached(&sql)?.query_row([first, second], read_row).optional();
        let found = read().map_err(|source| self.database_error(source))?;
        found.map(|row| self.complete(&database, row)).transpose().map(|entry| entry.map(|(_, entry)| entry))
    }

    /// Returns the rows of the children of the directory `path` by name, including hidden rows.
    pub fn list(&self, path: &EntryPath) -> Result<BTreeMap<Vec<u8>, CatalogEntry>, CatalogError> {
        if path.components().count() > MAX_DEPTH {
            return Err(self.invalid(format!("{} is nested more than {MAX_DEPTH} directories deep", path.shown())));
        }
        let (first, second) = key(path);
        let database = self.database();
        let sql = format!("SELECT {} FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2", self.columns());
        let rows = database.rows(&sql, [first, second], read_row).map_err(|source| self.database_error(source))?;
        let complete = |row: StoredRow| {
            self.require_child(path, &row)?;
            self.complete(&database, row)
        };
        rows.into_iter().map(complete).collect()
    }

    /// Refuses a row that cannot be a child of the directory `path`. For example, a row with an empty name would be the directory itself,
    /// and a recursive walk would not end.
    fn require_child(&self, path: &EntryPath, row: &StoredRow) -> Result<(), CatalogError> {
        let shown = || format!("'{}' in {}", row.name.escape_ascii(), path.shown());
        if !is_component(&row.name) {
            return Err(self.invalid(format!("the name of the row {} is not a valid file name", shown())));
        }
        if row.key != key(&path.join(&row.name)) {
            return Err(self.invalid(format!("the key of the row {} belongs to another path", shown())));
        }
        Ok(())
    }

    /// Returns the nested catalog whose transition point is `path`.
    pub fn nested(&self, path: &EntryPath) -> Result<Option<CatalogReference>, CatalogError> {
        let database = self.database();
        let sql = "SELECT sha1, size FROM nested_catalogs WHERE path = ?1";
        let read = || {
            database.connection().prepare_cached(sql)?.query_row([Text(&catalog_path(path))], read_reference).optional()
        };
        read().map_err(|source| self.database_error(source))
    }

    /// Returns all nested catalogs directly below this one, by the path of their transition point.
    pub fn all_nested(&self) -> Result<BTreeMap<EntryPath, CatalogReference>, CatalogError> {
        let sql = "SELECT sha1, size, path FROM nested_catalogs";
        let rows = self.database().rows(sql, [], read_reference_with_path);
        let rows = rows.map_err(|source| self.database_error(source))?;
        rows.into_iter().map(|row| self.reference(row)).collect()
    }

    fn reference(
        &self,
        (path, reference): (Vec<u8>, CatalogReference),
    ) -> Result<(EntryPath, CatalogReference), CatalogError> {
        Ok((EntryPath::normalise(&path).map_err(|error| self.invalid(error.to_string()))?, reference))
    }

    /// Returns the objects of all files, with duplicates. External files have none.
    pub fn objects(&self) -> Result<Vec<(ObjectHash, ObjectKind)>, CatalogError> {
        Ok(self.stored_objects()?.into_iter().map(|(hash, kind, _)| (hash, kind)).collect())
    }

    /// Like [`Self::objects`], with the size of each object in the store if the catalog states it.
    pub fn stored_objects(&self) -> Result<Vec<StoredObject>, CatalogError> {
        let database = self.database();
        let read = |sql: &str, kind| {
            database.rows(sql, [], |row| Ok((ObjectHash::new(algorithm(row, 1)?, row.get(0)?), kind, row.get(2)?)))
        };
        // Flags: 0x80 is external content, 0x3800 the compression. With the value 0x800, an object is stored uncompressed, so that
        // its size in the store is the size of the file.
        let whole = "SELECT hash, flags, CASE flags & 0x3800 WHEN 0x800 THEN size END FROM catalog \
             WHERE hash IS NOT NULL AND flags & 0x80 = 0";
        let chunks = "SELECT chunks.hash, flags, CASE flags & 0x3800 WHEN 0x800 THEN chunks.size END FROM chunks \
             JOIN catalog USING (md5path_1, md5path_2) WHERE flags & 0x80 = 0";
        let both =
            read(whole, ObjectKind::File).and_then(|files| Ok([files, read(chunks, ObjectKind::Chunk)?].concat()));
        both.map_err(|source| self.database_error(source))
    }

    /// Returns the name and the entry of a row. Reads the chunks of the file from the table `chunks`.
    fn complete(&self, database: &GuardedDatabase, row: StoredRow) -> Result<(Vec<u8>, CatalogEntry), CatalogError> {
        let mut failure = None;
        let name = row.name.clone();
        let entry = row.with_chunks(|(first, second), algorithm| {
            let sql = "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2 ORDER BY offset";
            let chunks = database.rows(sql, [first, second], |row| read_chunk(row, algorithm));
            chunks.map_err(|error| failure = Some(error)).unwrap_or_default().into()
        });
        failure.map_or(Ok((name, entry)), |source| Err(self.database_error(source)))
    }

    fn has_nanoseconds(&self) -> bool {
        self.property("schema_revision").and_then(|text| text.parse().ok()).unwrap_or(0) >= WITH_NANOSECONDS
    }

    fn columns(&self) -> &'static str {
        if self.has_nanoseconds() {
            "md5path_1, md5path_2, hardlinks, hash, size, mode, mtime, flags, name, symlink, uid, gid, xattr, mtimens"
        } else {
            "md5path_1, md5path_2, hardlinks, hash, size, mode, mtime, flags, name, symlink, uid, gid, xattr, NULL"
        }
    }

    fn database(&self) -> MutexGuard<'_, GuardedDatabase> {
        self.database.lock().expect("no thread panics while it reads a catalog")
    }

    fn database_error(&self, source: rusqlite::Error) -> CatalogError {
        CatalogError::Database { path: self.root.clone(), source: explain_timeout(source) }
    }

    fn invalid(&self, fault: String) -> CatalogError {
        CatalogError::Invalid { path: self.root.clone(), fault }
    }
}

/// A row of the table `catalog`, before its chunks are read.
struct StoredRow {
    key: PathKey,
    name: Vec<u8>,
    entry: CatalogEntry,
    /// The hash algorithm of the names of all objects of the file.
    algorithm: HashAlgorithm,
}

impl StoredRow {
    fn with_chunks(mut self, chunks: impl FnOnce(PathKey, HashAlgorithm) -> Arc<[Chunk]>) -> CatalogEntry {
        if self.entry.is_chunked() {
            let chunks = chunks(self.key, self.algorithm);
            // `cvmfs_server` can be set to store a chunked file as a whole object as well.
            if !chunks.is_empty() || self.entry.content.is_none() {
                self.entry.content = Some(ContentObjects::Chunks(chunks));
            }
        }
        self.entry
    }
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<StoredRow> {
    let hardlinks: i64 = row.get(2)?;
    let (hash, algorithm): (Option<[u8; 20]>, _) = (row.get(3)?, algorithm(row, 7)?);
    let entry = CatalogEntry {
        link_group: (hardlinks >> 32) as u32,
        link_count: hardlinks as u32,
        content: hash.map(|hash| ContentObjects::Whole(ObjectHash::new(algorithm, hash))),
        size: row.get(4)?,
        mode: row.get(5)?,
        mtime: row.get(6)?,
        flags: row.get(7)?,
        // NULL is refused here and in the name: clients call `strlen` on both, and crash.
        symlink: text(row, 9)?.to_vec(),
        uid: row.get(10)?,
        gid: row.get(11)?,
        xattr: row.get(12)?,
        mtime_nanoseconds: row.get(13)?,
    };
    if let Some(fault) = entry.fault() {
        return Err(wrong_value(5, Type::Integer, fault));
    }
    Ok(StoredRow { key: (row.get(0)?, row.get(1)?), name: text(row, 8)?.to_vec(), entry, algorithm })
}

/// Reads the hash algorithm from the flags in a column.
fn algorithm(row: &Row<'_>, column: usize) -> rusqlite::Result<HashAlgorithm> {
    let flags = row.get(column)?;
    // Clients end with a failed assertion, even if the row has no hash.
    let unknown =
        || wrong_value(column, Type::Integer, format!("the hash algorithm in the flags {flags} is not known"));
    hash_algorithm(flags).ok_or_else(unknown)
}

/// Returns whether a name is a valid file name: one path component of at most 255 bytes.
fn is_component(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.iter().any(|byte| b"/\0".contains(byte))
}

fn read_chunk(row: &Row<'_>, algorithm: HashAlgorithm) -> rusqlite::Result<Chunk> {
    Ok(Chunk { offset: row.get(0)?, size: row.get(1)?, hash: ObjectHash::new(algorithm, row.get(2)?) })
}

fn read_reference_with_path(row: &Row<'_>) -> rusqlite::Result<(Vec<u8>, CatalogReference)> {
    Ok((text(row, 2)?.to_vec(), read_reference(row)?))
}

pub(super) fn read_reference(row: &Row<'_>) -> rusqlite::Result<CatalogReference> {
    let text: String = row.get(0)?;
    let hash = text.parse::<ObjectHash>().map_err(|error| wrong_value(0, Type::Text, error.to_string()))?;
    // Old catalogs do not state the sizes of other catalogs.
    Ok(CatalogReference { hash, size: row.get::<_, Option<u64>>(1)?.unwrap_or(0) })
}

fn read_properties(database: &GuardedDatabase) -> rusqlite::Result<BTreeMap<String, String>> {
    let sql = "SELECT key, CAST(value AS TEXT) FROM properties WHERE value IS NOT NULL";
    Ok(database.rows(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect())
}

fn read_statistics(database: &GuardedDatabase) -> rusqlite::Result<HashMap<String, i64>> {
    let sql = "SELECT counter, value FROM statistics";
    Ok(database.rows(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect())
}

/// The parent key in the row of the repository root.
const NO_PARENT: PathKey = (0, 0);

const INSERT_ROW: &str = "INSERT INTO catalog (rowid, md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, \
     mode, mtime, mtimens, flags, name, symlink, uid, gid, xattr) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

const INSERT_CHUNK: &str = "INSERT INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?, ?, ?, ?, ?)";

const INSERT_PROPERTY: &str = "INSERT INTO properties (key, value) VALUES (?, ?)";

/// Inserts a row with this rowid, or appends it if `number` is `None`.
fn insert_row(
    insert: &mut Statement<'_>,
    number: Option<i64>,
    key: PathKey,
    parent: PathKey,
    name: &[u8],
    entry: &CatalogEntry,
) -> rusqlite::Result<()> {
    let hash = match &entry.content {
        Some(ContentObjects::Whole(hash)) => Some(&hash.as_bytes()[..]),
        // A chunked file has no whole object. With a hash here, replicas would fetch one that does not exist.
        _ => None,
    };
    insert.execute(params![
        number,
        key.0,
        key.1,
        parent.0,
        parent.1,
        // `cvmfs/catalog_sql.cc`: the group in the upper, the count in the lower 32 bits.
        i64::from(entry.link_group) << 32 | i64::from(entry.link_count),
        hash,
        entry.size,
        entry.mode,
        entry.mtime,
        entry.mtime_nanoseconds,
        entry.flags,
        Text(name),
        Text(&entry.symlink),
        entry.uid,
        entry.gid,
        entry.xattr,
    ])?;
    Ok(())
}

fn insert_chunks(insert: &mut Statement<'_>, key: PathKey, entry: &CatalogEntry) -> rusqlite::Result<()> {
    if let Some(ContentObjects::Chunks(chunks)) = &entry.content {
        for chunk in &**chunks {
            insert.execute(params![key.0, key.1, chunk.offset, chunk.size, &chunk.hash.as_bytes()[..]])?;
        }
    }
    Ok(())
}

/// Writes the counters of a catalog, and replaces existing values.
fn write_counters(connection: &Connection, own: Counters, below: Counters) -> rusqlite::Result<()> {
    let mut insert = connection.prepare("INSERT OR REPLACE INTO statistics (counter, value) VALUES (?, ?)")?;
    for (prefix, counters) in [("self", own), ("subtree", below)] {
        for (name, value) in counters.named() {
            insert.execute(params![format!("{prefix}_{name}"), value])?;
        }
    }
    Ok(())
}

/// Writes the properties that identify the schema and the directory of a catalog.
fn write_form(connection: &Connection, root: &EntryPath) -> rusqlite::Result<()> {
    let mut insert = connection.prepare(INSERT_PROPERTY)?;
    // Without the property, CVMFS takes the file for version 1.0 and aborts.
    insert.execute(["schema", "2.5"])?;
    // Selects the column list of readers: 7 has `mtimens`.
    insert.execute(["schema_revision", "7"])?;
    // CVMFS requires the property in nested catalogs, and its absence in root catalogs.
    if !root.is_root() {
        insert.execute(params!["root_prefix", Text(&catalog_path(root))])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::normalise(text.as_bytes()).unwrap()
    }

    #[test]
    fn paths_have_the_keys_that_clients_compute() {
        assert_eq!(key(&EntryPath::ROOT), (338_333_539_836_370_388, 9_098_107_892_288_553_193));
        assert_eq!(key(&path("/a")), (-2_906_336_618_250_618_618, -744_252_105_585_281_751));
    }
}
