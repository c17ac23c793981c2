//! The databases beside the catalogs, as they stand.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::types::ValueRef;

use super::database::{Cells, Database, Fault};

/// A row of the table `tags`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedTag {
    /// What the revision is called.
    pub name: String,
    /// The text of its root catalog's hash.
    pub hash: String,
    /// Its number.
    pub revision: i64,
    /// Bytes of its root catalog, unpacked.
    pub size: i64,
    /// The branch that it lies on.
    pub branch: String,
}

/// A row of the table `branches`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedBranch {
    /// Its name, empty for the default branch.
    pub name: String,
    /// The branch that it leaves, none for the default branch.
    pub parent: Option<String>,
    /// The first revision on it.
    pub initial_revision: i64,
}

/// All that a tag database holds.
#[derive(Debug)]
pub struct AuditedHistory {
    /// Properties.
    pub properties: BTreeMap<String, String>,
    /// Branches by name.
    pub branches: Vec<AuditedBranch>,
    /// Tags by name.
    pub tags: Vec<AuditedTag>,
    /// What is wrong with the database.
    pub faults: Vec<Fault>,
}

impl AuditedHistory {
    /// Reads a tag database's file; fails only where nothing at all can be read.
    pub fn read(bytes: Vec<u8>) -> Result<Self, Fault> {
        let mut database = Database::open(bytes)?;
        database.check_integrity();
        let properties = database.properties();
        database.requires("recycle_bin", &["hash", "flags"]);
        let (branches, tags) = (read_branches(&mut database), read_tags(&mut database));
        Ok(Self { properties, branches, tags, faults: database.faults })
    }
}

fn read_branches(database: &mut Database<'_>) -> Vec<AuditedBranch> {
    if !database.requires("branches", &["branch", "parent", "initial_revision"]) {
        return Vec::new();
    }
    let sql = "SELECT branch, parent, initial_revision FROM branches ORDER BY branch";
    database.rows(sql, |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        let parent = match row.get_ref(1)? {
            ValueRef::Null => None,
            _ => Some(cells.string(1, "parent")),
        };
        Ok(AuditedBranch {
            name: cells.string(0, "branch"),
            parent,
            initial_revision: cells.integer(2, "initial_revision"),
        })
    })
}

fn read_tags(database: &mut Database<'_>) -> Vec<AuditedTag> {
    let columns = ["name", "hash", "revision", "timestamp", "channel", "description", "size", "branch"];
    if !database.requires("tags", &columns) {
        return Vec::new();
    }
    database.rows(&format!("SELECT {} FROM tags ORDER BY name", columns.join(", ")), |row, faults| {
        let mut cells = Cells { row, number: None, faults };
        cells.integer(3, "timestamp");
        cells.optional_integer(4, "channel");
        cells.text(5, "description");
        Ok(AuditedTag {
            name: cells.string(0, "name"),
            hash: cells.string(1, "hash"),
            revision: cells.integer(2, "revision"),
            size: cells.integer(6, "size"),
            branch: cells.string(7, "branch"),
        })
    })
}

/// All that a reflog holds.
#[derive(Debug)]
pub struct AuditedReflog {
    /// Properties.
    pub properties: BTreeMap<String, String>,
    /// The text of each hash, with the number of its type.
    pub references: BTreeSet<(String, i64)>,
    /// What is wrong with the database.
    pub faults: Vec<Fault>,
}

impl AuditedReflog {
    /// Reads a reflog; fails only where nothing at all can be read.
    pub fn read(bytes: Vec<u8>) -> Result<Self, Fault> {
        let mut database = Database::open(bytes)?;
        database.check_integrity();
        let properties = database.properties();
        let references = match database.requires("refs", &["hash", "type", "timestamp"]) {
            true => database.rows("SELECT hash, type, timestamp FROM refs", |row, faults| {
                let mut cells = Cells { row, number: None, faults };
                cells.optional_integer(2, "timestamp");
                Ok((cells.string(0, "hash"), cells.integer(1, "type")))
            }),
            false => Vec::new(),
        };
        Ok(Self { properties, references: references.into_iter().collect(), faults: database.faults })
    }
}
