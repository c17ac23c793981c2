//! Objects: what file content and databases become before they lie in the store.
//!
//! An object is named by the hash of its *stored* bytes. The same content encoded in two ways is therefore two objects,
//! and everything here must give the same bytes for the same content on every machine and at any number of threads.

mod chunk;
mod content;
mod encode;
mod hash;
#[cfg(feature = "isal")]
mod igzip;
mod inflate;
mod size_limit;
mod zlib;

pub use chunk::{ChunkSizes, Chunker};
pub use content::{Chunk, Content, ContentObjects};
pub use encode::{Compression, DecodeError, Encoder, EncoderId, decode, decode_alone};
pub use hash::{ObjectHash, ObjectKind, ParseHashError};
pub use size_limit::SizeLimit;
