//! The members of an archive, each with the extension headers before it and the bytes after it.

use std::io::BufRead;

use ::tar::EntryType;

use super::blocks::{BLOCK_SIZE, Blocks, Problem};
use super::error::{EntryProblem, ReadLayerError};
use super::header::{self, Header};
use super::pax::{self, Pax, Records};
use super::sparse::Content;
use super::within;
use crate::layer::{LayerError, Limit, Limits};
use crate::path::shown;
use crate::verify::content::{ContentDigest, ContentHasher};

/// A member of an archive.
pub(super) struct Member {
    /// Type of the member. All types of regular files are [`EntryType::Regular`].
    pub(super) kind: EntryType,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) header: Header,
    pub(super) pax: Pax,
    pub(super) content: Content,
}

/// Reads an archive, one member at a time.
///
/// The iterator of the `tar` crate cannot be used: where the header of a link, directory or device states a size, it skips
/// as many bytes, and Go's reader skips none.
pub(super) struct Archive<R> {
    blocks: Blocks<R>,
    limits: Limits,
    /// Path of the last header or member, for error messages.
    path: Vec<u8>,
    headers: u64,
    /// Size of all files so far.
    content_size: u64,
    is_at_end: bool,
}

/// Content of the extension headers before a member. Of several headers of one kind, the last one counts.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Option<Records>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none() && self.records.is_none()
    }
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(stream: R, limits: Limits) -> Self {
        let (path, headers, content_size, is_at_end) = Default::default();
        Self { blocks: Blocks::new(stream), limits, path, headers, content_size, is_at_end }
    }

    /// Returns the next member. For each member, either [`Self::hash_content`] or [`Self::skip_content`] must be called.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, ReadLayerError> {
        let mut extensions = Extensions::default();
        while let Some(header) = self.next_header()? {
            self.path = header.path();
            if !b"LKxg".contains(&header.type_flag()) {
                return self.member(header, extensions).map(Some).map_err(|problem| self.failed(problem));
            }
            self.extend(&header, &mut extensions).map_err(|problem| self.failed(problem))?;
        }
        if extensions.is_empty() { Ok(None) } else { Err(self.failed(EntryProblem::NothingExtended)) }
    }

    /// Reads the content of a file, and returns its digest. Holes count as zeros. Calls `take` with all bytes but those of holes.
    pub(super) fn hash_content(
        &mut self,
        content: &Content,
        mut take: impl FnMut(&[u8]),
    ) -> Result<ContentDigest, ReadLayerError> {
        let mut hasher = ContentHasher::new();
        let mut position = 0;
        for segment in &content.map {
            hasher.zeros(segment.offset - position);
            let read = self.blocks.take_all(segment.length, |bytes| {
                hasher.data(bytes);
                take(bytes);
            });
            read.map_err(|problem| self.failed(problem))?;
            position = segment.offset + segment.length;
        }
        hasher.zeros(content.size - position);
        self.blocks.skip_padding(content.stored)?;
        Ok(hasher.finish())
    }

    /// Skips what the archive stores for a member.
    pub(super) fn skip_content(&mut self, content: &Content) -> Result<(), ReadLayerError> {
        self.blocks.take_all(content.stored, |_| {}).map_err(|problem| self.failed(problem))?;
        self.blocks.skip_padding(content.stored)
    }

    /// Reads to the end of the stream, and returns it.
    pub(super) fn into_drained(self) -> Result<R, ReadLayerError> {
        self.blocks.into_drained()
    }

    /// Returns an error about the current member.
    pub(super) fn failed(&self, problem: impl Into<Problem>) -> ReadLayerError {
        match problem.into() {
            Problem::Blob(error) => error,
            Problem::Member(problem) => ReadLayerError::Entry { path: shown(&self.path), problem },
        }
    }

    fn next_header(&mut self) -> Result<Option<Header>, ReadLayerError> {
        let offset = self.blocks.offset();
        let block = if self.is_at_end { None } else { self.next_block()? };
        let Some(block) = block else { return Ok(None) };
        if block == [0; BLOCK_SIZE] {
            self.is_at_end = true;
            // Two blocks of zeros end an archive. The second may be missing, but Go's reader refuses other bytes there.
            return match self.next_block()?.is_none_or(|block| block == [0; BLOCK_SIZE]) {
                true => Ok(None),
                false => Err(self.bad_block(offset, "single zero block inside the archive")),
            };
        }
        self.headers += 1;
        within(Limit::Headers, self.headers, self.limits.headers).map_err(LayerError::Limit)?;
        match Header::of(block) {
            Some(header) => Ok(Some(header)),
            // A blob in an unknown compression.
            None if offset == 0 => Err(LayerError::NotAnArchive.into()),
            None => Err(self.bad_block(offset, "wrong checksum")),
        }
    }

    /// Returns the next block, or `None` at the end of the stream.
    fn next_block(&mut self) -> Result<Option<[u8; BLOCK_SIZE]>, ReadLayerError> {
        let offset = self.blocks.offset();
        let block = self.blocks.block()?;
        match <[u8; BLOCK_SIZE]>::try_from(block) {
            Ok(block) => Ok(Some(block)),
            Err(rest) if rest.is_empty() => Ok(None),
            Err(_) if offset == 0 => Err(LayerError::NotAnArchive.into()),
            Err(_) => Err(self.bad_block(offset, "archive ends inside the header")),
        }
    }

    fn bad_block(&self, offset: u64, reason: &'static str) -> ReadLayerError {
        ReadLayerError::Header { offset, after: shown(&self.path), reason }
    }

    /// Reads an extension header.
    fn extend(&mut self, header: &Header, extensions: &mut Extensions) -> Result<(), Problem> {
        let size = header.size()?;
        within(Limit::ExtendedHeaderSize, size, self.limits.extended_header_size)?;
        let mut data = Vec::new();
        self.blocks.take_all(size, |bytes| data.extend_from_slice(bytes))?;
        self.blocks.skip_padding(size)?;
        match header.type_flag() {
            b'L' => extensions.path = Some(header::text(&data).to_vec()),
            b'K' => extensions.link = Some(header::text(&data).to_vec()),
            b'x' => extensions.records = Some(pax::split(&data)?),
            _ => {
                // Go's reader ignores global records, and forgets the extension headers before them.
                pax::split(&data)?;
                *extensions = Extensions::default();
            }
        }
        Ok(())
    }

    fn member(&mut self, header: Header, extensions: Extensions) -> Result<Member, Problem> {
        let mut pax = Pax::of(&extensions.records.unwrap_or_default())?;
        let path = first_given([pax.sparse.name.take(), extensions.path, pax.path.take()]);
        let path = path.unwrap_or_else(|| header.path());
        let link = first_given([extensions.link, pax.link.take()]).unwrap_or_else(|| header.link().to_vec());
        self.path.clone_from(&path);
        let kind = match EntryType::new(header.type_flag()) {
            EntryType::Continuous | EntryType::GNUSparse => EntryType::Regular,
            kind => kind,
        };
        let mut member = Member { kind, path, link, header, pax, content: Content::default() };
        if !is_header_only(kind) {
            self.start_content(&mut member)?;
        }
        self.content_size = self.content_size.saturating_add(member.content.size);
        within(Limit::ContentSize, self.content_size, self.limits.content_size)?;
        Ok(member)
    }

    fn start_content(&mut self, member: &mut Member) -> Result<(), Problem> {
        let stored = stored_size(member)?;
        if member.kind != EntryType::Regular {
            // POSIX: a member of unknown type has content like a file.
            member.content.stored = stored;
        } else if member.path.ends_with(b"/") && (stored == 0 || member.header.type_flag() == 0) {
            // V7 tar has no type for directories. The size in such a header does not count.
            member.kind = EntryType::Directory;
        } else {
            let records = &member.pax.sparse;
            member.content = Content::of_file(stored, &member.header, records, &mut self.blocks, &self.limits)?;
        }
        Ok(())
    }
}

/// Returns the first name that an extension header states. The order is that of Go's reader. Empty names do not count.
fn first_given<const N: usize>(names: [Option<Vec<u8>>; N]) -> Option<Vec<u8>> {
    names.into_iter().flatten().find(|name| !name.is_empty())
}

/// Returns whether members of this type have no content, even if their headers state a size.
fn is_header_only(kind: EntryType) -> bool {
    use EntryType::{Block, Char, Directory, Fifo, Link, Symlink};
    matches!(kind, Link | Symlink | Char | Block | Directory | Fifo)
}

/// Returns the number of bytes that the archive stores for a member. Its header and PAX header must not contradict each other.
fn stored_size(member: &Member) -> Result<u64, EntryProblem> {
    // What programs write to the header if the size does not fit.
    const NOT_STATED: [u64; 2] = [0, 0o77_777_777_777];
    let header = member.header.size()?;
    let size = member.pax.size.unwrap_or(header);
    if size != header && !NOT_STATED.contains(&header) {
        return Err(EntryProblem::TwoSizes);
    }
    // The size of a file is a signed number on Linux and in catalogs.
    if size > i64::MAX.cast_unsigned() { Err(EntryProblem::Number("size")) } else { Ok(size) }
}
