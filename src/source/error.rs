//! Errors from finding and reading images. Text from an image is untrusted, so messages escape and shorten it.

use std::io;
use std::path::PathBuf;

use crate::image::{Digest, NameError};
use crate::message::quoted;
use crate::registry::RegistryError;
use crate::tar_archive::{MemberError, TarError};

/// An image could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A request to a registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file cannot be opened or read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// A document cannot be read to its end.
    #[error("cannot read {document} of {path:?}")]
    ReadDocument {
        /// The directory or archive.
        path: PathBuf,
        /// The file's name or digest.
        document: String,
        /// Error of the operating system or the decompressor.
        source: io::Error,
    },
    /// The path is a directory, device or pipe.
    #[error("{path:?} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The archive is damaged or not a tar file.
    #[error("cannot read {path:?} as a tar archive")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The cause.
        source: ArchiveError,
    },
    /// The directory or archive is not in the OCI image layout.
    #[error("{path:?} is not an OCI image layout: {reason}")]
    NotALayout {
        /// The directory or archive.
        path: PathBuf,
        /// What is missing, and what the path may be instead.
        reason: &'static str,
    },
    /// The version of the layout is not supported.
    #[error("{path:?} is an OCI image layout of version {}, but only version 1 is supported", quoted(version))]
    LayoutVersion {
        /// The directory or archive.
        path: PathBuf,
        /// Version in the file `oci-layout`.
        version: String,
    },
    /// The archive is not in the format of `docker save`.
    #[error("{path:?} is not a docker archive: {reason}")]
    NotADockerArchive {
        /// The archive.
        path: PathBuf,
        /// What is missing, and what the path may be instead.
        reason: &'static str,
    },
    /// `manifest.json` of a docker archive lists a file that the archive does not contain.
    #[error("{path:?} lists the file {}, but does not contain it", quoted(member))]
    MissingMember {
        /// The archive.
        path: PathBuf,
        /// Name of the file in the list.
        member: String,
    },
    /// The file name of a config contains another digest than that of its content.
    #[error("{path:?} contains a config named {}, but its digest is {actual}", quoted(member))]
    ConfigName {
        /// The archive.
        path: PathBuf,
        /// File name of the config.
        member: String,
        /// Digest of its content.
        actual: Digest,
    },
    /// A layer of a docker archive cannot be unpacked.
    #[error("cannot unpack the layer {} of {path:?}", quoted(member))]
    UnpackLayer {
        /// The archive.
        path: PathBuf,
        /// File name of the layer.
        member: String,
        /// The cause.
        source: io::Error,
    },
    /// No image has this name or digest.
    #[error("{path:?} has no image {}; available: {}", quoted(reference), list(names))]
    UnknownReference {
        /// The directory or archive.
        path: PathBuf,
        /// The requested name or digest.
        reference: String,
        /// The names and digests of the images.
        names: Vec<String>,
    },
    /// The path contains several images, and the user chose none.
    #[error("{path:?} contains several images: append a colon and one of these references: {}", list(names))]
    SeveralImages {
        /// The directory or archive.
        path: PathBuf,
        /// The names and digests of the images.
        names: Vec<String>,
    },
    /// The list of images is empty.
    #[error("{path:?} lists no image")]
    NoImage {
        /// The directory or archive.
        path: PathBuf,
    },
    /// The index contains no image for the platform.
    #[error("there is no image for {requested}; available platforms: {}", list(offered))]
    NoSuchPlatform {
        /// The requested platform.
        requested: String,
        /// The platforms in the index.
        offered: Vec<String>,
    },
    /// The index contains only variants that not every machine of the architecture supports.
    #[error("no image runs on every {requested} machine: request one of the available variants, {}", list(offered))]
    VariantNeeded {
        /// The requested platform, without a variant.
        requested: String,
        /// The available platforms of the same architecture.
        offered: Vec<String>,
    },
    /// The only image is for another platform than the requested one.
    #[error("image {digest} is for {}, not for {requested}", quoted(actual))]
    OtherPlatform {
        /// Digest of the manifest, or of the config in a docker archive.
        digest: Digest,
        /// The requested platform.
        requested: String,
        /// Platform of the image.
        actual: String,
    },
    /// A document exceeds the size limit.
    #[error("{document} of {path:?} is {size} bytes long, more than the limit of {limit}")]
    DocumentTooLarge {
        /// The directory or archive.
        path: PathBuf,
        /// The file's name or digest.
        document: String,
        /// Its size, or the size in its descriptor.
        size: u64,
        /// Maximum size in bytes.
        limit: u64,
    },
    /// A document cannot be parsed.
    #[error("cannot parse {document} of {path:?}")]
    InvalidDocument {
        /// The directory or archive.
        path: PathBuf,
        /// The file's name or digest.
        document: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// A digest is malformed or uses an unsupported algorithm.
    #[error("{document} contains a digest that strata cannot verify")]
    UnknownDigest {
        /// The document that contains it.
        document: String,
        /// The parse error.
        source: NameError,
    },
    /// A blob is missing.
    #[error("blob {digest} does not exist")]
    MissingBlob {
        /// The blob.
        digest: Digest,
        /// Path of the missing file, or of the archive.
        path: PathBuf,
    },
    /// The size of a blob differs from its descriptor.
    #[error("blob {digest} of {path:?} is {actual} bytes long, but its descriptor states {expected}")]
    WrongSize {
        /// The directory or archive.
        path: PathBuf,
        /// The blob.
        digest: Digest,
        /// Size in the descriptor.
        expected: u64,
        /// Actual size.
        actual: u64,
    },
    /// The content of a blob does not match its digest.
    #[error("blob {expected} of {path:?} is damaged: its digest is {actual}")]
    WrongDigest {
        /// The directory or archive.
        path: PathBuf,
        /// Digest in the descriptor.
        expected: Digest,
        /// Digest of the content.
        actual: Digest,
    },
    /// The manifest is in Docker's obsolete schema 1.
    #[error(
        "{document} is a Docker schema 1 manifest, which is not supported: pull and push the image with a current tool"
    )]
    Schema1 {
        /// The manifest.
        document: String,
    },
    /// A document is neither a manifest nor an index, or it could be both.
    #[error("{document} is not a valid manifest or index: {reason}")]
    NotAManifest {
        /// The document.
        document: String,
        /// The cause.
        reason: &'static str,
    },
    /// The manifest describes an artifact that is not an image.
    #[error("{manifest} is not an image but an artifact of type {}", quoted(artifact_type))]
    Artifact {
        /// The manifest.
        manifest: Digest,
        /// Type of the artifact.
        artifact_type: String,
    },
    /// A layer is encrypted or its media type is not supported.
    #[error("{manifest} has a layer {} of type {}, which is not supported", quoted(layer), quoted(media_type))]
    LayerType {
        /// The manifest.
        manifest: String,
        /// Digest of the layer.
        layer: String,
        /// Media type in the manifest.
        media_type: String,
    },
    /// Indexes are nested too deeply.
    #[error("index {digest} is nested too deep: strata reads at most {limit} levels of indexes")]
    NestedTooDeep {
        /// The innermost index, which was not read.
        digest: Digest,
        /// Maximum nesting depth.
        limit: usize,
    },
    /// Too many documents had to be read to find one image.
    #[error("no image was found in the first {limit} manifests and indexes")]
    TooManyDocuments {
        /// Maximum number of documents.
        limit: usize,
    },
    /// Config and manifest list different numbers of layers.
    #[error("manifest lists {layers} layers, but config {config} lists {diff_ids}")]
    LayerCount {
        /// The config.
        config: Digest,
        /// Number of layers in the manifest.
        layers: usize,
        /// Number of diff IDs in the config.
        diff_ids: usize,
    },
    /// The layer does not belong to this image.
    #[error("{path:?} has no layer {digest}")]
    UnknownLayer {
        /// The archive.
        path: PathBuf,
        /// The layer.
        digest: Digest,
    },
}

