//! A bounded pipe of bytes between two threads, which ends with the end of the blob or an error.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::READ_SIZE;
use crate::cancel::Cancellation;

/// A bounded buffer between one writing and one reading thread.
pub(super) struct Pipe {
    state: Mutex<State>,
    /// Signalled when bytes or the end have arrived.
    arrived: Condvar,
    /// Signalled when there is room again, or the reader has been dropped.
    freed: Condvar,
    limit: usize,
    ready_threshold: usize,
    cancellation: Cancellation,
}

/// Maximum time from a cancellation to the error of a read that waits.
const CANCELLATION_DELAY: Duration = Duration::from_millis(50);

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    end: Option<End>,
    is_abandoned: bool,
}

enum End {
    Complete,
    Failed(io::Error),
    /// The error has been returned to the reader.
    Reported,
}

/// The writing end of a pipe. When it is dropped without [`finish`](Self::finish), the reader gets an error.
pub(super) struct PipeWriter<'p>(&'p Pipe);

impl Pipe {
    /// Creates a pipe for up to `limit` bytes that is ready for reading from `ready_threshold` bytes on.
    ///
    /// Both numbers are adjusted so that a pipe without room for another [`READ_SIZE`] bytes counts as ready: otherwise the
    /// reading and the writing thread would wait for each other.
    pub(super) fn new(limit: usize, ready_threshold: usize, cancellation: Cancellation) -> Self {
        let (state, arrived, freed) = Default::default();
        let limit = limit.max(READ_SIZE);
        let ready_threshold = ready_threshold.min(limit - READ_SIZE).max(1);
        Self { state, arrived, freed, limit, ready_threshold, cancellation }
    }

    /// Returns the writing end. There must be only one.
    pub(super) fn writer(&self) -> PipeWriter<'_> {
        PipeWriter(self)
    }

    /// Waits for room and appends `bytes`, up to [`READ_SIZE`] of them. Returns false if the reader has been dropped.
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        debug_assert!(bytes.len() <= READ_SIZE, "the limit is at least READ_SIZE");
        let has_no_room = |state: &mut State| !state.is_abandoned && state.bytes.len() + bytes.len() > self.limit;
        let mut state = self.freed.wait_while(self.state(), has_no_room).expect("no thread panics while it holds this");
        if !state.is_abandoned {
            state.bytes.extend(bytes);
            self.arrived.notify_one();
        }
        !state.is_abandoned
    }

    /// Waits for bytes and reads some. Returns 0 only at the end, and an error only after all bytes before it, or if the operation
    /// is cancelled while no bytes arrive.
    pub(super) fn pull(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let has_nothing = |state: &mut State| state.bytes.is_empty() && state.end.is_none();
        let mut state = self.state();
        while has_nothing(&mut state) {
            self.cancellation.check().map_err(io::Error::other)?;
            let waited = self.arrived.wait_timeout_while(state, CANCELLATION_DELAY, has_nothing);
            state = waited.expect("no thread panics while it holds this").0;
        }
        let count = take(&mut state.bytes, buffer);
        if count > 0 {
            self.freed.notify_one();
            return Ok(count);
        }
        match &mut state.end {
            Some(End::Complete) | None => Ok(0),
            Some(end) => Err(end.take_error()),
        }
    }

    /// Returns whether a read would return without waiting: the end, an error, or bytes if at least `ready_threshold` are
    /// buffered.
    pub(super) fn is_ready(&self) -> bool {
        let state = self.state();
        state.bytes.len() >= self.ready_threshold || state.end.is_some()
    }

    /// Drops all bytes and makes the writer stop. Called when the reader is dropped.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.is_abandoned = true;
        // Frees the memory now. The writing thread keeps the pipe until its current read returns.
        state.bytes = VecDeque::new();
        self.freed.notify_all();
    }

    /// Returns whether the reader has been dropped.
    pub(super) fn is_abandoned(&self) -> bool {
        self.state().is_abandoned
    }

    /// Waits for `length`, or until the reader is dropped.
    pub(super) fn wait_unless_abandoned(&self, length: Duration) {
        let is_wanted = |state: &mut State| !state.is_abandoned;
        drop(self.freed.wait_timeout_while(self.state(), length, is_wanted));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state().bytes.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds this")
    }

    fn end(&self, end: End) {
        let mut state = self.state();
        state.end.get_or_insert(end);
        self.arrived.notify_one();
    }
}

impl PipeWriter<'_> {
    /// Marks the end of the bytes: complete, or with an error.
    pub(super) fn finish(self, result: io::Result<()>) {
        self.0.end(result.map_or_else(End::Failed, |()| End::Complete));
    }
}

impl Drop for PipeWriter<'_> {
    fn drop(&mut self) {
        // `finish` has already set the end, unless the writing thread panicked.
        self.0.end(End::Failed(io::Error::other("the download stopped before its end")));
    }
}

impl End {
    /// Returns the error. Further calls return a general error, because `io::Error` cannot be cloned.
    fn take_error(&mut self) -> io::Error {
        match std::mem::replace(self, Self::Reported) {
            Self::Failed(error) => error,
            Self::Complete | Self::Reported => io::Error::other("the download has already failed"),
        }
    }
}

/// Moves bytes from the front of `bytes` into `buffer`, and returns their number.
fn take(bytes: &mut VecDeque<u8>, buffer: &mut [u8]) -> usize {
    let count = buffer.len().min(bytes.len());
    let (front, back) = bytes.as_slices();
    let from_front = count.min(front.len());
    buffer[..from_front].copy_from_slice(&front[..from_front]);
    buffer[from_front..count].copy_from_slice(&back[..count - from_front]);
    bytes.drain(..count);
    count
}
