//! Opens SQLite databases from a repository, and never executes anything that the file defines.
//!
//! The author of a file controls its schema as well as its rows: a table may be a view, an insertion may run a trigger, and pages may
//! refer to each other in a cycle, so that a scan never ends. Therefore only ordinary tables and their indexes are accepted, every
//! statement has a time limit, and a query returns at most as many rows and bytes as the file can contain.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::ffi;
use rusqlite::limits::Limit;
use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, Row};

use super::database::create_database;

/// Permitted use of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The database is only read.
    ReadOnly,
    /// The database is read, and [`GuardedDatabase::allow_changes`] may be called later.
    Writable,
}

/// A database from a repository.
#[derive(Debug)]
pub(crate) struct GuardedDatabase {
    connection: Connection,
    timer: Arc<StatementTimer>,
    budget: Budget,
}

/// Time limit of a statement on a small database.
const MIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Additional time limit per MiB of the file. An integrity check by SQLite reads at least 100 MiB/s.
const TIMEOUT_PER_MIB: Duration = Duration::from_millis(100);

/// Number of instructions of SQLite's virtual machine between two checks of the time limit: less than a millisecond of work.
const INSTRUCTIONS_PER_CHECK: i32 = 50_000;

/// Minimum size of a row in the file in bytes: a cell of 4 bytes and its 2-byte pointer.
const MIN_ROW_BYTES: u64 = 6;

/// The maximum size in bytes of an added row is the size of the file plus this number, which is larger than any row of a catalog.
const MAX_ADDED_ROW_BYTES: u64 = 16 << 20;

/// Size in bytes of the parts in which a buffer is freed. glibc's `free` returns blocks above 32 MiB to the system immediately.
const PART_SIZE: usize = 40 << 20;

/// Reads a buffer and frees each part after it was read. The parts are in reverse order: the last one is read next.
struct DrainingReader(Vec<Cursor<Vec<u8>>>);

impl DrainingReader {
    fn of(mut bytes: Vec<u8>) -> Self {
        let mut parts = Vec::with_capacity(bytes.len() / PART_SIZE + 1);
        while bytes.len() > PART_SIZE {
            let last = (bytes.len() - 1) / PART_SIZE * PART_SIZE;
            parts.push(Cursor::new(bytes.split_off(last)));
            bytes.shrink_to_fit();
        }
        parts.push(Cursor::new(bytes));
        Self(parts)
    }
}

impl Read for DrainingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(part) = self.0.last_mut() {
            let length = part.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            self.0.pop();
        }
        Ok(0)
    }
}

impl GuardedDatabase {
    /// Opens the bytes of an SQLite file.
    pub(crate) fn open(bytes: &[u8], access: Access) -> rusqlite::Result<Self> {
        Self::read(bytes, bytes.len(), access)
    }

    /// Like [`Self::open`], but frees the bytes while SQLite copies them, so that a large file is not in memory twice.
    pub(crate) fn open_owned(bytes: Vec<u8>, access: Access) -> rusqlite::Result<Self> {
        let size = bytes.len();
        if size < 2 * PART_SIZE {
            Self::open(&bytes, access)
        } else {
            Self::read(DrainingReader::of(bytes), size, access)
        }
    }

    fn read(bytes: impl Read, length: usize, access: Access) -> rusqlite::Result<Self> {
        let mut connection = Connection::open_in_memory()?;
        connection.deserialize_read_exact("main", bytes, length, access == Access::ReadOnly)?;
        forbid_execution(&connection)?;
        // With this setting, SQLite checks that cell offsets are within the page before it uses them.
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.pragma_update(None, "query_only", true)?;
        let size = length as u64;
        // No text, blob or row can be longer than the file, even if a record header claims it.
        set_value_limit(&connection, size)?;
        let timer = Arc::new(StatementTimer::new(MIN_TIMEOUT + TIMEOUT_PER_MIB * (size >> 20) as u32));
        let handler = Arc::clone(&timer);
        connection.progress_handler(INSTRUCTIONS_PER_CHECK, Some(move || handler.has_expired()))?;
        Ok(Self { connection, timer, budget: Budget { rows: size / MIN_ROW_BYTES, bytes: size } })
    }

