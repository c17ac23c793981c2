//! Paths inside images, trees and repositories.

use std::cmp::Ordering;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::image::unhex;

/// A path inside an image: components joined by `/`, without a slash at either end; the root is empty.
///
/// Paths are bytes, not text, and sort so that a directory comes before what lies in it, and that before the directory's next
/// sibling. No component is empty, `.` or `..`, longer than 255 bytes, or holds a NUL.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct EntryPath(Vec<u8>);

/// Why a path of an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// CVMFS and Linux hold up to 255 bytes.
    #[error("path '{}' has a name of more than 255 bytes", .0.shown())]
    NameTooLong(EntryPath),
    /// No file system holds such a name.
    #[error("path '{}' has a NUL byte in it", .0.shown())]
    Nul(EntryPath),
}

/// Bytes of the longest name that Linux and CVMFS hold.
pub(crate) const MAX_NAME_LENGTH: usize = 255;

impl EntryPath {
    /// The root of the image.
    pub const ROOT: Self = Self(Vec::new());

    /// Brings a path of an archive into its one form: without `./`, leading, repeated and trailing slashes, and without `..`.
    ///
    /// A `..` removes the component before it, by the text alone; at the root it removes nothing. umoci, podman and containerd
    /// do the same (Go's `filepath.Clean("/" + path)`), so that no path leaves the root.
    pub fn normalise(raw: &[u8]) -> Result<Self, PathError> {
        Self::clean(raw).checked()
    }

    /// Normalises a path whose components may still be too long or have a NUL byte.
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

    /// Returns the path if every component can be the name of a file.
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

    /// Returns the path for a message: escaped, and cut when it is very long.
    pub fn shown(&self) -> String {
        format!("/{}", shown(&self.0))
    }

    /// Tells whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the components, from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        self.0.split(|&b| b == b'/').filter(|name| !name.is_empty())
    }

    /// Returns the directory that the path lies in and its own name, or `None` for the root.
    pub fn split(&self) -> Option<(EntryPath, &[u8])> {
        let (directory, name) = self.halves();
        (!self.is_root()).then(|| (Self(directory.to_vec()), name))
    }

    /// Returns the last component, empty for the root.
    pub fn name(&self) -> &[u8] {
        self.halves().1
    }

    /// Tells whether this lies in the same directory as another path. The root is nobody's sibling but its own.
    pub fn is_sibling_of(&self, other: &Self) -> bool {
        self.is_root() == other.is_root() && self.halves().0 == other.halves().0
    }

    /// Returns the bytes of the directory's path and of the name.
    fn halves(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    /// Tells whether this is `directory` or lies somewhere below it.
    pub fn is_in(&self, directory: &Self) -> bool {
        match self.0.strip_prefix(directory.0.as_slice()) {
            Some(rest) => directory.is_root() || rest.is_empty() || rest[0] == b'/',
            None => false,
        }
    }

    /// Returns the directories that the path lies in, from its own up to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = EntryPath> {
        std::iter::successors(self.split().map(|(parent, _)| parent), |path| path.split().map(|(parent, _)| parent))
    }

    /// Returns the path of `name` in this directory. `name` is one component.
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

/// Writes a path as JSON text: bytes that are not UTF-8 as `\\xff`, a backslash as two.
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
        let wrong = || D::Error::custom(format!("'{text}' is not a path as strata writes it"));
        let mut raw = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, rest_after)) = rest.split_first() {
            rest = rest_after;
            if byte != b'\\' {
                raw.push(byte);
            } else if let Some(rest_after) = rest.strip_prefix(b"\\") {
                raw.push(b'\\');
                rest = rest_after;
            } else {
                let (digits, rest_after) = rest.split_at_checked(3).ok_or_else(wrong)?;
                let [byte] = digits.strip_prefix(b"x").and_then(unhex).ok_or_else(wrong)?;
                raw.push(byte);
                rest = rest_after;
            }
        }
        let path = Self::normalise(&raw).map_err(D::Error::custom)?;
        if path.0 == raw { Ok(path) } else { Err(wrong()) }
    }
}

/// Bytes of a path that are compared at a time.
const BLOCK: usize = 16;

impl Ord for EntryPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // Long paths often begin alike, and blocks are compared faster than bytes.
        let blocks = self.0.chunks_exact(BLOCK).zip(other.0.chunks_exact(BLOCK));
        let equal = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
        // No component holds a NUL, so with it for the slash every path sorts right rest_after the directory it lies in.
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

/// Writes the path of an archive for an error message: escaped, and cut when it is very long.
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
    fn paths_have_one_form() {
        for (raw, expected) in [("./a//b/./c/", "a/b/c"), ("/a", "a"), ("./", ""), ("/", ""), ("a/...", "a/...")] {
            assert_eq!(EntryPath::normalise(raw.as_bytes()).unwrap().as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn parent_components_are_removed_by_the_text_alone_and_never_leave_the_root() {
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
            "a component that is removed may be long"
        );
    }

    #[test]
    fn paths_that_no_image_may_hold_are_refused() {
        assert!(matches!(EntryPath::normalise(b"a\0b"), Err(PathError::Nul(_))));
        assert!(EntryPath::normalise(&[b'x'; 255]).is_ok());
        assert!(matches!(EntryPath::normalise(&[b'x'; 256]), Err(PathError::NameTooLong(_))));
    }

    #[test]
    fn a_directory_sorts_right_before_what_lies_in_it() {
        let mut paths: Vec<EntryPath> = ["a.b", "a/z/y", "", "a-", "a/z", "a"]
            .iter()
            .map(|p| EntryPath::normalise(p.as_bytes()).unwrap())
            .collect();
        paths.sort();
        let sorted: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(sorted, ["/", "/a", "/a/z", "/a/z/y", "/a-", "/a.b"]);
    }

    #[test]
    fn every_path_has_a_text_form_in_json() {
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
    fn siblings_lie_in_one_directory() {
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
