//! The other databases of a repository: the tag database (named revisions) and the reflog (all published root objects).

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::database::{create_database, database_bytes, read_reference};
use super::entry::CatalogReference;
use super::guarded::{Access, GuardedDatabase, Table, explain_timeout};
use crate::manifest::RepositoryName;
use crate::object::ObjectHash;

/// The tag database or the reflog is not usable.
#[derive(Debug, thiserror::Error)]
#[error("the {database} of '{repository}' is not a usable database; to repair it, {repair}")]
pub struct HistoryError {
    /// `tag database` or `reflog`.
    database: &'static str,
    /// The repository of the database.
    repository: RepositoryName,
    /// What the administrator can do to restore the database.
    repair: &'static str,
    /// The error of SQLite.
    source: rusqlite::Error,
}

impl HistoryError {
    fn of(database: &'static str, repository: &RepositoryName) -> impl FnOnce(rusqlite::Error) -> Self {
        let repair = match database {
            REFLOG_DATABASE => "copy '.cvmfsreflog' from a backup, or let 'cvmfs_server check -r' create it again",
            _ => "publish an earlier revision again, or copy the repository from a replica or a backup",
        };
        move |source| Self { database, repository: repository.clone(), repair, source: explain_timeout(source) }
    }
}

/// Name of the reflog in messages.
const REFLOG_DATABASE: &str = "reflog";

/// A revision to be named in the tag database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaggedRevision {
    /// Its root catalog.
    pub root: CatalogReference,
    /// Its revision number.
    pub revision: u64,
    /// Time of publication in seconds since 1970.
    pub timestamp: i64,
}

/// A named revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its name.
    pub name: String,
    /// The number of the revision.
    pub revision: u64,
    /// Its root catalog.
    pub root: CatalogReference,
}

