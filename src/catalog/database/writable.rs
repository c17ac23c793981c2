//! A catalog that is changed in place, so that a change costs only the changed rows and a copy of the file.

use std::collections::{BTreeMap, HashMap};
use std::iter;

use rusqlite::{Connection, Row, params};

use super::sound::require_sound;
use super::{
    Catalog, CatalogError, GuardedDatabase, INSERT_CHUNK, INSERT_ROW, NO_PARENT, PathKey, Text, catalog_path,
    create_database, insert_chunks, insert_row, key, read_reference_with_path, write_counters, write_form,
};
use crate::catalog::counters::Counters;
use crate::catalog::entry::{CatalogEntry, CatalogReference, Nesting};
use crate::path::EntryPath;

/// A catalog that is open for changes.
///
/// The root entry (the row of the directory that the catalog describes) always has the smallest rowid. The rowids have no gaps
/// when the catalog is written, because clients reserve as many inodes as the largest rowid. SQLite limits a file in memory to
/// 1 GiB; CVMFS warns of larger catalogs.
#[derive(Debug)]
pub(in crate::catalog) struct WritableCatalog {
    catalog: Catalog,
    /// Rowids of removed rows.
    free: Vec<i64>,
}

/// A table of references to other catalogs.
#[derive(Debug, Clone, Copy)]
pub(in crate::catalog) enum References {
    /// The catalog below a transition point.
    Nested,
    /// A catalog that is mounted at a second path. Only other programs create these.
    Bound,
}

impl References {
    fn table(self) -> &'static str {
        match self {
            Self::Nested => "nested_catalogs",
            Self::Bound => "bind_mountpoints",
        }
    }
}

/// The file is vacuumed if more than the fraction 1 / `VACUUM_DIVISOR` of its pages is free.
// Seldom, because a vacuum writes the whole file again: it took 32 % of the time of a stock publication (cvmfs #4268).
const VACUUM_DIVISOR: i64 = 5;

/// Renumbers the rows from 1 and keeps their order.
const RENUMBER_ROWS: &str = "CREATE TEMP TABLE rows AS SELECT * FROM catalog ORDER BY rowid; DELETE FROM catalog; \
     INSERT INTO catalog SELECT * FROM rows ORDER BY rowid; DROP TABLE rows;";

/// Maximum number of directories above a row. Without this limit, a walk from parent to parent would not end if keys form a
/// cycle.
const MAX_DEPTH: usize = 2048;

/// Turns an insertion into an update if the path already has a row.
const ON_CONFLICT_UPDATE: &str = "ON CONFLICT (md5path_1, md5path_2) DO UPDATE SET hardlinks = excluded.hardlinks, \
     hash = excluded.hash, size = excluded.size, mode = excluded.mode, mtime = excluded.mtime, \
     mtimens = excluded.mtimens, flags = excluded.flags, symlink = excluded.symlink, uid = excluded.uid, \
     gid = excluded.gid, xattr = excluded.xattr";

impl WritableCatalog {
    /// Creates a catalog for the directory `root`, without any row.
    pub(in crate::catalog) fn create(root: &EntryPath) -> Result<Self, CatalogError> {
        let database = |source| CatalogError::Database { path: root.clone(), source };
        let connection = create_database(include_str!("../../../catalog-schema/catalog.sql")).map_err(database)?;
        let fill = || {
            connection.execute_batch(include_str!("../../../catalog-schema/catalog-index.sql"))?;
            write_form(&connection, root)?;
            write_counters(&connection, Counters::default(), Counters::default())
        };
        fill().map_err(database)?;
        Catalog::of(GuardedDatabase::created(connection), 0, root).and_then(Self::begin)
    }

    /// Opens a catalog for changes. Fails if any row is unsound, because the next signature covers all rows.
    pub(in crate::catalog) fn of(catalog: Catalog) -> Result<Self, CatalogError> {
        require_sound(&catalog)?;
        let upgrade = || {
            catalog.database().allow_changes()?;
            match catalog.has_nanoseconds() {
                true => Ok(()),
                false => catalog.database().connection().execute_batch("ALTER TABLE catalog ADD mtimens INTEGER"),
            }
        };
        upgrade().map_err(|source| catalog.database_error(source))?;
        let mut writable = Self::begin(catalog)?;
        writable.set_property("schema_revision", "7")?;
        Ok(writable)
    }

