//! A database that is checked: opened from memory, and read value by value.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Deref;
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::catalog::guarded::{Access, GuardedDatabase, Schema, explain_timeout};

/// A violation of the format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Rowid in the table `catalog`, if the fault is in one of its rows.
    pub row: Option<i64>,
    /// What the format requires.
    pub expected: String,
    /// What was found instead.
    pub found: String,
}

impl Fault {
    pub(super) fn new(expected: impl Display, found: impl Display) -> Self {
        Self { row: None, expected: expected.to_string(), found: found.to_string() }
    }
}

/// A database with the faults found so far.
pub(super) struct Database<'d> {
    database: Holder<'d>,
    pub(super) schema: Arc<Schema>,
    pub(super) faults: Vec<Fault>,
    /// Whether some rows could not be read.
    pub(super) is_damaged: bool,
}

/// A database that was opened for the check, or that the caller has opened and lends.
enum Holder<'d> {
    Own(GuardedDatabase),
    Borrowed(&'d GuardedDatabase),
}

impl Deref for Holder<'_> {
    type Target = GuardedDatabase;

    fn deref(&self) -> &GuardedDatabase {
        match self {
            Self::Own(database) => database,
            Self::Borrowed(database) => database,
        }
    }
}

/// Offsets of the read and write version in the header of an SQLite file: 1 for a rollback journal, 2 for WAL.
const JOURNAL_MODES: std::ops::Range<usize> = 18..20;

/// Offset of the text encoding in the header: 1 is UTF-8.
const ENCODING: std::ops::Range<usize> = 56..60;

/// Size of the header in bytes.
const HEADER: usize = 100;

/// Maximum number of reported faults in pages and indexes.
const MAX_FAULTS: usize = 10;

impl<'d> Database<'d> {
    /// Opens the bytes of an SQLite file. Schema objects other than ordinary tables and indexes become faults.
    ///
    /// Damaged pages are not found here, but by [`Self::has_whole_pages`] or [`Self::check_integrity`].
    pub(super) fn open(mut bytes: Vec<u8>) -> Result<Self, Fault> {
        let mut faults = Vec::new();
        if bytes.len() < HEADER || !bytes.starts_with(b"SQLite format 3\0") {
            return Err(Fault::new("an SQLite file", format_args!("{} other bytes", bytes.len())));
        }
        if bytes[JOURNAL_MODES] != [1, 1] {
            let found = format!("{:?}: clients cannot open a file in WAL mode", &bytes[JOURNAL_MODES]);
            faults.push(Fault::new("a rollback journal (bytes 18 and 19 are 1)", found));
            // SQLite cannot open a WAL database from memory.
            bytes[JOURNAL_MODES].fill(1);
        }
        if bytes[ENCODING] != [0, 0, 0, 1] {
            faults.push(Fault::new("texts in UTF-8", format_args!("encoding {:?}", &bytes[ENCODING])));
        }
        let database = GuardedDatabase::open_owned(bytes, Access::ReadOnly).map_err(unreadable)?;
        Self::of(Holder::Own(database), faults)
    }

    /// Checks a database that is already open.
    pub(super) fn borrowed(database: &'d GuardedDatabase) -> Result<Self, Fault> {
        let encoding = database.connection().pragma_query_value(None, "encoding", |row| row.get::<_, String>(0));
        let encoding = encoding.map_err(unreadable)?;
        let faults = if encoding == "UTF-8" { Vec::new() } else { vec![Fault::new("texts in UTF-8", encoding)] };
        Self::of(Holder::Borrowed(database), faults)
    }

    fn of(database: Holder<'d>, mut faults: Vec<Fault>) -> Result<Self, Fault> {
        let schema = database.schema().map_err(unreadable)?;
        for other in schema.others.iter().take(MAX_FAULTS) {
            faults.push(Fault::new("nothing but tables and indexes", other));
        }
        Ok(Self { database, schema, faults, is_damaged: false })
    }

    /// Runs `integrity_check`: pages, records, and the agreement of tables with their indexes.
    pub(super) fn check_integrity(&mut self) {
        self.check(&format!("PRAGMA integrity_check({MAX_FAULTS})"));
    }

    /// Runs `integrity_check` for one table and its indexes.
    pub(super) fn check_integrity_of(&mut self, table: &str) {
        self.check(&format!("PRAGMA integrity_check({table})"));
    }

    /// Runs `quick_check`: returns whether pages and records are intact. Does not compare indexes with tables.
    pub(super) fn has_whole_pages(&mut self) -> bool {
        let verdicts = self.database.rows("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        verdicts.is_ok_and(|verdicts| verdicts == ["ok"])
    }

    fn check(&mut self, pragma: &str) {
        for verdict in self.rows(pragma, |row, _| row.get::<_, String>(0)) {
            if verdict != "ok" && self.faults.len() < MAX_FAULTS {
                self.faults.push(Fault::new("a database without damage", verdict.replace('\n', "; ")));
            }
        }
    }

    /// Returns the size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.database.budget().bytes
    }

    /// Returns the stored columns of a table; empty if the table does not exist.
    pub(super) fn columns(&self, table: &str) -> &[String] {
        self.schema.columns(table)
    }

