//! The capabilities of the terminal on standard error.

use std::env;
use std::io::{self, IsTerminal as _};

/// Returns whether lines on standard error may have colours: on a terminal, if the environment allows colours.
pub fn has_colours() -> bool {
    io::stderr().is_terminal() && colours_are_allowed()
}

/// Returns whether the environment allows colours: `NO_COLOR` is unset or empty (<https://no-color.org>), and the terminal
/// is not a dumb one.
pub fn colours_are_allowed() -> bool {
    !is_dumb() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns whether lines on standard error may be overwritten: on a terminal that is not a dumb one.
pub fn can_be_redrawn() -> bool {
    io::stderr().is_terminal() && !is_dumb()
}

fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|terminal| terminal == "dumb")
}
