//! Limits on the unpacked size of objects.

/// Limit on the unpacked size of an object. Without a limit, a few MB of zlib may unpack to gigabytes of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimit {
    /// Maximum unpacked size in bytes.
    bytes: u64,
    /// Probable unpacked size in bytes. If it is unknown, the limit also depends on the size of the stored bytes.
    stated: Option<u64>,
    /// Whether to ignore `stated` if the stored bytes are too few to unpack to that size.
    is_of_database: bool,
}

/// Maximum unpacked size of a database in bytes, even if a larger size is stated. CVMFS itself warns of catalogs above 1 GiB.
const MAX_DATABASE_SIZE: u64 = 4 << 30;

/// Unpacked size in bytes that is allowed for every database of unknown size.
const UNSTATED_SIZE_BASE: u64 = 64 << 20;

/// Unpacked bytes that are allowed in addition for each stored byte of a database of unknown size. Real databases reach 5,
/// because most of a row are hashes.
const UNSTATED_SIZE_RATIO: u64 = 32;

/// Maximum ratio of unpacked to stored bytes that zlib can reach.
const MAX_ZLIB_RATIO: u64 = 1032;

/// Maximum excess of a zlib stream over its content in bytes, in addition to 1/256 of the content.
const SLACK: u64 = 64 << 10;

impl SizeLimit {
    /// Returns the limit for content of at most `bytes` bytes.
    pub const fn of(bytes: u64) -> Self {
        Self { bytes, stated: Some(bytes), is_of_database: false }
    }

    /// Returns the limit for a database. `stated` is the size that the manifest or another catalog states; old ones state no
    /// size.
    pub fn of_database(stated: Option<u64>) -> Self {
        match stated.filter(|&size| size > 0) {
            Some(size) => Self { bytes: size.min(MAX_DATABASE_SIZE), stated: Some(size), is_of_database: true },
            None => Self { bytes: MAX_DATABASE_SIZE, stated: None, is_of_database: true },
        }
    }

    /// Returns a limit of at least `bytes` bytes.
    pub fn at_least(self, bytes: u64) -> Self {
        Self { bytes: self.bytes.max(bytes), ..self }
    }

    /// Returns the probable unpacked size in bytes.
    pub(super) fn stated(self) -> Option<u64> {
        self.stated
    }

    /// Returns the maximum size of the stored bytes.
    pub fn stored(self) -> u64 {
        self.bytes.saturating_add(self.bytes / 256).saturating_add(SLACK)
    }

    /// Returns the maximum unpacked size of an object of `stored` bytes.
    pub fn unpacked(self, stored: u64) -> u64 {
        let is_possible =
            |&size: &u64| !self.is_of_database || size <= stored.saturating_mul(MAX_ZLIB_RATIO).saturating_add(SLACK);
        match self.stated.filter(is_possible) {
            Some(_) => self.bytes,
            None => self.bytes.min(stored.saturating_mul(UNSTATED_SIZE_RATIO).saturating_add(UNSTATED_SIZE_BASE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_the_stated_size_or_depends_on_the_stored_bytes() {
        let (stated, unknown) = (SizeLimit::of_database(Some(5000)), SizeLimit::of_database(None));
        assert_eq!((stated.unpacked(10), stated.unpacked(1 << 40)), (5000, 5000));
        assert_eq!(SizeLimit::of_database(Some(0)), unknown);
        assert_eq!((stated.at_least(7000).unpacked(10), stated.at_least(7).unpacked(10)), (7000, 5000));
        assert_eq!(unknown.unpacked(6_800_000), (64 << 20) + 32 * 6_800_000);
        assert_eq!(unknown.unpacked(u64::MAX), MAX_DATABASE_SIZE);
        assert!(stated.stored() > 5000 && stated.stored() < 100_000);
    }

    #[test]
    fn impossible_stated_size_is_ignored() {
        let unpacked = |stated, stored| SizeLimit::of_database(Some(stated)).unpacked(stored);
        let largest = 1032 * 500_000 + SLACK;
        assert_eq!(unpacked(largest, 500_000), largest);
        for impossible in [largest + 1, u64::MAX >> 1, u64::MAX] {
            assert_eq!(unpacked(impossible, 500_000), (64 << 20) + 32 * 500_000);
        }
        assert_eq!(SizeLimit::of(1 << 30).unpacked(1), 1 << 30, "the limit of other objects is not a stated size");
    }
}
