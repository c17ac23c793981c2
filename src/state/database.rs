//! The state database.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};

use crate::catalog::{CatalogReference, forbid_execution};
use crate::file::is_absence;
use crate::image::{DiffId, Digest};
use crate::object::{HashAlgorithm, ObjectHash};
use crate::observer::Reporter;

/// Hint for a damaged state database.
const DELETION_HINT: &str = " (while no strata runs, it may be deleted; this only costs time)";

/// Error from using the state database. The administrator may delete a damaged one while no strata runs.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the state database '{}'{}", path.display(), if source.is_damage() { DELETION_HINT } else { "" })]
pub struct StateError {
    path: PathBuf,
    source: StateFault,
}

/// Reason of a [`StateError`].
#[derive(Debug, thiserror::Error)]
enum StateFault {
    /// The operating system refuses an operation. SQLite does not report `errno`, so the operation is repeated here to get its
    /// error.
    #[error("the system refuses to {action} (SQLite: {sqlite})")]
    System { action: &'static str, sqlite: rusqlite::Error, source: io::Error },
    #[error(transparent)]
    Sqlite(rusqlite::Error),
}

impl StateError {
    /// Adds the error of the operating system, if SQLite failed because of one.
    fn new(path: &Path, error: rusqlite::Error, is_read_only: bool) -> Self {
        let system = match error.sqlite_error_code() {
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::DiskFull
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied,
            ) => match is_read_only {
                // A read-only database must not create files in its directory, not even to find the cause of an error.
                true => fs::File::open(path).err().map(|source| ("read it", source)),
                false => try_to_write(path).err().map(|source| ("write to its directory", source)),
            },
            _ => None,
        };
        let source = match system {
            Some((action, source)) => StateFault::System { action, sqlite: error, source },
            None => StateFault::Sqlite(error),
        };
        Self { path: path.to_owned(), source }
    }
}

impl StateFault {
    fn is_damage(&self) -> bool {
        let Self::Sqlite(error) = self else { return false };
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    }
}

/// Maximum number of bytes by which SQLite extends a file at once: the shared memory file grows by 32 KiB.
const STEP: usize = 64 << 10;

/// Extends an unnamed temporary file in the directory of the database beyond the size of its longest file, as SQLite does.
fn try_to_write(path: &Path) -> io::Result<()> {
    let length = |suffix: &str| {
        let mut path = path.as_os_str().to_owned();
        path.push(suffix);
        fs::metadata(path).map_or(0, |found| found.len())
    };
    let longest = ["", "-journal", "-wal", "-shm"].map(length).into_iter().max().unwrap_or(0);
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::tempfile_in(directory)?;
    file.write_all_at(&[0; STEP], longest)
}

/// Key of the content index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentKey {
    /// BLAKE3 hash of the uncompressed bytes.
    pub blake3: [u8; 32],
    /// Size of the uncompressed content in bytes.
    pub size: u64,
    /// Whether the object is a chunk.
    pub is_chunk: bool,
    /// Number of the encoder, including its version and level.
    pub encoder: u8,
    /// The hash algorithm of the object's name.
    pub algorithm: HashAlgorithm,
}

impl ContentKey {
    /// Returns the value of the column `encoder`. Rows of versions that knew only SHA-1 remain valid.
    fn encoder_column(&self) -> u32 {
        u32::from(self.encoder) | u32::from(self.algorithm.number()) << 8
    }
}

/// The object in which some content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownObject {
    /// Hash of the object.
    pub hash: ObjectHash,
    /// Size of the object in the store in bytes. `None` for an entry of an old version of strata.
    length: Option<NonZeroU32>,
}

impl KnownObject {
    /// Describes an object of `length` bytes.
    pub fn new(hash: ObjectHash, length: usize) -> Self {
        Self { hash, length: u32::try_from(length).ok().and_then(NonZeroU32::new) }
    }

    /// Returns the size of the object in the store in bytes. `None` for an entry of an old version of strata.
    pub fn length(&self) -> Option<u64> {
        self.length.map(|length| length.get().into())
    }
}

/// Facts about the blob of a layer that were verified when it was read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedBlob {
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Digest of the tar stream in it.
    pub diff_id: DiffId,
}

/// A tree whose catalogs are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTreeNote {
    /// The tree's root catalog.
    pub catalog: CatalogReference,
    /// The tree's [`FACTS`](crate::catalog::FACTS), as JSON.
    pub facts: String,
}

/// An image that failed, and the time of the next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFailure {
    /// Number of failures since the last success.
    pub failures: u32,
    /// Time of the next attempt in seconds since 1970.
    pub retry_at: i64,
    /// Error message of the last attempt.
    pub error: String,
}

