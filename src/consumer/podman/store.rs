//! The two lists of the store: images and layers.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::Flaw;
use super::image::{StoreImage, UNKNOWN_TIME};
use super::name::{is_digest, is_hex, store_name};
use super::paths::{self, FlatLayers, manifest_key};
use super::raw::{RawObject, elements, write_list};
use super::shape::{self, compare};
use crate::image::Digest;

/// The lists in a form that podman accepts.
///
/// Content that podman would refuse is corrected or removed when the lists are read, and returned as a [`Flaw`]. As in podman, a list
/// that is not JSON counts as empty.
#[derive(Debug, Default)]
pub struct PodmanStore {
    images: Vec<StoreEntry>,
    layers: Vec<LayerRow>,
    by_id: HashMap<Digest, usize>,
    by_name: HashMap<String, usize>,
    rows: HashMap<Digest, usize>,
    are_images_changed: bool,
    are_layers_changed: bool,
}

/// One image in the list.
#[derive(Debug)]
pub struct StoreEntry {
    text: Box<RawValue>,
    /// The digest of its config, which is its ID.
    pub config: Digest,
    /// Its names in the form of podman.
    pub names: Vec<String>,
    /// The ID of its topmost layer; `None` if it is missing or malformed.
    pub layer: Option<Digest>,
    /// IDs of copies of the topmost layer with mapped owners.
    pub mapped_layers: Vec<String>,
    /// The digest of its manifest, if the entry has one.
    pub digest: Option<String>,
    /// Keys of those of its documents for which the list states a digest.
    documents: HashSet<String>,
    is_changed: bool,
    is_gone: bool,
}

/// One layer in the list.
#[derive(Debug)]
struct LayerRow {
    text: Box<RawValue>,
    parent: Option<String>,
    has_diff_digest: bool,
    is_gone: bool,
}

/// The members that strata reads of an image in the list.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct KnownImage {
    id: String,
    #[serde(default)]
    names: Option<Vec<Option<String>>>,
    #[serde(default)]
    layer: Option<String>,
    #[serde(default)]
    mapped_layers: Option<Vec<Option<String>>>,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    big_data_digests: Option<HashMap<String, Option<String>>>,
}

/// The members that strata reads of a layer in the list.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct KnownLayer {
    id: String,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    diff_digest: Option<String>,
}

impl PodmanStore {
    /// Parses the lists, and returns the faults that podman does not accept. `is_ours` skips the check of types for lists from strata.
    pub fn parse(images: &[u8], layers: &[u8], is_ours: bool) -> (Self, Vec<Flaw>) {
        let (mut store, mut flaws) = (Self::default(), Vec::new());
        let list = |json, path, flaws: &mut Vec<Flaw>| {
            elements(json, is_ours).unwrap_or_else(|fault| {
                flaws.push(Flaw::new(path, "a list in JSON", fault));
                Vec::new()
            })
        };
        for text in list(layers, paths::layers_list(), &mut flaws) {
            if let Err(flaw) = store.read_layer(text, is_ours) {
                flaws.push(flaw);
                store.are_layers_changed = true;
            }
        }
        for text in list(images, paths::images_list(), &mut flaws) {
            if let Err(flaw) = store.read_image(text, is_ours, &mut flaws) {
                flaws.push(flaw);
                store.are_images_changed = true;
            }
        }
        store.are_images_changed |= !flaws.is_empty();
        store.are_layers_changed |= !flaws.is_empty();
        (store, flaws)
    }

    fn read_layer(&mut self, text: Box<RawValue>, is_ours: bool) -> Result<(), Flaw> {
        let fault = |fault| Flaw::new(paths::layers_list(), "layers that podman can read", fault);
        let known: KnownLayer = known(&text, shape::LAYER, is_ours).map_err(fault)?;
        let id = id_of(&known.id).ok_or_else(|| fault(format!("'{}' as an ID", known.id.escape_debug())))?;
        let parent = known.parent.filter(|parent| !parent.is_empty());
        let row = LayerRow {
            text,
            parent,
            has_diff_digest: known.diff_digest.is_some_and(|d| is_digest(&d)),
            is_gone: false,
        };
        match self.rows.get(&id) {
            // DUCC writes a layer again for each conversion. podman uses the last row.
            Some(&place) => {
                self.layers[place] = row;
                self.are_layers_changed = true;
            }
            None => {
                self.rows.insert(id, self.layers.len());
                self.layers.push(row);
            }
        }
        Ok(())
    }

