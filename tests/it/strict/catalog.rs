//! A catalog: its rows and tables, read once into memory, and the checks that need only this file.

use std::collections::{BTreeMap, HashMap};

use md5::{Digest as _, Md5};

use super::database::{Cells, Database, Table};
use super::store::{Store, object_path};
use super::{Finding, Findings, is_hash, show};

const TABLES: &[Table] = &[
    (
        "catalog",
        &[
            "md5path_1 INTEGER 1",
            "md5path_2 INTEGER 2",
            "parent_1 INTEGER",
            "parent_2 INTEGER",
            "hardlinks INTEGER",
            "hash BLOB",
            "size INTEGER",
            "mode INTEGER",
            "mtime INTEGER",
            "mtimens INTEGER",
            "flags INTEGER",
            "name TEXT",
            "symlink TEXT",
            "uid INTEGER",
            "gid INTEGER",
            "xattr BLOB",
        ],
    ),
    ("chunks", &["md5path_1 INTEGER 1", "md5path_2 INTEGER 2", "offset INTEGER 3", "size INTEGER 4", "hash BLOB"]),
    ("nested_catalogs", &["path TEXT 1", "sha1 TEXT", "size INTEGER"]),
    ("bind_mountpoints", &["path TEXT 1", "sha1 TEXT", "size INTEGER"]),
    ("statistics", &["counter TEXT 1", "value INTEGER"]),
    ("properties", &["key TEXT 1", "value TEXT"]),
];

/// Names of the counters, after the prefix `self_` or `subtree_`.
pub const COUNTERS: [&str; 12] = [
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
];

/// The two halves of a path's MD5, as stored in catalogs.
pub type PathHash = (i64, i64);

/// Returns the halves of the MD5 of `path`: little-endian and signed.
pub fn path_hash(path: &[u8]) -> PathHash {
    let digest: [u8; 16] = Md5::digest(path).into();
    let half = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("half of sixteen bytes is eight"));
    (half(&digest[..8]), half(&digest[8..]))
}

/// A row of the table `catalog`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub rowid: i64,
    pub path_hash: PathHash,
    pub parent_hash: PathHash,
    pub link_group: u32,
    pub linkcount: u32,
    pub hash: Option<Vec<u8>>,
    pub size: i64,
    pub mode: i64,
    pub mtime: i64,
    pub mtimens: Option<i64>,
    pub flags: i64,
    pub name: Vec<u8>,
    pub symlink: Vec<u8>,
    pub uid: i64,
    pub gid: i64,
    pub xattr: Option<Vec<u8>>,
}

/// A row of the table `chunks`, without its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub offset: i64,
    pub size: i64,
    pub hash: Option<Vec<u8>>,
}

/// A row of the table `nested_catalogs` or `bind_mountpoints`, without its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub hash: String,
    pub size: i64,
}

/// A catalog in memory.
pub struct Catalog {
    /// Path of the object, `data/3f/c8…C`.
    pub object: String,
    /// Mountpoint.
    pub mountpoint: Vec<u8>,
    /// Size of the database in bytes.
    pub size: i64,
    pub rows: Vec<Row>,
    /// Indices of rows by the hash of their parent's path, in the order of row ids.
    pub children: HashMap<PathHash, Vec<usize>>,
    pub chunks: HashMap<PathHash, Vec<Chunk>>,
    pub nested: BTreeMap<Vec<u8>, Reference>,
    pub bound: BTreeMap<Vec<u8>, Reference>,
    pub statistics: BTreeMap<String, i64>,
    pub properties: BTreeMap<String, Vec<u8>>,
}

