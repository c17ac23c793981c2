//! One row of the table `catalog`.

use std::sync::Arc;

use super::bits::{
    CHUNKED, DIRECTORY, EXTERNAL, FILE, HIDDEN, NESTED_ROOT, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT,
    S_IFREG, S_IFSOCK, SPECIAL, SYMLINK, TRANSITION_POINT, UNCOMPRESSED, hash_flags, is_uncompressed,
};
use super::xattr;
use crate::layer::DeviceNumber;
use crate::metadata::{Metadata, Timestamp, Xattrs};
use crate::object::{Content, ContentObjects, ObjectHash, ObjectKind, SizeLimit, UnsupportedCompression};
use crate::tree::{Directory, Leaf, LeafKind};

/// A reference to a catalog, as stored in its parent catalog or in the repository manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CatalogReference {
    /// The object that contains the catalog.
    pub hash: ObjectHash,
    /// Size of the decompressed SQLite file in bytes; 0 if the reference does not state a size.
    pub size: u64,
}

impl CatalogReference {
    /// Returns the maximum decompressed size of the object.
    pub fn limit(&self) -> SizeLimit {
        SizeLimit::of_database(Some(self.size))
    }
}

/// The role of a directory in the nesting of catalogs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nesting {
    /// An ordinary directory; its children are in the same catalog.
    Plain,
    /// The row in the parent catalog of a nested catalog.
    TransitionPoint,
    /// The row in the nested catalog itself.
    Root,
}

/// One row without its key, which is the hash of the path, and without its name, which is the last component of the path.
///
/// Also preserves values that only other programs write, so that a row can be written back unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Number of the hard link group within this catalog; 0 if the row is in no group.
    pub link_group: u32,
    /// Number of names of the inode within its directory; for a directory, 2 plus the number of its subdirectories.
    pub link_count: u32,
    /// The objects with the content of a regular file.
    pub content: Option<ContentObjects>,
    /// Size in bytes of a regular file or of a link target; for a device, its encoded device number.
    pub size: i64,
    /// File type and permissions.
    pub mode: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Nanosecond part of the modification time. Catalogs before schema revision 7 do not store it.
    pub mtime_nanoseconds: Option<u32>,
    /// Flags, see `catalog::bits`. Some readers use them instead of the mode to find out the file type.
    pub flags: u32,
    /// The link target as stored, in which `$(` is escaped because clients would expand it.
    pub symlink: Vec<u8>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Packed extended attributes.
    pub xattr: Option<Vec<u8>>,
}

/// Why strata cannot read the content of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoContent {
    /// The row is not a regular file with objects.
    #[error("it is not a regular file with its content in this repository")]
    NoFile,
    /// Clients fetch the content from another server.
    #[error("the content is stored outside of the repository")]
    External,
    /// Another program compressed the objects.
    #[error("the content is compressed with {0}, which strata does not support")]
    Unsupported(UnsupportedCompression),
}

impl CatalogEntry {
    fn new(metadata: &Metadata, format: u32, flags: u32) -> Self {
        Self {
            link_group: 0,
            link_count: 1,
            content: None,
            size: 0,
            mode: format | u32::from(metadata.mode),
            mtime: metadata.mtime.seconds,
            mtime_nanoseconds: Some(metadata.mtime.nanoseconds),
            flags,
            symlink: Vec::new(),
            uid: metadata.uid,
            gid: metadata.gid,
            xattr: metadata.xattrs.as_deref().map(xattr::encode),
        }
    }

    /// Returns the row of a directory with the given number of subdirectories.
    pub fn of_directory(metadata: &Metadata, subdirectories: usize) -> Self {
        let link_count =
        // As on disk: the name in the parent, `.`, and `..` of each subdirectory. `cvmfs_swissknife check` compares it.
            2 + u32::try_from(subdirectories).expect("a directory in memory has fewer than 2^32 subdirectories");
        // Most file systems report this size for a small directory.
        Self { link_count, size: 4096, ..Self::new(metadata, S_IFDIR, DIRECTORY) }
    }

    /// Returns the row of a regular file.
    pub fn of_file(metadata: &Metadata, size: u64, content: &Content) -> Self {
        let chunked = if matches!(content.objects, ContentObjects::Chunks(_)) { CHUNKED } else { 0 };
        let uncompressed = if content.raw { UNCOMPRESSED } else { 0 };
        let algorithm = content.objects.algorithm().map_or(0, hash_flags);
        Self {
            size: size.cast_signed(),
            content: Some(content.objects.clone()),
            ..Self::new(metadata, S_IFREG, FILE | chunked | uncompressed | algorithm)
        }
    }

