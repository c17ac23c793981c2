//! An OCI runtime runs a published image from a bundle, with the settings of the image's config.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use strata::consumer::bundle::{Bundle, BundleOptions};
use strata::directory::RepositoryDirectory;
use strata::layout::ImagePlace;
use strata::repository::Repository;

use crate::support::client::mount_with_client;
use crate::support::fuse::Mount;
use crate::support::{
    FQRN, NAME, TestImage, TestLayer, TestRepository, find_in_path, flat_path, names_in, need, need_fuse, run, skip,
};

/// Commands that print the user, directory, capabilities and host name of a container.
const TELL: &str = "id -u; id -g; id -G; pwd; grep CapEff /proc/self/status; grep CapAmb /proc/self/status; hostname";

/// A repository that is mounted for all users, and containers that run from it.
struct Scene {
    mount: Mount,
    repository: TestRepository,
}

/// The output of a container.
struct ContainerOutput {
    stdout: String,
    stderr: String,
}

impl Scene {
    /// Publishes an image and mounts the repository. Returns `None` where mounts or containers are not possible.
    #[track_caller]
    fn new(image: &TestImage) -> Option<Self> {
        Self::over(image, |repository| Some(Mount::start(repository, &["--allow-other"])))
    }

    #[track_caller]
    fn over(image: &TestImage, mount: fn(&TestRepository) -> Option<Mount>) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("only root may start containers and give others access to a mount");
            return None;
        }
        (need("runc") && need_fuse()).then_some(())?;
        let repository = TestRepository::publish(image);
        let home = repository.directory().parent().unwrap().to_owned();
        fs::set_permissions(home, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { mount: mount(&repository)?, repository })
    }

    fn bundle_command(&self, name: &str, options: &[&str]) -> (Command, PathBuf) {
        let directory = self.repository.beside(name);
        let mut command = self.repository.command(["bundle".as_ref(), NAME.as_ref(), directory.as_os_str()]);
        command.arg("--mountpoint").arg(&self.mount.directory).args(options);
        (command, directory)
    }

    /// Writes a bundle and runs it. Returns the output of the container and the warnings of strata.
    #[track_caller]
    fn run(&self, name: &str, options: &[&str], arguments: &[&str]) -> (ContainerOutput, String) {
        let (mut command, directory) = self.bundle_command(name, options);
        if !arguments.is_empty() {
            command.arg("--").args(arguments);
        }
        let made = output_of(command.output().unwrap());
        (self.run_bundle(name, &directory, &[]), made.stderr)
    }

    /// Runs a bundle; `prefix` is put in front of the command.
    #[track_caller]
    fn run_bundle(&self, name: &str, directory: &Path, prefix: &[&str]) -> ContainerOutput {
        let state = self.repository.beside(&format!("{name}.state"));
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
        let words = [prefix, &["runc", "--root", state.to_str().unwrap(), "run", "--bundle"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(directory).arg(format!("strata-test-{}-{name}", std::process::id()));
        output_of(command.env("XDG_RUNTIME_DIR", &state).output().unwrap())
    }
}

#[track_caller]
fn output_of(output: Output) -> ContainerOutput {
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{stdout}{stderr}");
    ContainerOutput { stdout, stderr }
}

/// Adds a shell and the programs that the tests run.
fn with_shell(layer: TestLayer) -> TestLayer {
    let busybox = find_in_path("busybox").expect("the test skips where busybox is not installed");
    let layer = layer.file("bin/busybox", fs::read(busybox).unwrap()).mode(0o755);
    let programs = ["cat", "env", "grep", "hostname", "id", "ls", "pwd", "sh", "touch"];
    programs.iter().fold(layer, |layer, program| layer.symlink(format!("bin/{program}"), "busybox"))
}

/// Returns an image with a shell, two users and a working directory.
fn image() -> TestImage {
    let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:100::/home/app:/bin/sh\n";
    TestImage::new().layer(with_shell).layer(|layer| {
        let layer = layer.file("etc/passwd", passwd).file("etc/group", "root:x:0:\nextra:x:1234:app\n");
        layer.dir("work").file("work/here", "x").dir("run").dir("run/lock").mode(0o1777).dir("tmp").mode(0o1777)
    })
}

fn shell(image: TestImage, script: &str) -> TestImage {
    image.entrypoint(["/bin/sh", "-c"]).cmd([script])
}

fn config(directory: &Path) -> Value {
    serde_json::from_slice(&fs::read(directory.join("config.json")).unwrap()).unwrap()
}

#[test]
fn image_runs_as_its_user_in_its_directory_with_its_capabilities_only() {
    run_as_user(Scene::new);
}

#[test]
fn image_runs_as_its_user_in_its_directory_from_the_cvmfs_client() {
    run_as_user(|image| Scene::over(image, mount_with_client));
}

fn run_as_user(scene: fn(&TestImage) -> Option<Scene>) {
    if !need("busybox") {
        return;
    }
    let script = format!("{TELL}; env; ls; touch /x || touch /tmp/x /dev/shm/x && echo only there; ls /run /etc");
    let image = shell(image(), &script).setting("User", json!("app")).setting("WorkingDir", json!("/work"));
    let Some(scene) = scene(&image.env("A", "b c").env("NUMBER", "1=2")) else { return };
    let (printed, warnings) = scene.run("plain", &["--hostname", "node-1.example.org"], &[]);
    let lines: Vec<&str> = printed.stdout.lines().collect();
    let nothing = ["CapEff:\t0000000000000000", "CapAmb:\t0000000000000000"];
    assert_eq!(lines[..7], ["1000", "100", "100 1234", "/work", nothing[0], nothing[1], "node-1.example.org"]);
    for line in ["A=b c", "NUMBER=1=2", "HOME=/home/app", "here", "only there", "passwd"] {
        assert!(lines.contains(&line), "{line}: {}", printed.stdout);
    }
    assert!(lines.iter().any(|line| line.starts_with("PATH=/usr/local/sbin:")), "{}", printed.stdout);
    assert!(printed.stderr.contains("/x: Read-only file system"), "{}", printed.stderr);
    assert_eq!(warnings, "");
    let (printed, _) = scene.run("root", &["--user", "0:1234"], &[&format!("{TELL}; touch /run/x; ls /run")]);
    let lines: Vec<&str> = printed.stdout.lines().collect();
    assert_eq!(lines[..6], ["0", "1234", "1234", "/work", "CapEff:\t00000000a80425fb", nothing[1]]);
    assert_eq!(lines[6].len(), 12, "{}", printed.stdout);
    assert_eq!(lines[7..], ["lock", "x"], "the image's own content of the directory is visible");
}

#[test]
fn arguments_reach_the_program_unchanged() {
    if !need("busybox") {
        return;
    }
    let odd = ["", "two words", "a\nb\t", "\"q\" 'q' \\", "$HOME `id` $(id)", "é\u{1f600}", "%s"];
    let image = image().entrypoint(["/bin/busybox", "printf", "[%s]"]).env("ODD", odd[3]).env("LINES", odd[2]).cmd(odd);
    let Some(scene) = Scene::new(&image) else { return };
    let expected = |words: &[&str]| words.iter().map(|word| format!("[{word}]")).collect::<String>();
    assert_eq!(scene.run("image", &[], &[]).0.stdout, expected(&odd));
    assert_eq!(scene.run("given", &[], &["--", "-x"]).0.stdout, expected(&["--", "-x"]));
    let directory = scene.repository.beside("image");
    let env = config(&directory)["process"]["env"].clone();
    assert!(env.as_array().unwrap().contains(&json!("LINES=a\nb\t")), "{env}");
    assert!(env.as_array().unwrap().contains(&json!(format!("ODD={}", odd[3]))), "{env}");
    let root = config(&directory)["root"].clone();
    assert!(root["path"].as_str().unwrap().ends_with(&flat_path(&image)), "{root}");
    assert_eq!(root["readonly"], true);
}

#[test]
fn missing_working_directory_is_created_in_memory_or_replaced_by_the_root() {
    if !need("busybox") {
        return;
    }
    for (directory, there, warned) in [
        ("/home/app/work", "/home/app/work", "mounted at '/home'"),
        ("/tmp/some/where", "/tmp/some/where", ""),
        ("/nowhere/at/all", "/", "the program starts in '/'"),
        ("/etc/passwd", "/", "the program starts in '/'"),
    ] {
        let image = shell(image(), "pwd; touch x 2>/dev/null || true").setting("WorkingDir", json!(directory));
        let Some(scene) = Scene::new(&image) else { return };
        let (printed, warnings) = scene.run("run", &[], &[]);
        assert_eq!(printed.stdout, format!("{there}\n"));
        assert!(warnings.contains(warned) && warnings.is_empty() == warned.is_empty(), "{warnings}");
    }
}

#[test]
fn accounts_are_read_through_links_of_the_image() {
    if !need("busybox") {
        return;
    }
    let image = TestImage::new().layer(with_shell).layer(|layer| {
        let layer = layer.symlink("etc", "/../usr/etc").symlink("usr/etc/passwd", "../../share/passwd");
        let layer =
            layer.symlink("usr/etc/group", "/share/group").symlink("tmp", "share/tmp").dir("share/tmp").mode(0o1777);
        layer.file("share/passwd", "app:x:7:8::/:\n").file("share/group", "staff:x:9:app\n")
    });
    let image = shell(image, "id -u; id -G; touch /tmp/x; ls /share/tmp").setting("User", json!("app"));
    let Some(scene) = Scene::new(&image) else { return };
    assert_eq!(scene.run("run", &[], &[]).0.stdout, "7\n8 9\nx\n");
    let (mut command, directory) = scene.bundle_command("nobody", &["--user", "app:bob"]);
    scene.repository.refuse_command(&mut command, 1, &["bob", "/etc/group", NAME]);
    assert!(!directory.exists());
}

#[test]
fn host_network_includes_the_hosts_file() {
    if !need("busybox") {
        return;
    }
    let Some(scene) = Scene::new(&shell(image(), "ls /sys/class/net; cat /etc/hosts")) else { return };
    let (alone, _) = scene.run("alone", &[], &[]);
    assert_eq!(alone.stdout, "lo\n");
    let (shared, _) = scene.run("shared", &["--host-network"], &[]);
    let names = names_in(Path::new("/sys/class/net"));
    assert_eq!(shared.stdout, format!("{}\n{}", names.join("\n"), fs::read_to_string("/etc/hosts").unwrap()));
}

/// A user without privileges.
const SOMEBODY: u32 = 54_321;

#[test]
fn unprivileged_user_runs_a_bundle_as_its_only_user() {
    if !(need("busybox") && need("setpriv")) {
        return;
    }
    let script = "id -u; id -G; cat /proc/self/uid_map; pwd; touch /x || touch /run/x && ls /run";
    let image = shell(image(), script).setting("User", json!("app")).setting("WorkingDir", json!("/work"));
    let Some(scene) = Scene::new(&image) else { return };
    let id = SOMEBODY.to_string();
    let user = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
    let allowed = [&user[..], &["unshare", "--user", "--map-root-user", "--mount", "true"]].concat();
    if !Command::new(allowed[0]).args(&allowed[1..]).status().unwrap().success() {
        return skip("users may not create namespaces on this machine");
    }
    let directory = RepositoryDirectory::open(&scene.repository.directory()).unwrap();
    let repository = Repository::open(directory.store().unwrap(), directory.name()).unwrap();
    let place = ImagePlace { name: NAME.parse().unwrap(), platform: None };
    let rootless = Some((SOMEBODY, SOMEBODY));
    let options = BundleOptions { mountpoint: Some(scene.mount.directory.clone()), rootless, ..Default::default() };
    let bundle = Bundle::of(&repository, &place, &options).unwrap();
    assert!(
        bundle.warnings.iter().any(|warning| warning.contains("as user 1000 of the image")),
        "{:?}",
        bundle.warnings
    );
    let directory = scene.repository.beside("theirs");
    bundle.write(&directory).unwrap();
    chown(&directory, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    let printed = scene.run_bundle("theirs", &directory, &user);
    let lines: Vec<Vec<&str>> = printed.stdout.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    assert_eq!(lines, [vec!["0"], vec!["0"], vec!["0", &id, "1"], vec!["/work"], vec!["x"]]);
    assert!(printed.stderr.contains("/x: Read-only file system"), "{}", printed.stderr);
    let (printed, warnings) = scene.run("mine", &["--rootless"], &[]);
    assert!(printed.stdout.starts_with("0\n0\n"), "{}", printed.stdout);
    assert!(warnings.contains("as user 1000 of the image"), "{warnings}");
}

#[test]
fn bundle_refers_to_the_mount_point_of_clients() {
    let image = image().cmd(["/bin/sh"]);
    let repository = TestRepository::publish(&image);
    let directory = repository.beside("bundle");
    for name in [NAME.to_owned(), format!("docker://{NAME}"), format!("https://{NAME}@{}", image.manifest_digest())] {
        let run = repository.run(["bundle".as_ref(), name.as_ref(), directory.as_os_str(), "--json".as_ref()]);
        let json = run.expect_code(0).json();
        let root = format!("/cvmfs/{FQRN}/{}", flat_path(&image));
        assert_eq!((&json["root"], &json["args"], &json["name"]), (&json!(root), &json!(["/bin/sh"]), &json!(NAME)));
        assert_eq!(config(&directory)["root"]["path"], root);
        assert_eq!(config(&directory)["ociVersion"], "1.0.2");
        fs::remove_dir_all(&directory).unwrap();
    }
}

#[test]
fn nothing_is_written_if_no_bundle_is_possible() {
    let repository = TestRepository::publish(&image().cmd(["x"]));
    repository.convert(&image(), "h.org/bare:1", &[]).expect_code(0);
    repository.convert(&image().cmd(["/bin/sh"]), "h.org/layers:1", &["--skip-flat"]).expect_code(0);
    repository.convert(&image().cmd(["a\0b"]), "h.org/nul:1", &[]).expect_code(0);
    repository.convert(&image().cmd(["a"]).setting("User", json!("bob\n")), "h.org/user:1", &[]).expect_code(0);
    let directory = repository.beside("bundle");
    let target = directory.to_str().unwrap();
    let other = format!("{NAME}@{}", image().config_digest());
    let elsewhere = repository.directory().display().to_string();
    for (code, arguments, words) in [
        (1, vec!["h.org/bare:1", target], &["names no program", "'--'"][..]),
        (1, vec!["h.org/none:1", target], &["'h.org/none:1' is not in the repository"]),
        (1, vec!["h.org/layers:1", target], &["h.org/layers:1", "--skip-flat"]),
        (1, vec!["h.org/nul:1", target], &["NUL"]),
        (1, vec!["h.org/user:1", target], &["h.org/user:1", "bob", "/etc/passwd"]),
        (1, vec![&other, target], &[&image().config_digest()]),
        (1, vec![NAME, target, "--mountpoint", "/nonexistent"], &["/nonexistent"]),
        (1, vec![NAME, target, "--mountpoint", &elsewhere], &["mounted", &elsewhere]),
        (1, vec![NAME, "/nonexistent/bundle"], &["/nonexistent/bundle"]),
        (1, vec![NAME, &elsewhere], &[&elsewhere, "not an empty directory"]),
        (2, vec![NAME, target, "--platform", "linux/amd64"], &["--platform"]),
    ] {
        repository.refuse([&["bundle"], &arguments[..]].concat(), code, words);
        assert!(!directory.exists(), "{arguments:?}");
    }
    for arguments in [vec!["oci:dir", target], vec![NAME, target, "--hostname", "a b"], vec![NAME], vec!["a", target]] {
        repository.run([&["bundle"], &arguments[..]].concat()).expect_code(2);
        assert!(!directory.exists(), "{arguments:?}");
    }
}

#[test]
fn links_on_the_way_to_the_mount_are_resolved() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&image().cmd(["/bin/sh"]));
    let mount = Mount::start(&repository, &[]);
    let (link, directory) = (repository.beside("link"), repository.beside("bundle"));
    symlink(&mount.directory, &link).unwrap();
    let mut command = repository.command(["bundle".as_ref(), NAME.as_ref(), directory.as_os_str()]);
    run(command.arg("--mountpoint").arg(&link));
    let root = config(&directory)["root"]["path"].as_str().unwrap().to_owned();
    assert_eq!(fs::canonicalize(&root).unwrap(), Path::new(&root));
    assert!(Path::new(&root).join("bin/busybox").is_file());
}

#[test]
fn bundle_runs_one_of_several_platforms() {
    let repository = TestRepository::new();
    let images = ["amd64", "arm64", "s390x"]
        .map(|name| TestImage::new().layer(|layer| layer.file("name", name)).cmd([name]).platform("linux", name));
    let source = repository.source_of_index(&images);
    repository.run(["convert", &source, "--name", NAME, "--platform", "all"]).expect_code(0);
    let bundle = |options: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().to_str().unwrap();
        repository.run([&["bundle", NAME, target, "--json"], options].concat()).expect_code(0).json()
    };
    let own = bundle(&[]);
    assert_eq!(own["args"], json!([own["platform"].as_str().unwrap().trim_start_matches("linux/")]));
    let other = bundle(&["--platform", "linux/s390x"]);
    assert_eq!((&other["args"], &other["config"]), (&json!(["s390x"]), &json!(images[2].config_digest())));
    let target = repository.beside("none").display().to_string();
    let words = ["linux/amd64, linux/arm64, linux/s390x", "linux/riscv64"];
    repository.refuse(["bundle", NAME, &target, "--platform", "linux/riscv64"], 1, &words);
}
