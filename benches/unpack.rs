//! How long `strata convert` takes beside `umoci unpack` of the same image, which compresses and publishes nothing.
//!
//! Run with `cargo bench --bench unpack`. The image is `oci:DIR:TAG` in `STRATA_BENCH_IMAGE`; without it, a Debian base
//! system is made with mmdebstrap (which needs root and a Debian mirror). The two programs take turns, each into an
//! empty folder; what is printed are the medians and their ratio.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Runs of each program.
const RUNS: usize = 5;

fn main() {
    let folder = tempfile::tempdir().expect("there is room for a benchmark");
    let image = env::var("STRATA_BENCH_IMAGE").unwrap_or_else(|_| make_debian(folder.path()));
    let layout = image.strip_prefix("oci:").expect("STRATA_BENCH_IMAGE is oci:DIR:TAG");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let repository = folder.path().join(format!("run{run}.example.org"));
        let bundle = folder.path().join(format!("bundle{run}"));
        init(&repository);
        ours.push(time(convert(&repository).args([&image, "--name", "bench.example.org/image:1"])));
        theirs.push(time(Command::new("umoci").args(["unpack", "--image", layout]).arg(&bundle)));
        for result in [repository, bundle] {
            std::fs::remove_dir_all(result).expect("what was made can be deleted");
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("strata convert  {:.2} s", ours.as_secs_f64());
    println!("umoci unpack    {:.2} s", theirs.as_secs_f64());
    println!("ratio           {:.2}", ours.as_secs_f64() / theirs.as_secs_f64());
}

fn strata() -> Command {
    Command::new(env!("CARGO_BIN_EXE_strata"))
}

fn convert(repository: &Path) -> Command {
    let mut command = strata();
    command.args(["convert", "--quiet", "--repo"]).arg(repository);
    command
}

fn init(repository: &Path) {
    time(strata().args(["init", "bench.example.org", "--repo"]).arg(repository));
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
fn time(command: &mut Command) -> Duration {
    let start = Instant::now();
    let output = command.stdout(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
