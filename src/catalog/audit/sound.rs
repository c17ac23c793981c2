//! Reads a catalog without SQLite, if it has the schema that strata writes and is intact.
//!
//! This performs the same checks as `PRAGMA integrity_check`. If anything is damaged or merely unusual, nothing is returned, and the
//! caller reads the catalog with SQLite.

use std::collections::BTreeMap;

use super::catalog::{AuditedCatalog, AuditedChunk, AuditedReference, AuditedRow, Span};
use super::pages::{Pages, Record, TreeKind, Value};
use crate::catalog::guarded::{SchemaObject, is_strata_schema};

/// Reads a catalog. Returns `None` if it is not intact or is unusual.
pub(super) fn read(bytes: &[u8]) -> Option<AuditedCatalog> {
    let mut pages = Pages::open(bytes)?;
    let roots = Roots::read(&mut pages)?;
    let mut file = CatalogFile { pages, roots };
    let (rows, buffer) = file.rows(bytes.len())?;
    file.check_row_index("idx_catalog_parent", &rows, |row| row.parent, false)?;
    file.check_row_index("sqlite_autoindex_catalog_1", &rows, |row| row.key, true)?;
    let (chunks, nested, bound) =
        (file.chunks()?, file.references("nested_catalogs")?, file.references("bind_mountpoints")?);
    let (statistics, properties) = (file.statistics()?, file.properties()?);
    file.pages.are_all_seen()?;
    let (size, faults) = (bytes.len() as u64, Vec::new());
    let catalog =
        AuditedCatalog { size, rows, buffer, chunks, nested, bound, statistics, properties, faults, is_damaged: false };
    Some(catalog)
}

/// The root page of each table and index, by name.
struct Roots(BTreeMap<String, u32>);

impl Roots {
    fn read(pages: &mut Pages<'_>) -> Option<Self> {
        let (mut objects, mut roots) = (Vec::new(), BTreeMap::new());
        pages.visit(1, TreeKind::Table, &mut |_, record| {
            let mut record = Record::of(record)?;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
            let (kind, name) = (text(record.required_text()?)?, text(record.required_text()?)?);
            record.required_text()?;
            let root = u32::try_from(record.required_integer()?).ok().filter(|&root| root > 0)?;
            let sql = match record.value()? {
                Value::Text(sql) => Some(text(sql)?),
                Value::Null => None,
                _ => return None,
            };
            record.end()?;
            roots.insert(name.clone(), root);
            objects.push(SchemaObject { kind, name, is_ordinary: true, sql });
            Some(())
        })?;
        is_strata_schema(&objects).then_some(Self(roots))
    }
}

/// A catalog's file.
struct CatalogFile<'b> {
    pages: Pages<'b>,
    roots: Roots,
}

