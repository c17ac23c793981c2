//! Requests a blob repeatedly, each time from the byte where the last response ended, until it is complete or cannot be completed.

use std::error::Error;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use super::{DownloadPolicy, OpenedBlob, READ_SIZE, Retryable};
use crate::message::causes;
use crate::observer::Reporter;

/// Pause after an attempt that received some bytes.
const PAUSE_AFTER_PROGRESS: Duration = Duration::from_millis(1);

/// Minimum pause while the registry is parked.
const MIN_PARK_WAIT: Duration = Duration::from_secs(1);

/// Number of consecutive measurements below the minimum rate after which the download fails. After the first one, a new
/// connection is tried, which may be faster.
const MAX_SLOW: u32 = 2;

/// Time, randomness and cancellation. Tests replace them, so that no time passes.
pub(super) trait Runtime: Send {
    /// Waits for `length`, or until the reader of the blob is dropped.
    fn pause(&mut self, length: Duration);

    /// Returns whether the blob still has a reader.
    fn is_wanted(&self) -> bool;

    /// Returns the monotonic time.
    fn now(&self) -> Instant;

    /// Returns a random number between 0 and 1.
    fn chance(&mut self) -> f64;
}

/// The download of a blob failed.
#[derive(Debug, thiserror::Error)]
#[error("the download stopped after {reached} of {size} bytes{}", tried(*.failures))]
pub(super) struct DownloadError {
    /// Number of received bytes.
    reached: u64,
    /// Size of the blob in bytes.
    size: u64,
    /// Number of consecutive attempts without a byte.
    failures: u32,
    /// Error of the last attempt.
    source: Box<dyn Error + Send + Sync>,
}

fn tried(failures: u32) -> String {
    if failures > 1 { format!(", and {failures} attempts in a row failed") } else { String::new() }
}

/// A response that is incomplete, contradicts the request or the manifest, or is too slow.
#[derive(Debug, thiserror::Error)]
enum ResponseError {
    #[error("the response starts at byte {actual}, but byte {asked} was requested")]
    Start { asked: u64, actual: u64 },
    #[error("according to the response, the blob is {actual} bytes long, but the manifest states {size}")]
    Length { actual: u128, size: u64 },
    #[error("the blob is longer than the {size} bytes that the manifest states")]
    TooLong { size: u64 },
    #[error("the connection ended before the response was complete")]
    EndedEarly,
    #[error(
        "only {bytes} bytes arrived in {}: minimum_rate in strata.toml requires {minimum_rate} bytes per second",
        humantime::format_duration(Duration::from_secs(*.seconds))
    )]
    TooSlow { bytes: u64, seconds: u64, minimum_rate: u64 },
    #[error("the download was cancelled")]
    Unwanted,
}

/// Error of one attempt, and whether another attempt makes sense.
struct AttemptFailure {
    cause: Box<dyn Error + Send + Sync>,
    retry: Retry,
}

/// Whether and when another attempt makes sense.
enum Retry {
    Never,
    /// After a pause that grows with each failure.
    WithBackoff,
    /// Not before this time, because the registry is parked.
    At(Instant),
}

/// Measures the rate of a download over all its connections: a connection that is lost repeatedly counts as slow, too. Only time
/// spent waiting for bytes counts.
#[derive(Default)]
struct RateMeter {
    waited: Duration,
    bytes: u64,
    /// Number of consecutive measurements below the minimum rate.
    slow: u32,
}

type Open = Box<dyn FnMut(u64) -> Result<OpenedBlob, AttemptFailure> + Send>;

/// Reads a blob from as many responses as necessary.
pub(super) struct Attempts {
    open: Open,
    body: Option<Box<dyn Read + Send>>,
    size: u64,
    /// Number of bytes that have been returned to the caller.
    reached: u64,
    /// The value of `reached` at the time of the last request.
    reached_before: u64,
    /// Number of consecutive attempts without a byte.
    failures: u32,
    /// Total time of pauses since the last byte because the registry was parked.
    parked: Duration,
    is_at_end: bool,
    rate: RateMeter,
    policy: DownloadPolicy,
    runtime: Box<dyn Runtime>,
    reporter: Reporter,
}

