//! The JSON documents that describe an image: manifests, indexes and configs.

use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Digest, parse_object};

/// Maximum size of an image manifest, index or config in bytes, at a source and in a repository. Clients and registries should
/// support manifests of at least 4 megabytes (distribution-spec, "Pushing Manifests").
pub(crate) const MAX_DOCUMENT_SIZE: u64 = 4 << 20;

/// A document, byte for byte as it was received.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Digest of the bytes.
    pub digest: Digest,
}

impl Document {
    /// Computes the digest of `bytes`.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let digest = Digest::of(&bytes);
        Self { bytes, digest }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.digest, self.bytes.len())
    }
}

/// Presence of the members that distinguish the kinds of documents; most values are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DocumentOutline {
    pub(crate) schema_version: Option<u64>,
    pub(crate) media_type: Option<String>,
    pub(crate) manifests: Option<IgnoredAny>,
    pub(crate) layers: Option<IgnoredAny>,
    pub(crate) config: Option<IgnoredAny>,
    pub(crate) fs_layers: Option<IgnoredAny>,
    pub(crate) artifact_type: Option<String>,
}

impl DocumentOutline {
    pub(crate) fn is_schema_1(&self) -> bool {
        // `fsLayers` exists only in schema 1.
        self.schema_version == Some(1) || self.fs_layers.is_some()
    }
}

/// Returns whether a document is a Docker manifest of schema version 1. Its digest is not computed over all its bytes, but over
/// the part that its signatures cover.
pub(crate) fn is_schema_1(bytes: &[u8]) -> bool {
    parse_object::<DocumentOutline>(bytes).is_ok_and(|outline| outline.is_schema_1())
}
