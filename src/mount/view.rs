//! The mounted tree and its inode numbers, independent of FUSE.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::content::ReadContentError;
use super::mountable::{MountableTree, SharedContentSource, TreeTotals};
use super::nodes::{FoundNode, Nodes};
use crate::cache::{ByteCache, CacheValue};
use crate::catalog::{CatalogEntry, NoContent};
use crate::observer::Reporter;
use crate::repository::{LocatedDirectory, NamedRow, RepositoryError, Row};

/// Errors from answering a request of the kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    /// The path does not exist, or the inode number is no longer known.
    #[error("no such file or directory")]
    Missing,
    /// The node is not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// A catalog cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Content cannot be read.
    #[error(transparent)]
    Content(#[from] ReadContentError),
    /// The content of the node is not available.
    #[error(transparent)]
    NoContent(#[from] NoContent),
}

/// The entries of a directory at one point in time, sorted by name.
#[derive(Debug)]
pub(super) struct ListedDirectory<P> {
    /// Distinguishes this listing from others of the same directory. Never 0.
    generation: u32,
    pub(super) directory: Arc<LocatedDirectory<P>>,
    pub(super) rows: Vec<NamedRow<P>>,
}

impl<P> ListedDirectory<P> {
    /// Returns the directory offset after the row at this index.
    pub(super) fn offset_after(&self, index: usize) -> u64 {
        // 0 is the start of the list, and 1 and 2 are the positions after `.` and `..`.
        u64::from(self.generation) << 32 | (index as u64 + 3)
    }
}

/// A cached listing.
type Listing<P> = Arc<ListedDirectory<P>>;

impl<P> CacheValue for Listing<P> {
    fn bytes(&self) -> u64 {
        self.rows.len() as u64 * BYTES_PER_ROW
    }
}

/// Approximate size of one listed row in memory, in bytes.
const BYTES_PER_ROW: u64 = 300;

/// Size of the cache of listings, in bytes.
const LISTING_CACHE_SIZE: u64 = 64 << 20;

/// A directory of a tree and everything below it, addressed by inode numbers.
#[derive(Debug)]
pub(super) struct View<S: MountableTree> {
    tree: S,
    content: SharedContentSource,
    pub(super) totals: TreeTotals,
    pub(super) reporter: Reporter,
    nodes: Mutex<Nodes<S::RowsLocation>>,
    change_lock: RwLock<()>,
    generation: AtomicU32,
    /// Listings by inode number and generation. The newest listing of a directory is also stored as generation 0.
    listings: ByteCache<(u64, u32), Listing<S::RowsLocation>>,
}

impl<S: MountableTree> View<S> {
    /// Creates the view of the directory `root`.
    pub(super) fn new(
        tree: S,
        root: Row<S::RowsLocation>,
        content: SharedContentSource,
        totals: TreeTotals,
        reporter: &Reporter,
    ) -> Self {
        let nodes = Mutex::new(Nodes::new(root));
        Self {
            tree,
            content,
            totals,
            reporter: reporter.clone(),
            nodes,
            change_lock: RwLock::default(),
            generation: AtomicU32::new(1),
            listings: ByteCache::new(LISTING_CACHE_SIZE),
        }
    }

    /// Prevents changes of the tree until the returned guard is dropped. A request holds the guard until its reply is sent.
    ///
    /// After a change, the kernel is notified of outdated information. All replies with the old state must have been sent by
    /// then.
    pub(super) fn block_changes(&self) -> RwLockReadGuard<'_, ()> {
        self.change_lock.read().expect("no thread panics while it changes the tree")
    }

    /// Waits until all running requests are answered, and blocks new requests until the returned guard is dropped.
    pub(super) fn block_requests(&self) -> RwLockWriteGuard<'_, ()> {
        self.change_lock.write().expect("no thread panics while it answers")
    }

    /// Returns the nodes that the kernel knows, locked.
    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes<S::RowsLocation>> {
        self.nodes.lock().expect("no thread panics while it holds the nodes")
    }

    /// Looks up a name in a directory. Increments the kernel's lookup count of the node that is found.
    pub(super) fn find(&self, parent: u64, name: &[u8]) -> Result<Option<FoundNode>, AnswerError> {
        loop {
            let directory = {
                let mut nodes = self.nodes();
                if let Some(found) = nodes.known(parent, name) {
                    nodes.count_lookup(found.number);
                    return Ok(Some(found));
                }
                let row = nodes.row(parent).ok_or(AnswerError::Missing)?;
                Arc::clone(row.directory.as_ref().ok_or(AnswerError::NotADirectory)?)
            };
            let Some(row) = self.tree.row_in(&directory, name)? else { return Ok(None) };
            let mut nodes = self.nodes();
            if let Some(found) = nodes.add(parent, &directory, &name.into(), &row) {
                nodes.count_lookup(found.number);
                return Ok(Some(found));
            }
        }
    }

    /// Returns the row of an inode number.
    pub(super) fn entry(&self, number: u64) -> Result<Arc<CatalogEntry>, AnswerError> {
        Ok(Arc::clone(&self.nodes().row(number).ok_or(AnswerError::Missing)?.entry))
    }

    /// Returns the newest listing of a directory, and the index of the first row after `offset`.
    ///
    /// Rows are sorted by name. Therefore a list continues at the correct row even if the directory has changed since its
    /// first part was read.
    pub(super) fn listing(&self, number: u64, offset: u64) -> Result<(Listing<S::RowsLocation>, usize), AnswerError> {
        let directory = {
            let nodes = self.nodes();
            Arc::clone(
                nodes.row(number).ok_or(AnswerError::Missing)?.directory.as_ref().ok_or(AnswerError::NotADirectory)?,
            )
        };
        let (generation, passed) = ((offset >> 32) as u32, (offset as u32).saturating_sub(2) as usize);
        let newest = self.newest_listing(number, &directory)?;
        if generation == 0 || generation == newest.generation {
            return Ok((newest, passed));
        }
        let begun = self.listings.peek(&(number, generation));
        let last = begun.as_ref().and_then(|begun| begun.rows.get(passed.checked_sub(1)?));
        let next = last.map_or(passed, |last| newest.rows.partition_point(|row| row.name <= last.name));
        Ok((newest, next))
    }

    fn newest_listing(
        &self,
        number: u64,
        directory: &Arc<LocatedDirectory<S::RowsLocation>>,
    ) -> Result<Listing<S::RowsLocation>, AnswerError> {
        let list = || -> Result<Listing<S::RowsLocation>, AnswerError> {
            let rows = self.tree.rows(directory)?.into_iter().filter(|row| !row.row.entry.is_hidden()).collect();
            let generation = self.generation.fetch_add(1, Ordering::Relaxed).max(1);
            let listing = Arc::new(ListedDirectory { generation, directory: Arc::clone(directory), rows });
            self.listings.insert((number, generation), Arc::clone(&listing));
            Ok(listing)
        };
        let newest = self.listings.get(&(number, 0), list)?;
        if Arc::ptr_eq(&newest.directory, directory) {
            return Ok(newest);
        }
        self.listings.remove(&(number, 0));
        self.listings.get(&(number, 0), list)
    }

    /// Reads up to `length` bytes of a file.
    pub(super) fn read_content(&self, number: u64, offset: u64, length: u32) -> Result<Vec<u8>, AnswerError> {
        let entry = self.entry(number)?;
        let content = entry.file_content()?;
        Ok(self.content.read(&content, entry.size.cast_unsigned(), offset, length as usize)?)
    }
}