    /// Returns the row of a symbolic link.
    pub fn of_symlink(metadata: &Metadata, target: &[u8]) -> Self {
        Self::of_variant_link(metadata, &escape_target(target))
    }

    /// Returns the row of a symbolic link in whose target clients expand `$(NAME)` and `$(NAME:-default)`.
    pub fn of_variant_link(metadata: &Metadata, target: &[u8]) -> Self {
        let symlink = target.to_vec();
        Self { size: symlink.len() as i64, symlink, ..Self::new(metadata, S_IFLNK, FILE | SYMLINK) }
    }

    /// Returns the row of an inode that is not a directory.
    pub fn of_leaf(leaf: &Leaf) -> Self {
        // Devices have their number in the column `size`; clients report size 0 for them.
        let special = |format, size| Self { size, ..Self::new(&leaf.metadata, format, FILE | SPECIAL) };
        match &leaf.kind {
            LeafKind::File { size, content } => Self::of_file(&leaf.metadata, *size, content),
            LeafKind::Symlink(target) => Self::of_symlink(&leaf.metadata, target),
            LeafKind::CharacterDevice(number) => special(S_IFCHR, device(*number)),
            LeafKind::BlockDevice(number) => special(S_IFBLK, device(*number)),
            LeafKind::Fifo => special(S_IFIFO, 0),
        }
    }

    /// Returns the row with its nesting flags replaced.
    pub fn with_nesting(mut self, nesting: Nesting) -> Self {
        self.flags &= !(TRANSITION_POINT | NESTED_ROOT);
        self.flags |= match nesting {
            Nesting::Plain => 0,
            Nesting::TransitionPoint => TRANSITION_POINT,
            Nesting::Root => NESTED_ROOT,
        };
        self
    }

    /// Returns the row with the hidden flag: clients omit it from directory listings, but a lookup by name finds it.
    pub fn hidden(mut self) -> Self {
        self.flags |= HIDDEN;
        self
    }

    /// Returns whether clients omit the row from directory listings.
    pub fn is_hidden(&self) -> bool {
        self.flags & HIDDEN != 0
    }

    /// Returns a description of a value that no catalog writer writes and that no reader can use; `None` if the row has no such value.
    pub(super) fn fault(&self) -> Option<String> {
        let is_known =
            matches!(self.mode & S_IFMT, S_IFDIR | S_IFREG | S_IFLNK | S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK);
        if !is_known || self.mode & !(S_IFMT | 0o7777) != 0 {
            return Some(format!("mode {:o} is not valid", self.mode));
        }
        let has_size = matches!(self.mode & S_IFMT, S_IFDIR | S_IFREG);
        (has_size && self.size < 0).then(|| format!("size {} is negative", self.size))
    }

    /// Returns whether the row is a directory.
    pub fn is_directory(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }

    /// Returns whether the directory's children are in a nested catalog.
    pub fn is_transition_point(&self) -> bool {
        self.flags & TRANSITION_POINT != 0
    }

    /// Returns whether the row is a regular file.
    pub fn is_regular(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }

