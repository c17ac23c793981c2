//! The programs that are measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use strata::object::Compression;

/// Where a benchmark keeps what it makes. What earlier ones left is deleted first, and nothing in between: ext4 looks longer
/// for room for new files where others were deleted within the last minute.
pub struct Scratch {
    folder: PathBuf,
    repositories: usize,
}

/// What a conversion took.
pub struct Conversion {
    pub time: Duration,
    /// The most memory that it had at any time, in bytes.
    pub memory: u64,
}

impl Scratch {
    pub fn start(folder: &Path) -> Self {
        let folder = folder.join("scratch");
        delete(&folder);
        fs::create_dir_all(&folder).expect("there is room for a benchmark");
        Self { folder, repositories: 0 }
    }

    /// Returns a path where nothing is.
    pub fn path(&mut self, name: &str) -> PathBuf {
        self.repositories += 1;
        self.folder.join(format!("{}-{name}.example.org", self.repositories))
    }

    /// Makes a repository that holds nothing.
    pub fn repository(&mut self, compression: Compression) -> PathBuf {
        let path = self.path("repository");
        time(Command::new(env!("CARGO_BIN_EXE_strata")).args(["init", "bench.example.org", "--repo"]).arg(&path));
        let settings = path.join("strata.toml");
        let text = fs::read_to_string(&settings).expect("a repository has settings");
        fs::write(settings, format!("compression = \"{compression}\"\n{text}")).expect("settings can be changed");
        path
    }
}

/// Deletes a folder, if it is there, and waits until the file system has forgotten it.
pub fn delete(folder: &Path) {
    if fs::remove_dir_all(folder).is_ok() {
        rustix::fs::sync();
        eprintln!("waiting for a minute, as '{}' was deleted ...", folder.display());
        thread::sleep(Duration::from_secs(60));
    }
}

/// Prepares to run strata on a repository.
pub fn strata(repository: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.arg("--quiet").arg("--repo").arg(repository);
    command
}

/// Converts an image under a name, with more options.
pub fn convert(repository: &Path, image: &str, name: &str, options: &[&str]) -> Conversion {
    let mut command = strata(repository);
    command.args(["convert", image, "--name", &format!("bench.example.org/{name}")]);
    watch(command.args(options))
}

/// Converts an image with one thread, on one core.
pub fn convert_on_one_core(repository: &Path, image: &str, name: &str) -> Conversion {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells which cores there are");
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux tells that");
    let first = cores.trim().split(['-', ',']).next().expect("there is a core");
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", first, env!("CARGO_BIN_EXE_strata"), "--quiet", "--repo"]).arg(repository);
    watch(command.args(["convert", image, "--name", &format!("bench.example.org/{name}"), "--threads", "1"]))
}

/// Runs a command, which has to succeed, and watches its memory.
pub fn watch(command: &mut Command) -> Conversion {
    settle();
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("strata can be run");
    let status = format!("/proc/{}/status", child.id());
    let mut memory = 0;
    let result = loop {
        if let Some(result) = child.try_wait().expect("a child can be waited for") {
            break result;
        }
        // What the kernel says is the most so far; it says nothing once the program has ended.
        memory = fs::read_to_string(&status).ok().and_then(|status| most_memory(&status)).unwrap_or(memory);
        thread::sleep(Duration::from_millis(2));
    };
    let time = start.elapsed();
    assert!(result.success(), "{command:?}: {result}");
    Conversion { time, memory }
}

fn most_memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Runs a command, which has to succeed, and returns how long it took.
pub fn time(command: &mut Command) -> Duration {
    settle();
    let start = Instant::now();
    run(command);
    start.elapsed()
}

/// Waits until what was written before is on disk, so that nobody pays for others.
pub fn settle() {
    rustix::fs::sync();
}

/// Runs a command, which has to succeed, and returns what it printed.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Returns the shortest of several times, which whatever else the machine did has changed least.
pub fn best(times: impl IntoIterator<Item = Duration>) -> Duration {
    times.into_iter().min().expect("something was measured")
}
