//! Time limits of one request: for the responses, and for waiting while the registry is parked.
//!
//! The two are counted separately, so that pauses do not use up the time for the responses.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::http::{HostLimits, ResponseDeadline};

/// Time limits of one request with all its attempts.
pub(super) struct Allowance {
    /// Latest time until which the request waits for a parked registry.
    pub(super) park_deadline: Instant,
    /// Duration from the start of the request to `park_deadline`.
    pub(super) patience: Duration,
    /// Whether this is a confirming request: a `GET` request after a `HEAD` request failed. It is sent even during a chosen
    /// pause (see [`super::limits`]).
    pub(super) confirms: bool,
    /// Time for the responses; `None` for a response that may be large.
    time: Option<ResponseTime>,
}

struct ResponseTime {
    /// Time limit of all attempts together.
    whole: Duration,
    /// Time limit of one attempt.
    longest: Duration,
    /// Remaining time for all further attempts.
    remaining: Cell<Duration>,
    /// Start of the current attempt.
    begun: Cell<Option<Instant>>,
}

impl Allowance {
    /// Returns the limits of a request whose response may be large. `now` is the time of the [`Clock`](super::clock::Clock).
    pub(super) fn large(now: Instant, patience: Duration) -> Self {
        Self { park_deadline: now + patience, patience, confirms: false, time: None }
    }

    /// Returns the limits of a request with a small response, which must be complete within the time `whole`.
    ///
    /// One attempt may use half of that time, so that a lost response leaves time for a second attempt.
    pub(super) fn small(now: Instant, patience: Duration, whole: Duration, limits: HostLimits) -> Self {
        let longest = limits.stall.min(whole / 2);
        let time = ResponseTime { whole, longest, remaining: Cell::new(whole), begun: Cell::default() };
        Self { park_deadline: now + patience, patience, confirms: false, time: Some(time) }
    }

    /// Starts an attempt. Returns its deadline, or `None` for a response that may be large.
    pub(super) fn begin(&self) -> Option<ResponseDeadline> {
        self.end();
        let time = self.time.as_ref()?;
        // The HTTP client measures its timeout in real time, so the clock that tests replace is not used here.
        let (now, limit) = (Instant::now(), time.longest.min(time.remaining.get()));
        time.begun.set(Some(now));
        Some(ResponseDeadline { until: now + limit, limit })
    }

    /// Ends the current attempt, if any, and subtracts its duration from the remaining time.
    pub(super) fn end(&self) {
        let Some(time) = &self.time else { return };
        if let Some(begun) = time.begun.take() {
            time.remaining.set(time.remaining.get().saturating_sub(begun.elapsed()));
        }
    }

    /// Returns the time limit of the whole request, if it is used up.
    pub(super) fn used_up(&self) -> Option<Duration> {
        let time = self.time.as_ref()?;
        time.remaining.get().is_zero().then_some(time.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HostLimits =
        HostLimits { request: Duration::from_secs(60), stall: Duration::from_secs(40), minimum_rate: 0 };

    #[test]
    fn attempts_share_the_time_limit_of_their_request_and_one_attempt_may_use_half_of_it() {
        let now = Instant::now();
        let allowance = Allowance::small(now, Duration::ZERO, LIMITS.request, LIMITS);
        assert_eq!(allowance.begin().unwrap().limit, Duration::from_secs(30));
        let (time, second) = (allowance.time.as_ref().unwrap(), Duration::from_secs(1));
        time.begun.set(now.checked_sub(50 * second));
        let remaining = allowance.begin().unwrap().limit;
        assert!(remaining <= 10 * second && remaining > 9 * second, "{remaining:?}");
        assert_eq!(allowance.used_up(), None);
        time.begun.set(now.checked_sub(20 * second));
        allowance.end();
        assert_eq!(allowance.used_up(), Some(LIMITS.request));
    }

    #[test]
    fn attempt_ends_after_the_stall_limit() {
        let allowance = Allowance::small(Instant::now(), Duration::ZERO, Duration::from_secs(600), LIMITS);
        assert_eq!(allowance.begin().unwrap().limit, LIMITS.stall);
        assert!(Allowance::large(Instant::now(), Duration::ZERO).begin().is_none());
    }
}
