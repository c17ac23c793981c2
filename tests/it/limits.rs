//! Limits of the machine: threads, space, locks, permissions, file sizes, path lengths.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::faulty::{Fate, FaultyMount, Operation};
use crate::support::random::noise;
use crate::support::{NAME, Run, TestImage, TestMount, TestRegistry, TestRepository, need, skip, strata_command};

/// Users that run nothing else on this machine, one for each test, because limits count all processes of a user.
static NEXT_USER: AtomicU32 = AtomicU32::new(54_321);

/// Time limit for each command of these tests.
const PATIENCE: Duration = Duration::from_secs(120);

fn image() -> TestImage {
    let base = TestImage::new().layer(|layer| layer.file("a/b", "b").file("c", "c"));
    base.layer(|layer| layer.file("d", "d".repeat(100_000)))
}

/// A repository of a user without privileges, with a copy of the program: the user may have no access to the
/// directory of the original.
struct Scene {
    repository: TestRepository,
    program: PathBuf,
    user: u32,
}

impl Scene {
    /// Returns `None`, and the test is skipped, where commands cannot be run as another user.
    fn new(repository: TestRepository) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("only root may run commands as another user");
        }
        (rustix::process::geteuid().is_root() && need("prlimit") && need("setpriv")).then_some(())?;
        let program = repository.beside("strata");
        fs::copy(repository.command(["list"]).get_program(), &program).unwrap();
        Some(Self { repository, program, user: NEXT_USER.fetch_add(1, Ordering::Relaxed) })
    }

    /// Wraps a command so that it runs as the user, with these options of `prlimit`.
    fn command(&self, command: &Command, limits: &[&str]) -> Command {
        let home = self.repository.beside("");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).unwrap();
        give(&home, self.user);
        let user = self.user.to_string();
        let mut limited = Command::new("prlimit");
        limited.args(limits).args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]);
        limited.arg(&self.program).args(command.get_args()).current_dir("/");
        limited
    }

    /// Runs a command on the repository as the user.
    fn run(&self, arguments: &[&str], limits: &[&str]) -> Run {
        Run::within(PATIENCE, &mut self.command(&self.repository.command(arguments), limits))
    }
}

/// Changes the owner of everything below a directory.
fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), user));
    }
}

#[test]
fn commands_with_few_threads_are_slower_or_print_why_they_fail_and_never_panic() {
    let Some(scene) = Scene::new(TestRepository::new()) else { return };
    let Some(registry) = TestRegistry::start() else { return };
    registry.push(&image(), "test/image:1");
    let remote = format!("http://{}/test/image:1", registry.host());
    let source = scene.repository.source(&image());
    let list = scene.repository.beside("list.yaml");
    fs::write(&list, format!("version: 1\ninput:\n  - {remote}\n")).unwrap();
    let list = list.display().to_string();
    let elsewhere = scene.repository.beside("new.example.org");
    let commands: [&[&str]; 6] = [
        &["convert", &source, "--name", NAME, "--threads", "8"],
        &["convert", &remote, "--threads", "8"],
        &["sync", &list],
        &["check", "--threads", "8"],
        &["verify", &source, "--name", NAME, "--threads", "8"],
        &["diff", "1", "head"],
    ];
    let assert_told = |threads: u32, arguments: &[&str], run: &Run| {
        let output = format!("{threads} threads, {arguments:?}: {}{}", run.stdout(), run.stderr());
        assert!(!output.contains("panicked"), "{output}");
        assert!(matches!(run.exit_code(), Some(0 | 1 | 3 | 4)), "{:?}: {output}", run.exit_code());
    };
    for threads in (1..=12).chain([16, 24]) {
        let limit = format!("--nproc={threads}");
        for arguments in commands {
            assert_told(threads, arguments, &scene.run(arguments, &[&limit]));
        }
        fs::remove_dir_all(&elsewhere).ok();
        let init = strata_command(["init", "new.example.org", "--repo", elsewhere.to_str().unwrap()]);
        assert_told(threads, &["init"], &Run::within(PATIENCE, &mut scene.command(&init, &[&limit])));
    }
    for arguments in [commands[0], commands[3], commands[4]] {
        scene.run(arguments, &["--nproc=24"]).expect_code(0);
    }
    let run = scene.run(&["check", "--threads", "64"], &["--nproc=8"]).expect_code(0);
    assert!(run.stderr().contains("of 64 threads (see `ulimit -u`)"), "{}", run.stderr());
}

