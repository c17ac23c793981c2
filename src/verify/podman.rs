//! Compares the entry of an image in the podman store with the image.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::compare::Comparison;
use super::published::VerifiedImage;
use crate::image::Digest;
use crate::path::EntryPath;

const IMAGES: &str = "podmanStore/overlay-images";
const LAYERS: &str = "podmanStore/overlay-layers";
const OVERLAY: &str = "podmanStore/overlay";

/// Creation time in podman's lists for an image without one.
const NO_TIME: &str = "1970-01-01T00:00:00Z";

/// Size in bytes of the token in podman's lock files. Podman compares the token to detect changes.
const TOKEN_BYTES: usize = 64;

impl VerifiedImage<'_> {
    /// Compares the podman store's entry of the image. Called only if the record says that the image is in the store.
    pub(super) fn compare_podman_store(&self, comparison: &mut Comparison<'_>) {
        let Some(entry) = self.find_entry(comparison) else { return };
        self.compare_entry(&entry, comparison);
        self.compare_podman_documents(comparison);
        let top = text(&entry, "layer");
        let Some(rows) = find_rows(top, comparison) else { return };
        let count = self.image.layers.len();
        comparison.require(&path(&format!("{LAYERS}/layers.json")), "layers", count, rows.len());
        // Another program may have added the image before, with other layers.
        if top == self.top_layer() {
            let created = self.image.parsed_config.created.as_deref().unwrap_or(NO_TIME);
            comparison.require(&path(&format!("{IMAGES}/images.json")), "created", created, text(&entry, "created"));
            self.compare_layers(&rows, comparison);
            self.compare_directory(top, comparison);
        }
    }

    /// Returns the entry of the image. Adds a difference if there is not exactly one entry.
    fn find_entry(&self, comparison: &mut Comparison<'_>) -> Option<Value> {
        let list = list("overlay-images", "images", comparison)?;
        let (file, config) = (path(&format!("{IMAGES}/images.json")), self.image.config.digest.hex());
        let name = self.place.name.to_string();
        let has_name = |entry: &&Value| words(entry, "names").any(|known| known == name);
        comparison.require(&file, "names", format!("one image {name}"), {
            let named = list.iter().filter(has_name).count();
            if named == 1 { format!("one image {name}") } else { format!("{named} images {name}") }
        });
        let mut found: Vec<Value> = list.into_iter().filter(|entry| text(entry, "id") == config).collect();
        if found.len() != 1 {
            comparison.note(
                &file,
                "images",
                format!("one entry of image {config}"),
                format!("{} entries", found.len()),
            );
        }
        let entry = found.pop()?;
        let names: Vec<&str> = words(&entry, "names").collect();
        if !names.contains(&name.as_str()) {
            comparison.note(&file, "names", format!("{name} for image {config}"), names.join(", "));
        }
        Some(entry)
    }

    /// Compares the digests of the image's documents in its entry.
    fn compare_entry(&self, entry: &Value, comparison: &mut Comparison<'_>) {
        let file = path(&format!("{IMAGES}/images.json"));
        let (manifest, config) = (self.image.manifest.digest.to_string(), self.image.config.digest.to_string());
        let key = format!("manifest-{manifest}");
        for (key, digest) in [(&key, &manifest), (&config, &config)] {
            comparison.require(&file, "big-data-digests", digest, &text(&entry["big-data-digests"], key).to_owned());
        }
    }

    /// Compares the image's documents in the store byte by byte.
    fn compare_podman_documents(&self, comparison: &mut Comparison<'_>) {
        let (manifest, config) = (&self.image.manifest, &self.image.config);
        let directory = format!("{IMAGES}/{}", config.digest.hex());
        let name = |key: String| format!("{directory}/={}", STANDARD.encode(key));
        let documents =
            [(name(format!("manifest-{}", manifest.digest)), manifest), (name(config.digest.to_string()), config)];
        for (name, document) in documents {
            let path = path(&name);
            if let Some(bytes) = comparison.file(&path) {
                comparison.require(&path, "content", document.digest, Digest::of(&bytes));
            }
        }
        // The image may have been added with another manifest first, so the content of this file is not compared.
        comparison.file(&path(&format!("{directory}/manifest")));
    }

    /// Returns the ID of the store layer that stands for the image's topmost layer.
    fn top_layer(&self) -> String {
        let config = self.image.config.digest.hex();
        let mut below = String::new();
        let count = self.image.layers.len();
        for number in 1..=count {
            let of = if number == count { config.clone() } else { number.to_string() };
            let diff = sha256(&format!("cvmfs-flat-layer:{of}"));
            below = if number == 1 { diff } else { sha256(&format!("{below}+{diff}")) };
        }
        below
    }

    /// Compares the rows of the layers, from the topmost to the lowest.
    fn compare_layers(&self, rows: &[Value], comparison: &mut Comparison<'_>) {
        let file = path(&format!("{LAYERS}/layers.json"));
        for (row, below) in rows.iter().zip(rows.iter().skip(1).map(Some).chain([None])) {
            let diff = text(row, "diff-digest").trim_start_matches("sha256:");
            let id = match below {
                Some(below) => sha256(&format!("{}+{diff}", text(below, "id"))),
                None => diff.to_owned(),
            };
            comparison.require(&file, "id", id, text(row, "id").to_owned());
        }
    }

    /// Compares the directory of the topmost layer.
    fn compare_directory(&self, layer: &str, comparison: &mut Comparison<'_>) {
        let (diff, config) = (path(&format!("{OVERLAY}/{layer}/diff")), self.image.config.digest.hex());
        let repository = &self.repository.manifest().name;
        let target = format!("$(CVMFS_MOUNT_DIR:-/cvmfs)/{repository}/.flat/{}/{config}", &config[..2]);
        self.compare_link(&diff, &target, comparison);
        let file = path(&format!("{OVERLAY}/{layer}/link"));
        let Some(name) = comparison.file(&file) else { return };
        let name = String::from_utf8_lossy(&name).into_owned();
        if name.len() != 26 || !name.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7')) {
            return comparison.note(&file, "content", "26 digits of base 32", name);
        }
        self.compare_link(&path(&format!("{OVERLAY}/l/{name}")), &format!("../{layer}/diff"), comparison);
        if matches!(self.repository.get(&path(&format!("{OVERLAY}/{layer}/lower"))), Ok(Some(_))) {
            comparison.note(&path(&format!("{OVERLAY}/{layer}/lower")), "path", "nothing", "something");
        }
    }

    /// Compares the target of a link as it is stored, before clients expand it.
    fn compare_link(&self, link: &EntryPath, target: &str, comparison: &mut Comparison<'_>) {
        let found = match self.repository.get(link) {
            Ok(Some(entry)) if entry.is_symlink() => String::from_utf8_lossy(&entry.symlink).into_owned(),
            Ok(Some(_)) => "something else".to_owned(),
            Ok(None) => "nothing".to_owned(),
            Err(error) => crate::message::causes(&error),
        };
        comparison.require(link, "target", target.to_owned(), found);
    }
}

