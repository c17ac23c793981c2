//! Namespaces to mount in, and small file systems to fill up and to make read-only.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::skip;

/// A mount namespace of its own, with a shell in it. What is mounted there goes with the value.
pub struct MountNamespace {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl MountNamespace {
    /// Lets `unshare` make namespaces of these kinds, such as `-Urm`; none where that is forbidden.
    ///
    /// With a `user`, they are that user's.
    pub fn new(kinds: &str, user: Option<u32>) -> Option<Self> {
        let mut command = Command::new("unshare");
        command.args([kinds, "sh"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let mut shell = command.spawn().ok()?;
        let (input, output) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let mut namespace = Self { shell, input, output };
        namespace.run("true").is_ok().then_some(namespace)
    }

    /// Runs a command there; an error is what it said.
    pub fn run(&mut self, command: &str) -> Result<(), String> {
        let (mut said, mut line) = (String::new(), String::new());
        // What the command says ends with a line of our own.
        writeln!(self.input, "{command} 2>&1; code=$?; echo; echo end $code").map_err(|error| error.to_string())?;
        while self.output.read_line(&mut line).is_ok_and(|length| length > 0) {
            match line.strip_prefix("end ").map(str::trim) {
                Some("0") => return Ok(()),
                Some(_) => return Err(said.trim().to_owned()),
                None => said.push_str(&line),
            }
            line.clear();
        }
        Err(format!("the shell has ended: {said}"))
    }

    /// Returns where the test itself sees what lies at an absolute path there.
    pub fn path(&self, inside: &Path) -> PathBuf {
        let root = Path::new("/proc").join(self.shell.id().to_string()).join("root");
        root.join(inside.strip_prefix("/").expect("the path is absolute"))
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        // The shell has no other purpose, and what is mounted goes with its namespace.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A file system in memory, which goes with the value. It is mounted in a namespace of its own, where commands can run.
pub struct TestMount {
    namespace: MountNamespace,
    /// What `nsenter` takes to get in.
    entry: &'static [&'static str],
    point: PathBuf,
}

/// A user namespace needs no root. Where those are forbidden, root may have a mount namespace.
const NAMESPACES: [(&str, &[&str]); 2] = [("-rm", &["-U", "-m", "--preserve-credentials"]), ("-m", &["-m"])];

impl TestMount {
    /// Mounts a file system of `size`, such as `8m`, over the directory `point`. Where that is not permitted the test skips.
    #[track_caller]
    pub fn new(size: &str, point: &Path) -> Option<Self> {
        let mount = NAMESPACES.iter().find_map(|(kinds, entry)| Self::start(kinds, entry, size, point));
        if mount.is_none() {
            skip("file systems cannot be mounted here, not even in a namespace");
        }
        mount
    }

    fn start(kinds: &str, entry: &'static [&'static str], size: &str, point: &Path) -> Option<Self> {
        let mut namespace = MountNamespace::new(kinds, None)?;
        let mount = format!("mount -t tmpfs -o mode=755,size={size} none '{}'", point.display());
        namespace.run(&mount).is_ok().then(|| Self { namespace, entry, point: point.to_owned() })
    }

    /// Returns where the test itself sees the file system.
    pub fn path(&self) -> PathBuf {
        self.namespace.path(&self.point)
    }

    /// Prepares to run strata where the file system is mounted.
    pub fn strata<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.namespace.shell.id().to_string()]).args(self.entry).arg("--");
        command.arg(env!("CARGO_BIN_EXE_strata")).args(arguments);
        command
    }

    /// Mounts the file system anew with another option, such as `ro`.
    #[track_caller]
    pub fn remount(&mut self, option: &str) {
        self.namespace.run(&format!("mount -o remount,{option} '{}'", self.point.display())).unwrap();
    }
}
