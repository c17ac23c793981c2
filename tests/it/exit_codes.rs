//! The exit code of every command for every cause, and the state of the repository afterwards.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::faulty::{Fate, FaultyMount, Operation};
use crate::support::fuse::wait_until;
use crate::support::{
    FQRN, FaultProxy, NAME, Reply, Run, TestImage, TestRegistry, TestRepository, flat_path, need_fuse, strata_command,
};

fn image_of(word: &str) -> TestImage {
    TestImage::new().layer(|layer| layer.file("word", word)).cmd(["/word"])
}

/// A repository with an image whose name has moved once, an image that is not published, and an empty wishlist.
struct Scene {
    repository: TestRepository,
    published: String,
    new: String,
    list: String,
}

impl Scene {
    fn new() -> Self {
        let repository = TestRepository::new();
        let (published, new) = (repository.source(&image_of("x")), repository.source(&image_of("new")));
        repository.convert(&image_of("former"), NAME, &[]).expect_code(0);
        repository.run(["convert", &published, "--name", NAME]).expect_code(0);
        let list = repository.beside("list.yaml");
        fs::write(&list, "version: 1\ninput: []\n").unwrap();
        Self { repository, published, new, list: list.display().to_string() }
    }

    /// Returns every command that ends by itself, with arguments that make it succeed.
    fn commands(&self) -> Vec<Vec<String>> {
        let bundle = self.repository.beside("bundle").display().to_string();
        fs::remove_dir_all(&bundle).ok();
        let commands: [&[&str]; 10] = [
            &["convert", &self.published, "--name", NAME],
            &["convert", &self.new, "--name", NAME, "--dry-run"],
            &["sync", &self.list],
            &["info"],
            &["info", NAME],
            &["list"],
            &["list", "--unused"],
            &["check"],
            &["verify", &self.published, "--name", NAME],
            &["diff", "head", "head"],
        ];
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut commands: Vec<Vec<String>> = commands.into_iter().map(owned).collect();
        commands.push(owned(&["bundle", NAME, &bundle]));
        commands
    }
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn every_command_that_succeeds_ends_with_0() {
    let scene = Scene::new();
    for command in scene.commands() {
        scene.repository.run(&command).expect_code(0);
    }
}

#[test]
fn every_command_on_a_directory_that_is_not_a_repository_ends_with_2() {
    let scene = Scene::new();
    let empty = scene.repository.beside("empty");
    fs::create_dir(&empty).unwrap();
    let mount = ["mount".to_owned(), empty.display().to_string()];
    let preview = ["preview", &scene.new, empty.to_str().unwrap(), "--keep"].map(str::to_owned);
    for command in scene.commands().into_iter().chain([mount.to_vec(), preview.to_vec()]) {
        for directory in [&empty, &scene.repository.beside("missing")] {
            let run = Run::of(strata_command(&command).arg("--repo").arg(directory));
            assert!(run.stderr().contains(directory.to_str().unwrap()), "{command:?}: {}", run.stderr());
            run.expect_code(2);
        }
        Run::of(strata_command(&command).arg("--no-such-option")).expect_code(2);
    }
}

#[test]
fn every_command_whose_repository_lost_its_storage_ends_with_1() {
    let scene = Scene::new();
    let storage = scene.repository.storage();
    let aside = scene.repository.beside("aside");
    let point = scene.repository.beside("point");
    fs::create_dir(&point).unwrap();
    let mount = vec!["mount".to_owned(), point.display().to_string()];
    let commands = scene.commands();
    fs::rename(&storage, &aside).unwrap();
    for command in commands.into_iter().chain([mount]) {
        // `check` reports this as a finding.
        let code = if command[0] == "check" { 4 } else { 1 };
        scene.repository.run(&command).expect_code(code);
    }
    fs::rename(&aside, &storage).unwrap();
}

#[test]
fn every_command_that_finds_something_ends_with_4() {
    let scene = Scene::new();
    let changed = scene.repository.source(&image_of("changed"));
    scene.repository.run(["verify", &changed, "--name", NAME]).expect_code(4);
    scene.repository.run(["diff", "1", "head"]).expect_code(4);
    scene.repository.run(["diff", &changed, "--name", NAME]).expect_code(4);
}

#[test]
fn command_whose_results_cannot_be_printed_ends_with_1_where_it_published_nothing() {
    let scene = Scene::new();
    let before = scene.repository.manifest_bytes();
    for command in scene.commands() {
        for format in [&[][..], &["--json"]] {
            fs::remove_dir_all(scene.repository.beside("bundle")).ok();
            let mut command = scene.repository.command(&command);
            let run = Run::of(command.args(format).stdout(full()));
            assert!(run.stderr().contains("standard output"), "{command:?}: {}", run.stderr());
            run.expect_code(1);
        }
    }
    assert_eq!(scene.repository.manifest_bytes(), before);
}

#[test]
fn convert_whose_results_cannot_be_printed_ends_with_6_once_it_has_published() {
    for format in ["--json", "--quiet", "--timings"] {
        let repository = TestRepository::new();
        let source = repository.source(&image_of("x"));
        let mut command = repository.command(["convert", &source, "--name", NAME, format]);
        let run = Run::of(command.stdout(full())).expect_code(6);
        assert!(run.stderr().contains("revision 2 is published, but"), "{}", run.stderr());
        assert!(repository.has(NAME));
        // A closed pipe is no error: the reader has what it wanted.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = repository.command(["convert", &source, "--name", "h.org/again:1", format]);
        Run::of(command.stdout(writer)).expect_code(0);
    }
}

#[test]
fn init_whose_results_cannot_be_printed_ends_with_6() {
    let home = tempfile::tempdir().unwrap();
    let run = Run::of(strata_command(["init", FQRN]).current_dir(home.path()).stdout(full())).expect_code(6);
    assert!(run.stderr().contains("revision 1 is published, but"), "{}", run.stderr());
    crate::strict::check(&home.path().join(FQRN).join("storage"), FQRN).assert_good();
}

#[test]
fn image_that_fails_ends_with_3_beside_one_that_is_published_and_else_with_1() {
    let scene = Scene::new();
    let missing = format!("oci:{}", scene.repository.beside("nowhere").display());
    scene.repository.run(["convert", &missing]).expect_code(1);
    let image = image_of("named");
    let directory = scene.repository.beside("named");
    image.write_oci_layout(&directory, "h.example.org/named:1");
    let named = format!("oci:{}:h.example.org/named:1", directory.display());
    scene.repository.run(["convert", &missing, &named]).expect_code(3);
    scene.repository.run(["convert", &missing, &named]).expect_code(3);
    let mut command = scene.repository.command(["convert", &missing, &named, "--force"]);
    let run = Run::of(command.stdout(full())).expect_code(6);
    assert!(run.stderr().contains(&missing), "what failed is told all the same: {}", run.stderr());
}

#[test]
fn every_publishing_command_that_meets_another_publisher_ends_with_5() {
    let scene = Scene::new();
    let before = scene.repository.front_page();
    let lock = scene.repository.lock();
    for command in [
        &["convert", &scene.new, "--name", NAME][..],
        &["convert", &scene.published, "--name", NAME],
        &["convert", &scene.new, "--name", NAME, "--json"],
        &["sync", &scene.list],
        &["sync", &scene.list, "--prune", "--json"],
    ] {
        let run = scene.repository.run([command, &["--wait", "0s"]].concat());
        run.expect_one_line(5, &["another publisher", scene.repository.storage().to_str().unwrap(), "--wait"]);
    }
    assert_eq!(scene.repository.front_page(), before);
    // Commands that only read do not need the lock.
    let publishes = |command: &Vec<String>| command[0] == "sync" || command[0] == "convert" && command.len() == 4;
    for command in scene.commands().into_iter().filter(|command| !publishes(command)) {
        scene.repository.run(&command).expect_code(0);
    }
    drop(lock);
}

/// A repository whose storage is on a file system with chosen faults.
struct FaultyScene {
    repository: TestRepository,
    seen: Arc<Mutex<Vec<Operation>>>,
    _mount: FaultyMount,
}

impl FaultyScene {
    #[track_caller]
    fn new(mut fate: impl FnMut(&Operation) -> Fate + Send + 'static) -> Option<Self> {
        let repository = TestRepository::publish(&image_of("before"));
        let seen = Arc::<Mutex<Vec<Operation>>>::default();
        let note = Arc::clone(&seen);
        let mount = FaultyMount::start(&repository.storage(), repository.beside("faulty"), move |operation| {
            note.lock().unwrap().push(operation.clone());
            fate(operation)
        })?;
        repository.set(&format!("storage = {:?}", mount.path));
        Some(Self { repository, seen, _mount: mount })
    }

