//! The `strata` program: arguments, progress, output and exit codes.

mod cli;

use std::process::ExitCode;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use cli::arguments::{Arguments, Command};
use cli::failure;
use cli::timings::{Timings, is_stage};
use strata::message::causes;
use strata::mount::MountPoint;

fn main() -> ExitCode {
    return_large_blocks();
    let arguments = Arguments::read();
    cli::interrupt::survive_file_size_limit();
    let timings = Timings::default();
    start_logging(&arguments, &timings);
    let result = match &arguments.command {
        Command::Init(init) => cli::init::run(&arguments, init),
        Command::Convert(convert) => cli::convert::run(&arguments, convert, &timings),
        Command::Sync(sync) => cli::sync::run(&arguments, sync),
        Command::Info(info) => cli::show::info(&arguments, info),
        Command::List(list) => cli::list::run(&arguments, list),
        Command::Check(check) => cli::check::run(&arguments, check),
        Command::Verify(verify) => cli::verify::run(&arguments, verify),
        Command::Diff(diff) => cli::diff::run(&arguments, diff),
        Command::Mount(mount) => cli::mount::run(&arguments, mount),
        Command::Preview(preview) => cli::preview::run(&arguments, preview),
        Command::Bundle(bundle) => cli::bundle::run(&arguments, bundle),
        Command::Completions { shell } => cli::manual::completions(*shell),
        Command::Man { directory } => cli::manual::pages(directory),
        Command::GuardMount { mountpoint, id } => cli::mount::guard_mount(&MountPoint::new(mountpoint.clone(), *id)),
    };
    let code = result.unwrap_or_else(|error| {
        cli::complain(format_args!("{}", causes(error.as_ref())));
        failure::exit_code(&error)
    });
    cli::interrupt::wait_if_ending();
    code
}

/// Makes glibc return large blocks to the system as soon as they are freed. By default, glibc raises the threshold over
/// time, and each thread keeps blocks of up to 32 MiB.
#[allow(unsafe_code)]
fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
    }
}

/// Minimum size in bytes of blocks that are returned to the system.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: i32 = 1 << 20;

fn start_logging(arguments: &Arguments, timings: &Timings) {
    let level = match (arguments.quiet, arguments.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, false) => LevelFilter::INFO,
        (false, true) => LevelFilter::DEBUG,
    };
    let messages = tracing_subscriber::fmt::layer()
        .with_writer(cli::progress::LogWriter::new)
        .with_ansi(cli::terminal::has_colours())
        .with_target(false)
        .without_time()
        .with_filter(level);
    let is_timed = matches!(&arguments.command, Command::Convert(convert) if convert.timings);
    let stages = is_timed.then(|| timings.recorder().with_filter(filter_fn(is_stage)));
    tracing_subscriber::registry().with(messages).with(stages).init();
}