const SCHEMA: &str = include_str!("../../catalog-schema/state.sql");

/// Returns whether the tables have all columns of this version.
fn is_current(connection: &Connection) -> bool {
    connection.prepare("SELECT length, epoch FROM content, whole").is_ok()
}

/// The database `state/state.db`, shared by all processes that use the repository directory.
#[derive(Debug)]
pub struct StateDatabase {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// Whether new entries are discarded.
    is_read_only: bool,
}

/// Size of the page cache in KiB. Keys are hashes, so lookups are spread over the whole table.
const CACHE_KIB: i32 = 16 << 10;

/// Repeats `attempt` while the database is locked. SQLite's own busy timeout does not apply when several processes create the database
/// at the same time.
fn retry_while_locked<T>(mut attempt: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && start.elapsed() < LOCK_TIMEOUT =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// SQLite refuses a path with this number of bytes or more, after links are resolved.
// `MAX_PATHNAME` in SQLite's `os_unix.c`.
const PATH_LIMIT: usize = 512;

fn is_too_long(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(path);
    let resolved = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    resolved.join(path.file_name().unwrap_or_default()).as_os_str().len() >= PATH_LIMIT
}

/// Maximum time to wait for another process that locks the database.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

impl StateDatabase {
    /// Opens the database, or creates it. If its path is too long for SQLite, a temporary database in memory is used instead.
    pub fn open(path: &Path, reporter: &Reporter) -> Result<Self, StateError> {
        let is_too_long = is_too_long(path);
        if is_too_long {
            reporter.warn(format_args!(
                "no state is kept for the next run: the path '{}' is too long for SQLite (maximum {} bytes)",
                path.display(),
                PATH_LIMIT - 1,
            ));
        }
        let open = || {
            let connection = if is_too_long { Connection::open_in_memory()? } else { Connection::open(path)? };
            forbid_execution(&connection)?;
            connection.busy_timeout(Duration::from_secs(60))?;
            // Entries that are lost in a crash only cost time, and every entry is verified against the store before it is used.
            connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;")?;
            connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
            connection.execute_batch(SCHEMA)?;
            if !is_current(&connection) {
                // Another process may have added the column meanwhile.
                let added = connection.execute_batch("ALTER TABLE content ADD COLUMN length INTEGER");
                added.or_else(|error| if is_current(&connection) { Ok(()) } else { Err(error) })?;
            }
            Ok(connection)
        };
        let connection = retry_while_locked(open).map_err(|error| StateError::new(path, error, false))?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection), is_read_only: false })
    }

    /// Opens the database read-only, or an empty one if it does not exist. New entries are discarded.
    pub fn open_read_only(path: &Path) -> Result<Self, StateError> {
        // If the file cannot be inspected, opening it below reports the reason.
        let is_there = !is_too_long(path) && !fs::metadata(path).is_err_and(|error| is_absence(&error));
        let open = || {
            // No mutex of SQLite's own, because the one around the connection is enough.
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            if is_there {
                let connection = Connection::open_with_flags(path, flags)?;
                forbid_execution(&connection)?;
                connection.pragma_update(None, "query_only", true)?;
                connection.busy_timeout(Duration::from_secs(60))?;
                // A file that is not a database is an error. The tables of an earlier version are ignored, because they cannot be
                // upgraded here.
                connection.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |_| Ok(()))?;
                if is_current(&connection) {
                    return Ok(connection);
                }
            }
            let connection = Connection::open_in_memory()?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        };
        let connection = open().map_err(|error| StateError::new(path, error, true))?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection), is_read_only: true })
    }

    /// Looks up the objects of content; the result has one element for each key.
    pub fn objects(&self, keys: &[ContentKey]) -> Result<Vec<Option<KnownObject>>, StateError> {
        self.with(|connection| {
            // One transaction for all keys: otherwise SQLite would lock and unlock the file for each.
            let transaction = connection.transaction()?;
            let mut select = transaction.prepare_cached(
                "SELECT object, length FROM content WHERE key = ? AND size = ? AND kind = ? AND encoder = ?",
            )?;
            let mut find = |key: &ContentKey| {
                let object = |row: &Row<'_>| {
                    let (hash, length): (_, Option<u32>) = (ObjectHash::new(key.algorithm, row.get(0)?), row.get(1)?);
                    Ok(KnownObject { hash, length: length.and_then(NonZeroU32::new) })
                };
                select.query_row(params![key.blake3, key.size, key.is_chunk, key.encoder_column()], object).optional()
            };
            keys.iter().map(&mut find).collect()
        })
    }

    /// Returns whether new entries are discarded.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Returns whether the content index is empty.
    pub fn is_empty(&self) -> Result<bool, StateError> {
        self.with(|connection| connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM content)", [], |row| row.get(0)))
    }

    /// Adds entries to the content index. The name of each object must have the algorithm of its key.
    pub fn add_objects(&self, objects: &[(ContentKey, KnownObject)]) -> Result<(), StateError> {
        if self.is_read_only {
            return Ok(());
        }
        self.with(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO content (key, size, kind, encoder, object, length) VALUES (?, ?, ?, ?, ?, ?)",
                )?;
                for (key, object) in objects {
                    debug_assert_eq!(key.algorithm, object.hash.algorithm());
                    let (hash, length) = (object.hash.as_bytes(), object.length());
                    insert.execute(params![key.blake3, key.size, key.is_chunk, key.encoder_column(), hash, length])?;
                }
            }
            transaction.commit()
        })
    }

    /// Frees the page cache.
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

    /// Records a stored tree.
    pub fn add_tree(&self, path: &str, options: &str, note: &StoredTreeNote) -> Result<(), StateError> {
        if self.is_read_only {
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

    /// Returns the verified facts about a blob, if it was read before.
    pub fn blob(&self, digest: Digest) -> Result<Option<VerifiedBlob>, StateError> {
        let found: Option<(u64, String)> = self.with(|connection| {
            connection
                .prepare_cached("SELECT size, diff_id FROM blob WHERE digest = ?")?
                .query_row([digest.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })?;
        Ok(found.and_then(|(size, diff_id)| Some(VerifiedBlob { digest, size, diff_id: diff_id.parse().ok()? })))
    }

    /// Records verified blobs.
    pub fn add_blobs(&self, blobs: &[VerifiedBlob]) -> Result<(), StateError> {
        if self.is_read_only || blobs.is_empty() {
            return Ok(());
        }
        self.with(|connection| {
            let transaction = connection.transaction()?;
            for blob in blobs {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO blob (digest, size, diff_id) VALUES (?, ?, ?)")?
                    .execute(params![blob.digest.to_string(), blob.size, blob.diff_id.to_string()])?;
            }
            transaction.commit()
        })
    }

    /// Starts a run, and returns its epoch. `marks` is the current state of the directories of objects.
    ///
    /// If this state differs from that at the end of the last run, another program has changed a directory, and a new epoch
    /// begins. Returns `None` if a new epoch cannot be recorded because the database is read-only.
    pub fn begin_epoch(&self, marks: &[u8]) -> Result<Option<i64>, StateError> {
        self.with(|connection| {
            let transaction = connection.transaction_with_behavior(self.behavior())?;
            let last = transaction
                .query_row("SELECT epoch, marks FROM store", [], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))
                })
                .optional()?;
            let epoch = match last {
                Some((epoch, before)) if before == marks => return Ok(Some(epoch)),
                _ if self.is_read_only => return Ok(None),
                last => last.map_or(0, |(epoch, _)| epoch) + 1,
            };
            transaction
                .execute("INSERT OR REPLACE INTO store (id, epoch, marks) VALUES (0, ?, ?)", params![epoch, marks])?;
            transaction.commit()?;
            Ok(Some(epoch))
        })
    }

    /// Ends a run: records `marks`, the state of the directories of objects. `marks` is `None` if another program has changed a
    /// directory during the run; then a new epoch begins.
    pub fn end_epoch(&self, marks: Option<&[u8]>) -> Result<(), StateError> {
        if self.is_read_only {
            return Ok(());
        }
        self.with(|connection| match marks {
            Some(marks) => connection.execute("UPDATE store SET marks = ?", [marks]),
            // No directories have an empty state, so the next run begins a new epoch as well.
            None => connection.execute("UPDATE store SET epoch = epoch + 1, marks = x''", []),
        })
        .map(drop)
    }

    /// Returns whether the database records that all objects of a published tree were in the store in `epoch`. Returns `false` if
    /// `epoch` is not the current epoch.
    pub fn is_whole(&self, path: &str, catalog: ObjectHash, epoch: i64) -> Result<bool, StateError> {
        self.with(|connection| {
            connection
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM whole JOIN store USING (epoch) WHERE path = ? AND catalog = ? AND epoch = ?)",
                )?
                .query_row(params![path, catalog.to_string(), epoch], |row| row.get(0))
        })
    }

    /// Records that all objects of published trees were in the store in `epoch`. A tree is its path and its root catalog.
    pub fn add_whole(&self, trees: &[(String, ObjectHash)], epoch: i64) -> Result<(), StateError> {
        if self.is_read_only || trees.is_empty() {
            return Ok(());
        }
        self.with(|connection| {
            let transaction = connection.transaction()?;
            for (path, catalog) in trees {
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO whole (path, catalog, epoch) VALUES (?, ?, ?)")?
                    .execute(params![path, catalog.to_string(), epoch])?;
            }
            transaction.commit()
        })
    }

    /// Returns the mode of a transaction that may write.
    fn behavior(&self) -> TransactionBehavior {
        // A transaction that reads first and then writes fails at once if another process wrote in between
        // (SQLITE_BUSY_SNAPSHOT), and no timeout helps.
        if self.is_read_only { TransactionBehavior::Deferred } else { TransactionBehavior::Immediate }
    }

    /// Returns the images whose last attempt failed, by name.
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

    /// Records the failure of an image, or deletes the record if `failure` is `None`.
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

    /// Returns the recorded digest at the registry of an image that is equal to the published image. `published` is the object of
    /// the published image manifest; a record for another manifest is ignored.
    pub fn seen(&self, image: &str, published: ObjectHash) -> Result<Option<String>, StateError> {
        self.with(|connection| {
            connection
                .prepare_cached("SELECT digest FROM seen WHERE image = ? AND published = ?")?
                .query_row(params![image, published.to_string()], |row| row.get(0))
                .optional()
        })
    }

    /// Records that the image with this digest at the registry is equal to the published image. `published` is the object of the
    /// published image manifest.
    pub fn add_seen(&self, image: &str, published: ObjectHash, digest: &str) -> Result<(), StateError> {
        self.with(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO seen (image, published, digest) VALUES (?, ?, ?)",
                params![image, published.to_string(), digest],
            )
        })
        .map(drop)
    }

    /// Returns the recorded artifact type of a name that is not an image. The record must have the same `wanted` (digest and
    /// platforms), and must be from this version of strata.
    pub fn artifact(&self, name: &str, wanted: &str) -> Result<Option<String>, StateError> {
        self.with(|connection| {
            connection
                .prepare_cached("SELECT type FROM artifact WHERE name = ? AND wanted = ? AND writer = ?")?
                .query_row(params![name, wanted, env!("CARGO_PKG_VERSION")], |row| row.get(0))
                .optional()
        })
    }

    /// Returns whether a name is recorded as an artifact, for any digest and platforms.
    pub fn had_artifact(&self, name: &str) -> Result<bool, StateError> {
        self.with(|connection| {
            connection.prepare_cached("SELECT 1 FROM artifact WHERE name = ?")?.exists(params![name])
        })
    }

    /// Records that a name is an artifact of this type for `wanted` (digest and platforms).
    pub fn add_artifact(&self, name: &str, wanted: &str, artifact_type: &str) -> Result<(), StateError> {
        self.with(|connection| {
            connection.execute(
                "INSERT OR REPLACE INTO artifact (name, wanted, type, writer) VALUES (?, ?, ?, ?)",
                params![name, wanted, artifact_type, env!("CARGO_PKG_VERSION")],
            )
        })
        .map(drop)
    }

    /// Returns for each of `trees`, the unused trees, the recorded time since which the tree is unused, in seconds since 1970.
    /// Records `now` for a tree without a record. Deletes the records of all other trees, because those trees are in use again.
    pub fn unused_since(&self, trees: &[String], now: i64) -> Result<BTreeMap<String, i64>, StateError> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            let known: BTreeMap<String, i64> = transaction
                .prepare("SELECT path, since FROM unused")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let since = |tree: &String| (tree.clone(), known.get(tree).copied().unwrap_or(now));
            let unused: BTreeMap<String, i64> = trees.iter().map(since).collect();
            for tree in known.keys().filter(|tree| !unused.contains_key(*tree)) {
                transaction.execute("DELETE FROM unused WHERE path = ?", [tree])?;
            }
            for (tree, since) in unused.iter().filter(|(tree, _)| !known.contains_key(*tree)) {
                transaction.execute("INSERT INTO unused (path, since) VALUES (?, ?)", params![tree, since])?;
            }
            transaction.commit()?;
            Ok(unused)
        })
    }

    fn with<T>(&self, run: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StateError> {
        let mut connection = self.connection.lock().expect("no thread panics while it uses the database");
        run(&mut connection).map_err(|error| StateError::new(&self.path, error, self.is_read_only))
    }
}

#[cfg(test)]
mod tests;
