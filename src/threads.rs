//! Threads for work on trees.

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The machine refuses to start threads.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {threads} threads")]
pub struct ThreadsError {
    /// How many were asked for.
    threads: usize,
    /// Why.
    source: ThreadPoolBuildError,
}

/// Trees may be 1,000 folders deep, and are gone through by recursion. Only what is used is ever touched.
pub(crate) const STACK_BYTES: usize = 256 << 20;

/// Starts `threads` threads, at least one, that wait for others most of the time, and go through no trees.
pub(crate) fn waiting_pool(threads: usize) -> Result<ThreadPool, ThreadsError> {
    let threads = threads.max(1);
    ThreadPoolBuilder::new().num_threads(threads).build().map_err(|source| ThreadsError { threads, source })
}

/// Starts `threads` threads, at least one.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool, ThreadsError> {
    let threads = threads.max(1);
    let builder = ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK_BYTES);
    builder.build().map_err(|source| ThreadsError { threads, source })
}
