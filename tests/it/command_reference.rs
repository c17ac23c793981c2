//! The command reference in the manual is what `--help` prints.

use std::fmt::Write as _;
use std::fs;

use crate::support::{Run, strata_command};

const PATH: &str = "docs/commands.md";

const INTRODUCTION: &str = "# Commands\n\nThis page is what `strata COMMAND --help` prints. `strata man DIR` writes it as manual pages, and \
                            `strata completions SHELL` prints\ncompletions for a shell.\n";

/// Returns what `--help` prints for a command.
fn help_of(command: &[&str]) -> String {
    let help = Run::of(strata_command(command.iter().copied().chain(["--help"])).env_remove("COLUMNS"));
    help.expect_code(0).stdout().trim_end().to_owned()
}

/// Returns the names in the list of commands that `strata --help` prints.
fn names(help: &str) -> Vec<&str> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Continued lines are indented further than names.
    let name = |line: &'_ str| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')).map(str::len);
    list.filter(|line| name(line).is_some()).filter_map(|line| line.split_whitespace().next()).collect()
}

fn reference() -> String {
    let help = help_of(&[]);
    let mut text = format!("{INTRODUCTION}\n```text\n{help}\n```\n");
    for name in names(&help).into_iter().filter(|name| *name != "help") {
        write!(text, "\n## strata {name}\n\n```text\n{}\n```\n", help_of(&[name])).unwrap();
    }
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn command_reference_is_what_help_prints() {
    let reference = reference();
    assert!(reference.contains("## strata convert\n") && reference.contains("## strata man\n"));
    if std::env::var_os("STRATA_TEST_WRITE_DOCS").is_some() {
        fs::write(PATH, &reference).unwrap();
    }
    let written = fs::read_to_string(PATH).unwrap_or_default();
    assert!(written == reference, "{PATH} is outdated: run this test with STRATA_TEST_WRITE_DOCS=1");
}

#[test]
fn manual_pages_and_completions_name_every_command() {
    let home = tempfile::tempdir().unwrap();
    let pages = home.path().join("new/man1");
    Run::of(&mut strata_command(["man", pages.to_str().unwrap()])).expect_code(0);
    let help = help_of(&[]);
    let bash = Run::of(&mut strata_command(["completions", "bash"])).expect_code(0).stdout();
    for name in names(&help).into_iter().filter(|name| *name != "help") {
        let page = fs::read_to_string(pages.join(format!("strata-{name}.1"))).unwrap();
        assert!(page.contains("Exit codes") && page.contains("Examples"), "{page}");
        assert!(
            bash.contains(&format!("strata__{name}")) || bash.contains(&format!("strata__subcmd__{name}")),
            "{name}"
        );
    }
    assert!(fs::read_to_string(pages.join("strata.1")).unwrap().contains("strata\\-convert(1)"));
    assert!(!pages.join("strata-guard-mount.1").exists(), "hidden commands have no page");
    let refused = Run::of(&mut strata_command(["man", "/dev/null/man1"]));
    refused.expect_one_line(1, &["cannot write manual pages into '/dev/null/man1'"]);
}
