//! An index of the members of a tar file by name.
//!
//! The archive is scanned once, when it is opened; nothing is extracted to disk. A member of an uncompressed archive is then read
//! at its offset. A compressed archive is decompressed from its start for each member that is opened: that costs time, but
//! neither memory nor disk space. Only small members, which describe the image, are kept in memory from the first scan.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compression::Compression;
use super::document::Blob;
use super::error::{ArchiveError, SourceError};
use super::tar_stream::{ArchiveStream, FileSpan, MemberReader, ScannedStream};
use crate::tar_archive::{Archive, BlockStream as _, ContentPart, HeaderLimits, Member, MemberKind};

/// Maximum number of members, about ten times the number in a `docker save` of a thousand images.
const MAX_MEMBERS: usize = 250_000;
/// Maximum total length of names and link targets in bytes.
const MAX_NAME_BYTES: usize = 32 << 20;
/// Maximum number of headers: a member may have a header of its own, a PAX header, and GNU headers for a long name and a long target.
const MAX_HEADERS: u64 = 4 * MAX_MEMBERS as u64;
/// Maximum size of one PAX header or GNU long name in bytes, as in layers.
const MAX_EXTENDED_HEADER: u64 = 1 << 20;
/// Maximum size of a member of a compressed archive that is kept in memory, in bytes. Image configs are usually smaller.
const MAX_KEPT_MEMBER: u64 = 128 << 10;
/// Maximum total size of the members that are kept in memory, in bytes.
const MAX_KEPT_BYTES: usize = 16 << 20;
/// Maximum number of links that are followed to find a member.
const MAX_LINKS: usize = 16;

/// A tar file and the offsets of its members.
#[derive(Debug)]
pub(super) struct TarArchive {
    path: PathBuf,
    file: FileSpan,
    compression: Compression,
    members: HashMap<Vec<u8>, ArchiveEntry>,
}

/// A regular file inside an archive.
#[derive(Debug, Clone)]
pub(super) struct ArchivedFile {
    /// Offset of its content in the uncompressed archive.
    offset: u64,
    /// Size in bytes.
    pub(super) size: u64,
    /// Compression of the member itself.
    pub(super) compression: Compression,
    /// Its content, if it was kept because reading it again would require decompressing the archive.
    kept: Option<Arc<[u8]>>,
}

/// Content of an archive under one name.
#[derive(Debug)]
enum ArchiveEntry {
    File(ArchivedFile),
    Link(Vec<u8>),
    Sparse,
}

impl TarArchive {
    /// Opens and scans an archive, which may be compressed with gzip or zstd.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        // The type is checked first, because opening a pipe would block until it has a writer.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(SourceError::NotAFile { path: path.to_owned() });
        }
        let file = FileSpan::whole(File::open(path).map_err(failed)?).map_err(failed)?;
        let compression = file.detect().map_err(failed)?;
        let members = ArchiveStream::new(&file, compression)
            .map_err(|source| ArchiveError::Read { position: 0, source })
            .and_then(|stream| list(ScannedStream::new(stream)))
            .map_err(|source| SourceError::Archive { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, compression, members })
    }

    /// Returns the path of the archive itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Finds a file by name, and follows links.
    pub(super) fn find(&self, name: &str) -> Result<Option<ArchivedFile>, SourceError> {
        let damaged = |source| SourceError::Archive { path: self.path.clone(), source };
        let mut next = join(b"", name.as_bytes());
        for _ in 0..=MAX_LINKS {
            match next.as_ref().and_then(|name| self.members.get(name)) {
                None => return Ok(None),
                Some(ArchiveEntry::File(file)) => return Ok(Some(file.clone())),
                // The target is a name in this archive, never a file of this machine.
                Some(ArchiveEntry::Link(target)) => next = Some(target.clone()),
                Some(ArchiveEntry::Sparse) => {
                    return Err(damaged(ArchiveError::Sparse { member: name.to_owned() }));
                }
            }
        }
        Err(damaged(ArchiveError::TooManyLinks { member: name.to_owned() }))
    }

    /// Opens a file as it is stored. Its reader fails if the archive ends inside the file.
    pub(super) fn open_file(&self, file: &ArchivedFile) -> Result<Blob, SourceError> {
        if let Some(content) = file.kept.clone() {
            return Ok(Blob { size: file.size, reader: Box::new(Cursor::new(content)) });
        }
        let opened = ArchiveStream::new(&self.file, self.compression).and_then(|mut stream| {
            if stream.skip(file.offset)? < file.offset {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Blob { size: file.size, reader: Box::new(MemberReader::new(stream, file.size)) })
        });
        opened.map_err(|source| {
            let source = ArchiveError::Read { position: file.offset, source };
            SourceError::Archive { path: self.path.clone(), source }
        })
    }
}

