//! Updates the store for podman when images change, and repairs a store that another program wrote.

use std::collections::BTreeMap;
use std::fmt;

use super::{
    ImageAudit, MANY_IMAGES, PodmanListing, PodmanStore, PublishedStore, StoreEntry, StoreImage, listed_platform,
    store_name,
};
use super::{
    audit_image, diff_target, document, flat_size, image_directory, images, images_list, images_lock, layer_diff,
    layer_directory, layer_link, layers_list, layers_lock, link_id, lock_token, manifest_key, read_documents,
    short_link, short_link_target,
};
use crate::consumer::{ConsumerChanges, ImageChange};
use crate::image::{Digest, ImageName};
use crate::inventory::{directories, foreign_config, list_intact, places};
use crate::layout;
use crate::message::causes;
use crate::observer::Reporter;
use crate::publish::{Edit, EditError, EditList};
use crate::repository::{Repository, RepositoryError};

/// The required entry of a name in the store.
enum Wanted<'a> {
    /// The name belongs to this image.
    Image(&'a ImageChange<'a>),
    /// If the name is in the store, it belongs to the image with this config. The image is published, but not added to the store.
    Only(Digest),
    /// The name is not in the store.
    Nothing,
}

/// Returns the required entry for each changed name.
fn wanted<'a>(changes: &'a ConsumerChanges<'a>, reporter: &Reporter) -> BTreeMap<ImageName, Wanted<'a>> {
    let mut wanted = BTreeMap::new();
    for published in changes.published {
        let images = &published.images;
        for image in images {
            if let PodmanListing::Refused(refusal) = image.podman {
                reporter.warn(format_args!("{}: not listed for podman: {refusal}", image.place));
            }
        }
        // Without a new flat tree the public link does not change.
        if !images.iter().all(|image| image.has_flat) {
            continue;
        }
        let image = match images.iter().find(|image| image.is_listed()) {
            Some(image) => Wanted::Image(image),
            None => match listed_platform(images.iter().map(|image| image.place)) {
                Some(listed) => Wanted::Only(images[listed].config.digest),
                None => Wanted::Nothing,
            },
        };
        wanted.insert(published.name.clone(), image);
    }
    wanted.extend(changes.removed.iter().map(|name| (name.clone(), Wanted::Nothing)));
    wanted
}

/// Adds the edits that update the store for `changes` and for the other edits.
pub(super) fn update_store(edits: &mut EditList<'_>, changes: &ConsumerChanges<'_>) -> Result<(), EditError> {
    let wanted = wanted(changes, edits.head().store().reporter());
    StoreUpdate { head: edits.head(), edits }.update(&wanted)
}

/// An update of the store.
struct StoreUpdate<'a, 'e> {
    head: &'a Repository,
    edits: &'e mut EditList<'a>,
}

impl StoreUpdate<'_, '_> {
    /// Updates the store for the changed names.
    ///
    /// A store that another program wrote is changed only if a name requires another entry.
    fn update(&mut self, wanted: &BTreeMap<ImageName, Wanted<'_>>) -> Result<(), EditError> {
        let gone = self.removed_flat_trees();
        if gone.is_empty() && !self.may_affect_store(wanted)? {
            return Ok(());
        }
        let repairs = wanted.values().any(|shown| matches!(shown, Wanted::Image(image) if image.is_forced));
        let published = match repairs {
            true => PublishedStore::read_to_repair(self.head)?,
            false => PublishedStore::read(self.head)?,
        };
        if published.is_none() && !wanted.values().any(|shown| matches!(shown, Wanted::Image(_))) {
            return Ok(());
        }
        let mut published = published.unwrap_or(PublishedStore { is_ours: true, ..PublishedStore::default() });
        let is_as_wanted = gone.is_empty()
            && wanted.iter().all(|(name, shown)| is_as_wanted(&published.store, &name.to_string(), shown));
        if is_as_wanted && (published.is_ours || self.edits.is_empty()) {
            return Ok(());
        }
        if !published.is_ours {
            self.take_over(&mut published)?;
        }
        let mut store = published.store;
        for (name, shown) in wanted {
            let name = &name.to_string();
            match shown {
                Wanted::Image(image) => {
                    let listed = self.put_image(&store, image)?;
                    store.put(&listed, Some(name));
                    self.put_layer(&listed)?;
                }
                Wanted::Only(config) if store.named(name).is_some_and(|entry| entry.config == *config) => {}
                Wanted::Only(_) | Wanted::Nothing => store.remove_name(name),
            }
        }
        for config in gone {
            self.remove_image(&mut store, config)?;
        }
        self.write_lists(&store)
    }

