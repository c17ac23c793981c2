//! `strata completions` and `strata man`.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap_complete::Shell;

use super::arguments::command;
use super::print;

/// Prints the completions for a shell.
pub fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "strata", &mut script);
    print(format_args!("{}", String::from_utf8(script)?))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the manual pages into a directory, which is created if it is missing.
pub fn pages(directory: &Path) -> anyhow::Result<ExitCode> {
    let write = || {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(command(), directory)?;
        Ok::<_, io::Error>(())
    };
    write().with_context(|| format!("cannot write manual pages into '{}'", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
