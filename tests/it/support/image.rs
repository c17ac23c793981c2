//! Builds images and writes them as OCI layout, OCI archive or docker archive.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::layer::{TestLayer, digest};

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// A digest that no blob has.
const WRONG_DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// A fault of an image that is written. The number is that of a layer; the lowest layer has number 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// The manifest states a wrong digest for the layer, and its blob is stored under that digest. OCI forms only.
    WrongDigest(usize),
    /// The manifest states one byte more than the layer has. OCI forms only.
    WrongSize(usize),
    /// The config states a wrong diff ID for the layer.
    WrongDiffId(usize),
    /// The config has no diff ID for the topmost layer.
    MissingDiffId,
    /// The second half of the layer's blob is missing.
    Truncated(usize),
    /// The layer's blob is missing.
    Omitted(usize),
}

/// An image under construction. The same calls result in the same bytes.
#[derive(Debug, Clone)]
pub struct TestImage {
    layers: Vec<TestLayer>,
    settings: BTreeMap<&'static str, Value>,
    platform: (String, String),
    variant: Option<String>,
    damage: BTreeSet<Damage>,
    /// The diff IDs in the config, if they differ from those of the layers.
    claimed_diff_ids: Option<Vec<String>>,
}

/// The documents and blobs of an image, by digest.
struct Built {
    config: Vec<u8>,
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
}

impl TestImage {
    /// Creates an image without layers, for the platform of the machine that runs the test.
    pub fn new() -> Self {
        let architecture = match ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let (layers, settings, damage) = Default::default();
        let platform = ("linux".to_owned(), architecture.to_owned());
        Self { layers, settings, platform, variant: None, damage, claimed_diff_ids: None }
    }

    /// Adds a layer on top.
    pub fn layer(mut self, fill: impl FnOnce(TestLayer) -> TestLayer) -> Self {
        self.layers.push(fill(TestLayer::new()));
        self
    }

    /// Adds a variable to the environment.
    pub fn env(self, name: &str, value: &str) -> Self {
        self.append("Env", json!(format!("{name}={value}")))
    }

    /// Sets the entrypoint.
    pub fn entrypoint<const N: usize>(self, words: [&str; N]) -> Self {
        self.setting("Entrypoint", json!(words.to_vec()))
    }

    /// Sets the command.
    pub fn cmd<const N: usize>(self, words: [&str; N]) -> Self {
        self.setting("Cmd", json!(words.to_vec()))
    }

