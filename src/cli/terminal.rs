//! What may be written to the terminal that standard error is, beside plain lines.

use std::env;
use std::io::{self, IsTerminal as _};

/// Tells whether lines on standard error may have colours: on a terminal that knows them, unless `NO_COLOR` is set to
/// anything (<https://no-color.org>).
pub fn has_colours() -> bool {
    can_be_redrawn() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Tells whether lines on standard error may be written over: on a terminal that is not a dumb one.
pub fn can_be_redrawn() -> bool {
    io::stderr().is_terminal() && env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}
