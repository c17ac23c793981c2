//! Reads an archive member by member: finds each header with its extension headers, and the stored content between headers.

use std::ops::Range;

use super::content::{Content, NextPart};
use super::header::{self, Header, MapBlock};
use super::member::{Extensions, some_unless_empty};
use super::pax::{self, Extended};
use super::sparse::{self, MapLocation, MapReader, Segment};
use super::{BLOCK_SIZE, BlockStream, ContentPart, HeaderError, Member, MemberError, MemberKind, TarError};
use crate::path::shown;

/// Limits on what must be read or kept in memory to find a member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeaderLimits {
    /// Maximum number of headers in the archive, including extended headers.
    pub(crate) headers: u64,
    /// Maximum size of one PAX header or GNU long name in bytes.
    pub(crate) extended_header_size: u64,
}

/// Reads an archive, one member at a time. After an error it must not be used any more.
pub(crate) struct Archive<S> {
    stream: S,
    limits: HeaderLimits,
    /// Path of the member read last, for error messages.
    path: Vec<u8>,
    headers: u64,
    at_end: bool,
    content: Content,
}

impl<S: BlockStream> Archive<S> {
    pub(crate) fn new(stream: S, limits: HeaderLimits) -> Self {
        Self { stream, limits, path: Vec::new(), headers: 0, at_end: false, content: Content::default() }
    }

