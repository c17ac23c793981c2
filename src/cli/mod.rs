//! The commands, one module each, and code that they share.

pub mod arguments;
pub mod bundle;
pub mod check;
pub mod convert;
pub mod diff;
pub mod failure;
pub mod findings;
mod help;
pub mod hint;
pub mod init;
pub mod interrupt;
pub mod list;
pub mod manual;
pub mod mount;
pub mod notify;
pub mod preview;
pub mod progress;
pub mod published;
pub mod show;
pub mod sync;
mod sync_results;
mod target;
pub mod terminal;
pub mod timings;
pub mod verify;

use std::fmt;
use std::io::{self, Write as _};

use strata::message::{on_one_line, shortened};

/// Prints results to standard output. A closed pipe is not an error.
pub fn print(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    interrupt::wait_if_ending();
    match io::stdout().write_fmt(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("cannot write the results to standard output"))
        }
        _ => Ok(()),
    }
}

/// Prints one line of results.
pub fn print_line(text: fmt::Arguments<'_>) -> anyhow::Result<()> {
    print(format_args!("{text}\n"))
}

/// Prints an error in one line to standard error. Write errors are ignored.
pub fn complain(text: fmt::Arguments<'_>) {
    interrupt::wait_if_ending();
    writeln!(io::stderr(), "strata: {}", on_one_line(&shortened(&text.to_string()))).ok();
}
