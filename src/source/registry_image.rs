//! An image at a registry, as a [`Source`].

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::document::{Blob, Blobs};
use super::resolve::ImageResolver;
use super::{Image, ImageLayer, LayerBlob, PlatformRequest, Source, SourceError};
use crate::image::{Digest, Platform};
use crate::observer::Reporter;
use crate::registry::{Download, ImageLocation, Permit, Registries, RegistryError, RetryBudget, lock};

/// An image at a registry.
#[derive(Debug)]
pub struct RegistryImage {
    registries: Registries,
    location: ImageLocation,
    /// The location as a path, for messages.
    label: PathBuf,
    /// For each layer that was last read from a mirror: the mirror.
    mirrors: Arc<Mutex<HashMap<Digest, String>>>,
}

impl RegistryImage {
    /// Returns the image at a location without sending a request.
    pub fn new(registries: Registries, location: ImageLocation) -> Self {
        // `Blobs::path` is only used in messages, and a registry has no path.
        let label = location.to_string().into();
        Self { registries, location, label, mirrors: Arc::default() }
    }
}

impl Source for RegistryImage {
    fn resolve(&self, request: &PlatformRequest) -> Result<Image, SourceError> {
        let (document, media_type) = self.registries.manifest(&self.location, None, RetryBudget::Full)?;
        let image = ImageResolver::new(self, request).resolve_document(document, &media_type)?;
        Ok(Image { names: vec![self.location.name.clone().into()], ..image })
    }

    fn resolve_each(&self, wanted: Option<&[Platform]>) -> Result<Vec<(Platform, Image)>, SourceError> {
        let (document, media_type) = self.registries.manifest(&self.location, None, RetryBudget::Full)?;
        let request = PlatformRequest::new(None);
        let images = ImageResolver::new(self, &request).resolve_each_of_document(document, &media_type, wanted)?;
        let named = |(platform, image)| (platform, Image { names: vec![self.location.name.clone().into()], ..image });
        Ok(images.into_iter().map(named).collect())
    }

    fn open_layer(&self, layer: &ImageLayer) -> Result<LayerBlob, SourceError> {
        Ok(self.download(layer, self.registries.download_permit(&self.location)))
    }

    fn try_open_layer(&self, layer: &ImageLayer) -> Result<Option<LayerBlob>, SourceError> {
        let permit = self.registries.try_download_permit(&self.location);
        Ok(permit.map(|permit| self.download(layer, permit)))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn mirror_of(&self, layer: &Digest) -> Option<String> {
        lock(&self.mirrors).get(layer).cloned()
    }
}

impl RegistryImage {
    fn download(&self, layer: &ImageLayer, permit: Permit) -> LayerBlob {
        // A download waits for a parked registry itself, because its wait ends when the download is dropped.
        let (registries, location) = (self.registries.with_patience(Duration::ZERO), self.location.clone());
        let (digest, urls) = (layer.digest, layer.urls.clone());
        let mirrors = Arc::clone(&self.mirrors);
        let open = move |offset| {
            let opened = registries.open_blob(&location, &digest, &urls, offset)?;
            match opened.mirror.clone() {
                Some(mirror) => lock(&mirrors).insert(digest, mirror),
                None => lock(&mirrors).remove(&digest),
            };
            Ok::<_, RegistryError>(opened)
        };
        let download = Download::start(
            open,
            layer.size,
            self.registries.policy(&self.location),
            self.reporter(),
            self.registries.cancellation(),
        );
        let readiness = download.readiness();
        LayerBlob::remote(PermittedDownload { download, _permit: permit }, move || readiness.is_ready())
    }
}

/// A download with the permit that counts it until it is dropped.
struct PermittedDownload {
    download: Download,
    _permit: Permit,
}

impl Read for PermittedDownload {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.download.read(buffer)
    }
}

impl Blobs for RegistryImage {
    fn path(&self) -> &Path {
        &self.label
    }

    fn reporter(&self) -> &Reporter {
        self.registries.reporter()
    }

    fn open_blob(&self, digest: &Digest) -> Result<Blob, SourceError> {
        Ok(blob(self.registries.small_blob(&self.location, digest)?))
    }

    fn open_manifest(&self, digest: &Digest) -> Result<Blob, SourceError> {
        Ok(blob(self.registries.manifest(&self.location, Some(digest), RetryBudget::Full)?.0.bytes))
    }
}

fn blob(bytes: Vec<u8>) -> Blob {
    Blob { size: bytes.len() as u64, reader: Box::new(Cursor::new(bytes)) }
}
