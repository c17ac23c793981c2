//! Downloads one blob ahead of its reader, and resumes after a lost connection.
//!
//! The reader gets as many bytes as the manifest states, or an error. The digest is not verified here.

mod attempts;
mod pipe;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::io::{self, Read};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Cancellation;
use crate::observer::Reporter;
use attempts::{Attempts, Runtime};
use pipe::Pipe;

/// Number of bytes of one read from a connection.
const READ_SIZE: usize = 256 << 10;

/// The body of a response with a blob or a part of it, from a registry or from the storage that it redirects to.
pub(crate) struct OpenedBlob {
    /// Offset of the first byte in the blob.
    pub start: u64,
    /// Number of bytes, if the response states it.
    pub length: Option<u64>,
    /// Mirror that sent the response; `None` for the registry itself.
    pub mirror: Option<String>,
    /// The bytes. A body that stalls must return an error after a time limit.
    pub body: Box<dyn Read + Send>,
}

/// An error of a request that may be repeated.
pub(crate) trait Retryable: Error + Send + Sync + 'static {
    /// Returns whether the same request may succeed later.
    fn is_transient(&self) -> bool;

    /// Returns the time until which the registry is parked.
    fn parked_until(&self) -> Option<Instant>;
}

/// Limits of a download: attempts, pauses, rate, and buffered bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DownloadPolicy {
    /// Maximum number of consecutive attempts without a byte.
    pub attempts: u32,
    /// Pause after the first attempt without a byte, varied by up to a quarter. The pause doubles with each further such
    /// attempt.
    pub first_pause: Duration,
    /// Maximum pause, varied by up to a quarter.
    pub max_pause: Duration,
    /// Maximum total time of waiting for a parked registry since the last byte.
    pub max_parked: Duration,
    /// Minimum rate in bytes per second, on average over `rate_window`; 0 means no limit.
    pub minimum_rate: u64,
    /// Time over which the rate is measured. Only time in which the download waits for the registry counts.
    pub rate_window: Duration,
    /// Maximum number of bytes in memory, at least twice [`READ_SIZE`].
    pub buffer_limit: usize,
    /// Number of buffered bytes from which on the download counts as ready.
    pub ready_threshold: usize,
}

impl Default for DownloadPolicy {
    fn default() -> Self {
        Self {
            attempts: 8,
            first_pause: Duration::from_millis(500),
            max_pause: Duration::from_secs(30),
            max_parked: Duration::from_secs(600),
            minimum_rate: 0,
            rate_window: Duration::from_secs(60),
            buffer_limit: 4 << 20,
            ready_threshold: 1 << 20,
        }
    }
}

/// Reads a blob in a thread of its own, a bounded number of bytes ahead of the reader.
///
/// After a lost connection, the download resumes at the next byte. The reader gets all received bytes before an error. After
/// the value is dropped, the thread ends: at once, or as soon as its current read returns.
pub(crate) struct Download {
    pipe: Arc<Pipe>,
    /// Reads in the thread of the reader, if no thread could be started.
    direct: Option<Attempts>,
}

/// Reports whether a [`Download`] can be read without waiting. It does not keep the download running.
#[derive(Clone)]
pub(crate) struct DownloadReadiness(Option<Arc<Pipe>>);

impl Download {
    /// Starts the download of a blob of `size` bytes. `open` requests the blob from an offset on; its response may start at the
    /// first byte of the blob instead.
    pub(crate) fn start<E: Retryable>(
        open: impl FnMut(u64) -> Result<OpenedBlob, E> + Send + 'static,
        size: u64,
        policy: DownloadPolicy,
        reporter: &Reporter,
        cancellation: Cancellation,
    ) -> Self {
        // The thread that fills the pipe has a buffer of `READ_SIZE`, which counts for the limit, too.
        let pipe =
            Arc::new(Pipe::new(policy.buffer_limit.saturating_sub(READ_SIZE), policy.ready_threshold, cancellation));
        let runtime = Box::new(SystemRuntime(Arc::clone(&pipe)));
        Self::start_in(Attempts::new(open, size, policy, runtime, reporter), pipe)
    }

    fn start_in(attempts: Attempts, pipe: Arc<Pipe>) -> Self {
        // `attempts` is sent to the thread after it has started, because a failed `spawn` would drop what the closure owns.
        let mut waiting = Some(attempts);
        let (hand_over, handed_over) = mpsc::channel::<Attempts>();
        let filled = Arc::clone(&pipe);
        let work = move || handed_over.recv().map_or((), |attempts| fill(attempts, &filled));
        if thread::Builder::new().name("download".to_owned()).spawn(work).is_ok() {
            let attempts = waiting.take().expect("`attempts` has not been moved yet");
            hand_over.send(attempts).expect("the thread waits for `attempts`");
        }
        Self { pipe, direct: waiting }
    }

    /// Returns a handle that reports whether this download can be read without waiting.
    pub(crate) fn readiness(&self) -> DownloadReadiness {
        DownloadReadiness(self.direct.is_none().then(|| Arc::clone(&self.pipe)))
    }
}

impl DownloadReadiness {
    /// Returns whether a read would return without waiting: the end, an error, or bytes if at least `ready_threshold` are
    /// buffered.
    pub(crate) fn is_ready(&self) -> bool {
        // Without a thread, bytes arrive only while the reader reads.
        self.0.as_ref().is_none_or(|pipe| pipe.is_ready())
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.direct {
            Some(attempts) => attempts.read(buffer).map_err(io::Error::other),
            None => self.pipe.pull(buffer),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.pipe.abandon();
    }
}

/// Fills the pipe until the end of the blob, an error, or the reader is dropped.
fn fill(mut attempts: Attempts, pipe: &Pipe) {
    let writer = pipe.writer();
    let mut buffer = vec![0; READ_SIZE];
    loop {
        match attempts.read(&mut buffer) {
            Ok(0) => return writer.finish(Ok(())),
            Ok(count) if pipe.push(&buffer[..count]) => {}
            Ok(_) => return,
            Err(error) => return writer.finish(Err(io::Error::other(error))),
        }
    }
}

/// Real time and randomness. Pauses end when the reader of the pipe is dropped.
struct SystemRuntime(Arc<Pipe>);

impl Runtime for SystemRuntime {
    fn pause(&mut self, length: Duration) {
        self.0.wait_unless_abandoned(length);
    }

    fn is_wanted(&self) -> bool {
        !self.0.is_abandoned()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn chance(&mut self) -> f64 {
        getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
    }
}
