//! How much an object may unpack to.

/// How many bytes an object may unpack to: a few MB may hold gigabytes of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeLimit {
    bytes: u64,
    /// How many bytes it probably has. Where nothing states that, the limit also depends on the stored bytes.
    stated: Option<u64>,
    /// Whether a size that the stored bytes cannot unpack to is no statement at all.
    is_of_database: bool,
}

/// Maximum unpacked size of a database, even if more is stated. CVMFS itself warns of catalogs from 1 GiB on.
const MAX_DATABASE_SIZE: u64 = 4 << 30;

/// Bytes that any database may unpack to.
const UNSTATED_SIZE_BASE: u64 = 64 << 20;

/// Bytes that a database may unpack to for each stored one, where nothing states its size. Real ones reach 5: most of a row are
/// hashes.
const UNSTATED_SIZE_RATIO: u64 = 32;

/// Bytes that zlib makes of a stored one at most.
const MAX_ZLIB_RATIO: u64 = 1032;

/// Bytes that a zlib stream may have beyond its content, and beyond a part in 256 of it.
const SLACK: u64 = 64 << 10;

impl SizeLimit {
    /// Returns the limit for content of at most `bytes` bytes.
    pub const fn of(bytes: u64) -> Self {
        Self { bytes, stated: Some(bytes), is_of_database: false }
    }

    /// Returns the limit for a database whose size a manifest or another catalog states; old ones do not.
    pub fn of_database(stated: Option<u64>) -> Self {
        match stated.filter(|&size| size > 0) {
            Some(size) => Self { bytes: size.min(MAX_DATABASE_SIZE), stated: Some(size), is_of_database: true },
            None => Self { bytes: MAX_DATABASE_SIZE, stated: None, is_of_database: true },
        }
    }

    /// Returns the limit for what may have so many bytes even where less is stated.
    pub fn at_least(self, bytes: u64) -> Self {
        Self { bytes: self.bytes.max(bytes), ..self }
    }

    /// Returns how many bytes the object probably unpacks to.
    pub(super) fn stated(self) -> Option<u64> {
        self.stated
    }

    /// Returns how many stored bytes are read at most.
    pub fn stored(self) -> u64 {
        self.bytes.saturating_add(self.bytes / 256).saturating_add(SLACK)
    }

    /// Returns the maximum unpacked size of an object, given the bytes that it has as stored.
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
    fn stated_size_is_the_limit_and_without_one_the_stored_bytes_say_it() {
        let (stated, unknown) = (SizeLimit::of_database(Some(5000)), SizeLimit::of_database(None));
        assert_eq!((stated.unpacked(10), stated.unpacked(1 << 40)), (5000, 5000));
        assert_eq!(SizeLimit::of_database(Some(0)), unknown);
        assert_eq!((stated.at_least(7000).unpacked(10), stated.at_least(7).unpacked(10)), (7000, 5000));
        assert_eq!(unknown.unpacked(6_800_000), (64 << 20) + 32 * 6_800_000);
        assert_eq!(unknown.unpacked(u64::MAX), MAX_DATABASE_SIZE);
        assert!(stated.stored() > 5000 && stated.stored() < 100_000);
    }

    #[test]
    fn size_that_the_stored_bytes_cannot_unpack_to_is_no_statement() {
        let unpacked = |stated, stored| SizeLimit::of_database(Some(stated)).unpacked(stored);
        let most = 1032 * 500_000 + SLACK;
        assert_eq!(unpacked(most, 500_000), most);
        for lie in [most + 1, u64::MAX >> 1, u64::MAX] {
            assert_eq!(unpacked(lie, 500_000), (64 << 20) + 32 * 500_000);
        }
        assert_eq!(SizeLimit::of(1 << 30).unpacked(1), 1 << 30, "of what is no database a limit is no statement");
    }
}