    /// Returns the next member. Unread content of the previous member is skipped.
    ///
    /// A sparse file has no size and no content until [`Self::read_map`] is called.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, S::Error> {
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
        if extensions.any_present { Err(self.failed(MemberError::NothingExtended)) } else { Ok(None) }
    }

    /// Reads the map of a sparse file, and sets the size of the member. Has no effect on other members.
    ///
    /// Must be called before the content is read. Returns an error if the map has more than `max_segments` data segments.
    pub(crate) fn read_map(&mut self, member: &mut Member, max_segments: u64) -> Result<(), S::Error> {
        if member.kind != MemberKind::File {
            return Ok(());
        }
        let size = if member.header.type_flag() == b'S' {
            self.read_gnu_map(&member.header, max_segments)?;
            member.header.sparse_size()
        } else {
            match member.extended.sparse.map_location().map_err(|problem| self.failed(problem))? {
                None => return Ok(()),
                Some(MapLocation::Records) => self.content.segments = std::mem::take(&mut member.extended.sparse.map),
                Some(MapLocation::Content) => self.content.segments = self.read_map_in_content(max_segments)?,
            }
            member.extended.sparse.file_size()
        };
        let check = |size: u64| {
            sparse::check_count(self.content.segments.len() as u64, max_segments)?;
            sparse::check_map(&self.content.segments, size, self.content.stored)?;
            Ok(size)
        };
        member.size = size.and_then(check).map_err(|problem| self.failed(problem))?;
        self.content.size = member.size;
        Ok(())
    }

    /// Makes [`Self::next_part`] return `None` for the current member, even if the archive stores content for the member.
    pub(crate) fn hide_content(&mut self) {
        self.content.hide();
    }

    /// Returns the next part of the current member's content, or `None` at its end.
    pub(crate) fn next_part(&mut self) -> Result<Option<ContentPart<'_>>, S::Error> {
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

    /// Returns the path of the member or extended header read last, for messages: escaped, and truncated if it is very long.
    pub(crate) fn shown_path(&self) -> String {
        shown(&self.path)
    }

    /// Returns the stream. Its offset after [`Self::next_member`] is that of the content of a file that is not sparse.
    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Returns the stream at its current position.
    pub(crate) fn into_stream(self) -> S {
        self.stream
    }

    /// Returns an error about the current member.
    fn failed(&self, problem: MemberError) -> S::Error {
        TarError::Member { path: self.shown_path(), problem }.into()
    }

    fn next_header(&mut self) -> Result<Option<Header>, S::Error> {
        if self.at_end {
            return Ok(None);
        }
        let offset = self.stream.offset();
        let header = self.next_block()?.filter(|header| !header.is_zero());
        let Some(header) = header else {
            return self.end(offset);
        };
        self.headers += 1;
        if self.headers > self.limits.headers {
            return Err(TarError::TooManyHeaders { allowed: self.limits.headers }.into());
        }
        if !header.has_valid_checksum() {
            // A blob in an unknown compression format reads as noise. The user needs that cause, not a wrong checksum.
            let is_first = offset == 0;
            return Err(if is_first {
                TarError::NotAnArchive.into()
            } else {
                self.invalid_header(offset, "wrong checksum")
            });
        }
        self.path = header.path();
        Ok(Some(header))
    }

    /// Reads the second of the two zero blocks that end an archive, and returns `None`. The stream may end without the
    /// second block. Any other block is an error.
    fn end(&mut self, offset: u64) -> Result<Option<Header>, S::Error> {
        // Go's reader refuses this, too. A reader that continued here would find entries that other readers do not find.
        if self.next_block()?.is_some_and(|block| !block.is_zero()) {
            return Err(self.invalid_header(offset, "single zero block inside the archive"));
        }
        self.at_end = true;
        Ok(None)
    }

    fn next_block(&mut self) -> Result<Option<Header>, S::Error> {
        let offset = self.stream.offset();
        let block = self.stream.take_block()?;
        if block.is_empty() {
            return Ok(None);
        }
        match <[u8; BLOCK_SIZE]>::try_from(block) {
            Ok(block) => Ok(Some(Header::new(block))),
            Err(_) if offset == 0 => Err(TarError::NotAnArchive.into()),
            Err(_) => Err(self.invalid_header(offset, "archive ends inside the header")),
        }
    }

    fn invalid_header(&self, offset: u64, reason: &'static str) -> S::Error {
        TarError::Header(HeaderError { offset, after: self.shown_path(), reason }).into()
    }

    fn long_name(&mut self, header: &Header) -> Result<Vec<u8>, S::Error> {
        Ok(header::text(&self.extension_data(header)?).to_vec())
    }

    /// Returns the records of a PAX header after checking that each is well-formed; values are not checked.
    fn records(&mut self, header: &Header) -> Result<Vec<u8>, S::Error> {
        let records = self.extension_data(header)?;
        pax::check_records(&records).map_err(|problem| self.failed(problem))?;
        Ok(records)
    }

    fn extension_data(&mut self, header: &Header) -> Result<Vec<u8>, S::Error> {
        let size = header.size().map_err(|problem| self.failed(problem))?;
        let allowed = self.limits.extended_header_size;
        // Checked before memory is allocated: the archive may state any size.
        if size > allowed {
            return Err(self.failed(MemberError::ExtendedHeaderTooLarge { allowed }));
        }
        self.content.start(size);
        let mut data = Vec::with_capacity(size as usize);
        while self.content.stored > 0 {
            let range = self.take_content(u64::MAX)?;
            data.extend_from_slice(self.stream.bytes(range));
        }
        self.skip_content()?;
        Ok(data)
    }

    fn member(&mut self, header: Header, extensions: Extensions) -> Result<Member, S::Error> {
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
        self.start_content(&mut member).map_err(|problem| self.failed(problem))?;
        Ok(member)
    }

    /// Prepares to read the content of a member: determines how many bytes the archive stores. Changes the type of the member
    /// if a file entry means a directory.
    fn start_content(&mut self, member: &mut Member) -> Result<(), MemberError> {
        let stored = member.stored_size()?;
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
        if member.is_sparse() {
            self.content.map_continues = member.header.type_flag() == b'S' && member.header.map_continues();
        } else if member.kind == MemberKind::File {
            self.content.segments.push(Segment { offset: 0, length: stored });
            self.content.size = stored;
            member.size = stored;
        }
        Ok(())
    }

    fn read_gnu_map(&mut self, header: &Header, max_segments: u64) -> Result<(), S::Error> {
        // As in Go's reader. In other dialects, the path prefix is where GNU headers have the map.
        if !header.is_gnu() {
            return Err(self.failed(MemberError::Sparse("its header is not in GNU format")));
        }
        let mut segments = std::mem::take(&mut self.content.segments);
        header.read_sparse_segments(&mut segments).map_err(|problem| self.failed(problem))?;
        while let Some(block) = self.next_map_block()? {
            block.read_sparse_segments(&mut segments).map_err(|problem| self.failed(problem))?;
            // Checked for each block, because nothing states the length of the chain in advance.
            let count = segments.len() as u64;
            sparse::check_count(count, max_segments).map_err(|problem| self.failed(problem))?;
        }
        self.content.segments = segments;
        Ok(())
    }

    /// Takes the next block that continues the map in a GNU header, or returns `None` after the last.
    fn next_map_block(&mut self) -> Result<Option<MapBlock>, S::Error> {
        if !self.content.map_continues {
            return Ok(None);
        }
        let block = self.stream.take_block()?.try_into();
        let block = MapBlock(block.map_err(|_| self.failed(MemberError::Truncated))?);
        self.content.map_continues = block.map_continues();
        Ok(Some(block))
    }

    fn read_map_in_content(&mut self, max_segments: u64) -> Result<Vec<Segment>, S::Error> {
        let mut map = MapReader::default();
        loop {
            if self.content.stored < BLOCK_SIZE as u64 {
                return Err(self.failed(MemberError::Sparse("its map does not end")));
            }
            // The map occupies whole blocks, and the data begin with the next block (GNU tar manual, "PAX Format, Version
            // 1.0").
            let range = self.take_content(BLOCK_SIZE as u64)?;
            let block = <[u8; BLOCK_SIZE]>::try_from(self.stream.bytes(range));
            let block = block.map_err(|_| self.failed(MemberError::Truncated))?;
            if map.read(&block, max_segments).map_err(|problem| self.failed(problem))? {
                return Ok(map.into_map());
            }
        }
    }

    /// Takes at least one and up to `max` of the member's stored bytes.
    fn take_content(&mut self, max: u64) -> Result<Range<usize>, S::Error> {
        let range = self.stream.take(max.min(self.content.stored))?;
        if range.is_empty() {
            return Err(self.failed(MemberError::Truncated));
        }
        self.content.stored -= range.len() as u64;
        Ok(range)
    }

    /// Skips to the next header. The padding may be missing at the end of the archive, because some programs omit it after
    /// the last member.
    fn skip_content(&mut self) -> Result<(), S::Error> {
        while self.next_map_block()?.is_some() {}
        let (stored, padding) = (self.content.stored, self.content.padding);
        if self.stream.skip(stored + padding)? < stored {
            return Err(self.failed(MemberError::Truncated));
        }
        self.content.start(0);
        Ok(())
    }
}