    fn read_image(&mut self, text: Box<RawValue>, is_ours: bool, flaws: &mut Vec<Flaw>) -> Result<(), Flaw> {
        let path = paths::images_list;
        let fault = |fault| Flaw::new(path(), "images that podman can read", fault);
        let known: KnownImage = known(&text, shape::IMAGE, is_ours).map_err(fault)?;
        let config = id_of(&known.id).ok_or_else(|| fault(format!("'{}' as an ID", known.id.escape_debug())))?;
        let mut entry = StoreEntry {
            text,
            config,
            names: Vec::new(),
            layer: known.layer.as_deref().and_then(id_of),
            mapped_layers: known.mapped_layers.into_iter().flatten().flatten().collect(),
            digest: known.digest.filter(|digest| !digest.is_empty()),
            documents: known.big_data_digests.unwrap_or_default().into_keys().collect(),
            is_changed: false,
            is_gone: false,
        };
        // With an invalid digest, podman refuses the store, and every command fails.
        if let Some(digest) = entry.digest.take_if(|digest| !is_digest(digest)) {
            flaws.push(Flaw::new(path(), format!("a digest of image {}", config.hex()), shown(&digest)));
            entry.set("digest", &Value::Null);
        }
        let at = self.add_entry(entry);
        for name in known.names.into_iter().flatten().flatten() {
            // With one invalid name, `podman images` fails for the whole store.
            match store_name(&name) {
                Some(valid) => {
                    if valid != name {
                        flaws.push(Flaw::new(path(), format!("the name {valid}"), shown(&name)));
                        self.images[at].is_changed = true;
                    }
                    // With one name in two entries, podman refuses the store, and every command fails.
                    if let Some(other) = self.by_name.get(&valid).copied().filter(|&other| other != at) {
                        flaws.push(Flaw::new(path(), format!("the name {valid} once"), "two images with this name"));
                        self.images[other].remove_name(&valid);
                    }
                    self.assign_name(at, &valid, false);
                }
                None => {
                    flaws.push(Flaw::new(path(), "names that podman accepts", shown(&name)));
                    self.images[at].is_changed = true;
                }
            }
        }
        Ok(())
    }

    /// Adds an entry. It replaces an entry of the same image, as in podman, but the names of both are kept.
    fn add_entry(&mut self, mut entry: StoreEntry) -> usize {
        let config = entry.config;
        match self.by_id.get(&config) {
            Some(&at) => {
                entry.names.append(&mut self.images[at].names);
                entry.is_changed = true;
                self.are_images_changed = true;
                self.images[at] = entry;
                at
            }
            None => {
                self.images.push(entry);
                self.by_id.insert(config, self.images.len() - 1);
                self.images.len() - 1
            }
        }
    }

