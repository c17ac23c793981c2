//! The words of the OCI image specification: digests, names, and what an image consists of. No I/O.
//!
//! A *digest* names bytes as a registry holds them, a *diff ID* names a layer's tar stream once it is unpacked, and a
//! *chain ID* names the file system that a stack of layers gives. All three look alike as text; the types keep them apart.

mod config;
mod manifest;

use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

pub use config::{ExecutionConfig, HistoryEntry, ImageConfig, RootFs};
pub use manifest::{Descriptor, DescriptorPlatform, DocumentKind, ImageIndex, ImageManifest};

/// Why a text is not a digest, an image name or a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Only SHA-256 in lower-case hexadecimal is in use.
    #[error("'{}' is not a digest of the form sha256:<64 hexadecimal digits>", shown(.0))]
    Digest(String),
    /// The text is no image name.
    #[error("'{}' is not an image name: {reason}", shown(name))]
    Image {
        /// The text as it was given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The text is no platform.
    #[error("'{}' is not a platform of the form os/architecture or os/architecture/variant", shown(.0))]
    Platform(String),
}

/// Returns foreign text for a message: without control characters, and cut when it is very long.
fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    // What stands before a host may be a password.
    let text = match text.split_once('@') {
        Some((before, behind)) if before.contains(':') && !before.contains('/') => behind,
        _ => text,
    };
    let escaped = |text: &str| text.escape_debug().to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => escaped(&text[..end]) + "…",
        None => escaped(text),
    }
}

/// The SHA-256 digest of a blob as a registry names it: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the 64 hexadecimal digits alone, as folders in the repository are named.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.strip_prefix("sha256:")
            .and_then(|digits| unhex(digits.as_bytes()))
            .map(Self)
            .ok_or_else(|| NameError::Digest(text.to_owned()))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

/// The digest of a layer's unpacked tar stream (image-spec, config.md, "Layer DiffID").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// Names the file system after a stack of layers (image-spec, config.md, "Layer ChainID").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// Returns the chain ID of the lowest layer alone: its diff ID.
    pub fn first(layer: DiffId) -> Self {
        Self(layer.0)
    }

    /// Returns the chain ID of this chain with one more layer on top.
    pub fn then(self, layer: DiffId) -> Self {
        Self(Digest::of(format!("{self} {layer}").as_bytes()))
    }

    /// Returns the chain IDs of `layers`, from the lowest layer up: one for each.
    pub fn all(layers: &[DiffId]) -> Vec<Self> {
        let mut chains: Vec<Self> = Vec::with_capacity(layers.len());
        for &layer in layers {
            chains.push(chains.last().map_or_else(|| Self::first(layer), |below| below.then(layer)));
        }
        chains
    }
}

macro_rules! text_form_of_digest {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                text.parse().map(Self)
            }
        }
    };
}

text_form_of_digest!(DiffId);
text_form_of_digest!(ChainId);

/// What an image is called in public: `host/repository:tag`, or `host/repository@sha256:…`.
///
/// The host is kept as it was spelt: `registry.hub.docker.com` and `docker.io` are two names. A name never leads out of
/// the folder it is published in, nor into one of the folders that the repository keeps for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    host: String,
    repository: String,
    reference: ImageReference,
}

/// The part of an image name that picks one image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageReference {
    /// A name that its owner may move to another image.
    Tag(String),
    /// The digest of one manifest.
    Digest(Digest),
}

impl ImageName {
    /// Returns the registry's host, with its port if the name has one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository at the registry, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag or digest.
    pub fn reference(&self) -> &ImageReference {
        &self.reference
    }

    /// Returns the path of the public link below the root of the CVMFS repository, without a leading slash.
    ///
    /// A digest is joined with a colon, `host/name:sha256:<hex>`, as consumers expect.
    pub fn public_path(&self) -> String {
        match &self.reference {
            ImageReference::Tag(tag) => format!("{}/{}:{tag}", self.host, self.repository),
            ImageReference::Digest(digest) => format!("{}/{}:{digest}", self.host, self.repository),
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            ImageReference::Tag(tag) => write!(f, "{}/{}:{tag}", self.host, self.repository),
            ImageReference::Digest(digest) => write!(f, "{}/{}@{digest}", self.host, self.repository),
        }
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    /// Parses `host[:port]/repository[:tag][@digest]`. A tag wins over a digest, as in the paths that consumers know.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |reason| NameError::Image { name: text.to_owned(), reason };
        let (host, rest) = text.split_once('/').ok_or_else(|| wrong("it needs a host, as in host/name:tag"))?;
        if !is_host(host) {
            return Err(wrong("its host may hold letters, digits, '.', '-' and a port, and does not begin with a dot"));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (rest, None),
        };
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err(wrong("its repository is not lower-case words joined by '.', '_', '-' and '/'"));
        }
        let reference = match (tag, digest) {
            (Some(tag), _) if is_tag(tag) => ImageReference::Tag(tag.to_owned()),
            (Some(_), _) => return Err(wrong("its tag is not up to 128 letters, digits, '.', '_' and '-'")),
            (None, Some(digest)) => ImageReference::Digest(digest),
            (None, None) => return Err(wrong("it needs a tag or a digest, as in host/name:tag")),
        };
        let name = Self { host: host.to_owned(), repository: repository.to_owned(), reference };
        match name.public_path().split('/').all(|component| component.len() <= 255) {
            true => Ok(name),
            false => Err(wrong("its last part and its tag have more than 255 characters together")),
        }
    }
}

