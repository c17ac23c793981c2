//! Bytes on their way from one thread to another: a bounded number of them, then the end or an error.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::READ_SIZE;

/// Holds bytes between one thread that has them and one that wants them.
pub(super) struct Pipe {
    state: Mutex<State>,
    /// Bytes came, or the end.
    arrived: Condvar,
    /// There is room again, or nobody wants more.
    freed: Condvar,
    limit: usize,
    ready_threshold: usize,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    end: Option<End>,
    is_abandoned: bool,
}

enum End {
    Complete,
    Failed(io::Error),
    /// The error was handed out.
    Reported,
}

/// Fills a pipe; whatever becomes of it, the reader hears of an end.
pub(super) struct PipeWriter<'p>(&'p Pipe);

impl Pipe {
    /// Makes a pipe for up to `limit` bytes, of which `useful` are worth a reader's while.
    ///
    /// Both are stretched so that a pipe with no room for a [`READ_SIZE`] more is worth it.
    pub(super) fn new(limit: usize, ready_threshold: usize) -> Self {
        let (state, arrived, freed) = Default::default();
        let limit = limit.max(READ_SIZE);
        Self { state, arrived, freed, limit, ready_threshold: ready_threshold.min(limit - READ_SIZE).max(1) }
    }

    /// Becomes the one who fills the pipe.
    pub(super) fn writer(&self) -> PipeWriter<'_> {
        PipeWriter(self)
    }

    /// Waits for room and puts `bytes` in, up to a [`READ_SIZE`]. Returns whether anybody still wants any.
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        debug_assert!(bytes.len() <= READ_SIZE, "there is room for one buffer at least");
        let has_no_room = |state: &mut State| !state.is_abandoned && state.bytes.len() + bytes.len() > self.limit;
        let mut state = self.freed.wait_while(self.state(), has_no_room).expect("no thread panics while it holds this");
        if !state.is_abandoned {
            state.bytes.extend(bytes);
            self.arrived.notify_one();
        }
        !state.is_abandoned
    }

    /// Waits for bytes and takes some. Returns 0 only at the end, and an error behind all bytes that came before it.
    pub(super) fn pull(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let has_nothing = |state: &mut State| state.bytes.is_empty() && state.end.is_none();
        let mut state =
            self.arrived.wait_while(self.state(), has_nothing).expect("no thread panics while it holds this");
        let count = take(&mut state.bytes, buffer);
        if count > 0 {
            self.freed.notify_one();
            return Ok(count);
        }
        match &mut state.end {
            Some(End::Complete) | None => Ok(0),
            Some(end) => Err(end.tell()),
        }
    }

    /// Tells whether a read would get a useful amount at once, or the end, or an error.
    pub(super) fn is_ready(&self) -> bool {
        let state = self.state();
        state.bytes.len() >= self.ready_threshold || state.end.is_some()
    }

    /// Says that nobody wants any more bytes.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        state.is_abandoned = true;
        state.bytes = VecDeque::new();
        self.freed.notify_all();
    }

    /// Tells whether nobody wants any more bytes.
    pub(super) fn is_abandoned(&self) -> bool {
        self.state().is_abandoned
    }

    /// Waits, but not after nobody wants any more bytes.
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
    /// Says that nothing more comes, and why.
    pub(super) fn finish(self, result: io::Result<()>) {
        self.0.end(result.map_or_else(End::Failed, |()| End::Complete));
    }
}

impl Drop for PipeWriter<'_> {
    fn drop(&mut self) {
        // Only a panic on the way leaves it to this line.
        self.0.end(End::Failed(io::Error::other("the download stopped before its end")));
    }
}

impl End {
    /// Returns the error; the second time, only that there was one.
    fn tell(&mut self) -> io::Error {
        match std::mem::replace(self, Self::Reported) {
            Self::Failed(error) => error,
            Self::Complete | Self::Reported => io::Error::other("the download failed before"),
        }
    }
}

/// Moves as many bytes as there are and fit, and returns how many.
fn take(bytes: &mut VecDeque<u8>, buffer: &mut [u8]) -> usize {
    let count = buffer.len().min(bytes.len());
    let (front, back) = bytes.as_slices();
    let from_front = count.min(front.len());
    buffer[..from_front].copy_from_slice(&front[..from_front]);
    buffer[from_front..count].copy_from_slice(&back[..count - from_front]);
    bytes.drain(..count);
    count
}
