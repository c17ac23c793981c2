//! Ends the program cleanly after a signal.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use strata::cancel::{Cancellation, Publications};

use super::terminal::can_be_redrawn;

/// Maximum time for writing a line to standard error.
const WRITE_TIMEOUT: Duration = Duration::from_millis(100);

/// Maximum time for deleting unfinished files. The next run deletes the remaining ones.
const CLEANUP_TIMEOUT: Duration = Duration::from_millis(1500);

/// Time after which the program ends, even if cleaning up or printing hangs, unless the kernel is inside a sync.
const EXIT_TIMEOUT: Duration = Duration::from_millis(1700);

/// Ends the operations of the program.
static CANCELLATION: LazyLock<Cancellation> = LazyLock::new(Cancellation::default);

/// A further signal within this time after the first counts as the same signal: GNU `timeout`, for example, signals its child
/// and then the process group that contains the child.
pub const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// Whether a signal is ending the program.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Returns the cancellation that ends the operations of the program.
pub fn cancellation() -> &'static Cancellation {
    &CANCELLATION
}

/// Turns writing beyond the file size limit of the process (`ulimit -f`) into an error of the write. Otherwise the kernel
/// ends the process without a message.
pub fn survive_file_size_limit() {
    if let Err(error) = flag::register(SIGXFSZ, Arc::default()) {
        tracing::debug!("cannot handle SIGXFSZ, which will end the program: {error}");
    }
}

/// From now on, SIGINT and SIGTERM end the program cleanly: the program prints a message at once, cleans up, prints whether
/// a revision was published, and ends by the same signal. A second signal ends the program at once.
pub fn watch() -> anyhow::Result<()> {
    watch_with(Ending::prepare()?)
}

/// Like [`watch`], for a command that publishes nothing. If the system refuses a thread or a signal handler, signals end the
/// program without a message.
pub fn watch_reader() {
    let watched = Ending::prepare().and_then(|ending| watch_with(Ending { publishes: false, ..ending }));
    if let Err(error) = watched {
        tracing::debug!("signals end the program without a message: {error:#}");
    }
}

fn watch_with(ending: Ending) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot wait for signals")?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            ending.end(signal);
        }
    };
    thread::Builder::new().spawn(wait).context("cannot start a thread that waits for signals")?;
    Ok(())
}

/// Ends the program after a signal. Prepared before a signal arrives.
pub struct Ending {
    alarm: Sender<i32>,
    publishes: bool,
}

impl Ending {
    /// Prepares the end of the program. The caller waits for the signal.
    pub fn prepare() -> anyhow::Result<Self> {
        let is_at_once = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_default(signal, Arc::clone(&is_at_once)).context("cannot wait for signals")?;
        }
        let alarm = start_alarm(is_at_once).context("cannot start a thread that waits for signals")?;
        Ok(Self { alarm, publishes: true })
    }

    /// Cleans up and ends the program by the received signal.
    pub fn end(&self, signal: i32) {
        self.alarm.send(signal).ok();
        IS_ENDING.store(true, Ordering::SeqCst);
        if self.publishes {
            print_now("interrupted: cleaning up; press Ctrl-C again to end at once");
        } else {
            print_now("interrupted");
        }
        cancellation().abandon(CLEANUP_TIMEOUT);
        if self.publishes {
            print_outcome();
        }
        // The parent process, such as a shell, must see that the signal ended the program.
        emulate_default_handler(signal).ok();
    }
}

/// Prints whether this process has published a revision, or may have.
fn print_outcome() {
    print_now(&match cancellation().publications() {
        Publications { in_progress: Some(revision), .. } => {
            format!("interrupted: revision {revision} may be published; 'strata info' prints the newest revision")
        }
        Publications { last: Some(revision), .. } => format!("interrupted after revision {revision} was published"),
        _ => "interrupted before anything was published".to_owned(),
    });
}

/// Starts a thread that ends the program some time after a signal, because the thread that cleans up may wait for a lock
/// that another thread never releases. The thread sets `is_at_once` after [`SAME_SIGNAL`]: from then on, a further signal ends the
/// program at once.
fn start_alarm(is_at_once: Arc<AtomicBool>) -> io::Result<Sender<i32>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        if let Ok(signal) = receiver.recv() {
            let deadline = cancellation().deadline(EXIT_TIMEOUT);
            thread::sleep(SAME_SIGNAL);
            is_at_once.store(true, Ordering::SeqCst);
            while !deadline.is_over() {
                thread::sleep(Duration::from_millis(10));
            }
            print_outcome();
            emulate_default_handler(signal).ok();
        }
    })?;
    Ok(sender)
}

/// Waits forever if a signal is ending the program. Cleaning up deletes files that threads still use; their errors must not
/// be printed, and the exit code must be that of the signal.
pub fn wait_if_ending() {
    while IS_ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Prints a line to standard error at once, and waits only a short time for it. Standard error may be a pipe that no process
/// reads, and a thread that is blocked on this pipe may hold the lock of standard error.
pub fn print_now(text: &str) {
    let clear_line = if can_be_redrawn() { "\r\x1b[K" } else { "" };
    let line = format!("{clear_line}strata: {text}\n");
    let (sender, receiver) = mpsc::channel();
    let write = move || {
        if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
            File::from(stderr).write_all(line.as_bytes()).ok();
        }
        sender.send(()).ok();
    };
    // If the system refuses a thread, the line is not printed, which is better than blocking forever.
    if thread::Builder::new().spawn(write).is_ok() {
        receiver.recv_timeout(WRITE_TIMEOUT).ok();
    }
}