/// A required table, and an SQL expression that must be true for each of its rows.
type Condition = (Table, &'static str);

const PROPERTIES: Condition = (("properties", &["key", "value"]), "typeof(key) = 'text'");

const HISTORY: &[Condition] = &[
    (
        ("tags", &["name", "hash", "revision", "timestamp", "channel", "description", "size", "branch"]),
        "typeof(name) = 'text' AND typeof(hash) = 'text' AND length(hash) >= 40 \
         AND substr(hash, 1, 40) NOT GLOB '*[^0-9a-f]*' AND typeof(revision) = 'integer' AND revision >= 0 AND typeof(timestamp) = 'integer' \
         AND typeof(channel) IN ('integer', 'null') AND typeof(description) IN ('text', 'null') \
         AND (size IS NULL OR typeof(size) = 'integer' AND size >= 0) AND typeof(branch) = 'text'",
    ),
    (
        ("branches", &["branch", "parent", "initial_revision"]),
        "typeof(branch) = 'text' AND typeof(parent) IN ('text', 'null') AND typeof(initial_revision) = 'integer'",
    ),
    PROPERTIES,
];

const REFLOG: &[Condition] = &[
    (
        ("refs", &["hash", "type", "timestamp"]),
        "typeof(hash) = 'text' AND length(hash) >= 40 AND substr(hash, 1, 40) NOT GLOB '*[^0-9a-f]*' AND typeof(type) = 'integer' AND type >= 0 \
         AND typeof(timestamp) IN ('integer', 'null')",
    ),
    PROPERTIES,
];

/// Opens a database for changes. Fails if its pages are damaged or a row violates its condition.
fn open_sound(bytes: &[u8], conditions: &[Condition]) -> rusqlite::Result<Connection> {
    let mut database = GuardedDatabase::open(bytes, Access::Writable)?;
    database.require(&conditions.iter().map(|(table, _)| *table).collect::<Vec<_>>())?;
    database.require_whole()?;
    for ((table, _), condition) in conditions {
        database.require_rows(table, condition)?;
    }
    database.allow_changes()?;
    Ok(database.into_connection())
}

/// Reads the named revisions from a tag database, ordered by name.
pub fn read_tags(bytes: &[u8], repository: &RepositoryName) -> Result<Vec<Tag>, HistoryError> {
    let read = || -> rusqlite::Result<Vec<Tag>> {
        let database = GuardedDatabase::open(bytes, Access::ReadOnly)?;
        database.require(&[("tags", &["hash", "size", "name", "revision"])])?;
        let tag = |row: &Row<'_>| Ok(Tag { root: read_reference(row)?, name: row.get(2)?, revision: row.get(3)? });
        database.rows("SELECT hash, size, name, revision FROM tags ORDER BY name", [], tag)
    };
    read().map_err(HistoryError::of("tag database", repository))
}

/// Returns the tag database of a new head: the tag `trunk` names `head`, and `trunk-previous` the revision that `trunk` named before.
///
/// `before` is the tag database of the previous head and its hash; its other tags are kept.
pub fn next_history(
    before: Option<(&[u8], ObjectHash)>,
    repository: &RepositoryName,
    head: TaggedRevision,
) -> Result<Vec<u8>, HistoryError> {
    let write = || -> rusqlite::Result<Vec<u8>> {
        let connection = match before {
            Some((bytes, _)) => open_sound(bytes, HISTORY)?,
            None => create_database(include_str!("../../catalog-schema/history.sql"))?,
        };
        // `cvmfs_server` reads the property when it creates the reflog again, and aborts if it is missing.
        let previous = before.map_or_else(|| "0".repeat(40), |(_, hash)| hash.to_string());
        let properties = [
            ("schema", "1.0"),
            ("schema_revision", "3"),
            ("fqrn", repository.as_str()),
            ("previous_revision", &previous),
        ];
        set_properties(&connection, &properties)?;
        // `cvmfs_server rollback` uses these two tags. Their values are those that CVMFS's tools write.
        connection.execute("DELETE FROM tags WHERE name = 'trunk-previous'", [])?;
        connection.execute(
            "UPDATE tags SET name = 'trunk-previous', description = 'default undo target' WHERE name = 'trunk'",
            [],
        )?;
        connection.execute(
            "INSERT INTO tags (name, hash, revision, timestamp, channel, description, size, branch) \
             VALUES ('trunk', ?, ?, ?, 0, 'current HEAD', ?, '')",
            params![head.root.hash.to_string(), head.revision, head.timestamp, head.root.size],
        )?;
        database_bytes(connection)
    };
    write().map_err(HistoryError::of("tag database", repository))
}

/// Type of an object in the reflog, with the number that the reflog stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceKind {
    /// A root catalog.
    Catalog = 0,
    /// A certificate.
    Certificate = 1,
    /// A tag database.
    History = 2,
    /// The meta info: a JSON description of the repository.
    MetaInfo = 3,
}

/// Returns the reflog `before`, or a new one, with `references` added. `now` is in seconds since 1970.
///
/// The garbage collection of CVMFS never deletes a root object that is not in the reflog.
pub fn next_reflog(
    before: Option<&[u8]>,
    repository: &RepositoryName,
    references: &[(ObjectHash, ReferenceKind)],
    now: i64,
) -> Result<Vec<u8>, HistoryError> {
    let write = || -> rusqlite::Result<Vec<u8>> {
        let connection = match before {
            Some(bytes) => open_sound(bytes, REFLOG)?,
            None => create_database(include_str!("../../catalog-schema/reflog.sql"))?,
        };
        // CVMFS aborts on any other schema revision of a reflog.
        set_properties(&connection, &[("schema", "1.0"), ("schema_revision", "0"), ("fqrn", repository.as_str())])?;
        // A row with the same hash is replaced, because CVMFS's garbage collection takes the age of a revision from this timestamp.
        let mut insert = connection.prepare("INSERT OR REPLACE INTO refs (hash, type, timestamp) VALUES (?, ?, ?)")?;
        for (hash, kind) in references {
            insert.execute(params![hash.to_string(), *kind as i64, now])?;
        }
        drop(insert);
        database_bytes(connection)
    };
    write().map_err(HistoryError::of(REFLOG_DATABASE, repository))
}