    /// Returns whether a table has all of `columns`. Missing columns become a fault.
    pub(super) fn requires(&mut self, table: &str, columns: &[&str]) -> bool {
        let missing = self.schema.missing(table, columns);
        if !missing.is_empty() {
            let expected = format!("columns {} in table {table}", missing.join(", "));
            let found = self.schema.columns(table);
            let found = if found.is_empty() { "no such table".to_owned() } else { found.join(", ") };
            self.faults.push(Fault::new(expected, found));
        }
        missing.is_empty()
    }

    /// Returns the results of `read` for all rows of a query, up to the first unreadable row.
    pub(super) fn rows<T>(
        &mut self,
        sql: &str,
        mut read: impl FnMut(&Row<'_>, &mut Vec<Fault>) -> rusqlite::Result<T>,
    ) -> Vec<T> {
        let (mut found, mut budget) = (Vec::new(), self.database.budget());
        self.visit(sql, |row, faults| {
            budget.take(row)?;
            found.push(read(row, faults)?);
            Ok(())
        });
        found
    }

    /// Calls `visit` for each row up to the first unreadable one. The number of rows is limited; `visit` must limit the bytes
    /// that it stores.
    pub(super) fn visit(
        &mut self,
        sql: &str,
        mut visit: impl FnMut(&Row<'_>, &mut Vec<Fault>) -> rusqlite::Result<()>,
    ) {
        let (faults, mut budget) = (&mut self.faults, self.database.budget());
        let mut run = || -> rusqlite::Result<()> {
            let mut statement = self.database.connection().prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                budget.take_bytes(0)?;
                visit(row, faults)?;
            }
            Ok(())
        };
        if let Err(error) = run() {
            self.faults.push(Fault::new("a readable database", explain_timeout(error)));
            self.is_damaged = true;
        }
    }

    /// Returns the table `properties`, with numbers as text.
    pub(super) fn properties(&mut self) -> BTreeMap<String, String> {
        if !self.requires("properties", &["key", "value"]) {
            return BTreeMap::new();
        }
        let pairs = self.rows("SELECT key, CAST(value AS TEXT) FROM properties", |row, faults| {
            let key = Cells { row, number: None, faults }.string(0, "key");
            Ok((key, row.get_ref(1)?.as_bytes_or_null()?.map(<[u8]>::to_vec)))
        });
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        pairs.into_iter().filter_map(|(key, value)| Some((key, text(value?)))).collect()
    }

    /// Returns the connection, for queries that do not fit [`Self::rows`].
    pub(super) fn connection(&self) -> &Connection {
        self.database.connection()
    }
}

/// Reads the values of one row by column number. A value of a wrong type becomes a fault and is read as 0 or empty.
pub(super) struct Cells<'r, 's> {
    pub(super) row: &'r Row<'s>,
    /// The rowid, if the row is one of the table `catalog`.
    pub(super) number: Option<i64>,
    pub(super) faults: &'r mut Vec<Fault>,
}

impl<'r> Cells<'r, '_> {
    pub(super) fn integer(&mut self, column: usize, name: &str) -> i64 {
        self.optional_integer(column, name).unwrap_or_else(|| self.wrong(name, "an integer", "NULL"))
    }

    pub(super) fn optional_integer(&mut self, column: usize, name: &str) -> Option<i64> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Integer(number)) => Some(number),
            Ok(ValueRef::Null) => None,
            other => {
                self.wrong::<()>(name, "an integer", &type_name(other));
                Some(0)
            }
        }
    }

    /// Reads an integer that must fit into 32 bits without sign.
    pub(super) fn unsigned(&mut self, column: usize, name: &str) -> u32 {
        let number = self.integer(column, name);
        u32::try_from(number).unwrap_or_else(|_| self.wrong(name, "a number of 32 bits", &number.to_string()))
    }

    pub(super) fn text(&mut self, column: usize, name: &str) -> &'r [u8] {
        match self.row.get_ref(column) {
            Ok(ValueRef::Text(bytes)) => bytes,
            other => self.wrong(name, "a text", &type_name(other)),
        }
    }

    pub(super) fn string(&mut self, column: usize, name: &str) -> String {
        String::from_utf8_lossy(self.text(column, name)).into_owned()
    }

    pub(super) fn blob(&mut self, column: usize, name: &str) -> Option<&'r [u8]> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Blob(bytes)) => Some(bytes),
            Ok(ValueRef::Null) => None,
            other => self.wrong(name, "a blob", &type_name(other)),
        }
    }

    fn wrong<T: Default>(&mut self, column: &str, expected: &str, found: &str) -> T {
        let fault = Fault::new(format_args!("{column} as {expected}"), found);
        self.faults.push(Fault { row: self.number, ..fault });
        T::default()
    }
}

/// Returns the fault for a database that cannot be read.
pub(super) fn unreadable(error: rusqlite::Error) -> Fault {
    Fault::new("a readable database", explain_timeout(error))
}

fn type_name(value: rusqlite::Result<ValueRef<'_>>) -> String {
    value.map_or_else(|error| error.to_string(), |value| value.data_type().to_string())
}
