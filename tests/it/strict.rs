//! Reads a published repository directory as strictly as the format allows. It shares no code with the crate.
//!
//! [`check`] demands what CVMFS's own checks demand (`cvmfs_swissknife check -c`, `scrub`) and what they leave out but
//! clients rely on: row order, flags, content sizes, owners of transition points. Signatures are left to the tests of
//! the signer. Everything that a tag refers to is checked like the head.

mod catalog;
mod database;
mod hash;
mod letter;
mod reader;
mod references;
mod rules;
mod store;
mod tree;
mod walk;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use hash::is_hash;
use letter::Manifest;
use store::Store;
use tree::TreeCheck;

pub use reader::{Content, Entry, Reader};

/// A fault of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file below the storage directory, or the path in the repository with its catalog.
    pub place: String,
    /// What the format demands.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.place, self.expected, self.found)
    }
}

/// The findings of a running check.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding.
    fn note(&mut self, place: impl fmt::Display, expected: impl fmt::Display, found: impl fmt::Display) {
        let (place, expected, found) = (place.to_string(), expected.to_string(), found.to_string());
        self.0.push(Finding { place, expected, found });
    }

    /// Adds a finding unless `found` equals `expected`.
    fn require<T: PartialEq + fmt::Debug>(&mut self, place: impl fmt::Display, what: &str, expected: T, found: T) {
        if expected != found {
            self.note(place, format_args!("{what} {expected:?}"), format_args!("{found:?}"));
        }
    }

    /// Returns the result of a step, or records the finding that made it fail.
    fn keep<T>(&mut self, step: Result<T, Finding>) -> Option<T> {
        step.map_err(|finding| self.0.push(finding)).ok()
    }
}

/// The result of [`check`].
#[derive(Debug)]
pub struct Report {
    /// All faults; empty if there are none.
    pub findings: Vec<Finding>,
    /// Objects below `data/` that neither the head nor a tag refers to: allowed, and removed by a garbage collection.
    pub unreachable: BTreeSet<String>,
}

impl Report {
    /// Panics with all findings, if there are any.
    #[track_caller]
    pub fn assert_good(&self) {
        let findings: Vec<String> = self.findings.iter().map(Finding::to_string).collect();
        assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    }

    /// Returns whether the message of a finding contains `text`.
    pub fn says(&self, text: &str) -> bool {
        self.findings.iter().any(|finding| finding.to_string().contains(text))
    }
}

/// Checks the repository `fqrn`, whose published files are in `storage`.
pub fn check(storage: &Path, fqrn: &str) -> Report {
    let mut findings = Findings::default();
    let store = Store::new(storage);
    store.check_top_directory(&mut findings);
    let objects = store.scan(&mut findings);
    let Some(manifest) = findings.keep(Manifest::read(storage)) else {
        return Report { findings: findings.0, unreachable: BTreeSet::new() };
    };
    manifest.check(fqrn, &mut findings);

    let mut tree = TreeCheck::new(&store, &objects, &mut findings);
    references::check(&store, &manifest, fqrn, &mut tree);
    letter::check_alternative_paths(storage, &manifest, tree.findings);
    let referenced = tree.into_referenced();
    let unreachable = objects.keys().filter(|path| !referenced.contains(*path)).cloned().collect();
    Report { findings: findings.0, unreachable }
}

/// Returns a path of the repository for messages: `/` for the root, with non-printable bytes escaped.
fn show(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { path.escape_ascii().to_string() }
}

/// Returns bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
