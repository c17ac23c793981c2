//! Any of the databases: opened from memory, and read cell by cell.

use std::collections::BTreeMap;
use std::fmt::Display;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::catalog::database::open_database;

/// Something that is not as the format demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The row of the table `catalog` that it is in, if it is in one.
    pub row: Option<i64>,
    /// What the format demands.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl Fault {
    pub(super) fn new(expected: impl Display, found: impl Display) -> Self {
        Self { row: None, expected: expected.to_string(), found: found.to_string() }
    }
}

/// A database, and what is wrong with it so far.
pub(super) struct Database {
    connection: Connection,
    pub(super) faults: Vec<Fault>,
    /// Whether something could not be read at all.
    pub(super) is_damaged: bool,
}

/// Where the header of an SQLite file says whether it is in WAL mode: 2 and 2 if it is.
const JOURNAL_MODES: std::ops::Range<usize> = 18..20;

/// Where the header holds the encoding of texts: 1 is UTF-8.
const ENCODING: std::ops::Range<usize> = 56..60;

/// Bytes of the header.
const HEADER: usize = 100;

impl Database {
    /// Opens the bytes of an SQLite file and lets SQLite look for damage.
    pub(super) fn open(mut bytes: Vec<u8>) -> Result<Self, Fault> {
        let mut faults = Vec::new();
        if bytes.len() < HEADER || !bytes.starts_with(b"SQLite format 3\0") {
            return Err(Fault::new("an SQLite file", format_args!("{} other bytes", bytes.len())));
        }
        if bytes[JOURNAL_MODES] != [1, 1] {
            let found = format!("{:?}: clients cannot open a file in WAL mode", &bytes[JOURNAL_MODES]);
            faults.push(Fault::new("a rollback journal (bytes 18 and 19 are 1)", found));
            // SQLite cannot open it from memory either.
            bytes[JOURNAL_MODES].fill(1);
        }
        if bytes[ENCODING] != [0, 0, 0, 1] {
            faults.push(Fault::new("texts in UTF-8", format_args!("encoding {:?}", &bytes[ENCODING])));
        }
        let unreadable = |error: rusqlite::Error| Fault::new("a readable database", error);
        let connection = open_database(&bytes, true).map_err(unreadable)?;
        let mut database = Self { connection, faults, is_damaged: false };
        for verdict in database.rows("PRAGMA integrity_check(10)", |row, _| row.get::<_, String>(0)) {
            if verdict != "ok" {
                database.faults.push(Fault::new("a database without damage", verdict.replace('\n', "; ")));
            }
        }
        Ok(database)
    }

    /// Returns the columns of a table, none where it is not there.
    pub(super) fn columns(&mut self, table: &str) -> Vec<String> {
        self.rows(&format!("SELECT name FROM pragma_table_info('{table}')"), |row, _| row.get(0))
    }

    /// Tells whether a table has all of `columns`; what it lacks becomes a fault.
    pub(super) fn requires(&mut self, table: &str, columns: &[&str]) -> bool {
        let found = self.columns(table);
        let missing: Vec<&str> =
            columns.iter().copied().filter(|column| !found.iter().any(|name| name == column)).collect();
        if !missing.is_empty() {
            let expected = format!("columns {} in table {table}", missing.join(", "));
            let found = if found.is_empty() { "no such table".to_owned() } else { found.join(", ") };
            self.faults.push(Fault::new(expected, found));
        }
        missing.is_empty()
    }

    /// Returns what `read` makes of each row. Rows after an unreadable one are left out.
    pub(super) fn rows<T>(
        &mut self,
        sql: &str,
        mut read: impl FnMut(&Row<'_>, &mut Vec<Fault>) -> rusqlite::Result<T>,
    ) -> Vec<T> {
        let mut found = Vec::new();
        let faults = &mut self.faults;
        let mut run = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                found.push(read(row, faults)?);
            }
            Ok(())
        };
        if let Err(error) = run() {
            self.faults.push(Fault::new("a readable database", error));
            self.is_damaged = true;
        }
        found
    }

    /// Returns the table `properties`; numbers as text.
    pub(super) fn properties(&mut self) -> BTreeMap<String, String> {
        if !self.requires("properties", &["key", "value"]) {
            return BTreeMap::new();
        }
        let pairs = self.rows("SELECT key, CAST(value AS TEXT) FROM properties", |row, _| {
            Ok((bytes_of(row.get_ref(0)?), row.get_ref(1)?.as_bytes_or_null()?.map(<[u8]>::to_vec)))
        });
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        pairs.into_iter().filter_map(|(key, value)| Some((text(key), text(value?)))).collect()
    }

    /// Borrows the database for questions of another form.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

fn bytes_of(value: ValueRef<'_>) -> Vec<u8> {
    value.as_bytes().map(<[u8]>::to_vec).unwrap_or_default()
}

/// Reads the cells of one row. One of a wrong type becomes a fault, and is read as nothing.
pub(super) struct Cells<'r, 's> {
    pub(super) row: &'r Row<'s>,
    /// Its number in the table `catalog`, if it is one of those.
    pub(super) number: Option<i64>,
    pub(super) faults: &'r mut Vec<Fault>,
}

impl Cells<'_, '_> {
    pub(super) fn integer(&mut self, column: &str) -> i64 {
        self.optional_integer(column).unwrap_or_else(|| self.wrong(column, "an integer", "NULL"))
    }

    pub(super) fn optional_integer(&mut self, column: &str) -> Option<i64> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Integer(number)) => Some(number),
            Ok(ValueRef::Null) => None,
            other => self.wrong(column, "an integer", &type_name(other)),
        }
    }

    /// Reads an integer that readers take for one of 32 bits.
    pub(super) fn unsigned(&mut self, column: &str) -> u32 {
        let number = self.integer(column);
        u32::try_from(number).unwrap_or_else(|_| self.wrong(column, "a number of 32 bits", &number.to_string()))
    }

    pub(super) fn text(&mut self, column: &str) -> Box<[u8]> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Text(bytes)) => bytes.into(),
            other => self.wrong(column, "a text", &type_name(other)),
        }
    }

    pub(super) fn string(&mut self, column: &str) -> String {
        String::from_utf8_lossy(&self.text(column)).into_owned()
    }

    pub(super) fn blob(&mut self, column: &str) -> Option<Box<[u8]>> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Blob(bytes)) => Some(bytes.into()),
            Ok(ValueRef::Null) => None,
            other => self.wrong(column, "a blob", &type_name(other)),
        }
    }

    fn wrong<T: Default>(&mut self, column: &str, expected: &str, found: &str) -> T {
        let fault = Fault::new(format_args!("{column} as {expected}"), found);
        self.faults.push(Fault { row: self.number, ..fault });
        T::default()
    }
}

fn type_name(value: rusqlite::Result<ValueRef<'_>>) -> String {
    value.map_or_else(|error| error.to_string(), |value| value.data_type().to_string())
}
