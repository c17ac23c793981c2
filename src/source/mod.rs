//! Where images come from: a registry, a directory or an archive in the OCI image layout, or an archive of Docker's own kind.
//!
//! A [`Source`] hands out two things: the documents that describe an image, small, verified and verbatim, and its layers
//! as streams that nobody has verified yet. Who reads a layer checks its size and digests on the way.
//!
//! Nothing is ever unpacked to disk, and no layer is whole in memory: a compressed archive is unpacked anew, from its
//! start, for each layer that is read.

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

/// One image at some place, for one or several platforms.
pub trait Source: Send + Sync {
    /// Finds the image for a platform and verifies what describes it: sizes and digests of index, manifest and config.
    ///
    /// Layers are not looked at; one that is missing is an error only when it is opened.
    fn resolve(&self, request: &PlatformRequest) -> Result<Image, SourceError>;

    /// Finds the images for each of the platforms `wanted`, or for all that there are: Linux ones only, in the order of the
    /// index, and each platform once. Each is verified as by [`resolve`](Self::resolve), and comes with its platform.
    ///
    /// One that is wanted and not there is an error.
    fn resolve_each(&self, wanted: Option<&[Platform]>) -> Result<Vec<(Platform, Image)>, SourceError>;

    /// Opens the bytes of a layer of an image that this source has resolved.
    ///
    /// Neither size nor digest has been checked.
    fn open_layer(&self, layer: &ImageLayer) -> Result<LayerBlob, SourceError>;

    /// Opens the bytes of a layer if that can be done now: a registry gives so many at a time.
    fn try_open_layer(&self, layer: &ImageLayer) -> Result<Option<LayerBlob>, SourceError> {
        self.open_layer(layer).map(Some)
    }

    /// Tells whether layers come over a network: then several are opened at a time, and none twice if that can be helped.
    fn is_remote(&self) -> bool {
        false
    }

    /// Returns the mirror that a layer was read from last, if it was one.
    fn mirror_of(&self, _layer: &Digest) -> Option<String> {
        None
    }
}

/// The bytes of a layer, unverified, as they come.
pub struct LayerBlob {
    reader: Box<dyn Read + Send>,
    is_ready: Readiness,
}

/// Tells, without waiting, whether reading would have to wait.
pub type Readiness = Box<dyn Fn() -> bool + Send>;

impl LayerBlob {
    /// Returns the bytes of a layer that lies on this machine.
    pub fn local(reader: impl Read + Send + 'static) -> Self {
        Self { reader: Box::new(reader), is_ready: Box::new(|| true) }
    }

    /// Returns the bytes of a layer that is on its way to this machine.
    pub fn remote(reader: impl Read + Send + 'static, is_ready: impl Fn() -> bool + Send + 'static) -> Self {
        Self { reader: Box::new(reader), is_ready: Box::new(is_ready) }
    }

    /// Tells, without waiting, whether reading would have to wait.
    pub fn is_ready(&self) -> bool {
        (self.is_ready)()
    }

    /// Parts the bytes from what tells whether there are any.
    pub fn into_parts(self) -> (Box<dyn Read + Send>, Readiness) {
        (self.reader, self.is_ready)
    }
}

impl Read for LayerBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// Opens the place that an argument names. A registry is not asked yet.
pub fn open(argument: &ImageArgument, registries: &Registries) -> Result<Box<dyn Source>, SourceError> {
    Ok(match argument {
        ImageArgument::OciLayout { directory, reference } => {
            Box::new(OciLayout::open(directory, reference.as_deref())?)
        }
        ImageArgument::OciArchive { file, reference } => Box::new(OciLayout::open_archive(file, reference.as_deref())?),
        ImageArgument::DockerArchive { file, reference } => Box::new(DockerArchive::open(file, reference.as_deref())?),
        ImageArgument::Registry { .. } => {
            let place = argument.registry_location().expect("the argument names a place at a registry");
            Box::new(RegistryImage::new(registries.clone(), place))
        }
    })
}

/// The platform that an image is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformRequest {
    /// What the image should run on.
    pub platform: Platform,
    /// Whether the user asked for it. If not, the platform only chooses between several images: a single image is accepted for
    /// every platform, unless an index names one for it.
    pub explicit: bool,
}

