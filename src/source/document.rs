//! Reads the JSON documents that describe an image: limits their size, verifies them, and keeps them byte for byte.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::SourceError;
use crate::image::{Descriptor, Digest, Document, DocumentKind, DocumentOutline, MAX_DOCUMENT_SIZE, parse_object};
use crate::observer::Reporter;

/// An open file or blob and its size.
pub(super) struct Blob {
    pub(super) size: u64,
    pub(super) reader: Box<dyn Read + Send>,
}

/// A collection of blobs by digest: a layout, an archive, or a repository at a registry.
pub(super) trait Blobs {
    /// Returns the path of the layout or archive, or the name of an image at a registry, for messages.
    fn path(&self) -> &Path;

    /// Returns the reporter to the observer of the source.
    fn reporter(&self) -> &Reporter;

    /// Opens a blob. Fails with [`SourceError::MissingBlob`] if it does not exist.
    fn open_blob(&self, digest: &Digest) -> Result<Blob, SourceError>;

    /// Opens a manifest or an index. Registries have a separate path for these.
    fn open_manifest(&self, digest: &Digest) -> Result<Blob, SourceError> {
        self.open_blob(digest)
    }
}

/// Media type of the artifact manifest of image-spec 1.1.0-rc2. The final version has none: artifacts use image manifests.
const ARTIFACT_MANIFEST: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// Opens a blob by digest.
type Open<'a> = &'a dyn Fn(&Digest) -> Result<Blob, SourceError>;

/// Reads the manifest or index that `descriptor` points to and verifies its size and digest.
pub(super) fn read_manifest(blobs: &dyn Blobs, descriptor: &Descriptor, from: &str) -> Result<Document, SourceError> {
    read_with(blobs.path(), &|digest| blobs.open_manifest(digest), descriptor, from)
}

/// Reads the blob that `descriptor` points to and verifies its size and digest.
pub(super) fn read_verified(blobs: &dyn Blobs, descriptor: &Descriptor, from: &str) -> Result<Document, SourceError> {
    read_with(blobs.path(), &|digest| blobs.open_blob(digest), descriptor, from)
}

fn read_with(path: &Path, open: Open<'_>, descriptor: &Descriptor, from: &str) -> Result<Document, SourceError> {
    let expected =
        descriptor.digest().map_err(|source| SourceError::UnknownDigest { document: from.to_owned(), source })?;
    // Checked before the blob is opened, so that a document that is too large is not downloaded.
    check_size(path, &expected.to_string(), descriptor.size)?;
    let blob = open(&expected)?;
    if blob.size != descriptor.size {
        let (path, digest) = (path.to_owned(), expected);
        return Err(SourceError::WrongSize { path, digest, expected: descriptor.size, actual: blob.size });
    }
    let document = Document::new(read_bounded(path, &expected.to_string(), blob)?);
    if document.digest != expected {
        return Err(SourceError::WrongDigest { path: path.to_owned(), expected, actual: document.digest });
    }
    Ok(document)
}

/// Reads a document of up to [`MAX_DOCUMENT_SIZE`] bytes.
pub(super) fn read_bounded(path: &Path, document: &str, blob: Blob) -> Result<Vec<u8>, SourceError> {
    check_size(path, document, blob.size)?;
    let mut bytes = Vec::new();
    blob.reader.take(blob.size).read_to_end(&mut bytes).map_err(|source| SourceError::ReadDocument {
        path: path.to_owned(),
        document: document.to_owned(),
        source,
    })?;
    Ok(bytes)
}

fn check_size(path: &Path, document: &str, size: u64) -> Result<(), SourceError> {
    if size <= MAX_DOCUMENT_SIZE {
        return Ok(());
    }
    let (path, document) = (path.to_owned(), document.to_owned());
    Err(SourceError::DocumentTooLarge { path, document, size, limit: MAX_DOCUMENT_SIZE })
}

/// Parses a document that is a JSON object.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, document: &str, bytes: &[u8]) -> Result<T, SourceError> {
    parse_object(bytes).map_err(|source| invalid(path, document, source))
}

/// Parses a document that is a JSON list.
pub(super) fn parse_list<T: DeserializeOwned>(path: &Path, name: &str, bytes: &[u8]) -> Result<Vec<T>, SourceError> {
    serde_json::from_slice(bytes).map_err(|source| invalid(path, name, source))
}

fn invalid(path: &Path, document: &str, source: serde_json::Error) -> SourceError {
    let (path, document) = (path.to_owned(), document.to_owned());
    SourceError::InvalidDocument { path, document, source }
}