    fn begin(catalog: Catalog) -> Result<Self, CatalogError> {
        let begun = catalog.database().connection().execute_batch("BEGIN");
        begun.map_err(|source| catalog.database_error(source))?;
        Ok(Self { catalog, free: Vec::new() })
    }

    fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, CatalogError> {
        let done = work(self.catalog.database().connection());
        done.map_err(|source| self.catalog.database_error(source))
    }

    /// Returns the directory that the catalog describes.
    pub(in crate::catalog) fn root(&self) -> &EntryPath {
        self.catalog.root()
    }

    /// Returns a property.
    pub(in crate::catalog) fn property(&self, name: &str) -> Option<&str> {
        self.catalog.property(name)
    }

    /// Returns the counters of this catalog alone.
    pub(in crate::catalog) fn own_counters(&self) -> Counters {
        self.catalog.own
    }

    /// Returns the sum of the counters of all catalogs below this one. The caller must update the sum when one of these catalogs
    /// changes.
    pub(in crate::catalog) fn below(&mut self) -> &mut Counters {
        &mut self.catalog.below
    }

    /// Returns the row of `path`.
    pub(in crate::catalog) fn get(&self, path: &EntryPath) -> Result<Option<CatalogEntry>, CatalogError> {
        self.catalog.get(path)
    }

    /// Returns the row of a directory that must exist.
    pub(in crate::catalog) fn directory(&self, path: &EntryPath) -> Result<CatalogEntry, CatalogError> {
        self.get(path)?.ok_or_else(|| self.catalog.invalid(format!("the row of {path} is missing")))
    }

    /// Returns the transition point of this catalog: the row of its root in the parent catalog.
    pub(in crate::catalog) fn transition_point(&self) -> Result<CatalogEntry, CatalogError> {
        Ok(self.directory(self.catalog.root())?.with_nesting(Nesting::TransitionPoint))
    }

    /// Returns the rows of the children of the directory `path` by name.
    pub(in crate::catalog) fn list(&self, path: &EntryPath) -> Result<BTreeMap<Vec<u8>, CatalogEntry>, CatalogError> {
        self.catalog.list(path)
    }

    /// Returns the rows at and below `path`, each directory before its children.
    pub(in crate::catalog) fn rows_from(
        &self,
        path: &EntryPath,
    ) -> Result<Vec<(EntryPath, CatalogEntry)>, CatalogError> {
        let mut rows = Vec::new();
        let mut left: Vec<_> = self.get(path)?.map(|entry| (path.clone(), entry)).into_iter().collect();
        while let Some((path, entry)) = left.pop() {
            if entry.is_directory() {
                left.extend(self.catalog.list(&path)?.into_iter().rev().map(|(name, entry)| (path.join(&name), entry)));
            }
            rows.push((path, entry));
        }
        Ok(rows)
    }

    /// Writes the row of `path`, and replaces an existing row.
    pub(in crate::catalog) fn put(&mut self, path: &EntryPath, entry: &CatalogEntry) -> Result<(), CatalogError> {
        let (before, at) = (self.get(path)?, key(path));
        let number = if before.is_none() { self.free.pop() } else { None };
        self.run(|connection| {
            if before.as_ref().is_some_and(CatalogEntry::is_chunked) {
                delete_chunks(at, connection)?;
            }
            let (parent, name) = match path.split() {
                Some((directory, name)) => (key(&directory), name),
                None => (NO_PARENT, &b""[..]),
            };
            let mut insert = connection.prepare_cached(&format!("{INSERT_ROW} {ON_CONFLICT_UPDATE}"))?;
            insert_row(&mut insert, number, at, parent, name, entry)?;
            let mut insert = connection.prepare_cached(INSERT_CHUNK)?;
            insert_chunks(&mut insert, at, entry)
        })?;
        self.catalog.own += Counters::of_entry(entry);
        self.catalog.own -= before.as_ref().map(Counters::of_entry).unwrap_or_default();
        Ok(())
    }

    /// Deletes the row of `path`, which must exist and be equal to `entry`.
    pub(in crate::catalog) fn remove(&mut self, path: &EntryPath, entry: &CatalogEntry) -> Result<(), CatalogError> {
        let (first, second) = key(path);
        let number = self.run(|connection| {
            if entry.is_chunked() {
                delete_chunks((first, second), connection)?;
            }
            let sql = "DELETE FROM catalog WHERE md5path_1 = ? AND md5path_2 = ? RETURNING rowid";
            connection.prepare_cached(sql)?.query_row([first, second], |row| row.get(0))
        })?;
        self.free.push(number);
        self.catalog.own -= Counters::of_entry(entry);
        Ok(())
    }

