//! What benchmarks share: an image, commands, and times.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs of each of two commands that take turns.
pub const RUNS: usize = 5;

/// Prepares to run strata.
pub fn strata() -> Command {
    Command::new(env!("CARGO_BIN_EXE_strata"))
}

/// Prepares to convert into a repository.
pub fn convert(repository: &Path) -> Command {
    let mut command = strata();
    command.args(["convert", "--quiet", "--repo"]).arg(repository);
    command
}

/// Makes a repository that holds nothing.
pub fn init(repository: &Path) {
    time(strata().args(["init", "bench.example.org", "--repo"]).arg(repository));
}

/// Returns the image to measure with: the one that is asked for, or one that is made in `folder`.
pub fn image(folder: &Path) -> String {
    env::var("STRATA_BENCH_IMAGE").unwrap_or_else(|_| make_debian(folder))
}

/// Makes the image of a Debian base system.
fn make_debian(folder: &Path) -> String {
    let (tar, layout) = (folder.join("base.tar"), folder.join("layout"));
    let image = format!("{}:base", layout.display());
    time(Command::new("mmdebstrap").args(["--variant=minbase", "bookworm"]).arg(&tar));
    time(Command::new("umoci").args(["init", "--layout"]).arg(&layout));
    time(Command::new("umoci").args(["new", "--image", &image]));
    time(Command::new("umoci").args(["raw", "add-layer", "--image", &image]).arg(&tar));
    format!("oci:{image}")
}

/// Runs a command, which has to succeed, and returns how long it took.
pub fn time(command: &mut Command) -> Duration {
    let start = Instant::now();
    let output = command.stdout(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    start.elapsed()
}

/// Returns the time in the middle.
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