impl Catalog {
    /// Reads the catalog object `hash` and checks its schema, properties and the types of its cells.
    pub fn load(store: &Store, hash: &str, mountpoint: &[u8], findings: &mut Findings) -> Result<Self, Finding> {
        let bytes = store.read(hash, "C")?;
        let object = object_path(hash, "C");
        let unreadable = |found: &str| Finding {
            place: object.clone(),
            expected: "a readable catalog".to_owned(),
            found: found.to_owned(),
        };
        let database =
            Database::open(object.clone(), &bytes, findings).ok_or_else(|| unreadable("a damaged database"))?;
        database.check_tables(TABLES, findings);
        check_index(&database, findings);
        let rows = read_rows(&database, findings)?;
        let mut children: HashMap<PathHash, Vec<usize>> = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            children.entry(row.parent_hash).or_default().push(index);
        }
        let catalog = Self {
            mountpoint: mountpoint.to_vec(),
            size: bytes.len() as i64,
            rows,
            children,
            chunks: read_chunks(&database, findings)?,
            nested: read_references(&database, "nested_catalogs", findings)?,
            bound: read_references(&database, "bind_mountpoints", findings)?,
            statistics: read_statistics(&database, findings)?,
            properties: database.properties(findings),
            object: object.clone(),
        };
        catalog.check_properties(findings);
        catalog.check_row_ids(findings);
        Ok(catalog)
    }

    /// Returns the row of a path, as a client looks it up.
    pub fn row(&self, path: &[u8]) -> Option<&Row> {
        let hash = path_hash(path);
        self.rows.iter().find(|row| row.path_hash == hash)
    }

    /// Returns the rows directly below a path, as a client lists it.
    pub fn list(&self, path: &[u8]) -> impl Iterator<Item = &Row> {
        self.list_indices(path).iter().map(|&index| &self.rows[index])
    }

    /// Returns the indices of the rows directly below a path.
    pub fn list_indices(&self, path: &[u8]) -> &[usize] {
        self.children.get(&path_hash(path)).map_or(&[], Vec::as_slice)
    }

    /// Returns a path of this catalog in the form for messages.
    pub fn place(&self, path: &[u8]) -> String {
        format!("{} (catalog {})", show(path), self.object)
    }

    /// Returns a property as text.
    pub fn property(&self, key: &str) -> Option<String> {
        self.properties.get(key).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn check_properties(&self, findings: &mut Findings) {
        let mut property = |key: &str, expected: &str, is_right: &dyn Fn(Option<&str>) -> bool| {
            let found = self.property(key);
            if !is_right(found.as_deref()) {
                let expected = format!("property {key} with {expected}");
                findings.note(&self.object, expected, format_args!("{found:?}"));
            }
        };
        let is_number = |text: Option<&str>| text.is_some_and(|text| text.parse::<u64>().is_ok_and(|n| n > 0));
        property("schema", "2.5", &|text| text == Some("2.5"));
        property("schema_revision", "7", &|text| text == Some("7"));
        property("revision", "a number above 0", &is_number);
        property("previous_revision", "a hash or nothing", &|text| text.is_none_or(is_hash));
        if self.mountpoint.is_empty() {
            property("root_prefix", "nothing in a root catalog", &|text| text.is_none());
            property("last_modified", "a number above 0", &is_number);
            property("TTL", "a number or nothing", &|text| text.is_none() || is_number(text));
            property("volatile", "1 or nothing", &|text| text.is_none_or(|text| text == "1"));
        } else {
            let expected = Some(self.mountpoint.as_slice());
            findings.require(&self.object, "property root_prefix", expected.map(show), self.prefix().map(show));
            for key in ["TTL", "volatile"].iter().filter(|key| self.properties.contains_key(**key)) {
                findings.note(&self.object, format_args!("no property {key} in a nested catalog"), "one");
            }
        }
        if self.properties.contains_key("voms_authz") {
            findings.note(&self.object, "no property voms_authz, which locks users out", "one");
        }
    }

    fn prefix(&self) -> Option<&[u8]> {
        self.properties.get("root_prefix").map(Vec::as_slice)
    }

    /// Inodes follow from row ids: they must be dense, and the catalog's own root must come first.
    fn check_row_ids(&self, findings: &mut Findings) {
        let last = self.rows.last().map_or(0, |row| row.rowid);
        let first = self.rows.first().map_or(0, |row| row.rowid);
        if first != 1 || last != self.rows.len() as i64 {
            let found = format!("row ids {first} to {last}");
            findings.note(&self.object, format_args!("row ids 1 to {} without gaps", self.rows.len()), found);
        }
        let root = self.row(&self.mountpoint).map(|row| row.rowid);
        findings.require(&self.object, "root entry with row id", Some(1), root);
    }
}