    /// Returns whether the row is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & S_IFMT == S_IFLNK
    }

    /// Returns whether the row is a device, named pipe or socket.
    pub fn is_special(&self) -> bool {
        !matches!(self.mode & S_IFMT, S_IFDIR | S_IFREG | S_IFLNK)
    }

    /// Returns whether the file is stored in chunks.
    pub fn is_chunked(&self) -> bool {
        self.flags & CHUNKED != 0
    }

    /// Returns whether the content is stored outside the repository.
    pub fn is_external(&self) -> bool {
        self.flags & EXTERNAL != 0
    }

    /// Returns the link target as in the image, without escapes.
    pub fn target(&self) -> Vec<u8> {
        unescape_target(&self.symlink)
    }

    /// Returns the link target as clients return it: `$(NAME)` and `$(NAME:-default)` are expanded.
    ///
    /// `value` returns the value of a variable. A variable without a value and without a default expands to an empty string.
    pub fn expanded_target(&self, value: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Vec<u8> {
        let find = |text: &[u8], word: &[u8]| text.windows(word.len()).position(|window| window == word);
        let mut expanded = Vec::with_capacity(self.symlink.len());
        let mut rest = self.symlink.as_slice();
        while let Some(start) = find(rest, b"$(") {
            // As in clients, the default ends at the first `)` and is not expanded again, and an unclosed `$(` stays as it
            // is.
            let Some(end) = find(&rest[start..], b")").map(|end| start + end) else { break };
            expanded.extend_from_slice(&rest[..start]);
            let variable = &rest[start + 2..end];
            let (name, default) = match find(variable, b":-") {
                Some(at) => (&variable[..at], &variable[at + 2..]),
                None => (variable, &b""[..]),
            };
            // An unset variable without a default becomes the empty text, as in clients.
            expanded.extend(value(name).unwrap_or_else(|| default.to_vec()));
            rest = &rest[end + 1..];
        }
        expanded.extend_from_slice(rest);
        expanded
    }

    /// Returns the device number for `st_rdev`; 0 if the row is not a device.
    pub fn device_number(&self) -> u32 {
        // The stored encoding and the one of the kernel are equal up to 12 bits of major and 20 bits of minor number.
        if matches!(self.mode & S_IFMT, S_IFCHR | S_IFBLK) { self.size as u32 } else { 0 }
    }

    /// Returns the inode attributes of the row.
    pub fn metadata(&self) -> Metadata {
        Metadata {
            mode: (self.mode & 0o7777) as u16,
            uid: self.uid,
            gid: self.gid,
            mtime: Timestamp { seconds: self.mtime, nanoseconds: self.mtime_nanoseconds.unwrap_or(0) },
            xattrs: self.xattrs(),
        }
    }

    /// Returns the extended attributes; `None` if there are none or if they are not readable.
    pub fn xattrs(&self) -> Option<Arc<Xattrs>> {
        self.xattr.as_deref().and_then(xattr::decode)
    }

    /// Returns the objects with the content of a regular file and how they are stored.
    pub fn file_content(&self) -> Result<Content, NoContent> {
        let objects = self.content_objects()?;
        let raw = is_uncompressed(self.flags).map_err(NoContent::Unsupported)?;
        Ok(Content { raw, objects: objects.clone() })
    }

    fn content_objects(&self) -> Result<&ContentObjects, NoContent> {
        if self.is_external() {
            return Err(NoContent::External);
        }
        self.content.as_ref().filter(|_| self.is_regular()).ok_or(NoContent::NoFile)
    }

    /// Returns the objects with the content of a regular file, also if strata does not support their compression. Returns an
    /// empty list if no object in this repository has the content.
    pub fn objects(&self) -> Vec<(ObjectHash, ObjectKind)> {
        match self.content_objects().ok() {
            Some(ContentObjects::Whole(hash)) => vec![(*hash, ObjectKind::File)],
            Some(ContentObjects::Chunks(chunks)) => {
                chunks.iter().map(|chunk| (chunk.hash, ObjectKind::Chunk)).collect()
            }
            Some(ContentObjects::Unstored { .. }) | None => Vec::new(),
        }
    }

    /// Returns the inode that the row describes. Fails for a directory, a socket, or a file whose content strata cannot read.
    pub fn leaf(&self) -> Result<Leaf, NoContent> {
        let kind = match self.mode & S_IFMT {
            S_IFREG => LeafKind::File { size: self.size.cast_unsigned(), content: self.file_content()? },
            S_IFLNK => LeafKind::Symlink(self.target().into()),
            S_IFCHR => LeafKind::CharacterDevice(device_number(self.size)),
            S_IFBLK => LeafKind::BlockDevice(device_number(self.size)),
            S_IFIFO => LeafKind::Fifo,
            _ => return Err(NoContent::NoFile),
        };
        Ok(Leaf { metadata: self.metadata(), kind })
    }

    /// Returns the directory that the row describes, without children; `None` if the row is not a directory.
    pub fn directory(&self) -> Option<Directory> {
        self.is_directory().then(|| Directory::new(self.metadata()))
    }
}

/// Encodes a device number as glibc's `makedev` does.
fn device(number: DeviceNumber) -> i64 {
    let (major, minor) = (i64::from(number.major), i64::from(number.minor));
    (major & 0xfff) << 8 | (major & !0xfff) << 32 | (minor & 0xff) | (minor & !0xff) << 12
}

