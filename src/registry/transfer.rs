//! Downloads one blob ahead of whoever reads it, and goes on where a lost connection stopped.
//!
//! What arrives has the right length or ends in an error, but nobody has looked at its digest.

mod attempts;
mod pipe;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::io::{self, Read};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use attempts::{Attempts, Runtime};
use pipe::Pipe;

/// How many bytes are asked of a connection at once.
const READ_SIZE: usize = 256 << 10;

/// A body that a registry, or the store it points to, has begun to send.
pub(crate) struct OpenedBlob {
    /// Which byte of the blob comes first.
    pub start: u64,
    /// How many bytes follow, if the answer says it.
    pub length: Option<u64>,
    /// The mirror that sends it, if it is not the registry itself.
    pub mirror: Option<String>,
    /// The bytes. A body that stalls has to end in an error at some time.
    pub body: Box<dyn Read + Send>,
}

/// What a failed request says about another one like it.
pub(crate) trait Retryable: Error + Send + Sync + 'static {
    /// Tells whether the same request may well succeed later.
    fn is_transient(&self) -> bool;

    /// Returns until when the registry wants to hear nothing, if it said so.
    fn parked_until(&self) -> Option<Instant>;
}

/// How hard a download tries, and how far it runs ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DownloadPolicy {
    /// How many attempts in a row may fail without a single byte.
    pub attempts: u32,
    /// How long to wait after the first of these, give or take a quarter. It doubles with each further one.
    pub first_pause: Duration,
    /// How long to wait at most, give or take a quarter.
    pub max_pause: Duration,
    /// How long to wait, in all and without a single byte, for a registry that asks for it.
    pub max_parked: Duration,
    /// How many bytes a second have to come, on average over `rate_window`; 0 stands for no limit.
    pub minimum_rate: u64,
    /// Over how much time, spent in waiting for the registry, that is measured.
    pub rate_window: Duration,
    /// How many bytes may lie in memory, at least twice [`READ_SIZE`].
    pub buffer_limit: usize,
    /// How many bytes are worth a reader's while.
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

/// Reads a blob on a thread of its own, a bounded number of bytes ahead of whoever reads it.
///
/// A lost connection is taken up where it stopped. What cannot be had is an error of the reader, behind the bytes that
/// could. When the value is dropped, the thread ends on its own: at once, or when the body it reads from gives or fails.
pub(crate) struct Download {
    pipe: Arc<Pipe>,
    /// Reads when it is asked to, because no thread could be had.
    direct: Option<Attempts>,
}

/// Tells how far a [`Download`] is, and keeps nothing of it going.
#[derive(Clone)]
pub(crate) struct DownloadReadiness(Option<Arc<Pipe>>);

impl Download {
    /// Starts to read a blob of `size` bytes. `open` asks the registry for it from some byte on, as often as need be; an
    /// answer may start at the blob's first byte instead.
    pub(crate) fn start<E: Retryable>(
        open: impl FnMut(u64) -> Result<OpenedBlob, E> + Send + 'static,
        size: u64,
        policy: DownloadPolicy,
    ) -> Self {
        let pipe = Arc::new(Pipe::new(policy.buffer_limit.saturating_sub(READ_SIZE), policy.ready_threshold));
        let runtime = Box::new(SystemRuntime(Arc::clone(&pipe)));
        Self::start_in(Attempts::new(open, size, policy, runtime), pipe)
    }

    fn start_in(attempts: Attempts, pipe: Arc<Pipe>) -> Self {
        let mut waiting = Some(attempts);
        let (hand_over, handed_over) = mpsc::channel::<Attempts>();
        let filled = Arc::clone(&pipe);
        let work = move || handed_over.recv().map_or((), |attempts| fill(attempts, &filled));
        if thread::Builder::new().name("download".to_owned()).spawn(work).is_ok() {
            let attempts = waiting.take().expect("it is handed over once");
            hand_over.send(attempts).expect("the thread waits for it");
        }
        Self { pipe, direct: waiting }
    }

    /// Returns what tells how far this download is.
    pub(crate) fn readiness(&self) -> DownloadReadiness {
        DownloadReadiness(self.direct.is_none().then(|| Arc::clone(&self.pipe)))
    }
}

impl DownloadReadiness {
    /// Tells whether a read would get a useful amount at once, or the end, or an error.
    pub(crate) fn is_ready(&self) -> bool {
        // Without a thread, nothing arrives before it is read.
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

/// Reads until the end, an error, or nobody wants more.
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

/// Real time and real chance, until nobody reads the pipe.
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
