//! Reads images from registries, OCI image layouts (directories and archives), and docker archives.
//!
//! A [`Source`] returns the documents that describe an image (index, manifest, config), verified and byte for byte, and its
//! layers as unverified streams. The reader of a layer must check its size and digests.
//!
//! No layer is unpacked to disk or completely in memory: for each layer that is read, a compressed archive is decompressed
//! again from its start.

mod argument;
mod compression;
mod docker_archive;
mod document;
mod error;
mod oci_layout;
mod registry_image;
mod resolve;
mod tar_index;
mod tar_stream;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

pub use argument::{ArgumentError, ImageArgument};
pub use docker_archive::DockerArchive;
pub use error::{ArchiveError, SourceError};
pub use oci_layout::OciLayout;
pub use registry_image::RegistryImage;

use crate::image::{ChainId, DiffId, Digest, Document, FullName, ImageConfig, ImageName, NameError, Platform};
use crate::registry::Registries;

/// One image, for one or several platforms.
pub trait Source: Send + Sync {
    /// Finds the image for a platform, and verifies the sizes and digests of its index, manifest and config.
    ///
    /// Layers are not accessed: a missing layer is an error only in [`open_layer`](Self::open_layer).
    fn resolve(&self, request: &PlatformRequest) -> Result<Image, SourceError>;

    /// Finds the images for the platforms `wanted`, or for all platforms of the image: only Linux, in the order of the index, and
    /// each platform once. The images are verified as in [`resolve`](Self::resolve).
    ///
    /// Fails if there is no image for one of the platforms `wanted`.
    fn resolve_each(&self, wanted: Option<&[Platform]>) -> Result<Vec<(Platform, Image)>, SourceError>;

    /// Opens a layer of an image that this source has resolved. The caller must verify size and digest.
    fn open_layer(&self, layer: &ImageLayer) -> Result<LayerBlob, SourceError>;

    /// Opens a layer like [`open_layer`](Self::open_layer), but returns `None` instead of waiting if the maximum number of
    /// downloads from the registry is under way.
    fn try_open_layer(&self, layer: &ImageLayer) -> Result<Option<LayerBlob>, SourceError> {
        self.open_layer(layer).map(Some)
    }

    /// Returns whether layers are downloaded. Then the caller should open several at once, and avoid opening one twice.
    fn is_remote(&self) -> bool {
        false
    }

    /// Returns the mirror from which a layer was last read; `None` for the registry itself and for local images.
    fn mirror_of(&self, _layer: &Digest) -> Option<String> {
        None
    }
}

/// The unverified bytes of a layer.
pub struct LayerBlob {
    reader: Box<dyn Read + Send>,
    is_ready: Readiness,
}

/// Returns whether a read would succeed without waiting.
pub type Readiness = Box<dyn Fn() -> bool + Send>;

impl LayerBlob {
    /// Wraps a layer on this machine.
    pub fn local(reader: impl Read + Send + 'static) -> Self {
        Self { reader: Box::new(reader), is_ready: Box::new(|| true) }
    }

    /// Wraps a layer that is being downloaded.
    pub fn remote(reader: impl Read + Send + 'static, is_ready: impl Fn() -> bool + Send + 'static) -> Self {
        Self { reader: Box::new(reader), is_ready: Box::new(is_ready) }
    }

    /// Returns whether a read would succeed without waiting.
    pub fn is_ready(&self) -> bool {
        (self.is_ready)()
    }

    /// Splits the blob into its bytes and its readiness.
    pub fn into_parts(self) -> (Box<dyn Read + Send>, Readiness) {
        (self.reader, self.is_ready)
    }
}

