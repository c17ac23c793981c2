//! Mount namespaces, and small file systems that tests fill up or make read-only.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::skip;

/// A mount namespace with a shell in it. Dropping the value removes the namespace with all its mounts.
pub struct MountNamespace {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl MountNamespace {
    /// Creates namespaces with `unshare` and these options, such as `-Urm`. Returns `None` if that is not permitted.
    ///
    /// If `user` is given, the namespaces belong to that user.
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

    /// Runs a command in the namespace. An error is the output of the command.
    pub fn run(&mut self, command: &str) -> Result<(), String> {
        let (mut output, mut line) = (String::new(), String::new());
        // A line of this function marks the end of the command's output.
        writeln!(self.input, "{command} 2>&1; code=$?; echo; echo end $code").map_err(|error| error.to_string())?;
        while self.output.read_line(&mut line).is_ok_and(|length| length > 0) {
            match line.strip_prefix("end ").map(str::trim) {
                Some("0") => return Ok(()),
                Some(_) => return Err(output.trim().to_owned()),
                None => output.push_str(&line),
            }
            line.clear();
        }
        Err(format!("the shell has ended: {output}"))
    }

    /// Unmounts the file system at `point`.
    pub fn unmount(&mut self, point: &Path) {
        // Processes that other tests start at this moment hold copies of the test's open files until they execute their
        // program. Meanwhile the file system is busy.
        self.run(&format!("umount --lazy '{}'", point.display())).unwrap();
    }

    /// Returns the path at which the test itself finds an absolute path of the namespace.
    pub fn path(&self, inside: &Path) -> PathBuf {
        let root = Path::new("/proc").join(self.shell.id().to_string()).join("root");
        root.join(inside.strip_prefix("/").expect("the path is absolute"))
    }
}

impl Drop for MountNamespace {
    fn drop(&mut self) {
        // The namespace ends with its shell, and the mounts with the namespace.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A file system in memory, mounted in its own namespace, in which commands can run. Dropping the value removes it.
pub struct TestMount {
    namespace: MountNamespace,
    /// Options of `nsenter` that enter the namespace.
    entry: &'static [&'static str],
    point: PathBuf,
}

/// Options of `unshare` and `nsenter`, in the order of the attempts. A user namespace needs no root. Where user namespaces are
/// forbidden, root may still create a mount namespace.
const NAMESPACES: [(&str, &[&str]); 2] = [("-rm", &["-U", "-m", "--preserve-credentials"]), ("-m", &["-m"])];

impl TestMount {
    /// Mounts a file system of `size`, such as `8m`, on the directory `point`. Where that is not permitted, the test is skipped.
    #[track_caller]
    pub fn new(size: &str, point: &Path) -> Option<Self> {
        let mount = NAMESPACES.iter().find_map(|(kinds, entry)| Self::start(kinds, entry, size, point));
        if mount.is_none() {
            skip("file systems cannot be mounted, not even in a namespace");
        }
        mount
    }

    fn start(kinds: &str, entry: &'static [&'static str], size: &str, point: &Path) -> Option<Self> {
        let mut namespace = MountNamespace::new(kinds, None)?;
        let mount = format!("mount -t tmpfs -o mode=755,size={size} none '{}'", point.display());
        namespace.run(&mount).is_ok().then(|| Self { namespace, entry, point: point.to_owned() })
    }

    /// Returns the path at which the test itself finds the file system.
    pub fn path(&self) -> PathBuf {
        self.namespace.path(&self.point)
    }

    /// Returns a command that runs strata in the namespace of the file system.
    pub fn strata<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.namespace.shell.id().to_string()]).args(self.entry).arg("--");
        command.arg(env!("CARGO_BIN_EXE_strata")).args(arguments);
        command
    }

    /// Remounts the file system with another option, such as `ro`.
    #[track_caller]
    pub fn remount(&mut self, option: &str) {
        self.namespace.run(&format!("mount -o remount,{option} '{}'", self.point.display())).unwrap();
    }
}
