//! Generates the two scripts that depend on the image: its start command and its environment.
//!
//! A shell evaluates their text, some of it twice. The quoting ensures that every value of the image reaches the program unchanged. NUL
//! characters are removed, because neither an argument nor a variable can contain them.

use std::collections::BTreeMap;

use super::ExecutionConfig;

/// Returns the text of `.singularity.d/runscript`: the entry point, then the user's arguments or else the command.
///
/// If the image has neither entry point nor command, the script runs the user's arguments, or `/bin/sh` if there are none. The script
/// begins like Apptainer's own scripts, because some tools recognise an OCI runscript by its beginning, or read `OCI_ENTRYPOINT` and
/// `OCI_CMD` from it. Both variants of the script (with and without `eval`) give the same list of arguments: the evaluated text refers
/// to the user's arguments as variables and does not contain them.
pub(super) fn runscript(config: &ExecutionConfig) -> String {
    let entrypoint = effective_entrypoint(&config.entrypoint);
    format!(
        include_str!("runscript.sh"),
        oci_entrypoint = single_quoted(&join(entrypoint, double_quoted)),
        oci_cmd = single_quoted(&join(&config.cmd, double_quoted)),
        entrypoint = join(entrypoint, single_quoted),
        cmd = join(&config.cmd, single_quoted),
    )
}

/// Returns the text of `.singularity.d/env/10-docker2singularity.sh`, which exports the image's variables.
///
/// `PATH` is always that of the image; any other variable keeps its current value unless that is empty. If the image sets a variable
/// twice, the second value is used, as in Docker. A name that a shell cannot export is omitted: the file is sourced, so one invalid
/// line would prevent every start.
pub(super) fn environment(config: &ExecutionConfig) -> String {
    let variables: BTreeMap<&str, Option<&str>> = config.env.iter().map(|variable| split(variable)).collect();
    let exports =
        variables.into_iter().filter(|(name, _)| is_shell_name(name)).map(|(name, value)| export(name, value));
    std::iter::once("#!/bin/sh\n".to_owned()).chain(exports).collect()
}

/// Returns the entry point as Docker interprets it: a single empty string means no entry point.
fn effective_entrypoint(entrypoint: &[String]) -> &[String] {
    match entrypoint {
        [only] if only.is_empty() => &[],
        entrypoint => entrypoint,
    }
}

fn split(variable: &str) -> (&str, Option<&str>) {
    match variable.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (variable, None),
    }
}

/// Returns the lines that export one variable. A variable without a value in the image is exported with its current value, or
/// with an empty value if it is unset.
///
/// A variable that has a value is not assigned, because bash exits on an assignment to `UID` and a few others. The value is in single
/// quotes, because Apptainer reads the file with its own shell (mvdan.cc/sh), whose older versions (3.6) lose backslashes in double
/// quotes.
fn export(name: &str, value: Option<&str>) -> String {
    let quoted = single_quoted(value.unwrap_or_default());
    match (name, value) {
        ("PATH", Some(_)) => format!("export PATH={quoted}\n"),
        _ => format!("[ -n \"${{{name}:-}}\" ] || {name}={quoted}\nexport {name}\n"),
    }
}

