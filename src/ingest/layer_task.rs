//! A layer that threads read step by step.

use std::mem;
use std::time::Instant;

use super::buffers::Buffers;
use super::file_cutter::{CutEntries, FileCutter, ReadProgress};
use super::object_writer::{Job, ObjectWriter};
use super::{BATCH_BYTES, BlobReader, IngestError, IngestedLayer, LayerToRead, POLL_INTERVAL};
use crate::layer::{ContentPart, ExpectedLayer, LayerError, LayerReader, LayerSummary, Limits};
use crate::object::ChunkSizes;
use crate::source::{LayerBlob, Readiness, SourceError};
use crate::span::span;

/// Minimum size of an entry in a tar archive in bytes: one header.
const MIN_ENTRY_SIZE: u64 = 512;

/// A layer that is being read. One thread at a time reads a part of it.
pub(super) struct LayerTask<'a> {
    pub(super) index: usize,
    pub(super) is_remote: bool,
    is_verified_only: bool,
    /// Whether a second thread unpacks ahead.
    unpack_ahead: bool,
    /// The blob is not opened before this time. Set after an attempt has found that the blob cannot be opened yet.
    pub(super) not_before: Instant,
    source: LayerSource<'a>,
    expected: ExpectedLayer,
    limits: Limits,
    cutter: FileCutter,
}

/// State of the blob. A blob is opened only shortly before it is read, because an image may have more layers than there is memory
/// for readers.
enum LayerSource<'a> {
    Closed(Box<dyn FnMut() -> Result<Option<LayerBlob>, SourceError> + Send + 'a>),
    /// Open, but nothing was read yet.
    Open(LayerBlob),
    Reading(Box<BlobReader>, Readiness),
    /// Set while the state changes; remains after an error.
    Gone,
}

/// A layer that was read to its end. Some of its content may not be stored yet.
pub(super) struct ReadLayer {
    pub(super) index: usize,
    entries: CutEntries,
    summary: LayerSummary,
}

impl<'a> LayerTask<'a> {
    pub(super) fn new(
        index: usize,
        layer: LayerToRead<'a>,
        sizes: ChunkSizes,
        limits: Limits,
        unpack_ahead: bool,
    ) -> Self {
        let LayerToRead { open, is_remote, is_verified_only, expected } = layer;
        // A thread does not wait for a remote blob while it can do other work, so unpacking ahead would not help.
        let unpack_ahead = unpack_ahead && !is_remote;
        let (source, cutter) = (LayerSource::Closed(open), FileCutter::new(index, sizes));
        let not_before = Instant::now();
        Self { index, is_remote, is_verified_only, unpack_ahead, not_before, source, expected, limits, cutter }
    }

    /// Returns the number of blob bytes that are not read yet.
    pub(super) fn unread_bytes(&self) -> u64 {
        let read = if let LayerSource::Reading(reader, _) = &self.source { reader.blob_bytes_read() } else { 0 };
        self.expected.size.saturating_sub(read)
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(self.source, LayerSource::Closed(_))
    }

    /// Returns whether the layer can probably be read without waiting for bytes.
    pub(super) fn is_ready(&self) -> bool {
        match &self.source {
            LayerSource::Open(blob) => blob.is_ready(),
            LayerSource::Reading(_, is_ready) => is_ready(),
            LayerSource::Closed(_) | LayerSource::Gone => true,
        }
    }

    /// Opens the blob if possible, and creates its reader if the first bytes have arrived. Returns whether the reader exists.
    fn prepare(&mut self) -> Result<bool, IngestError> {
        match mem::replace(&mut self.source, LayerSource::Gone) {
            LayerSource::Closed(mut open) => {
                let Some(blob) = open()? else {
                    self.source = LayerSource::Closed(open);
                    self.not_before = Instant::now() + POLL_INTERVAL;
                    return Ok(false);
                };
                let goes_on = blob.is_ready();
                self.source = LayerSource::Open(blob);
                Ok(goes_on && self.prepare()?)
            }
            LayerSource::Open(blob) => {
                let (reader, is_ready) = blob.into_parts();
                let reader = match self.unpack_ahead {
                    true => LayerReader::ahead(reader, self.expected, self.limits)?,
                    false => LayerReader::new(reader, self.expected, self.limits)?,
                };
                self.source = LayerSource::Reading(Box::new(reader), is_ready);
                Ok(true)
            }
            reading => {
                self.source = reading;
                Ok(true)
            }
        }
    }

    /// Reads until there is content to store: many small files, or one chunk of a large file.
    pub(super) fn read_some(&mut self, buffers: &Buffers) -> Result<ReadProgress, IngestError> {
        let _parsing = span!("parse");
        if !self.prepare()? {
            return Ok(ReadProgress::NoContent);
        }
        let LayerSource::Reading(reader, _) = &mut self.source else { unreachable!("the layer was opened just now") };
        if !self.is_verified_only {
            return Ok(self.cutter.read_some(reader, buffers)?);
        }
        let is_end = skip_some(reader)?;
        Ok(if is_end { ReadProgress::End(Job::new(self.index)) } else { ReadProgress::NoContent })
    }

    /// Verifies the layer as a whole.
    pub(super) fn finish(self) -> Result<ReadLayer, IngestError> {
        let LayerSource::Reading(reader, _) = self.source else {
            unreachable!("only a layer that was read is finished")
        };
        let summary = reader.finish()?;
        Ok(ReadLayer { index: self.index, entries: self.cutter.into_entries(), summary })
    }
}

/// Reads a part of the layer and discards it. Returns whether the last entry was reached.
fn skip_some(reader: &mut BlobReader) -> Result<bool, LayerError> {
    let mut skipped = 0;
    while skipped < BATCH_BYTES {
        if let Some(part) = reader.next_part()? {
            skipped += if let ContentPart::Data(data) = part { data.len() as u64 } else { 0 };
            continue;
        }
        if reader.next_entry()?.is_none() {
            return Ok(true);
        }
        // Entries without content count, too: otherwise one call could read a whole layer of empty files.
        skipped += MIN_ENTRY_SIZE;
    }
    Ok(false)
}

impl ReadLayer {
    /// Returns the entries with the hashes of their stored objects.
    pub(super) fn with_content(self, writer: &ObjectWriter<'_>, raw: bool) -> IngestedLayer {
        let hashes = mem::take(&mut *writer.hashes(self.index));
        IngestedLayer { entries: self.entries.with_content(&hashes, raw), summary: self.summary }
    }
}
