//! Resolves a descriptor to an image: through indexes, by platform, to a manifest and its config.

mod candidates;
mod platforms;

use super::document::{self, Blobs};
use super::error::SourceError;
use super::{Image, ImageLayer, PlatformRequest};
use crate::image::{Descriptor, Digest, Document, DocumentKind, ImageConfig, ImageIndex, ImageManifest, Platform};

pub(super) use platforms::single;

/// Maximum number of nested indexes.
// image-spec, image-index.md, says that nested indexes SHOULD be supported, and states no maximum depth.
const MAX_DEPTH: usize = 4;
/// Maximum number of manifests and indexes that are read for one image. An index without platforms requires reading all of its
/// manifests.
const MAX_DOCUMENTS: usize = 1000;
/// Maximum number of platforms that are recorded for an error message.
const MAX_OFFERED: usize = 100;

/// One search for an image among the blobs of a source.
pub(super) struct ImageResolver<'a> {
    blobs: &'a dyn Blobs,
    request: &'a PlatformRequest,
    documents_read: usize,
    /// The platforms in the index, for an error message.
    offered: Vec<Platform>,
    /// The first artifact that is not an image: the digest of its manifest and its type.
    artifact: Option<(Digest, String)>,
    /// The same for the first artifact among the entries for a requested platform.
    wanted_artifact: Option<(Digest, String)>,
    /// Digest of the index that is searched.
    index: Option<Digest>,
}

impl<'a> ImageResolver<'a> {
    pub(super) fn new(blobs: &'a dyn Blobs, request: &'a PlatformRequest) -> Self {
        let (artifact, wanted_artifact, index) = (None, None, None);
        Self { blobs, request, documents_read: 0, offered: Vec::new(), artifact, wanted_artifact, index }
    }

    /// Returns the image for entries of `index.json` that all point to the same manifest or index.
    ///
    /// A single manifest is accepted for any platform, unless the user requested a platform. If an entry states a platform, the
    /// entries are treated like those of an index.
    pub(super) fn resolve_entries(mut self, entries: &[Descriptor]) -> Result<Image, SourceError> {
        let (document, kind) = self.read(&entries[0])?;
        if kind == DocumentKind::Manifest && name_platforms(entries) {
            return self.choose(entries, 0);
        }
        self.resolve_kind(document, kind)
    }

    /// Returns the image for a document that a registry returned with `media_type`.
    pub(super) fn resolve_document(mut self, document: Document, media_type: &str) -> Result<Image, SourceError> {
        self.documents_read += 1;
        let name = document.digest.to_string();
        let kind = document::kind(self.blobs.path(), &name, &document.bytes, media_type)?;
        self.resolve_kind(document, kind)
    }

    fn resolve_kind(mut self, document: Document, kind: DocumentKind) -> Result<Image, SourceError> {
        match kind {
            DocumentKind::Manifest => {
                let image = self.image(document)?;
                admit(self.request, image.manifest.digest, &image.parsed_config)?;
                Ok(image)
            }
            DocumentKind::Index => {
                let index = self.index(&document)?;
                self.note_index(&document, &index);
                let image = self.choose(&index.manifests, 1)?;
                Ok(Image { index: Some(document), ..image })
            }
        }
    }

    /// Returns the image for the requested platform among descriptors of one image.
    pub(super) fn resolve_descriptors(mut self, descriptors: &[Descriptor]) -> Result<Image, SourceError> {
        self.choose(descriptors, 0)
    }

    /// Records the index that is searched, and its artifact type, which is reported if it contains no image.
    fn note_index(&mut self, document: &Document, index: &ImageIndex) {
        self.index = Some(document.digest);
        if !index.artifact_type.is_empty() {
            self.artifact = Some((document.digest, index.artifact_type.clone()));
        }
        self.note_if_empty(document.digest, index);
    }

    /// Records an index without entries as an artifact.
    fn note_if_empty(&mut self, digest: Digest, index: &ImageIndex) {
        if index.manifests.is_empty() {
            self.artifact.get_or_insert_with(|| (digest, "empty index".to_owned()));
        }
    }

    /// Records an entry of an index that is not an image.
    fn note_artifact(&mut self, descriptor: &Descriptor) {
        let artifact_type = match DocumentKind::of_media_type(&descriptor.media_type) {
            _ if !descriptor.artifact_type.is_empty() => descriptor.artifact_type.as_str(),
            // Other artifacts have another media type or an artifact type. BuildKit's attestations have neither.
            Some(_) => "attestation",
            None => descriptor.media_type.as_str(),
        };
        if let Ok(digest) = descriptor.digest() {
            self.artifact.get_or_insert((digest, artifact_type.to_owned()));
        }
    }

    /// Records a platform of the index.
    fn note(&mut self, offered: &Platform) {
        if self.offered.len() < MAX_OFFERED && !self.offered.contains(offered) {
            self.offered.push(offered.clone());
        }
    }

    /// Returns the error for a platform without an image.
    fn nothing_for(&self, asked: &Platform) -> SourceError {
        let kin: Vec<String> = self
            .offered
            .iter()
            .filter(|offered| offered.has_same_architecture(asked))
            .map(ToString::to_string)
            .collect();
        if asked.variant.is_none() && !kin.is_empty() {
            return SourceError::VariantNeeded { requested: asked.to_string(), offered: kin };
        }
        self.nothing(asked.to_string())
    }