    /// Returns whether the changes may affect the store: an image is added, or a name existed before and may be in the store.
    ///
    /// This avoids reading the lists, which grow with the repository, for new names that are not listed.
    fn may_affect_store(&self, wanted: &BTreeMap<ImageName, Wanted<'_>>) -> Result<bool, EditError> {
        for (name, shown) in wanted {
            if matches!(shown, Wanted::Image(_)) || !places(self.head, name)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_lists(&mut self, store: &PodmanStore) -> Result<(), EditError> {
        let lists = [
            (store.write_images(), images_list(), images_lock()),
            (store.write_layers(), layers_list(), layers_lock()),
        ];
        for (json, list, lock) in lists {
            if let Some(json) = json {
                self.edits.add_changing_file(list, &json)?;
                self.edits.add_file(lock, lock_token(&json).as_bytes())?;
            }
        }
        if store.len() > MANY_IMAGES {
            self.head.store().reporter().warn(format_args!(
                "the store for podman has {} images, and podman's time to list them grows with the square of that number: \
                 select fewer with '[podman] images' in strata.toml",
                store.len()
            ));
        }
        Ok(())
    }

    /// Adds the documents of an image to the store.
    fn put_image(&mut self, store: &PodmanStore, image: &ImageChange<'_>) -> Result<StoreImage, EditError> {
        let config = image.config.digest;
        let size = match image.flat_size {
            Some(size) => size,
            None => flat_size(self.head, config)?.unwrap_or(0),
        };
        let listed = image.for_podman(size).expect("only an image that podman accepts is listed");
        // The document `manifest` keeps the first manifest with which the image was published.
        let first = store.entry(config).and_then(|entry| entry.digest.as_ref());
        if first.is_none_or(|first| *first == image.manifest.digest.to_string()) {
            self.edits.put_file(document(config, "manifest"), Some(&image.manifest.bytes))?;
        }
        self.edits.put_file(document(config, &manifest_key(image.manifest.digest)), Some(&image.manifest.bytes))?;
        self.edits.put_file(document(config, &config.to_string()), Some(&image.config.bytes))?;
        Ok(listed)
    }

    /// Adds the directory of an image's topmost layer to the store.
    fn put_layer(&mut self, image: &StoreImage) -> Result<(), EditError> {
        let layer = image.top();
        let (diff, target) = (layer_diff(layer), diff_target(&self.head.manifest().name, image.config));
        self.edits.add_variant_link(diff, target.into_bytes())?;
        let link = self.link_of(layer);
        self.edits.put_file(layer_link(layer), Some(link.as_bytes()))?;
        self.edits.add_link(short_link(&link), short_link_target(layer).as_bytes())
    }

    /// Returns the short name of a layer. An existing name from another program is kept unless it is lost, because containers contain it.
    fn link_of(&self, layer: Digest) -> String {
        let before = self.head.read(&layer_link(layer), super::MAX_DOCUMENT_SIZE as u64);
        let before = before.unwrap_or_else(|error| {
            self.report_repair(format_args!("{}", causes(&error)));
            None
        });
        let before = before.and_then(|name| String::from_utf8(name).ok()).filter(|name| is_link_id(name));
        before.unwrap_or_else(|| link_id(layer))
    }

    /// Repairs a store that another program wrote last, so that podman accepts it, and reports the faults.
    ///
    /// An image with faults is listed again with its flat tree. If the flat tree or the documents are missing, the image is
    /// removed from the list, but its files are kept.
    fn take_over(&mut self, published: &mut PublishedStore) -> Result<(), EditError> {
        published.flaws.iter().for_each(|flaw| self.report_repair(format_args!("{flaw}")));
        let store = &mut published.store;
        store.mark_changed();
        if published.has_lost_images {
            self.rebuild_list(store)?;
        }
        let images: Vec<Digest> = store.entries().map(|entry| entry.config).collect();
        for config in images {
            let entry = store.entry(config).expect("the entry was found in the list before");
            let ImageAudit { flaws, documents } = match audit_image(self.head, store, entry) {
                Err(RepositoryError::Content { path, source }) if source.is_damage() => {
                    self.report_repair(format_args!("cannot read {path}: {}", causes(&source)));
                    ImageAudit { flaws: Vec::new(), documents: None }
                }
                audit => audit?,
            };
            let is_listed = match (flaws.first(), &documents) {
                (None, Some((manifest, bytes))) => {
                    self.keep_manifest(config, manifest)?;
                    if is_cut_short(entry, manifest, bytes) {
                        self.list_again(store, manifest, bytes)?;
                    }
                    continue;
                }
                (_, Some((manifest, config))) => self.list_again(store, manifest, config)?,
                (_, None) => false,
            };
            let what = if is_listed { "is listed again" } else { "is no longer listed" };
            let why = flaws.first().map(ToString::to_string).unwrap_or_default();
            self.report_repair(format_args!("image {} {what}: {why}", config.hex()));
            if !is_listed {
                store.remove(config, None);
            }
        }
        Ok(())
    }

    fn report_repair(&self, text: fmt::Arguments<'_>) {
        self.head.store().reporter().warn(format_args!("repairing podman's store: {text}"));
    }

    /// Rebuilds a lost list of images: lists every image whose documents and flat tree are published, under its names in the records.
    fn rebuild_list(&mut self, store: &mut PodmanStore) -> Result<(), EditError> {
        for name in directories(self.head, &images())? {
            let config = String::from_utf8(name).ok().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            let Some(config) = config else { continue };
            let documents = match read_documents(self.head, config) {
                Err(RepositoryError::Content { path, source }) if source.is_damage() => {
                    self.report_repair(format_args!("cannot read {path}: {}", causes(&source)));
                    continue;
                }
                documents => documents?,
            };
            let (Ok((manifest, bytes)), Some(size)) = (documents, flat_size(self.head, config)?) else {
                continue;
            };
            if let Ok(image) = StoreImage::new(&manifest, &bytes, size) {
                store.put(&image, None);
            }
        }
        for listed in list_intact(self.head)? {
            let config = match listed.record {
                Some(record) => record.podman.then_some(record.config),
                // DUCC lists all of its images.
                None => foreign_config(self.head, &listed.place)?,
            };
            if let (Some(config), Some(name)) = (config, store_name(&listed.place.name.to_string())) {
                store.add_name(config, &name);
            }
        }
        Ok(())
    }

    /// Replaces a link to an image's manifest by a file, because the target of the link may change to another image's manifest.
    fn keep_manifest(&mut self, config: Digest, manifest: &[u8]) -> Result<(), EditError> {
        let path = document(config, "manifest");
        if self.head.get(&path)?.is_some_and(|entry| entry.is_symlink()) {
            self.edits.add_file(path, manifest)?;
        }
        Ok(())
    }

    /// Lists an image again with its flat tree. Returns `false` if that is not possible.
    fn list_again(&mut self, store: &mut PodmanStore, manifest: &[u8], config: &[u8]) -> Result<bool, EditError> {
        let size = flat_size(self.head, Digest::of(config))?;
        let Some(image) = size.and_then(|size| StoreImage::new(manifest, config, size).ok()) else { return Ok(false) };
        store.replace(&image);
        self.keep_manifest(image.config, manifest)?;
        if let Some(digest) = image.manifest {
            self.edits.put_file(document(image.config, &manifest_key(digest)), Some(manifest))?;
        }
        self.put_layer(&image)?;
        Ok(true)
    }

    /// Returns the config digests of the images whose flat trees are removed.
    fn removed_flat_trees(&self) -> Vec<Digest> {
        let removed = self.edits.edits().iter().filter(|(_, edit)| matches!(edit, Edit::Remove));
        removed.filter_map(|(path, _)| layout::config_of_flat(path)).collect()
    }

    /// Removes an image from the store, because its flat tree is removed.
    fn remove_image(&mut self, store: &mut PodmanStore, config: Digest) -> Result<(), EditError> {
        let Some(entry) = store.entry(config) else { return Ok(()) };
        let layer = store.own_layer(entry);
        if let Some(layer) = layer {
            let link = short_link(&self.link_of(layer));
            self.edits.insert(layer_directory(layer), Edit::Remove);
            self.edits.insert(link, Edit::Remove);
        }
        self.edits.insert(image_directory(config), Edit::Remove);
        store.remove(config, layer);
        Ok(())
    }
}

/// Returns whether the store already has the required entry of a name.
fn is_as_wanted(store: &PodmanStore, name: &str, shown: &Wanted<'_>) -> bool {
    let there = store.named(name);
    match shown {
        Wanted::Image(image) => {
            let is_same =
                |entry: &StoreEntry| entry.config == image.config.digest && entry.has_manifest(image.manifest.digest);
            !image.is_forced && there.is_some_and(is_same)
        }
        Wanted::Only(config) => there.is_none_or(|entry| entry.config == *config),
        Wanted::Nothing => there.is_none(),
    }
}

/// Returns whether an entry from strata lacks the manifest by which podman finds the image: DUCC drops unknown members when it rewrites
/// an entry.
fn is_cut_short(entry: &StoreEntry, manifest: &[u8], config: &[u8]) -> bool {
    StoreImage::new(manifest, config, 0).is_ok_and(|image| {
        entry.layer == Some(image.top()) && image.manifest.is_some_and(|manifest| !entry.has_manifest(manifest))
    })
}

/// Returns whether a text has the form of a short name of containers/storage.
fn is_link_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
}
