//! Why an image cannot be had. What an image says about itself is quoted and cut, since anybody may have written it.

use std::io;
use std::path::PathBuf;

use crate::image::{Digest, NameError};
use crate::message::quoted;
use crate::registry::RegistryError;

/// Why an image could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A registry does not give the image.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A file cannot be opened or read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A document cannot be read to its end.
    #[error("cannot read {document} of {path:?}")]
    ReadDocument {
        /// The directory or archive.
        path: PathBuf,
        /// The file's name or digest.
        document: String,
        /// What the system or the decompressor says.
        source: io::Error,
    },
    /// A directory, device or pipe lies where a file should.
    #[error("{path:?} is not a regular file")]
    NotAFile {
        /// What lies there.
        path: PathBuf,
    },
    /// The archive around an image is damaged, or not a tar file at all.
    #[error("cannot use {path:?} as a tar archive")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        source: ArchiveError,
    },
    /// The directory or archive is not in the OCI image layout.
    #[error("{path:?} is not an OCI image layout: {reason}")]
    NotALayout {
        /// The directory or archive.
        path: PathBuf,
        /// How that shows, and what it may be instead.
        reason: &'static str,
    },
    /// The layout is of a version that is not known.
    #[error("{path:?} is an OCI image layout of version {}, and only version 1 can be read", quoted(version))]
    LayoutVersion {
        /// The directory or archive.
        path: PathBuf,
        /// The version it claims.
        version: String,
    },
    /// The archive was not made by `docker save` or its like.
    #[error("{path:?} is not a docker archive: {reason}")]
    NotADockerArchive {
        /// The archive.
        path: PathBuf,
        /// How that shows, and what it may be instead.
        reason: &'static str,
    },
    /// The archive lists a file that it does not hold.
    #[error("{path:?} lists the file {}, but does not hold it", quoted(member))]
    MissingMember {
        /// The archive.
        path: PathBuf,
        /// The file as it is listed.
        member: String,
    },
    /// The archive names a config by another digest than its own.
    #[error("{path:?} holds a config named {}, but its digest is {actual}", quoted(member))]
    ConfigName {
        /// The archive.
        path: PathBuf,
        /// The config's file name.
        member: String,
        /// The digest of what it holds.
        actual: Digest,
    },
    /// A layer of a docker archive cannot be unpacked.
    #[error("cannot unpack the layer {} of {path:?}", quoted(member))]
    UnpackLayer {
        /// The archive.
        path: PathBuf,
        /// The layer's file name.
        member: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// No image has this name or digest.
    #[error("{path:?} has no image {}; it has {}", quoted(reference), list(names))]
    UnknownReference {
        /// The directory or archive.
        path: PathBuf,
        /// What was asked for.
        reference: String,
        /// What there is.
        names: Vec<String>,
    },
    /// Several images could be meant.
    #[error("{path:?} has several images, add one of these after a colon: {}", list(names))]
    SeveralImages {
        /// The directory or archive.
        path: PathBuf,
        /// What there is.
        names: Vec<String>,
    },
    /// There is nothing to choose from.
    #[error("{path:?} lists no image")]
    NoImage {
        /// The directory or archive.
        path: PathBuf,
    },
    /// An index has nothing for the platform.
    #[error("there is no image for {requested}; choose a platform of {}", list(offered))]
    NoSuchPlatform {
        /// The platform that was asked for.
        requested: String,
        /// The platforms there are.
        offered: Vec<String>,
    },
    /// An index has only what not every machine of the architecture runs.
    #[error("there is no image for every {requested}, but only for {}: name the variant that is wanted", list(offered))]
    VariantNeeded {
        /// The platform that was asked for, without a variant.
        requested: String,
        /// The platforms of its architecture.
        offered: Vec<String>,
    },
    /// The only image is for another platform than the one that was asked for.
    #[error("image {digest} is for {}, not for {requested}", quoted(actual))]
    OtherPlatform {
        /// The image's manifest, or its config where it has none.
        digest: Digest,
        /// The platform that was asked for.
        requested: String,
        /// The platform of the image.
        actual: String,
    },
    /// A document is larger than any honest one.
    #[error("{document} of {path:?} is {size} bytes long, more than the {limit} that are read")]
    DocumentTooLarge {
        /// The directory or archive.
        path: PathBuf,
        /// The file's name or digest.
        document: String,
        /// Its size, or what was promised.
        size: u64,
        /// The size up to which it is read.
        limit: u64,
    },
    /// A document cannot be parsed.
    #[error("cannot parse {document} of {path:?}")]
    InvalidDocument {
        /// The directory or archive.
        path: PathBuf,
        /// The file's name or digest.
        document: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A digest is in a form that cannot be verified.
    #[error("{document} names a blob by a digest that cannot be verified")]
    UnknownDigest {
        /// The document that names it.
        document: String,
        /// The digest.
        source: NameError,
    },
    /// A blob is not there.
    #[error("there is no blob {digest}")]
    MissingBlob {
        /// The blob.
        digest: Digest,
        /// The file that should hold it, or the archive.
        path: PathBuf,
    },
    /// A blob is longer or shorter than promised.
    #[error("blob {digest} of {path:?} is {actual} bytes long, but its descriptor promises {expected}")]
    WrongSize {
        /// The directory or archive.
        path: PathBuf,
        /// The blob.
        digest: Digest,
        /// What its descriptor says.
        expected: u64,
        /// What is there.
        actual: u64,
    },
    /// A blob holds other bytes than its name promises.
    #[error("blob {expected} of {path:?} has the digest {actual}: it is damaged")]
    WrongDigest {
        /// The directory or archive.
        path: PathBuf,
        /// The digest it should have.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// The image is of a form that Docker has left behind.
    #[error(
        "{document} is a Docker schema 1 manifest, which is no longer read: pull and push the image with a current tool"
    )]
    Schema1 {
        /// The manifest.
        document: String,
    },
    /// A document is neither a manifest nor an index, or looks like both.
    #[error("{document} is not to be used: {reason}")]
    NotAManifest {
        /// The document.
        document: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The manifest describes something that is no image.
    #[error("{manifest} is no image but an artifact of the type {}", quoted(artifact_type))]
    Artifact {
        /// The manifest.
        manifest: Digest,
        /// What it is.
        artifact_type: String,
    },
    /// A layer is encrypted, or of a kind that is not known.
    #[error("{manifest} has a layer {} of the type {}, which cannot be unpacked", quoted(layer), quoted(media_type))]
    LayerType {
        /// The manifest.
        manifest: String,
        /// The layer's digest.
        layer: String,
        /// What the manifest says that it is.
        media_type: String,
    },
    /// Indexes lead to indexes without an end.
    #[error("index {digest} lies below {limit} other indexes")]
    NestedTooDeep {
        /// The index that is not read any more.
        digest: Digest,
        /// How many may lie above.
        limit: usize,
    },
    /// Too many documents had to be read to find one image.
    #[error("no image was found in the first {limit} manifests and indexes")]
    TooManyDocuments {
        /// How many were read.
        limit: usize,
    },
    /// Config and manifest do not belong together.
    #[error("manifest lists {layers} layers, but config {config} lists {diff_ids}")]
    LayerCount {
        /// The config.
        config: Digest,
        /// Number of layers in the manifest.
        layers: usize,
        /// Number of diff IDs in the config.
        diff_ids: usize,
    },
    /// The layer is not one of this image.
    #[error("{path:?} has no layer {digest}")]
    UnknownLayer {
        /// The archive.
        path: PathBuf,
        /// The layer.
        digest: Digest,
    },
}

/// What is wrong with a tar file that holds an image.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A header cannot be understood.
    #[error("the header at byte {position} is damaged, or this is no tar archive")]
    Header {
        /// Where it begins, in the unpacked archive.
        position: u64,
        /// What is wrong with it.
        source: tar_core::parse::ParseError,
    },
    /// The headers of one member have no end.
    #[error("the headers at byte {position} are longer than {limit} bytes")]
    HeadersTooLong {
        /// Where they begin, in the unpacked archive.
        position: u64,
        /// Up to how many bytes are read.
        limit: usize,
    },
    /// The archive ends early.
    #[error("it ends inside of a member: the file was cut off")]
    Truncated,
    /// The archive cannot be read or unpacked.
    #[error("it cannot be read on after byte {position}")]
    Read {
        /// Up to where it was read, in the unpacked archive.
        position: u64,
        /// What the system or the decompressor says.
        source: io::Error,
    },
    /// There are more members than any honest archive has.
    #[error("it has more than {limit} members, or names of more than {name_limit} bytes together")]
    TooManyMembers {
        /// How many members are listed.
        limit: usize,
        /// How many bytes of names are listed.
        name_limit: usize,
    },
    /// It unpacks to more than any honest archive.
    #[error("it unpacks to more than {limit} bytes")]
    TooLarge {
        /// Up to how many bytes are read.
        limit: u64,
    },
    /// Links lead to links.
    #[error("member {} is a link that leads to too many others", quoted(member))]
    TooManyLinks {
        /// The first link.
        member: String,
    },
    /// A member is stored in a form that cannot be read in place.
    #[error("member {} is stored as a sparse file: make the archive anew without --sparse", quoted(member))]
    Sparse {
        /// The member.
        member: String,
    },
}

/// How many names a message lists.
const MAX_LISTED: usize = 20;
/// Lists names, or says that there are none.
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
    fn message_shows_foreign_names_tamed_and_cut() {
        assert_eq!(quoted("a\x1b[31m\n"), r#""a\u{1b}[31m\n""#);
        assert_eq!(quoted(&"ä".repeat(201)).chars().count(), 203);
        assert_eq!(list(&[]), "none");
        let names: Vec<String> = (0..22).map(|number| number.to_string()).collect();
        assert!(list(&names).ends_with(r#""19", 2 more"#));
        assert_eq!(list(&names[..2]), r#""0", "1""#);
    }
}