impl PlatformRequest {
    /// Asks for `platform` and nothing else; without one, prefers images for this machine.
    pub fn new(platform: Option<Platform>) -> Self {
        let explicit = platform.is_some();
        Self { platform: platform.unwrap_or_else(Platform::of_this_machine), explicit }
    }
}

/// The platforms that an image is wanted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// One, and the image is that of its name.
    One(PlatformRequest),
    /// These, side by side.
    Several(Vec<Platform>),
    /// All that there are, side by side.
    All,
}

impl Default for Platforms {
    fn default() -> Self {
        Self::One(PlatformRequest::new(None))
    }
}

impl Platforms {
    /// Returns what was asked for, if anything was.
    pub fn asked(&self) -> Option<String> {
        match self {
            Self::One(PlatformRequest { explicit: false, .. }) => None,
            other => Some(other.to_string()),
        }
    }

    /// Finds the images that are wanted. Those that stand side by side come with their platforms.
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

impl FromStr for Platforms {
    type Err = NameError;

    /// Parses `all`, or one platform.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "all" => Ok(Self::All),
            text => Ok(Self::One(PlatformRequest::new(Some(text.parse()?)))),
        }
    }
}

impl fmt::Display for Platforms {
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

/// An image: its verified documents, and where its layers follow from.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    /// The full names that the place itself gives the image: host, repository and tag. Often there is none.
    pub names: Vec<FullName>,
    /// The index that the reference named, if it named one.
    pub index: Option<Document>,
    /// The image manifest.
    pub manifest: Document,
    /// Whether the manifest was made here, because the place has none.
    pub manifest_is_made: bool,
    /// What the image is for, if anything says it: the index, or else the config.
    pub platform: Option<Platform>,
    /// The image config.
    pub config: Document,
    /// What the config says.
    pub parsed_config: ImageConfig,
    /// The layers, from the lowest up.
    pub layers: Vec<ImageLayer>,
}

/// Why it is not clear under which name an image is published.
#[derive(Debug, thiserror::Error)]
pub enum NamingError {
    /// Nothing says it.
    #[error("'{0}' carries no full name: give one with --name host/name:tag")]
    NoName(ImageArgument),
    /// Several names say it.
    #[error("'{argument}' carries several names ({}): give one with --name", names.join(", "))]
    SeveralNames {
        /// The image as it was named.
        argument: ImageArgument,
        /// The names that it carries.
        names: Vec<String>,
    },
    /// The name is that of another image.
    #[error("'{argument}' cannot be published as '{name}': its digest is {}", digests(found))]
    OtherDigest {
        /// The image as it was named.
        argument: Box<ImageArgument>,
        /// The name, with a digest.
        name: Box<FullName>,
        /// The digests of its index, if it has one, and of its manifest.
        found: Vec<Digest>,
    },
}

/// Lists the digests that an image goes by.
fn digests(found: &[Digest]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" (its index) or ")
}

impl Image {
    /// Returns the name to publish the image under: the one that is `asked` for, or the only one that it carries.
    ///
    /// A digest in it has to be that of the image's manifest, or of the index that it was found by.
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

    /// Returns the chain IDs of the image: of its lowest layer, of its two lowest layers, and so on.
    pub fn chains(&self) -> Vec<ChainId> {
        ChainId::all(&self.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>())
    }
}

/// A layer as manifest and config promise it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// The digest of the bytes that [`Source::open_layer`] returns.
    pub digest: Digest,
    /// How many bytes these are.
    pub size: u64,
    /// The digest of the layer's tar stream.
    pub diff_id: DiffId,
    /// How the tar stream is packed, in the manifest's words; may be empty.
    pub media_type: String,
    /// Where else its bytes may be; registries need not have them then.
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

/// Parses a name that a layout or an archive carries, if it is a full one.
///
/// `bitnami/nginx:1` means a repository at Docker Hub to those who wrote it, not a host named `bitnami`.
fn full_name(text: &str) -> Option<FullName> {
    let name: FullName = text.parse().ok()?;
    let host = name.name.host();
    (host.contains(['.', ':']) || host == "localhost").then_some(name)
}

/// Parses the full names among `texts`, each once.
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
