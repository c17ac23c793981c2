//! Checks whether podman accepts an image.

use serde_json::Value;

use super::name::store_name;
use super::paths::FlatLayers;
use super::raw::UniqueMembers;
use super::shape::{self, compare, member};
use crate::image::{Digest, ImageName};

/// Maximum size of a document that podman reads: 4 MiB.
pub const MAX_DOCUMENT_SIZE: usize = 4 << 20;

/// Creation time for images without one.
// Without `created`, podman reports an age of 292 years.
pub(super) const UNKNOWN_TIME: &str = "1970-01-01T00:00:00Z";

/// Reason why an image is not added to the store: podman lists no image at all if the store contains such an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("podman refuses the image, and would then list no image of the store at all: {0}")]
pub struct Refusal(String);

/// An image that podman can list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreImage {
    /// The digest of its config.
    pub config: Digest,
    /// The digest of its manifest; `None` if another program stored the manifest in its own format.
    pub manifest: Option<Digest>,
    /// Its layers in the store.
    pub layers: FlatLayers,
    /// Creation time (RFC 3339).
    pub created: String,
    /// Total size of the files in its flat tree in bytes.
    pub size: u64,
}

impl StoreImage {
    /// Checks that podman accepts an image and its name.
    pub fn named(name: &ImageName, manifest: &[u8], config: &[u8], size: u64) -> Result<Self, Refusal> {
        let name = name.to_string();
        if store_name(&name).as_ref() != Some(&name) {
            return Err(Refusal(format!("'{name}' is not a valid name for podman")));
        }
        Self::new(manifest, config, size)
    }

    /// Checks that podman accepts an image with these documents. `size` is the size of its flat tree in bytes.
    pub fn new(manifest: &[u8], config: &[u8], size: u64) -> Result<Self, Refusal> {
        let parsed = parse(config, "config")?;
        compare(&parsed, shape::CONFIG).map_err(|fault| Refusal(format!("in its config, {fault}")))?;
        let (digest, parsed_manifest) = (Digest::of(config), parse(manifest, "manifest")?);
        check_manifest(&parsed_manifest, digest).map_err(|fault| Refusal(format!("in its manifest, {fault}")))?;
        let diff_ids = member(&parsed, "rootfs").and_then(|rootfs| member(rootfs, "diff_ids"));
        let layers = diff_ids.and_then(Value::as_array).map_or(0, Vec::len);
        if layers == 0 {
            return Err(Refusal("it has no layers".to_owned()));
        }
        let created = member(&parsed, "created").and_then(Value::as_str).unwrap_or(UNKNOWN_TIME);
        Ok(Self {
            config: digest,
            // DUCC stores a manifest with capitalised keys and without some members, so its digest is unknown.
            manifest: parsed_manifest.get("SchemaVersion").is_none().then(|| Digest::of(manifest)),
            layers: FlatLayers::of(digest, layers),
            created: created.to_owned(),
            size,
        })
    }

    /// Returns the topmost layer.
    pub fn top(&self) -> Digest {
        self.layers.top().expect("an image without layers is refused").id
    }
}

fn parse(bytes: &[u8], what: &str) -> Result<Value, Refusal> {
    if bytes.len() > MAX_DOCUMENT_SIZE {
        return Err(Refusal(format!("its {what} has {} bytes, more than the limit of 4 MiB", bytes.len())));
    }
    let refusal = |error| Refusal(format!("its {what} is not valid JSON: {error}"));
    // Go checks every value of a repeated member, so the values that serde drops must not be ignored.
    serde_json::from_slice::<UniqueMembers>(bytes).map_err(refusal)?;
    serde_json::from_slice(bytes).map_err(refusal)
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LAYERS: [&str; 4] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Checks that podman accepts a manifest for the image with this config.
fn check_manifest(manifest: &Value, config: Digest) -> Result<(), String> {
    compare(manifest, shape::MANIFEST)?;
    // These members belong to other types of documents, and podman refuses an ambiguous document.
    if let Some(foreign) = ["manifests", "fsLayers", "history"].into_iter().find(|name| has(manifest, name)) {
        return Err(format!("'{foreign}' belongs to another type of document"));
    }
    let of = |value: &Value, name: &str| member(value, name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let descriptor = member(manifest, "config").cloned().unwrap_or_default();
    if of(&descriptor, "digest") != config.to_string() {
        return Err(format!("'config.digest' is not {config}"));
    }
    match (of(manifest, "mediaType").as_str(), of(&descriptor, "mediaType").as_str()) {
        (DOCKER_MANIFEST, _) => {
            let layers = member(manifest, "layers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let mut types = layers.iter().map(|layer| of(layer, "mediaType"));
            let odd = types.find(|layer| !DOCKER_LAYERS.contains(&layer.as_str()));
            odd.map_or(Ok(()), |odd| Err(format!("'{}' is not a media type of a Docker layer", odd.escape_debug())))
        }
        (OCI_MANIFEST, OCI_CONFIG) => Ok(()),
        ("", OCI_CONFIG) if member(manifest, "schemaVersion").and_then(Value::as_i64) == Some(2) => Ok(()),
        ("", OCI_CONFIG) => Err("it has neither 'mediaType' nor 'schemaVersion' 2".to_owned()),
        ("" | OCI_MANIFEST, other) => Err(format!("'{}' is not a media type of a config", other.escape_debug())),
        (other, _) => Err(format!("'{}' is not a media type of a manifest", other.escape_debug())),
    }
}

fn has(object: &Value, name: &str) -> bool {
    object.as_object().is_some_and(|members| members.keys().any(|key| shape::is_named(key, name)))
}

#[cfg(test)]
mod tests;
