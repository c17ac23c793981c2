//! Which arguments the command line accepts and refuses, and what it prints to stdout and stderr.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::strict::{self, Reader};
use crate::support::{FQRN, NAME, Run, TestRepository, image_of, need, strata_command};

#[test]
fn missing_directory_becomes_a_repository_only_with_create() {
    let other = TestRepository::new();
    let source = other.source(&image_of("x"));
    let [directory, undotted, empty] =
        ["new.example.org", "undotted", "empty.example.org"].map(|name| other.beside(name));
    fs::create_dir(&empty).unwrap();
    let convert = |directory: &Path, options: &[&str]| {
        let directory = directory.to_str().unwrap();
        let arguments = [&["convert", &source, "--name", NAME, "--repo", directory], options].concat();
        Run::of(&mut strata_command(arguments))
    };
    for directory in [&directory, &undotted] {
        convert(directory, &[]).expect_one_line(2, &[directory.to_str().unwrap(), "strata init", "--create"]);
        assert!(!directory.exists());
    }
    let arguments = ["convert", &source, "--name", NAME];
    let run = Run::of(strata_command(arguments).env("STRATA_REPO", &directory));
    run.expect_one_line(2, &["--create"]);
    convert(&directory, &["--create", "--dry-run"]).expect_code(2);
    assert!(!directory.exists());
    convert(&undotted, &["--create"]).expect_one_line(2, &["undotted", "--create"]);
    assert!(!undotted.exists());
    for directory in [&directory, &empty] {
        let run = convert(directory, &["--create"]).expect_code(0);
        assert!(run.stderr().contains(&format!("created {}", directory.file_name().unwrap().to_str().unwrap())));
        let name = directory.file_name().unwrap().to_str().unwrap();
        strict::check(&directory.join("storage"), name).assert_good();
        assert!(Reader::open(&directory.join("storage")).list("").contains(&"registry.example.org".to_owned()));
    }
    let keys = fs::read(directory.join("keys/new.example.org.pub")).unwrap();
    let again = convert(&directory, &["--create"]).expect_code(0);
    assert!(!again.stderr().contains("created") && again.stdout().contains("nothing to do"), "{}", again.stderr());
    assert_eq!(fs::read(directory.join("keys/new.example.org.pub")).unwrap(), keys);
}

#[test]
fn repository_that_was_created_for_images_that_all_fail_is_deleted_again() {
    let home = tempfile::tempdir().unwrap();
    let names = |path: &Path| fs::read_dir(path).unwrap().count();
    let nested = home.path().join("a/b/new.example.org");
    let run = Run::of(&mut strata_command(["convert", "--create", "oci:/nowhere", "--repo", nested.to_str().unwrap()]));
    let run = run.expect_code(1);
    assert!(run.stderr().contains("the new repository in '"), "{}", run.stderr());
    assert_eq!(names(home.path()), 0, "nothing is left, not even the directories above");
    let empty = home.path().join("empty.example.org");
    fs::create_dir(&empty).unwrap();
    let convert = || strata_command(["convert", "--create", "oci:/nowhere", "--repo", empty.to_str().unwrap()]);
    Run::of(&mut convert()).expect_code(1);
    assert_eq!((names(home.path()), names(&empty)), (1, 0), "the directory that was there stays");
    // A repository that was there before stays, too.
    Run::of(&mut strata_command(["init", "empty.example.org", "--repo", empty.to_str().unwrap()])).expect_code(0);
    Run::of(&mut convert()).expect_code(1);
    strict::check(&empty.join("storage"), "empty.example.org").assert_good();
}

#[test]
fn long_argument_is_told_in_lines_that_can_be_read() {
    let long = "x".repeat(100_000);
    for arguments in [&[long.as_str()][..], &["list", &long], &["convert", "oci:a", "--threads", &long]] {
        let run = Run::of(&mut strata_command(arguments)).expect_code(2);
        let said = run.stderr();
        assert!(said.len() < 20_000 && said.contains("characters are left out"), "{} bytes", said.len());
    }
}

#[test]
fn create_requires_a_directory_named_after_the_repository() {
    let other = TestRepository::new();
    let source = other.source(&image_of("x"));
    let here = other.beside("here");
    fs::create_dir(&here).unwrap();
    let mut command = strata_command(["convert", &source, "--name", NAME, "--create"]);
    Run::of(command.current_dir(&here)).expect_one_line(2, &["--create needs --repo"]);
    assert_eq!(fs::read_dir(&here).unwrap().count(), 0);
}

#[test]
fn first_command_of_the_readme_creates_a_repository() {
    let readme = fs::read_to_string("README.md").unwrap();
    let command = readme.lines().find_map(|line| line.strip_prefix("cargo run --release -- ")).unwrap();
    assert!(command.contains(" --create"), "{command}");
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("examples")).unwrap();
    std::os::unix::fs::symlink(Path::new("examples/hello").canonicalize().unwrap(), home.path().join("examples/hello"))
        .unwrap();
    Run::of(strata_command(command.split(' ')).current_dir(home.path())).expect_code(0);
    strict::check(&home.path().join("demo.example.org/storage"), "demo.example.org").assert_good();
    let info = Run::of(strata_command(["info", "--repo", "demo.example.org"]).current_dir(home.path())).expect_code(0);
    assert!(info.stdout().contains("demo.example.org mount mnt"), "{}", info.stdout());
}

