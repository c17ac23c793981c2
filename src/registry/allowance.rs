//! How much time one request may take, and how long it waits for a registry that asks to wait.
//!
//! Both are counted apart: a registry that asks to wait does not use up the time for its answers.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::http::{HostLimits, ResponseDeadline};

/// The time of one request, with all of its attempts.
pub(super) struct Allowance {
    /// Until when a registry that asks to wait is waited for.
    pub(super) park_deadline: Instant,
    /// How long that is from the start.
    pub(super) patience: Duration,
    /// The time for answers; none for what may be large.
    time: Option<ResponseTime>,
}

struct ResponseTime {
    whole: Duration,
    /// The most that one attempt may take.
    longest: Duration,
    left: Cell<Duration>,
    /// When the attempt under way began.
    begun: Cell<Option<Instant>>,
}

impl Allowance {
    /// Returns that of a request whose answer may be large. `now` is by the clock that waiting goes by.
    pub(super) fn large(now: Instant, patience: Duration) -> Self {
        Self { park_deadline: now + patience, patience, time: None }
    }

    /// Returns that of a request whose answer is small, and has to be there in `whole`.
    ///
    /// One attempt may take half of it: an answer that was lost on its way should not use up the time for another.
    pub(super) fn small(now: Instant, patience: Duration, whole: Duration, limits: HostLimits) -> Self {
        let longest = limits.stall.min(whole / 2);
        let time = ResponseTime { whole, longest, left: Cell::new(whole), begun: Cell::default() };
        Self { park_deadline: now + patience, patience, time: Some(time) }
    }

    /// Begins to ask; returns when all of the answer has to be there.
    pub(super) fn begin(&self) -> Option<ResponseDeadline> {
        self.end();
        let time = self.time.as_ref()?;
        let (now, limit) = (Instant::now(), time.longest.min(time.left.get()));
        time.begun.set(Some(now));
        Some(ResponseDeadline { until: now + limit, limit })
    }

    /// Notes that the attempt under way is over, if there is one.
    pub(super) fn end(&self) {
        let Some(time) = &self.time else { return };
        if let Some(begun) = time.begun.take() {
            time.left.set(time.left.get().saturating_sub(begun.elapsed()));
        }
    }

    /// Returns how long the request may take in all, if it has taken that long.
    pub(super) fn used_up(&self) -> Option<Duration> {
        let time = self.time.as_ref()?;
        time.left.get().is_zero().then_some(time.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HostLimits =
        HostLimits { request: Duration::from_secs(60), stall: Duration::from_secs(40), minimum_rate: 0 };

    #[test]
    fn attempts_share_the_time_of_their_request_and_one_takes_half_of_it_at_most() {
        let now = Instant::now();
        let allowance = Allowance::small(now, Duration::ZERO, LIMITS.request, LIMITS);
        assert_eq!(allowance.begin().unwrap().limit, Duration::from_secs(30));
        let (time, second) = (allowance.time.as_ref().unwrap(), Duration::from_secs(1));
        time.begun.set(now.checked_sub(50 * second));
        let left = allowance.begin().unwrap().limit;
        assert!(left <= 10 * second && left > 9 * second, "{left:?}");
        assert_eq!(allowance.used_up(), None);
        time.begun.set(now.checked_sub(20 * second));
        allowance.end();
        assert_eq!(allowance.used_up(), Some(LIMITS.request));
    }

    #[test]
    fn attempt_is_given_up_when_the_registry_is_silent_for_too_long() {
        let allowance = Allowance::small(Instant::now(), Duration::ZERO, Duration::from_secs(600), LIMITS);
        assert_eq!(allowance.begin().unwrap().limit, LIMITS.stall);
        assert!(Allowance::large(Instant::now(), Duration::ZERO).begin().is_none());
    }
}
