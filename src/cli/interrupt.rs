//! What happens when the program is told to end.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use strata::store::{Deadline, abandon_runs};

use super::terminal::can_be_redrawn;

/// How long a line may take to be written.
const MOMENT: Duration = Duration::from_millis(100);

/// How long cleaning up may take. What is left then is deleted by the next run.
const PATIENCE: Duration = Duration::from_millis(1500);

/// When the program ends, unless the kernel is inside a sync, even if it has not cleaned up or reported by then.
const LATEST: Duration = Duration::from_millis(1700);

/// Whether a signal is ending the program.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Makes a file that would become larger than the process may write (`ulimit -f`) an error of the write. Without this the kernel
/// ends the process, and nothing is said.
pub fn survive_file_size_limit() {
    if let Err(error) = flag::register(SIGXFSZ, Arc::default()) {
        tracing::debug!("signal SIGXFSZ ends the program: {error}");
    }
}

/// Ends the program in good order on SIGINT and SIGTERM from now on: at once it says so, then it cleans up, says whether
/// anything was published, and ends by the same signal. A second signal ends it at once.
pub fn watch() -> io::Result<()> {
    let ending = Ending::prepare()?;
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, Arc::clone(&ending.has_begun))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().spawn(move || {
        if let Some(signal) = signals.forever().next() {
            ending.end(signal);
        }
    })?;
    Ok(())
}

/// What it takes to end the program by a signal.
pub struct Ending {
    /// Once this is set, a signal ends the program at once.
    has_begun: Arc<AtomicBool>,
    alarm: Sender<i32>,
}

impl Ending {
    /// Prepares for a signal that the caller waits for.
    pub fn prepare() -> io::Result<Self> {
        let has_begun = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_default(signal, Arc::clone(&has_begun))?;
        }
        Ok(Self { has_begun, alarm: start_alarm()? })
    }

    /// Cleans up and ends the program by the signal that came.
    pub fn end(&self, signal: i32) {
        self.has_begun.store(true, Ordering::SeqCst);
        self.alarm.send(signal).ok();
        IS_ENDING.store(true, Ordering::SeqCst);
        say("interrupted: cleaning up; press again to stop now");
        let outcome = match abandon_runs(PATIENCE) {
            Some(revision) => format!("after revision {revision} was published"),
            None => "before anything was published".to_owned(),
        };
        say(&format!("interrupted {outcome}"));
        emulate_default_handler(signal).ok();
    }
}

/// Starts a thread that ends the program some time after a signal: a thread that holds what is to be cleaned up may hang.
fn start_alarm() -> io::Result<Sender<i32>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        if let Ok(signal) = receiver.recv() {
            let deadline = Deadline::after(LATEST);
            while !deadline.is_over() {
                thread::sleep(Duration::from_millis(10));
            }
            emulate_default_handler(signal).ok();
        }
    })?;
    Ok(sender)
}

/// Waits forever if a signal is ending the program. What a thread runs into while its files are deleted is of no interest,
/// and the exit code is the signal's.
pub fn wait_if_ending() {
    while IS_ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Says something at once, and waits a moment only until it is said: standard error may be a pipe that nobody reads, and its
/// lock may be held by a thread that waits for just that.
pub fn say(text: &str) {
    let clear_line = if can_be_redrawn() { "\r\x1b[K" } else { "" };
    let line = format!("{clear_line}strata: {text}\n");
    let (said, is_said) = mpsc::channel();
    let write = move || {
        if let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() {
            File::from(stderr).write_all(line.as_bytes()).ok();
        }
        said.send(()).ok();
    };
    // Where no thread can be had nothing is said, which is better than to wait for ever.
    if thread::Builder::new().spawn(write).is_ok() {
        is_said.recv_timeout(MOMENT).ok();
    }
}
