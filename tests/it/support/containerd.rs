//! containerd with the snapshotter of CVMFS, and the part of a Kubernetes node that starts containers through it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::fuse::wait_until;
use super::grpc::{Answer, GrpcClient, Message};
use super::{TestImage, find_in_path, find_program, need, run, skip_uncaptured};

/// Name under which [`Containerd`] imports the image that holds a pod's namespaces.
const PAUSE: &str = "localhost/pause:1";

/// containerd and the snapshotter. Both run until the value is dropped.
///
/// All processes run in their own namespaces, so that no process and no mount remains, however the
/// test ends. Still, each test needs its own mount of the repository: a snapshotter that restarts after a crash
/// unmounts the repository that it was using.
pub struct Containerd {
    home: TempDir,
    unshare: Child,
    client: GrpcClient,
    /// Directory name in every hierarchy of control groups.
    group: String,
}

/// A container that was started.
pub struct Container<'c> {
    containerd: &'c Containerd,
    pod: String,
    id: String,
}

impl Containerd {
    /// Starts both programs with a mounted repository. Returns `None` if they are missing or not permitted to run.
    ///
    /// No package registry has the snapshotter: if it is missing, prints that the test is skipped.
    pub fn start(repository: &Path) -> Option<Self> {
        let program = find_program("cvmfs_snapshotter", "STRATA_TEST_SNAPSHOTTER");
        let Some(program) = program.filter(|_| rustix::process::geteuid().is_root()) else {
            skip_uncaptured(
                "containerd is not tried: cvmfs_snapshotter is neither in STRATA_TEST_SNAPSHOTTER nor in PATH, or we are not root",
            );
            return None;
        };
        (need("containerd") && need("ctr") && need("runc") && need("busybox")).then_some(())?;
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::write(at("containerd.toml"), settings(home.path())).unwrap();
        fs::write(at("snapshotter.toml"), format!("absolute-mountpoint = \"{}\"\n", repository.display())).unwrap();
        // Files that the programs leave below /run disappear with the namespace.
        let script = "mount -t tmpfs none /run && cd \"$1\" &&
            { \"$2\" --config snapshotter.toml --address \"$1/snapshotter.sock\" --root \"$1/snapshotter\" &
              containerd --config containerd.toml & wait; }";
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"]);
        command.arg(home.path()).arg(program);
        let log = File::create(at("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let client = GrpcClient::new(at("containerd.sock"));
        let group = format!("strata-test-{}", home.path().file_name().unwrap().to_str().unwrap().replace('.', ""));
        let mut containerd = Self { unshare: command.spawn().unwrap(), client, group, home };
        containerd.wait_until_it_answers();
        containerd.import_pause();
        Some(containerd)
    }

    fn wait_until_it_answers(&mut self) {
        let mut last = String::new();
        wait_until("containerd answers", || {
            assert_eq!(self.unshare.try_wait().unwrap(), None, "{}", self.log());
            let answer = self.ask("RuntimeService/Status", &Message::new()).map(drop);
            let error = answer.err().unwrap_or_default();
            if error != last {
                println!("{error}");
                last.clone_from(&error);
            }
            error.is_empty() && self.at("snapshotter.sock").exists()
        });
    }

    /// Imports the image that holds a pod's namespaces, which nodes usually pull from the registry of Kubernetes.
    fn import_pause(&self) {
        // No test image has this layer.
        let image = TestImage::new().layer(|layer| layer.file("pause/busybox", busybox()).mode(0o755));
        let file = self.at("pause.tar");
        image.entrypoint(["/pause/busybox", "sleep", "100000"]).write_docker_archive(&file, PAUSE);
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.at("containerd.sock")).args(["--namespace", "k8s.io", "images", "import"]);
        run(ctr.args(["--snapshotter", "cvmfs-snapshotter"]).arg(file));
    }

    /// Returns the log of both programs.
    pub fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap()
    }

    /// Pulls an image. An error is the message of containerd.
    pub fn pull(&self, image: &str) -> Result<(), String> {
        let image = Message::new().text(1, image);
        self.ask("ImageService/PullImage", &Message::new().message(1, &image)).map(drop)
    }

