//! Reads a layer that is not published, and keeps the content of its files.
//!
//! The loop over entries and content is not shared with `ingest`, which must be able to stop after each chunk, even inside a
//! hole, so that content in memory stays below a limit. Content that goes to a file needs no such limit.

use std::fs::File;
use std::io::Read;

use super::PreviewError;
use super::pack::PackWriter;
use super::reusable_repository::ReusableRepository;
use crate::image::Digest;
use crate::layer::{ContentPart, ExpectedLayer, LayerEntry, LayerError, LayerReader, Limits};
use crate::object::{ChunkSizes, Content};
use crate::source::ImageLayer;

/// Reads a layer, and appends the content of its files to its pack, except for small files that the repository contains.
pub(super) struct LayerPacker<'a, R> {
    digest: Digest,
    reader: LayerReader<R>,
    repository: Option<&'a ReusableRepository>,
    pack: PackWriter<'a>,
}

impl<'a, R: Read + Send + 'static> LayerPacker<'a, R> {
    pub(super) fn start(
        blob: R,
        layer: &ImageLayer,
        limits: Limits,
        repository: Option<&'a ReusableRepository>,
        pack: PackWriter<'a>,
    ) -> Result<Self, PreviewError> {
        let digest = layer.digest;
        let expected = ExpectedLayer { digest, size: layer.size, diff_id: Some(layer.diff_id) };
        let reader = LayerReader::ahead(blob, expected, limits).map_err(unreadable(digest))?;
        Ok(Self { digest, reader, repository, pack })
    }

    /// Reads and verifies the whole layer. Returns its entries, and the file of its pack.
    pub(super) fn pack(mut self) -> Result<(Vec<LayerEntry<Content>>, File), PreviewError> {
        let mut entries = Vec::new();
        while let Some(entry) = self.reader.next_entry().map_err(unreadable(self.digest))? {
            let content = match entry.file_size() {
                Some(size) => self.pack_file(size)?,
                // Not used, because the entry has no content.
                None => self.pack.next(),
            };
            entries.push(entry.map_content(|()| content));
        }
        self.reader.finish().map_err(unreadable(self.digest))?;
        Ok((entries, self.pack.finish()?))
    }

    /// Reads the content of the latest entry, a regular file of `size` bytes, and returns a reference to it.
    fn pack_file(&mut self, size: u64) -> Result<Content, PreviewError> {
        let content = self.pack.next();
        if let Some(repository) = self.repository
            && size <= ChunkSizes::default().minimum
        {
            let (plain, hole) = self.read_to_hole()?;
            // Files with holes are not looked up: their zeros cost nothing in a sparse file.
            if hole.is_none()
                && let Some(known) = repository.small_file(&plain)?
            {
                return Ok(known);
            }
            self.pack.append(&plain)?;
            if let Some(length) = hole {
                self.pack.append_hole(length)?;
            }
        }
        self.append_rest()?;
        Ok(content)
    }

    /// Reads data up to the first hole or the end of the file. Returns the data, and the length of the hole in bytes.
    fn read_to_hole(&mut self) -> Result<(Vec<u8>, Option<u64>), PreviewError> {
        let mut plain = Vec::new();
        while let Some(part) = self.reader.next_part().map_err(unreadable(self.digest))? {
            match part {
                ContentPart::Data(data) => plain.extend_from_slice(data),
                ContentPart::Hole(length) => return Ok((plain, Some(length))),
            }
        }
        Ok((plain, None))
    }

    /// Appends the unread content of the file to the pack.
    fn append_rest(&mut self) -> Result<(), PreviewError> {
        while let Some(part) = self.reader.next_part().map_err(unreadable(self.digest))? {
            match part {
                ContentPart::Data(data) => self.pack.append(data)?,
                ContentPart::Hole(length) => self.pack.append_hole(length)?,
            }
        }
        Ok(())
    }
}

/// Returns a conversion of errors from reading the layer.
fn unreadable(digest: Digest) -> impl FnOnce(LayerError) -> PreviewError {
    move |source| PreviewError::Layer { digest, source }
}
