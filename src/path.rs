//! Paths inside images, trees and repositories.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::image::unhex;

/// A path inside an image: components joined by `/`, without a slash at the start or end. The root is the empty path.
///
/// Paths are bytes, not text. They sort so that a directory comes before its entries, and its entries before the directory's next
/// sibling. No component is empty, `.`, `..`, longer than 255 bytes, or contains a NUL.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct EntryPath(Vec<u8>);

/// Errors about a path in an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A component is longer than the 255 bytes that CVMFS and Linux allow.
    #[error("path '{}' has a component longer than 255 bytes", .0.shown())]
    NameTooLong(EntryPath),
    /// A component contains a NUL byte, which Linux does not allow.
    #[error("path '{}' contains a NUL byte", .0.shown())]
    Nul(EntryPath),
}

/// Maximum length of a file name on Linux and in CVMFS, in bytes.
pub(crate) const MAX_NAME_LENGTH: usize = 255;

impl FromStr for EntryPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::normalise(text.as_bytes())
    }
}

impl EntryPath {
    /// The root of the image.
    pub const ROOT: Self = Self(Vec::new());

    /// Normalises a path of an archive: removes `./`, `..`, and leading, repeated and trailing slashes.
    ///
    /// A `..` removes the component before it lexically, that is, even if that component is a symbolic link; at the root it
    /// removes nothing. umoci, podman and containerd do the same (Go's `filepath.Clean("/" + path)`), so that no path leaves
    /// the root.
    pub fn normalise(raw: &[u8]) -> Result<Self, PathError> {
        Self::clean(raw).checked()
    }

    /// Normalises a path. Neither the length of its components nor NUL bytes are checked.
    pub(crate) fn clean(raw: &[u8]) -> Self {
        let mut path = Vec::with_capacity(raw.len());
        for name in raw.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".") {
            if name == b".." {
                let parent = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
                path.truncate(parent);
                continue;
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        Self(path)
    }

    /// Returns the path if every component is a valid file name.
    pub(crate) fn checked(self) -> Result<Self, PathError> {
        if self.components().any(|name| name.len() > MAX_NAME_LENGTH) {
            Err(PathError::NameTooLong(self))
        } else if self.0.contains(&0) {
            Err(PathError::Nul(self))
        } else {
            Ok(self)
        }
    }

    /// Returns the bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the path for a message: escaped, and truncated after 200 bytes.
    pub fn shown(&self) -> String {
        format!("/{}", shown(&self.0))
    }

    /// Returns whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the components, from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        self.0.split(|&b| b == b'/').filter(|name| !name.is_empty())
    }

    /// Returns the parent directory and the last component, or `None` for the root.
    pub fn split(&self) -> Option<(EntryPath, &[u8])> {
        let (directory, name) = self.halves();
        (!self.is_root()).then(|| (Self(directory.to_vec()), name))
    }

    /// Returns the last component, empty for the root.
    pub fn name(&self) -> &[u8] {
        self.halves().1
    }

    /// Returns whether both paths have the same parent directory. The root is a sibling only of itself.
    pub fn is_sibling_of(&self, other: &Self) -> bool {
        self.is_root() == other.is_root() && self.halves().0 == other.halves().0
    }

    /// Returns the bytes of the parent's path and of the last component.
    fn halves(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    /// Returns whether this is `directory` or below it.
    pub fn is_in(&self, directory: &Self) -> bool {
        match self.0.strip_prefix(directory.0.as_slice()) {
            Some(rest) => directory.is_root() || rest.is_empty() || rest[0] == b'/',
            None => false,
        }
    }

    /// Returns the parent directory, its parent, and so on up to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = EntryPath> {
        std::iter::successors(self.split().map(|(parent, _)| parent), |path| path.split().map(|(parent, _)| parent))
    }

    /// Returns the path of the entry `name` in this directory. `name` must be a single component.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path)
    }
}

/// Writes a path as a JSON string: bytes that are not UTF-8 as `\\xff`, and a backslash as two backslashes.
impl Serialize for EntryPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(self.0.len());
        for part in self.0.utf8_chunks() {
            text.push_str(&part.valid().replace('\\', "\\\\"));
            part.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for EntryPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format!("'{text}' is not a path in the format that strata writes"));
        let mut raw = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, remaining)) = rest.split_first() {
            rest = remaining;
            if byte != b'\\' {
                raw.push(byte);
            } else if let Some(remaining) = rest.strip_prefix(b"\\") {
                raw.push(b'\\');
                rest = remaining;
            } else {
                let (digits, remaining) = rest.split_at_checked(3).ok_or_else(wrong)?;
                let [byte] = digits.strip_prefix(b"x").and_then(unhex).ok_or_else(wrong)?;
                raw.push(byte);
                rest = remaining;
            }
        }
        let path = Self::normalise(&raw).map_err(D::Error::custom)?;
        if path.0 == raw { Ok(path) } else { Err(wrong()) }
    }
}

