//! What happens when the program is told to end.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use strata::store::abandon_runs;

/// Ends the program in good order on SIGINT and SIGTERM from now on: with a line that says whether anything was published,
/// without leftovers, and by the same signal. A second one ends it at once.
pub fn watch() -> io::Result<()> {
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&is_second))?;
        flag::register(signal, Arc::clone(&is_second))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            end(signal);
        }
    });
    Ok(())
}

fn end(signal: i32) {
    // Nobody else says anything from here on: what the other threads now run into is of no interest.
    let (mut stderr, _stdout) = (io::stderr().lock(), io::stdout().lock());
    let outcome = if abandon_runs() { "after the revision was published" } else { "before anything was published" };
    let clear_line = if stderr.is_terminal() { "\r\x1b[K" } else { "" };
    writeln!(stderr, "{clear_line}strata: interrupted {outcome}").ok();
    emulate_default_handler(signal).ok();
}
