//! The small JSON files that describe an image.

use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Digest, parse_object};

/// The size up to which documents are read, in bytes: every registry takes as much (distribution-spec, "Pushing Manifests").
pub(crate) const MAX_DOCUMENT_SIZE: u64 = 4 << 20;

/// A document as it was received, to the byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
}

impl Document {
    /// Keeps `bytes` under their digest.
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

/// Which members a document has, whatever they hold.
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
        self.schema_version == Some(1) || self.fs_layers.is_some()
    }
}

/// Tells whether a document is of the form of schema version 1. Its digest is not that of
/// all its bytes, but of what its signatures are for.
pub(crate) fn is_schema_1(bytes: &[u8]) -> bool {
    parse_object::<DocumentOutline>(bytes).is_ok_and(|outline| outline.is_schema_1())
}