#[test]
fn file_above_the_size_limit_is_a_write_error() {
    let Some(scene) = Scene::new(TestRepository::publish(&image())) else { return };
    let noise = noise(1, 1_200_000);
    let source = scene.repository.source(&TestImage::new().layer(|layer| layer.file("noise", noise)));
    let before = scene.repository.manifest_bytes();
    let run = scene.run(&["convert", &source, "--name", NAME], &["--fsize=200000"]).expect_code(1);
    assert!(run.stderr().contains("File too large"), "{}", run.stderr());
    assert_eq!(scene.repository.manifest_bytes(), before);
    scene.run(&["convert", &source, "--name", NAME], &[]).expect_code(0);
}

#[test]
fn unreadable_file_is_not_treated_as_missing() {
    let Some(scene) = Scene::new(TestRepository::publish(&image())) else { return };
    let close = |path: &str, mode: u32| {
        let path = scene.repository.directory().join(path);
        chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    // The command is prepared first, because it would change the owner of the closed file.
    let run_with = |path: &str, arguments: &[&str]| {
        let mut command = scene.command(&scene.repository.command(arguments), &[]);
        let before = fs::metadata(scene.repository.directory().join(path)).unwrap().permissions().mode();
        close(path, 0o700);
        let run = Run::within(PATIENCE, &mut command);
        close(path, before);
        run
    };
    for arguments in [&["check"][..], &["check", "--quick"], &["check", NAME]] {
        for path in ["storage/data/00", "storage/data/7f", "storage/data/txn"] {
            let run = run_with(path, arguments);
            let is_part = path == "storage/data/txn" || arguments != ["check", NAME];
            if is_part {
                run.expect_code(4);
            }
        }
        assert!(matches!(run_with("storage/data", arguments).exit_code(), Some(1 | 4)));
    }
    for arguments in [&["check"][..], &["list"], &["info"], &["convert", "oci:none", "--name", NAME]] {
        let run = run_with("strata.toml", arguments).expect_code(1);
        assert!(run.stderr().contains("strata.toml': Permission denied"), "{}", run.stderr());
        let run = run_with("storage", arguments);
        assert!(matches!(run.exit_code(), Some(1 | 4)), "{}", run.stderr());
        assert!(
            run.stderr().contains("ermission denied") || run.stdout().contains("ermission denied"),
            "{arguments:?}"
        );
    }
    scene.repository.run(["check"]).expect_code(0);
}

#[test]
fn pipes_in_the_place_of_files_do_not_block() {
    for path in ["state/state.db", "strata.toml", "keys/unpacked.example.org.key", "storage/.cvmfspublished"] {
        let repository = TestRepository::publish(&image());
        let place = repository.directory().join(path);
        let content = fs::read(&place).unwrap();
        fs::remove_file(&place).unwrap();
        mknodat(CWD, &place, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let source = repository.source(&image());
        for arguments in [&["convert", &source, "--name", NAME][..], &["convert", &source, "--dry-run", "--name", NAME]]
        {
            let run = Run::within(PATIENCE, &mut repository.command(arguments));
            if !(arguments.contains(&"--dry-run") && path.starts_with("keys")) {
                let name = path.rsplit('/').next().unwrap();
                run.expect_one_line(1, &[name, "it is not a regular file"]);
            }
        }
        fs::remove_file(&place).unwrap();
        fs::write(&place, content).unwrap();
    }
}

#[test]
fn pipes_in_the_place_of_the_files_beside_a_database_hang_nobody() {
    let repository = TestRepository::publish(&image());
    let source = repository.source(&image());
    let list = repository.beside("list.yaml");
    fs::write(&list, "version: 1\ninput: []\n").unwrap();
    for suffix in ["-journal", "-wal", "-shm"] {
        let place = repository.directory().join(format!("state/state.db{suffix}"));
        fs::remove_file(&place).ok();
        mknodat(CWD, &place, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let run = |arguments: &[&str]| Run::within(PATIENCE, &mut repository.command(arguments));
        let words = [&format!("state.db{suffix}")[..], "it is not a regular file"];
        run(&["convert", &source, "--name", NAME]).expect_one_line(1, &words);
        run(&["convert", &source, "--name", NAME, "--dry-run"]).expect_one_line(1, &words);
        run(&["sync", list.to_str().unwrap()]).expect_one_line(1, &words);
        let unused = run(&["list", "--unused"]).expect_code(0);
        assert!(words.iter().all(|word| unused.stderr().contains(word)), "{}", unused.stderr());
        fs::remove_file(&place).unwrap();
    }
    repository.run(["convert", &source, "--name", NAME]).expect_code(0);
}

#[test]
fn notifications_to_a_pipe_that_nobody_reads_hang_nobody() {
    let repository = TestRepository::new();
    let [list, pipe] = ["list.yaml", "pipe"].map(|name| repository.beside(name));
    fs::write(&list, "version: 1\ninput: []\n").unwrap();
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let sync =
        |file: &str| Run::within(PATIENCE, &mut repository.command(["sync", list.to_str().unwrap(), "-n", file]));
    sync(pipe.to_str().unwrap()).expect_one_line(1, &["pipe'", "no process reads from this pipe"]);
    sync("/dev/null").expect_code(0);
}

#[test]
fn what_the_system_says_is_told_of_a_database_that_cannot_be_written() {
    let Some(scene) = Scene::new(TestRepository::new()) else { return };
    let source = scene.repository.source(&image());
    let run = scene.run(&["convert", &source, "--name", NAME], &["--fsize=4096"]);
    run.expect_one_line(1, &["state.db': the system refuses to write to its directory", "File too large"]);
    let state = scene.repository.directory().join("state");
    fs::remove_dir_all(&state).unwrap();
    fs::create_dir(&state).unwrap();
    fs::write(state.join("state.db"), "no database".repeat(1000)).unwrap();
    scene
        .run(&["convert", &source, "--name", NAME], &[])
        .expect_one_line(1, &["state.db' (while no strata runs, it may be deleted"]);
}

#[test]
fn too_few_files_are_an_error_of_this_machine_and_no_finding() {
    if !need("prlimit") {
        return;
    }
    let repository = TestRepository::publish(&image());
    let check = repository.command(["check", "--threads", "2"]);
    let mut refused = 0;
    for files in 3..=14 {
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={files}")).arg(check.get_program()).args(check.get_args());
        let run = Run::within(PATIENCE, &mut limited);
        if run.exit_code() == Some(1) && run.stderr().contains("Too many open files") {
            assert_eq!((run.stdout().as_str(), run.stderr().lines().count()), ("", 1), "{}", run.stderr());
            refused += 1;
        }
        assert_ne!(run.exit_code(), Some(4), "{files}: {}", run.stdout());
    }
    assert!(refused > 0);
    repository.run(["check"]).expect_code(0);
}

#[test]
fn lack_of_threads_is_no_failure_of_an_image() {
    let Some(registry) = TestRegistry::start() else { return };
    let images = ["a", "b", "c"].map(|name| {
        registry.push(&image(), &format!("test/{name}:1"));
        format!("  - http://{}/test/{name}:1\n", registry.host())
    });
    for threads in 1..=12 {
        let Some(scene) = Scene::new(TestRepository::new()) else { return };
        let list = scene.repository.beside("list.yaml");
        fs::write(&list, format!("version: 2\nimages:\n{}", images.concat())).unwrap();
        let sync = ["sync", list.to_str().unwrap()];
        let run = scene.run(&sync, &[&format!("--nproc={threads}")]);
        for line in run.stderr().lines().filter(|line| line.contains("Resource temporarily unavailable")) {
            assert!(line.contains("start"), "{threads} threads: {line}");
        }
        // What failed at the limit is tried at once.
        scene.run(&sync, &[]).expect_code(0);
    }
}

#[test]
fn repository_path_may_have_a_thousand_characters() {
    let outer = TestRepository::new();
    let long = (0..5).fold(outer.beside("long"), |path, _| path.join("x".repeat(200)));
    fs::create_dir_all(long.parent().unwrap()).unwrap();
    outer.move_to(&long);
    let source = outer.source(&image());
    let command =
        |arguments: &[&str]| Run::of(&mut strata_command([arguments, &["--repo", long.to_str().unwrap()]].concat()));
    let run = command(&["convert", &source, "--name", NAME]).expect_code(0);
    assert!(run.stderr().contains("no state is kept for the next run"), "{}", run.stderr());
    for arguments in [&["convert", &source, "--name", NAME][..], &["check"], &["list"], &["list", "--unused"]] {
        command(arguments).expect_code(0);
    }
    command(&["verify", &source, "--name", NAME]).expect_code(0);
    command(&["convert", &source, "--name", NAME, "--dry-run"]).expect_code(0);
}

#[test]
fn clock_that_is_a_year_ahead_publishes_nothing_unless_it_is_accepted() {
    let repository = TestRepository::publish(&image());
    let next = repository.source(&TestImage::new().layer(|layer| layer.file("next", "x")));
    let list = repository.beside("list.yaml");
    fs::write(&list, "version: 1\ninput: []\n").unwrap();
    let later =
        |days: i64| (repository.reader().field('T').unwrap().parse::<i64>().unwrap() + days * 86_400).to_string();
    let mut wrong = repository.command(["convert", &next, "--name", NAME]);
    wrong.env("SOURCE_DATE_EPOCH", later(400));
    repository.refuse_command(&mut wrong, 1, &["the clock says", "--accept-clock"]);
    let mut right = repository.command(["convert", &next, "--name", NAME]);
    Run::of(right.env("SOURCE_DATE_EPOCH", later(360))).expect_code(0);
    let first = repository.source(&image());
    let mut accepted = repository.command(["convert", &first, "--name", NAME, "--accept-clock"]);
    Run::of(accepted.env("SOURCE_DATE_EPOCH", later(4_000))).expect_code(0);
    // An earlier clock is accepted: the time of a revision is never before that of the last one.
    repository.run(["convert", &next, "--name", NAME]).expect_code(0);
}

#[test]
fn insufficient_space_is_reported_before_layers_are_read() {
    let repository = TestRepository::new();
    let noise = noise(1, 8_000_000);
    let source = repository.source(&TestImage::new().layer(|layer| layer.file("noise", noise)));
    let point = repository.beside("small");
    fs::create_dir(&point).unwrap();
    let Some(mount) = TestMount::new("4m", &point) else { return };
    repository.move_to(&mount.path().join("repository"));
    let directory = point.join("repository").display().to_string();
    let run = Run::of(&mut mount.strata(["convert", &source, "--name", NAME, "--repo", &directory])).expect_code(1);
    assert!(run.stderr().contains("but the compressed layers have"), "{}", run.stderr());
    repository.move_to(&repository.beside("back"));
}

#[test]
fn text_of_three_megabytes_is_reported_in_a_readable_line() {
    let repository = TestRepository::new();
    let directory = repository.beside("layout");
    image().write_oci_layout(&directory, "latest");
    let index = fs::read_to_string(directory.join("index.json")).unwrap();
    let long = "x".repeat(3_000_000);
    for (from, to) in [("application/vnd.oci.image.manifest.v1+json", long.as_str()), ("sha256:", &long)] {
        fs::write(directory.join("index.json"), index.replacen(from, to, 1)).unwrap();
        let run = repository.run(["convert", &format!("oci:{}", directory.display()), "--name", NAME]).expect_code(1);
        assert!(run.stderr().len() < 10_000, "{} bytes", run.stderr().len());
    }
}

#[test]
fn each_file_is_synced_on_fuse_file_systems() {
    let repository = TestRepository::publish(&image());
    let seen = Arc::<Mutex<Vec<Operation>>>::default();
    let note = Arc::clone(&seen);
    let mount = FaultyMount::start(&repository.storage(), repository.beside("seen"), move |operation| {
        note.lock().unwrap().push(operation.clone());
        Fate::Done
    });
    let Some(mount) = mount else { return };
    repository.set(&format!("storage = {:?}", mount.path));
    repository.convert(&TestImage::new().layer(|layer| layer.file("new", "new")), NAME, &[]).expect_code(0);
    let seen = seen.lock().unwrap();
    let place = |wanted: &Operation| seen.iter().rposition(|operation| operation == wanted);
    let published = place(&Operation::Rename(PathBuf::from(".cvmfspublished"))).unwrap();
    let (mut synced, mut objects) = (BTreeSet::new(), 0);
    for (at, operation) in seen.iter().enumerate() {
        match operation {
            Operation::SyncFile(path) => drop(synced.insert(path.file_name().unwrap().to_owned())),
            Operation::Rename(path) if path.starts_with("data") && !path.starts_with("data/txn") => {
                let directory = path.parent().unwrap();
                let name =
                    format!("{}{}", directory.file_name().unwrap().display(), path.file_name().unwrap().display());
                assert!(synced.contains(name.as_ref() as &std::ffi::OsStr), "{path:?} has a name before it is synced");
                let names = place(&Operation::SyncDirectory(directory.to_owned()));
                assert!(names.is_some_and(|names| at < names && names < published), "{directory:?} is not synced");
                objects += 1;
            }
            _ => {}
        }
    }
    assert!(objects >= 4, "{objects} objects");
    drop(seen);
    repository.set("");
}
