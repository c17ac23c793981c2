//! Reads the members of a tar archive: each header together with its extension headers, and the content of files.
//!
//! Where the tar format is ambiguous, this reader follows Go's `archive/tar`, because every container engine uses that
//! package. Links, directories and devices have no content, even if their header states a size. A single zero block inside
//! the archive is an error, not the end. Of several extension headers of one kind, only the last counts. An archive is
//! refused if header and PAX header state different sizes, because two readers could then find different entries in it.

use std::io::Read;
use std::ops::Range;

use super::header::{self, Header};
use super::pax::{self, Extended};
use super::sparse::{self, MapLocation, MapReader, Segment};
use super::stream::{BLOCK_SIZE, TarStream};
use super::{EntryError, LayerError, Limit, Limits};
use crate::path::shown;

/// Type of an archive member, from the type flag of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberKind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    Unknown,
}

impl MemberKind {
    fn of(type_flag: u8) -> Self {
        match type_flag {
            // NUL: a regular file in V7 headers. '7': a contiguous file. 'S': a sparse file in GNU's old format.
            b'0' | 0 | b'7' | b'S' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            _ => Self::Unknown,
        }
    }

    fn has_content(self) -> bool {
        // POSIX (pax, ustar `typeflag`): a reader treats an unknown type as a regular file, so its size states stored
        // content.
        matches!(self, Self::File | Self::Unknown)
    }
}

/// One member of an archive. [`Archive::next_part`] reads its content.
pub(super) struct Member {
    pub(super) kind: MemberKind,
    pub(super) path: Vec<u8>,
    /// Size of a file in bytes, including holes; 0 for every other kind.
    pub(super) size: u64,
    pub(super) header: Header,
    pub(super) extended: Extended,
    long_link_target: Option<Vec<u8>>,
}

impl Member {
    /// Returns the target of a hard or symbolic link.
    pub(super) fn link_target(&self) -> &[u8] {
        // As for paths, a GNU long name counts more than a PAX record, regardless of their order: Go's reader applies it last.
        let (long, extended) = (self.long_link_target.as_deref(), self.extended.link_target.as_deref());
        long.or(extended).unwrap_or_else(|| self.header.link_target())
    }
}

/// A part of a file's content: data or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentPart<'a> {
    /// The next bytes of the file, at least one.
    Data(&'a [u8]),
    /// Number of zero bytes, at least one, that the archive does not store.
    Hole(u64),
}

/// The extension headers before a member. Of several headers of one kind, only the last counts. An empty long name has no
/// effect, as in Go's reader.
#[derive(Default)]
struct Extensions {
    long_path: Vec<u8>,
    long_link_target: Vec<u8>,
    /// Records of the PAX header.
    records: Vec<u8>,
    /// Whether the member has any extension header.
    any_present: bool,
}

/// Reads an archive, one member at a time.
pub(super) struct Archive<R> {
    stream: TarStream<R>,
    limits: Limits,
    /// Path of the member read last, for error messages.
    path: Vec<u8>,
    headers: u64,
    content_size: u64,
    at_end: bool,
    content: Content,
}

/// Read position in the content of the current member.
#[derive(Default)]
struct Content {
    /// The data segments of the file that the archive stores, sorted by offset.
    segments: Vec<Segment>,
    /// Index of the first segment that is not read completely.
    segment: usize,
    /// Read position in the file in bytes, including holes.
    position: u64,
    /// Size of the file in bytes, including holes.
    size: u64,
    /// Number of stored bytes of this member that were not read yet, without the padding.
    stored: u64,
    /// Padding bytes between the stored bytes and the next header.
    padding: u64,
}

/// Returns `None` for an empty name.
fn some_unless_empty(name: Vec<u8>) -> Option<Vec<u8>> {
    (!name.is_empty()).then_some(name)
}

/// The next part of a file's content, with its length in bytes.
enum NextPart {
    Stored(u64),
    Hole(u64),
    End,
}

impl Content {
    /// Prepares to read a member with `stored` bytes in the archive. The content is empty until segments are added.
    fn start(&mut self, stored: u64) {
        // The vector is used again, so that a member needs no allocation.
        self.segments.clear();
        // POSIX (ustar): content occupies whole blocks, and the rest of the last one is padding.
        let padding = stored.wrapping_neg() % BLOCK_SIZE as u64;
        *self = Self { segments: std::mem::take(&mut self.segments), stored, padding, ..Self::default() };
    }