    fn convert(&self, word: &str, options: &[&str]) -> Run {
        self.repository.convert(&image_of(word), NAME, options)
    }

    fn is_published(&self, word: &str) -> bool {
        self.repository.tree(NAME).target("").ends_with(&flat_path(&image_of(word)))
    }
}

fn manifest() -> Operation {
    Operation::Rename(PathBuf::from(".cvmfspublished"))
}

fn root_synced() -> Operation {
    Operation::SyncDirectory(PathBuf::new())
}

#[test]
fn revision_whose_manifest_cannot_be_synced_is_published_and_ends_with_6() {
    let fate = |operation: &Operation| if *operation == root_synced() { Fate::Refused } else { Fate::Done };
    let Some(scene) = FaultyScene::new(fate) else { return };
    let run = scene.convert("x", &[]).expect_code(6);
    assert!(run.stdout().contains("published revision 3"), "{}", run.stdout());
    let stderr = run.stderr();
    assert!(stderr.contains("published, but") && stderr.contains("cannot sync"), "{stderr}");
    assert!(scene.is_published("x"));
    let json = scene.convert("y", &["--json"]).expect_code(6).json();
    assert_eq!(json["revision"], 4);
    let list = scene.repository.beside("list.yaml");
    fs::write(&list, "version: 1\ninput: []\n").unwrap();
    scene.repository.run(["sync", list.to_str().unwrap()]).expect_code(0);
}

#[test]
fn rename_that_was_done_and_reported_as_failed_is_a_publication() {
    let fate = |operation: &Operation| if *operation == manifest() { Fate::DoneAndDenied } else { Fate::Done };
    let Some(scene) = FaultyScene::new(fate) else { return };
    let run = scene.convert("x", &[]).expect_code(6);
    assert!(run.stdout().contains("published revision 3"), "{}", run.stdout());
    assert!(run.stderr().contains("cannot replace") && run.stderr().contains(".cvmfspublished"), "{}", run.stderr());
    assert!(scene.is_published("x"));
    scene.convert("x", &[]).expect_code(0);
}

#[test]
fn failed_rename_is_not_a_publication() {
    let fate = |operation: &Operation| if *operation == manifest() { Fate::Refused } else { Fate::Done };
    let Some(scene) = FaultyScene::new(fate) else { return };
    let before = scene.repository.manifest_bytes();
    scene.convert("x", &[]).expect_one_line(1, &["cannot replace", ".cvmfspublished"]);
    assert_eq!(scene.repository.manifest_bytes(), before);
    scene.repository.set("");
    scene.convert("x", &[]).expect_code(0);
}

#[test]
fn rename_with_an_unknown_result_is_not_reported_as_failed() {
    let is_renamed = AtomicBool::new(false);
    let fate = move |operation: &Operation| match operation {
        operation if *operation == manifest() => {
            is_renamed.store(true, Ordering::SeqCst);
            Fate::DoneAndDenied
        }
        Operation::Open(path) if path == Path::new(".cvmfspublished") && is_renamed.load(Ordering::SeqCst) => {
            Fate::Refused
        }
        _ => Fate::Done,
    };
    let Some(scene) = FaultyScene::new(fate) else { return };
    let run = scene.convert("x", &[]).expect_code(6);
    assert!(run.stderr().contains("cannot tell whether"), "{}", run.stderr());
    assert!(scene.is_published("x"));
}

#[test]
fn everything_needed_after_the_last_rename_is_opened_before_it() {
    let is_renamed = AtomicBool::new(false);
    let fate = move |operation: &Operation| match operation {
        operation if *operation == manifest() => {
            is_renamed.store(true, Ordering::SeqCst);
            Fate::Done
        }
        Operation::Open(path) if path.as_os_str().is_empty() && is_renamed.load(Ordering::SeqCst) => Fate::Refused,
        _ => Fate::Done,
    };
    let Some(scene) = FaultyScene::new(fate) else { return };
    scene.convert("x", &[]).expect_code(0);
    let seen = scene.seen.lock().unwrap();
    let renamed = seen.iter().position(|operation| *operation == manifest()).unwrap();
    assert!(seen[renamed..].contains(&root_synced()), "{:?}", &seen[renamed..]);
}

#[test]
fn checksum_that_cannot_be_written_for_the_server_ends_with_6() {
    let repository = TestRepository::new();
    let spool = repository.manage_by_server(&repository.storage());
    // A directory cannot be replaced by a file.
    fs::create_dir_all(spool.join("reflog.chksum/x")).unwrap();
    let run = repository.convert(&image_of("x"), NAME, &[]).expect_code(6);
    assert!(run.stderr().contains("reflog.chksum") && run.stderr().contains("check -r"), "{}", run.stderr());
    assert!(run.stdout().contains("published revision 2"), "{}", run.stdout());
    assert!(repository.has(NAME));
}

/// A registry behind a proxy with chosen faults, and a repository that publishes at short intervals.
struct SyncScene {
    registry: TestRegistry,
    proxy: FaultProxy,
    repository: TestRepository,
}

impl SyncScene {
    #[track_caller]
    fn new() -> Option<Self> {
        let registry = TestRegistry::start()?;
        let proxy = FaultProxy::start(registry.port());
        let repository = TestRepository::with_settings("[publish]\nevery = \"50ms\"");
        Some(Self { registry, proxy, repository })
    }

