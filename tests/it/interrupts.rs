//! SIGINT (Ctrl-C) and SIGTERM: the program prints a message at once, ends soon, and leaves nothing behind.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::faulty::{Fate, FaultyMount, Operation};
use crate::support::fuse::{Mount, is_mounted, wait_until};
use crate::support::{
    Delivery, FQRN, FaultProxy, NAME, Run, TestRegistry, TestRepository, image_of, names_in, need_fuse, strata_command,
};

/// Time limit for the program to end: the documented two seconds, and a margin for a loaded machine.
const SOON: Duration = Duration::from_secs(3);

const CLEANING: &str = "strata: interrupted: cleaning up; press Ctrl-C again to end at once\n";

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until a program ends, and returns its result.
#[track_caller]
fn ended(child: Child, signal: Option<i32>) -> Run {
    let begin = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(output.status.signal(), signal, "{output:?}");
    Run::ended(output)
}

/// Starts a command and returns it when it waits for the lock of another publisher, with that lock.
fn waiting_run(repository: &TestRepository, command: &mut Command) -> (File, Child) {
    let lock = repository.lock();
    let child = command.spawn().unwrap();
    let runs = repository.storage().join("data/txn");
    wait_until("the run has started", || names_in(&runs).len() == 1);
    (lock, child)
}

#[test]
fn run_interrupted_after_publishing_reports_the_revision() {
    let repository = TestRepository::publish(&image_of("x"));
    let list = repository.beside("list.yaml");
    let Some(registry) = TestRegistry::start() else { return };
    registry.push_tags(&image_of("synced"), "app/tool", ["1"]);
    fs::write(&list, format!("version: 2\nimages:\n  - {}/app/tool:1\n", registry.host())).unwrap();
    let mut command = repository.command(["sync", list.to_str().unwrap(), "--watch", "--every", "20ms"]);
    let log = repository.beside("log");
    let child = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let rounds = || fs::read_to_string(&log).unwrap().matches("the next round begins").count();
    // The first round publishes, and later rounds find nothing to do.
    wait_until("two more rounds have passed", || rounds() >= 3);
    send(&child, Signal::INT);
    ended(child, Some(2));
    let message = fs::read_to_string(&log).unwrap();
    assert!(message.ends_with(&format!("{CLEANING}strata: interrupted after revision 3 was published\n")), "{message}");
    assert_eq!(repository.reader().revision(), 3);
}

