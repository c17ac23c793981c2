//! The database of what strata remembers between runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::entry::CatalogReference;
use crate::object::ObjectHash;

/// The database of what was done before cannot be used; it may be deleted while no strata runs.
#[derive(Debug, thiserror::Error)]
#[error("cannot use '{}' (it may be deleted at no loss but time)", path.display())]
pub struct StateError {
    path: PathBuf,
    source: rusqlite::Error,
}

/// What names a piece of content: its BLAKE3 hash, size, whether it is a chunk, and the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentKey {
    /// BLAKE3 hash of the plain bytes.
    pub blake3: [u8; 32],
    /// Plain bytes.
    pub size: u64,
    /// Whether the object is a chunk.
    pub is_chunk: bool,
    /// The encoder, with version and level.
    pub encoder: u8,
}

/// A tree whose catalogs are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTreeNote {
    /// Its root catalog.
    pub catalog: CatalogReference,
    /// What its catalogs do not say, in JSON.
    pub facts: String,
}

/// An image that failed, and is not tried again for some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFailure {
    /// How often it has failed since it last succeeded.
    pub failures: u32,
    /// When it is tried again, in seconds since 1970.
    pub retry_at: i64,
    /// Why it failed the last time.
    pub error: String,
}

/// `state/state.db`, shared by all runs on one repository.
#[derive(Debug)]
pub struct StateDatabase {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// Whether nothing new is remembered.
    is_fixed: bool,
}

/// Memory for pages: content is looked up all over its table.
const CACHE_KIB: i32 = 16 << 10;