/// Lists the members of an archive. Of several members with the same name the last one counts, as when an archive is extracted.
fn list(stream: ScannedStream) -> Result<HashMap<Vec<u8>, ArchiveEntry>, ArchiveError> {
    let limits = HeaderLimits { headers: MAX_HEADERS, extended_header_size: MAX_EXTENDED_HEADER };
    let mut archive = Archive::new(stream, limits);
    let mut members = MemberTable::default();
    while let Some(member) = archive.next_member()? {
        members.add(&member, &mut archive)?;
    }
    Ok(members.by_name)
}

/// The members found so far.
#[derive(Default)]
struct MemberTable {
    by_name: HashMap<Vec<u8>, ArchiveEntry>,
    seen: usize,
    name_bytes: usize,
    kept_bytes: usize,
}

impl MemberTable {
    /// Adds the member whose content is next in the archive.
    fn add(&mut self, member: &Member, archive: &mut Archive<ScannedStream>) -> Result<(), ArchiveError> {
        let name = join(b"", &member.path);
        let target = match member.kind {
            // A hard link names its target from the root of the archive, and a symbolic link from its own directory.
            MemberKind::HardLink => join(b"", member.link_target()),
            MemberKind::Symlink => join(directory_of(name.as_deref().unwrap_or_default()), member.link_target()),
            _ => None,
        };
        self.seen += 1;
        self.name_bytes += name.as_ref().map_or(0, Vec::len) + target.as_ref().map_or(0, Vec::len);
        if self.seen > MAX_MEMBERS || self.name_bytes > MAX_NAME_BYTES {
            return Err(ArchiveError::TooManyMembers { limit: MAX_MEMBERS, name_limit: MAX_NAME_BYTES });
        }
        let Some(name) = name else { return Ok(()) };
        let entry = match (member.kind, target) {
            // Its map is not read, because no program writes the files of an image as sparse files unless the user requests it.
            (MemberKind::File, _) if member.is_sparse() => ArchiveEntry::Sparse,
            (MemberKind::File, _) => ArchiveEntry::File(self.file(member.size, archive)?),
            (_, Some(target)) => ArchiveEntry::Link(target),
            (_, None) => {
                self.by_name.remove(&name);
                return Ok(());
            }
        };
        self.by_name.insert(name, entry);
        Ok(())
    }

    /// Describes the file whose content is next in the archive.
    fn file(&mut self, size: u64, archive: &mut Archive<ScannedStream>) -> Result<ArchivedFile, ArchiveError> {
        let offset = archive.stream().offset();
        let size_in_memory = usize::try_from(size).unwrap_or(usize::MAX);
        let is_kept = archive.stream().is_packed()
            && size <= MAX_KEPT_MEMBER
            && self.kept_bytes + size_in_memory <= MAX_KEPT_BYTES;
        let start = read_start(archive, if is_kept { size_in_memory } else { Compression::MAGIC })?;
        self.kept_bytes += if is_kept { size_in_memory } else { 0 };
        let compression = Compression::detect(&start);
        Ok(ArchivedFile { offset, size, compression, kept: is_kept.then(|| start.into()) })
    }
}

/// Reads the first `count` bytes of the current member, or all if it has fewer.
fn read_start(archive: &mut Archive<ScannedStream>, count: usize) -> Result<Vec<u8>, ArchiveError> {
    let mut start = Vec::new();
    while start.len() < count
        && let Some(ContentPart::Data(bytes)) = archive.next_part()?
    {
        start.extend_from_slice(&bytes[..bytes.len().min(count - start.len())]);
    }
    Ok(start)
}

/// Returns the parent directory of `name`.
fn directory_of(name: &[u8]) -> &[u8] {
    name.iter().rposition(|&byte| byte == b'/').map_or(b"", |slash| &name[..slash])
}

