//! Checks that the indexes of a catalog agree with its rows.
//!
//! `PRAGMA integrity_check` looks up every row in every index, which takes longer than the rest of the check. It is equivalent to read
//! each index once, and to check that its entries are sorted and have exactly the values of the rows. If this check fails, or if an
//! index has an unusual definition, `integrity_check` runs and its messages become the faults.

use super::catalog::AuditedRow;
use super::database::Database;
use crate::catalog::database::PathKey;

/// The usual indexes of the table `catalog`, ordered by name, in the format of [`DESCRIBE`].
const INDEXES: &str = "idx_catalog_parent c 0 0 parent_1 0 BINARY 1,idx_catalog_parent c 0 0 parent_2 0 BINARY 1,\
     idx_catalog_parent c 0 0  0 BINARY 0,sqlite_autoindex_catalog_1 pk 1 0 md5path_1 0 BINARY 1,\
     sqlite_autoindex_catalog_1 pk 1 0 md5path_2 0 BINARY 1,sqlite_autoindex_catalog_1 pk 1 0  0 BINARY 0";

/// Query that describes the indexes of the table `catalog`.
const DESCRIBE: &str = "SELECT group_concat(line) FROM (SELECT concat_ws(' ', list.name, list.origin, list.[unique], \
     list.partial, ifnull(columns.name, ''), columns.[desc], columns.coll, columns.[key]) AS line \
     FROM pragma_index_list('catalog') AS list, pragma_index_xinfo(list.name) AS columns ORDER BY list.name, columns.seqno)";

/// Compares the indexes of a catalog with its tables. The pages of the file must be intact.
pub(super) fn check(database: &mut Database<'_>, rows: &[AuditedRow]) {
    if !are_usual(database) || !agree(database, rows) {
        database.check_integrity_of("catalog");
    }
    for table in ["chunks", "nested_catalogs", "bind_mountpoints", "statistics", "properties"] {
        if !database.columns(table).is_empty() {
            database.check_integrity_of(table);
        }
    }
}

/// Returns whether the table `catalog` has exactly the indexes that every catalog writer creates.
fn are_usual(database: &Database<'_>) -> bool {
    if database.schema.is_strata_schema {
        return true;
    }
    let described = database.connection().prepare_cached(DESCRIBE);
    let described = described.and_then(|mut statement| statement.query_row([], |row| row.get::<_, Option<String>>(0)));
    described.is_ok_and(|text| text.as_deref() == Some(INDEXES))
}

fn agree(database: &Database<'_>, rows: &[AuditedRow]) -> bool {
    let by_parent = "SELECT parent_1, parent_2, rowid FROM catalog INDEXED BY idx_catalog_parent";
    let by_key = "SELECT md5path_1, md5path_2, rowid FROM catalog INDEXED BY sqlite_autoindex_catalog_1";
    agrees(database, by_parent, rows, |row| row.parent, false).unwrap_or(false)
        && agrees(database, by_key, rows, |row| row.key, true).unwrap_or(false)
}

/// Returns whether an index has exactly one entry for each row, with the values of the row, in sorted order.
fn agrees(
    database: &Database<'_>,
    sql: &str,
    rows: &[AuditedRow],
    value: impl Fn(&AuditedRow) -> PathKey,
    is_unique: bool,
) -> rusqlite::Result<bool> {
    let mut statement = database.connection().prepare_cached(sql)?;
    let mut entries = statement.query([])?;
    let (mut count, mut last) = (0, None);
    while let Some(entry) = entries.next()? {
        let integer = |column| match entry.get_ref(column) {
            Ok(rusqlite::types::ValueRef::Integer(number)) => Some(number),
            _ => None,
        };
        // The row of the repository root may have a NULL parent; `integrity_check` then compares the index.
        let (Some(first), Some(second), Some(number)) = (integer(0), integer(1), integer(2)) else { return Ok(false) };
        let is_in_order = match last {
            Some((before, _)) if is_unique => before < (first, second),
            Some(before) => before < ((first, second), number),
            None => true,
        };
        last = Some(((first, second), number));
        count += 1;
        if !is_in_order || find(rows, number).is_none_or(|row| value(row) != (first, second)) {
            return Ok(false);
        }
    }
    Ok(count == rows.len())
}