impl CatalogFile<'_> {
    /// Calls `visit` for each row of a table.
    fn visit(&mut self, table: &str, mut visit: impl FnMut(i64, &mut Record<'_>) -> Option<()>) -> Option<()> {
        let root = *self.roots.0.get(table)?;
        self.pages.visit(root, TreeKind::Table, &mut |number, record| {
            let mut record = Record::of(record)?;
            visit(number, &mut record)?;
            record.end()
        })
    }

    fn rows(&mut self, size: usize) -> Option<(Vec<AuditedRow>, Vec<u8>)> {
        // Estimates for most catalogs, to avoid reallocations.
        let mut rows = Vec::with_capacity(size / 256);
        let mut buffer = Vec::with_capacity(size / 6);
        self.visit("catalog", |number, record| {
            rows.push(read_row(number, record, &mut buffer)?);
            Some(())
        })?;
        Some((rows, buffer))
    }

    /// Checks that an index of the table `catalog` has each row exactly once, in order.
    fn check_row_index(
        &mut self,
        index: &str,
        rows: &[AuditedRow],
        value: impl Fn(&AuditedRow) -> (i64, i64),
        is_unique: bool,
    ) -> Option<()> {
        let (mut count, mut last) = (0, None);
        self.pages.visit(*self.roots.0.get(index)?, TreeKind::Index, &mut |_, record| {
            let mut record = Record::of(record)?;
            let found = (record.required_integer()?, record.required_integer()?);
            let number = record.required_integer()?;
            record.end()?;
            let is_in_order = match last {
                Some((before, _)) if is_unique => before < found,
                Some(before) => before < (found, number),
                None => true,
            };
            last = Some((found, number));
            count += 1;
            (is_in_order && value(super::indexes::find(rows, number)?) == found).then_some(())
        })?;
        (count == rows.len()).then_some(())
    }

    /// Reads a table whose first columns are its primary key, and checks that the index of the primary key has each row exactly once, in
    /// order.
    fn table<T>(
        &mut self,
        table: &str,
        key_columns: usize,
        mut read: impl FnMut(&mut Record<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (mut values, mut keys) = (Vec::new(), BTreeMap::new());
        self.visit(table, |number, record| {
            let mut key = record.clone();
            let key: Vec<Key> = (0..key_columns).map(|_| Key::of(key.value()?)).collect::<Option<_>>()?;
            keys.insert(number, key);
            values.push(read(record)?);
            Some(())
        })?;
        let root = *self.roots.0.get(&format!("sqlite_autoindex_{table}_1"))?;
        let (mut count, mut last) = (0, None);
        self.pages.visit(root, TreeKind::Index, &mut |_, record| {
            let mut record = Record::of(record)?;
            let key: Vec<Key> = (0..key_columns).map(|_| Key::of(record.value()?)).collect::<Option<_>>()?;
            let is_right =
                keys.get(&record.required_integer()?)? == &key && last.as_ref().is_none_or(|last| *last < key);
            record.end()?;
            last = Some(key);
            count += 1;
            is_right.then_some(())
        })?;
        (count == keys.len()).then_some(values)
    }

    fn chunks(&mut self) -> Option<Vec<AuditedChunk>> {
        let mut chunks = self.table("chunks", 4, |record| {
            let key = (record.required_integer()?, record.required_integer()?);
            let (offset, size) = (record.required_integer()?, record.required_integer()?);
            Some(AuditedChunk { key, offset, size, hash: record.optional_blob()?.map(Into::into) })
        })?;
        chunks.sort_by_key(|chunk| (chunk.key, chunk.offset, chunk.size));
        Some(chunks)
    }

    fn references(&mut self, table: &str) -> Option<BTreeMap<Vec<u8>, AuditedReference>> {
        let references = self.table(table, 1, |record| {
            let (path, hash) = (record.required_text()?.to_vec(), lossy(record.required_text()?));
            Some((path, AuditedReference { hash, size: record.optional_integer()?.unwrap_or(0) }))
        })?;
        Some(references.into_iter().collect())
    }

    fn statistics(&mut self) -> Option<BTreeMap<String, i64>> {
        let counters =
            self.table("statistics", 1, |record| Some((lossy(record.required_text()?), record.required_integer()?)))?;
        Some(counters.into_iter().collect())
    }

    fn properties(&mut self) -> Option<BTreeMap<String, String>> {
        let properties = self.table("properties", 1, |record| {
            // Some writers store numbers here; such a catalog is read with SQLite.
            Some((lossy(record.required_text()?), lossy(record.required_text()?)))
        })?;
        Some(properties.into_iter().collect())
    }
}

/// Reads a row of the table `catalog`, in the order of the columns in the schema.
fn read_row(number: i64, record: &mut Record<'_>, buffer: &mut Vec<u8>) -> Option<AuditedRow> {
    let narrow = |number: i64| u32::try_from(number).ok();
    let key = (record.required_integer()?, record.required_integer()?);
    let parent = (record.required_integer()?, record.required_integer()?);
    let hardlinks = record.required_integer()?;
    let hash = Span::add(buffer, record.optional_blob()?);
    let (size, mode) = (record.required_integer()?, narrow(record.required_integer()?)?);
    let (mtime, mtime_nanoseconds) = (record.required_integer()?, record.optional_integer()?);
    let flags = narrow(record.required_integer()?)?;
    let name = Span::add(buffer, Some(record.required_text()?));
    let symlink = Span::add(buffer, Some(record.required_text()?));
    let (uid, gid) = (narrow(record.required_integer()?)?, narrow(record.required_integer()?)?);
    let xattr = Span::add(buffer, record.optional_blob()?);
    let (link_group, link_count) = ((hardlinks >> 32) as u32, hardlinks as u32);
    Some(AuditedRow {
        rowid: number,
        key,
        parent,
        link_group,
        link_count,
        size,
        mtime,
        mtime_nanoseconds,
        mode,
        flags,
        uid,
        gid,
        name,
        symlink,
        hash,
        xattr,
    })
}

/// A value of a primary key, in the sort order of SQLite. NULL is not supported, because a key may contain it several times.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Integer(i64),
    Text(Box<[u8]>),
}

