//! A difference between what is published and the image.

use std::fmt;

use crate::path::EntryPath;

/// One difference. Differences are sorted by path, then by attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The path in the repository.
    pub path: EntryPath,
    /// The attribute that differs.
    pub attribute: &'static str,
    /// The value according to the image.
    pub expected: String,
    /// The published value.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.path, self.attribute, self.expected, self.found)
    }
}