    /// Returns the nested catalog whose transition point is `path`.
    pub(in crate::catalog) fn nested(&self, path: &EntryPath) -> Result<Option<CatalogReference>, CatalogError> {
        self.catalog.nested(path)
    }

    /// Returns the references of a table at and below `path`, which must not be the root of the repository.
    pub(in crate::catalog) fn references_from(
        &self,
        table: References,
        path: &EntryPath,
    ) -> Result<Vec<(EntryPath, CatalogReference)>, CatalogError> {
        // A range instead of `LIKE`, because paths are bytes and may contain its wildcards.
        let [from, to] = [b'/', b'/' + 1].map(|end| [catalog_path(path), vec![end]].concat());
        let found: Vec<_> = self.run(|connection| {
            let table = table.table();
            let sql = format!("SELECT sha1, size, path FROM {table} WHERE path = ?1 OR path > ?2 AND path < ?3");
            let mut select = connection.prepare_cached(&sql)?;
            let range = params![Text(&catalog_path(path)), Text(&from), Text(&to)];
            select.query_map(range, read_reference_with_path)?.collect::<rusqlite::Result<_>>()
        })?;
        found.into_iter().map(|row| self.catalog.reference(row)).collect()
    }

    /// Writes a reference for `path`, and replaces an existing one.
    pub(in crate::catalog) fn put_reference(
        &mut self,
        table: References,
        path: &EntryPath,
        reference: CatalogReference,
    ) -> Result<(), CatalogError> {
        self.remove_reference(table, path)?;
        let sql = format!("INSERT INTO {} (path, sha1, size) VALUES (?, ?, ?)", table.table());
        let values = params![Text(&catalog_path(path)), reference.hash.to_string(), reference.size];
        self.run(|connection| connection.prepare_cached(&sql)?.execute(values))?;
        self.catalog.own += Counters::of_nested(usize::from(matches!(table, References::Nested)));
        Ok(())
    }

    /// Deletes the reference for `path`, if it exists.
    pub(in crate::catalog) fn remove_reference(
        &mut self,
        table: References,
        path: &EntryPath,
    ) -> Result<(), CatalogError> {
        let sql = format!("DELETE FROM {} WHERE path = ?", table.table());
        let removed = self.run(|connection| connection.prepare_cached(&sql)?.execute([Text(&catalog_path(path))]))?;
        if matches!(table, References::Nested) {
            self.catalog.own -= Counters::of_nested(removed);
        }
        Ok(())
    }