impl Key {
    fn of(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Integer(number) => Some(Self::Integer(number)),
            Value::Text(text) => Some(Self::Text(text.into())),
            Value::Null | Value::Real | Value::Blob(_) => None,
        }
    }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;
    use crate::catalog::database::Draft;
    use crate::catalog::entry::{CatalogEntry, CatalogReference};
    use crate::metadata::Metadata;
    use crate::object::{Chunk, Content, ContentObjects, ObjectHash};
    use crate::path::EntryPath;

    /// Returns a catalog with all kinds of rows, with B-trees of several levels, and with records that span several pages.
    fn catalog() -> Vec<u8> {
        let metadata = Metadata::of_implied_directory();
        let mut draft = Draft::new(EntryPath::ROOT);
        draft.push(EntryPath::ROOT, CatalogEntry::of_directory(&metadata, 0));
        let chunk = |offset| Chunk { offset, size: 5, hash: ObjectHash::of(b"x") };
        for number in 0..3000_u64 {
            let path = EntryPath::ROOT.join(format!("{number:04}{}", "x".repeat((number % 90) as usize)).as_bytes());
            let objects = match number % 3 {
                0 => ContentObjects::Chunks([chunk(0), chunk(5), chunk(10 + number)].into()),
                _ => ContentObjects::Whole(ObjectHash::of(&number.to_le_bytes())),
            };
            let entry = match number % 100 {
                7 => CatalogEntry::of_symlink(&metadata, &[b't'; 4000]),
                _ => CatalogEntry::of_file(&metadata, number << (number % 50), &Content { raw: false, objects }),
            };
            draft.push(path, entry);
        }
        let reference = CatalogReference { hash: ObjectHash::of(b"n"), size: 1 << 20 };
        draft.nested.extend((0..200).map(|number| (EntryPath::ROOT.join(format!("{number}").as_bytes()), reference)));
        draft.properties.insert("long".to_owned(), "p".repeat(100_000));
        draft.write().unwrap()
    }

    fn change(bytes: &[u8], sql: &str) -> Vec<u8> {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.deserialize_read_exact("main", bytes, bytes.len(), false).unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        connection.execute_batch(sql).unwrap();
        connection.serialize("main").unwrap().to_vec()
    }

    #[track_caller]
    fn assert_alike(sound: &AuditedCatalog, bytes: &[u8], what: &str) {
        let other = AuditedCatalog::read_with_sqlite(bytes.to_vec()).unwrap();
        assert_eq!(other.faults, [], "{what}");
        assert!(sound.rows == other.rows && sound.buffer == other.buffer && sound.chunks == other.chunks, "{what}");
        assert!(sound.nested == other.nested && sound.bound == other.bound, "{what}");
        assert!(sound.statistics == other.statistics && sound.properties == other.properties, "{what}");
    }

    #[test]
    fn changed_catalogs_are_read_as_sqlite_reads_them() {
        let good = catalog();
        for sql in [
            "",
            "DELETE FROM catalog WHERE rowid % 3 = 0",
            "DELETE FROM catalog",
            "DELETE FROM catalog WHERE rowid % 2 = 0; INSERT INTO properties VALUES ('more', 'text')",
            "UPDATE catalog SET symlink = symlink || name WHERE rowid % 5 = 0",
            "UPDATE catalog SET mtimens = NULL, size = -size, hash = NULL, xattr = zeroblob(rowid)",
            "UPDATE properties SET value = 'short'; VACUUM",
            "DELETE FROM nested_catalogs; INSERT INTO bind_mountpoints VALUES ('/a', 'b', NULL)",
        ] {
            let bytes = change(&good, sql);
            let sound = read(&bytes).unwrap_or_else(|| panic!("{sql}"));
            assert_alike(&sound, &bytes, sql);
        }
    }

    #[test]
    fn unusual_catalogs_are_read_only_with_sqlite() {
        let good = catalog();
        for sql in [
            "CREATE TABLE more (a)",
            "CREATE VIEW v AS SELECT 1",
            "CREATE TRIGGER t AFTER INSERT ON catalog BEGIN SELECT 1; END",
            "DROP INDEX idx_catalog_parent",
            "UPDATE catalog SET name = x'41' WHERE rowid = 7",
            "UPDATE catalog SET size = 0.5 WHERE rowid = 7",
            "UPDATE catalog SET uid = -1 WHERE rowid = 7",
            "UPDATE catalog SET parent_1 = NULL WHERE rowid = 7",
            "INSERT INTO statistics VALUES (NULL, 1)",
            "INSERT INTO properties VALUES ('number', x'07')",
            "PRAGMA encoding = 'UTF-16'; PRAGMA auto_vacuum = FULL; VACUUM",
        ] {
            assert!(read(&change(&good, sql)).is_none(), "{sql}");
        }
        for length in [0, 99, 100, 4096, good.len() - 4096, good.len() - 1] {
            assert!(read(&good[..length]).is_none(), "{length}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 50 } else { 400 }))]

        #[test]
        fn damaged_catalog_is_never_accepted(at in 0.0..1.0_f64, head in 0_usize..120, bit in 0_u32..8) {
            let good = { static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(catalog); &*GOOD };
            let page = (at * (good.len() / 4096) as f64) as usize * 4096;
            // Damages a byte at any position, and a byte that is often in the header of a page.
            for position in [(at * good.len() as f64) as usize, page + head] {
                let mut bytes = good.clone();
                bytes[position] ^= 1 << bit;
                if let Some(sound) = read(&bytes) {
                    assert_alike(&sound, &bytes, &format!("byte {position}"));
                }
            }
        }
    }
}
