//! Output that is shared by the commands which report findings.

use std::fmt;
use std::process::ExitCode;

use super::failure::FINDINGS;
use super::print_line;

/// Maximum number of findings that are printed as text.
const MAX_PRINTED_FINDINGS: usize = 1000;

/// Prints the findings, one per line, followed by the summary.
pub fn print(findings: &[impl fmt::Display], summary: &str) -> anyhow::Result<()> {
    for finding in findings.iter().take(MAX_PRINTED_FINDINGS) {
        print_line(format_args!("{finding}"))?;
    }
    if findings.len() > MAX_PRINTED_FINDINGS {
        print_line(format_args!("and {} more", findings.len() - MAX_PRINTED_FINDINGS))?;
    }
    print_line(format_args!("{summary}"))
}

/// Returns the number of findings as text.
pub fn number<T>(findings: &[T]) -> String {
    if findings.is_empty() { "no findings".to_owned() } else { count(findings.len() as u64, "finding") }
}

/// Returns a number followed by a noun, in the plural if necessary.
pub fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Returns the exit code of a command with these findings.
pub fn exit_code<T>(findings: &[T]) -> ExitCode {
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) }
}
