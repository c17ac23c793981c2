//! SQLite files: opened from memory, with their tables, columns and properties checked.

use std::collections::BTreeMap;
use std::fmt;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, MAIN_DB};

use super::{Finding, Findings};

/// A required table: its name, and its columns as `name TYPE`, those of the primary key with their position in it.
pub type Table = (&'static str, &'static [&'static str]);

/// A database, and its name in messages.
pub struct Database {
    name: String,
    connection: Connection,
}

impl Database {
    /// Opens a database file's bytes.
    pub fn open(name: String, bytes: &[u8], findings: &mut Findings) -> Option<Self> {
        let mut bytes = bytes.to_vec();
        if bytes.len() < 100 || !bytes.starts_with(b"SQLite format 3\0") {
            findings.note(&name, "an SQLite file", format_args!("{} other bytes", bytes.len()));
            return None;
        }
        // These two bytes mark a file in WAL mode, which SQLite cannot open from memory.
        if bytes[18..20] != [1, 1] {
            findings.note(
                &name,
                "a rollback journal (header bytes 18 and 19 are 1)",
                format_args!("{:?}", &bytes[18..20]),
            );
            bytes[18..20].fill(1);
        }
        let encoding = u32::from_be_bytes(bytes[56..60].try_into().expect("four bytes are four bytes"));
        findings.require(&name, "text encoding (1 is UTF-8)", 1, encoding);
        let opened = Connection::open_in_memory().and_then(|mut connection| {
            connection.deserialize_read_exact(MAIN_DB, bytes.as_slice(), bytes.len(), true)?;
            Ok(connection)
        });
        let connection = findings.keep(opened.map_err(|error| unreadable(&name, &error)))?;
        let database = Self { name, connection };
        let verdict = findings.keep(database.query("PRAGMA integrity_check", |row| row.get::<_, String>(0)))?;
        findings.require(&database.name, "result of integrity_check", "ok".to_owned(), verdict.join("; "));
        Some(database)
    }

    /// Runs a query and applies `map` to each row.
    pub fn query<T>(
        &self,
        sql: &str,
        map: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Finding> {
        let run = || -> rusqlite::Result<Vec<T>> { self.connection.prepare(sql)?.query_map([], map)?.collect() };
        run().map_err(|error| unreadable(&format!("{} ({sql})", self.name), &error))
    }

    /// Checks that the database has exactly `tables`, with exactly their columns and primary keys.
    ///
    /// The order of columns is not checked: a database that was migrated from an older schema has new columns last.
    pub fn check_tables(&self, tables: &[Table], findings: &mut Findings) {
        let names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
        let names = findings.keep(self.query(names, |row| row.get::<_, String>(0))).unwrap_or_default();
        let mut expected: Vec<String> = tables.iter().map(|(name, _)| (*name).to_owned()).collect();
        expected.sort();
        findings.require(&self.name, "tables", expected, names);
        for (table, columns) in tables {
            let sql = format!("SELECT name || ' ' || type || iif(pk, ' ' || pk, '') FROM pragma_table_info('{table}')");
            let mut found = findings.keep(self.query(&sql, |row| row.get::<_, String>(0))).unwrap_or_default();
            let mut expected: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
            expected.sort();
            found.sort();
            findings.require(&self.name, &format!("columns of {table}"), expected, found);
        }
    }

    /// Reads the properties, each of which is a text.
    pub fn properties(&self, findings: &mut Findings) -> BTreeMap<String, Vec<u8>> {
        let rows = self.query("SELECT key, value FROM properties", |row| {
            let cells = (cell_bytes(row.get_ref(0)?), cell_bytes(row.get_ref(1)?));
            Ok((cells, matches!(row.get_ref(1)?, ValueRef::Text(_))))
        });
        let mut properties = BTreeMap::new();
        for ((key, value), is_text) in findings.keep(rows).unwrap_or_default() {
            let key = String::from_utf8_lossy(&key).into_owned();
            if !is_text {
                findings.note(&self.name, format_args!("property '{key}' as text"), "another type");
            }
            properties.insert(key, value);
        }
        properties
    }

    /// Returns the name of the database in messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn unreadable(place: &str, error: &dyn fmt::Display) -> Finding {
    Finding { place: place.to_owned(), expected: "a readable database".to_owned(), found: error.to_string() }
}

/// Returns the bytes of a text or blob; `None` for other values.
fn cell_bytes(value: ValueRef<'_>) -> Vec<u8> {
    value.as_bytes().map(<[u8]>::to_vec).unwrap_or_default()
}

/// Reads the cells of one row and notes those of a wrong type.
pub struct Cells<'r, 's> {
    /// The row from SQLite.
    pub row: &'r rusqlite::Row<'s>,
    /// Name of the row in messages.
    pub place: &'r str,
    /// Receives the faults.
    pub findings: &'r mut Findings,
}

impl Cells<'_, '_> {
    /// Returns an integer; notes anything else and returns 0.
    pub fn integer(&mut self, column: &str) -> i64 {
        self.optional_integer(column).unwrap_or_else(|| {
            self.findings.note(self.place, format_args!("{column} as an integer"), "NULL");
            0
        })
    }

    /// Returns an integer; `None` for NULL.
    pub fn optional_integer(&mut self, column: &str) -> Option<i64> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Integer(number)) => Some(number),
            Ok(ValueRef::Null) => None,
            other => self.wrong(column, "an integer", other.map(|value| value.data_type())),
        }
    }

    /// Returns the bytes of a text; notes NULL and everything else.
    pub fn text(&mut self, column: &str) -> Vec<u8> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Text(bytes)) => bytes.to_vec(),
            other => self.wrong(column, "a text", other.map(|value| value.data_type())).unwrap_or_default(),
        }
    }

    /// Returns the text as UTF-8.
    pub fn string(&mut self, column: &str) -> String {
        String::from_utf8_lossy(&self.text(column)).into_owned()
    }

    /// Returns a blob; `None` for NULL.
    pub fn blob(&mut self, column: &str) -> Option<Vec<u8>> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Blob(bytes)) => Some(bytes.to_vec()),
            Ok(ValueRef::Null) => None,
            other => self.wrong(column, "a blob", other.map(|value| value.data_type())),
        }
    }

    fn wrong<T>(&mut self, column: &str, expected: &str, found: impl fmt::Debug) -> Option<T> {
        self.findings.note(self.place, format_args!("{column} as {expected}"), format_args!("{found:?}"));
        None
    }
}
