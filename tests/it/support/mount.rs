//! Small file systems to fill up and to make read-only.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::skip;

/// A file system in memory, which goes with the value. It is mounted in a namespace of its own, where commands can run.
pub struct TestMount {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What `nsenter` takes to get in.
    entry: &'static [&'static str],
    point: PathBuf,
}

/// A user namespace needs no root. Where those are forbidden, root may have a mount namespace.
const NAMESPACES: [(&[&str], &[&str]); 2] = [(&["-rm"], &["-U", "-m", "--preserve-credentials"]), (&["-m"], &["-m"])];

impl TestMount {
    /// Mounts a file system of `size`, such as `8m`, over the folder `point`. Where that is not permitted the test skips.
    #[track_caller]
    pub fn new(size: &str, point: &Path) -> Option<Self> {
        let mount = NAMESPACES.iter().find_map(|(kind, entry)| Self::start(kind, entry, size, point));
        if mount.is_none() {
            skip("file systems cannot be mounted here, not even in a namespace");
        }
        mount
    }

    fn start(kind: &[&str], entry: &'static [&'static str], size: &str, point: &Path) -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args(kind).arg("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = command.spawn().ok()?;
        let (input, output) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let mut mount = Self { shell, input, output, entry, point: point.to_owned() };
        mount.run(&format!("mount -t tmpfs -o mode=755,size={size} none '{}'", point.display())).then_some(mount)
    }

    /// Returns where the test itself sees the file system.
    pub fn path(&self) -> PathBuf {
        let root = Path::new("/proc").join(self.shell.id().to_string()).join("root");
        root.join(self.point.strip_prefix("/").expect("file systems are mounted at absolute paths"))
    }

    /// Prepares to run strata where the file system is mounted.
    pub fn strata<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.shell.id().to_string()]).args(self.entry).arg("--");
        command.arg(env!("CARGO_BIN_EXE_strata")).args(arguments);
        command
    }

    /// Mounts the file system anew with another option, such as `ro`.
    #[track_caller]
    pub fn remount(&mut self, option: &str) {
        assert!(self.run(&format!("mount -o remount,{option} '{}'", self.point.display())));
    }

    fn run(&mut self, command: &str) -> bool {
        let mut reply = String::new();
        let written = writeln!(self.input, "{command}; echo $?");
        written.is_ok() && self.output.read_line(&mut reply).is_ok() && reply.trim() == "0"
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        // The shell has no other purpose, and the file system goes with its namespace.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
