//! Image manifests and image indexes in the formats of OCI and Docker, which differ only in their media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{Digest, NameError, Platform, null_as_default};

/// An image manifest: one config and the layers (image-spec, manifest.md).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Type of the artifact that the manifest describes; may also be set for an image. Empty if absent.
    #[serde(default, deserialize_with = "null_as_default")]
    pub artifact_type: String,
    /// The image config.
    pub config: Descriptor,
    /// The layers, from the lowest up.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
}

/// A list of manifests, usually of one image for several platforms (image-spec, image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// Type of the artifact that the index describes; may also be set for an index of images. Empty if absent.
    #[serde(default, deserialize_with = "null_as_default")]
    pub artifact_type: String,
    /// Manifests or nested indexes, in order of preference.
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
}

/// Reference to a blob (image-spec, descriptor.md).
///
/// The digest stays text until it is used, so that one entry with an unknown algorithm does not make the whole list unusable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the blob; empty if absent.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    /// The digest as it is written; see [`Self::digest()`].
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Other locations of the blob.
    #[serde(default, deserialize_with = "null_as_default")]
    pub urls: Vec<String>,
    /// Type of the artifact that the blob describes; may also be set for an image. Empty if absent.
    #[serde(default, deserialize_with = "null_as_default")]
    pub artifact_type: String,
    /// Platform of the image.
    #[serde(default, deserialize_with = "null_as_default")]
    pub platform: DescriptorPlatform,
    /// Annotations, such as names.
    #[serde(default, deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, Option<String>>,
}

/// The platform in a descriptor. Every member may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DescriptorPlatform {
    /// Operating system; empty if absent.
    #[serde(deserialize_with = "null_as_default")]
    pub os: String,
    /// Processor architecture; empty if absent.
    #[serde(deserialize_with = "null_as_default")]
    pub architecture: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// Whether the image needs features of the operating system that not every runtime has.
    #[serde(rename = "os.features", deserialize_with = "is_filled")]
    pub needs_os_features: bool,
    /// Whether the image needs processor features in addition to the variant (in Docker's manifest lists).
    #[serde(rename = "features", deserialize_with = "is_filled")]
    pub needs_features: bool,
}

/// Reads whether a JSON value is a non-empty list or string.
fn is_filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(items) => !items.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => false,
    })
}

/// Annotation of BuildKit's attestations, whose platform is `unknown/unknown`.
const ATTESTATION: (&str, &str) = ("vnd.docker.reference.type", "attestation-manifest");

impl Descriptor {
    /// Parses the digest of the blob.
    pub fn digest(&self) -> Result<Digest, NameError> {
        self.digest.parse()
    }

    /// Returns the platform of the image, if the descriptor states it.
    pub fn platform(&self) -> Option<Platform> {
        let DescriptorPlatform { os, architecture, variant, .. } = &self.platform;
        Platform::from_parts(os, architecture, variant.as_deref())
    }

    /// Returns the annotation `key`.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key)?.as_deref()
    }

    /// Returns whether this may refer to an image or an index of images, as far as the descriptor alone tells.
    ///
    /// The artifact type is not considered, because an image may have one in addition to its config.
    pub fn may_be_image(&self) -> bool {
        // BuildKit gives its attestations the platform unknown/unknown, so that runtimes ignore them.
        self.platform.os != "unknown"
            && self.platform.architecture != "unknown"
            && self.annotation(ATTESTATION.0) != Some(ATTESTATION.1)
            && (self.media_type.is_empty() || DocumentKind::of_media_type(&self.media_type).is_some())
    }

    /// Returns the artifact type in the descriptor, unless it is empty or the type of an image config.
    pub fn non_image_type(&self) -> Option<&str> {
        Some(self.artifact_type.as_str()).filter(|artifact_type| !is_config_media_type(artifact_type))
    }
}

impl ImageManifest {
    /// Returns the type of the artifact that this manifest describes, or `None` if it describes an image.
    ///
    /// The media type of the config decides (image-spec, manifest.md, "Guidelines for Artifact Usage"). If that type is
    /// generic, the artifact type decides. A manifest with layers, none of which has a media type of image layers, is not an
    /// image even if its config has the type of one: signatures of cosign and attestations of BuildKit are such manifests.
    pub fn non_image_type(&self) -> Option<&str> {
        let named = Some(self.artifact_type.as_str()).filter(|artifact_type| !is_config_media_type(artifact_type));
        let config_type = self.config.media_type.as_str();
        if !is_config_media_type(config_type) {
            return named.or(Some(config_type));
        }
        if !is_image_config(config_type) && named.is_some() {
            return named;
        }
        if self.has_image_layers() {
            return None;
        }
        let mut types = self.layers.iter().map(|layer| layer.media_type.as_str());
        self.layers.first().and(named).or_else(|| types.find(|media_type| *media_type != "application/octet-stream"))
    }

