//! Object names, including those that strata itself never writes.

use std::fmt;

use crate::object::{ObjectHash, ObjectKind};

/// The name of an object of any kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ObjectName {
    hash: ObjectHash,
    /// The letter after the hash, or 0 if the name has no letter.
    letter: u8,
}

/// Letters with which the names of files below `data/` may end.
// `cvmfs_swissknife scrub` accepts the same letters.
const LETTERS: &[u8] = b"CHPXML";

impl ObjectName {
    /// Creates the name of an object.
    pub(super) fn of(hash: ObjectHash, kind: ObjectKind) -> Self {
        Self { hash, letter: kind.suffix().bytes().next().unwrap_or(0) }
    }

    /// Parses the text of a hash, which never includes the letter.
    pub(super) fn of_text(text: &str, kind: ObjectKind) -> Option<Self> {
        Some(Self::of(text.parse().ok()?, kind))
    }

    /// Parses the name of a file in the directory `data/<directory>`.
    pub(super) fn of_file(directory: u8, file: &str) -> Option<Self> {
        let letter = file.bytes().last().filter(|letter| LETTERS.contains(letter));
        let hash = &file[..file.len() - usize::from(letter.is_some())];
        let hash = format!("{directory:02x}{hash}").parse().ok()?;
        Some(Self { hash, letter: letter.unwrap_or(0) })
    }

    /// Returns the number of the directory below `data/` that contains the object.
    pub(super) fn directory(self) -> u8 {
        self.hash.as_bytes()[0]
    }

    /// Returns whether catalog rows describe how the object is stored. Other objects are known only by their first bytes.
    pub(super) fn has_row(self) -> bool {
        [ObjectKind::File, ObjectKind::Chunk].into_iter().any(|kind| self == Self::of(self.hash, kind))
    }

    /// Returns the hash.
    pub(super) fn hash(self) -> ObjectHash {
        self.hash
    }
}

/// Writes the path of the object relative to the storage directory.
impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hash.path(ObjectKind::File))?;
        if self.letter == 0 { Ok(()) } else { write!(f, "{}", char::from(self.letter)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::HashAlgorithm;

    #[test]
    fn file_names_round_trip() {
        let digits = "39a3ee5e6b4b0d3255bfef95601890afd80709";
        for end in ["", "C", "P", "-shake128", "-rmd160H"] {
            let file = format!("{digits}{end}");
            let name = ObjectName::of_file(0xda, &file).unwrap_or_else(|| panic!("{file}"));
            assert_eq!((name.to_string(), name.directory()), (format!("data/da/{file}"), 0xda));
        }
        for file in
            ["", "C", "tmp", &digits[1..], &format!("{digits}CC"), &format!("{digits}Z"), &digits.to_uppercase()]
        {
            assert_eq!(ObjectName::of_file(0xda, file), None, "{file}");
        }
    }

    #[test]
    fn text_of_a_hash_has_no_letter() {
        let text = ObjectHash::of(b"").to_string();
        let catalog = ObjectName::of_text(&text, ObjectKind::Catalog).unwrap();
        assert_eq!((catalog.hash(), catalog.to_string().pop()), (ObjectHash::of(b""), Some('C')));
        assert_eq!(ObjectName::of_text(&format!("{text}C"), ObjectKind::Catalog), None);
        let shake = ObjectName::of_text(&format!("{text}-shake128"), ObjectKind::File).unwrap().hash();
        assert_eq!(shake.algorithm(), HashAlgorithm::Shake128);
    }
}