    /// Returns the error for a request for which there is no image. If an artifact was found, the error names the artifact.
    fn nothing(&self, requested: String) -> SourceError {
        let is_wasm = |platform: &Platform| platform.architecture.starts_with("wasm");
        let artifact = match (&self.wanted_artifact, &self.artifact, self.offered.first()) {
            (Some(wanted), ..) => Some(wanted.clone()),
            (None, Some(artifact), None) => Some(artifact.clone()),
            (None, _, Some(first)) if self.offered.iter().all(is_wasm) => self.index.zip(Some(first.to_string())),
            _ => None,
        };
        match artifact {
            Some((manifest, artifact_type)) => SourceError::Artifact { manifest, artifact_type },
            None => {
                let offered = self.offered.iter().map(ToString::to_string).collect();
                SourceError::NoSuchPlatform { requested, offered }
            }
        }
    }

    /// Reads a manifest or an index.
    fn read(&mut self, descriptor: &Descriptor) -> Result<(Document, DocumentKind), SourceError> {
        if self.documents_read == MAX_DOCUMENTS {
            return Err(SourceError::TooManyDocuments { limit: MAX_DOCUMENTS });
        }
        self.documents_read += 1;
        let document = document::read_manifest(self.blobs, descriptor, "the index")?;
        let name = document.digest.to_string();
        let kind = document::kind(self.blobs.path(), &name, &document.bytes, &descriptor.media_type)?;
        Ok((document, kind))
    }

    fn index(&self, document: &Document) -> Result<ImageIndex, SourceError> {
        document::parse(self.blobs.path(), &document.digest.to_string(), &document.bytes)
    }

    /// Reads the config of a manifest and returns the image.
    fn image(&self, document: Document) -> Result<Image, SourceError> {
        let (path, name) = (self.blobs.path(), document.digest.to_string());
        let manifest: ImageManifest = document::parse(path, &name, &document.bytes)?;
        if let Some(artifact_type) = manifest.non_image_type() {
            return Err(SourceError::Artifact { manifest: document.digest, artifact_type: artifact_type.to_owned() });
        }
        let config = document::read_verified(self.blobs, &manifest.config, &name)?;
        if let Some(artifact_type) = manifest.non_image_type_with_config(&config.bytes) {
            return Err(SourceError::Artifact { manifest: document.digest, artifact_type: artifact_type.to_owned() });
        }
        let parsed_config: ImageConfig = document::parse(path, &config.digest.to_string(), &config.bytes)?;
        let layers = layers(&manifest, &name, &parsed_config, &config)?;
        Ok(Image {
            names: Vec::new(),
            index: None,
            manifest: document,
            manifest_is_made: false,
            platform: parsed_config.platform(),
            config,
            parsed_config,
            layers,
        })
    }
}

/// Returns whether any entry that may be an image states a platform.
fn name_platforms(entries: &[Descriptor]) -> bool {
    entries.iter().any(|entry| entry.may_be_image() && entry.platform().is_some())
}

/// Fails if the user requested a platform, and a single image is for another one.
pub(super) fn admit(request: &PlatformRequest, digest: Digest, config: &ImageConfig) -> Result<(), SourceError> {
    match config.platform() {
        Some(actual) if request.explicit && !request.platform.accepts(&actual) => {
            let (requested, actual) = (request.platform.to_string(), actual.to_string());
            Err(SourceError::OtherPlatform { digest, requested, actual })
        }
        _ => Ok(()),
    }
}

/// Fails if the config does not list one diff ID for each layer.
pub(super) fn check_layer_count(layers: usize, parsed: &ImageConfig, config: &Document) -> Result<(), SourceError> {
    let diff_ids = parsed.rootfs.diff_ids.len();
    if layers != diff_ids {
        return Err(SourceError::LayerCount { config: config.digest, layers, diff_ids });
    }
    Ok(())
}

/// Returns whether the registry need not have layers of this type (image-spec, layer.md, "Non-Distributable Layers").
fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}

/// Combines the layers of a manifest with the diff IDs of its config.
fn layers(
    manifest: &ImageManifest,
    name: &str,
    parsed: &ImageConfig,
    config: &Document,
) -> Result<Vec<ImageLayer>, SourceError> {
    check_layer_count(manifest.layers.len(), parsed, config)?;
    let unknown = |source| SourceError::UnknownDigest { document: name.to_owned(), source };
    let layer = |(descriptor, &diff_id): (&Descriptor, _)| {
        if !is_layer(&descriptor.media_type) {
            let (manifest, media_type) = (name.to_owned(), descriptor.media_type.clone());
            return Err(SourceError::LayerType { manifest, layer: descriptor.digest.clone(), media_type });
        }
        Ok(ImageLayer {
            digest: descriptor.digest().map_err(unknown)?,
            size: descriptor.size,
            diff_id,
            media_type: descriptor.media_type.clone(),
            urls: if is_foreign(&descriptor.media_type) { descriptor.urls.clone() } else { Vec::new() },
        })
    };
    // `rootfs.diff_ids` has the order of the layers (image-spec, config.md).
    manifest.layers.iter().zip(&parsed.rootfs.diff_ids).map(layer).collect()
}

/// Returns whether layers of this type are supported. The compression in the type is ignored later: the content is inspected.
fn is_layer(media_type: &str) -> bool {
    const OCI: [&str; 2] =
        ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
    const DOCKER: [&str; 2] =
        ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
    let is_of = |kinds: [&str; 2], suffixes: [&str; 3]| {
        kinds.iter().filter_map(|kind| media_type.strip_prefix(kind)).any(|suffix| suffixes.contains(&suffix))
    };
    media_type.is_empty() || is_of(OCI, ["", "+gzip", "+zstd"]) || is_of(DOCKER, ["", ".gzip", ".zstd"])
}

#[cfg(test)]
mod tests;