fn is_shell_name(name: &str) -> bool {
    // Apptainer skips the same names.
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn join(arguments: &[String], quoted: fn(&str) -> String) -> String {
    arguments.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ")
}

/// Returns `text` as one word of shell syntax in double quotes.
fn double_quoted(text: &str) -> String {
    let mut word = String::from("\"");
    for character in text.chars().filter(|&c| c != '\0') {
        if matches!(character, '\\' | '"' | '`' | '$') {
            word.push('\\');
        }
        word.push(character);
    }
    word + "\""
}

/// Returns `text` as one word of shell syntax in single quotes. A single quote itself is put in double quotes.
fn single_quoted(text: &str) -> String {
    // Apptainer quotes a single quote in the same way. In DUCC's scripts, a single quote in a value ends the assignment early.
    format!("'{}'", text.replace('\0', "").replace('\'', r#"'"'"'"#))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;
    use std::process::Command;

    use proptest::prelude::*;

    use super::super::tests::{Shell, shells};
    use super::*;

    /// Strings with special characters of shells.
    const HOSTILE: [&str; 24] = [
        "",
        " ",
        "two words",
        " edges ",
        "'",
        "it's",
        "'\"'\"'",
        "\"",
        "say \"hi\"",
        "$HOME",
        "${HOME}",
        "$(id)",
        "`id`",
        "\\",
        "\\\\\\",
        "\\$HOME\\\"\\'\\`",
        "*",
        "[a-z]? ~ {a,b} !! #",
        "line\nbreak\n",
        "\\\ntab\there\rreturn",
        "}; id >&2; {",
        "-n",
        "ÁÈÃ \u{81}\u{88} – 日本 🦀",
        "{oci_cmd} $1 $@ $#",
    ];

    /// Prints the arguments with which the shell was started. The last command prevents the shell from replacing itself with `cat`.
    const REPORT: &str = "cat /proc/$$/cmdline; true";

    fn strings<S: ToString>(texts: impl IntoIterator<Item = S>) -> Vec<String> {
        texts.into_iter().map(|text| text.to_string()).collect()
    }

    fn reporter() -> Vec<String> {
        strings(["/bin/sh", "-c", REPORT, "reporter"])
    }

    fn config(entrypoint: &[String], cmd: &[String], env: &[String]) -> ExecutionConfig {
        ExecutionConfig {
            entrypoint: entrypoint.to_vec(),
            cmd: cmd.to_vec(),
            env: env.to_vec(),
            ..ExecutionConfig::default()
        }
    }

    fn write(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Splits the content of `/proc/…/cmdline` and `/proc/…/environ`.
    fn pieces(bytes: &[u8]) -> Vec<OsString> {
        let mut pieces: Vec<_> = bytes.split(|&b| b == 0).map(|piece| OsString::from_vec(piece.to_vec())).collect();
        assert_eq!(pieces.pop().unwrap(), "", "ends with a NUL");
        pieces
    }

    /// Runs both variants of a runscript in every shell, and checks that the program receives exactly `expected`.
    fn assert_runs(config: &ExecutionConfig, arguments: &[OsString], expected: &[OsString]) {
        let directory = tempfile::tempdir().unwrap();
        let script = write(&directory, "runscript", &runscript(config));
        for shell in shells() {
            for no_eval in [None, Some("SINGULARITY_NO_EVAL"), Some("APPTAINER_NO_EVAL")] {
                let mut command = shell.command();
                command.arg(&script).args(arguments).envs(no_eval.map(|name| (name, "1")));
                let output = command.output().unwrap();
                assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{shell:?} {no_eval:?}");
                assert_eq!(pieces(&output.stdout), expected, "{shell:?} {no_eval:?}");
            }
        }
    }

    fn assert_runs_as_docker(entrypoint: &[String], cmd: &[String], arguments: &[String]) {
        let rest = if arguments.is_empty() { cmd } else { arguments };
        let expected: Vec<OsString> = entrypoint.iter().chain(rest).map(OsString::from).collect();
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        assert_runs(&config(entrypoint, cmd, &[]), &arguments, &expected);
    }

    fn with_reporter(arguments: &[String]) -> Vec<String> {
        [reporter(), arguments.to_vec()].concat()
    }

    #[test]
    fn runscript_passes_entry_point_command_and_arguments_like_docker() {
        let hostile = strings(HOSTILE);
        assert_runs_as_docker(&with_reporter(&hostile), &[], &[]);
        assert_runs_as_docker(&with_reporter(&hostile), &[], &hostile);
        assert_runs_as_docker(&[], &with_reporter(&hostile), &[]);
        assert_runs_as_docker(&[], &strings(["never run"]), &with_reporter(&hostile));
        assert_runs_as_docker(&with_reporter(&hostile), &hostile, &[]);
        assert_runs_as_docker(&with_reporter(&hostile), &strings(["replaced"]), &hostile);
        assert_runs_as_docker(&with_reporter(&hostile), &hostile, &strings([""]));
        assert_runs_as_docker(&[], &[], &with_reporter(&hostile));
    }

    #[test]
    fn runscript_passes_arguments_that_are_not_utf_8() {
        let bytes = OsString::from_vec((1..=255).collect());
        let expected: Vec<_> = reporter().into_iter().map(OsString::from).chain([bytes.clone()]).collect();
        assert_runs(&config(&reporter(), &strings(["replaced"]), &[]), &[bytes], &expected);
    }

    #[test]
    fn runscript_treats_an_empty_entry_point_as_missing() {
        let expected: Vec<_> = reporter().into_iter().map(OsString::from).collect();
        assert_runs(&config(&strings([""]), &reporter(), &[]), &[], &expected);
    }

    #[test]
    fn runscript_of_an_image_without_a_program_starts_a_shell() {
        let directory = tempfile::tempdir().unwrap();
        let script = write(&directory, "runscript", &runscript(&ExecutionConfig::default()));
        let input = write(&directory, "input", REPORT);
        for shell in shells() {
            for no_eval in ["", "1"] {
                let mut command = shell.command();
                command.arg(&script).env("SINGULARITY_NO_EVAL", no_eval);
                let output = command.stdin(std::fs::File::open(&input).unwrap()).output().unwrap();
                assert_eq!(pieces(&output.stdout), ["/bin/sh"], "{shell:?}");
            }
        }
    }

    #[test]
    fn runscript_begins_with_entry_point_and_command_in_the_form_of_apptainer() {
        let text = runscript(&config(&strings(["a'b", "$c"]), &strings(["d\\\"`"]), &[]));
        let expected = "#!/bin/sh\nOCI_ENTRYPOINT='\"a'\"'\"'b\" \"\\$c\"'\nOCI_CMD='\"d\\\\\\\"\\`\"'\n";
        assert_eq!(&text[..expected.len()], expected);
        assert!(runscript(&config(&[], &[], &[])).starts_with("#!/bin/sh\nOCI_ENTRYPOINT=''\nOCI_CMD=''\n"));
    }

    #[test]
    fn nul_is_removed_from_arguments_and_values() {
        let config = config(&with_reporter(&strings(["a\0b"])), &[], &strings(["A=b\0c"]));
        assert!(!runscript(&config).contains('\0'));
        assert!(environment(&config).contains("A='bc'\n"));
    }

    /// Sources the environment file of `env` in a shell with the variables `before`, and returns the exported variables.
    fn sourced(shell: &Shell, env: &[String], before: &[(&str, &str)]) -> Vec<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        let file = write(&directory, "10-docker2singularity.sh", &environment(&config(&[], &[], env)));
        let mut command: Command = shell.command();
        command.env_clear().envs(before.iter().copied());
        let output = command.args(["-c", ". \"$0\"; exec /bin/cat /proc/self/environ"]).arg(file).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{shell:?}");
        let variables = pieces(&output.stdout).into_iter().map(|variable| variable.into_string().unwrap());
        variables.map(|variable| variable.split_once('=').map(|(n, v)| (n.into(), v.into())).unwrap()).collect()
    }

    /// Checks in every shell that `name` is exported with this value, or not at all.
    fn assert_exports(env: &[String], before: &[(&str, &str)], name: &str, expected: Option<&str>) {
        for shell in shells() {
            let variables: BTreeMap<_, _> = sourced(&shell, env, before).into_iter().collect();
            assert_eq!(variables.get(name).map(String::as_str), expected, "{name} in {shell:?}");
        }
    }

    #[test]
    fn environment_has_every_value_of_the_image_unchanged() {
        let env: Vec<_> = HOSTILE.iter().enumerate().map(|(n, value)| format!("HOSTILE_{n}={value}=x")).collect();
        for shell in shells() {
            let variables: BTreeMap<_, _> = sourced(&shell, &env, &[]).into_iter().collect();
            for (n, value) in HOSTILE.iter().enumerate() {
                assert_eq!(variables[&format!("HOSTILE_{n}")], format!("{value}=x"), "{shell:?}");
            }
        }
    }

    #[test]
    fn image_always_overrides_path_and_other_variables_only_if_they_are_empty() {
        let env = strings(["PATH=/image/$bin", "A=image", "B=image", "C=image"]);
        let before = [("PATH", "/host/bin"), ("A", "user's \"$x\" *"), ("B", "")];
        assert_exports(&env, &before, "PATH", Some("/image/$bin"));
        assert_exports(&env, &before, "A", Some("user's \"$x\" *"));
        assert_exports(&env, &before, "B", Some("image"));
        assert_exports(&env, &before, "C", Some("image"));
    }

    #[test]
    fn variable_without_a_value_in_the_image_keeps_its_value() {
        let env = strings(["A", "B", "PATH"]);
        let before = [("A", "user"), ("PATH", "/host/bin")];
        assert_exports(&env, &before, "A", Some("user"));
        assert_exports(&env, &before, "B", Some(""));
        assert_exports(&env, &before, "PATH", Some("/host/bin"));
    }

    #[test]
    fn names_that_a_shell_cannot_export_are_omitted() {
        let bad = ["1A=x", "A-B=x", "A.B=x", "=x", "", "A B=x", "Ä=x", "A\n=x", "$(id)=x", "A;id", "A[0]=x"];
        for name in bad {
            assert_eq!(environment(&config(&[], &[], &strings([name]))), "#!/bin/sh\n", "{name:?}");
        }
        assert_exports(&strings(["A-B=x", "_a1=good"]), &[], "_a1", Some("good"));
    }

    #[test]
    fn second_of_two_values_of_a_variable_is_used() {
        assert_exports(&strings(["A=1", "B=x", "A=2"]), &[], "A", Some("2"));
        assert_exports(&strings(["PATH=/1", "PATH=/2"]), &[], "PATH", Some("/2"));
    }

    #[test]
    fn read_only_variables_of_a_shell_do_not_end_the_script() {
        let env = strings(["UID=1000", "EUID=1000", "PPID=1", "OPTIND=x", "SHELLOPTS=x", "BASHOPTS=x", "UID", "Z=z"]);
        assert_exports(&env, &[], "Z", Some("z"));
    }

    fn hostile_string() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "'", "\"", "$", "`", "\\", "\n", "\r", "\t", " ", "*", "?", "[", "]", "{", "}", "(", ")", "!", "#", "~",
            ";", "&", "|", "<", ">", "=", "-", "@", "a", "1", "Á", "È", "\u{1}", "\u{7f}", "日",
        ]);
        prop::collection::vec(pieces, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn runscript_passes_any_arguments(
            entrypoint in prop::collection::vec(hostile_string(), 0..12),
            cmd in prop::collection::vec(hostile_string(), 0..12),
            arguments in prop::collection::vec(hostile_string(), 0..3),
        ) {
            assert_runs_as_docker(&with_reporter(&entrypoint), &cmd, &arguments);
        }

        #[test]
        fn environment_passes_any_values(values in prop::collection::vec(hostile_string(), 0..24)) {
            let env: Vec<_> = values.iter().enumerate().map(|(n, value)| format!("V{n}={value}")).collect();
            for shell in shells() {
                let variables: BTreeMap<_, _> = sourced(&shell, &env, &[]).into_iter().collect();
                for (n, value) in values.iter().enumerate() {
                    prop_assert_eq!(&variables[&format!("V{n}")], value);
                }
            }
        }
    }
}