#[test]
fn run_ends_soon_even_if_its_output_is_not_read() {
    for signal in [Signal::INT, Signal::TERM] {
        let repository = TestRepository::new();
        let source = repository.source(&image_of("x"));
        let (reader, mut writer) = std::io::pipe().unwrap();
        let full = writer.try_clone().unwrap();
        let filling = thread::spawn(move || {
            // Fills the pipe; the last write fails when the test closes it.
            while writer.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let mut command = repository.command(["convert", &source, "--name", NAME, "--quiet"]);
        let (lock, child) = waiting_run(&repository, command.stdout(Stdio::null()).stderr(full));
        // By now the pipe is full, or will be before the program writes its message.
        thread::park_timeout(Duration::from_millis(300));
        send(&child, signal);
        ended(child, Some(signal.as_raw()));
        assert_eq!(
            names_in(&repository.storage().join("data/txn")),
            [""; 0],
            "the run cleans up although its message is not read"
        );
        drop((reader, lock, command));
        filling.join().unwrap();
        repository.run(["convert", &source, "--name", NAME]).expect_code(0);
    }
}

#[test]
fn second_signal_ends_the_program_at_once() {
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let mut command = repository.command(["convert", &source, "--name", NAME, "--quiet"]);
    let (lock, child) = waiting_run(&repository, command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    for signal in [Signal::INT, Signal::TERM] {
        send(&child, signal);
    }
    let output = child.wait_with_output().unwrap();
    assert!(matches!(output.status.signal(), Some(2 | 15)), "{output:?}");
    drop(lock);
    repository.run(["convert", &source, "--name", NAME]).expect_code(0);
}

#[test]
fn second_signal_in_the_same_moment_skips_no_cleaning() {
    for number in 0..5 {
        let repository = TestRepository::new();
        let source = repository.source(&image_of("x"));
        let mut command = repository.command(["convert", &source, "--name", NAME, "--quiet"]);
        let (_lock, child) = waiting_run(&repository, command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let signal = if number % 2 == 0 { Signal::INT } else { Signal::TERM };
        for _ in 0..2 {
            send(&child, signal);
            thread::park_timeout(Duration::from_millis(number));
        }
        let run = ended(child, Some(signal.as_raw()));
        let said = format!("{CLEANING}strata: interrupted before anything was published\n");
        assert_eq!((run.stderr(), names_in(&repository.storage().join("data/txn"))), (said, vec![]));
    }
}

#[test]
fn run_that_is_interrupted_in_the_middle_of_a_publication_says_that_it_may_be_published() {
    let repository = TestRepository::publish(&image_of("before"));
    let [is_held, goes_on] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let (held, released) = (Arc::clone(&is_held), Arc::clone(&goes_on));
    let mount = FaultyMount::start(&repository.storage(), repository.beside("held"), move |operation| {
        if *operation == Operation::Rename(PathBuf::from(".cvmfspublished")) {
            held.store(true, Ordering::SeqCst);
            let begin = Instant::now();
            while !released.load(Ordering::SeqCst) && begin.elapsed() < 4 * SOON {
                thread::park_timeout(Duration::from_millis(5));
            }
        }
        Fate::Done
    });
    let Some(mount) = mount else { return };
    repository.set(&format!("storage = {:?}", mount.path));
    let source = repository.source(&image_of("x"));
    let log = repository.beside("log");
    let mut command = repository.command(["convert", &source, "--name", NAME, "--quiet"]);
    let child = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
    wait_until("it publishes", || is_held.load(Ordering::SeqCst));
    send(&child, Signal::INT);
    let outcome = "strata: interrupted: revision 3 may be published; 'strata info' prints the newest revision\n";
    let begin = Instant::now();
    wait_until("it says so", || fs::read_to_string(&log).unwrap().ends_with(outcome));
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    // The kernel ends no process in the middle of a rename.
    goes_on.store(true, Ordering::SeqCst);
    ended(child, Some(2));
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("{CLEANING}{outcome}"));
    repository.set("");
    repository.run(["convert", &source, "--name", NAME]).expect_code(0);
}

#[test]
fn commands_that_read_say_that_they_are_interrupted() {
    let repository = TestRepository::publish(&image_of("before"));
    let is_reading = Arc::new(AtomicBool::new(false));
    let reads = Arc::clone(&is_reading);
    let mount = FaultyMount::start(&repository.storage(), repository.beside("slow"), move |operation| {
        if matches!(operation, Operation::Open(_)) {
            reads.store(true, Ordering::SeqCst);
            thread::park_timeout(Duration::from_millis(150));
        }
        Fate::Done
    });
    let Some(mount) = mount else { return };
    repository.set(&format!("storage = {:?}", mount.path));
    let source = repository.source(&image_of("before"));
    let verify = ["verify", &source, "--name", NAME, "--quiet"];
    for arguments in [&["check", "--quiet"][..], &["list"], &["list", "--unused"], &["info"], &["info", NAME], &verify]
    {
        for signal in [Signal::INT, Signal::TERM] {
            is_reading.store(false, Ordering::SeqCst);
            let child = start(&mut repository.command(arguments));
            wait_until("it reads", || is_reading.load(Ordering::SeqCst));
            send(&child, signal);
            let run = ended(child, Some(signal.as_raw()));
            assert_eq!(run.stderr(), "strata: interrupted\n", "{arguments:?}");
        }
    }
    repository.set("");
}

/// A registry with an image whose manifest never arrives.
struct StalledRegistry {
    _registry: TestRegistry,
    proxy: FaultProxy,
    is_asked: Arc<AtomicBool>,
}

impl StalledRegistry {
    #[track_caller]
    fn start() -> Option<Self> {
        let registry = TestRegistry::start()?;
        registry.push_tags(&image_of("x"), "app/tool", ["1"]);
        let proxy = FaultProxy::start(registry.port());
        let is_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_asked);
        proxy.at("/manifests/", move |request, _| {
            asked.store(true, Ordering::SeqCst);
            request.forward().delivery(Delivery::Stall(0))
        });
        Some(Self { _registry: registry, proxy, is_asked })
    }

    fn image(&self) -> String {
        format!("http://{}/app/tool:1", self.proxy.host())
    }

    fn wait_for_request(&self) {
        wait_until("the registry is asked", || self.is_asked.load(Ordering::SeqCst));
    }
}

#[test]
fn interrupted_convert_leaves_no_repository_that_it_created() {
    let Some(registry) = StalledRegistry::start() else { return };
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("a/b/new.example.org");
    let image = registry.image();
    let arguments = ["convert", "--create", &image, "--quiet", "--repo", directory.to_str().unwrap()];
    let child = start(&mut strata_command(arguments));
    registry.wait_for_request();
    assert!(directory.join("storage/.cvmfspublished").exists());
    send(&child, Signal::INT);
    let run = ended(child, Some(2));
    assert_eq!(run.stderr(), format!("{CLEANING}strata: interrupted before anything was published\n"));
    assert_eq!(names_in(home.path()), [""; 0]);
}

/// Tells whether a process that wrote its number to a file still runs.
fn runs(file: &Path) -> bool {
    let process = fs::read_to_string(file).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/stat", process.trim()));
    status.is_ok_and(|status| !status.contains(") Z "))
}

#[test]
fn command_of_a_preview_is_ended_by_the_signal_that_ends_the_preview() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let [point, file] = ["preview", "process"].map(|name| repository.beside(name));
    fs::create_dir(&point).unwrap();
    for (signal, script) in [
        (Signal::INT, "exec sleep 60"),
        (Signal::TERM, "exec sleep 60 <\"$STRATA_PREVIEW/flat/word\""),
        (Signal::TERM, "trap '' TERM; exec sleep 60"),
    ] {
        let script = format!("echo $$ >'{}'; {script}", file.display());
        let arguments = ["preview", &source, point.to_str().unwrap(), "--quiet", "--command", &script];
        let child = start(&mut strata_command(arguments));
        wait_until("the command runs", || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
        send(&child, signal);
        let run = ended(child, Some(signal.as_raw()));
        let said = "strata: interrupted: ending the command; press Ctrl-C again to kill it\n";
        assert!(run.stderr().starts_with(said), "{}", run.stderr());
        assert!(!runs(&file) && !is_mounted(&point), "{script}");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn second_signal_kills_the_command_of_a_preview() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let [point, file] = ["preview", "process"].map(|name| repository.beside(name));
    fs::create_dir(&point).unwrap();
    let script = format!("trap '' TERM; echo $$ >'{}'; exec sleep 60", file.display());
    let mut command = strata_command(["preview", &source, point.to_str().unwrap(), "--quiet", "--command", &script]);
    let child = start(&mut command);
    wait_until("the command runs", || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
    send(&child, Signal::TERM);
    thread::park_timeout(Duration::from_millis(250));
    assert!(runs(&file));
    send(&child, Signal::TERM);
    let begin = Instant::now();
    wait_until("the command is killed", || !runs(&file));
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    ended(child, Some(15));
    assert!(!is_mounted(&point));
}

#[test]
fn interrupted_init_leaves_nothing_or_a_repository() {
    let init = |home: &Path| {
        let mut command = strata_command(["init", FQRN, "--repo", "a/b/repository"]);
        command.args(["--storage", "www/new/storage", "--keys", "secret"]).current_dir(home);
        command
    };
    let begin = Instant::now();
    let home = tempfile::tempdir().unwrap();
    Run::of(&mut init(home.path())).expect_code(0);
    let duration = begin.elapsed();
    let (mut interrupted, mut made) = (0, 0);
    for number in 0..24 {
        let home = tempfile::tempdir().unwrap();
        let signal = if number % 2 == 0 { Signal::INT } else { Signal::TERM };
        let child = start(&mut init(home.path()));
        thread::park_timeout(duration.mul_f64(f64::from(number) / 20.0));
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8(output.stderr.clone()).unwrap();
        let is_there = home.path().join("a/b/repository").exists();
        if is_there {
            assert!(message.is_empty() || message.ends_with("after revision 1 was published\n"), "{message}");
            crate::strict::check(&home.path().join("www/new/storage"), FQRN).assert_good();
            made += 1;
        } else {
            assert_eq!(output.status.signal(), Some(signal.as_raw()), "{output:?}");
            // A signal before the program has installed its handler ends it without a message.
            let expected = format!("{CLEANING}strata: interrupted before anything was published\n");
            assert!(message.is_empty() || message == expected, "{message}");
            assert_eq!(names_in(home.path()), [""; 0], "{message}");
            interrupted += u32::from(!message.is_empty());
        }
    }
    println!("{interrupted} were interrupted, {made} were done");
    assert!(interrupted > 5, "{interrupted}");
}

#[test]
fn failed_init_leaves_nothing_and_keeps_existing_files() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    fs::create_dir(path("www")).unwrap();
    fs::write(path("www/index.html"), "mine").unwrap();
    // An obstacle that is found late: the storage is created after the keys.
    fs::write(path("www/data"), "mine").unwrap();
    let mut command = strata_command(["init", FQRN, "--storage", "www", "--keys", "secret"]);
    Run::of(command.current_dir(home.path())).expect_code(1);
    assert_eq!(names_in(home.path()), ["www"]);
    assert_eq!(names_in(&path("www")), ["data", "index.html"]);
    fs::remove_file(path("www/data")).unwrap();
    Run::of(command.current_dir(home.path())).expect_code(0);
    assert_eq!(fs::read(path("www/index.html")).unwrap(), b"mine");
}

#[test]
fn interrupted_diff_leaves_nothing() {
    let repository = TestRepository::new();
    let temporary = repository.beside("temporary");
    fs::create_dir(&temporary).unwrap();
    let source = repository.source(&image_of("x"));
    let mut command = repository.command(["diff", &source, "--name", NAME, "--quiet"]);
    let mut child = start(command.env("TMPDIR", &temporary));
    let mut is_caught = false;
    let begin = Instant::now();
    while !is_caught && child.try_wait().unwrap().is_none() && begin.elapsed() < SOON {
        is_caught = !names_in(&temporary).is_empty();
    }
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(names_in(&temporary), [""; 0], "{output:?}");
    assert!(output.status.signal() == Some(2) || output.status.code().is_some(), "{output:?}");
    if output.status.signal().is_some() {
        assert!(String::from_utf8_lossy(&output.stderr).starts_with(CLEANING), "{output:?}");
    }
}

#[test]
fn mount_in_use_reports_the_unmount_at_once_and_ends_soon() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&image_of("x"));
    let mut mount = Mount::start(&repository, &["--quiet"]);
    let open = File::open(mount.directory.join(NAME).join("word")).unwrap();
    let begin = Instant::now();
    mount.signal(Signal::INT);
    assert_eq!(mount.wait(), Some(0));
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert!(mount.log().starts_with("strata: interrupted: unmounting '"), "{}", mount.log());
    drop(open);
}

#[test]
fn preview_ends_soon_although_its_registry_does_not_respond() {
    let Some(registry) = StalledRegistry::start() else { return };
    let point = tempfile::tempdir().unwrap();
    let image = registry.image();
    let child = start(&mut strata_command(["preview", &image, point.path().to_str().unwrap(), "--quiet"]));
    registry.wait_for_request();
    send(&child, Signal::TERM);
    let run = ended(child, Some(15));
    assert_eq!(run.stderr(), format!("{CLEANING}strata: interrupted before anything was published\n"));
}

#[test]
fn interrupted_run_leaves_no_lock_for_the_server() {
    let repository = TestRepository::new();
    let spool = repository.manage_by_server(&repository.storage());
    let publishing = File::create(spool.join("is_publishing.lock")).unwrap();
    publishing.lock().unwrap();
    let source = repository.source(&image_of("x"));
    let child = start(&mut repository.command(["convert", &source, "--name", NAME, "--quiet"]));
    wait_until("the run holds the first lock", || spool.join("in_transaction.lock").exists());
    send(&child, Signal::INT);
    ended(child, Some(2));
    assert_eq!(names_in(&spool), ["is_publishing.lock"]);
}