/// Returns the row with the given rowid. The position that is tried first is correct if the rowids have no gaps, as in most
/// catalogs.
pub(super) fn find(rows: &[AuditedRow], number: i64) -> Option<&AuditedRow> {
    let guess = usize::try_from(number.checked_sub(1)?).ok().and_then(|index| rows.get(index));
    match guess {
        Some(row) if row.rowid == number => Some(row),
        _ => rows.binary_search_by_key(&number, |row| row.rowid).ok().map(|index| &rows[index]),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::catalog::audit::AuditedCatalog;
    use crate::catalog::database::Draft;
    use crate::catalog::entry::CatalogEntry;
    use crate::metadata::Metadata;
    use crate::path::EntryPath;

    /// Returns a catalog that is too large for the check by SQLite alone.
    fn catalog() -> Vec<u8> {
        let mut draft = Draft::new(EntryPath::ROOT);
        draft.push(EntryPath::ROOT, CatalogEntry::of_directory(&Metadata::of_implied_directory(), 0));
        for number in 0..900 {
            let path = EntryPath::ROOT.join(format!("{number:04}").as_bytes());
            draft.push(path, CatalogEntry::of_symlink(&Metadata::of_implied_directory(), b"target"));
        }
        draft.write().unwrap()
    }

    fn change(bytes: &[u8], change: impl FnOnce(&Connection)) -> Vec<u8> {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.deserialize_read_exact("main", bytes, bytes.len(), false).unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        change(&connection);
        connection.serialize("main").unwrap().to_vec()
    }

    /// Changes rows but not the indexes, as in a file from an interrupted or malicious writer.
    fn with_stale_indexes(bytes: &[u8], sql: &str) -> Vec<u8> {
        const HIDE: &str = "PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET sql = replace(sql, 'CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2)',
                'CONSTRAINT pk_catalog CHECK (1)') WHERE name = 'catalog';
            CREATE TABLE hidden AS SELECT * FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'catalog';
            DELETE FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'catalog'";
        const SHOW: &str = "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM hidden;
            UPDATE sqlite_schema SET sql = replace(sql, 'CONSTRAINT pk_catalog CHECK (1)',
                'CONSTRAINT pk_catalog PRIMARY KEY (md5path_1, md5path_2)') WHERE name = 'catalog'";
        let hidden = change(bytes, |connection| connection.execute_batch(HIDE).unwrap());
        let shown = change(&hidden, |connection| {
            connection.execute_batch(sql).unwrap();
            connection.execute_batch(SHOW).unwrap();
        });
        change(&shown, |connection| connection.execute_batch("DROP TABLE hidden").unwrap())
    }

    fn agrees(bytes: &[u8]) -> bool {
        let rows = AuditedCatalog::read(bytes.to_vec()).unwrap().rows;
        let database = Database::open(bytes.to_vec()).unwrap();
        are_usual(&database) && agree(&database, &rows)
    }

    #[test]
    fn usual_indexes_are_compared_without_integrity_check() {
        let good = catalog();
        assert!(good.len() > 64 << 10);
        // Another program may write the same schema with different SQL text.
        let reworded = change(&good, |connection| {
            let sql = "DROP INDEX idx_catalog_parent; CREATE INDEX idx_catalog_parent ON catalog(parent_1,parent_2)";
            connection.execute_batch(sql).unwrap();
        });
        for bytes in [good, reworded] {
            assert!(agrees(&bytes));
            assert_eq!(AuditedCatalog::read(bytes).unwrap().faults, []);
        }
    }

    #[test]
    fn index_that_differs_from_the_rows_is_a_fault() {
        for sql in [
            "DELETE FROM catalog WHERE name = '0007'",
            "UPDATE catalog SET parent_1 = 7 WHERE name = '0007'",
            "UPDATE catalog SET md5path_2 = 7 WHERE name = '0007'",
            "UPDATE catalog SET md5path_1 = 'text' WHERE name = '0007'",
            "UPDATE catalog SET rowid = 5000 WHERE name = '0007'",
            "UPDATE catalog SET parent_1 = NULL WHERE name = '0007'",
            "INSERT INTO catalog SELECT 7, 7, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens, flags, name,
                symlink, uid, gid, xattr FROM catalog WHERE name = '0007'",
        ] {
            let bytes = with_stale_indexes(&catalog(), sql);
            assert!(!agrees(&bytes), "{sql}");
            let faults = AuditedCatalog::read(bytes).unwrap().faults;
            assert!(faults.iter().any(|fault| fault.found.contains("index")), "{sql}: {faults:?}");
        }
    }
}
