//! What commands have in common that look for what is wrong.

use std::fmt;
use std::process::ExitCode;

use super::failure::FINDINGS;
use super::print_line;

/// So many findings are printed as text.
const PRINTED_FINDINGS: usize = 1000;

/// Prints findings, a line each, and then the summary.
pub fn print(findings: &[impl fmt::Display], summary: &str) -> anyhow::Result<()> {
    for finding in findings.iter().take(PRINTED_FINDINGS) {
        print_line(format_args!("{finding}"))?;
    }
    if findings.len() > PRINTED_FINDINGS {
        print_line(format_args!("and {} more", findings.len() - PRINTED_FINDINGS))?;
    }
    print_line(format_args!("{summary}"))
}

/// Returns how many findings there are, in words.
pub fn number<T>(findings: &[T]) -> String {
    if findings.is_empty() { "no findings".to_owned() } else { count(findings.len() as u64, "finding") }
}

/// Returns a number with the word for what it counts.
pub fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Returns the exit code of a command that found these.
pub fn exit_code<T>(findings: &[T]) -> ExitCode {
    if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) }
}