fn set_properties(connection: &Connection, properties: &[(&str, &str)]) -> rusqlite::Result<()> {
    let mut read = connection.prepare("SELECT value FROM properties WHERE key = ?")?;
    let mut write = connection.prepare("INSERT OR REPLACE INTO properties (key, value) VALUES (?, ?)")?;
    for (name, value) in properties {
        let current: Option<String> = read.query_row([name], |row| row.get(0)).optional()?;
        if current.as_deref() != Some(value) {
            write.execute([name, value])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: u64) -> TaggedRevision {
        let root = CatalogReference { hash: ObjectHash::of(&number.to_le_bytes()), size: number };
        TaggedRevision { root, revision: number, timestamp: 1000 }
    }

    fn tags(bytes: &[u8]) -> Vec<(String, u64)> {
        let database = GuardedDatabase::open(bytes, Access::ReadOnly).unwrap();
        let sql = "SELECT name, revision FROM tags ORDER BY name";
        database.rows(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }

    #[test]
    fn trunk_names_the_head_and_trunk_previous_the_previous_head() {
        let name = RepositoryName::for_new_repository("tags.example.org").unwrap();
        let mut history = next_history(None, &name, revision(1)).unwrap();
        assert_eq!(tags(&history), [("trunk".to_owned(), 1)]);
        for number in 2..4 {
            history = next_history(Some((&history, ObjectHash::of(&history))), &name, revision(number)).unwrap();
        }
        assert_eq!(tags(&history), [("trunk".to_owned(), 3), ("trunk-previous".to_owned(), 2)]);
        assert!(next_history(Some((b"damaged", ObjectHash::of(b""))), &name, revision(1)).is_err());
    }

    #[test]
    fn reflog_keeps_existing_references() {
        let name = RepositoryName::for_new_repository("reflog.example.org").unwrap();
        let (a, b) = (ObjectHash::of(b"a"), ObjectHash::of(b"b"));
        let first = next_reflog(None, &name, &[(a, ReferenceKind::Catalog)], 1).unwrap();
        let second = next_reflog(Some(&first), &name, &[(b, ReferenceKind::History), (a, ReferenceKind::Catalog)], 2);
        let database = GuardedDatabase::open(&second.unwrap(), Access::ReadOnly).unwrap();
        let count = |sql: &str| database.connection().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM refs"), 2);
        assert_eq!(count("SELECT count(*) FROM refs WHERE type = 2 AND timestamp = 2"), 1);
    }
    /// Returns a database that was changed by SQL.
    fn changed(bytes: &[u8], sql: &str) -> Vec<u8> {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.deserialize_read_exact("main", bytes, bytes.len(), false).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.serialize("main").unwrap().to_vec()
    }

    #[test]
    fn values_of_wrong_types_views_and_triggers_are_refused() {
        let name = RepositoryName::for_new_repository("types.example.org").unwrap();
        let history = next_history(None, &name, revision(1)).unwrap();
        let reflog = next_reflog(None, &name, &[(ObjectHash::of(b"a"), ReferenceKind::Catalog)], 1).unwrap();
        for sql in [
            "UPDATE tags SET revision = 'x'",
            "UPDATE tags SET hash = x'00'",
            "UPDATE tags SET hash = replace(hash, substr(hash, 1, 1), 'g')",
            "UPDATE tags SET size = -1",
            "UPDATE tags SET name = x'41'",
            "UPDATE branches SET initial_revision = 'x'",
            "INSERT INTO properties VALUES (x'00', 'x')",
            "CREATE TRIGGER t AFTER INSERT ON tags BEGIN DELETE FROM tags; END",
            "ALTER TABLE tags RENAME TO others; CREATE VIEW tags AS SELECT * FROM others",
        ] {
            let history = changed(&history, sql);
            assert!(next_history(Some((&history, ObjectHash::of(b""))), &name, revision(2)).is_err(), "{sql}");
        }
        for sql in [
            "UPDATE refs SET type = 'x'",
            "UPDATE refs SET hash = 7",
            "UPDATE refs SET hash = upper(hash) || 'x'",
            "CREATE TRIGGER t AFTER INSERT ON refs BEGIN DELETE FROM refs; END",
            "ALTER TABLE refs RENAME TO others; CREATE VIEW refs AS SELECT * FROM others",
        ] {
            assert!(next_reflog(Some(&changed(&reflog, sql)), &name, &[], 2).is_err(), "{sql}");
        }
        let view = "ALTER TABLE tags RENAME TO others; CREATE VIEW tags AS SELECT * FROM others";
        assert!(read_tags(&changed(&history, view), &name).is_err());
    }
}
