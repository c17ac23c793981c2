//! What an image says about a file besides its content.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use x509_cert::der::DateTime;

/// A time with nanoseconds, before or after 1970.
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
    /// Writes date and time to the second, as RFC 3339 has it; a time before 1970 or after 9999 as a number.
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

/// Permissions, owner, time and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with set-user-ID, set-group-ID and sticky: `0o7777` at most.
    pub mode: u16,
    /// Numeric owner; names in archives are never looked up.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// When the content changed last. Access and change times are not kept.
    pub mtime: Timestamp,
    /// Extended attributes; `None` when there are none.
    pub xattrs: Option<Arc<Xattrs>>,
}

impl Metadata {
    /// Returns what a directory has that no archive ever named: `root`'s, mode 0755, of 1970.
    pub fn of_implied_directory() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_written_as_rfc_3339_has_it() {
        let text = |seconds| Timestamp { seconds, nanoseconds: 5 }.to_string();
        assert_eq!(text(0), "1970-01-01T00:00:00Z");
        assert_eq!(text(1_795_456_289), "2026-11-23T17:51:29Z");
        assert_eq!(text(-1), "@-1");
        assert_eq!(text(i64::MAX), format!("@{}", i64::MAX));
    }
}
