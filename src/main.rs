//! The `strata` program: arguments, progress, results and exit codes.

mod cli;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::Parser as _;
use tracing::level_filters::LevelFilter;

use cli::arguments::{Arguments, Command};
use cli::failure;
use strata::mount::MountPoint;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(&arguments);
    let result = match &arguments.command {
        Command::Init(init) => cli::init::run(&arguments, init),
        Command::Convert(convert) => cli::convert::run(&arguments, convert),
        Command::Sync(sync) => cli::sync::run(&arguments, sync),
        Command::Info(info) => cli::show::info(&arguments, info),
        Command::List => cli::show::list(&arguments),
        Command::Check(check) => cli::check::run(&arguments, check),
        Command::Verify(verify) => cli::verify::run(&arguments, verify),
        Command::Diff(diff) => cli::diff::run(&arguments, diff),
        Command::Mount(mount) => cli::mount::run(&arguments, mount),
        Command::Preview(preview) => cli::preview::run(&arguments, preview),
        Command::GuardMount { mountpoint, id } => cli::mount::guard_mount(&MountPoint::new(mountpoint.clone(), *id)),
    };
    result.unwrap_or_else(|error| {
        cli::complain(format_args!("{error:#}"));
        failure::exit_code(&error)
    })
}

fn start_logging(arguments: &Arguments) {
    let level = match (arguments.quiet, arguments.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, false) => LevelFilter::INFO,
        (false, true) => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(cli::progress::LogWriter::new)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
