//! Podman with its own storage, above an additional image store in a mounted repository.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::geteuid;
use tempfile::TempDir;

use super::client::mount_with_client;
use super::fuse::{Mount, wait_until};
use super::{Run, TestLayer, TestRepository, find_in_path, need, need_fuse, skip};

/// Options for machines on which podman may not raise limits or manage control groups.
const GLOBAL: [&str; 6] = ["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"];

/// Options for commands that run containers on such machines.
const RUN: [&str; 6] = ["--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// Names of the programs in the layer of [`busybox`].
const PROGRAMS: [&str; 10] = ["sh", "echo", "cat", "id", "env", "pwd", "ls", "touch", "chown", "rm"];

/// A user without privileges.
const USER_ID: u32 = 1234;

/// Podman as root, or as a user. Dropping the value removes everything that podman stored or started.
pub struct Podman {
    home: TempDir,
    mount: Mount,
    service: Option<Child>,
}

impl Podman {
    /// Mounts a repository and configures a storage above its store. Where that is not possible, the test is skipped.
    #[track_caller]
    pub fn over(repository: &TestRepository) -> Option<Self> {
        Self::can_run().then(|| Self::of(Mount::start(repository, &["--allow-other"])))
    }

    /// Does the same with a mount of the CVMFS client, if it is installed.
    #[track_caller]
    pub fn over_client(repository: &TestRepository) -> Option<Self> {
        Self::can_run().then(|| mount_with_client(repository)).flatten().map(Self::of)
    }

    #[track_caller]
    fn can_run() -> bool {
        need_fuse() && need("podman") && need("runc") && need_root()
    }

    fn of(mount: Mount) -> Self {
        let podman = Self { home: tempfile::tempdir().unwrap(), mount, service: None };
        podman.configure("root", "");
        podman
    }

    /// Writes a configuration for a storage in the directory `name`, and returns its path.
    fn configure(&self, name: &str, more: &str) -> PathBuf {
        let home = self.home.path().join(name);
        fs::create_dir_all(&home).unwrap();
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n\
             [storage.options]\nadditionalimagestores = [\"{1}\"]\n{more}",
            home.display(),
            self.mount.directory.join("podmanStore").display(),
        );
        let path = home.join("storage.conf");
        fs::write(&path, text).unwrap();
        path
    }

    /// Prepares a command of podman.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_STORAGE_CONF", self.home.path().join("root/storage.conf"));
        command.env("TMPDIR", self.home.path()).current_dir("/").args(GLOBAL).args(arguments);
        command
    }

    /// Runs a command of podman, which must succeed, and returns its output.
    #[track_caller]
    pub fn output<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        Run::of(&mut self.command(arguments)).expect_code(0).stdout().trim_end().to_owned()
    }

    /// Runs a container of an image, and returns its output.
    #[track_caller]
    pub fn run(&self, image: &str, words: &[&str]) -> String {
        self.output([&["run", "--rm"], &RUN[..], &[image], words].concat())
    }

    /// Creates a container of an image and returns its ID.
    #[track_caller]
    pub fn create(&self, image: &str, words: &[&str]) -> String {
        self.output([&["create"], &RUN[..], &[image], words].concat())
    }

    /// Builds an image, and returns its ID.
    #[track_caller]
    pub fn build(&self, text: &str) -> String {
        let directory = tempfile::tempdir_in(self.home.path()).unwrap();
        fs::write(directory.path().join("Dockerfile"), text).unwrap();
        self.output([&["build", "--quiet"], &RUN[..], &[directory.path().to_str().unwrap()]].concat())
    }

    /// Returns the names of all images, sorted. An image without a name is listed as `<none>:<none>`.
    #[track_caller]
    pub fn names(&self) -> Vec<String> {
        let images = self.output(["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let mut names: Vec<String> = images.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Returns the ID of the image with a name.
    #[track_caller]
    pub fn id(&self, image: &str) -> String {
        self.output(["image", "inspect", "--format", "{{.Id}}", image])
    }

    /// Starts the service, which runs until the value is dropped.
    pub fn serve(&mut self) {
        let socket = self.socket();
        let mut command = self.command(["system", "service", "--time", "0", &format!("unix://{}", socket.display())]);
        self.service = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        wait_until("the service listens", || socket.exists());
    }

    /// Returns the ID of an image according to the service.
    pub fn ask_id(&self, image: &str) -> String {
        let url = format!("unix://{}", self.socket().display());
        let mut command = Command::new("podman");
        command.args(["--remote", "--url", &url, "image", "inspect", "--format", "{{.Id}}", image]);
        Run::of(&mut command).expect_code(0).stdout().trim_end().to_owned()
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("service.sock")
    }

    /// Runs a shell script as a user with subordinate IDs, in temporary namespaces. In the script, `$RUN` runs a container.
    #[track_caller]
    pub fn as_user(&self, script: &str) -> String {
        let overlay = "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n";
        let settings = self.configure("user", overlay);
        let home = settings.parent().unwrap();
        let runtime = home.join("runtime");
        fs::create_dir(&runtime).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(self.home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        [home, &runtime].into_iter().for_each(|directory| chown(directory, Some(USER_ID), Some(USER_ID)).unwrap());
        self.write_accounts();
        let script = format!(
            "set -e; cd {accounts}\n\
             mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse\n\
             mount --bind passwd /etc/passwd; mount --bind subids /etc/subuid; mount --bind subids /etc/subgid\n\
             cd /; exec setpriv --reuid {USER_ID} --regid {USER_ID} --clear-groups env -i PATH=\"$PATH\" HOME={home} \
             XDG_RUNTIME_DIR={runtime} CONTAINERS_STORAGE_CONF={settings} \
             RUN='podman {global} run --rm {run}' sh -ec '{script}'",
            accounts = self.home.path().display(),
            home = home.display(),
            runtime = runtime.display(),
            settings = settings.display(),
            global = GLOBAL.join(" "),
            run = RUN.join(" "),
        );
        let namespaces = ["-m", "-p", "-f", "--mount-proc", "--kill-child", "--propagation", "private"];
        let run = Run::of(Command::new("unshare").args(namespaces).args(["sh", "-c", &script])).expect_code(0);
        run.stdout().trim_end().to_owned()
    }

    fn write_accounts(&self) {
        let accounts = fs::read_to_string("/etc/passwd").unwrap();
        let user = format!("{accounts}strata-test:x:{USER_ID}:{USER_ID}::/nonexistent:/bin/sh\n");
        fs::write(self.home.path().join("passwd"), user).unwrap();
        fs::write(self.home.path().join("subids"), "strata-test:200000:65536\n").unwrap();
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
        let _ = self.command(["rm", "--all", "--force", "--time", "0"]).output();
        let graph = self.home.path().join("root/graph/overlay");
        let _ = Command::new("umount").args(["-R", "-l"]).arg(graph).output();
    }
}

#[track_caller]
fn need_root() -> bool {
    if !geteuid().is_root() {
        skip("podman is tested as root, which then becomes a user");
    }
    geteuid().is_root()
}

/// Returns a function that adds a shell, a few programs and a user to a layer. Where busybox is not installed, the test is skipped.
#[track_caller]
pub fn busybox() -> Option<impl Fn(TestLayer) -> TestLayer> {
    need("busybox").then_some(())?;
    let program = fs::read(find_in_path("busybox")?).unwrap();
    Some(move |layer: TestLayer| {
        let layer = layer.file("bin/busybox", &program).mode(0o755);
        let layer = PROGRAMS.iter().fold(layer, |layer, name| layer.symlink(format!("bin/{name}"), "busybox"));
        layer
            .file("etc/passwd", "root:x:0:0::/:/bin/sh\nme:x:1234:1234::/:/bin/sh\n")
            .file("etc/group", "root:x:0:\nme:x:1234:\nstaff:x:50:\n")
            .dir("tmp")
            .mode(0o1777)
    })
}
