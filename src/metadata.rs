//! Metadata of files and directories in an image.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use x509_cert::der::DateTime;

/// A time with nanoseconds; may be before 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00:00 UTC, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Returns the current time.
    pub fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since_1970.as_secs().cast_signed(), nanoseconds: since_1970.subsec_nanos() }
    }
}

impl fmt::Display for Timestamp {
    /// Writes date and time in seconds in the format of RFC 3339; a time before 1970 or after 9999 as `@` and a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = u64::try_from(self.seconds).ok();
        match seconds.and_then(|seconds| DateTime::from_unix_duration(Duration::from_secs(seconds)).ok()) {
            Some(date) => write!(f, "{date}"),
            None => write!(f, "@{}", self.seconds),
        }
    }
}

/// Extended attributes, by their full names (`security.capability`).
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Permissions, owner, modification time and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with set-user-ID, set-group-ID and sticky bit; at most `0o7777`.
    pub mode: u16,
    /// Numeric user ID. User names in archives are ignored.
    pub uid: u32,
    /// Numeric group ID. Group names in archives are ignored.
    pub gid: u32,
    /// Time of the last change of the content. Access and change times are not kept.
    pub mtime: Timestamp,
    /// Extended attributes; `None` instead of an empty map.
    pub xattrs: Option<Arc<Xattrs>>,
}

impl Metadata {
    /// Returns the metadata of a directory that no archive names: owner root, mode 0755, time 0 (1970).
    pub fn of_implied_directory() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_written_in_the_format_of_rfc_3339() {
        let text = |seconds| Timestamp { seconds, nanoseconds: 5 }.to_string();
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_795_456_289), "2026-11-23T17:51:29Z");
        assert_eq!(text(-1), "@-1");
        assert_eq!(text(i64::MAX), format!("@{}", i64::MAX));
    }
}
