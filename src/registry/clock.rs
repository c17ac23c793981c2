//! Time and chance, which tests take into their own hands.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Tells the time, waits, and throws dice.
pub(super) trait Clock: fmt::Debug + Send + Sync {
    /// Returns the time that passes evenly.
    fn now(&self) -> Instant;

    /// Returns the time of day, which dates in headers are compared with.
    fn time_of_day(&self) -> SystemTime;

    /// Waits.
    fn sleep(&self, length: Duration);

    /// Returns `length` give or take up to a quarter, so that those who were stopped together do not return together.
    fn jittered(&self, length: Duration) -> Duration;
}

/// The clock of the machine.
#[derive(Debug)]
pub(super) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn time_of_day(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, length: Duration) {
        thread::sleep(length);
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

    /// A clock that stands still but for those who wait.
    #[derive(Debug)]
    pub(in super::super) struct HandClock(Instant, Mutex<Duration>);

    impl Default for HandClock {
        fn default() -> Self {
            Self(Instant::now(), Mutex::default())
        }
    }

    impl HandClock {
        /// Returns how much time has passed.
        pub(in super::super) fn passed(&self) -> Duration {
            *self.1.lock().unwrap()
        }
    }

    impl Clock for HandClock {
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
            let length = SystemClock.jittered(Duration::from_secs(4));
            assert!((Duration::from_secs(3)..=Duration::from_secs(5)).contains(&length), "{length:?}");
        }
    }
}