    /// Like [`Self::non_image_type`], but also considers the content of the config, whose media type may be wrong.
    ///
    /// If the config lists no layers and no layer has a media type of image layers, this is not an image: several tools push
    /// files with `{}` or an empty document as an image config. If the config lists no layers and a layer has such a media
    /// type, this is a damaged image, which other code must report.
    pub fn non_image_type_with_config(&self, config: &[u8]) -> Option<&str> {
        if let Some(foreign) = self.non_image_type() {
            return Some(foreign);
        }
        let named = Some(self.artifact_type.as_str()).filter(|artifact_type| !is_config_media_type(artifact_type));
        let Some(layer) = self.layers.first() else {
            return is_empty_config(config).then(|| named.unwrap_or("empty config"));
        };
        let is_foreign = (named.is_some() || !self.has_image_layers()) && !lists_layers(config);
        is_foreign.then(|| named.unwrap_or(&layer.media_type))
    }

    fn has_image_layers(&self) -> bool {
        self.layers.iter().any(|layer| is_of_image_layers(&layer.media_type))
    }
}

/// Returns whether a config is an empty document or an empty object.
fn is_empty_config(json: &[u8]) -> bool {
    json.trim_ascii().is_empty()
        || serde_json::from_slice(json).is_ok_and(|config: Map<String, Value>| config.is_empty())
}

/// Returns whether a config lists diff IDs, valid or not.
fn lists_layers(json: &[u8]) -> bool {
    let config: Value = serde_json::from_slice(json).unwrap_or_default();
    config["rootfs"]["diff_ids"].as_array().is_some_and(|diff_ids| !diff_ids.is_empty())
}

/// Returns whether `media_type` is one of the types that only image configs have.
fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json")
}

/// Returns whether `media_type` is one that image configs have, including generic types.
fn is_config_media_type(media_type: &str) -> bool {
    // Early registries and builders wrote the generic types, and Docker still accepts them (docker/distribution#1621).
    is_image_config(media_type)
        || matches!(media_type, "" | "application/octet-stream" | "application/json" | "text/html")
}

/// Returns whether `media_type` is one of image layers, including unknown kinds such as encrypted layers.
fn is_of_image_layers(media_type: &str) -> bool {
    media_type.is_empty()
        || media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

/// Kind of document that an image name can refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// An image index (in Docker: a manifest list).
    Index,
    /// An image manifest.
    Manifest,
}

impl DocumentKind {
    /// Returns the kind of document with this media type, or `None` for other types.
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

    /// Returns a manifest with these media types.
    fn manifest_of(artifact_type: &str, config: &str, layers: &[&str]) -> ImageManifest {
        let descriptor = |media_type: &str| Descriptor { media_type: media_type.to_owned(), ..Descriptor::default() };
        ImageManifest {
            artifact_type: artifact_type.to_owned(),
            config: descriptor(config),
            layers: layers.iter().map(|layer| descriptor(layer)).collect(),
        }
    }