impl Attempts {
    pub(super) fn new<E: Retryable>(
        mut open: impl FnMut(u64) -> Result<OpenedBlob, E> + Send + 'static,
        size: u64,
        policy: DownloadPolicy,
        runtime: Box<dyn Runtime>,
        reporter: &Reporter,
    ) -> Self {
        Self {
            open: Box::new(move |offset| open(offset).map_err(AttemptFailure::of_request)),
            body: None,
            size,
            reached: 0,
            reached_before: 0,
            failures: 0,
            parked: Duration::ZERO,
            is_at_end: false,
            rate: RateMeter::default(),
            policy,
            runtime,
            reporter: reporter.clone(),
        }
    }

    /// Reads some of the next bytes. Returns 0 only at the end. The caller must not call this function again after an error.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, DownloadError> {
        if self.is_at_end || buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let begun = self.runtime.now();
            let result = self.attempt(buffer);
            let waited = self.runtime.now().saturating_duration_since(begun);
            match self.measured(result, waited) {
                Ok(count) => return Ok(count),
                Err(failure) => self.recover(failure)?,
            }
        }
    }

    /// Adds the bytes and the time `waited` of one read to the measurement of the rate. Returns `result`, or an error if the
    /// rate was too low in [`MAX_SLOW`] measurements in a row.
    fn measured(&mut self, result: Result<usize, AttemptFailure>, waited: Duration) -> Result<usize, AttemptFailure> {
        self.rate.waited += waited;
        self.rate.bytes += *result.as_ref().unwrap_or(&0) as u64;
        let DownloadPolicy { minimum_rate, rate_window, .. } = self.policy;
        if self.rate.waited < rate_window {
            return result;
        }
        let (bytes, seconds) = (self.rate.bytes, self.rate.waited.as_secs().max(1));
        (self.rate.waited, self.rate.bytes) = (Duration::ZERO, 0);
        if bytes / seconds >= minimum_rate || self.is_at_end {
            self.rate.slow = 0;
            return result;
        }
        self.rate.slow += 1;
        match result {
            // The received bytes are valid and returned. The next read opens a new connection.
            Ok(count) if self.rate.slow < MAX_SLOW => {
                self.body = None;
                self.note_slow(bytes, seconds);
                Ok(count)
            }
            Err(failure) if self.rate.slow < MAX_SLOW => Err(failure),
            _ => Err(ResponseError::TooSlow { bytes, seconds, minimum_rate }.into()),
        }
    }

    fn note_slow(&self, bytes: u64, seconds: u64) {
        let (reached, size) = (self.reached, self.size);
        self.reporter.info(format_args!(
            "received {reached} of {size} bytes of a blob, the last {bytes} bytes in {seconds}s: trying a new connection"
        ));
    }

    fn attempt(&mut self, buffer: &mut [u8]) -> Result<usize, AttemptFailure> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.open()?,
        };
        let rest = self.size - self.reached;
        if rest == 0 {
            return self.expect_end(&mut body);
        }
        let wanted = buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        let count = read_some(&mut body, &mut buffer[..wanted])?;
        self.reached += count as u64;
        self.body = Some(body);
        Ok(count)
    }

    /// Requests the missing bytes. Skips known bytes if the response starts at the first byte of the blob.
    fn open(&mut self) -> Result<Box<dyn Read + Send>, AttemptFailure> {
        self.reached_before = self.reached;
        // Each attempt starts at the registry: the signed URL that the last response redirected to may have expired.
        let OpenedBlob { start, length, mut body, .. } = (self.open)(self.reached)?;
        if start != self.reached && start != 0 {
            return Err(ResponseError::Start { asked: self.reached, actual: start }.into());
        }
        // Both numbers come from the server, and their sum may exceed 64 bits.
        let whole = length.map(|length| u128::from(start) + u128::from(length));
        if let Some(actual) = whole.filter(|&whole| whole != u128::from(self.size)) {
            return Err(ResponseError::Length { actual, size: self.size }.into());
        }
        self.skip(&mut body, self.reached - start)?;
        Ok(body)
    }

    fn skip(&mut self, body: &mut dyn Read, mut count: u64) -> Result<(), AttemptFailure> {
        if count == 0 {
            return Ok(());
        }
        let mut buffer = vec![0; READ_SIZE.min(usize::try_from(count).unwrap_or(READ_SIZE))];
        let DownloadPolicy { minimum_rate, rate_window, .. } = self.policy;
        let (begun, all) = (self.runtime.now(), count);
        while count > 0 {
            if !self.runtime.is_wanted() {
                return Err(ResponseError::Unwanted.into());
            }
            let wanted = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            let read = read_some(body, &mut buffer[..wanted])? as u64;
            // Skipped bytes count for the rate, because the connection delivered them.
            self.rate.bytes += read;
            count -= read;
            let waited = self.runtime.now().saturating_duration_since(begun);
            let (bytes, seconds) = (all - count, waited.as_secs().max(1));
            if waited >= rate_window && bytes / seconds < minimum_rate {
                return Err(ResponseError::TooSlow { bytes, seconds, minimum_rate }.into());
            }
        }
        Ok(())
    }

    /// Checks that the response ends after the last byte. A connection error at that point is ignored: all bytes have arrived.
    fn expect_end(&mut self, body: &mut dyn Read) -> Result<usize, AttemptFailure> {
        self.is_at_end = true;
        match read_some(body, &mut [0]) {
            Ok(_) => Err(ResponseError::TooLong { size: self.size }.into()),
            Err(_) => Ok(0),
        }
    }

    /// Waits until the next attempt, or returns the final error if no attempt follows.
    fn recover(&mut self, failure: AttemptFailure) -> Result<(), DownloadError> {
        self.count(&failure.retry);
        let Some(pause) = self.pause_after(&failure.retry).filter(|_| self.runtime.is_wanted()) else {
            return Err(self.give_up(failure.cause));
        };
        self.report(pause, &failure);
        self.runtime.pause(pause);
        if self.runtime.is_wanted() { Ok(()) } else { Err(self.give_up(failure.cause)) }
    }

    fn report(&self, pause: Duration, failure: &AttemptFailure) {
        let (reached, size, cause) = (self.reached, self.size, causes(&*failure.cause));
        match pause {
            PAUSE_AFTER_PROGRESS => {
                self.reporter.debug(format_args!("got {reached} of {size} bytes of a blob, resuming: {cause}"))
            }
            // Every download from a parked registry has the same pause. Reporting it for each would repeat the message.
            _ if matches!(failure.retry, Retry::At(_)) => {
                self.reporter.debug(format_args!("a blob waits {pause:?}: {cause}"))
            }
            _ => self.reporter.info(format_args!(
                "received {reached} of {size} bytes of a blob, resuming in {:.1}s: {cause}",
                pause.as_secs_f32()
            )),
        }
    }

    fn count(&mut self, retry: &Retry) {
        if self.reached > self.reached_before {
            (self.failures, self.parked) = (0, Duration::ZERO);
        } else if !matches!(retry, Retry::At(_)) {
            self.failures += 1;
        }
    }

    /// Returns the pause before the next attempt, or `None` if no attempt follows.
    fn pause_after(&mut self, retry: &Retry) -> Option<Duration> {
        match retry {
            Retry::Never => None,
            Retry::WithBackoff if self.failures == 0 => Some(PAUSE_AFTER_PROGRESS),
            Retry::WithBackoff => (self.failures < self.policy.attempts).then(|| self.back_off()),
            Retry::At(until) => {
                let pause = until.saturating_duration_since(Instant::now()).max(MIN_PARK_WAIT);
                self.parked = self.parked.saturating_add(pause);
                (self.parked <= self.policy.max_parked).then_some(pause)
            }
        }
    }

    fn back_off(&mut self) -> Duration {
        let doubled = self.policy.first_pause.saturating_mul(1 << (self.failures - 1).min(30));
        doubled.min(self.policy.max_pause).mul_f64(0.75 + self.runtime.chance() / 2.0)
    }

    fn give_up(&self, source: Box<dyn Error + Send + Sync>) -> DownloadError {
        DownloadError { reached: self.reached, size: self.size, failures: self.failures, source }
    }
}

impl AttemptFailure {
    fn of_request<E: Retryable>(error: E) -> Self {
        let retry = match error.parked_until() {
            Some(until) => Retry::At(until),
            None if error.is_transient() => Retry::WithBackoff,
            None => Retry::Never,
        };
        Self { cause: Box::new(error), retry }
    }
}

impl From<ResponseError> for AttemptFailure {
    fn from(wrong: ResponseError) -> Self {
        // A response that contradicts the request or the manifest does so again in the next attempt.
        let retry = if matches!(wrong, ResponseError::EndedEarly) { Retry::WithBackoff } else { Retry::Never };
        Self { cause: Box::new(wrong), retry }
    }
}

/// Reads at least one byte.
fn read_some(body: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, AttemptFailure> {
    loop {
        match body.read(buffer) {
            Ok(0) => return Err(ResponseError::EndedEarly.into()),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(AttemptFailure { cause: Box::new(error), retry: Retry::WithBackoff }),
        }
    }
}