    /// Wraps a database that this process has just created.
    pub(crate) fn created(connection: Connection) -> Self {
        let timer = Arc::new(StatementTimer::new(Duration::MAX));
        Self { connection, timer, budget: Budget::UNLIMITED }
    }

    /// Returns the connection for the next statement, and restarts its time limit.
    pub(crate) fn connection(&self) -> &Connection {
        self.timer.restart();
        &self.connection
    }

    /// Permits changes. The caller must have checked the whole database before.
    pub(crate) fn allow_changes(&mut self) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "query_only", false)?;
        let size = self.budget.bytes;
        set_value_limit(&self.connection, size.saturating_add(MAX_ADDED_ROW_BYTES))?;
        self.budget = Budget::UNLIMITED;
        // Defensive mode also forbids `journal_mode = OFF`. The mode is off only for this one statement, which does not come from
        // the file.
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
        self.connection.execute_batch(super::database::UNJOURNALED)?;
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        Ok(())
    }

    /// Returns the limit on the result of a query.
    pub(crate) fn budget(&self) -> Budget {
        self.budget
    }

    /// Returns the connection itself; its limits stay in force.
    pub(crate) fn into_connection(self) -> Connection {
        self.timer.restart();
        self.connection
    }

    /// Returns the results of `read` for all rows of a query. Fails if the rows exceed the budget.
    pub(crate) fn rows<T>(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        let (mut found, mut budget) = (Vec::new(), self.budget);
        let mut statement = self.connection().prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        while let Some(row) = rows.next()? {
            budget.take(row)?;
            found.push(read(row)?);
        }
        Ok(found)
    }

    /// Returns the schema of the database.
    pub(crate) fn schema(&self) -> rusqlite::Result<Arc<Schema>> {
        let objects = self.objects()?;
        // The usual schema is described only once: for most catalogs, querying the columns of each table would take longer than
        // all other work.
        match strata_schema() {
            Some(own) if own.objects == objects => Ok(Arc::clone(&own.schema)),
            _ => self.describe(&objects).map(Arc::new),
        }
    }

    fn objects(&self) -> rusqlite::Result<Vec<SchemaObject>> {
        // A virtual table has no root page.
        let sql = "SELECT type, name, type IN ('table', 'index') AND rootpage > 0, sql FROM sqlite_schema";
        self.rows(sql, [], |row| {
            // An object with a NULL root page is not ordinary either.
            let is_ordinary = row.get::<_, Option<bool>>(2)? == Some(true);
            let kind = row.get::<_, Option<String>>(0)?.unwrap_or_default();
            let name = row.get::<_, Option<String>>(1)?.unwrap_or_default();
            Ok(SchemaObject { kind, name, is_ordinary, sql: row.get(3)? })
        })
    }

    fn describe(&self, objects: &[SchemaObject]) -> rusqlite::Result<Schema> {
        let others = objects.iter().filter(|object| !object.is_ordinary);
        let others = others.map(|object| format!("{} '{}'", object.kind, object.name.escape_debug()));
        let mut schema = Schema { others: others.collect(), ..Schema::default() };
        // `pragma_table_info` does not return generated columns.
        let sql = "SELECT tables.name, columns.name FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns \
             WHERE tables.type = 'table' AND tables.rootpage > 0";
        for (table, column) in self.rows(sql, [], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))? {
            schema.columns.entry(table).or_default().push(column);
        }
        Ok(schema)
    }

    /// Refuses a database that holds more than ordinary tables and indexes, or lacks columns of `tables`.
    pub(crate) fn require(&self, tables: &[Table]) -> rusqlite::Result<Arc<Schema>> {
        let schema = self.schema()?;
        if let Some(object) = schema.others.first() {
            return Err(unusable(format!("only ordinary tables and indexes are allowed, but it has the {object}")));
        }
        for (table, columns) in tables {
            let missing = schema.missing(table, columns);
            if !missing.is_empty() {
                return Err(unusable(format!("it lacks table {table} with the columns {}", missing.join(", "))));
            }
        }
        Ok(schema)
    }

    /// Calls `read` with the bytes of the file. They are copied only if the database was changed.
    pub(crate) fn with_bytes<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> rusqlite::Result<T> {
        self.timer.restart();
        self.connection.serialize("main").map(|bytes| read(&bytes))
    }

    /// Refuses a database whose pages or records are damaged.
    pub(crate) fn require_whole(&self) -> rusqlite::Result<()> {
        // SQLite advises this check as the first statement on a file of unknown origin.
        let verdict = self.connection().query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))?;
        if verdict == "ok" { Ok(()) } else { Err(unusable(verdict.replace('\n', "; "))) }
    }

    /// Refuses a table with rows for which the SQL expression `condition` is not true. NULL counts as not true.
    pub(crate) fn require_rows(&self, table: &str, condition: &str) -> rusqlite::Result<()> {
        let sql = format!("SELECT count(*) FROM {table} WHERE ({condition}) IS NOT TRUE");
        match self.connection().query_row(&sql, [], |row| row.get::<_, i64>(0))? {
            0 => Ok(()),
            rows => Err(unusable(format!("{rows} rows of the table {table} have values that are not allowed"))),
        }
    }
}