    /// Sets a property.
    pub(in crate::catalog) fn set_property(&mut self, name: &str, value: &str) -> Result<(), CatalogError> {
        let sql = "INSERT OR REPLACE INTO properties (key, value) VALUES (?, ?)";
        self.run(|connection| connection.prepare_cached(sql)?.execute([name, value]))?;
        self.catalog.properties.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Returns the directories directly below the root of this catalog that have at least `least` rows below them.
    pub(in crate::catalog) fn heavy_directories(&self, least: usize) -> Result<Vec<EntryPath>, CatalogError> {
        // Each directory that has children: its parent, and the number of its children.
        let directories: HashMap<PathKey, (PathKey, usize)> = self.run(|connection| {
            let sql = "SELECT md5path_1, md5path_2, ifnull(catalog.parent_1, 0), ifnull(catalog.parent_2, 0), rows \
                 FROM catalog JOIN \
                 (SELECT parent_1, parent_2, count(*) AS rows FROM catalog GROUP BY parent_1, parent_2) AS inside \
                 ON md5path_1 = inside.parent_1 AND md5path_2 = inside.parent_2";
            let read = |row: &Row<'_>| Ok(((row.get(0)?, row.get(1)?), ((row.get(2)?, row.get(3)?), row.get(4)?)));
            connection.prepare(sql)?.query_map([], read)?.collect()
        })?;
        let root = key(self.catalog.root());
        let mut weights: HashMap<PathKey, usize> = HashMap::new();
        for (&directory, &(_, rows)) in &directories {
            let above = |at: &PathKey| directories.get(at).map(|&(above, _)| above).filter(|&above| above != root);
            // Bounded, because keys of a damaged catalog may form a cycle.
            let top = iter::successors(Some(directory), above).take(MAX_DEPTH).last();
            *weights.entry(top.expect("the chain of parents begins with the directory itself")).or_default() += rows;
        }
        let children = self.catalog.list(self.catalog.root())?;
        let paths = children.into_keys().map(|name| self.catalog.root().join(&name));
        Ok(paths.filter(|path| weights.get(&key(path)).is_some_and(|&rows| rows >= least)).collect())
    }

    /// Returns the result of a query for a single integer.
    #[cfg(test)]
    pub(in crate::catalog) fn number(&self, sql: &str) -> i64 {
        self.run(|connection| connection.query_row(sql, [], |row| row.get(0))).unwrap()
    }

    /// Finishes the changes, calls `read` with the bytes of the SQLite file, and returns its result.
    pub(in crate::catalog) fn write<T>(self, read: impl FnOnce(&[u8]) -> T) -> Result<T, CatalogError> {
        let path = self.catalog.root().clone();
        let Self { catalog: Catalog { database, own, below, .. }, free } = self;
        let mut connection =
            database.into_inner().expect("no thread panics while it changes a catalog").into_connection();
        let write = || {
            write_counters(&connection, own, below)?;
            let has_new_numbers = close_gaps(&connection, free, own.entries())?;
            // `VACUUM` fails inside a transaction.
            connection.execute_batch("COMMIT")?;
            let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
            if has_new_numbers || number("PRAGMA freelist_count")? * VACUUM_DIVISOR > number("PRAGMA page_count")? {
                connection.execute_batch("VACUUM")?;
            }
            connection.serialize("main").map(|bytes| read(&bytes))
        };
        write().map_err(|source| CatalogError::Database { path, source })
    }
}

fn delete_chunks((first, second): PathKey, connection: &Connection) -> rusqlite::Result<()> {
    let sql = "DELETE FROM chunks WHERE md5path_1 = ? AND md5path_2 = ?";
    connection.prepare_cached(sql)?.execute([first, second]).map(drop)
}

/// Removes gaps in the rowids of a catalog with `rows` rows. `free` are the rowids of removed rows. Returns whether all rows were
/// renumbered.
fn close_gaps(connection: &Connection, mut free: Vec<i64>, rows: i64) -> rusqlite::Result<bool> {
    let last = || connection.query_row("SELECT max(rowid) FROM catalog", [], |row| row.get::<_, i64>(0));
    free.sort_unstable();
    for number in free {
        let last = last()?;
        if number > last {
            break;
        }
        connection.execute("UPDATE catalog SET rowid = ? WHERE rowid = ?", [number, last])?;
    }
    // The catalog may have had gaps when it was opened, because other programs do not close them.
    // Clients reserve an inode number for each rowid up to the largest one.
    let has_gaps = last()? != rows;
    if has_gaps {
        connection.execute_batch(RENUMBER_ROWS)?;
    }
    Ok(has_gaps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::entry::Nesting;
    use crate::metadata::Metadata;
    use crate::object::{Chunk, Content, ContentObjects, HashAlgorithm, ObjectHash, ObjectKind};

    fn path(text: &str) -> EntryPath {
        EntryPath::normalise(text.as_bytes()).unwrap()
    }

    fn directory() -> CatalogEntry {
        CatalogEntry::of_directory(&Metadata::of_implied_directory(), 0)
    }

    fn root() -> CatalogEntry {
        directory().with_nesting(Nesting::Root)
    }

    fn chunked(offsets: &[u64]) -> CatalogEntry {
        let chunk = |&offset| Chunk { offset, size: 5, hash: ObjectHash::of(b"x") };
        let objects = ContentObjects::Chunks(offsets.iter().map(chunk).collect());
        CatalogEntry::of_file(&Metadata::of_implied_directory(), 10, &Content { raw: false, objects })
    }

    fn bytes(catalog: WritableCatalog) -> Vec<u8> {
        catalog.write(<[u8]>::to_vec).unwrap()
    }

    fn opened(bytes: &[u8]) -> WritableCatalog {
        WritableCatalog::of(Catalog::parse(bytes, &path("a")).unwrap()).unwrap()
    }

    /// Creates a catalog with this number of directories. Their names are long, so that a page has only a few rows.
    fn filled(directories: usize) -> WritableCatalog {
        let mut catalog = WritableCatalog::create(&path("a")).unwrap();
        catalog.put(&path("a"), &root()).unwrap();
        for number in 0..directories {
            catalog.put(&path(&format!("a/{number}-{}", "x".repeat(200))), &directory()).unwrap();
        }
        catalog
    }

    #[test]
    fn first_row_is_always_that_of_the_root() {
        let mut catalog = filled(3);
        let root = CatalogEntry { link_count: 7, ..root() };
        catalog.put(&path("a"), &root).unwrap();
        let mut catalog = opened(&bytes(catalog));
        catalog.put(&path("a"), &root).unwrap();
        catalog.put(&path("a/b"), &directory()).unwrap();
        assert_eq!(catalog.number("SELECT hardlinks FROM catalog ORDER BY rowid LIMIT 1"), 7);
        assert_eq!(catalog.own_counters().entries(), 5);
    }

    #[test]
    fn file_is_vacuumed_when_much_of_it_is_free() {
        let full = bytes(filled(500));
        let mut catalog = opened(&full);
        let rows = catalog.rows_from(&path("a")).unwrap();
        for (path, entry) in rows.iter().skip(11) {
            catalog.remove(path, entry).unwrap();
        }
        let packed = bytes(catalog);
        assert!(packed.len() * 3 < full.len(), "{} of {}", packed.len(), full.len());
        let catalog = opened(&packed);
        assert_eq!(catalog.rows_from(&path("a")).unwrap(), rows[..11]);
        assert_eq!(catalog.own_counters().entries(), 11);
    }

    #[test]
    fn rowids_have_no_gaps() {
        let is_dense = |catalog: &WritableCatalog| {
            let numbers = ["min(rowid)", "max(rowid)", "count(*)"];
            let [first, last, count] = numbers.map(|sql| catalog.number(&format!("SELECT {sql} FROM catalog")));
            (first, last) == (1, count) && count == catalog.own_counters().entries()
        };
        let mut catalog = filled(20);
        for (removed, added) in [(0, 0), (4, 4), (7, 2), (3, 9), (1, 0)] {
            let rows = catalog.rows_from(&path("a")).unwrap();
            for (path, entry) in rows.iter().skip(3).take(removed) {
                catalog.remove(path, entry).unwrap();
            }
            for number in 0..added {
                catalog.put(&path(&format!("a/{removed}-{number}")), &directory()).unwrap();
            }
            let expected = catalog.rows_from(&path("a")).unwrap();
            assert_eq!(expected.len(), rows.len() + added - removed);
            catalog = opened(&bytes(catalog));
            assert!(is_dense(&catalog), "{removed} {added}");
            assert_eq!(catalog.rows_from(&path("a")).unwrap(), expected);
        }
        let with_gaps = "UPDATE catalog SET rowid = rowid + 1000 WHERE rowid > 1";
        catalog.run(|connection| connection.execute_batch(with_gaps)).unwrap();
        let expected = catalog.rows_from(&path("a")).unwrap();
        let catalog = opened(&bytes(catalog));
        assert!(is_dense(&catalog));
        assert_eq!(catalog.rows_from(&path("a")).unwrap(), expected);
    }

    #[test]
    fn names_of_objects_keep_their_algorithm() {
        let mut catalog = filled(0);
        let mut expected = Vec::new();
        for algorithm in HashAlgorithm::ALL {
            let (whole, chunk) = (algorithm.hash(b"whole"), algorithm.hash(b"chunk"));
            let chunks = [Chunk { offset: 0, size: 10, hash: chunk }];
            for (name, objects) in [("w", ContentObjects::Whole(whole)), ("c", ContentObjects::Chunks(chunks.into()))] {
                let file = Content { raw: false, objects };
                let entry = CatalogEntry::of_file(&Metadata::of_implied_directory(), 10, &file);
                catalog.put(&path(&format!("a/{name}-{algorithm}")), &entry).unwrap();
                assert_eq!(entry.file_content(), Ok(file));
            }
            let reference = CatalogReference { hash: whole, size: 5 };
            catalog.put_reference(References::Nested, &path(&format!("a/n-{algorithm}")), reference).unwrap();
            assert_eq!(catalog.nested(&path(&format!("a/n-{algorithm}"))).unwrap(), Some(reference));
            expected.extend([(whole, ObjectKind::File), (chunk, ObjectKind::Chunk)]);
        }
        let rows = catalog.rows_from(&path("a")).unwrap();
        let read = Catalog::parse(&bytes(catalog), &path("a")).unwrap();
        for (path, entry) in rows {
            assert_eq!(read.get(&path).unwrap(), Some(entry));
        }
        let mut objects = read.objects().unwrap();
        objects.sort_unstable();
        expected.sort_unstable();
        assert_eq!(objects, expected);
    }

    #[test]
    fn row_with_an_unknown_algorithm_is_refused() {
        let mut catalog = filled(0);
        catalog.put(&path("a/f"), &chunked(&[0, 5])).unwrap();
        catalog.run(|connection| connection.execute_batch("UPDATE catalog SET flags = flags | 0x300")).unwrap();
        let error = catalog.get(&path("a/f")).unwrap_err();
        assert!(crate::message::causes(&error).contains("hash algorithm"), "{error:?}");
    }

    #[test]
    fn chunks_change_with_their_row() {
        let mut catalog = filled(0);
        let chunks = |catalog: &WritableCatalog| catalog.number("SELECT count(*) FROM chunks");
        catalog.put(&path("a/f"), &chunked(&[0, 5])).unwrap();
        catalog.put(&path("a/f"), &chunked(&[0, 3, 6])).unwrap();
        assert_eq!((catalog.get(&path("a/f")).unwrap(), chunks(&catalog)), (Some(chunked(&[0, 3, 6])), 3));
        catalog.remove(&path("a/f"), &chunked(&[0, 3, 6])).unwrap();
        assert_eq!((catalog.get(&path("a/f")).unwrap(), chunks(&catalog)), (None, 0));
        assert_eq!(catalog.own_counters(), Counters::of_entry(&directory()));
        // `cvmfs_server` can be set to store a chunked file as a whole object as well.
        catalog.put(&path("a/f"), &chunked(&[0, 5])).unwrap();
        let with_whole = "UPDATE catalog SET hash = zeroblob(20) WHERE name = 'f'";
        catalog.run(|connection| connection.execute_batch(with_whole)).unwrap();
        let entry = catalog.get(&path("a/f")).unwrap().unwrap();
        catalog.remove(&path("a/f"), &entry).unwrap();
        assert_eq!((catalog.own_counters(), chunks(&catalog)), (Counters::of_entry(&directory()), 0));
    }

    #[test]
    fn catalog_of_an_older_cvmfs_is_upgraded_to_this_schema_revision() {
        let older = filled(1);
        let form =
            "UPDATE properties SET value = 6 WHERE key = 'schema_revision'; ALTER TABLE catalog DROP COLUMN mtimens";
        older.run(|connection| connection.execute_batch(form)).unwrap();
        let mut catalog = opened(&bytes(older));
        catalog.put(&path("a/b"), &directory()).unwrap();
        let catalog = Catalog::parse(&bytes(catalog), &path("a")).unwrap();
        assert_eq!(catalog.property("schema_revision"), Some("7"));
        assert_eq!(catalog.get(&path("a/b")).unwrap(), Some(directory()));
        assert_eq!(catalog.get(&path("a")).unwrap(), Some(CatalogEntry { mtime_nanoseconds: None, ..root() }));
    }

    #[test]
    fn only_references_at_and_below_a_path_are_found() {
        let mut catalog = filled(0);
        let reference = CatalogReference { hash: ObjectHash::of(b"x"), size: 5 };
        let paths = ["a/b", "a/b/c", "a/b-", "a/b0", "a/bc"].map(path);
        for table in [References::Nested, References::Bound] {
            for at in &paths {
                catalog.put_reference(table, at, reference).unwrap();
                catalog.put_reference(table, at, reference).unwrap();
            }
            let found = catalog.references_from(table, &path("a/b")).unwrap();
            assert_eq!(found, [(path("a/b"), reference), (path("a/b/c"), reference)]);
        }
        assert_eq!(catalog.own_counters().nested(), 5);
        catalog.remove_reference(References::Nested, &path("a/b")).unwrap();
        catalog.remove_reference(References::Bound, &path("a/b/c")).unwrap();
        assert_eq!(catalog.own_counters().nested(), 4);
    }
}