    /// Starts a container of a pulled image, with the image's entry point and command.
    #[track_caller]
    pub fn run(&self, image: &str) -> Container<'_> {
        let name = Message::new().text(1, "pod").text(2, "1").text(3, "test");
        // The pod uses the network of the machine, so that no network has to be set up.
        let namespaces = Message::new().number(1, 2);
        let linux = Message::new().text(1, &format!("/{}", self.group));
        let linux = linux.message(2, &Message::new().message(1, &namespaces));
        let servers = Message::new().text(1, "127.0.0.1");
        let pod = Message::new().message(1, &name).text(3, self.at("logs").to_str().unwrap());
        let pod = pod.message(4, &servers).message(8, &linux);
        let id = self.must("RuntimeService/RunPodSandbox", &Message::new().message(1, &pod)).text(1);
        let image = Message::new().text(1, image);
        let container = Message::new().message(1, &Message::new().text(1, "container")).message(2, &image);
        let request = Message::new().text(1, &id).message(2, &container).message(3, &pod);
        let container = self.must("RuntimeService/CreateContainer", &request).text(1);
        self.must("RuntimeService/StartContainer", &Message::new().text(1, &container));
        Container { containerd: self, pod: id, id: container }
    }

    #[track_caller]
    fn must(&self, method: &str, message: &Message) -> Answer {
        self.ask(method, message).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    fn ask(&self, method: &str, message: &Message) -> Result<Answer, String> {
        self.client.call(&format!("/runtime.v1.{method}"), message)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // When the first process of the namespace ends, the kernel ends all others first.
        let children = format!("/proc/{0}/task/{0}/children", self.unshare.id());
        let first = fs::read_to_string(children).ok().and_then(|list| list.split(' ').next()?.parse().ok());
        match first.and_then(Pid::from_raw) {
            Some(first) => drop(kill_process(first, Signal::KILL)),
            None => drop(self.unshare.kill()),
        }
        let _ = self.unshare.wait();
        remove_groups(Path::new("/sys/fs/cgroup"), &self.group, 2);
    }
}

impl Container<'_> {
    /// Runs a command in the container and returns what it prints.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> String {
        let request = Message::new().text(1, &self.id).texts(2, command).number(3, 60);
        let answer = self.containerd.must("RuntimeService/ExecSync", &request);
        assert_eq!((answer.number(3), answer.text(2)), (0, String::new()), "{command:?}");
        answer.text(1)
    }

    /// Ends the container and its pod.
    #[track_caller]
    pub fn remove(self) {
        let pod = Message::new().text(1, &self.pod);
        self.containerd.must("RuntimeService/StopPodSandbox", &pod);
        self.containerd.must("RuntimeService/RemovePodSandbox", &pod);
    }
}

/// Returns the settings of containerd. They enable labels, by which the snapshotter learns which layer is wanted.
fn settings(home: &Path) -> String {
    let home = home.display();
    format!(
        r#"version = 2
root = "{home}/root"
state = "{home}/state"
[grpc]
  address = "{home}/containerd.sock"
[proxy_plugins.cvmfs-snapshotter]
  type = "snapshot"
  address = "{home}/snapshotter.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "cvmfs-snapshotter"
  disable_snapshot_annotations = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{home}/cni"
  conf_dir = "{home}/cni"
"#
    )
}

/// Adds a layer that contains only a static busybox on top of an image.
pub fn with_busybox(image: TestImage) -> TestImage {
    image.layer(|layer| layer.file("bin/busybox", busybox()).mode(0o755))
}

fn busybox() -> Vec<u8> {
    fs::read(find_in_path("busybox").expect("the test skips where busybox is not installed")).unwrap()
}

/// Removes control groups of this name and everything below them, from hierarchies at most `depth` directories below `directory`.
fn remove_groups(directory: &Path, name: &str, depth: usize) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        if entry.file_name() == name {
            remove_group(&entry.path());
        } else if depth > 0 {
            remove_groups(&entry.path(), name, depth - 1);
        }
    }
}

fn remove_group(directory: &Path) {
    let below = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).for_each(|group| remove_group(&group));
    // The kernel may need a moment to notice that the group is empty. Then the group remains, which is harmless.
    fs::remove_dir(directory).ok();
}