impl Read for LayerBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// Opens the source of an image, with the observer of `registries`. For an image at a registry, no request is sent yet.
pub fn open(argument: &ImageArgument, registries: &Registries) -> Result<Box<dyn Source>, SourceError> {
    Ok(match argument {
        ImageArgument::OciLayout { directory, reference } => {
            Box::new(OciLayout::open(directory, reference.as_deref())?.with_reporter(registries.reporter()))
        }
        ImageArgument::OciArchive { file, reference } => {
            Box::new(OciLayout::open_archive(file, reference.as_deref())?.with_reporter(registries.reporter()))
        }
        ImageArgument::DockerArchive { file, reference } => Box::new(DockerArchive::open(file, reference.as_deref())?),
        ImageArgument::Registry { .. } => {
            let location = argument.registry_location().expect("the argument is an image at a registry");
            Box::new(RegistryImage::new(registries.clone(), location))
        }
    })
}

/// Request for the image of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformRequest {
    /// Platform on which the image should run.
    pub platform: Platform,
    /// Whether the user requested the platform. Otherwise, the platform only selects among several images: a single image is
    /// accepted for any platform, unless an index states the platform of that image.
    pub explicit: bool,
}

impl PlatformRequest {
    /// Requests exactly `platform`. If `platform` is `None`, prefers the platform of this machine.
    pub fn new(platform: Option<Platform>) -> Self {
        let explicit = platform.is_some();
        Self { platform: platform.unwrap_or_else(Platform::of_this_machine), explicit }
    }
}

/// The platforms for which an image is converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformSelection {
    /// One platform. The image has no platform directory.
    One(PlatformRequest),
    /// Several platforms, published side by side.
    Several(Vec<Platform>),
    /// All Linux platforms of the image, published side by side.
    All,
}

impl Default for PlatformSelection {
    fn default() -> Self {
        Self::One(PlatformRequest::new(None))
    }
}

impl PlatformSelection {
    /// Returns the platforms that the user requested, if any.
    pub fn asked(&self) -> Option<String> {
        match self {
            Self::One(PlatformRequest { explicit: false, .. }) => None,
            other => Some(other.to_string()),
        }
    }

    /// Finds the images. Images that are published side by side are returned with their platforms.
    pub fn resolve(&self, source: &dyn Source) -> Result<Vec<(Option<Platform>, Image)>, SourceError> {
        let side_by_side = |wanted| {
            let images = source.resolve_each(wanted)?;
            Ok(images.into_iter().map(|(platform, image)| (Some(platform), image)).collect())
        };
        match self {
            Self::One(request) => Ok(vec![(None, source.resolve(request)?)]),
            Self::Several(platforms) => side_by_side(Some(platforms)),
            Self::All => side_by_side(None),
        }
    }
}

impl FromStr for PlatformSelection {
    type Err = NameError;

    /// Parses `all`, or one platform.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "all" => Ok(Self::All),
            text => Ok(Self::One(PlatformRequest::new(Some(text.parse()?)))),
        }
    }
}

impl fmt::Display for PlatformSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(request) => write!(f, "{}", request.platform),
            Self::Several(platforms) => {
                write!(f, "{}", platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
            Self::All => f.write_str("all"),
        }
    }
}

/// An image: its verified documents and the descriptions of its layers.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    /// Full names (host, repository and tag) that the layout or archive contains for the image. Often there are none.
    pub names: Vec<FullName>,
    /// The index, if the reference pointed to one.
    pub index: Option<Document>,
    /// The image manifest.
    pub manifest: Document,
    /// Whether strata generated the manifest, because a docker archive has none.
    pub manifest_is_made: bool,
    /// Platform according to the index, or else to the config.
    pub platform: Option<Platform>,
    /// The image config.
    pub config: Document,
    /// The parsed image config.
    pub parsed_config: ImageConfig,
    /// The layers, lowest first.
    pub layers: Vec<ImageLayer>,
}

