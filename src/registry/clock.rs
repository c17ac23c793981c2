//! Time and randomness, which tests replace.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::cancel::{Cancellation, Cancelled};

/// Source of time and randomness for waiting.
pub(super) trait Clock: fmt::Debug + Send + Sync {
    /// Returns the monotonic time.
    fn now(&self) -> Instant;

    /// Returns the wall-clock time, for comparison with dates in headers.
    fn time_of_day(&self) -> SystemTime;

    /// Blocks the thread for `length`, or until the operation is cancelled.
    fn sleep(&self, length: Duration);

    /// Returns the token that cancels the operation.
    fn cancellation(&self) -> Cancellation {
        Cancellation::default()
    }

    /// Fails if the operation is cancelled.
    fn check(&self) -> Result<(), Cancelled> {
        self.cancellation().check()
    }

    /// Returns a random duration between 0.75 and 1.25 times `length`, so that clients do not repeat their requests at the same time.
    fn jittered(&self, length: Duration) -> Duration;
}

/// The clock of the operating system.
#[derive(Debug, Default)]
pub(super) struct SystemClock {
    pub(super) cancellation: Cancellation,
}

/// Maximum time from a cancellation to the end of a sleep.
const CANCELLATION_DELAY: Duration = Duration::from_millis(50);

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn time_of_day(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, length: Duration) {
        let end = Instant::now() + length;
        while !self.cancellation.is_cancelled()
            && let Some(left) = end.checked_duration_since(Instant::now())
        {
            // A cancellation cannot wake a thread from `sleep`. Therefore a long sleep consists of short ones.
            thread::sleep(left.min(CANCELLATION_DELAY));
        }
    }

    fn cancellation(&self) -> Cancellation {
        self.cancellation.clone()
    }

    fn jittered(&self, length: Duration) -> Duration {
        let chance = getrandom::u32().unwrap_or(u32::MAX / 2);
        length.mul_f64(0.75 + 0.5 * f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A clock that advances only when a caller sleeps.
    #[derive(Debug)]
    pub(in super::super) struct ManualClock(Instant, Mutex<Duration>);

    impl Default for ManualClock {
        fn default() -> Self {
            Self(Instant::now(), Mutex::default())
        }
    }

    impl ManualClock {
        /// Returns the time that callers have slept in total.
        pub(in super::super) fn passed(&self) -> Duration {
            *self.1.lock().unwrap()
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Instant {
            self.0 + self.passed()
        }

        fn time_of_day(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + self.passed()
        }

        fn sleep(&self, length: Duration) {
            *self.1.lock().unwrap() += length;
        }

        fn jittered(&self, length: Duration) -> Duration {
            length
        }
    }

    #[test]
    fn jitter_is_a_quarter_at_most() {
        for _ in 0..100 {
            let length = SystemClock::default().jittered(Duration::from_secs(4));
            assert!((Duration::from_secs(3)..=Duration::from_secs(5)).contains(&length), "{length:?}");
        }
    }
}