/// Tells whether `host` may stand at the root of the repository beside the folders that strata keeps there.
fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let name_is_right = !name.is_empty()
        && name.len() <= 240
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    name_is_right && name != "podmanStore" && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Tells whether `text` is the name of a repository at a registry.
pub(crate) fn is_repository(text: &str) -> bool {
    text.len() <= 255 && text.split('/').all(is_repository_component)
}

/// Tells whether `text` is one path component of a repository name (distribution-spec, "Pulling manifests").
fn is_repository_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !bytes.is_empty()
        && is_word(bytes[0])
        && is_word(bytes[bytes.len() - 1])
        && bytes.iter().all(|&b| is_word(b) || matches!(b, b'.' | b'_' | b'-'))
}

/// Tells whether `text` is a tag (distribution-spec, "Pulling manifests").
pub(crate) fn is_tag(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !bytes.is_empty()
        && bytes.len() <= 128
        && is_word(bytes[0])
        && bytes.iter().all(|&b| is_word(b) || matches!(b, b'.' | b'-'))
}

/// What a program was built for, as image indexes name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// Operating system, in Go's spelling (`linux`).
    pub os: String,
    /// Processor architecture, in Go's spelling (`amd64`).
    pub architecture: String,
    /// Variant of the architecture (`v7`).
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform of the machine that this program runs on.
    pub fn of_this_machine() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Returns the platform that an image document spells in parts, if it names at least the first two.
    fn from_parts(os: &str, architecture: &str, variant: Option<&str>) -> Option<Self> {
        let variant = variant.filter(|variant| !variant.is_empty()).map(str::to_owned);
        (!os.is_empty() && !architecture.is_empty()).then(|| Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }

    /// Tells whether an image for `offered` runs where this platform was asked for.
    ///
    /// A variant that is not asked for may be any, and `arm64` without one is `arm64/v8`.
    pub fn accepts(&self, offered: &Platform) -> bool {
        let variant = |platform: &Platform| match (&platform.variant, platform.architecture.as_str()) {
            (None, "arm64") => Some("v8".to_owned()),
            (variant, _) => variant.clone(),
        };
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || variant(self) == variant(offered))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(|part| !part.is_empty()) => {
                Ok(Self {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: variant.first().map(|&variant| variant.to_owned()),
                })
            }
            _ => Err(NameError::Platform(text.to_owned())),
        }
    }
}

/// Parses a JSON object; serde alone would also take a list of its members' values.
pub(crate) fn parse_object<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    match json.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(json),
        Some(_) => Err(serde_json::Error::custom("it is not a JSON object")),
    }
}

/// Takes a JSON `null` for the value that an absent member stands for: Go programs write `null` for empty lists and maps.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|&b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

/// Reads exactly `N` bytes from lower-case hexadecimal digits.
pub(crate) fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_has_one_text_form() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
        for wrong in [&EMPTY[..70], &EMPTY[7..], &EMPTY.to_uppercase(), "sha512:00", ""] {
            assert_eq!(wrong.parse::<Digest>(), Err(NameError::Digest(wrong.to_owned())));
        }
    }

    #[test]
    fn chain_id_of_one_layer_is_its_diff_id() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        let expected = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::all(&[a, b]), [ChainId(a.0), ChainId(expected)]);
        assert_eq!(ChainId::all(&[]), []);
    }

    #[test]
    fn image_name_keeps_its_host_and_joins_a_digest_with_a_colon() {
        let name: ImageName = "registry.hub.docker.com/library/debian:12".parse().unwrap();
        assert_eq!(name.public_path(), "registry.hub.docker.com/library/debian:12");
        let name: ImageName = format!("localhost:5000/a@{EMPTY}").parse().unwrap();
        assert_eq!(name.public_path(), format!("localhost:5000/a:{EMPTY}"));
        assert_eq!(name.to_string(), format!("localhost:5000/a@{EMPTY}"));
        let name: ImageName = format!("h/a/b:t@{EMPTY}").parse().unwrap();
        assert_eq!(name.public_path(), "h/a/b:t");
    }

    #[test]
    fn image_name_cannot_leave_its_place() {
        for wrong in [
            "debian:12",
            "/a:t",
            ".flat/a:t",
            "podmanStore/a:t",
            "../a:t",
            "h/../a:t",
            "h/a",
            "h//a:t",
            "h/A:t",
            "h/a:",
            "h/a:t:u",
            "h/a:.t",
            "h:x/a:t",
            "h:70000/a:t",
            "h/a\n:t",
            "h/a@sha256:0",
        ] {
            assert!(wrong.parse::<ImageName>().is_err(), "{wrong:?} was taken");
        }
        let long = |length: usize| format!("h/{}:{}", "a".repeat(length - 129), "t".repeat(128)).parse::<ImageName>();
        assert!(long(255).is_ok() && long(256).is_err());
    }

    #[test]
    fn platform_without_variant_accepts_any() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        assert!(platform("linux/arm64").accepts(&platform("linux/arm64/v8")));
        assert!(platform("linux/arm64/v8").accepts(&platform("linux/arm64")));
        assert!(!platform("linux/arm/v6").accepts(&platform("linux/arm/v7")));
        assert!(!platform("linux/amd64").accepts(&platform("linux/arm64")));
        assert!("linux".parse::<Platform>().is_err() && "a/b/c/d".parse::<Platform>().is_err());
        assert!("linux//v7".parse::<Platform>().is_err());
    }
}
