//! The name of a repository.

use std::fmt;
use std::str::FromStr;

/// The fully qualified name of a repository, such as `unpacked.example.org`.
///
/// It has 1 to 60 of the characters `A-Za-z0-9-_.` and begins with a letter or a digit, so it is safe as a file name and in a line of
/// text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

/// Errors from parsing a repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryNameError {
    /// The text is not a valid name for any CernVM-FS tool.
    #[error(
        "'{0}' is not a valid repository name: it must have 1 to 60 of the characters A-Z a-z 0-9 - _ . and start with a letter or digit"
    )]
    Malformed(String),
    /// The name is valid, but a new repository needs a dot in its name, because clients expect it.
    #[error(
        "'{0}' is not a fully qualified name: the name of a new repository must contain a dot, as unpacked.example.org does"
    )]
    NotDotted(String),
}

impl RepositoryName {
    /// Maximum length of a name in characters.
    // The limit of CVMFS's own tools (`RepositorySanitizer`).
    pub const LENGTH_LIMIT: usize = 60;

    /// Parses the name of a new repository, which must consist of at least two parts separated by dots.
    ///
    /// An existing repository may have a name without a dot; parse it with [`FromStr`].
    pub fn for_new_repository(text: &str) -> Result<Self, RepositoryNameError> {
        let name: Self = text.parse()?;
        let dotted = name.0.contains('.') && name.0.split('.').all(|part| !part.is_empty());
        if dotted { Ok(name) } else { Err(RepositoryNameError::NotDotted(name.0)) }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = RepositoryNameError;

    fn from_str(text: &str) -> Result<Self, RepositoryNameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let first_fits = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first_fits && text.len() <= Self::LENGTH_LIMIT && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            // Cut, because the text may have any length.
            Err(RepositoryNameError::Malformed(text.escape_debug().take(2 * Self::LENGTH_LIMIT).collect()))
        }
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_has_one_to_sixty_harmless_characters() {
        for good in ["a", "0", "unpacked.cern.ch", "A-b_c.d", &"x".repeat(60)] {
            assert_eq!(good.parse::<RepositoryName>().expect(good).to_string(), good);
        }
        for bad in ["", ".a", "-a", "_a", "a b", "a/b", "a\n", "é.ch", &"x".repeat(61)] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn new_repository_needs_a_dotted_name() {
        assert!(RepositoryName::for_new_repository("a.b").is_ok());
        for bad in ["atlas", "a.", "a..b"] {
            assert!(matches!(RepositoryName::for_new_repository(bad), Err(RepositoryNameError::NotDotted(_))), "{bad}");
        }
        assert!(matches!(RepositoryName::for_new_repository(".b"), Err(RepositoryNameError::Malformed(_))));
    }
}
