//! What is mounted, as far as it has nothing to do with FUSE.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::content::ShowError;
use super::nodes::{Found, Nodes};
use super::shown::{AnyContent, Extent, Shown};
use crate::cache::{ByteCache, CacheValue};
use crate::catalog::CatalogEntry;
use crate::repository::{NamedRow, PlacedDirectory, RepositoryError, Row};

/// Why the kernel's question cannot be answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    /// Nothing is there, or it is no longer known.
    #[error("nothing is there")]
    Nothing,
    /// It is no directory.
    #[error("it is no directory")]
    NoDirectory,
    /// A catalog cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Content cannot be read.
    #[error(transparent)]
    Content(#[from] ShowError),
    /// What the catalog refers to is not ours to read.
    #[error("its content is outside of the repository, or its objects are not named by SHA-1")]
    Foreign,
}

/// A directory as it was listed, by name.
#[derive(Debug)]
pub(super) struct ListedDirectory<P> {
    /// Tells it from other lists of the same directory; never 0.
    generation: u32,
    pub(super) directory: Arc<PlacedDirectory<P>>,
    pub(super) rows: Vec<NamedRow<P>>,
}

impl<P> ListedDirectory<P> {
    /// Returns what stands for having seen the list up to the row of that index.
    pub(super) fn offset_behind(&self, index: usize) -> u64 {
        u64::from(self.generation) << 32 | (index as u64 + 3)
    }
}

/// What is kept of it.
type Listing<P> = Arc<ListedDirectory<P>>;

impl<P> CacheValue for Listing<P> {
    fn bytes(&self) -> u64 {
        self.rows.len() as u64 * LISTED_BYTES
    }
}

/// What one listed row takes in memory, more or less.
const LISTED_BYTES: u64 = 300;

/// Bytes of listings that are kept.
const LISTING_CACHE: u64 = 64 << 20;

/// What lies below one directory of a tree, by the numbers that the kernel knows.
#[derive(Debug)]
pub(super) struct View<S: Shown> {
    shown: S,
    content: AnyContent,
    pub(super) extent: Extent,
    nodes: Mutex<Nodes<S::Place>>,
    steady: RwLock<()>,
    generation: AtomicU32,
    /// By number and generation; that of generation 0 is the newest.
    listings: ByteCache<(u64, u32), Listing<S::Place>>,
}

impl<S: Shown> View<S> {
    /// Makes the view of what lies below `root`.
    pub(super) fn new(shown: S, root: Row<S::Place>, content: AnyContent, extent: Extent) -> Self {
        let nodes = Mutex::new(Nodes::new(root));
        Self {
            shown,
            content,
            extent,
            nodes,
            steady: RwLock::default(),
            generation: AtomicU32::new(1),
            listings: ByteCache::new(LISTING_CACHE),
        }
    }

    /// Keeps what is shown from changing until what was read of it was answered.
    ///
    /// The kernel is told what a change makes outdated. Answers with what was true before have to be out by then.
    pub(super) fn steady(&self) -> RwLockReadGuard<'_, ()> {
        self.steady.read().expect("no thread panics while it changes what is shown")
    }

    /// Waits until every answer is out, and keeps new ones back while that changes.
    pub(super) fn changing(&self) -> RwLockWriteGuard<'_, ()> {
        self.steady.write().expect("no thread panics while it answers")
    }

    /// Returns what the kernel knows.
    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes<S::Place>> {
        self.nodes.lock().expect("no thread panics while it holds the nodes")
    }

    /// Looks a name up in a directory, and counts that the kernel is told its number.
    pub(super) fn find(&self, parent: u64, name: &[u8]) -> Result<Option<Found>, AnswerError> {
        loop {
            let directory = {
                let mut nodes = self.nodes();
                if let Some(found) = nodes.known(parent, name) {
                    nodes.count_lookup(found.number);
                    return Ok(Some(found));
                }
                let row = nodes.row(parent).ok_or(AnswerError::Nothing)?;
                Arc::clone(row.directory.as_ref().ok_or(AnswerError::NoDirectory)?)
            };
            let Some(row) = self.shown.row_in(&directory, name)? else { return Ok(None) };
            let mut nodes = self.nodes();
            if let Some(found) = nodes.add(parent, &directory, &name.into(), &row) {
                nodes.count_lookup(found.number);
                return Ok(Some(found));
            }
        }
    }

    /// Returns the row of a number.
    pub(super) fn entry(&self, number: u64) -> Result<Arc<CatalogEntry>, AnswerError> {
        Ok(Arc::clone(&self.nodes().row(number).ok_or(AnswerError::Nothing)?.entry))
    }

    /// Lists a directory, and returns the index of the first row behind `offset`.
    ///
    /// Rows are sorted by name, so a list that was begun goes on in the right place if the directory changed meanwhile.
    pub(super) fn listing(&self, number: u64, offset: u64) -> Result<(Listing<S::Place>, usize), AnswerError> {
        let directory = {
            let nodes = self.nodes();
            Arc::clone(
                nodes.row(number).ok_or(AnswerError::Nothing)?.directory.as_ref().ok_or(AnswerError::NoDirectory)?,
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
        directory: &Arc<PlacedDirectory<S::Place>>,
    ) -> Result<Listing<S::Place>, AnswerError> {
        let list = || -> Result<Listing<S::Place>, AnswerError> {
            let rows = self.shown.rows(directory)?.into_iter().filter(|row| !row.row.entry.is_hidden()).collect();
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
        let content = entry.file_content().ok_or(AnswerError::Foreign)?;
        Ok(self.content.read(&content, entry.size.cast_unsigned(), offset, length as usize)?)
    }
}
