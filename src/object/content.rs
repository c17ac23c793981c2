//! References to the objects that store the content of a regular file.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{HashAlgorithm, ObjectHash};

/// The objects that store the content of one regular file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// Whether the objects are uncompressed; otherwise each is a zlib stream.
    pub raw: bool,
    /// The objects.
    pub objects: ContentObjects,
}

/// Objects of a file that is stored whole or in chunks, or the place of content that is in no object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContentObjects {
    /// One object of kind [`File`](super::ObjectKind::File).
    Whole(ObjectHash),
    /// Objects of kind [`Chunk`](super::ObjectKind::Chunk), in order, that cover the file without gap or overlap. The names of
    /// all of them have the same hash algorithm.
    Chunks(Arc<[Chunk]>),
    /// No object: the content is in a temporary file. Such a file is never published.
    Unstored {
        /// Number of the temporary file.
        file: u32,
        /// Offset of the content in that file in bytes.
        offset: u64,
    },
}

impl ContentObjects {
    /// Returns the hash algorithm of the objects, or `None` if there is no object.
    pub fn algorithm(&self) -> Option<HashAlgorithm> {
        match self {
            Self::Whole(hash) => Some(hash.algorithm()),
            Self::Chunks(chunks) => chunks.first().map(|chunk| chunk.hash.algorithm()),
            Self::Unstored { .. } => None,
        }
    }
}

/// A stored part of a large file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chunk {
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Size of the uncompressed content in bytes.
    pub size: u64,
    /// Hash of the object.
    pub hash: ObjectHash,
}
