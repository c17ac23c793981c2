//! Starts threads, with fewer of them if the machine refuses, and with large stacks for recursion over trees.

use std::io;
use std::num::NonZero;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::observer::Reporter;

/// The machine refuses to start a thread.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread")]
pub struct ThreadsError {
    /// Error of the thread pool.
    source: ThreadPoolBuildError,
}

/// Stack size in bytes. Functions on trees are recursive, trees may be 1,000 directories deep, and while a thread waits for a
/// part of the tree, it may work on another part on the same stack. A tree of 12 chains of 1,000 directories with 330 nested
/// catalogs each needs 1.7 MB.
const STACK_BYTES: usize = 16 << 20;

/// Returns the number of threads that this process can run at the same time.
pub fn available() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Starts a pool of up to `threads` threads, at least one, that wait for other threads most of the time. Their stacks are too
/// small for recursion over trees.
pub(crate) fn waiting_pool(threads: usize, reporter: &Reporter) -> Result<ThreadPool, ThreadsError> {
    start_pool(threads, reporter, ThreadPoolBuilder::new)
}

/// Starts a pool of up to `threads` threads, at least one, whose stacks are large enough for recursion over trees.
pub(crate) fn pool(threads: usize, reporter: &Reporter) -> Result<ThreadPool, ThreadsError> {
    start_pool(threads, reporter, || ThreadPoolBuilder::new().stack_size(STACK_BYTES))
}

/// Runs `work` in the thread pool of the calling thread, or in a pool of one thread if the caller has none.
///
/// Without a pool, rayon would start one thread for each core, which fails at the process limit.
pub(crate) fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ThreadsError> {
    match rayon::current_thread_index() {
        Some(_) => Ok(work()),
        // A pool of one thread never has fewer threads than requested, so there is nothing to report.
        None => Ok(pool(1, &Reporter::silent())?.install(work)),
    }
}

/// Pause before the next attempt to start a pool. The threads of the failed attempt must end first, because they still count
/// against the limit of the machine.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Maximum number of further attempts to start a pool.
const MAX_RETRIES: u32 = 50;

/// Starts a pool. If the machine refuses, tries again with half as many threads.
fn start_pool(
    threads: usize,
    reporter: &Reporter,
    builder: impl Fn() -> ThreadPoolBuilder,
) -> Result<ThreadPool, ThreadsError> {
    let (wanted, mut threads, mut retries) = (threads.max(1), threads.max(1), 0);
    loop {
        match builder().num_threads(threads).build() {
            Ok(pool) => {
                if threads < wanted {
                    reporter.warn(format_args!("{}", fewer_threads(threads, wanted)));
                }
                return Ok(pool);
            }
            Err(source) if threads == 1 && (wanted == 1 || retries == MAX_RETRIES) => {
                return Err(ThreadsError { source });
            }
            Err(_) => {
                threads = (threads / 2).max(1);
                retries += 1;
                thread::sleep(RETRY_PAUSE);
            }
        }
    }
}

/// Starts up to `threads` threads that do the same work on trees. Returns an error if not even one can be started.
pub(crate) fn spawn_workers<'scope, W: FnOnce() + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    threads: usize,
    reporter: &Reporter,
    mut work: impl FnMut() -> W,
) -> io::Result<()> {
    for started in 0..threads {
        match spawn_in(scope, work()) {
            Ok(_) => {}
            Err(error) if started == 0 => return Err(error),
            Err(_) => {
                reporter.warn(format_args!("{}", fewer_threads(started, threads)));
                break;
            }
        }
    }
    Ok(())
}

/// Starts a thread whose stack is large enough for recursion over trees.
pub(crate) fn spawn_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work)
}

fn fewer_threads(started: usize, wanted: usize) -> String {
    format!("the machine can start only {started} of {wanted} threads (see `ulimit -u`): the work takes longer")
}
