//! Checks the list of additions, and runs the scripts at `/` of a root file system.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;

/// A shell of this machine that may be `/bin/sh` in an image.
#[derive(Debug)]
pub(super) struct Shell(PathBuf);

impl Shell {
    /// Returns a command that runs the shell under the name `sh`, so that it behaves as a POSIX shell.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.0);
        command.arg0("sh");
        command
    }
}

/// Returns `sh` and the other installed shells.
pub(super) fn shells() -> Vec<Shell> {
    let search = std::env::var_os("PATH").unwrap();
    let find =
        |name| std::env::split_paths(&search).map(|directory| directory.join(name)).find(|program| program.is_file());
    ["sh", "dash", "bash", "busybox"].into_iter().filter_map(find).map(Shell).collect()
}

fn config() -> ExecutionConfig {
    ExecutionConfig {
        entrypoint: vec!["/bin/sh".into(), "-c".into(), "printf '%s\\0' \"$GREETING\" \"$@\"".into(), "x".into()],
        cmd: vec!["it's \"$HOME\"".into()],
        env: vec!["GREETING=good `day`".into(), "PATH=/image/bin".into()],
        labels: BTreeMap::from([("b".into(), "tab\t\"é\"".into()), ("a".into(), "1".into())]),
        ..ExecutionConfig::default()
    }
}

fn named<'a>(additions: &'a [Addition], name: &str) -> &'a Addition {
    additions.iter().find(|addition| *addition.path() == path(name)).unwrap()
}

fn scripts() -> Vec<(EntryPath, Vec<u8>)> {
    let scripts = additions(&config()).into_iter().filter_map(|addition| match addition {
        Addition::File { path, mode: 0o755, content, rule: ReplaceRule::Replace } => Some((path, content)),
        _ => None,
    });
    scripts.collect()
}

#[test]
fn each_path_is_unique_and_follows_its_parent_directory() {
    let mut seen = BTreeSet::from([EntryPath::ROOT]);
    for addition in additions(&config()) {
        let (parent, _) = addition.path().split().unwrap();
        assert!(seen.contains(&parent), "{addition:?}");
        assert!(seen.insert(addition.path().clone()), "{addition:?}");
    }
}

#[test]
fn bind_targets_are_empty_and_do_not_replace_files_of_the_image() {
    let additions = additions(&config());
    for name in ["etc/hosts", "etc/resolv.conf"] {
        let expected =
            Addition::File { path: path(name), mode: 0o644, content: vec![], rule: ReplaceRule::IfAbsentOrLink };
        assert_eq!(named(&additions, name), &expected);
    }
}

#[test]
fn targets_of_links_are_added_too() {
    let additions = additions(&config());
    let mut links = 0;
    for addition in &additions {
        if let Addition::Symlink { target, .. } = addition {
            named(&additions, std::str::from_utf8(target).unwrap());
            links += 1;
        }
    }
    assert_eq!(links, 6);
}

#[test]
fn labels_are_a_json_object_indented_with_tabs() {
    let labels = labels_json(&config().labels);
    assert_eq!(String::from_utf8(labels).unwrap(), "{\n\t\"a\": \"1\",\n\t\"b\": \"tab\\t\\\"é\\\"\"\n}");
    assert_eq!(labels_json(&BTreeMap::new()), b"{}");
}

#[test]
fn every_shell_can_parse_every_script() {
    let scripts = scripts();
    assert_eq!(scripts.len(), 13);
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in scripts {
        assert!(text.starts_with(b"#!/bin/sh\n"), "{path}");
        let file = directory.path().join("script");
        std::fs::write(&file, text).unwrap();
        for shell in shells() {
            let output = shell.command().arg("-n").arg(&file).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{path} in {shell:?}: {output:?}");
        }
    }
}

/// A small root file system: the additions, `/bin/sh`, and its libraries.
struct Root(tempfile::TempDir);