fn check_index(database: &Database, findings: &mut Findings) {
    let sql = "SELECT group_concat(name) FROM pragma_index_info('idx_catalog_parent')";
    let found = findings.keep(database.query(sql, |row| row.get::<_, Option<String>>(0))).unwrap_or_default();
    findings.require(
        database.name(),
        "columns of idx_catalog_parent",
        vec![Some("parent_1,parent_2".to_owned())],
        found,
    );
}

fn read_rows(database: &Database, findings: &mut Findings) -> Result<Vec<Row>, Finding> {
    database.query("SELECT rowid AS number, * FROM catalog ORDER BY rowid", |row| {
        let place = format!("row {} of {}", row.get::<_, i64>("number")?, database.name());
        let mut cells = Cells { row, place: &place, findings };
        let hardlinks = cells.integer("hardlinks") as u64;
        Ok(Row {
            rowid: cells.integer("number"),
            path_hash: (cells.integer("md5path_1"), cells.integer("md5path_2")),
            // Only a repository root has no parent; readers take NULL for 0 there.
            parent_hash: (
                cells.optional_integer("parent_1").unwrap_or(0),
                cells.optional_integer("parent_2").unwrap_or(0),
            ),
            link_group: (hardlinks >> 32) as u32,
            linkcount: hardlinks as u32,
            hash: cells.blob("hash"),
            size: cells.integer("size"),
            mode: cells.integer("mode"),
            mtime: cells.integer("mtime"),
            mtimens: cells.optional_integer("mtimens"),
            flags: cells.integer("flags"),
            name: cells.text("name"),
            symlink: cells.text("symlink"),
            uid: cells.integer("uid"),
            gid: cells.integer("gid"),
            xattr: cells.blob("xattr"),
        })
    })
}

fn read_chunks(database: &Database, findings: &mut Findings) -> Result<HashMap<PathHash, Vec<Chunk>>, Finding> {
    let mut chunks: HashMap<PathHash, Vec<Chunk>> = HashMap::new();
    let place = format!("chunks of {}", database.name());
    database.query("SELECT * FROM chunks ORDER BY md5path_1, md5path_2, offset", |row| {
        let mut cells = Cells { row, place: &place, findings };
        let path = (cells.integer("md5path_1"), cells.integer("md5path_2"));
        let chunk = Chunk { offset: cells.integer("offset"), size: cells.integer("size"), hash: cells.blob("hash") };
        chunks.entry(path).or_default().push(chunk);
        Ok(())
    })?;
    Ok(chunks)
}

fn read_references(
    database: &Database,
    table: &str,
    findings: &mut Findings,
) -> Result<BTreeMap<Vec<u8>, Reference>, Finding> {
    let place = format!("{table} of {}", database.name());
    let rows = database.query(&format!("SELECT * FROM {table}"), |row| {
        let mut cells = Cells { row, place: &place, findings };
        Ok((cells.text("path"), Reference { hash: cells.string("sha1"), size: cells.integer("size") }))
    })?;
    for (path, reference) in rows.iter().filter(|(_, reference)| !is_hash(&reference.hash)) {
        findings.note(format_args!("{} in {place}", show(path)), "a hash", &reference.hash);
    }
    Ok(rows.into_iter().filter(|(_, reference)| is_hash(&reference.hash)).collect())
}

fn read_statistics(database: &Database, findings: &mut Findings) -> Result<BTreeMap<String, i64>, Finding> {
    let place = format!("statistics of {}", database.name());
    let rows = database.query("SELECT * FROM statistics", |row| {
        let mut cells = Cells { row, place: &place, findings };
        Ok((cells.string("counter"), cells.integer("value")))
    })?;
    Ok(rows.into_iter().collect())
}
