//! Objects: file content and databases in the form in which they are stored.
//!
//! An object is named by the hash of its *stored* bytes, so the same content with two encodings is two objects. Therefore every
//! encoder here must produce the same bytes for the same content on every machine and with any number of threads.

mod algorithm;
mod chunk;
mod content;
mod encode;
mod hash;
#[cfg(feature = "isal")]
mod igzip;
mod inflate;
mod size_limit;
mod unsupported;
mod zlib;

pub use algorithm::{HashAlgorithm, ObjectHasher, ParseAlgorithmError};
pub use chunk::{ChunkSizes, Chunker};
pub use content::{Chunk, Content, ContentObjects};
pub use encode::{Compression, DecodeError, Encoder, EncoderId, decode, decode_alone};
pub use hash::{ObjectHash, ObjectKind, ParseHashError};
pub use size_limit::SizeLimit;
pub use unsupported::UnsupportedCompression;
pub(crate) use unsupported::ZSTD_MAGIC;