/// Returns whether a document is an index or a manifest.
///
/// The members of the document decide. Neither the media type in the document nor `media_type`, which the index or registry
/// states, may contradict the members. A document that could be both is rejected, because two clients could read two different
/// images from it (CVE-2021-41190).
pub(super) fn kind(path: &Path, name: &str, bytes: &[u8], media_type: &str) -> Result<DocumentKind, SourceError> {
    let outline: DocumentOutline = parse(path, name, bytes)?;
    let refuse = |reason| SourceError::NotAManifest { document: name.to_owned(), reason };
    if outline.is_schema_1() {
        return Err(SourceError::Schema1 { document: name.to_owned() });
    }
    if outline.media_type.as_deref().unwrap_or(media_type) == ARTIFACT_MANIFEST {
        let artifact_type = outline.artifact_type.unwrap_or_else(|| ARTIFACT_MANIFEST.to_owned());
        return Err(SourceError::Artifact { manifest: Digest::of(bytes), artifact_type });
    }
    // image-spec, manifest.md and image-index.md: the value MUST be 2.
    if outline.schema_version.is_some_and(|version| version != 2) {
        return Err(refuse("its schemaVersion is not 2"));
    }
    let own_type = outline.media_type.unwrap_or_default();
    let is_called_index = DocumentKind::of_media_type(if own_type.is_empty() { media_type } else { &own_type })
        == Some(DocumentKind::Index);
    let kind = match (outline.manifests.is_some(), outline.layers.is_some() || outline.config.is_some()) {
        (true, true) => return Err(refuse("it looks like an index and a manifest at once")),
        (true, false) => DocumentKind::Index,
        (false, true) => DocumentKind::Manifest,
        // Go programs write `null` for an empty list.
        (false, false) if is_called_index => DocumentKind::Index,
        (false, false) => return Err(refuse("it is neither a manifest nor an index")),
    };
    let contradicts = |claim: &str| DocumentKind::of_media_type(claim).is_some_and(|claimed| claimed != kind);
    if contradicts(&own_type) || contradicts(media_type) {
        return Err(refuse("its media type says index and its content manifest, or the reverse"));
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

    fn kind_of(json: &str, media_type: &str) -> Result<DocumentKind, SourceError> {
        kind(Path::new("layout"), "document", json.as_bytes(), media_type)
    }

    #[test]
    fn members_decide_the_kind_of_a_document() {
        for media_type in ["", "text/plain", MANIFEST] {
            assert_eq!(kind_of(r#"{"config":{},"layers":[]}"#, media_type).unwrap(), DocumentKind::Manifest);
        }
        assert_eq!(kind_of(r#"{"schemaVersion":2,"manifests":[]}"#, INDEX).unwrap(), DocumentKind::Index);
        assert_eq!(kind_of(r#"{"manifests":[],"layers":null}"#, "").unwrap(), DocumentKind::Index);
        assert_eq!(kind_of(r#"{"schemaVersion":2,"manifests":null}"#, INDEX).unwrap(), DocumentKind::Index);
    }

    #[test]
    fn ambiguous_document_is_rejected() {
        for (json, media_type) in [
            (r#"{"manifests":[],"layers":[]}"#.to_owned(), ""),
            (r#"{"manifests":[],"config":{}}"#.to_owned(), INDEX),
            (r#"{"manifests":[]}"#.to_owned(), MANIFEST),
            (r#"{"layers":[]}"#.to_owned(), INDEX),
            (format!(r#"{{"mediaType":"{INDEX}","layers":[]}}"#), ""),
            (r#"{"schemaVersion":3,"layers":[]}"#.to_owned(), ""),
            (r#"{"schemaVersion":2}"#.to_owned(), MANIFEST),
        ] {
            assert!(matches!(kind_of(&json, media_type), Err(SourceError::NotAManifest { .. })), "{json}");
        }
    }

    #[test]
    fn schema_1_has_its_own_error() {
        for json in [r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#, r#"{"fsLayers":[]}"#] {
            assert!(matches!(kind_of(json, ""), Err(SourceError::Schema1 { .. })), "{json}");
        }
    }

    #[test]
    fn document_is_read_up_to_the_limit() {
        let read = |size: u64| {
            let blob = Blob { size, reader: Box::new(std::io::repeat(b' ')) };
            read_bounded(Path::new("layout"), "document", blob)
        };
        assert_eq!(read(MAX_DOCUMENT_SIZE - 1).unwrap().len() as u64, MAX_DOCUMENT_SIZE - 1);
        assert_eq!(read(MAX_DOCUMENT_SIZE).unwrap().len() as u64, MAX_DOCUMENT_SIZE);
        assert!(matches!(read(MAX_DOCUMENT_SIZE + 1), Err(SourceError::DocumentTooLarge { .. })));
    }
}