    fn assign_name(&mut self, at: usize, name: &str, is_new: bool) {
        self.by_name.insert(name.to_owned(), at);
        let entry = &mut self.images[at];
        if !entry.names.iter().any(|known| known == name) {
            entry.names.push(name.to_owned());
            entry.is_changed |= is_new;
        }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Returns whether the store has no images.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Returns the images.
    pub fn entries(&self) -> impl Iterator<Item = &StoreEntry> {
        self.images.iter().filter(|entry| !entry.is_gone)
    }

    /// Returns an image.
    pub fn entry(&self, config: Digest) -> Option<&StoreEntry> {
        self.by_id.get(&config).map(|&at| &self.images[at])
    }

    /// Returns the image that has a name.
    pub fn named(&self, name: &str) -> Option<&StoreEntry> {
        self.by_name.get(name).map(|&at| &self.images[at])
    }

    /// Returns the layers from `top` downwards, or a description of a fault in them.
    pub fn layers_below(&self, top: Digest) -> Result<Vec<Digest>, String> {
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        let mut next = Some(top);
        while let Some(id) = next {
            let row = self.rows.get(&id).map(|&at| &self.layers[at]);
            let row = row.ok_or_else(|| format!("no layer {}", id.hex()))?;
            // Without `diff-digest`, `podman images` fails for the whole store.
            if !row.has_diff_digest {
                return Err(format!("layer {} without a digest", id.hex()));
            }
            // A cycle would put podman into an endless loop.
            if !seen.insert(id) {
                return Err(format!("layer {} below itself", id.hex()));
            }
            found.push(id);
            next = match &row.parent {
                Some(parent) => Some(id_of(parent).ok_or_else(|| format!("no layer {}", shown(parent)))?),
                None => None,
            };
        }
        Ok(found)
    }

    /// Adds an image, and moves `name` to it if given.
    ///
    /// An existing entry is kept; if the manifest is new, it is added to the entry.
    pub fn put(&mut self, image: &StoreImage, name: Option<&str>) {
        let at = match self.by_id.get(&image.config) {
            Some(&at) => {
                self.images[at].add_manifest(image);
                at
            }
            None => self.add_entry(StoreEntry::of(image)),
        };
        if self.images[at].layer == Some(image.top()) {
            self.put_layers(image);
        }
        if let Some(name) = name {
            if self.named(name).is_some_and(|entry| entry.config != image.config) {
                self.remove_name(name);
            }
            self.assign_name(at, name, true);
        }
    }

    /// Moves a name to an image. Does nothing if the image is not in the store.
    pub fn add_name(&mut self, config: Digest, name: &str) {
        let Some(&at) = self.by_id.get(&config) else { return };
        if self.named(name).is_some_and(|entry| entry.config != config) {
            self.remove_name(name);
        }
        self.assign_name(at, name, true);
    }

    /// Writes the entry of an image again, and keeps its names.
    pub fn replace(&mut self, image: &StoreImage) {
        let Some(&at) = self.by_id.get(&image.config) else { return };
        let names = std::mem::take(&mut self.images[at].names);
        self.images[at] = StoreEntry { names, ..StoreEntry::of(image) };
        self.put_layers(image);
    }

    fn put_layers(&mut self, image: &StoreImage) {
        let mut parent: Option<Digest> = None;
        for layer in image.layers.iter() {
            let row = match layer.id == image.top() {
                true => LayerRow::of(*layer, parent, &image.created, image.size),
                false => LayerRow::of(*layer, parent, UNKNOWN_TIME, 0),
            };
            match self.rows.get(&layer.id).map(|&at| &mut self.layers[at]) {
                Some(there) if there.has_diff_digest && there.parent == row.parent => {}
                Some(there) => {
                    *there = row;
                    self.are_layers_changed = true;
                }
                None => {
                    self.rows.insert(layer.id, self.layers.len());
                    self.layers.push(row);
                    self.are_layers_changed = true;
                }
            }
            parent = Some(layer.id);
        }
    }

    /// Removes a name. Its image stays and can be run by its ID.
    pub fn remove_name(&mut self, name: &str) {
        if let Some(at) = self.by_name.remove(name) {
            self.images[at].remove_name(name);
        }
    }

    /// Removes an image, and the layer `own_layer`, if given, which no other image uses.
    pub fn remove(&mut self, config: Digest, own_layer: Option<Digest>) {
        let Some(at) = self.by_id.remove(&config) else { return };
        let entry = &mut self.images[at];
        entry.is_gone = true;
        self.are_images_changed = true;
        for name in &entry.names {
            self.by_name.remove(name);
        }
        if let Some(at) = own_layer.and_then(|layer| self.rows.remove(&layer)) {
            self.layers[at].is_gone = true;
            self.are_layers_changed = true;
        }
    }

    /// Returns the topmost layer of an image if the layer has the ID that strata assigns. No other image uses such a layer.
    pub fn own_layer(&self, entry: &StoreEntry) -> Option<Digest> {
        let top = entry.layer?;
        let count = self.layers_below(top).ok()?.len();
        (FlatLayers::of(entry.config, count).top()?.id == top).then_some(top)
    }

    /// Marks both lists as changed, so that they are written.
    pub fn mark_changed(&mut self) {
        (self.are_images_changed, self.are_layers_changed) = (true, true);
    }

    /// Returns the text of the list of images, if it has changed.
    pub fn write_images(&self) -> Option<Vec<u8>> {
        let is_changed = self.are_images_changed || self.images.iter().any(|entry| entry.is_changed);
        is_changed.then(|| write_list(self.entries().map(StoreEntry::write)))
    }

    /// Returns the text of the list of layers, if it has changed.
    pub fn write_layers(&self) -> Option<Vec<u8>> {
        let rows = self.layers.iter().filter(|row| !row.is_gone);
        self.are_layers_changed.then(|| write_list(rows.map(|row| Cow::Borrowed(&*row.text))))
    }
}

impl StoreEntry {
    fn of(image: &StoreImage) -> Self {
        let config = image.config.to_string();
        let digest = image.manifest.map(|manifest| manifest.to_string());
        let mut digests = BTreeMap::from([(config.clone(), config)]);
        let mut entry = json!({"id": image.config.hex()});
        if let (Some(manifest), Some(digest)) = (image.manifest, &digest) {
            entry["digest"] = json!(digest);
            digests.extend(["manifest".to_owned(), manifest_key(manifest)].map(|key| (key, digest.clone())));
        }
        // podman does not need the lists of the documents' names and sizes, and with them it needs 20 % more time to list images.
        let rest = [
            ("names", json!([])),
            ("layer", json!(image.top().hex())),
            ("metadata", json!("{}")),
            ("big-data-digests", json!(digests)),
            ("created", json!(image.created)),
        ];
        rest.into_iter().for_each(|(name, value)| entry[name] = value);
        Self {
            text: serde_json::value::to_raw_value(&entry).expect("a JSON value can be serialized"),
            config: image.config,
            names: Vec::new(),
            layer: Some(image.top()),
            mapped_layers: Vec::new(),
            digest,
            documents: digests.into_keys().collect(),
            is_changed: true,
            is_gone: false,
        }
    }