/// Reads a list and its lock file.
fn list(directory: &str, name: &str, comparison: &mut Comparison<'_>) -> Option<Vec<Value>> {
    let lock = path(&format!("podmanStore/{directory}/{name}.lock"));
    if let Some(token) = comparison.file(&lock) {
        comparison.require(&lock, "size", TOKEN_BYTES, token.len());
    }
    let file = path(&format!("podmanStore/{directory}/{name}.json"));
    let json = comparison.file(&file)?;
    let list: Option<Vec<Value>> = serde_json::from_slice(&json).ok();
    if list.is_none() {
        comparison.note(&file, "content", "a list in JSON", "something else");
    }
    list
}

/// Returns the rows of a layer and all layers below it, from the top.
fn find_rows(top: &str, comparison: &mut Comparison<'_>) -> Option<Vec<Value>> {
    let list = list("overlay-layers", "layers", comparison)?;
    let file = path(&format!("{LAYERS}/layers.json"));
    let (mut rows, mut next): (Vec<Value>, _) = (Vec::new(), top.to_owned());
    while !next.is_empty() {
        let Some(row) = list.iter().find(|row| text(row, "id") == next).filter(|row| !rows.contains(*row)) else {
            comparison.note(&file, "layers", format!("one row of layer {next}"), "another stack of layers");
            return None;
        };
        if text(row, "diff-digest").is_empty() {
            comparison.note(&file, "diff-digest", format!("a digest of layer {next}"), "none");
        }
        next = text(row, "parent").to_owned();
        rows.push(row.clone());
    }
    Some(rows)
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}

fn words<'v>(value: &'v Value, name: &str) -> impl Iterator<Item = &'v str> {
    value[name].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn sha256(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()
}

fn path(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).expect("these paths have short components and no NUL byte")
}