impl StateDatabase {
    /// Opens the database, or creates it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let open = || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(Duration::from_secs(60))?;
            // A lost entry costs time, not truth: nothing here is believed without a look at the store.
            connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;")?;
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            connection.execute_batch(include_str!("../../catalog-schema/state.sql"))?;
            Ok(connection)
        };
        let connection = open().map_err(|source| StateError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection), is_fixed: false })
    }

    /// Opens the database, if there is one, to look things up in it. What is to be remembered is forgotten.
    pub fn open_fixed(path: &Path) -> Result<Self, StateError> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let is_there = path.exists();
            let connection =
                if is_there { Connection::open_with_flags(path, flags)? } else { Connection::open_in_memory()? };
            connection.busy_timeout(Duration::from_secs(60))?;
            if !is_there {
                connection.execute_batch(include_str!("../../catalog-schema/state.sql"))?;
            }
            Ok(connection)
        };
        let connection = open().map_err(|source| StateError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection), is_fixed: true })
    }

    /// Returns the object that each piece of content went to before.
    pub fn objects(&self, keys: &[ContentKey]) -> Result<Vec<Option<ObjectHash>>, StateError> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            let mut select = transaction
                .prepare_cached("SELECT object FROM content WHERE key = ? AND size = ? AND kind = ? AND encoder = ?")?;
            let mut object = |key: &ContentKey| {
                let key = params![key.blake3, key.size, key.is_chunk, key.encoder];
                select.query_row(key, |row| row.get::<_, [u8; 20]>(0)).optional()
            };
            keys.iter().map(|key| Ok(object(key)?.map(ObjectHash::from))).collect()
        })
    }

    /// Tells whether no content is known at all.
    pub fn is_empty(&self) -> Result<bool, StateError> {
        self.with(|connection| connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM content)", [], |row| row.get(0)))
    }

    /// Remembers where pieces of content went.
    pub fn add_objects(&self, objects: &[(ContentKey, ObjectHash)]) -> Result<(), StateError> {
        if self.is_fixed {
            return Ok(());
        }
        self.with(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO content (key, size, kind, encoder, object) VALUES (?, ?, ?, ?, ?)",
                )?;
                for (key, object) in objects {
                    insert.execute(params![key.blake3, key.size, key.is_chunk, key.encoder, object.as_bytes()])?;
                }
            }
            transaction.commit()
        })
    }

    /// Frees the memory that pages take. They are read again when they are needed.
    pub fn free_memory(&self) -> Result<(), StateError> {
        self.with(|connection| connection.execute_batch("PRAGMA shrink_memory"))
    }

    /// Returns the tree that was stored for `path` with `options`.
    pub fn tree(&self, path: &str, options: &str) -> Result<Option<StoredTreeNote>, StateError> {
        let found = self.with(|connection| {
            connection
                .prepare_cached("SELECT catalog, size, facts FROM tree WHERE path = ? AND options = ?")?
                .query_row([path, options], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))
                .optional()
        })?;
        let note = |(hash, size, facts): (String, u64, String)| {
            let hash = hash.parse().ok()?;
            Some(StoredTreeNote { catalog: CatalogReference { hash, size }, facts })
        };
        Ok(found.and_then(note))
    }

    /// Remembers a stored tree.
    pub fn add_tree(&self, path: &str, options: &str, note: &StoredTreeNote) -> Result<(), StateError> {
        if self.is_fixed {
            return Ok(());
        }
        self.with(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO tree (path, options, catalog, size, facts) VALUES (?, ?, ?, ?, ?)",
                params![path, options, note.catalog.hash.to_string(), note.catalog.size, note.facts],
            )
        })
        .map(drop)
    }

    /// Returns the images that failed the last time, by name.
    pub fn failures(&self) -> Result<BTreeMap<String, ImageFailure>, StateError> {
        self.with(|connection| {
            let mut statement = connection.prepare("SELECT image, failures, retry_at, error FROM failure")?;
            let failure = |row: &Row<'_>| {
                let failure = ImageFailure { failures: row.get(1)?, retry_at: row.get(2)?, error: row.get(3)? };
                Ok((row.get(0)?, failure))
            };
            statement.query_map([], failure)?.collect()
        })
    }

    /// Remembers that an image failed; `None` forgets it.
    pub fn set_failure(&self, image: &str, failure: Option<&ImageFailure>) -> Result<(), StateError> {
        self.with(|connection| match failure {
            Some(ImageFailure { failures, retry_at, error }) => connection.execute(
                "INSERT OR REPLACE INTO failure (image, failures, retry_at, error) VALUES (?, ?, ?, ?)",
                params![image, failures, retry_at, error],
            ),
            None => connection.execute("DELETE FROM failure WHERE image = ?", [image]),
        })
        .map(drop)
    }

    /// Returns the digest that a registry gave for a name when that was found to be what `published` is.
    pub fn seen(&self, image: &str, published: ObjectHash) -> Result<Option<String>, StateError> {
        self.with(|connection| {
            connection
                .prepare_cached("SELECT digest FROM seen WHERE image = ? AND published = ?")?
                .query_row(params![image, published.to_string()], |row| row.get(0))
                .optional()
        })
    }

    /// Remembers that `published` is what a registry has under a name and digest.
    pub fn add_seen(&self, image: &str, published: ObjectHash, digest: &str) -> Result<(), StateError> {
        self.with(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO seen (image, published, digest) VALUES (?, ?, ?)",
                params![image, published.to_string(), digest],
            )
        })
        .map(drop)
    }

    fn with<T>(&self, run: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let mut connection = self.connection.lock().expect("no thread panics while it uses the database");
        run(&mut connection).map_err(|source| StateError { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_trees_are_found_by_all_that_names_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let key = ContentKey { blake3: [7; 32], size: 5, is_chunk: false, encoder: 2 };
        let note = StoredTreeNote {
            catalog: CatalogReference { hash: ObjectHash::of(b"c"), size: 9 },
            facts: "{}".to_owned(),
        };
        let state = StateDatabase::open(&path).unwrap();
        assert!(state.is_empty().unwrap());
        state.add_objects(&[(key, ObjectHash::of(b"o"))]).unwrap();
        state.add_tree("/a", "x", &note).unwrap();
        drop(state);
        let state = StateDatabase::open(&path).unwrap();
        assert!(!state.is_empty().unwrap());
        let keys = [ContentKey { size: 6, ..key }, key, ContentKey { is_chunk: true, ..key }];
        assert_eq!(state.objects(&keys).unwrap(), [None, Some(ObjectHash::of(b"o")), None]);
        assert_eq!(state.tree("/a", "x").unwrap(), Some(note));
        assert_eq!(state.tree("/a", "y").unwrap(), None);
    }

    #[test]
    fn failures_are_remembered_until_they_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let failure = ImageFailure { failures: 2, retry_at: 7, error: "no".to_owned() };
        let state = StateDatabase::open(&path).unwrap();
        state.set_failure("h.org/a:1", Some(&ImageFailure { failures: 1, ..failure.clone() })).unwrap();
        state.set_failure("h.org/a:1", Some(&failure)).unwrap();
        drop(state);
        let state = StateDatabase::open(&path).unwrap();
        assert_eq!(state.failures().unwrap(), [("h.org/a:1".to_owned(), failure)].into());
        state.set_failure("h.org/a:1", None).unwrap();
        assert!(state.failures().unwrap().is_empty());
    }

    #[test]
    fn what_was_seen_holds_for_what_was_published_then() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDatabase::open(&folder.path().join("state.db")).unwrap();
        let (one, other) = (ObjectHash::of(b"1"), ObjectHash::of(b"2"));
        state.add_seen("h.org/a:1", one, "sha256:1").unwrap();
        assert_eq!(state.seen("h.org/a:1", one).unwrap().as_deref(), Some("sha256:1"));
        assert_eq!(state.seen("h.org/a:1", other).unwrap(), None);
        state.add_seen("h.org/a:1", other, "sha256:2").unwrap();
        assert_eq!(state.seen("h.org/a:1", one).unwrap(), None);
    }

    #[test]
    fn a_damaged_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        std::fs::write(&path, [7; 5000]).unwrap();
        let error = StateDatabase::open(&path).unwrap_err();
        assert!(error.to_string().contains("state.db"));
    }
}