#[test]
fn init_and_info_print_how_to_mount_and_convert_does_not() {
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| Run::of(strata_command(arguments).current_dir(home.path())).expect_code(0).stdout();
    let is_printed = |output: &str| output.contains("cvmfs2 -o config=client.conf") && output.contains("mount mnt");
    assert!(is_printed(&run(&["init", FQRN])));
    assert!(!is_printed(&run(&["init", "quiet.example.org", "-q"])));
    assert!(is_printed(&run(&["info", "--repo", FQRN])));
    assert!(!is_printed(&run(&["info", "--repo", FQRN, "-q"])));
    assert!(!is_printed(&run(&["info", "--repo", FQRN, "--json"])));
    let source = format!("oci:{}", home.path().join("image").display());
    image_of("x").write_oci_layout(&home.path().join("image"), "latest");
    let converted = run(&["convert", &source, "--name", NAME, "--repo", FQRN]);
    assert!(!converted.contains("mount") && converted.contains("published revision 2"), "{converted}");
}

#[test]
fn mount_hint_quotes_a_directory_name_with_shell_characters() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("it's $HOME");
    let init = Run::of(strata_command(["init", FQRN, "--repo"]).arg(&directory)).expect_code(0).stdout();
    let line = init.lines().find(|line| line.contains("strata --repo ")).unwrap();
    let word = line.split_once("--repo ").unwrap().1.strip_suffix(" mount mnt").unwrap();
    let echo = Command::new("sh").args(["-c", &format!("printf %s {word}")]).output().unwrap();
    assert_eq!(String::from_utf8(echo.stdout).unwrap(), directory.to_str().unwrap());
}

#[test]
fn too_little_memory_is_refused() {
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let list = repository.beside("list.yaml");
    fs::write(&list, "version: 1\ninput: []\n").unwrap();
    for memory in ["5", "0", "512", "5B", "1000000", "1023KiB", "much"] {
        let run = repository.run(["convert", &source, "--name", NAME, "--memory", memory]).expect_code(2);
        assert!(run.stderr().contains("--memory"), "{}", run.stderr());
        repository.run(["sync", list.to_str().unwrap(), "--memory", memory]).expect_code(2);
    }
    let five = repository.run(["convert", &source, "--name", NAME, "--memory", "5"]).expect_code(2);
    assert!(five.stderr().contains("5 bytes") && five.stderr().contains("unit"), "{}", five.stderr());
    for memory in ["1MiB", "1048576", "64M"] {
        repository.run(["convert", &source, "--name", NAME, "--memory", memory]).expect_code(0);
    }
}

#[test]
fn empty_variable_for_the_directory_counts_as_unset() {
    let repository = TestRepository::publish(&image_of("x"));
    for arguments in [&["list"][..], &["info"], &["check"], &["list", "--json"]] {
        let mut command = strata_command(arguments);
        Run::of(command.env("STRATA_REPO", "").current_dir(repository.directory())).expect_code(0);
    }
    let elsewhere = repository.beside("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let mut command = strata_command(["init", "new.example.org"]);
    Run::of(command.env("STRATA_REPO", "").current_dir(&elsewhere)).expect_code(0);
    assert!(elsewhere.join("new.example.org/strata.toml").is_file());
    Run::of(strata_command(["list"]).env("STRATA_REPO", "").current_dir(&elsewhere)).expect_code(2);
    // An empty value on the command line is an error, because the user wrote it.
    Run::of(strata_command(["list", "--repo", ""]).current_dir(repository.directory())).expect_code(2);
    // The command line has precedence over the variable.
    let mut command = repository.command(["list"]);
    Run::of(command.env("STRATA_REPO", &elsewhere)).expect_code(0);
}

/// Runs a command on a terminal, and returns its output.
fn on_a_terminal(command: &Command, variables: &[(&str, &str)]) -> String {
    let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap());
    let words: Vec<String> = [command.get_program()].into_iter().chain(command.get_args()).map(quoted).collect();
    let mut script = Command::new("script");
    script.args(["-qec", &words.join(" "), "/dev/null"]);
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        script.env_remove(variable);
    }
    script.envs(variables.iter().copied());
    String::from_utf8_lossy(&script.output().unwrap().stdout).into_owned()
}

/// Returns whether a text contains an escape sequence for colours or text attributes.
fn has_colours(text: &str) -> bool {
    text.split("\x1b[")
        .skip(1)
        .any(|code| code.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
}

#[test]
fn no_color_and_term_dumb_disable_colors() {
    if !need("script") {
        return;
    }
    let repository = TestRepository::new();
    let source = repository.source(&image_of("x"));
    let convert = repository.command(["convert", &source, "--name", NAME, "--force"]);
    let wrong = strata_command(["frobnicate"]);
    for command in [&convert, &wrong] {
        for variables in [&[("TERM", "xterm-256color")][..], &[("TERM", "xterm-256color"), ("NO_COLOR", "")]] {
            let output = on_a_terminal(command, variables);
            assert!(has_colours(&output), "{output:?}");
        }
        let output = on_a_terminal(command, &[("TERM", "xterm-256color"), ("NO_COLOR", "1")]);
        assert!(
            !has_colours(&output) && output.contains(if std::ptr::eq(command, &convert) { "INFO" } else { "error" })
        );
        for variables in [&[("TERM", "dumb")][..], &[("TERM", "dumb"), ("CI", "true")]] {
            let output = on_a_terminal(command, variables);
            assert!(!output.contains('\x1b') && !output.is_empty(), "{output:?}");
        }
    }
}
