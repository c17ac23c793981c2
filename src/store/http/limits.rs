//! How long and how often the servers of a repository are asked for a file.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::http::TimeLimits;
use crate::message::causes;
use crate::store::StoreError;

/// Number of attempts without a byte for which the time limit of a file is sufficient, with the pauses between them.
const SILENT_ATTEMPTS: u32 = 5;
/// Maximum number of rounds in which all servers are asked for a file.
const ROUNDS: u32 = 4;
/// Maximum pause before the second round.
const MAX_FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Time for which a file that could not be read is not requested again.
// The kernel repeats a failed read at once, and each thread that waited for the same object requests it by itself: without
// this, a program would wait for several times the limit.
const FAILURE_MEMORY: Duration = Duration::from_secs(1);

/// Returns the limits for reading a file within `timeout`.
pub(super) fn time_limits(timeout: Duration) -> TimeLimits {
    let (stall, defaults) = (timeout / SILENT_ATTEMPTS, TimeLimits::default());
    TimeLimits { connect: stall.min(defaults.connect), stall, request: timeout, ..defaults }
}

/// How often a request is sent to all servers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repetition {
    /// Maximum number of rounds.
    pub(super) rounds: u32,
    /// Pause before the second round. The pause doubles with each further round.
    pub(super) first_pause: Duration,
}

impl Repetition {
    /// Returns the repetition for a time limit: the pauses take less than a tenth of it.
    pub(super) fn within(timeout: Duration) -> Self {
        Self { rounds: ROUNDS, first_pause: MAX_FIRST_PAUSE.min(timeout / 80) }
    }

    /// Returns the pause after a round; the number of the first round is 1.
    pub(super) fn pause_after(self, round: u32) -> Duration {
        self.first_pause * 2_u32.pow(round - 1)
    }
}

/// Files that could not be read within the last second, with their errors.
#[derive(Debug, Default)]
pub(super) struct RecentFailures(Mutex<HashMap<(Option<usize>, String), Failure>>);

#[derive(Debug)]
struct Failure {
    time: Instant,
    reason: String,
}

impl RecentFailures {
    /// Adds a file that could not be read. `server` is the only server that was asked; `None` means all servers.
    pub(super) fn add(&self, server: Option<usize>, name: &str, error: &dyn Error) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, failure| failure.time.elapsed() < FAILURE_MEMORY);
        failures.insert((server, name.to_owned()), Failure { time: Instant::now(), reason: causes(error) });
    }

    /// Returns an error if the same request failed within the last second.
    pub(super) fn check(&self, server: Option<usize>, name: &str) -> Result<(), StoreError> {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.get(&(server, name.to_owned())) {
            Some(failure) if failure.time.elapsed() < FAILURE_MEMORY => {
                Err(StoreError::FailedBefore { reason: failure.reason.clone() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_attempts_of_all_rounds_fit_into_the_time_limit() {
        for timeout in [1, 5, 60, 3600].map(Duration::from_secs) {
            let repetition = Repetition::within(timeout);
            let pauses: Duration = (1..repetition.rounds).map(|round| repetition.pause_after(round)).sum();
            // The pauses of a download vary by a quarter.
            let whole = time_limits(timeout).stall * repetition.rounds + pauses * 5 / 4;
            assert!(whole <= timeout, "{timeout:?}: {whole:?}");
        }
    }

    #[test]
    fn failure_is_that_of_one_file_at_the_same_servers() {
        let failures = RecentFailures::default();
        failures.add(Some(1), "a", &StoreError::Status { url: "http://h.org/a".to_owned(), status: 503 });
        let error = failures.check(Some(1), "a").unwrap_err();
        assert!(error.is_obstacle() && error.may_be_temporary() && error.to_string().contains("status 503"));
        assert!(failures.check(None, "a").is_ok() && failures.check(Some(1), "b").is_ok());
    }
}
