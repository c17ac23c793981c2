//! Where the content of a regular file lies in the store.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::ObjectHash;

/// The objects that hold the content of one regular file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// Whether the objects hold the content as it is; otherwise each is a zlib stream.
    pub raw: bool,
    /// The objects.
    pub objects: ContentObjects,
}

/// A file is stored whole or in chunks, never both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ContentObjects {
    /// One object of kind [`File`](super::ObjectKind::File).
    Whole(ObjectHash),
    /// Objects of kind [`Chunk`](super::ObjectKind::Chunk) that cover the file without gap or overlap, in order.
    Chunks(Arc<[Chunk]>),
}

/// A stored piece of a large file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Chunk {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Bytes of plain content.
    pub size: u64,
    /// The object that holds it.
    pub hash: ObjectHash,
}