    #[test]
    fn manifest_with_docker_or_missing_media_types_is_an_image() {
        for config_type in ["application/vnd.docker.container.image.v1+json", "", "application/octet-stream"] {
            let json = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"d","size":1}},"layers":null}}"#
            );
            let manifest: ImageManifest = serde_json::from_str(&json).unwrap();
            assert_eq!((manifest.non_image_type(), manifest.layers.len()), (None, 0));
        }
        let chart = r#"{"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"d","size":1}}"#;
        let manifest: ImageManifest = serde_json::from_str(chart).unwrap();
        assert_eq!(manifest.non_image_type(), Some("application/vnd.cncf.helm.config.v1+json"));
    }

    #[test]
    fn config_and_layers_distinguish_an_image_from_an_artifact() {
        const OCI: &str = "application/vnd.oci.image.config.v1+json";
        const EMPTY: &str = "application/vnd.oci.empty.v1+json";
        const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
        for (artifact_type, config, layers, expected) in [
            ("", OCI, &[LAYER][..], None),
            ("application/vnd.example.model", OCI, &[LAYER], None),
            ("application/vnd.example.model", OCI, &[], None),
            ("application/vnd.example.model", "application/vnd.docker.container.image.v1+json", &[LAYER], None),
            ("application/spdx+json", EMPTY, &["application/spdx+json"], Some("application/spdx+json")),
            ("application/spdx+json", "", &[LAYER], Some("application/spdx+json")),
            ("", EMPTY, &[EMPTY], Some(EMPTY)),
            (
                "",
                "application/vnd.cncf.helm.config.v1+json",
                &["application/vnd.cncf.helm.chart.content.v1.tar+gzip"],
                Some("application/vnd.cncf.helm.config.v1+json"),
            ),
            (
                "",
                "application/vnd.wasm.config.v0+json",
                &["application/wasm"],
                Some("application/vnd.wasm.config.v0+json"),
            ),
            (
                "",
                OCI,
                &["application/vnd.dev.cosign.simplesigning.v1+json"],
                Some("application/vnd.dev.cosign.simplesigning.v1+json"),
            ),
            ("", OCI, &["application/vnd.in-toto+json"; 2], Some("application/vnd.in-toto+json")),
            ("", OCI, &["application/wasm"], Some("application/wasm")),
            ("", OCI, &[LAYER, "application/wasm"], None),
            ("", OCI, &["application/octet-stream"], None),
            (
                "application/vnd.example.model",
                OCI,
                &["application/octet-stream"],
                Some("application/vnd.example.model"),
            ),
            ("", OCI, &["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"], None),
            ("", "", &[""], None),
        ] {
            let manifest = manifest_of(artifact_type, config, layers);
            assert_eq!(manifest.non_image_type(), expected, "{artifact_type} {config} {layers:?}");
        }
    }

    #[test]
    fn config_without_layers_distinguishes_files_from_a_damaged_image() {
        const OCI: &str = "application/vnd.oci.image.config.v1+json";
        const DOCKER: &str = "application/vnd.docker.container.image.v1+json";
        const FILE: &str = "application/octet-stream";
        const MODEL: &str = "application/vnd.example.model";
        const LISTING: &str = r#"{"rootfs":{"type":"layers","diff_ids":["sha512:00"]}}"#;
        let layer_types = [
            "",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ];
        let foreign = |artifact_type: &str, config: &str, layers: &[&str], json: &str| {
            let manifest = manifest_of(artifact_type, config, layers);
            manifest.non_image_type_with_config(json.as_bytes()).map(str::to_owned)
        };
        for config in [OCI, DOCKER, "", FILE] {
            for json in ["{}", "", "[]", "some text", r#"{"rootfs":null}"#, r#"{"rootfs":{"diff_ids":[]}}"#] {
                assert_eq!(foreign("", config, &[FILE], json).as_deref(), Some(FILE), "{config} {json}");
                assert_eq!(foreign("", config, &[FILE, FILE], json).as_deref(), Some(FILE), "{config} {json}");
                for layer in layer_types {
                    assert_eq!(foreign("", config, &[layer], json), None, "{config} {json} {layer}");
                    assert_eq!(foreign("", config, &[layer, FILE], json), None, "{config} {json} {layer}");
                }
            }
            assert_eq!(foreign("", config, &[FILE], LISTING), None, "{config}");
            assert_eq!(foreign("", config, &[], r#"{"os":"linux"}"#), None, "{config}");
            assert_eq!(foreign("", config, &[], " { }").as_deref(), Some("empty config"), "{config}");
        }
        assert_eq!(foreign(MODEL, OCI, &[FILE], LISTING).as_deref(), Some(MODEL));
        assert_eq!(foreign(MODEL, OCI, &[layer_types[1]], "{}").as_deref(), Some(MODEL));
        assert_eq!(foreign(MODEL, OCI, &[layer_types[1]], LISTING), None);
        assert_eq!(foreign(MODEL, OCI, &[], "{}").as_deref(), Some(MODEL));
    }

    #[test]
    fn features_of_a_platform_are_detected_in_every_form() {
        for (features, is_needed) in
            [("[]", false), ("null", false), (r#"["sse4"]"#, true), (r#""sse4""#, true), ("{}", false)]
        {
            let json =
                format!(r#"{{"os":"linux","architecture":"amd64","os.features":{features},"features":{features}}}"#);
            let platform: DescriptorPlatform = serde_json::from_str(&json).unwrap();
            assert_eq!((platform.needs_os_features, platform.needs_features), (is_needed, is_needed), "{features}");
        }
    }

    #[test]
    fn descriptor_of_an_attestation_or_unknown_media_type_is_not_an_image() {
        let may_be_image = |members: &str| {
            let json = format!(r#"{{"digest":"d","size":1,"urls":null,"mediaType":null{members}}}"#);
            let json = if members.contains("mediaType") { json.replace(r#","mediaType":null"#, "") } else { json };
            serde_json::from_str::<Descriptor>(&json).unwrap().may_be_image()
        };
        assert!(may_be_image(""));
        assert!(may_be_image(r#","mediaType":"application/vnd.docker.distribution.manifest.list.v2+json""#));
        assert!(may_be_image(r#","artifactType":"application/vnd.example.model""#));
        assert!(!may_be_image(r#","platform":{"os":"unknown","architecture":"unknown"}"#));
        assert!(!may_be_image(r#","platform":{"os":"linux","architecture":"unknown"}"#));
        assert!(!may_be_image(
            r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"},"platform":{"os":"linux"}"#
        ));
        assert!(!may_be_image(r#","mediaType":"application/xml""#));
    }

    #[test]
    fn descriptor_with_a_negative_or_missing_size_is_refused() {
        for wrong in [r#"{"digest":"d","size":-1}"#, r#"{"digest":"d"}"#, r#"{"size":1}"#] {
            assert!(serde_json::from_str::<Descriptor>(wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
