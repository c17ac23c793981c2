//! Runs the commands of a page in one shell, and compares their output with the page.
//!
//! In the output that a page shows, `…` stands for any text in a line, and a line `…` for any number of lines. Digests, hashes,
//! times and sizes differ from run to run, and are not compared.

use std::env;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use regex::Regex;
use rustix::process::{Pid, Signal, kill_process_group};

use super::page::{Command as DocumentedCommand, Page};
use crate::support::fuse::wait_until;

/// Separates the outputs of commands.
const MARK: &str = "\n\u{1}\n";

/// Time limit for all commands of a page, in seconds.
const TIME_LIMIT: &str = "300";

/// Returns a description of each command whose output differs from what the page shows.
pub fn differences(page: &Page) -> Vec<String> {
    let commands: Vec<&DocumentedCommand> = page.earlier.iter().chain(&page.commands).collect();
    let outputs = run(&commands);
    let compared = commands.iter().enumerate().skip(page.earlier.len());
    let difference = |(number, command): (usize, &&DocumentedCommand)| {
        let Some(output) = outputs.get(number) else { return Some(describe(page, command, "(it did not run)")) };
        (!is_as_shown(&command.output, output)).then(|| describe(page, command, output))
    };
    compared.filter_map(difference).collect()
}

fn describe(page: &Page, command: &DocumentedCommand, output: &str) -> String {
    let (path, line, shown) = (page.path.display(), command.line, command.output.join("\n"));
    format!("{path}:{line}: $ {}\nshown:\n{shown}\nprinted:\n{output}\n", command.script.join("\n"))
}

/// Runs commands in an empty directory that contains only `examples` of the source tree. Returns the output of each command, stdout and
/// stderr together. After a command that does not end, the outputs of the following commands are missing.
fn run(commands: &[&DocumentedCommand]) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    let (work, script, output) = (home.path().join("work"), home.path().join("script"), home.path().join("output"));
    fs::create_dir(&work).unwrap();
    std::os::unix::fs::symlink(fs::canonicalize("examples").unwrap(), work.join("examples")).unwrap();
    // The mark must not change the exit code of the previous command, which the next command may print.
    let mut text = "mark() { local status=$?; printf '\\n\\001\\n'; return $status; }\n".to_owned();
    for command in commands {
        text += &format!("mark\n{}\n", command.script.join("\n"));
    }
    fs::write(&script, text).unwrap();
    let file = File::create(&output).unwrap();
    let mut shell = Command::new("timeout");
    shell.args([TIME_LIMIT, "bash"]).arg(&script).current_dir(&work).process_group(0).stdin(Stdio::null());
    shell.env_clear().envs([("HOME", home.path().as_os_str()), ("PATH", &path_with_strata())]);
    shell.envs([("USER", "root"), ("LC_ALL", "C.UTF-8"), ("TZ", "UTC")]);
    let mut shell = shell.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
    shell.wait().unwrap();
    // Read before the signal, because a mount that is about to end may print that it was interrupted.
    let printed = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
    // What a page started and did not end, such as a mount, ends now.
    kill_process_group(Pid::from_child(&shell), Signal::TERM).ok();
    wait_until("no file system is mounted any more", || !has_mounts(&work));
    printed.split(MARK).skip(1).map(str::to_owned).collect()
}

fn path_with_strata() -> std::ffi::OsString {
    let program = Path::new(env!("CARGO_BIN_EXE_strata"));
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = [program.parent().unwrap().to_owned()].into_iter().chain(env::split_paths(&path));
    env::join_paths(directories).unwrap()
}

fn has_mounts(directory: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter_map(|line| line.split(' ').nth(1)).any(|point| Path::new(point).starts_with(directory))
}

/// Returns whether an output is what a page shows.
fn is_as_shown(shown: &[String], output: &str) -> bool {
    let shown: Vec<String> = shown.iter().map(|line| without_variable_parts(line)).collect();
    let printed: Vec<String> = output.trim_end_matches('\n').lines().map(without_variable_parts).collect();
    do_lines_match(&shown, &printed)
}

fn do_lines_match(shown: &[String], printed: &[String]) -> bool {
    match shown {
        [] => printed.is_empty(),
        [first, rest @ ..] if first == "…" => {
            (0..=printed.len()).any(|skipped| do_lines_match(rest, &printed[skipped..]))
        }
        [first, rest @ ..] => {
            printed.first().is_some_and(|line| does_line_match(first, line)) && do_lines_match(rest, &printed[1..])
        }
    }
}

fn does_line_match(shown: &str, printed: &str) -> bool {
    let parts: Vec<String> = shown.split('…').map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join(".*"))).unwrap().is_match(printed)
}

/// Replaces digests and hashes (also with the two digits of their directory, and shortened by `…`), times and sizes.
fn without_variable_parts(line: &str) -> String {
    let mut line = line.trim_end().to_owned();
    for (form, name) in [
        (r"([0-9a-f]{2}/)?[0-9a-f]{12,}…?", "(hash)"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "(time)"),
        (r"\d+(\.\d+)? (B|KiB|MiB|GiB)\b", "(size)"),
    ] {
        line = Regex::new(form).unwrap().replace_all(&line, name).into_owned();
    }
    line
}

#[test]
fn elided_and_variable_parts_match_and_other_parts_do_not() {
    let matches = |shown: &[&str], output: &str| {
        is_as_shown(&shown.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), output)
    };
    assert!(matches(&[], "") && matches(&["a"], "a\n") && matches(&["a … c"], "a b c\n") && matches(&["…"], ""));
    assert!(matches(&["a", "…", "d"], "a\nb\nc\nd\n") && matches(&["…", "d"], "d\n"));
    assert!(matches(&["data/00/0123456789ab… of 1.0 MiB"], "data/fe/ffffffffffffffff of 12 KiB"));
    assert!(matches(&["at 2026-11-30T19:58:12Z"], "at 2027-01-02T03:04:05Z"));
    for (shown, output) in [
        (&[][..], "a\n"),
        (&["a"], ""),
        (&["a"], "a\nb\n"),
        (&["a", "…", "d"], "a\nb\n"),
        (&["2 layers"], "3 layers"),
        (&["a.c"], "abc"),
        (&["a … c"], "a b d"),
    ] {
        assert!(!matches(shown, output), "{shown:?} {output:?}");
    }
}