    /// Adds a label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.settings.entry("Labels").or_insert_with(|| json!({}))[name] = json!(value);
        self
    }

    /// Sets any field of the config's `config` object.
    pub fn setting(mut self, name: &'static str, value: Value) -> Self {
        self.settings.insert(name, value);
        self
    }

    /// Sets the operating system and architecture of the image.
    pub fn platform(mut self, os: &str, architecture: &str) -> Self {
        self.platform = (os.to_owned(), architecture.to_owned());
        self
    }

    /// Sets the variant of the architecture.
    pub fn variant(mut self, variant: &str) -> Self {
        self.variant = Some(variant.to_owned());
        self
    }

    /// Adds a fault to the image when it is written.
    pub fn damage(mut self, damage: Damage) -> Self {
        self.damage.insert(damage);
        self
    }

    /// Makes the config state the diff IDs of another image.
    pub fn claim_to_be(mut self, other: &Self) -> Self {
        self.claimed_diff_ids = Some(other.diff_ids());
        self
    }

    /// Returns the diff IDs in the config, from the lowest layer up.
    pub fn diff_ids(&self) -> Vec<String> {
        let own = || self.layers.iter().map(TestLayer::diff_id).collect();
        let mut diff_ids: Vec<String> = self.claimed_diff_ids.clone().unwrap_or_else(own);
        for damage in &self.damage {
            match *damage {
                Damage::WrongDiffId(layer) => diff_ids[layer] = WRONG_DIGEST.to_owned(),
                Damage::MissingDiffId => drop(diff_ids.pop()),
                _ => {}
            }
        }
        diff_ids
    }

    /// Returns whether no layer occurs twice. Linux refuses an overlay mount that has the same directory twice.
    pub fn has_distinct_layers(&self) -> bool {
        let digests = self.layer_digests();
        digests.iter().collect::<BTreeSet<_>>().len() == digests.len()
    }

    /// Returns the digests of the layers in the manifest, from the lowest layer up.
    pub fn layer_digests(&self) -> Vec<String> {
        let digest = |(number, layer): (usize, &TestLayer)| {
            let is_wrong = self.damage.contains(&Damage::WrongDigest(number));
            if is_wrong { WRONG_DIGEST.to_owned() } else { digest(&layer.packed().1) }
        };
        self.layers.iter().enumerate().map(digest).collect()
    }

    /// Returns the bytes of the image config.
    pub fn config(&self) -> Vec<u8> {
        let history: Vec<Value> = self.layers.iter().map(|_| json!({ "created_by": "test" })).collect();
        let mut config = json!({
            "created": "2017-07-14T02:40:00Z",
            "architecture": self.platform.1,
            "os": self.platform.0,
            "config": self.settings,
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids() },
            "history": history,
        });
        if let Some(variant) = &self.variant {
            config["variant"] = json!(variant);
        }
        config.to_string().into_bytes()
    }

    /// Returns the bytes of the OCI image manifest.
    pub fn manifest(&self) -> Vec<u8> {
        let config = self.config();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .zip(self.layer_digests())
            .enumerate()
            .map(|(number, (layer, digest))| {
                let (media_type, blob) = layer.packed();
                let size = blob.len() + usize::from(self.damage.contains(&Damage::WrongSize(number)));
                json!({ "mediaType": media_type, "digest": digest, "size": size })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, &config),
            "layers": layers,
        });
        manifest.to_string().into_bytes()
    }

    /// Returns the digest of the image config, which names the flat tree.
    pub fn config_digest(&self) -> String {
        digest(&self.config())
    }

    /// Returns the digest of the OCI image manifest.
    pub fn manifest_digest(&self) -> String {
        digest(&self.manifest())
    }

    /// Returns the config and the layers, by digest.
    pub fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let Built { config, mut blobs, .. } = self.build();
        blobs.insert(digest(&config), config);
        blobs
    }

    /// Writes the image into an OCI layout under `reference`. An existing layout keeps its other images.
    pub fn write_oci_layout(&self, directory: &Path, reference: &str) {
        let built = self.build();
        write_blobs(directory, &built);
        add_to_layout(directory, reference, descriptor(MANIFEST_TYPE, &built.manifest));
    }

    /// Writes a tar archive of an OCI layout that holds the image under `reference`.
    pub fn write_oci_archive(&self, file: &Path, reference: &str) {
        let built = self.build();
        let mut descriptor = descriptor(MANIFEST_TYPE, &built.manifest);
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
        let mut members = BTreeMap::from([
            ("oci-layout".to_owned(), layout_marker()),
            ("index.json".to_owned(), index(vec![descriptor])),
        ]);
        members.extend(built.documents().into_iter().map(|(digest, bytes)| (blob_path(&digest), bytes)));
        write_tar(file, members.into_iter());
    }

    /// Writes the image as `docker save` does, with plain layers. `name` is `host/name:tag`.
    pub fn write_docker_archive(&self, file: &Path, name: &str) {
        let config = self.config();
        let config_name = format!("{}.json", hex_of(&digest(&config)));
        let layer_names: Vec<String> =
            self.layers.iter().map(|layer| format!("{}.tar", hex_of(&layer.diff_id()))).collect();
        let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": layer_names }]);
        let mut members = Vec::new();
        for (number, (layer, name)) in self.layers.iter().zip(&layer_names).enumerate() {
            if let Some(tar) = self.damaged(number, layer.tar())
                && !members.iter().any(|(other, _)| other == name)
            {
                members.push((name.clone(), tar));
            }
        }
        members.push((config_name, config));
        members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
        write_tar(file, members.into_iter());
    }

    fn append(mut self, name: &'static str, value: Value) -> Self {
        let list = self.settings.entry(name).or_insert_with(|| json!([]));
        list.as_array_mut().expect("the setting is a list").push(value);
        self
    }

    /// Returns the bytes of a layer that are written; `None` if the blob is missing.
    fn damaged(&self, number: usize, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        if self.damage.contains(&Damage::Truncated(number)) {
            bytes.truncate(bytes.len() / 2);
        }
        (!self.damage.contains(&Damage::Omitted(number))).then_some(bytes)
    }

    fn build(&self) -> Built {
        let mut blobs = BTreeMap::new();
        for (number, (layer, digest)) in self.layers.iter().zip(self.layer_digests()).enumerate() {
            if let Some(bytes) = self.damaged(number, layer.packed().1) {
                blobs.insert(digest, bytes);
            }
        }
        Built { config: self.config(), manifest: self.manifest(), blobs }
    }
}