fn device_number(encoded: i64) -> DeviceNumber {
    let encoded = encoded.cast_unsigned();
    DeviceNumber {
        major: ((encoded >> 8 & 0xfff) | (encoded >> 32 & !0xfff)) as u32,
        minor: ((encoded & 0xff) | (encoded >> 12 & !0xff)) as u32,
    }
}

/// Escapes `$(` in the link target of an image, because clients expand `$(NAME)`.
///
/// A variable with an empty name expands to its default, and defaults are not expanded again: clients expand `$(:-$()` to `$(`.
fn escape_target(target: &[u8]) -> Vec<u8> {
    replace(target, b"$(", b"$(:-$()")
}

fn unescape_target(stored: &[u8]) -> Vec<u8> {
    replace(stored, b"$(:-$()", b"$(")
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(from) {
            replaced.extend_from_slice(to);
            rest = after;
        } else {
            replaced.push(byte);
            rest = after;
        }
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Chunk, HashAlgorithm};

    #[test]
    fn flags_have_the_values_that_clients_expect() {
        let metadata = Metadata::of_implied_directory();
        let directory = CatalogEntry::of_directory(&metadata, 3);
        assert_eq!((directory.flags, directory.mode, directory.link_count), (1, 0o40755, 5));
        assert_eq!(directory.clone().with_nesting(Nesting::TransitionPoint).flags, 3);
        assert_eq!(directory.with_nesting(Nesting::TransitionPoint).with_nesting(Nesting::Root).flags, 33);
        let content = |raw, objects| Content { raw, objects };
        let whole = || ContentObjects::Whole(ObjectHash::of(b""));
        let flags = |content| CatalogEntry::of_file(&metadata, 0, &content).flags;
        assert_eq!(flags(content(false, whole())), 4);
        assert_eq!(flags(content(true, whole())), 2052);
        assert_eq!(flags(content(false, ContentObjects::Chunks(Arc::new([])))), 68);
        let shake = HashAlgorithm::Shake128.hash(b"");
        assert_eq!(flags(content(false, ContentObjects::Whole(shake))), 0x204);
        let chunk = Chunk { offset: 0, size: 1, hash: HashAlgorithm::Ripemd160.hash(b"") };
        assert_eq!(flags(content(false, ContentObjects::Chunks([chunk].into()))), 68 | 0x100);
        assert_eq!(CatalogEntry::of_symlink(&metadata, b"t").flags, 12);
        let fifo = Leaf { metadata, kind: LeafKind::Fifo };
        assert_eq!((CatalogEntry::of_leaf(&fifo).flags, CatalogEntry::of_leaf(&fifo).mode), (20, 0o10755));
    }

    #[test]
    fn devices_are_encoded_as_glibc_does() {
        for (major, minor, encoded) in
            [(1, 3, 0x103), (259, 70_000, 0x1111_0370), (0, 0, 0), (4095, 0xf_ffff, 0xffff_ffff)]
        {
            let number = DeviceNumber { major, minor };
            assert_eq!((device(number), device_number(encoded)), (encoded, number));
        }
    }

    #[test]
    fn variables_in_link_targets_are_expanded_as_clients_do() {
        let expanded = |symlink: &[u8]| {
            let entry = CatalogEntry::of_symlink(&Metadata::of_implied_directory(), b"");
            let entry = CatalogEntry { symlink: symlink.to_vec(), ..entry };
            entry.expanded_target(|name| (name == b"HOST").then(|| b"here".to_vec()))
        };
        assert_eq!(expanded(b"a/$(HOST)/$(HOST:-no)/$(NONE:-default)/$(NONE)b"), b"a/here/here/default/b");
        assert_eq!(expanded(b"$x ${HOST} $(HOST"), b"$x ${HOST} $(HOST");
        assert_eq!(expanded(&escape_target(b"$(HOST)")), b"$(HOST)");
    }

    #[test]
    fn variables_in_link_targets_are_escaped_and_read_back() {
        assert_eq!(escape_target(b"x$(FOO)y$z"), b"x$(:-$()FOO)y$z");
        for target in [&b"x$(FOO)y"[..], b"$($($(", b"$", b"(", b"$(:-$()", b""] {
            assert_eq!(unescape_target(&escape_target(target)), target);
        }
    }
}