/// Number of bytes that are compared at once.
const BLOCK: usize = 16;

impl Ord for EntryPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // Long paths often have a common prefix, and comparing blocks is faster than comparing bytes.
        let blocks = self.0.chunks_exact(BLOCK).zip(other.0.chunks_exact(BLOCK));
        let equal = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
        // A slash is compared as 0, a byte that no component contains. Therefore a directory sorts directly before its
        // entries.
        let key = |&b: &u8| if b == b'/' { 0 } else { b };
        self.0[equal..].iter().map(key).cmp(other.0[equal..].iter().map(key))
    }
}

impl PartialOrd for EntryPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"/{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

/// Returns the path of an archive for a message: escaped, and truncated after 200 bytes.
pub(crate) fn shown(path: &[u8]) -> String {
    const MAX_LENGTH: usize = 200;
    match path.get(..MAX_LENGTH) {
        Some(start) => format!("{}…", start.escape_ascii()),
        None => path.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised() {
        for (raw, expected) in [("./a//b/./c/", "a/b/c"), ("/a", "a"), ("./", ""), ("/", ""), ("a/...", "a/...")] {
            assert_eq!(EntryPath::normalise(raw.as_bytes()).unwrap().as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn parent_components_are_removed_lexically_and_never_leave_the_root() {
        for (raw, expected) in [
            ("./../ext/x.jar", "ext/x.jar"),
            ("a/../b", "b"),
            ("../../b", "b"),
            ("a/b/../../../c", "c"),
            ("a/b/..", "a"),
            ("..", ""),
            ("/../", ""),
            ("a/..b/..", "a"),
        ] {
            assert_eq!(EntryPath::normalise(raw.as_bytes()).unwrap().as_bytes(), expected.as_bytes(), "{raw}");
        }
        let too_long = [b"a/", &[b'x'; 256][..], b"/../b"].concat();
        assert_eq!(
            EntryPath::normalise(&too_long).unwrap().as_bytes(),
            b"a/b",
            "a component that is removed may be too long"
        );
    }

    #[test]
    fn paths_with_invalid_components_are_refused() {
        assert!(matches!(EntryPath::normalise(b"a\0b"), Err(PathError::Nul(_))));
        assert!(EntryPath::normalise(&[b'x'; 255]).is_ok());
        assert!(matches!(EntryPath::normalise(&[b'x'; 256]), Err(PathError::NameTooLong(_))));
    }

    #[test]
    fn directory_sorts_directly_before_its_entries() {
        let mut paths: Vec<EntryPath> = ["a.b", "a/z/y", "", "a-", "a/z", "a"]
            .iter()
            .map(|p| EntryPath::normalise(p.as_bytes()).unwrap())
            .collect();
        paths.sort();
        let sorted: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(sorted, ["/", "/a", "/a/z", "/a/z/y", "/a-", "/a.b"]);
    }

    #[test]
    fn every_path_round_trips_through_json() {
        for raw in [&b""[..], b"a/b", b"\xff\\x41", "\u{e4}/\u{1}\n".as_bytes()] {
            let path = EntryPath::normalise(raw).unwrap();
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<EntryPath>(&json).unwrap(), path, "{json}");
        }
        assert_eq!(serde_json::to_string(&EntryPath::normalise(b"\xff\\").unwrap()).unwrap(), r#""\\xff\\\\""#);
        for wrong in [r#""\\""#, r#""\\x4""#, r#""\\xg0""#, r#""..""#, r#""a//b""#, r#""/a""#, "7"] {
            assert!(serde_json::from_str::<EntryPath>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn siblings_have_the_same_parent_directory() {
        let path = |text: &str| EntryPath::normalise(text.as_bytes()).unwrap();
        let directories: [&[&str]; 5] = [&[""], &["a", "bc"], &["a/b", "a/cd"], &["a/b/c"], &["ab/c"]];
        let all = || {
            directories
                .iter()
                .enumerate()
                .flat_map(|(directory, paths)| paths.iter().map(move |text| (directory, path(text))))
        };
        for (one_directory, one) in all() {
            for (other_directory, other) in all() {
                assert_eq!(one.is_sibling_of(&other), one_directory == other_directory, "{one} {other}");
            }
        }
    }

    #[test]
    fn name_is_the_last_component() {
        for (text, name) in [("", ""), ("a", "a"), ("a/bc", "bc"), ("a/b/c", "c")] {
            assert_eq!(EntryPath::normalise(text.as_bytes()).unwrap().name(), name.as_bytes());
        }
    }

    #[test]
    fn split_undoes_join() {
        let path = EntryPath::ROOT.join(b"a").join(b"b");
        assert_eq!(path.split(), Some((EntryPath::ROOT.join(b"a"), &b"b"[..])));
        assert_eq!(EntryPath::ROOT.join(b"a").split(), Some((EntryPath::ROOT, &b"a"[..])));
        assert_eq!(EntryPath::ROOT.split(), None);
    }
}
