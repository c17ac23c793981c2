//! What is published and not what the image says.

use std::error::Error;
use std::fmt;

use crate::layer::EntryPath;

/// One thing that is not as it must be. Findings sort by path, and then by attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The path in the repository.
    pub path: EntryPath,
    /// What of it.
    pub attribute: &'static str,
    /// What the image demands.
    pub expected: String,
    /// What is published.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.path, self.attribute, self.expected, self.found)
    }
}

/// Returns an error and its causes in one line.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.dedup();
    let line = texts.join(": ");
    line.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