/// A tar file with an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file is not a tar archive, or a header in it is damaged.
    #[error(transparent)]
    Malformed(TarError),
    /// The archive is truncated.
    #[error("the file is truncated: it ends inside a member")]
    Truncated,
    /// The archive cannot be read or decompressed.
    #[error("reading failed after byte {position}")]
    Read {
        /// Number of bytes read before the error, in the uncompressed archive.
        position: u64,
        /// Error of the operating system or the decompressor.
        source: io::Error,
    },
    /// The archive has too many members, or their names are too long in total.
    #[error("the archive has more than {limit} members, or their names have more than {name_limit} bytes in total")]
    TooManyMembers {
        /// Maximum number of members.
        limit: usize,
        /// Maximum total length of names in bytes.
        name_limit: usize,
    },
    /// The uncompressed archive exceeds the size limit.
    #[error("the archive unpacks to more than {limit} bytes")]
    TooLarge {
        /// Maximum number of bytes.
        limit: u64,
    },
    /// A link points to a long chain of other links.
    #[error("member {} is a link that leads through too many other links", quoted(member))]
    TooManyLinks {
        /// The first link.
        member: String,
    },
    /// A member is stored as a sparse file.
    #[error("member {} is stored as a sparse file: create the archive again without --sparse", quoted(member))]
    Sparse {
        /// The member.
        member: String,
    },
}

impl From<TarError> for ArchiveError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Member { problem: MemberError::Truncated, .. } => Self::Truncated,
            error => Self::Malformed(error),
        }
    }
}

/// Maximum number of names in a message.
const MAX_LISTED: usize = 20;
/// Formats a list of names, or returns "none".
fn list(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(MAX_LISTED).map(|name| quoted(name)).collect();
    if names.len() > MAX_LISTED {
        shown.push(format!("{} more", names.len() - MAX_LISTED));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_messages_are_escaped_and_shortened() {
        assert_eq!(quoted("a\x1b[31m\n"), r#""a\u{1b}[31m\n""#);
        assert_eq!(quoted(&"ä".repeat(201)).chars().count(), 203);
        assert_eq!(list(&[]), "none");
        let names: Vec<String> = (0..22).map(|number| number.to_string()).collect();
        assert!(list(&names).ends_with(r#""19", 2 more"#));
        assert_eq!(list(&names[..2]), r#""0", "1""#);
    }
}
