//! Types of the OCI image specification: digests, names, manifests, configs and platforms. No I/O.
//!
//! A *digest* names bytes as a registry stores them, a *diff ID* names the unpacked tar stream of a layer, and a *chain ID* names
//! the file system that results from a stack of layers. All three have the same text form; the types keep them apart.

mod config;
mod document;
mod manifest;
mod name;
mod platform;

use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

pub use config::{ExecutionConfig, HistoryEntry, ImageConfig, RootFs};
pub use document::Document;
pub(crate) use document::{DocumentOutline, MAX_DOCUMENT_SIZE, is_schema_1};
pub use manifest::{Descriptor, DescriptorPlatform, DocumentKind, ImageIndex, ImageManifest};
pub use name::{FullName, ImageName, ImageReference};
pub(crate) use name::{is_repository, is_tag};
pub use platform::{Platform, Suitability};

/// Errors from parsing a digest, an image name or a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is not a digest. Only SHA-256 in lower-case hexadecimal is supported.
    #[error("'{}' is not a valid digest: write sha256: and 64 lower-case hexadecimal digits", shown(.0))]
    Digest(String),
    /// The text is not an image name.
    #[error("'{}' is not an image name: {reason}", shown(name))]
    Image {
        /// The text.
        name: String,
        /// What is wrong with the text.
        reason: &'static str,
    },
    /// The text is not a platform.
    #[error("'{}' is not a valid platform: write os/architecture or os/architecture/variant, such as linux/arm64", shown(.0))]
    Platform(String),
}

/// Returns untrusted text for a message: without a password, control characters escaped, and truncated after 200 characters.
fn shown(text: &str) -> String {
    const MAX_CHARACTERS: usize = 200;
    // The part before `@` may be a user name and password.
    let text = match text.split_once('@') {
        Some((before, after)) if before.contains(':') && !before.contains('/') => after,
        _ => text,
    };
    let escaped = |text: &str| text.escape_debug().to_string();
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => escaped(&text[..end]) + "…",
        None => escaped(text),
    }
}

/// SHA-256 digest of a blob. Text form as in registries: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the 64 hexadecimal digits without `sha256:`, as in the names of directories in the repository.
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

/// Digest of a layer's unpacked tar stream (image-spec, config.md, "Layer DiffID").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

/// Name of the file system that results from a stack of layers (image-spec, config.md, "Layer ChainID").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub Digest);

impl ChainId {
    /// Returns the chain ID of a single layer, which equals its diff ID.
    pub fn first(layer: DiffId) -> Self {
        Self(layer.0)
    }

    /// Returns the chain ID of this chain with `layer` added on top.
    pub fn then(self, layer: DiffId) -> Self {
        // Both operands in text form with `sha256:`, and a space between them. DUCC hashes the digests of compressed
        // layers instead.
        Self(Digest::of(format!("{self} {layer}").as_bytes()))
    }

    /// Returns the chain ID after each of `layers`, which are ordered from the lowest up.
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

/// Parses a JSON object. Without this check, serde would also accept a JSON array of the members' values.
pub(crate) fn parse_object<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    match json.trim_ascii_start().first() {
        Some(b'{') | None => serde_json::from_slice(json),
        Some(_) => Err(serde_json::Error::custom("not a JSON object")),
    }
}

/// Reads a JSON `null` as the default value, because Go programs write `null` for empty lists and maps.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Returns bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|&b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

/// Parses exactly `N` bytes from lower-case hexadecimal digits.
pub(crate) fn unhex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let value = |b: u8| match b {
        // Upper-case digits are invalid (image-spec, descriptor.md, "SHA-256"), and would be a second name for the same blob.
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
}