/// A required table: its name and its required columns.
pub(crate) type Table = (&'static str, &'static [&'static str]);

/// An object of a database schema: a table, an index, a view or a trigger.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SchemaObject {
    /// `table`, `index`, `view` or `trigger`.
    pub(super) kind: String,
    pub(super) name: String,
    /// Whether the object is a table or index that is stored in pages. A virtual table is not.
    pub(super) is_ordinary: bool,
    /// The SQL text that defines the object; `None` for the automatic index of a primary key.
    pub(super) sql: Option<String>,
}

/// Returns whether a schema is literally equal to that of the catalogs that strata writes.
pub(super) fn is_strata_schema(objects: &[SchemaObject]) -> bool {
    strata_schema().is_some_and(|strata| strata.objects == objects)
}

/// The schema of the catalogs that strata writes.
struct StrataSchema {
    objects: Vec<SchemaObject>,
    schema: Arc<Schema>,
}

/// Returns the schema of the catalogs that strata writes, with its objects in the order of creation.
fn strata_schema() -> Option<&'static StrataSchema> {
    static SCHEMA: LazyLock<Option<StrataSchema>> = LazyLock::new(|| {
        let create = || -> rusqlite::Result<StrataSchema> {
            let connection = create_database(include_str!("../../catalog-schema/catalog.sql"))?;
            connection.execute_batch(include_str!("../../catalog-schema/catalog-index.sql"))?;
            let database = GuardedDatabase::created(connection);
            let objects = database.objects()?;
            let schema = Schema { is_strata_schema: true, ..database.describe(&objects)? };
            Ok(StrataSchema { objects, schema: Arc::new(schema) })
        };
        create().ok()
    });
    SCHEMA.as_ref()
}

/// The tables of a database, and other objects of its schema.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    /// Whether the schema is literally equal to that of the catalogs that strata writes.
    pub(crate) is_strata_schema: bool,
    /// Stored columns by table, without generated columns.
    columns: HashMap<String, Vec<String>>,
    /// Views, triggers, virtual tables and all other objects that are not ordinary tables or indexes.
    pub(crate) others: Vec<String>,
}

impl Schema {
    /// Returns the columns of a table; empty if the table does not exist.
    pub(crate) fn columns(&self, table: &str) -> &[String] {
        self.columns.get(table).map_or(&[], Vec::as_slice)
    }

    /// Returns the `columns` that a table lacks.
    pub(crate) fn missing<'c>(&self, table: &str, columns: &[&'c str]) -> Vec<&'c str> {
        let found = self.columns(table);
        columns.iter().copied().filter(|column| !found.iter().any(|name| name == column)).collect()
    }
}

/// Limit on the result of a query: what the file can contain. Pages that refer to each other in a cycle would return more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    rows: u64,
    pub(super) bytes: u64,
}

impl Budget {
    const UNLIMITED: Self = Self { rows: u64::MAX, bytes: u64::MAX };

