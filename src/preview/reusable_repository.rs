//! The repository from which a preview takes what is published already.

use std::path::PathBuf;

use super::PreviewError;
use crate::catalog::CatalogReference;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::mount::ContentReader;
use crate::object::{Compression, Content, ContentObjects, ObjectKind};
use crate::repository::Repository;
use crate::settings::{Modes, Settings};
use crate::source::ImageLayer;
use crate::stage::{published_layer, read_layer};
use crate::state::{ContentKey, StateDatabase};
use crate::tree::LayerForm;

/// A repository whose published layers and small files a preview reuses. It is only read.
pub(super) struct ReusableRepository {
    head: Repository,
    state: StateDatabase,
    settings: Settings,
}

impl ReusableRepository {
    pub(super) fn open(directory: &RepositoryDirectory) -> Result<Self, PreviewError> {
        let head = Repository::open(directory.store()?, directory.name())?;
        Ok(Self { head, state: directory.state_read_only()?, settings: directory.settings().clone() })
    }

    pub(super) fn modes(&self) -> Modes {
        self.settings.modes
    }

    /// Returns a reader of the repository's content that caches in `directory`.
    pub(super) fn content_reader(&self, directory: PathBuf) -> ContentReader {
        ContentReader::new(self.head.store().clone(), directory)
    }

    /// Returns a published layer, or `None` if it is not published or its record is incomplete.
    pub(super) fn layer(&self, layer: &ImageLayer) -> Result<Option<LayerForm>, PreviewError> {
        let Some(known) = published_layer(&self.head, layer.digest)? else { return Ok(None) };
        let record = &known.record;
        if !record.is_complete || record.diff_id != layer.diff_id || record.blob_size != layer.size {
            return Ok(None);
        }
        let read = |reference: CatalogReference| {
            self.head.store().read_decoded(reference.hash, ObjectKind::Catalog, reference.limit())
        };
        Ok(Some(read_layer(&read, layer.digest, &known)?))
    }

    /// Returns the object of a small file, or `None` if the content index or the store does not contain it.
    pub(super) fn small_file(&self, plain: &[u8]) -> Result<Option<Content>, PreviewError> {
        let compression = self.settings.compression;
        let key = ContentKey {
            blake3: *blake3::hash(plain).as_bytes(),
            size: plain.len() as u64,
            is_chunk: false,
            encoder: compression.encoder_id().0,
            algorithm: self.head.manifest().root_catalog.algorithm(),
        };
        let found = self.state.objects(&[key]).map_err(DirectoryError::from)?;
        let Some(found) = found[0] else { return Ok(None) };
        let actual = self.head.store().stored_size(found.hash, ObjectKind::File).map_err(DirectoryError::from)?;
        let is_there = actual.is_some_and(|actual| found.length().is_none_or(|length| length == actual));
        let objects = ContentObjects::Whole(found.hash);
        Ok(is_there.then(|| Content { raw: compression == Compression::None, objects }))
    }
}
