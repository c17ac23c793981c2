//! Threads for work on trees.

use std::io;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The machine refuses to start threads.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a thread")]
pub struct ThreadsError {
    /// Why.
    source: ThreadPoolBuildError,
}

/// Trees may be 1,000 directories deep, and are gone through by recursion, in which a thread may begin with another part of the
/// tree while it waits for one. A tree of 12 chains of 1,000 directories with 330 nested catalogs each takes 1.7 MB of it.
const STACK_BYTES: usize = 16 << 20;

/// Starts up to `threads` threads, at least one, that wait for others most of the time, and go through no trees.
pub(crate) fn waiting_pool(threads: usize) -> Result<ThreadPool, ThreadsError> {
    start_pool(threads, ThreadPoolBuilder::new)
}

/// Starts up to `threads` threads, at least one.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool, ThreadsError> {
    start_pool(threads, || ThreadPoolBuilder::new().stack_size(STACK_BYTES))
}

/// Runs `work` in the thread pool of the calling thread, or in a pool of one thread if the caller has none.
///
/// Without a pool, rayon would start one thread for each core, which fails at the process limit.
pub(crate) fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ThreadsError> {
    match rayon::current_thread_index() {
        Some(_) => Ok(work()),
        None => Ok(pool(1)?.install(work)),
    }
}

/// How long, and how often, the threads of a pool that could not be started whole may take to end. As long as they are there, no
/// other ones can take their places.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const MAX_RETRIES: u32 = 50;

/// Starts half as many threads, and half as many again, as long as the machine refuses.
fn start_pool(threads: usize, builder: impl Fn() -> ThreadPoolBuilder) -> Result<ThreadPool, ThreadsError> {
    let (wanted, mut threads, mut retries) = (threads.max(1), threads.max(1), 0);
    loop {
        match builder().num_threads(threads).build() {
            Ok(pool) => {
                if threads < wanted {
                    tracing::warn!("{}", fewer_threads(threads, wanted));
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

/// Starts up to `threads` threads that do the same work on trees. At least one of them has to start.
pub(crate) fn spawn_workers<'scope, W: FnOnce() + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    threads: usize,
    mut work: impl FnMut() -> W,
) -> io::Result<()> {
    for started in 0..threads {
        match spawn_in(scope, work()) {
            Ok(_) => {}
            Err(error) if started == 0 => return Err(error),
            Err(_) => {
                tracing::warn!("{}", fewer_threads(started, threads));
                break;
            }
        }
    }
    Ok(())
}

/// Starts one thread that may go through trees.
pub(crate) fn spawn_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work)
}

fn fewer_threads(started: usize, wanted: usize) -> String {
    let threads = if started == 1 { "thread" } else { "threads" };
    format!("the machine starts no more than {started} {threads} of {wanted} (see `ulimit -u`): this takes longer")
}