    // `stored` and `padding` stay: the bytes are in the stream and must be skipped to reach the next header.
    fn hide(&mut self) {
        self.segments.clear();
        self.size = 0;
    }

    fn next_part(&mut self) -> NextPart {
        while let Some(segment) = self.segments.get(self.segment) {
            if self.position < segment.offset {
                return self.hole_up_to(segment.offset);
            }
            let remaining = segment.offset + segment.length - self.position;
            if remaining > 0 {
                return NextPart::Stored(remaining);
            }
            // A segment may be empty: GNU tar ends the map of a file with a trailing hole with one of length 0.
            self.segment += 1;
        }
        if self.position < self.size { self.hole_up_to(self.size) } else { NextPart::End }
    }

    fn hole_up_to(&mut self, end: u64) -> NextPart {
        let hole = end - self.position;
        self.position = end;
        NextPart::Hole(hole)
    }
}

impl<R: Read> Archive<R> {
    pub(super) fn new(stream: TarStream<R>, limits: Limits) -> Self {
        Self {
            stream,
            limits,
            path: Vec::new(),
            headers: 0,
            content_size: 0,
            at_end: false,
            content: Content::default(),
        }
    }

    /// Returns the next member. Unread content of the previous member is skipped.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, LayerError> {
        self.skip_content()?;
        let mut extensions = Extensions::default();
        while let Some(header) = self.next_header()? {
            match header.type_flag() {
                b'L' => {
                    extensions = Extensions { long_path: self.long_name(&header)?, any_present: true, ..extensions }
                }
                b'K' => {
                    extensions =
                        Extensions { long_link_target: self.long_name(&header)?, any_present: true, ..extensions };
                }
                b'x' => extensions = Extensions { records: self.records(&header)?, any_present: true, ..extensions },
                b'g' => {
                    // Go's reader, and so every container engine, ignores the records of a global header. It also drops the
                    // extension headers that precede a global header.
                    self.records(&header)?;
                    extensions = Extensions::default();
                }
                _ => return self.member(header, extensions).map(Some),
            }
        }
        if extensions.any_present { Err(self.failed(EntryError::NothingExtended)) } else { Ok(None) }
    }

    /// Returns the number of blob bytes that were read to produce the unpacked bytes so far.
    pub(super) fn blob_bytes_read(&self) -> u64 {
        self.stream.blob_bytes_read()
    }

    /// Makes [`Self::next_part`] return `None` for the current member, even if the archive stores content for the member.
    pub(super) fn hide_content(&mut self) {
        self.content.hide();
    }

    /// Returns the next part of the current member's content, or `None` at its end.
    pub(super) fn next_part(&mut self) -> Result<Option<ContentPart<'_>>, LayerError> {
        match self.content.next_part() {
            NextPart::End => Ok(None),
            NextPart::Hole(length) => Ok(Some(ContentPart::Hole(length))),
            NextPart::Stored(length) => {
                let range = self.take_content(length)?;
                self.content.position += range.len() as u64;
                Ok(Some(ContentPart::Data(self.stream.bytes(range))))
            }
        }
    }

    /// Reads the blob to its end, including any bytes after the archive, and returns the stream with its sizes and digests.
    pub(super) fn into_drained_stream(mut self) -> Result<TarStream<R>, LayerError> {
        // The digests of an image cover the whole blob, including the padding after the archive. DUCC stops at the end of
        // the archive and so records other diff IDs for some layers.
        self.stream.drain()?;
        Ok(self.stream)
    }

    /// Returns an error about the current member.
    pub(super) fn failed(&self, problem: impl Into<EntryError>) -> LayerError {
        LayerError::Entry { path: shown(&self.path), problem: problem.into() }
    }

    fn next_header(&mut self) -> Result<Option<Header>, LayerError> {
        if self.at_end {
            return Ok(None);
        }
        let offset = self.stream.offset();
        let header = self.next_block()?.filter(|header| !header.is_zero());
        let Some(header) = header else {
            return self.end(offset);
        };
        self.headers += 1;
        Limit::Headers.check(self.headers, self.limits.headers)?;
        if !header.has_valid_checksum() {
            // A blob in an unknown compression format reads as noise. The user needs that cause, not a wrong checksum.
            let is_first = offset == 0;
            return Err(if is_first {
                LayerError::NotAnArchive
            } else {
                self.invalid_header(offset, "wrong checksum")
            });
        }
        self.path = header.path();
        Ok(Some(header))
    }

    /// Reads the second of the two zero blocks that end an archive, and returns `None`. The stream may end without the
    /// second block. Any other block is an error.
    fn end(&mut self, offset: u64) -> Result<Option<Header>, LayerError> {
        // Go's reader refuses this, too. A reader that continued here would find entries that other readers do not find.
        if self.next_block()?.is_some_and(|block| !block.is_zero()) {
            return Err(self.invalid_header(offset, "single zero block inside the archive"));
        }
        self.at_end = true;
        Ok(None)
    }

    fn next_block(&mut self) -> Result<Option<Header>, LayerError> {
        let offset = self.stream.offset();
        let block = self.stream.take_block()?;
        if block.is_empty() {
            return Ok(None);
        }
        match <[u8; BLOCK_SIZE]>::try_from(block) {
            Ok(block) => Ok(Some(Header::new(block))),
            Err(_) if offset == 0 => Err(LayerError::NotAnArchive),
            Err(_) => Err(self.invalid_header(offset, "archive ends inside the header")),
        }
    }

    fn invalid_header(&self, offset: u64, reason: &'static str) -> LayerError {
        LayerError::Header { offset, after: shown(&self.path), reason }
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        Ok(header::text(&self.extension_data(header)?).to_vec())
    }

    /// Returns the records of a PAX header after checking that each is well-formed; values are not checked.
    fn records(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let records = self.extension_data(header)?;
        pax::check_records(&records).map_err(|problem| self.failed(problem))?;
        Ok(records)
    }

    fn extension_data(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let size = header.size().map_err(|problem| self.failed(problem))?;
        let limit = self.limits.extended_header_size;
        // Checked before memory is allocated: the archive may state any size.
        Limit::ExtendedHeaderSize.check(size, limit).map_err(|problem| self.failed(problem))?;
        self.content.start(size);
        let mut data = Vec::with_capacity(size as usize);
        while self.content.stored > 0 {
            let range = self.take_content(u64::MAX)?;
            data.extend_from_slice(self.stream.bytes(range));
        }
        self.skip_content()?;
        Ok(data)
    }

    fn member(&mut self, header: Header, extensions: Extensions) -> Result<Member, LayerError> {
        let mut extended = Extended::default();
        extended.apply(&extensions.records).map_err(|problem| self.failed(problem))?;
        let long_path = some_unless_empty(extensions.long_path);
        // Order of precedence as in Go's reader: name of a sparse file, GNU long name, PAX path.
        if let Some(path) = extended.sparse.name.clone().or(long_path).or_else(|| extended.path.clone()) {
            self.path = path;
        }
        let mut member = Member {
            kind: MemberKind::of(header.type_flag()),
            path: self.path.clone(),
            size: 0,
            header,
            extended,
            long_link_target: some_unless_empty(extensions.long_link_target),
        };
        self.start_content(&mut member)?;
        self.content_size = self.content_size.saturating_add(member.size);
        Limit::ContentSize.check(self.content_size, self.limits.content_size).map_err(|limit| self.failed(limit))?;
        Ok(member)
    }

    /// Prepares to read the content of a member: determines how many bytes the archive stores, and which bytes of the file
    /// these are. Changes the type of the member if a file entry means a directory.
    fn start_content(&mut self, member: &mut Member) -> Result<(), LayerError> {
        let stored = stored_size(member).map_err(|problem| self.failed(problem))?;
        // V7 tar has no type flag for directories, and writes a file whose name ends with a slash. In newer dialects, a
        // regular file with such a name is a directory only if it has no content.
        if member.kind == MemberKind::File
            && member.path.ends_with(b"/")
            && (stored == 0 || member.header.type_flag() == 0)
        {
            member.kind = MemberKind::Directory;
        }
        // The kind may have changed just now: a V7 directory has no content, regardless of the size in its header.
        self.content.start(if member.kind.has_content() { stored } else { 0 });
        if member.kind != MemberKind::File {
            return Ok(());
        }
        member.size = match self.read_map(member)? {
            Some(size) => size,
            None => {
                self.content.segments.push(Segment { offset: 0, length: stored });
                stored
            }
        };
        self.content.size = member.size;
        Ok(())
    }

    /// Reads the map of a sparse file and returns the file's size, or `None` if the file is not sparse.
    fn read_map(&mut self, member: &mut Member) -> Result<Option<u64>, LayerError> {
        let size = if member.header.type_flag() == b'S' {
            self.read_gnu_map(&member.header)?;
            member.header.sparse_size()
        } else {
            match member.extended.sparse.map_location().map_err(|problem| self.failed(problem))? {
                None => return Ok(None),
                Some(MapLocation::Records) => self.content.segments = std::mem::take(&mut member.extended.sparse.map),
                Some(MapLocation::Content) => self.content.segments = self.read_map_in_content()?,
            }
            member.extended.sparse.file_size()
        };
        let check = |size: u64| {
            Limit::SparseSegments.check(self.content.segments.len() as u64, self.limits.sparse_segments)?;
            sparse::check_map(&self.content.segments, size, self.content.stored)?;
            Ok(size)
        };
        size.and_then(check).map(Some).map_err(|problem| self.failed(problem))
    }

    fn read_gnu_map(&mut self, header: &Header) -> Result<(), LayerError> {
        // As in Go's reader. In other dialects, the path prefix is where GNU headers have the map.
        if !header.is_gnu() {
            return Err(self.failed(EntryError::Sparse("its header is not in GNU format")));
        }
        let mut segments = std::mem::take(&mut self.content.segments);
        let mut continues = header.read_sparse_segments(&mut segments).map_err(|problem| self.failed(problem))?;
        while continues {
            let block: Result<[u8; BLOCK_SIZE], _> = self.stream.take_block()?.try_into();
            let block = block.map_err(|_| self.failed(EntryError::Truncated))?;
            continues = header::read_continued_sparse_segments(&block, &mut segments)
                .map_err(|problem| self.failed(problem))?;
            // Checked for each block, because nothing states the length of the chain in advance.
            let count = segments.len() as u64;
            Limit::SparseSegments.check(count, self.limits.sparse_segments).map_err(|problem| self.failed(problem))?;
        }
        self.content.segments = segments;
        Ok(())
    }

    fn read_map_in_content(&mut self) -> Result<Vec<Segment>, LayerError> {
        let mut map = MapReader::default();
        loop {
            if self.content.stored < BLOCK_SIZE as u64 {
                return Err(self.failed(EntryError::Sparse("its map does not end")));
            }
            // The map occupies whole blocks, and the data begin with the next block (GNU tar manual, "PAX Format, Version
            // 1.0").
            let range = self.take_content(BLOCK_SIZE as u64)?;
            let block = <[u8; BLOCK_SIZE]>::try_from(self.stream.bytes(range));
            let block = block.map_err(|_| self.failed(EntryError::Truncated))?;
            if map.read(&block, &self.limits).map_err(|problem| self.failed(problem))? {
                return Ok(map.into_map());
            }
        }
    }

    /// Takes at least one and up to `max` of the member's stored bytes.
    fn take_content(&mut self, max: u64) -> Result<Range<usize>, LayerError> {
        let range = self.stream.take(max.min(self.content.stored))?;
        if range.is_empty() {
            return Err(self.failed(EntryError::Truncated));
        }
        self.content.stored -= range.len() as u64;
        Ok(range)
    }

    /// Skips to the next header. The padding may be missing at the end of the archive, because some programs omit it after
    /// the last member.
    fn skip_content(&mut self) -> Result<(), LayerError> {
        while self.content.stored > 0 {
            self.take_content(u64::MAX)?;
        }
        while self.content.padding > 0 {
            match self.stream.take(self.content.padding)?.len() {
                0 => break,
                count => self.content.padding -= count as u64,
            }
        }
        self.content.start(0);
        Ok(())
    }
}

/// Returns the number of bytes that the archive stores for a member.
fn stored_size(member: &Member) -> Result<u64, EntryError> {
    /// The largest size in octal digits. If the true size does not fit into the header, some programs write this value
    /// there, and the true size in the PAX header.
    const MAX_SIZE_IN_HEADER: u64 = 0o77_777_777_777;
    if !member.kind.has_content() {
        return Ok(0);
    }
    // Read even if the PAX header has a size, because the two must agree.
    let header = member.header.size()?;
    let size = match member.extended.size {
        None => header,
        Some(extended) if header == extended || header == 0 || header == MAX_SIZE_IN_HEADER => extended,
        // Readers that believe different sizes see different entries, which can hide one from a scanner (tar-rs #454).
        Some(extended) => return Err(EntryError::TwoSizes { header, extended }),
    };
    // Sizes are signed 64-bit numbers in catalogs, and `off_t` on clients.
    if i64::try_from(size).is_err() {
        return Err(EntryError::Number("size"));
    }
    Ok(size)
}
