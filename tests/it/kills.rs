//! Whenever a run is killed, clients read the old revision or the new one, and the next run continues from there.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::random::Random;
use crate::support::{FQRN, NAME, Run, TestImage, TestRepository, names_in};

const KILLS: u32 = 200;

fn image_of(word: &str) -> TestImage {
    let files = |layer, directory: &str| {
        (0..20).fold(layer, |layer: crate::support::TestLayer, number| {
            layer.file(format!("{directory}/{number}"), format!("{word} {directory} {number}").repeat(100))
        })
    };
    TestImage::new().layer(|layer| files(layer, "lower")).layer(|layer| files(layer, "upper"))
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn wait_until(child: &mut Child, is_there: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        assert!(start.elapsed() < Duration::from_secs(60), "the run does not reach the state that the test waits for");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// Returns all faults except those that the next publisher repairs: a log of references ahead of the manifest, and leftovers.
fn faults(repository: &TestRepository) -> Vec<String> {
    let report = crate::strict::check(&repository.storage(), FQRN);
    let is_healed = |place: &str| place.starts_with("data/txn/") || place.contains("reflog");
    report.findings.iter().filter(|finding| !is_healed(&finding.place)).map(ToString::to_string).collect()
}

fn leftovers(repository: &TestRepository) -> usize {
    fs::read_dir(repository.storage().join("data/txn")).unwrap().count()
}

#[test]
fn run_killed_at_any_instant_leaves_the_old_or_the_new_revision() {
    let fresh = TestRepository::new();
    let beside_objects = names_in(&fresh.storage());
    fresh.convert(&image_of("before"), NAME, &[]).expect_code(0);
    // The minimum of three runs: after one slow measurement all runs would end before they are killed.
    let measure = |number: u32| {
        let (repository, image) = (fresh.copy(), image_of(&format!("measure {number}")));
        let begin = Instant::now();
        repository.convert(&image, NAME, &[]).expect_code(0);
        begin.elapsed()
    };
    let duration = (0..3).map(measure).min().unwrap();
    let mut repository = fresh.copy();
    let (mut killed, mut published, mut left) = (0, 0, 0);
    let mut random = Random::new(42);
    for number in 0..KILLS {
        let fraction = random.fraction();
        if number % 20 == 0 {
            // Each check reads the whole repository, so the repository must not become large.
            repository = fresh.copy();
        }
        let before = repository.reader().revision();
        let source = repository.source(&image_of(&published.to_string()));
        let begin = Instant::now();
        let mut child = start(&mut repository.command(["convert", &source, "--name", NAME]));
        while let Some(rest) = duration.mul_f64(fraction).checked_sub(begin.elapsed()) {
            thread::park_timeout(rest);
        }
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().signal() == Some(9));
        let after = repository.reader().revision();
        assert!(after == before || after == before + 1, "{before} {after}");
        assert_eq!(faults(&repository), [""; 0], "after kill {number}, {fraction} of {duration:?}");
        // `check` verifies the signatures, which the strict reader does not.
        repository.run(["check", "--quick"]).expect_code(0);
        assert_eq!(names_in(&repository.storage()), beside_objects);
        assert!(leftovers(&repository) <= 1, "this run has not deleted the leftovers of an earlier one");
        published += after - before;
        left += leftovers(&repository);
        if number % 20 == 19 {
            let image = image_of("last");
            repository.convert(&image, NAME, &[]).expect_code(0);
            assert_eq!(leftovers(&repository), 0);
            assert!(repository.flat(&image).text("upper/19").starts_with("last upper 19"));
        }
    }
    println!("{killed} runs were killed, {published} had published by then, {left} left unfinished objects");
    assert!(killed > KILLS / 2, "most runs ended before they could be killed");
}

#[test]
fn work_of_a_run_killed_before_publishing_is_reused() {
    let repository = TestRepository::new();
    let image = image_of("x");
    let twin = repository.copy();
    let _lock = twin.lock();
    twin.convert(&image, NAME, &["--wait", "0s"]).expect_code(5);
    let stored = twin.objects().len();
    let source = repository.source(&image);
    let lock = repository.lock();
    let mut child = start(&mut repository.command(["convert", &source, "--name", NAME]));
    wait_until(&mut child, || {
        let entries = |directory: &Path| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let mut directories = entries(&repository.storage().join("data/txn")).flat_map(|run| entries(&run));
        // At its start, the run probes the file system with files beside these directories.
        let is_empty = |directory: PathBuf| fs::read_dir(directory).is_ok_and(|entries| entries.count() == 0);
        directories.all(is_empty) && repository.objects().len() == stored
    });
    child.kill().unwrap();
    child.wait().unwrap();
    drop(lock);
    assert_eq!(leftovers(&repository), 1);
    let json = repository.run(["convert", &source, "--name", NAME, "--json"]).expect_code(0).json();
    assert_eq!((&json["images"][0]["layers-read"], leftovers(&repository)), (&0.into(), 0));
}

#[test]
fn interrupted_run_prints_a_message_and_leaves_nothing() {
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15)] {
        let repository = TestRepository::new();
        let before = repository.front_page();
        let source = repository.source(&image_of("x"));
        let lock = repository.lock();
        let mut command = repository.command(["convert", &source, "--name", NAME, "--quiet"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until(&mut child, || leftovers(&repository) == 1);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), Some(number));
        let run = Run::ended(output);
        let message = "strata: interrupted: cleaning up; press Ctrl-C again to end at once\n\
                    strata: interrupted before anything was published\n";
        assert_eq!(run.stderr(), message);
        assert_eq!((leftovers(&repository), run.stdout()), (0, String::new()));
        assert_eq!(repository.front_page(), before);
        drop(lock);
        repository.run(["convert", &source, "--name", NAME]).expect_code(0);
    }
}
