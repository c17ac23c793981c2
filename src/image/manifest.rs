//! Image manifests and image indexes, of OCI and of Docker, which differ in nothing but their media types.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Digest, NameError, Platform, null_as_default};

/// What an image consists of: one config and its layers (image-spec, manifest.md).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// What this is when it is no image.
    #[serde(default, deserialize_with = "null_as_default")]
    pub artifact_type: String,
    /// The image config.
    pub config: Descriptor,
    /// The layers, from the lowest up.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
}

/// A list of manifests, in general one image for several platforms (image-spec, image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ImageIndex {
    /// Manifests or further indexes, the preferred ones first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
}

/// Points to a blob (image-spec, descriptor.md).
///
/// The digest stays text until it is used, so that one entry in an unknown form does not spoil its neighbours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is said to be; empty when nothing is said.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    /// The digest as it is written.
    pub digest: String,
    /// The blob's size in bytes.
    pub size: u64,
    /// Where else the blob may be.
    #[serde(default, deserialize_with = "null_as_default")]
    pub urls: Vec<String>,
    /// What the blob is when it is no image.
    #[serde(default, deserialize_with = "null_as_default")]
    pub artifact_type: String,
    /// What the image is for.
    #[serde(default, deserialize_with = "null_as_default")]
    pub platform: DescriptorPlatform,
    /// Names and other remarks.
    #[serde(default, deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, Option<String>>,
}

/// The platform in a descriptor, of which any part may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DescriptorPlatform {
    /// Operating system; empty when nothing is said.
    #[serde(deserialize_with = "null_as_default")]
    pub os: String,
    /// Processor architecture; empty when nothing is said.
    #[serde(deserialize_with = "null_as_default")]
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
}

impl Descriptor {
    /// Returns the digest of the blob.
    pub fn digest(&self) -> Result<Digest, NameError> {
        self.digest.parse()
    }

    /// Returns what the image is for, if the descriptor says it.
    pub fn platform(&self) -> Option<Platform> {
        let DescriptorPlatform { os, architecture, variant } = &self.platform;
        Platform::from_parts(os, architecture, variant.as_deref())
    }

    /// Returns the annotation `key`.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key)?.as_deref()
    }

    /// Tells whether this may be an image, or an index of images, rather than an attestation or another artifact.
    pub fn may_be_image(&self) -> bool {
        // BuildKit marks its attestations with the platform unknown/unknown, so that runtimes pass them by.
        self.platform.os != "unknown"
            && (self.artifact_type.is_empty() || is_config_media_type(&self.artifact_type))
            && (self.media_type.is_empty() || DocumentKind::of_media_type(&self.media_type).is_some())
    }
}

impl ImageManifest {
    /// Returns the type of the artifact that this manifest holds, if that is not an image.
    pub fn foreign_type(&self) -> Option<&str> {
        [&self.artifact_type, &self.config.media_type]
            .into_iter()
            .map(String::as_str)
            .find(|media_type| !is_config_media_type(media_type))
    }
}

/// Tells whether `media_type` is one under which image configs are found.
fn is_config_media_type(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
        // Early registries and builders wrote these, and Docker still takes them for images (docker/distribution#1621).
        | "application/octet-stream" | "application/json" | "text/html"
    )
}

/// The two kinds of documents that an image name can lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// An image index, which Docker calls a manifest list.
    Index,
    /// An image manifest.
    Manifest,
}

impl DocumentKind {
    /// Returns the kind that `media_type` stands for, if it stands for one of them.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        Some(match media_type {
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                Self::Index
            }
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json"
            | "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Self::Manifest,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifest_takes_docker_and_missing_media_types_for_an_image() {
        for config_type in ["application/vnd.docker.container.image.v1+json", "", "application/octet-stream"] {
            let json = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"d","size":1}},"layers":null}}"#
            );
            let manifest: ImageManifest = serde_json::from_str(&json).unwrap();
            assert_eq!((manifest.foreign_type(), manifest.layers.len()), (None, 0));
        }
        let chart = r#"{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"d","size":1}}"#;
        let manifest: ImageManifest = serde_json::from_str(chart).unwrap();
        assert_eq!(manifest.foreign_type(), Some("application/vnd.cncf.helm.config.v1+json"));
    }

    #[test]
    fn descriptor_of_something_else_is_no_image() {
        let may_be_image = |members: &str| {
            let json = format!(r#"{{"digest":"d","size":1,"annotations":null,"platform":null{members}}}"#);
            let json = if members.contains("platform") { json.replace(r#","platform":null"#, "") } else { json };
            serde_json::from_str::<Descriptor>(&json).unwrap().may_be_image()
        };
        assert!(may_be_image(""));
        assert!(may_be_image(r#","mediaType":"application/vnd.docker.distribution.manifest.list.v2+json""#));
        assert!(!may_be_image(r#","platform":{"os":"unknown","architecture":"unknown"}"#));
        assert!(!may_be_image(r#","artifactType":"application/spdx+json""#));
        assert!(!may_be_image(r#","mediaType":"application/xml""#));
    }

    #[test]
    fn descriptor_with_a_negative_or_missing_size_is_refused() {
        for wrong in [r#"{"digest":"d","size":-1}"#, r#"{"digest":"d"}"#, r#"{"size":1}"#] {
            assert!(serde_json::from_str::<Descriptor>(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