/// Joins `path` to `directory` and normalises it: removes `.`, `..` and redundant slashes. An absolute path starts at the root of
/// the archive.
///
/// Returns `None` for a path that leaves the archive.
fn join(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let directory = if path.starts_with(b"/") { b"" } else { directory };
    let mut names: Vec<&[u8]> = Vec::new();
    for name in directory.split(|&byte| byte == b'/').chain(path.split(|&byte| byte == b'/')) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Tar, gzip, zstd};
    use super::*;
    use crate::tar_archive::{MemberError, TarError};

    fn open(bytes: &[u8]) -> Result<TarArchive, SourceError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        TarArchive::open(file.path())
    }

    fn problem(bytes: &[u8]) -> ArchiveError {
        match open(bytes) {
            Err(SourceError::Archive { source, .. }) => source,
            other => panic!("expected a damaged archive, got {other:?}"),
        }
    }

    fn read(archive: &TarArchive, name: &str) -> Option<Vec<u8>> {
        let member = archive.find(name).unwrap()?;
        let mut content = Vec::new();
        archive.open_file(&member).unwrap().reader.read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, member.size);
        Some(content)
    }

    #[test]
    fn member_is_read_from_uncompressed_and_compressed_archives() {
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
        let big = vec![7; 100_000];
        let tar = Tar::new().directory("a/").file("./a/one", b"1").file("/two", &big).file(&long, b"long").bytes();
        for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
            let archive = open(&bytes).unwrap();
            assert_eq!(read(&archive, "a/one").unwrap(), b"1");
            assert_eq!(read(&archive, "./a//one").unwrap(), b"1");
            assert_eq!(read(&archive, "two").unwrap(), big);
            assert_eq!(read(&archive, &long).unwrap(), b"long");
            assert_eq!(read(&archive, "a"), None);
            assert_eq!(read(&archive, "../two"), None);
        }
    }

    #[test]
    fn small_members_of_compressed_archives_are_kept_up_to_a_limit() {
        let limit = usize::try_from(MAX_KEPT_MEMBER).unwrap();
        let kept = |archive: &TarArchive, name: &str| archive.find(name).unwrap().unwrap().kept.is_some();
        let contents = [limit - 1, limit, limit + 1].map(|size| vec![5; size]);
        let names = ["below", "at", "above"];
        let tar = names.iter().zip(&contents).fold(Tar::new(), |tar, (name, content)| tar.file(name, content));
        let tar = tar.bytes();
        let (packed, plain) = (open(&zstd(&tar)).unwrap(), open(&tar).unwrap());
        assert_eq!(names.map(|name| kept(&packed, name)), [true, true, false]);
        assert_eq!(names.map(|name| kept(&plain, name)), [false; 3]);
        for (name, content) in names.iter().zip(&contents) {
            assert_eq!(read(&packed, name).as_ref(), Some(content));
        }
        let count = MAX_KEPT_BYTES / limit + 1;
        let many = (0..count).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), &contents[1]));
        let many = open(&zstd(&many.bytes())).unwrap();
        let is_kept: Vec<bool> = (0..count).map(|number| kept(&many, &number.to_string())).collect();
        assert_eq!(is_kept.iter().position(|kept| !kept), Some(count - 1));
    }

    #[test]
    fn pax_header_renames_and_sizes_a_member() {
        let tar = Tar::new().pax(&[("path", b"renamed"), ("size", b"3")]).file("header", b"abc").file("next", b"n");
        let archive = open(&tar.bytes()).unwrap();
        assert_eq!(read(&archive, "renamed").unwrap(), b"abc");
        assert_eq!(read(&archive, "next").unwrap(), b"n");
        assert_eq!(read(&archive, "header"), None);
    }

    #[test]
    fn last_of_several_members_with_one_name_is_used() {
        let archive = open(&Tar::new().file("a", b"first").file("a", b"second").bytes()).unwrap();
        assert_eq!(read(&archive, "a").unwrap(), b"second");
        let archive = open(&Tar::new().file("a", b"first").directory("a").bytes()).unwrap();
        assert_eq!(read(&archive, "a"), None);
    }

    #[test]
    fn links_are_followed_only_inside_the_archive() {
        let tar = Tar::new()
            .file("id/layer.tar", b"layer")
            .symlink("other/layer.tar", "../id/layer.tar")
            .symlink("third/x", "/other/layer.tar")
            .hard_link("hard", "./id/layer.tar")
            .symlink("out", "../etc/passwd")
            .symlink("dangling", "nowhere");
        let archive = open(&tar.bytes()).unwrap();
        for name in ["other/layer.tar", "third/x", "hard"] {
            assert_eq!(read(&archive, name).unwrap(), b"layer", "{name}");
        }
        assert_eq!((read(&archive, "out"), read(&archive, "dangling")), (None, None));
    }

    #[test]
    fn circle_of_links_is_an_error() {
        let archive = open(&Tar::new().symlink("a", "b").symlink("b", "a").bytes()).unwrap();
        let error = archive.find("a").unwrap_err();
        assert!(matches!(error, SourceError::Archive { source: ArchiveError::TooManyLinks { .. }, .. }));
    }

    #[test]
    fn compression_of_a_member_is_detected_from_its_content() {
        let tar = Tar::new().file("a", b"").file("b", &gzip(b"x")).file("c", &zstd(b"x")).file("d", b"x").bytes();
        let archive = open(&tar).unwrap();
        let compression = |name| archive.find(name).unwrap().unwrap().compression;
        assert_eq!(["a", "b", "c", "d"].map(compression), {
            [Compression::None, Compression::Gzip, Compression::Zstd, Compression::None]
        });
    }

    #[test]
    fn archive_without_an_end_marker_is_complete() {
        let tar = Tar::new().file("a", b"1").bytes();
        // Some programs leave out the padding of the last member.
        for end in [513, 1024, 1024 + 512, tar.len()] {
            assert_eq!(read(&open(&tar[..end]).unwrap(), "a").unwrap(), b"1");
        }
    }

    #[test]
    fn damage_after_the_end_of_a_compressed_archive_is_ignored() {
        let packed = gzip(&Tar::new().file("a", b"1").bytes());
        assert_eq!(read(&open(&[&packed[..], b"garbage"].concat()).unwrap(), "a").unwrap(), b"1");
        assert_eq!(read(&open(&packed[..packed.len() - 4]).unwrap(), "a").unwrap(), b"1");
    }

    #[test]
    fn archive_truncated_at_any_point_is_an_error() {
        let tar = Tar::new().file("a", &[1; 600]).file("b", b"").bytes();
        for end in [512, 513, 1023, 1111] {
            assert!(matches!(problem(&tar[..end]), ArchiveError::Truncated), "cut at {end}");
        }
        for end in [1, 511] {
            let error = problem(&tar[..end]);
            assert!(matches!(error, ArchiveError::Malformed(TarError::NotAnArchive)), "cut at {end}");
        }
        let message = problem(&tar[..1536 + 511]).to_string();
        assert_eq!(
            message,
            "archive has no valid header at byte 1536, after entry 'a': archive ends inside the header"
        );
        let packed = gzip(&tar);
        assert!(matches!(problem(&packed[..packed.len() / 2]), ArchiveError::Truncated));
    }

    #[test]
    fn garbage_is_no_archive() {
        assert!(matches!(problem(&[b'x'; 2000]), ArchiveError::Malformed(TarError::NotAnArchive)));
        assert!(matches!(problem(b"\xfd7zXZ\0"), ArchiveError::Read { .. }));
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(TarArchive::open(directory.path()), Err(SourceError::NotAFile { .. })));
        assert!(matches!(TarArchive::open(&directory.path().join("none")), Err(SourceError::Read { .. })));
    }

    #[test]
    fn size_beyond_the_limit_is_refused_before_it_is_read() {
        let claim = |size: &[u8]| Tar::new().pax(&[("size", size)]).file("a", b"").bytes();
        assert!(matches!(problem(&claim(b"1099511627776")), ArchiveError::TooLarge { .. }));
        let number = problem(&claim(b"18446744073709551615"));
        assert!(matches!(
            number,
            ArchiveError::Malformed(TarError::Member { problem: MemberError::Number("size"), .. })
        ));
        assert!(matches!(problem(&claim(b"100000")), ArchiveError::Truncated));
    }

    #[test]
    fn sparse_member_is_an_error_only_if_it_is_needed() {
        let records = |version| -> [(&str, &[u8]); 3] {
            [("GNU.sparse.major", version), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")]
        };
        // The map of the first one does not end, and the version of the second one is unknown.
        let tar = Tar::new().pax(&records(b"1")).file("a", &vec![b'1'; 3 << 20]).pax(&records(b"2")).file("b", b"x");
        let tar = tar.file("c", b"content").bytes();
        for archive in [open(&tar).unwrap(), open(&zstd(&tar)).unwrap()] {
            assert_eq!(read(&archive, "c").unwrap(), b"content");
            for name in ["a", "b"] {
                let error = archive.find(name).unwrap_err();
                assert!(matches!(error, SourceError::Archive { source: ArchiveError::Sparse { .. }, .. }));
            }
        }
    }

    #[test]
    fn size_of_an_extended_header_is_limited() {
        let limit = usize::try_from(MAX_EXTENDED_HEADER).unwrap();
        // A record of this size starts with its length in seven digits.
        let with_record = |size: usize| {
            Tar::new().pax(&[("comment", &vec![b'x'; size - "1048576 comment=\n".len()])]).file("a", b"1").bytes()
        };
        assert_eq!(read(&open(&with_record(limit)).unwrap(), "a").unwrap(), b"1");
        let ArchiveError::Malformed(TarError::Member { problem, .. }) = problem(&with_record(limit + 1)) else {
            panic!("the size is not refused");
        };
        assert_eq!(problem, MemberError::ExtendedHeaderTooLarge { allowed: MAX_EXTENDED_HEADER });
    }
}