    /// Subtracts a row from the budget. Fails if the budget is exceeded.
    pub(crate) fn take(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let columns = row.as_ref().column_count();
        let mut bytes = 0;
        for column in 0..columns {
            if let ValueRef::Text(value) | ValueRef::Blob(value) = row.get_ref(column)? {
                bytes += value.len() as u64;
            }
        }
        self.take_bytes(bytes)
    }

    /// Subtracts a row from the budget, given the total bytes of its texts and blobs.
    pub(crate) fn take_bytes(&mut self, bytes: u64) -> rusqlite::Result<()> {
        match (self.rows.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(rows), Some(bytes)) => {
                *self = Self { rows, bytes };
                Ok(())
            }
            _ => Err(unusable("a query returned more rows or bytes than the file can hold".to_owned())),
        }
    }
}

/// Configures SQLite so that it executes nothing that a schema defines.
pub(crate) fn forbid_execution(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // SQLite's advice for files of unknown origin ("Defense Against The Dark Arts").
    for allowed in [
        DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA,
        DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW,
        DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER,
        DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY,
    ] {
        connection.set_db_config(allowed, false)?;
    }
    Ok(())
}

fn set_value_limit(connection: &Connection, bytes: u64) -> rusqlite::Result<()> {
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, i32::try_from(bytes).unwrap_or(i32::MAX)).map(drop)
}

/// Returns the error for a database that is refused for the reason `fault`.
pub(crate) fn unusable(fault: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(fault))
}

/// Replaces SQLite's error for an interrupted statement by one that names the time limit.
pub(crate) fn explain_timeout(error: rusqlite::Error) -> rusqlite::Error {
    match error.sqlite_error_code() {
        Some(ffi::ErrorCode::OperationInterrupted) => {
            unusable("a query exceeded the time limit for a database of this size".to_owned())
        }
        _ => error,
    }
}

/// Returns the bytes of a TEXT value; fails for a value of another type.
pub(crate) fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<&'r [u8]> {
    match row.get_ref(column)? {
        ValueRef::Text(bytes) => Ok(bytes),
        other => Err(rusqlite::Error::InvalidColumnType(column, column_name(row, column), other.data_type())),
    }
}

/// Returns the error for a column with a value that is not allowed.
pub(crate) fn wrong_value(column: usize, kind: Type, fault: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, fault.into())
}

fn column_name(row: &Row<'_>, column: usize) -> String {
    row.as_ref().column_name(column).unwrap_or("?").to_owned()
}

/// Time limit of the current statement. Shared with the progress handler of SQLite.
#[derive(Debug)]
struct StatementTimer {
    start: Instant,
    allowance: Duration,
    /// Milliseconds since `start`.
    deadline: AtomicU64,
}

impl StatementTimer {
    fn new(allowance: Duration) -> Self {
        let timer = Self { start: Instant::now(), allowance, deadline: AtomicU64::new(0) };
        timer.restart();
        timer
    }

