//! Names of objects in the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::algorithm::HashAlgorithm;
use crate::image::{hex, unhex};

/// Name of an object: the hash of its bytes as stored, that is, after compression, and the algorithm of that hash.
///
/// There is no special value for a missing hash; use `Option<ObjectHash>`.
// The digest first, so that names are sorted like the files in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectHash {
    digest: [u8; 20],
    algorithm: HashAlgorithm,
}

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
    /// Creates the name from a hash that was computed with `algorithm`.
    pub fn new(algorithm: HashAlgorithm, digest: [u8; 20]) -> Self {
        Self { digest, algorithm }
    }

    /// Returns the SHA-1 name of the object with these stored bytes.
    pub fn of(bytes: &[u8]) -> Self {
        HashAlgorithm::Sha1.hash(bytes)
    }

    /// Returns the algorithm.
    pub fn algorithm(self) -> HashAlgorithm {
        self.algorithm
    }

    /// Returns the binary hash, as catalogs store it.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.digest
    }

    /// Returns the object's path relative to the repository root, for example `data/3f/c8…a1-shake128C` for a catalog.
    pub fn path(self, kind: ObjectKind) -> String {
        let hex = hex(&self.digest);
        ["data/", &hex[..2], "/", &hex[2..], self.algorithm.suffix(), kind.suffix()].concat()
    }
}

/// Writes 40 hexadecimal digits and the suffix of the algorithm.
impl fmt::Display for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.digest))?;
        f.write_str(self.algorithm.suffix())
    }
}

impl fmt::Debug for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not the name of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an object hash of 40 hexadecimal digits, followed by -rmd160 or -shake128 unless it is SHA-1")]
pub struct ParseHashError(String);

impl FromStr for ObjectHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        // Each suffix begins with a hyphen, which is no digit, so at most one algorithm fits.
        let parse = |algorithm: HashAlgorithm| {
            let digest = unhex(text.strip_suffix(algorithm.suffix())?.as_bytes())?;
            Some(Self::new(algorithm, digest))
        };
        HashAlgorithm::ALL.into_iter().find_map(parse).ok_or_else(|| ParseHashError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_ends_with_algorithm_and_kind_and_text_form_round_trips() {
        let digits = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        for algorithm in HashAlgorithm::ALL {
            let text = format!("{digits}{}", algorithm.suffix());
            let hash: ObjectHash = text.parse().unwrap();
            assert_eq!((hash.algorithm(), hash.to_string()), (algorithm, text));
            for kind in [ObjectKind::File, ObjectKind::Catalog] {
                let path = format!("data/da/{}{}{}", &digits[2..], algorithm.suffix(), kind.suffix());
                assert_eq!(hash.path(kind), path);
            }
        }
        assert_eq!(ObjectHash::of(b"").to_string(), digits);
    }

    #[test]
    fn other_texts_are_no_hashes() {
        let digits = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        let texts = [&digits[..4], &digits.to_uppercase(), &format!("{digits}-sha1"), &format!("{digits}C")];
        for text in texts {
            assert!(text.parse::<ObjectHash>().is_err(), "{text}");
        }
        let twice = format!("{digits}-rmd160-shake128");
        assert!(twice.parse::<ObjectHash>().is_err() && format!("{digits}-SHAKE128").parse::<ObjectHash>().is_err());
    }

    #[test]
    fn names_of_different_algorithms_differ() {
        let hashes = HashAlgorithm::ALL.map(|algorithm| ObjectHash::new(algorithm, [7; 20]));
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != hashes[2]);
    }
}
