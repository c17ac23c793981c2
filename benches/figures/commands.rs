//! Runs the measured programs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use strata::object::Compression;

/// Temporary files of a benchmark. Files of earlier benchmarks are deleted first, and nothing in between: see [`FORGETTING`].
pub struct Scratch {
    directory: PathBuf,
    repositories: usize,
}

/// Cost of a conversion.
pub struct Conversion {
    pub time: Duration,
    /// Peak memory in bytes.
    pub memory: u64,
}

impl Scratch {
    pub fn start(directory: &Path) -> Self {
        let entries = fs::read_dir(directory)
            .expect("the directory was made")
            .map(|entry| entry.expect("it can be listed").path());
        let directory = directory.join("scratch");
        delete(
            entries
                .filter(|path| *path == directory || path.extension().is_some_and(|extension| extension == UNFINISHED)),
        );
        fs::create_dir_all(&directory).expect("there is room for a benchmark");
        Self { directory, repositories: 0 }
    }

    /// Returns a path that does not exist.
    pub fn path(&mut self, name: &str) -> PathBuf {
        self.repositories += 1;
        self.directory.join(format!("{}-{name}.example.org", self.repositories))
    }

    /// Creates an empty repository.
    pub fn repository(&mut self, compression: Compression) -> PathBuf {
        let path = self.path("repository");
        time(Command::new(env!("CARGO_BIN_EXE_strata")).args(["init", "bench.example.org", "--repo"]).arg(&path));
        let settings = path.join("strata.toml");
        let text = fs::read_to_string(&settings).expect("a repository has settings");
        fs::write(settings, format!("compression = \"{compression}\"\n{text}")).expect("settings can be changed");
        path
    }
}

/// End of the names of directories that the next benchmark deletes.
pub const UNFINISHED: &str = "unfinished";

/// How long ext4 may remember deleted files. It does not reuse their inodes in that time, so that creating files beside
/// them takes longer.
const FORGETTING: Duration = Duration::from_secs(6 * 60);

/// Deletes directories and, if there are any, waits until the file system has forgotten their files.
fn delete(directories: impl Iterator<Item = PathBuf>) {
    let mut is_any = false;
    for directory in directories {
        fs::remove_dir_all(directory).expect("directories can be deleted");
        is_any = true;
    }
    if is_any {
        forget("old directories");
    }
}

/// Waits until the file system has forgotten deleted files; `what` names them in the message.
pub fn forget(what: &str) {
    rustix::fs::sync();
    eprintln!("waiting for {} minutes, as {what} were deleted ...", FORGETTING.as_secs() / 60);
    thread::sleep(FORGETTING);
}

/// Frees the space of files that are no longer needed and have no other hard links. The files stay, but are empty, because
/// deleting them would slow down the next measurement.
pub fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).expect("what was made can be listed") {
        let entry = entry.expect("what was made can be listed");
        let kind = entry.file_type().expect("what was made is there");
        if kind.is_dir() {
            empty(&entry.path());
        } else if kind.is_file() {
            File::options().write(true).truncate(true).open(entry.path()).expect("what was made can be changed");
        }
    }
}

/// Returns a command that runs strata on a repository.
pub fn strata(repository: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.arg("--quiet").arg("--repo").arg(repository);
    command
}

/// Converts an image under a name, with additional options.
pub fn convert(repository: &Path, image: &str, name: &str, options: &[&str]) -> Conversion {
    let mut command = strata(repository);
    command.args(["convert", image, "--name", &format!("bench.example.org/{name}")]);
    watch(command.args(options))
}

/// File with the cores on which Linux writes back dirty pages: a mask in hexadecimal.
const WRITE_BACK: &str = "/sys/devices/virtual/workqueue/writeback/cpumask";

/// Restricts the write-back of the kernel to one core until the value is dropped. Without permission, nothing changes. If the
/// benchmark is killed, the restriction stays until the machine restarts.
struct WriteBackOnOneCore {
    before: Option<String>,
}

impl WriteBackOnOneCore {
    fn start(core: u32) -> Self {
        let before = fs::read_to_string(WRITE_BACK).ok();
        if let Some(mask) = 1_u32.checked_shl(core) {
            fs::write(WRITE_BACK, format!("{mask:x}")).ok();
        }
        Self { before }
    }
}

impl Drop for WriteBackOnOneCore {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            fs::write(WRITE_BACK, before).ok();
        }
    }
}

/// Converts an image with one thread, on one core. The write-back of the kernel, which is part of the work, runs on this core, too.
pub fn convert_on_one_core(repository: &Path, image: &str, name: &str) -> Conversion {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells which cores there are");
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux tells that");
    let first = cores.trim().split(['-', ',']).next().expect("there is a core");
    let _writes_back = WriteBackOnOneCore::start(first.parse().expect("cores are numbers"));
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", first, env!("CARGO_BIN_EXE_strata"), "--quiet", "--repo"]).arg(repository);
    watch(command.args(["convert", image, "--name", &format!("bench.example.org/{name}"), "--threads", "1"]))
}

/// Runs a command, which must succeed, and measures its time and memory.
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
        // The kernel reports the peak until now, and nothing after the program has ended.
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

/// Runs a command, which must succeed, and returns its elapsed time.
pub fn time(command: &mut Command) -> Duration {
    settle();
    let start = Instant::now();
    run(command);
    start.elapsed()
}

/// Waits until all written data is on disk, so that the next measurement does not include it.
pub fn settle() {
    rustix::fs::sync();
}

/// Runs a command, which must succeed, and returns its output.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Returns the shortest of several times, which other activity of the machine has affected least.
pub fn best(times: impl IntoIterator<Item = Duration>) -> Duration {
    times.into_iter().min().expect("something was measured")
}