impl Built {
    /// Returns all blobs of a layout.
    fn documents(self) -> BTreeMap<String, Vec<u8>> {
        let mut documents = self.blobs;
        documents.insert(digest(&self.config), self.config);
        documents.insert(digest(&self.manifest), self.manifest);
        documents
    }
}

/// Returns an image of one layer with one file, `word`, whose content is `word`.
pub fn image_of(word: &str) -> TestImage {
    TestImage::new().layer(|layer| layer.file("word", word))
}

/// Writes several images, one for each platform, into an OCI layout under one reference, and returns the index's digest.
pub fn write_oci_index(images: &[TestImage], directory: &Path, reference: &str) -> String {
    let mut manifests = Vec::new();
    for image in images {
        let built = image.build();
        let mut descriptor = descriptor(MANIFEST_TYPE, &built.manifest);
        descriptor["platform"] = json!({ "architecture": image.platform.1, "os": image.platform.0 });
        if let Some(variant) = &image.variant {
            descriptor["platform"]["variant"] = json!(variant);
        }
        manifests.push(descriptor);
        write_blobs(directory, &built);
    }
    let index = index(manifests);
    write(&directory.join(blob_path(&digest(&index))), &index);
    add_to_layout(directory, reference, descriptor(INDEX_TYPE, &index));
    digest(&index)
}

fn write_blobs(directory: &Path, built: &Built) {
    let documents = [(digest(&built.config), &built.config), (digest(&built.manifest), &built.manifest)];
    let blobs = built.blobs.iter().map(|(digest, bytes)| (digest.clone(), bytes));
    for (digest, bytes) in blobs.chain(documents) {
        write(&directory.join(blob_path(&digest)), bytes);
    }
}

fn add_to_layout(directory: &Path, reference: &str, mut descriptor: Value) {
    let path = directory.join("index.json");
    let known: Value = fs::read(&path)
        .map_or(json!({}), |bytes| serde_json::from_slice(&bytes).expect("the index was written by these tests"));
    let mut manifests = known["manifests"].as_array().cloned().unwrap_or_default();
    let annotations = json!({ "org.opencontainers.image.ref.name": reference });
    manifests.retain(|manifest| manifest["annotations"] != annotations);
    descriptor["annotations"] = annotations;
    manifests.push(descriptor);
    write(&directory.join("oci-layout"), &layout_marker());
    write(&path, &index(manifests));
}

fn layout_marker() -> Vec<u8> {
    json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes()
}

fn index(manifests: Vec<Value>) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests }).to_string().into_bytes()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn hex_of(digest: &str) -> &str {
    digest.strip_prefix("sha256:").expect("all digests are SHA-256")
}

/// Returns the file of a blob in the layout that `source`, `oci:DIR`, names.
pub fn blob_file(source: &str, digest: &str) -> PathBuf {
    Path::new(source.strip_prefix("oci:").expect("the source is a layout")).join(blob_path(digest))
}

fn blob_path(digest: &str) -> String {
    format!("blobs/sha256/{}", hex_of(digest))
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a file has a parent directory")).expect("a test can create directories");
    fs::write(path, bytes).unwrap_or_else(|error| panic!("cannot write {path:?}: {error}"));
}

fn write_tar(file: &Path, members: impl Iterator<Item = (String, Vec<u8>)>) {
    let mut archive = Builder::new(File::create(file).unwrap_or_else(|error| panic!("cannot write {file:?}: {error}")));
    for (name, bytes) in members {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_path(&name).expect("the names of these tests are short");
        header.set_cksum();
        archive.append(&header, bytes.as_slice()).unwrap_or_else(|error| panic!("cannot write {file:?}: {error}"));
    }
    archive.finish().unwrap_or_else(|error| panic!("cannot write {file:?}: {error}"));
}
