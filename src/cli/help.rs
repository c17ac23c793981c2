//! What the help of each command says after its options: the form of values, exit codes and examples.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::failure::{FAILED, FINDINGS, HELD, LATE, PARTLY, USAGE};

/// What a command's help adds to the descriptions of its options.
struct Notes {
    command: &'static str,
    /// Exit codes beside those of every command.
    codes: &'static [u8],
    /// Command lines, each after a line that says what it does.
    examples: &'static [(&'static str, &'static str)],
}

const NOTES: [Notes; 13] = [
    Notes {
        command: "init",
        codes: &[],
        examples: &[(
            "Create a repository below /srv:",
            "strata init unpacked.example.org --repo /srv/unpacked.example.org",
        )],
    },
    Notes {
        command: "convert",
        codes: &[PARTLY, HELD, LATE],
        examples: &[
            ("Publish an image of a registry:", "strata convert docker://registry.example.org/tools/app:1.2"),
            (
                "Publish an OCI layout, in a repository that is created if it does not exist:",
                "strata convert oci:app --name registry.example.org/tools/app:1.2 --create --repo demo.example.org",
            ),
        ],
    },
    Notes {
        command: "sync",
        codes: &[PARTLY, HELD, LATE],
        examples: &[
            ("Print what would change:", "strata sync wishlist.yaml --prune --dry-run"),
            ("Update the repository every ten minutes:", "strata sync wishlist.yaml --prune --watch --every 10m"),
        ],
    },
    Notes {
        command: "info",
        codes: &[],
        examples: &[("Print how to run an image:", "strata info registry.example.org/tools/app:1.2")],
    },
    Notes {
        command: "list",
        codes: &[],
        examples: &[(
            "List the images of a repository on a web server:",
            "strata list --repo http://stratum1.example.org/cvmfs/unpacked.example.org --public-key unpacked.example.org.pub",
        )],
    },
    Notes {
        command: "check",
        codes: &[FINDINGS],
        examples: &[
            ("Check everything except the content of objects:", "strata check --quick"),
            ("Check one image:", "strata check registry.example.org/tools/app:1.2"),
        ],
    },
    Notes {
        command: "verify",
        codes: &[FINDINGS],
        examples: &[(
            "Compare an image with its registry:",
            "strata verify docker://registry.example.org/tools/app:1.2",
        )],
    },
    Notes {
        command: "diff",
        codes: &[FINDINGS],
        examples: &[
            (
                "Print what a new version of an image would change:",
                "strata diff docker://registry.example.org/tools/app:1.2",
            ),
            ("Print what the last revision has changed:", "strata diff trunk-previous head"),
        ],
    },
    Notes {
        command: "mount",
        codes: &[],
        examples: &[
            ("Mount the newest revision:", "strata mount /mnt"),
            (
                "Mount one image of a repository on two web servers:",
                "strata mount --repo 'http://a.example.org/cvmfs/r.example.org;http://b.example.org/cvmfs/r.example.org' \\\n      \
                 --public-key r.example.org.pub --path registry.example.org/tools/app:1.2 /mnt",
            ),
        ],
    },
    Notes {
        command: "preview",
        codes: &[],
        examples: &[(
            "Run a test in an image before it is published:",
            "strata preview docker://registry.example.org/tools/app:1.2 /mnt --command 'ls $STRATA_PREVIEW/flat'",
        )],
    },
    Notes {
        command: "bundle",
        codes: &[],
        examples: &[(
            "Run an image from the repository with runc:",
            "strata bundle registry.example.org/tools/app:1.2 bundle && runc run --bundle bundle app",
        )],
    },
    Notes {
        command: "completions",
        codes: &[],
        examples: &[(
            "Complete commands and options in bash:",
            "strata completions bash > /etc/bash_completion.d/strata",
        )],
    },
    Notes {
        command: "man",
        codes: &[],
        examples: &[("Install the manual pages:", "strata man /usr/local/share/man/man1")],
    },
];

/// Adds the notes to the help of all commands.
pub fn with_notes(command: Command) -> Command {
    NOTES.iter().fold(command, |command, notes| {
        command.mut_subcommand(notes.command, |subcommand| {
            let text = notes.text(&subcommand);
            subcommand.after_long_help(text)
        })
    })
}

impl Notes {
    fn text(&self, command: &Command) -> String {
        let has = |name: &str| command.get_arguments().any(|argument| has_value(argument, name));
        let mut text = String::new();
        if has("SIZE") {
            text.push_str(SIZE);
        }
        if has("TIME") {
            text.push_str(TIME);
        }
        text.push_str("Exit codes:\n");
        let common =
            [(0, "done"), (FAILED, self.failure()), (USAGE, "the command line is invalid, or there is no repository")];
        let own = self.codes.iter().map(|&code| (code, meaning(code)));
        for (code, meaning) in common.into_iter().chain(own) {
            writeln!(text, "  {code:<4} {meaning}").expect("a string can be extended");
        }
        text.push_str("  130  interrupted (SIGINT); 143: terminated (SIGTERM)\n\nExamples:\n");
        for (purpose, line) in self.examples {
            writeln!(text, "  {purpose}\n    {line}").expect("a string can be extended");
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn failure(&self) -> &'static str {
        if self.codes.contains(&LATE) { "nothing was published because of an error" } else { "an error occurred" }
    }
}

const SIZE: &str =
    "SIZE is a number with a unit: kB, MB, GB (powers of 1000) or KiB, MiB, GiB (powers of 1024), as in 256MiB.\n\n";
const TIME: &str = "TIME is a number with a unit: s, m, h or d, as in 90s; several are added, as in 1h30m.\n\n";

fn has_value(argument: &Arg, name: &str) -> bool {
    argument.get_value_names().is_some_and(|names| names.iter().any(|other| other.as_str() == name))
}

fn meaning(code: u8) -> &'static str {
    match code {
        PARTLY => "at least one image failed; all others are published",
        FINDINGS => "there are findings or differences",
        HELD => "another publisher holds the repository",
        LATE => "a revision is published, but a later step failed",
        _ => unreachable!("the codes of the notes are listed here"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::arguments;

    #[test]
    fn each_command_has_notes() {
        let command = arguments::command();
        let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
        for command in visible {
            let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Exit codes:") && help.contains("Examples:"), "{}", command.get_name());
        }
    }

    /// Returns the words of a command line in a shell.
    fn words(line: &str) -> Vec<&str> {
        // Text between two quotes is one word.
        let parts = line.split('\'').enumerate();
        let words = parts.flat_map(|(number, part)| match number % 2 {
            0 => part.split_whitespace().filter(|word| *word != "\\").collect(),
            _ => vec![part],
        });
        words.take_while(|word| !matches!(*word, "&&" | ">")).collect()
    }

    #[test]
    fn examples_are_valid_command_lines() {
        for (_, line) in NOTES.iter().flat_map(|notes| notes.examples) {
            let parsed = arguments::command().try_get_matches_from(words(line));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}