    /// Returns whether podman finds the image by the digest of this manifest.
    pub fn has_manifest(&self, manifest: Digest) -> bool {
        self.documents.contains(&manifest_key(manifest))
    }

    /// Adds another manifest for the same config.
    fn add_manifest(&mut self, image: &StoreImage) {
        let Some(manifest) = image.manifest.filter(|&manifest| !self.has_manifest(manifest)) else { return };
        let key = manifest_key(manifest);
        let before: Value = serde_json::from_str(self.text.get()).expect("the text was parsed before");
        let digests = shape::member(&before, "big-data-digests").cloned();
        let mut digests = digests.unwrap_or_else(|| json!({}));
        digests[&key] = json!(manifest);
        self.set("big-data-digests", &digests);
        self.documents.insert(key);
    }

    fn remove_name(&mut self, name: &str) {
        self.names.retain(|known| known != name);
        self.is_changed = true;
    }

    fn set(&mut self, name: &str, value: &Value) {
        let mut object = RawObject::parse(self.text.get()).expect("the text was parsed before");
        object.set(name, value);
        self.text = object.write();
        self.is_changed = true;
    }

    /// Returns the text of the entry with its current names.
    fn write(&self) -> Cow<'_, RawValue> {
        if !self.is_changed {
            return Cow::Borrowed(&self.text);
        }
        let mut object = RawObject::parse(self.text.get()).expect("the text was parsed before");
        object.set("names", &json!(self.names));
        Cow::Owned(object.write())
    }
}

impl LayerRow {
    fn of(layer: paths::FlatLayer, parent: Option<Digest>, created: &str, size: u64) -> Self {
        let parent = parent.map(|parent| parent.hex());
        let mut row = json!({"id": layer.id.hex()});
        if let Some(parent) = &parent {
            row["parent"] = json!(parent);
        }
        row["created"] = json!(created);
        row["diff-digest"] = json!(layer.diff);
        row["diff-size"] = json!(size);
        let text = serde_json::value::to_raw_value(&row).expect("a JSON value can be serialized");
        Self { text, parent, has_diff_digest: true, is_gone: false }
    }
}

/// Parses an element of a list, and checks that podman can read it.
fn known<'t, T: Deserialize<'t>>(
    text: &'t RawValue,
    members: &'static [shape::Member],
    is_ours: bool,
) -> Result<T, String> {
    if !is_ours {
        let value: Value = serde_json::from_str(text.get()).map_err(|error| error.to_string())?;
        compare(&value, members)?;
    }
    serde_json::from_str(text.get()).map_err(|error| error.to_string())
}

/// Parses an ID: 64 hexadecimal digits.
fn id_of(text: &str) -> Option<Digest> {
    is_hex(text, 64).then(|| format!("sha256:{text}").parse().expect("64 hexadecimal digits are a valid digest"))
}

fn shown(text: &str) -> String {
    format!("'{}'", text.chars().take(200).collect::<String>().escape_debug())
}

#[cfg(test)]
mod tests;
