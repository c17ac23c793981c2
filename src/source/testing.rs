//! Builders of tar files, OCI layouts and docker archives.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::{Image, ImageLayer, Source, SourceError};
use crate::image::Digest;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Builder of a tar file.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn file(mut self, name: &str, content: &[u8]) -> Self {
        let mut header = header(tar::EntryType::Regular, content.len() as u64);
        if name.starts_with(['/', '.']) {
            // The writer rejects or normalises such names. Therefore they are copied into the header directly.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            self.0.append(&header, content).unwrap();
        } else {
            self.0.append_data(&mut header, name, content).unwrap();
        }
        self
    }

    pub(crate) fn directory(mut self, name: &str) -> Self {
        self.0.append_data(&mut header(tar::EntryType::Directory, 0), name, &[][..]).unwrap();
        self
    }

    pub(crate) fn symlink(mut self, name: &str, target: &str) -> Self {
        self.0.append_link(&mut header(tar::EntryType::Symlink, 0), name, target).unwrap();
        self
    }

    /// Adds a hard link whose header contains a size, as some writers create it.
    pub(crate) fn hard_link(mut self, name: &str, target: &str) -> Self {
        self.0.append_link(&mut header(tar::EntryType::Link, 1234), name, target).unwrap();
        self
    }

    /// Adds a PAX header for the next member.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header
}

/// Returns a config for `platform` whose layers have the content `layers`.
pub(crate) fn config(platform: &str, layers: &[&str]) -> Value {
    let crate::image::Platform { os, architecture, variant } = platform.parse().unwrap();
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer.as_bytes()).to_string()).collect();
    let mut config =
        json!({"os": os, "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    if let Some(variant) = variant {
        config["variant"] = variant.into();
    }
    config
}

/// Files of a layout or an archive, by name.
#[derive(Clone)]
pub(crate) struct Files(pub(crate) BTreeMap<String, Vec<u8>>);

impl Files {
    /// Returns an OCI layout without images.
    pub(crate) fn layout() -> Self {
        let version = (r#"oci-layout"#.to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        Self([version].into()).index(json!([]))
    }

    /// Returns a docker archive with this `manifest.json`.
    pub(crate) fn docker(images: Value) -> Self {
        Self([("manifest.json".to_owned(), images.to_string().into_bytes())].into())
    }

    pub(crate) fn with(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.0.insert(name.to_owned(), content.as_ref().to_vec());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.0.remove(name).unwrap();
        self
    }

    /// Replaces the entries of `index.json`.
    pub(crate) fn index(self, manifests: Value) -> Self {
        self.with("index.json", json!({"schemaVersion": 2, "manifests": manifests}).to_string())
    }

    /// Adds a blob and returns its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        self.0.insert(blob_name(&digest), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Adds an image with uncompressed layers and returns the descriptor of its manifest.
    pub(crate) fn image(&mut self, platform: &str, layers: &[&str]) -> Value {
        let config = config(platform, layers);
        self.image_of(&config, layers)
    }

    pub(crate) fn image_of(&mut self, config: &Value, layers: &[&str]) -> Value {
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(LAYER, layer.as_bytes())).collect();
        self.json(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": layers}))
    }

    /// Adds an index and returns its descriptor.
    pub(crate) fn nested(&mut self, manifests: Value) -> Value {
        self.json(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))
    }

    pub(crate) fn json(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    /// Writes the files into a directory.
    pub(crate) fn write(&self, directory: &Path) {
        for (name, content) in &self.0 {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    /// Returns a tar file of the files.
    pub(crate) fn tar(&self) -> Vec<u8> {
        self.0.iter().fold(Tar::new(), |tar, (name, content)| tar.file(name, content)).bytes()
    }
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Adds a member to a JSON object.
pub(crate) fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

/// Adds a platform to a descriptor.
pub(crate) fn on(descriptor: Value, platform: &str) -> Value {
    let platform: crate::image::Platform = platform.parse().unwrap();
    let (os, architecture, variant) = (platform.os, platform.architecture, platform.variant);
    with(descriptor, "platform", json!({"os": os, "architecture": architecture, "variant": variant}))
}

/// Adds a name to a descriptor of `index.json`.
pub(crate) fn named(descriptor: Value, name: &str) -> Value {
    with(descriptor, "annotations", json!({"org.opencontainers.image.ref.name": name}))
}

pub(crate) fn read_layer(source: &dyn Source, layer: &ImageLayer) -> Result<Vec<u8>, SourceError> {
    let mut content = Vec::new();
    source.open_layer(layer)?.read_to_end(&mut content).unwrap();
    Ok(content)
}

/// Asserts the contract of [`Source`] for a resolved image, and returns the contents of its layers.
pub(crate) fn assert_source_contract(source: &dyn Source, image: &Image) -> Vec<Vec<u8>> {
    let manifest: crate::image::ImageManifest = serde_json::from_slice(&image.manifest.bytes).unwrap();
    assert_eq!(Digest::of(&image.manifest.bytes), image.manifest.digest);
    assert_eq!(Digest::of(&image.config.bytes), image.config.digest);
    assert_eq!(manifest.config.digest().unwrap(), image.config.digest);
    assert_eq!(manifest.config.size, image.config.bytes.len() as u64);
    let promised: Vec<_> = manifest.layers.iter().map(|layer| (layer.digest().unwrap(), layer.size)).collect();
    assert_eq!(image.layers.iter().map(|layer| (layer.digest, layer.size)).collect::<Vec<_>>(), promised);
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
    assert_eq!(diff_ids, image.parsed_config.rootfs.diff_ids);
    let read = |layer: &ImageLayer| {
        let content = read_layer(source, layer).unwrap();
        assert_eq!((Digest::of(&content), content.len() as u64), (layer.digest, layer.size));
        content
    };
    image.layers.iter().map(read).collect()
}