/// An image cannot be published because its name is missing, ambiguous or wrong. The user must pass `--name`.
#[derive(Debug, thiserror::Error)]
pub enum NamingError {
    /// Neither the user nor the source gives a name.
    #[error("'{0}' contains no full image name: choose a name with --name host/name:tag")]
    NoName(ImageArgument),
    /// The source contains several names.
    #[error("'{argument}' contains several image names ({}): choose one with --name", names.join(", "))]
    SeveralNames {
        /// The image, as written by the user.
        argument: ImageArgument,
        /// The names in the source.
        names: Vec<String>,
    },
    /// The digest in the name belongs to another image.
    #[error("'{argument}' cannot be published as '{name}': the digest of the image is {}", digests(found))]
    OtherDigest {
        /// The image, as written by the user.
        argument: Box<ImageArgument>,
        /// The name with its digest.
        name: Box<FullName>,
        /// Digests of the index of the image, if any, and of its manifest.
        found: Vec<Digest>,
    },
}

/// Formats the digests of an index and a manifest for a message.
fn digests(found: &[Digest]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" (its index) or ")
}

impl Image {
    /// Returns the name under which the image is published: `asked`, or else the only name in the source.
    ///
    /// Fails if the name contains a digest that is neither that of the manifest nor that of the index of the image.
    pub fn name(&self, asked: Option<&FullName>, argument: &ImageArgument) -> Result<ImageName, NamingError> {
        let name = match (asked, self.names.as_slice()) {
            (Some(name), _) | (None, [name]) => name,
            (None, []) => return Err(NamingError::NoName(argument.clone())),
            (None, names) => {
                let names = names.iter().map(ToString::to_string).collect();
                return Err(NamingError::SeveralNames { argument: argument.clone(), names });
            }
        };
        let found: Vec<Digest> = self.index.iter().chain([&self.manifest]).map(|document| document.digest).collect();
        match name.digest {
            Some(digest) if !found.contains(&digest) => {
                Err(NamingError::OtherDigest { argument: argument.clone().into(), name: name.clone().into(), found })
            }
            _ => Ok(name.name.clone()),
        }
    }

    /// Returns the chain IDs of the lowest layer, of the two lowest layers, and so on.
    pub fn chains(&self) -> Vec<ChainId> {
        ChainId::all(&self.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>())
    }
}

/// A layer as described by manifest and config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// Digest of the bytes that [`Source::open_layer`] returns.
    pub digest: Digest,
    /// Number of bytes that [`Source::open_layer`] returns.
    pub size: u64,
    /// Digest of the uncompressed tar stream.
    pub diff_id: DiffId,
    /// Media type according to the manifest; may be empty.
    pub media_type: String,
    /// Alternative URLs of a foreign layer, which the registry need not have.
    pub urls: Vec<String>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("names", &self.names)
            .field("index", &self.index)
            .field("manifest", &self.manifest)
            .field("config", &self.config)
            .field("layers", &self.layers)
            .finish_non_exhaustive()
    }
}

/// Parses a name in a layout or archive. Returns `None` unless it starts with a host.
///
/// `bitnami/nginx:1` is Docker's short form for a repository at Docker Hub, so `bitnami` is not a host.
fn full_name(text: &str) -> Option<FullName> {
    let name: FullName = text.parse().ok()?;
    let host = name.name.host();
    (host.contains(['.', ':']) || host == "localhost").then_some(name)
}

/// Returns the full names among `texts`, sorted and without duplicates.
fn full_names<'t>(texts: impl IntoIterator<Item = &'t str>) -> Vec<FullName> {
    let mut names: Vec<FullName> = texts.into_iter().filter_map(full_name).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_host_are_full() {
        let full = ["docker.io/library/a:1", "localhost/a:1", "localhost:5000/a:1", "podman:80/a:1"];
        for text in full {
            assert_eq!(full_name(text).map(|name| name.to_string()), Some(text.to_owned()));
        }
        for text in ["library/a:1", "a:1", "1", "docker.io/library/a", ""] {
            assert_eq!(full_name(text), None, "{text}");
        }
        assert_eq!(full_names(["b.org/a:1", "x", "a.org/a:1", "b.org/a:1"]).len(), 2);
    }
}
