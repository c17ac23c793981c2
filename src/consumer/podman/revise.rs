//! Keeps the store that podman reads in step with the images of a repository, and repairs one that another program wrote.

use std::collections::BTreeMap;

use super::{
    Audit, Entry, MANY_IMAGES, PodmanListing, PodmanStore, PublishedStore, StoreImage, listed_platform, store_name,
};
use super::{
    audit_image, diff_target, document, flat_size, image_directory, images, images_list, images_lock, layer_diff,
    layer_directory, layer_link, layers_list, layers_lock, link_id, lock_token, manifest_key, read_documents,
    short_link, short_link_target,
};
use crate::consumer::{ConsumerChanges, ConsumerError, ImageChange};
use crate::image::{Digest, ImageName};
use crate::inventory::{directories, foreign_config, list_intact, places};
use crate::layout;
use crate::message::causes;
use crate::publish::{Edit, EditList};
use crate::repository::{Repository, RepositoryError};

/// What podman is to find under a name.
enum Wanted<'a> {
    /// This image.
    Image(&'a ImageChange<'a>),
    /// The image with this config, or none: the image is published under the name, but podman is not to list it anew.
    Only(Digest),
    /// No image.
    Nothing,
}

/// Returns what podman is to find under each name that changes.
fn wanted<'a>(changes: &'a ConsumerChanges<'a>) -> BTreeMap<ImageName, Wanted<'a>> {
    let mut wanted = BTreeMap::new();
    for published in changes.published {
        let images = &published.images;
        for image in images {
            if let PodmanListing::Refused(refusal) = image.podman {
                tracing::warn!("{}: podman does not see it: {refusal}", image.place);
            }
        }
        // Without a new root file system the name leads to what it led to before.
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

/// Adds the edits that bring the store in step with `changes` and with the other edits.
pub(super) fn update_store(edits: &mut EditList<'_>, changes: &ConsumerChanges<'_>) -> Result<(), ConsumerError> {
    StoreUpdate { head: edits.head(), edits }.update(&wanted(changes))
}

/// An update of the store under way.
struct StoreUpdate<'a, 'e> {
    head: &'a Repository,
    edits: &'e mut EditList<'a>,
}

impl StoreUpdate<'_, '_> {
    /// Brings the store that podman reads in step with what is published.
    ///
    /// A store that another program wrote is left alone until podman is to see something new.
    fn update(&mut self, wanted: &BTreeMap<ImageName, Wanted<'_>>) -> Result<(), ConsumerError> {
        let gone = self.root_file_systems_that_go();
        if gone.is_empty() && !self.concern_podman(wanted)? {
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

    /// Tells whether podman is to see an image, or may see one under a name that was published before.
    ///
    /// The lists grow with the repository, so they are not read where a name is new and podman is not to see it.
    fn concern_podman(&self, wanted: &BTreeMap<ImageName, Wanted<'_>>) -> Result<bool, ConsumerError> {
        for (name, shown) in wanted {
            if matches!(shown, Wanted::Image(_)) || !places(self.head, name)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_lists(&mut self, store: &PodmanStore) -> Result<(), ConsumerError> {
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
            tracing::warn!(
                "podman sees {} images, and its time to list them grows with the square of that: '[podman] images' in \
                 strata.toml chooses which",
                store.len()
            );
        }
        Ok(())
    }

    /// Adds the documents of an image to the store.
    fn put_image(&mut self, store: &PodmanStore, image: &ImageChange<'_>) -> Result<StoreImage, ConsumerError> {
        let config = image.config.digest;
        let size = match image.flat_size {
            Some(size) => size,
            None => flat_size(self.head, config)?.unwrap_or(0),
        };
        let listed = image.for_podman(size).expect("only an image that podman accepts is listed");
        // A manifest that the image came with before stays the first one.
        let first = store.entry(config).and_then(|entry| entry.digest.as_ref());
        if first.is_none_or(|first| *first == image.manifest.digest.to_string()) {
            self.edits.put_file(document(config, "manifest"), Some(&image.manifest.bytes))?;
        }
        self.edits.put_file(document(config, &manifest_key(image.manifest.digest)), Some(&image.manifest.bytes))?;
        self.edits.put_file(document(config, &config.to_string()), Some(&image.config.bytes))?;
        Ok(listed)
    }

    /// Adds the directory of an image's topmost layer to the store.
    fn put_layer(&mut self, image: &StoreImage) -> Result<(), ConsumerError> {
        let layer = image.top();
        let (diff, target) = (layer_diff(layer), diff_target(&self.head.manifest().name, image.config));
        self.edits.add_variant_link(diff, target.into_bytes())?;
        let link = self.link_of(layer);
        self.edits.put_file(layer_link(layer), Some(link.as_bytes()))?;
        Ok(self.edits.add_link(short_link(&link), short_link_target(layer).as_bytes())?)
    }

    /// Returns the short name of a layer. One that another program gave it stays, unless it is lost: containers know it.
    fn link_of(&self, layer: Digest) -> String {
        let before = self.head.read(&layer_link(layer), super::LONGEST_DOCUMENT as u64);
        let before = before.unwrap_or_else(|error| {
            tracing::warn!("repairing podman's store: {}", causes(&error));
            None
        });
        let before = before.and_then(|name| String::from_utf8(name).ok()).filter(|name| is_link_id(name));
        before.unwrap_or_else(|| link_id(layer))
    }

    /// Brings a store that another program wrote last into a form that podman takes, and tells what was wrong with it.
    ///
    /// An image that podman would stumble over is listed anew over its root file system. Where that or the documents are
    /// missing, it leaves the list; its files stay.
    fn take_over(&mut self, published: &mut PublishedStore) -> Result<(), ConsumerError> {
        published.flaws.iter().for_each(|flaw| tracing::warn!("repairing podman's store: {flaw}"));
        let store = &mut published.store;
        store.write_anew();
        if published.has_lost_images {
            self.list_all_anew(store)?;
        }
        let images: Vec<Digest> = store.entries().map(|entry| entry.config).collect();
        for config in images {
            let entry = store.entry(config).expect("it was listed just now");
            let Audit { flaws, documents } = match audit_image(self.head, store, entry) {
                Err(RepositoryError::Content { path, source }) if source.is_damage() => {
                    tracing::warn!("repairing podman's store: cannot read {path}: {}", causes(&source));
                    Audit { flaws: Vec::new(), documents: None }
                }
                audit => audit?,
            };
            let is_listed = match (flaws.first(), &documents) {
                (None, Some((manifest, bytes))) => {
                    self.keep_manifest(config, manifest)?;
                    if is_cut_short(entry, manifest, bytes) {
                        self.list_anew(store, manifest, bytes)?;
                    }
                    continue;
                }
                (_, Some((manifest, config))) => self.list_anew(store, manifest, config)?,
                (_, None) => false,
            };
            let what = if is_listed { "is listed anew" } else { "is no longer listed" };
            let why = flaws.first().map(ToString::to_string).unwrap_or_default();
            tracing::warn!("repairing podman's store: image {} {what}: {why}", config.hex());
            if !is_listed {
                store.remove(config, None);
            }
        }
        Ok(())
    }

    /// Lists every image whose documents and root file system are published, under the names that the records give it: the list
    /// that said so is lost.
    fn list_all_anew(&mut self, store: &mut PodmanStore) -> Result<(), ConsumerError> {
        for name in directories(self.head, &images())? {
            let config = String::from_utf8(name).ok().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            let Some(config) = config else { continue };
            let documents = match read_documents(self.head, config) {
                Err(RepositoryError::Content { path, source }) if source.is_damage() => {
                    tracing::warn!("repairing podman's store: cannot read {path}: {}", causes(&source));
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
                // Another program lists each of its images.
                None => foreign_config(self.head, &listed.place)?,
            };
            if let (Some(config), Some(name)) = (config, store_name(&listed.place.name.to_string())) {
                store.add_name(config, &name);
            }
        }
        Ok(())
    }

    /// Makes the manifest of an image a file, where it is a link to what may become another image's.
    fn keep_manifest(&mut self, config: Digest, manifest: &[u8]) -> Result<(), ConsumerError> {
        let path = document(config, "manifest");
        if self.head.get(&path)?.is_some_and(|entry| entry.is_symlink()) {
            self.edits.add_file(path, manifest)?;
        }
        Ok(())
    }

    /// Lists an image anew over its root file system; tells whether that is possible.
    fn list_anew(&mut self, store: &mut PodmanStore, manifest: &[u8], config: &[u8]) -> Result<bool, ConsumerError> {
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

    /// Returns the configs of the images whose root file systems are removed.
    fn root_file_systems_that_go(&self) -> Vec<Digest> {
        let removed = self.edits.edits().iter().filter(|(_, edit)| matches!(edit, Edit::Remove));
        removed.filter_map(|(path, _)| layout::config_of_flat(path)).collect()
    }

    /// Takes an image out of the store, together with its root file system.
    fn remove_image(&mut self, store: &mut PodmanStore, config: Digest) -> Result<(), ConsumerError> {
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

/// Tells whether podman finds under a name what it is to find there.
fn is_as_wanted(store: &PodmanStore, name: &str, shown: &Wanted<'_>) -> bool {
    let there = store.named(name);
    match shown {
        Wanted::Image(image) => {
            let is_same =
                |entry: &Entry| entry.config == image.config.digest && entry.has_manifest(image.manifest.digest);
            !image.is_forced && there.is_some_and(is_same)
        }
        Wanted::Only(config) => there.is_none_or(|entry| entry.config == *config),
        Wanted::Nothing => there.is_none(),
    }
}

/// Tells whether an entry of strata's lacks what podman finds the image by: DUCC keeps only what it knows of an entry.
fn is_cut_short(entry: &Entry, manifest: &[u8], config: &[u8]) -> bool {
    StoreImage::new(manifest, config, 0).is_ok_and(|image| {
        entry.layer == Some(image.top()) && image.manifest.is_some_and(|manifest| !entry.has_manifest(manifest))
    })
}

/// Tells whether a text is a short name as containers/storage makes them.
fn is_link_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
}