    fn list(&self, images: &[&str]) -> String {
        let path = self.repository.beside("list.yaml");
        let host = self.proxy.host();
        let images: String = images.iter().map(|image| format!("  - {host}/{image}\n")).collect();
        fs::write(&path, format!("version: 2\nimages:\n{images}")).unwrap();
        path.display().to_string()
    }

    /// Synchronises two images. The proxy withholds the second one until `meanwhile` has run, which is called when the first one is
    /// published.
    fn sync_in_two_steps(&self, meanwhile: impl FnOnce()) -> Run {
        for name in ["app/first", "app/second"] {
            self.registry.push_tags(&image_of(name), name, ["1"]);
        }
        let is_open = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&is_open);
        let layer = image_of("app/second").layer_digests()[0].clone();
        self.proxy.at(&layer, move |request, _| {
            wait_until("the first image is published", || gate.load(Ordering::SeqCst));
            request.forward()
        });
        let list = self.list(&["app/first:1", "app/second:1"]);
        let mut command = self.repository.command(["sync", &list, "--wait", "0s"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_until("the first revision is published", || self.repository.reader().revision() == 2);
        meanwhile();
        is_open.store(true, Ordering::SeqCst);
        Run::ended(child.wait_with_output().unwrap())
    }
}

#[test]
fn sync_that_fails_after_publishing_does_not_report_that_nothing_was_published() {
    let Some(scene) = SyncScene::new() else { return };
    let whitelist = scene.repository.storage().join(".cvmfswhitelist");
    let good = fs::read(&whitelist).unwrap();
    let run = scene.sync_in_two_steps(|| fs::remove_file(&whitelist).unwrap()).expect_code(6);
    assert!(run.stderr().contains("revision 2 is published, but"), "{}", run.stderr());
    assert!(run.stderr().contains(".cvmfswhitelist"), "{}", run.stderr());
    fs::write(&whitelist, good).unwrap();
}

#[test]
fn sync_that_meets_another_publisher_after_publishing_ends_with_5_and_reports_both() {
    let Some(scene) = SyncScene::new() else { return };
    let lock = File::open(scene.repository.storage()).unwrap();
    let run = scene.sync_in_two_steps(|| lock.lock().unwrap()).expect_code(5);
    assert!(run.stderr().contains("revision 2 is published, but"), "{}", run.stderr());
    assert!(run.stderr().contains("another publisher"), "{}", run.stderr());
}

#[test]
fn sync_that_published_only_removals_does_not_end_with_1() {
    let Some(scene) = SyncScene::new() else { return };
    for name in ["app/stays", "app/goes"] {
        scene.registry.push_tags(&image_of(name), name, ["1"]);
    }
    let list = scene.list(&["app/stays:1", "app/goes:1"]);
    scene.repository.run(["sync", &list]).expect_code(0);
    scene.list(&["app/stays:1"]);
    scene.proxy.at("/v2/app/stays/manifests/", |_, _| Reply::status(500));
    let before = scene.repository.reader().revision();
    let run = scene.repository.run(["sync", &list, "--prune"]).expect_code(3);
    assert!(run.stdout().contains("app/goes:1  removed"), "{}", run.stdout());
    assert_eq!(scene.repository.reader().revision(), before + 1);
    // Without anything to remove, no revision is published.
    fs::remove_dir_all(scene.repository.directory().join("state")).unwrap();
    scene.repository.run(["sync", &list, "--prune"]).expect_code(1);
}

#[test]
fn sync_whose_results_cannot_be_printed_ends_with_6_once_it_has_published() {
    let Some(scene) = SyncScene::new() else { return };
    scene.registry.push_tags(&image_of("x"), "app/x", ["1"]);
    let list = scene.list(&["app/x:1"]);
    let sync = |format: &[&str]| {
        let mut command = scene.repository.command([&["sync", &list], format].concat());
        Run::of(command.stdout(full()))
    };
    let run = sync(&[]).expect_code(6);
    // A slow machine may publish the image before the wishlist is surveyed, and then has two revisions.
    assert!(run.stderr().contains("published, but"), "{}", run.stderr());
    sync(&["--json"]).expect_code(1);
}

#[test]
fn preview_ends_with_the_code_of_its_command() {
    if !need_fuse() {
        return;
    }
    let scene = Scene::new();
    let point = scene.repository.beside("preview");
    fs::create_dir(&point).unwrap();
    let words = |code: &str| {
        ["preview".into(), scene.new.clone(), point.display().to_string(), "--command".into(), format!("exit {code}")]
    };
    for code in [0, 1, 6, 77] {
        Run::of(&mut strata_command(words(&code.to_string()))).expect_code(code);
    }
    let [preview, _, point, ..] = words("0");
    Run::of(&mut strata_command([preview, "oci:/nowhere".to_owned(), point])).expect_code(1);
}

/// Runs a command in a shell, and returns the exit code that the shell reports, which is 128 plus the number of a signal.
fn code_in_a_shell(command: &Command, signal: &str, is_ready: impl FnMut() -> bool) -> Option<i32> {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "\"$@\" & echo $! >\"$PID_FILE\"; wait $!", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut shell = shell.env("PID_FILE", file.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the run has started", is_ready);
    let process = fs::read_to_string(file.path()).unwrap();
    assert!(Command::new("kill").args([OsStr::new(signal), process.trim().as_ref()]).status().unwrap().success());
    shell.wait().unwrap().code()
}

#[test]
fn shell_sees_130_after_an_interrupt_and_143_after_a_request_to_end() {
    // A shell without job control makes background commands ignore SIGINT, so that only SIGTERM can be tested.
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let lock = repository.lock();
    let command = repository.command(["convert", &source, "--name", NAME]);
    let runs = repository.storage().join("data/txn");
    let is_ready = || fs::read_dir(&runs).unwrap().count() == 1;
    assert_eq!(code_in_a_shell(&command, "-TERM", is_ready), Some(143));
    drop(lock);
}