    fn restart(&self) {
        let deadline = self.start.elapsed().saturating_add(self.allowance).as_millis();
        self.deadline.store(u64::try_from(deadline).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn has_expired(&self) -> bool {
        self.start.elapsed().as_millis() > u128::from(self.deadline.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(sql: &str) -> Vec<u8> {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(sql).unwrap();
        connection.serialize("main").unwrap().to_vec()
    }

    fn open(sql: &str) -> GuardedDatabase {
        GuardedDatabase::open(&file(sql), Access::Writable).unwrap()
    }

    const T: &[Table] = &[("t", &["a", "b"])];

    #[test]
    fn only_ordinary_tables_with_stored_columns_are_accepted() {
        let good =
            "CREATE TABLE t (a, b, c); CREATE INDEX i ON t (a); CREATE TABLE other (x PRIMARY KEY) WITHOUT ROWID";
        assert!(open(good).require(T).is_ok());
        for (bad, word) in [
            ("CREATE TABLE s (a, b); CREATE VIEW t AS SELECT * FROM s", "view 't'"),
            ("CREATE TABLE t (a, b); CREATE VIEW v AS SELECT 1", "view 'v'"),
            ("CREATE TABLE t (a, b); CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END", "trigger 'r'"),
            ("CREATE VIRTUAL TABLE t USING fts5 (a, b)", "table 't'"),
            ("CREATE TABLE t (a, b AS (a + 1))", "columns b"),
            ("CREATE TABLE t (a, b AS (a + 1) STORED)", "columns b"),
            ("CREATE TABLE t (a)", "columns b"),
            ("CREATE TABLE s (a, b)", "table t"),
        ] {
            let refused = open(bad).require(T).map(drop);
            assert!(refused.as_ref().is_err_and(|fault| fault.to_string().contains(word)), "{bad}: {refused:?}");
        }
    }

    #[test]
    fn large_file_is_freed_part_by_part() {
        let large = file("CREATE TABLE t (a, b); INSERT INTO t VALUES (zeroblob(130000000), 7)");
        let mut parts = DrainingReader::of(large.clone());
        let lengths: Vec<usize> = parts.0.iter().map(|part| part.get_ref().len()).collect();
        assert!(lengths.len() > 2 && lengths.iter().all(|&length| length <= PART_SIZE), "{lengths:?}");
        let mut read = Vec::new();
        parts.read_to_end(&mut read).unwrap();
        assert!(read == large && parts.0.is_empty());
        let database = GuardedDatabase::open_owned(large, Access::ReadOnly).unwrap();
        assert_eq!(database.rows("SELECT b FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), [7]);
    }

    #[test]
    fn nothing_in_a_schema_is_executed() {
        let sql = "CREATE TABLE t (a, b); CREATE VIEW v AS SELECT 1;
            CREATE TRIGGER r AFTER INSERT ON t BEGIN INSERT INTO t VALUES (7, 7); END";
        let mut database = open(sql);
        let denied = |sql: &str| database.connection().execute_batch(sql).unwrap_err().to_string();
        assert!(denied("SELECT * FROM v").contains("prohibited"));
        assert!(denied("INSERT INTO t VALUES (1, 1)").contains("readonly"));
        database.allow_changes().unwrap();
        let connection = database.connection();
        connection.execute_batch("INSERT INTO t VALUES (1, 1)").unwrap();
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(number("SELECT count(*) FROM t"), 1);
        connection.execute_batch("PRAGMA writable_schema = ON").unwrap();
        assert!(connection.execute_batch("DELETE FROM sqlite_schema").is_err());
        let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "off");
        assert_eq!(number("PRAGMA trusted_schema"), 0);
    }

    #[test]
    fn endless_statement_is_interrupted_and_the_next_one_has_its_own_time_limit() {
        let mut database = open("CREATE TABLE t (a, b)");
        let timer = Arc::new(StatementTimer::new(Duration::from_millis(50)));
        let handler = Arc::clone(&timer);
        database.connection.progress_handler(INSTRUCTIONS_PER_CHECK, Some(move || handler.has_expired())).unwrap();
        database.timer = timer;
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
        for _ in 0..2 {
            let start = Instant::now();
            let error = database.connection().query_row(endless, [], |_| Ok(())).unwrap_err();
            assert!(explain_timeout(error).to_string().contains("exceeded the time limit"));
            assert!(start.elapsed() >= Duration::from_millis(50) && start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(60));
            assert_eq!(database.rows("SELECT 1", [], |row| row.get::<_, i64>(0)).unwrap(), [1]);
        }
    }

    #[test]
    fn queries_return_no_more_than_the_file_can_hold() {
        let database = open("CREATE TABLE t (a, b)");
        let rows = |count: i64, bytes: i64| {
            let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                 SELECT zeroblob(?2) FROM n";
            database.rows(sql, [count, bytes], |_| Ok(())).map(|rows| rows.len() as i64)
        };
        let size = database.budget().bytes as i64;
        assert_eq!((rows(size / 6, 0), rows(2, size / 2)), (Ok(size / 6), Ok(2)));
        for result in [rows(size / 6 + 1, 0), rows(2, size / 2 + 1)] {
            assert!(result.unwrap_err().to_string().contains("more rows or bytes than the file can hold"));
        }
        assert!(rows(1, size + 1).is_err(), "a value longer than the file");
    }
}
