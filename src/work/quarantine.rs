//! Quarantine of failed images: they are not tried again for some time, which grows with each failure up to a limit.

use std::collections::BTreeMap;

use crate::image::ImageName;
use crate::metadata::Timestamp;
use crate::state::{ImageFailure, StateDatabase, StateError};

/// Pause after the first failure. It doubles with each further failure.
const FIRST_PAUSE_SECONDS: i64 = 60;
/// Maximum pause after a failure.
const MAX_PAUSE_SECONDS: i64 = 6 * 3600;

/// Images that failed in earlier rounds.
pub(super) struct Quarantine<'a> {
    state: &'a StateDatabase,
    failures: BTreeMap<String, ImageFailure>,
}

impl<'a> Quarantine<'a> {
    pub(super) fn open(state: &'a StateDatabase) -> Result<Self, StateError> {
        Ok(Self { state, failures: state.failures()? })
    }

    /// Returns a message with the error of an image and the time of the next attempt; `None` if that time is not later than
    /// `now`.
    pub(super) fn reason(&self, image: &ImageName, now: Timestamp) -> Option<String> {
        let failure = self.failures.get(&image.to_string()).filter(|failure| failure.retry_at > now.seconds)?;
        let retry_at = Timestamp { seconds: failure.retry_at, nanoseconds: 0 };
        Some(format!("failed {} times and is tried again at {retry_at}: {}", failure.failures, failure.error))
    }

    /// Records a failure of an image.
    pub(super) fn record_failure(&self, image: &ImageName, error: &str, now: Timestamp) -> Result<(), StateError> {
        let failures = self.failures.get(&image.to_string()).map_or(0, |failure| failure.failures) + 1;
        let retry_at = now.seconds + pause(failures);
        self.state.set_failure(&image.to_string(), Some(&ImageFailure { failures, retry_at, error: error.to_owned() }))
    }

    /// Removes an image from the quarantine.
    pub(super) fn record_success(&self, image: &ImageName) -> Result<(), StateError> {
        let name = image.to_string();
        if self.failures.contains_key(&name) { self.state.set_failure(&name, None) } else { Ok(()) }
    }
}

fn pause(failures: u32) -> i64 {
    // The shift is limited so that it cannot overflow. The pause has reached its maximum before.
    let doublings = failures.saturating_sub(1).min(20);
    (FIRST_PAUSE_SECONDS << doublings).min(MAX_PAUSE_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observer::Reporter;

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<i64> = [1, 2, 3, 9, 10, 1000].map(pause).to_vec();
        assert_eq!(pauses, [60, 120, 240, 15_360, MAX_PAUSE_SECONDS, MAX_PAUSE_SECONDS]);
    }

    #[test]
    fn image_is_quarantined_until_the_time_of_the_next_attempt() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDatabase::open(&directory.path().join("state.db"), &Reporter::silent()).unwrap();
        let name: ImageName = "h.org/a:1".parse().unwrap();
        let at = |seconds| Timestamp { seconds, nanoseconds: 0 };
        Quarantine::open(&state).unwrap().record_failure(&name, "no such blob", at(1000)).unwrap();
        let quarantine = Quarantine::open(&state).unwrap();
        assert!(quarantine.reason(&name, at(1059)).unwrap().ends_with("no such blob"));
        assert_eq!(quarantine.reason(&name, at(1060)), None);
        quarantine.record_failure(&name, "again", at(1060)).unwrap();
        let quarantine = Quarantine::open(&state).unwrap();
        assert!(quarantine.reason(&name, at(1179)).is_some());
        quarantine.record_success(&name).unwrap();
        assert_eq!(Quarantine::open(&state).unwrap().reason(&name, at(0)), None);
    }
}