impl Root {
    /// Creates a root file system. Prints the reason and returns `None` if that is not possible on this machine.
    fn new() -> Option<Self> {
        let staged = tempfile::tempdir().unwrap();
        apply(&additions(&config()), staged.path());
        let root = Self(tempfile::tempdir().unwrap());
        // `cp` writes the files in another process. A file that this process wrote may still be open in the child process of
        // another test, and could not be executed (ETXTBSY).
        copy(&["-a".as_ref(), staged.path().join(".").as_ref()], root.path());
        let linked = Command::new("ldd").arg("/bin/sh").output().map(|output| output.stdout).unwrap_or_default();
        let linked = String::from_utf8(linked).unwrap();
        let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
        for program in libraries.chain(["/bin/sh"]) {
            copy(&["-L".as_ref(), "--parents".as_ref(), program.as_ref()], root.path());
        }
        let works = root.command(&["/bin/sh", "-c", ":"]).output().is_ok_and(|output| output.status.success());
        if !works {
            assert!(std::env::var_os("STRATA_TEST_ALL").is_none(), "no root file system can be entered");
            println!(
                "skipped: no root file system can be entered, 'unshare --map-root-user --root' does not work here"
            );
        }
        works.then_some(root)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns a command that runs in the root and in its own PID namespace, because `actions/start` signals process 1.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--root"]).arg(self.path()).args(arguments);
        for name in ["LD_LIBRARY_PATH", "SHELL", "SINGULARITY_APPNAME", "SINGULARITY_SHELL", "SINGULARITY_NO_EVAL"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, arguments: &[&str], env: &[(&str, &str)]) -> Output {
        self.command(arguments).envs(env.iter().copied()).output().unwrap()
    }

    /// Runs a command and returns its stdout, split at NULs.
    fn pieces(&self, arguments: &[&str], env: &[(&str, &str)]) -> Vec<String> {
        let output = self.run(arguments, env);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.strip_suffix('\0').unwrap().split('\0').map(str::to_owned).collect()
    }

    /// Adds a script. Another process writes it, for the reason given in [`Self::new`].
    fn script(&self, name: &str, text: &str) {
        let file = self.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let staged = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(staged.path(), format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(staged.path(), PermissionsExt::from_mode(0o755)).unwrap();
        copy(&["-a".as_ref(), staged.path().as_ref()], &file);
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }
}

fn copy(arguments: &[&std::ffi::OsStr], to: &Path) {
    assert!(Command::new("cp").args(arguments).arg(to).status().unwrap().success());
}

fn apply(additions: &[Addition], root: &Path) {
    let place = |path: &EntryPath| -> PathBuf { root.join(std::str::from_utf8(path.as_bytes()).unwrap()) };
    for addition in additions {
        match addition {
            Addition::Directory { path, .. } => std::fs::create_dir(place(path)).unwrap(),
            Addition::Symlink { path, target, .. } => {
                symlink(std::str::from_utf8(target).unwrap(), place(path)).unwrap();
            }
            Addition::File { path, mode, content, .. } => {
                std::fs::write(place(path), content).unwrap();
                std::fs::set_permissions(place(path), PermissionsExt::from_mode(u32::from(*mode))).unwrap();
            }
        }
    }
}

/// Prints each argument followed by a NUL.
const PRINT: &str = "printf '%s\\0' \"$@\"";

#[test]
fn exec_runs_a_command_in_the_image_s_environment() {
    let Some(root) = Root::new() else { return };
    let show = "printf '%s\\0' \"$@\" \"$GREETING\" \"$PATH\" \"$LD_LIBRARY_PATH\" \"$PS1\"";
    let command = ["/.exec", "/bin/sh", "-c", show, "x", "a  b", "", "$HOME"];
    let libs = "/.singularity.d/libs";
    let expected = ["a  b", "", "$HOME", "good `day`", "/image/bin", libs, "Singularity> "];
    assert_eq!(root.pieces(&command, &[]), expected);
    let env = [("GREETING", "hello"), ("LD_LIBRARY_PATH", "/lib/mine")];
    let expected = ["a  b", "", "$HOME", "hello", "/image/bin", "/lib/mine:/.singularity.d/libs", "Singularity> "];
    assert_eq!(root.pieces(&command, &env), expected);
}

#[test]
fn exec_sources_every_file_below_env_in_order() {
    let Some(root) = Root::new() else { return };
    root.script(".singularity.d/env/00-first.sh", "GREETING=first; export GREETING");
    root.script(".singularity.d/env/91-environment.sh", "GREETING=\"$GREETING, later\"");
    std::fs::create_dir(root.path().join(".singularity.d/env/50-directory.sh")).unwrap();
    let expected = ["first, later"];
    assert_eq!(root.pieces(&["/.exec", "/bin/sh", "-c", "printf '%s\\0' \"$GREETING\""], &[]), expected);
}

#[test]
fn search_path_settings_of_the_user_take_precedence_and_are_unset() {
    let Some(root) = Root::new() else { return };
    let show =
        "printf '%s\\0' \"$PATH\" \"${SING_USER_DEFINED_PATH-unset}\" \"${SING_USER_DEFINED_APPEND_PATH-unset}\"";
    let command = ["/.exec", "/bin/sh", "-c", show];
    let both = [("SING_USER_DEFINED_PREPEND_PATH", "/p"), ("SING_USER_DEFINED_APPEND_PATH", "/a")];
    assert_eq!(root.pieces(&command, &both), ["/p:/image/bin:/a", "unset", "unset"]);
    let all = [both[0], both[1], ("SING_USER_DEFINED_PATH", "/only")];
    assert_eq!(root.pieces(&command, &all), ["/only", "unset", "unset"]);
}

#[test]
fn run_starts_the_entry_point_of_the_image() {
    let Some(root) = Root::new() else { return };
    for no_eval in ["", "1"] {
        let env = [("SINGULARITY_NO_EVAL", no_eval)];
        assert_eq!(root.pieces(&["/.run"], &env), ["good `day`", "it's \"$HOME\""]);
        assert_eq!(root.pieces(&["/.run", "`a`", "\"$b\""], &env), ["good `day`", "`a`", "\"$b\""]);
        assert_eq!(root.pieces(&["/singularity", "c"], &env), ["", "c"]);
    }
    root.remove(".singularity.d/runscript");
    let output = root.run(&["/.run", "-c", PRINT, "x", "a b"], &[]);
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("/bin/sh\na b\0"));
}

#[test]
fn run_and_test_start_the_scripts_of_an_app() {
    let Some(root) = Root::new() else { return };
    for (action, name) in [("/.run", "runscript"), ("/.test", "test")] {
        root.script(&format!("scif/apps/one/scif/{name}"), &format!("printf '%s\\0' {name} \"$SCIF_APPROOT\" \"$@\""));
        let env = [("SINGULARITY_APPNAME", "one")];
        assert_eq!(root.pieces(&[action, "a b"], &env), [name, "/scif/apps/one", "a b"]);
        for app in ["two", "none"] {
            std::fs::create_dir_all(root.path().join("scif/apps/two")).unwrap();
            let output = root.run(&[action], &[("SINGULARITY_APPNAME", app)]);
            assert_eq!(output.status.code(), Some(1));
            assert!(String::from_utf8(output.stdout).unwrap().contains(app));
        }
    }
}

#[test]
fn programs_libraries_and_settings_of_an_app_come_first() {
    let Some(root) = Root::new() else { return };
    root.script("scif/apps/one/scif/env/01-base.sh", "ONE=1");
    root.script("scif/apps/one/scif/env/90-environment.sh", "ONE=\"$ONE 90\"; export ONE");
    std::fs::create_dir(root.path().join("scif/apps/one/bin")).unwrap();
    std::fs::create_dir(root.path().join("scif/apps/one/lib")).unwrap();
    let show = "printf '%s\\0' \"$PATH\" \"$LD_LIBRARY_PATH\" \"$SCIF_APPS\" \"$SCIF_APPROOT\" \"$ONE\"";
    let env = [("SINGULARITY_APPNAME", "one")];
    let app = "/scif/apps/one";
    let search = [format!("{app}/bin:{app}:/image/bin"), format!("{app}/lib:/.singularity.d/libs")];
    let expected = [search[0].as_str(), &search[1], "/scif/apps", app, "1 90"];
    assert_eq!(root.pieces(&["/.exec", "/bin/sh", "-c", show], &env), expected);
}

#[test]
fn shell_is_that_of_the_user_or_else_bash_or_else_sh() {
    let Some(root) = Root::new() else { return };
    let show = "printf '%s\\0' \"$0\" \"$SHELL\" \"$PS1\" \"$@\"";
    assert_eq!(root.pieces(&["/.shell", "-c", show], &[]), ["/bin/sh", "/bin/sh", "Singularity> "]);
    root.script("bin/bash", show);
    let expected = ["/bin/bash", "/bin/bash", "Singularity image.sif:\\w> ", "--norc", "a b"];
    assert_eq!(root.pieces(&["/.shell", "a b"], &[("SINGULARITY_NAME", "image.sif")]), expected);
    root.script("bin/my shell", show);
    let env = [("SINGULARITY_SHELL", "/bin/my shell"), ("SHELL", "host's")];
    assert_eq!(root.pieces(&["/.shell", "a b"], &env), ["/bin/my shell", "host's", "Singularity> ", "a b"]);
    assert_eq!(root.pieces(&["/.shell"], &[("SINGULARITY_SHELL", "/bin/none")])[0], "/bin/bash");
}

#[test]
fn shell_fails_if_the_image_has_none() {
    let Some(root) = Root::new() else { return };
    std::fs::rename(root.path().join("bin/sh"), root.path().join("bin/renamed")).unwrap();
    let output = root.run(&["/bin/renamed", "/.singularity.d/actions/shell"], &[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(!output.stderr.is_empty());
}

#[test]
fn test_runs_the_tests_of_the_image_and_succeeds_without_tests() {
    let Some(root) = Root::new() else { return };
    assert!(root.run(&["/.test"], &[]).status.success());
    root.script(".singularity.d/test", &format!("{PRINT}; exit 7"));
    let output = root.run(&["/.test", "a b"], &[]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), b"a b\0".as_slice()));
}

#[test]
fn start_wakes_process_1_before_anything_else() {
    let text = include_str!("actions/start.sh");
    let first = text.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(first, Some("kill -CONT 1"));
}

#[test]
fn start_wakes_process_1_and_runs_the_start_script() {
    let Some(root) = Root::new() else { return };
    assert!(root.run(&["/.singularity.d/actions/start"], &[]).status.success());
    root.script(".singularity.d/startscript", "printf '%s\\0' started \"$GREETING\"");
    let wait = "trap \"printf 'woken\\0'\" CONT; /.singularity.d/actions/start; :";
    assert_eq!(root.pieces(&["/bin/sh", "-c", wait], &[]), ["started", "good `day`", "woken"]);
}
