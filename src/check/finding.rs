//! The findings of a check, and their text form.

use std::fmt;
use std::sync::Mutex;

use serde::Serialize;

use crate::catalog::audit::Fault;
pub(super) use crate::message::{escape, show};
use crate::message::{on_one_line, shortened};

/// One deviation from the repository format. Findings are sorted by file, then by path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file below the storage directory, such as `data/3f/c8…C`.
    pub file: String,
    /// The path in the repository that the file, or a row of it, describes; unusual bytes are escaped.
    pub path: Option<String>,
    /// The file that refers to this one.
    pub referrer: Option<String>,
    /// The content that the format requires.
    pub expected: String,
    /// The content that exists.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match (&self.path, &self.referrer) {
            (Some(path), Some(referrer)) => write!(f, " ({path} in {referrer})")?,
            (Some(text), None) | (None, Some(text)) => write!(f, " ({text})")?,
            (None, None) => {}
        }
        write!(f, ": expected {}, found {}", self.expected, self.found)
    }
}

/// The location of a finding.
#[derive(Debug, Clone)]
pub(super) struct Location {
    pub(super) file: String,
    path: Option<String>,
    referrer: Option<String>,
}

impl Location {
    /// The location of a file, relative to the storage directory.
    pub(super) fn file(file: impl Into<String>) -> Self {
        Self { file: file.into(), path: None, referrer: None }
    }

    /// Adds the path in the repository that the file, or a row of it, describes.
    pub(super) fn at(mut self, path: &[u8]) -> Self {
        self.path = Some(show(path));
        self
    }

    /// Adds the file that refers to this one.
    pub(super) fn referred_to_by(mut self, referrer: impl Into<String>) -> Self {
        self.referrer = Some(referrer.into());
        self
    }
}

/// Collects findings from any number of threads.
#[derive(Debug, Default)]
pub(super) struct Findings(Mutex<Vec<Finding>>);

impl Findings {
    /// Adds a finding.
    pub(super) fn note(&self, location: &Location, expected: impl fmt::Display, found: impl fmt::Display) {
        let Location { file, path, referrer } = location.clone();
        let (expected, found) = (text_of(&expected), text_of(&found));
        self.0.lock().expect("no thread panics while it adds a finding").push(Finding {
            file,
            path,
            referrer,
            expected,
            found,
        });
    }

    /// Adds a finding unless `found` equals `expected`.
    pub(super) fn require<T: PartialEq + fmt::Display>(&self, location: &Location, what: &str, expected: T, found: T) {
        if expected != found {
            self.note(location, format_args!("{what} {expected}"), found);
        }
    }

    /// Adds the faults of a database as findings.
    pub(super) fn add_faults(&self, location: &Location, faults: &[Fault]) {
        faults.iter().for_each(|fault| self.note(location, &fault.expected, &fault.found));
    }

    /// Returns all findings, sorted and without duplicates.
    pub(super) fn sorted(self) -> Vec<Finding> {
        let mut findings = self.0.into_inner().expect("no thread panics while it adds a finding");
        findings.sort();
        findings.dedup();
        findings
    }
}

fn text_of(part: &impl fmt::Display) -> String {
    on_one_line(&shortened(&part.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_is_one_line_with_file_path_expected_and_found() {
        let findings = Findings::default();
        findings.note(&Location::file("data/00/1").at(b"/a\n").referred_to_by("data/00/2C"), "bytes", "a\nb");
        findings.note(&Location::file(".cvmfsreflog"), "a file", "nothing");
        findings.note(&Location::file(".cvmfsreflog"), "a file", "nothing");
        let lines: Vec<String> = findings.sorted().iter().map(ToString::to_string).collect();
        let expected = [
            ".cvmfsreflog: expected a file, found nothing",
            "data/00/1 (/a\\n in data/00/2C): expected bytes, found a\\nb",
        ];
        assert_eq!(lines, expected);
    }
}
