//! Reads the tag database and the reflog for a check.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::types::ValueRef;

use super::database::{Cells, Database, Fault};

/// A row of the table `tags`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedTag {
    /// Name of the tag.
    pub name: String,
    /// Hash of its root catalog, as stored.
    pub hash: String,
    /// Revision number.
    pub revision: i64,
    /// Size of its decompressed root catalog in bytes.
    pub size: i64,
    /// Name of its branch.
    pub branch: String,
}

/// A row of the table `branches`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedBranch {
    /// Name of the branch; empty for the default branch.
    pub name: String,
    /// The parent branch; `None` for the default branch.
    pub parent: Option<String>,
    /// The first revision on the branch.
    pub initial_revision: i64,
}

/// The content of a tag database.
#[derive(Debug)]
pub struct AuditedHistory {
    /// The table `properties`.
    pub properties: BTreeMap<String, String>,
    /// Branches, ordered by name.
    pub branches: Vec<AuditedBranch>,
    /// Tags, ordered by name.
    pub tags: Vec<AuditedTag>,
    /// Faults of the database.
    pub faults: Vec<Fault>,
}

impl AuditedHistory {
    /// Reads a tag database. Fails only if the file is not a readable database.
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

/// The content of a reflog.
#[derive(Debug)]
pub struct AuditedReflog {
    /// The table `properties`.
    pub properties: BTreeMap<String, String>,
    /// Each hash, as stored, with the number of its object type.
    pub references: BTreeSet<(String, i64)>,
    /// Faults of the database.
    pub faults: Vec<Fault>,
}

impl AuditedReflog {
    /// Reads a reflog. Fails only if the file is not a readable database.
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
