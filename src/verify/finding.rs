//! What is published and not what the image says.

use std::fmt;

use crate::path::EntryPath;

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
