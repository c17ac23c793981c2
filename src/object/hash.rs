//! Names of objects in the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use crate::image::{hex, unhex};

/// Name of an object: the SHA-1 hash of its bytes as stored, that is, after compression.
///
/// There is no special value for a missing hash; use `Option<ObjectHash>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectHash([u8; 20]);

/// Kind of an object. The file name ends with a letter for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A whole file.
    File,
    /// A chunk of a large file.
    Chunk,
    /// A catalog.
    Catalog,
    /// The database of tags.
    History,
    /// The certificate that manifests are signed with.
    Certificate,
    /// Description of the repository in JSON.
    MetaInfo,
}

impl ObjectKind {
    /// Returns the letter at the end of the file name, or nothing for a whole file.
    // The letter is part of the file name only: catalogs and manifests state the hash without it.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::File => "",
            Self::Chunk => "P",
            Self::Catalog => "C",
            Self::History => "H",
            Self::Certificate => "X",
            Self::MetaInfo => "M",
        }
    }
}

impl ObjectHash {
    /// Returns the name of the object with these stored bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha1::digest(bytes).into())
    }

    /// Returns the binary hash, as catalogs store it.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Returns the object's path relative to the repository root, for example `data/3f/c8…a1C` for a catalog.
    pub fn path(self, kind: ObjectKind) -> String {
        let hex = hex(&self.0);
        ["data/", &hex[..2], "/", &hex[2..], kind.suffix()].concat()
    }
}

impl From<[u8; 20]> for ObjectHash {
    fn from(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not the name of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a SHA-1 object hash of 40 hexadecimal digits")]
pub struct ParseHashError(String);

impl FromStr for ObjectHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        unhex(text.as_bytes()).map(Self).ok_or_else(|| ParseHashError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_ends_with_the_kind_and_text_form_round_trips() {
        let hash = ObjectHash::of(b"");
        assert_eq!(hash.path(ObjectKind::File), "data/da/39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(hash.path(ObjectKind::Catalog), "data/da/39a3ee5e6b4b0d3255bfef95601890afd80709C");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert!(
            "da39".parse::<ObjectHash>().is_err()
                && "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709".parse::<ObjectHash>().is_err()
        );
    }
}
