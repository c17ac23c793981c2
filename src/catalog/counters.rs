//! Counters of a catalog: the contents of its table `statistics`.

use std::ops::{AddAssign, SubAssign};

use super::entry::CatalogEntry;
use crate::object::ContentObjects;

/// The twelve counters of one catalog, or their sums over several catalogs.
///
/// The directory of a nested catalog is counted twice: in the parent catalog as the transition point, and in the nested catalog as
/// its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters([i64; 12]);

/// Names of the counters, in the order in which [`Counters`] stores them.
// Clients do not attach a catalog that lacks one of the 24 rows `self_…` and `subtree_…`.
const NAMES: [&str; 12] = [
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
];

impl Counters {
    const REGULAR: usize = 0;
    const SYMLINK: usize = 1;
    const SPECIAL: usize = 2;
    const DIR: usize = 3;
    const NESTED: usize = 4;
    const CHUNKED: usize = 5;
    const CHUNKS: usize = 6;
    const FILE_SIZE: usize = 7;
    const CHUNKED_SIZE: usize = 8;
    const XATTR: usize = 9;
    const EXTERNAL: usize = 10;
    const EXTERNAL_FILE_SIZE: usize = 11;

    /// Returns the counters with their names. The table `statistics` adds the prefix `self_` or `subtree_` to each name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, i64)> {
        NAMES.into_iter().zip(self.0)
    }

    /// Creates the counters from `value`, which returns the value of a counter by name. Fails with the first name that has no
    /// value.
    pub fn from_named(mut value: impl FnMut(&'static str) -> Option<i64>) -> Result<Self, &'static str> {
        let mut counters = Self::default();
        for (number, name) in counters.0.iter_mut().zip(NAMES) {
            *number = value(name).ok_or(name)?;
        }
        Ok(counters)
    }

    /// Returns the number of rows.
    pub fn entries(&self) -> i64 {
        [Self::REGULAR, Self::SYMLINK, Self::SPECIAL, Self::DIR].iter().map(|&index| self.0[index]).sum()
    }

    /// Returns the total size of all regular files in bytes. A file with several hard links is counted once for each link.
    pub fn file_size(&self) -> i64 {
        self.0[Self::FILE_SIZE]
    }

    /// Returns the number of nested catalogs.
    pub fn nested(&self) -> i64 {
        self.0[Self::NESTED]
    }

    /// Returns the counters of a single row.
    pub fn of_entry(entry: &CatalogEntry) -> Self {
        let mut counters = Self::default();
        counters.add_entry(entry);
        counters
    }

    /// Adds one row to the counters.
    pub fn add_entry(&mut self, entry: &CatalogEntry) {
        self.0[Self::XATTR] += i64::from(entry.xattr.is_some());
        if entry.is_directory() {
            self.0[Self::DIR] += 1;
        } else if entry.is_symlink() {
            self.0[Self::SYMLINK] += 1;
        } else if entry.is_special() {
            self.0[Self::SPECIAL] += 1;
        } else {
            self.add_regular(entry);
        }
    }

    fn add_regular(&mut self, entry: &CatalogEntry) {
        self.0[Self::REGULAR] += 1;
        // Each hard link counts again, as in CVMFS: `cvmfs_swissknife check` compares the sums.
        self.0[Self::FILE_SIZE] += entry.size;
        if entry.is_external() {
            self.0[Self::EXTERNAL] += 1;
            self.0[Self::EXTERNAL_FILE_SIZE] += entry.size;
        }
        if entry.is_chunked() {
            let chunks = match &entry.content {
                Some(ContentObjects::Chunks(chunks)) => chunks.len(),
                _ => 0,
            };
            self.0[Self::CHUNKED] += 1;
            self.0[Self::CHUNKED_SIZE] += entry.size;
            self.0[Self::CHUNKS] += i64::try_from(chunks).expect("the number of chunks in memory fits into an i64");
        }
    }

    /// Returns the counters of `nested` nested catalogs without rows.
    pub fn of_nested(nested: usize) -> Self {
        let mut counters = Self::default();
        counters.0[Self::NESTED] += i64::try_from(nested).expect("the number of catalogs in memory fits into an i64");
        counters
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        // Saturating, because the counters of a catalog from another program may have any value.
        self.0.iter_mut().zip(other.0).for_each(|(number, more)| *number = number.saturating_add(more));
    }
}

impl SubAssign for Counters {
    fn sub_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(number, less)| *number = number.saturating_sub(less));
    }
}
