//! What podman sees of the images that were staged, and what becomes of a store that another program wrote.

use std::collections::BTreeMap;

use super::edits::Edits;
use super::foreign::kept_manifest;
use super::run::Run;
use super::stage::StagedImage;
use super::{ConvertError, ImageOptions, PodmanListing};
use crate::catalog::CatalogEntry;
use crate::consumer::podman::{
    self, Audit, Entry, MANY_IMAGES, PodmanStore, PublishedStore, Refusal, StoreImage, store_name,
};
use crate::image::{Digest, ImageName, Platform};
use crate::inventory::{directories, list_intact, places};
use crate::layout::{self, ImagePlace};
use crate::message::causes;
use crate::publish::Edit;
use crate::repository::RepositoryError;
use crate::settings::Settings;

/// What podman is to find under a name.
pub(super) enum Shown<'a> {
    /// This image.
    Image(&'a StagedImage),
    /// The image with this config, or none: that one is published under the name, but nobody asked for it here.
    Only(Digest),
    /// None.
    Nothing,
}

/// Tells whether podman is to see what is published of a name.
pub(crate) fn is_asked_for(settings: &Settings, name: &ImageName, options: &ImageOptions) -> bool {
    !options.skip_flat && !options.skip_podman && settings.lists_for_podman(name)
}

/// Returns which of the places of a name podman sees, if any: it knows one image by each name.
///
/// It is what the name leads clients to that say nothing of their platform, or else the first one in order that every machine of
/// its architecture runs.
pub(crate) fn shown_platform<'p>(places: impl Iterator<Item = &'p ImagePlace>) -> Option<usize> {
    let is_default = |place: &ImagePlace| {
        place.platform.as_ref().is_some_and(|platform| platform.architecture == "amd64" && platform.variant.is_none())
    };
    let runs_anywhere = |place: &ImagePlace| place.platform.as_ref().is_none_or(Platform::runs_without_a_variant);
    let shown = places.enumerate().filter(|(_, place)| runs_anywhere(place));
    shown.min_by_key(|(_, place)| (!is_default(place), &place.platform)).map(|(number, _)| number)
}

/// Tells for which architectures the name of these images, each for one platform, leads nowhere.
pub(super) fn warn_of_high_variants(images: &[StagedImage]) {
    for (plain, images) in high_variants(images.iter().map(|image| &image.outcome.place)) {
        let name = &images[0].name;
        let links: Vec<String> = images.iter().map(|place| place.link().to_string()).collect();
        tracing::warn!(
            "{name}: there is no image for every {plain}, and the name leads nowhere on such machines; there is {}",
            links.join(", ")
        );
    }
}

/// Returns the architectures of which there are only variants that not every machine has, and the places of these.
fn high_variants<'p>(places: impl Iterator<Item = &'p ImagePlace>) -> BTreeMap<Platform, Vec<&'p ImagePlace>> {
    let mut architectures: BTreeMap<Platform, Vec<&ImagePlace>> = BTreeMap::new();
    for place in places {
        if let Some(platform) = &place.platform {
            let plain = Platform { variant: None, ..platform.clone() };
            architectures.entry(plain).or_default().push(place);
        }
    }
    let runs = |place: &&ImagePlace| place.platform.as_ref().is_some_and(Platform::runs_without_a_variant);
    architectures.retain(|_, places| !places.iter().any(runs));
    architectures
}

impl Run {
    /// Decides which of the images of a name podman sees, if any.
    pub(super) fn decide_for_podman(&self, images: &mut [StagedImage]) {
        let Some(first) = images.first() else { return };
        let is_asked_for = is_asked_for(self.directory.settings(), &first.outcome.place.name, &first.options);
        if !is_asked_for || images.iter().any(StagedImage::is_foreign) {
            return;
        }
        let Some(shown) = shown_platform(images.iter().map(|image| &image.outcome.place)) else {
            let name = &images[0].outcome.place.name;
            tracing::warn!(
                "{name}: podman does not see it, since no image of it runs on every machine of its architecture"
            );
            return;
        };
        images[shown].outcome.podman = match images[shown].for_podman(0) {
            Ok(_) => PodmanListing::Listed,
            Err(refusal) => PodmanListing::Refused(refusal),
        };
    }
}

impl StagedImage {
    /// Returns the image as podman sees it, with a root file system of so many bytes.
    fn for_podman(&self, size: u64) -> Result<StoreImage, Refusal> {
        let name = &self.outcome.place.name;
        StoreImage::named(name, &self.image.manifest.bytes, &self.image.config.bytes, size)
    }

    pub(super) fn is_listed(&self) -> bool {
        self.outcome.podman == PodmanListing::Listed
    }
}

impl<'a> Edits<'a> {
    /// Notes what podman is to find under the name of these images.
    pub(super) fn show_to_podman(&mut self, images: &'a [StagedImage]) {
        let name = &images[0].outcome.place.name;
        for image in images {
            if let PodmanListing::Refused(refusal) = &image.outcome.podman {
                tracing::warn!("{}: podman does not see it: {refusal}", image.outcome.place);
            }
        }
        // Without a new root file system the name leads to what it led to before.
        if !images[0].options.skip_flat {
            let shown = match images.iter().find(|image| image.is_listed()) {
                Some(image) => Shown::Image(image),
                None => match shown_platform(images.iter().map(|image| &image.outcome.place)) {
                    Some(shown) => Shown::Only(images[shown].outcome.config),
                    None => Shown::Nothing,
                },
            };
            self.podman.insert(name.clone(), shown);
        }
    }

    /// Brings the store that podman reads in step with what is published.
    ///
    /// A store that another program wrote is left alone until podman is to see something new.
    pub(super) fn update_podman_store(&mut self) -> Result<(), ConvertError> {
        let (wanted, gone) = (std::mem::take(&mut self.podman), self.root_file_systems_that_go());
        if gone.is_empty() && !self.concern_podman(&wanted)? {
            return Ok(());
        }
        let repairs = wanted.values().any(|shown| matches!(shown, Shown::Image(staged) if staged.options.force));
        let published = match repairs {
            true => PublishedStore::read_to_repair(self.head)?,
            false => PublishedStore::read(self.head)?,
        };
        if published.is_none() && !wanted.values().any(|shown| matches!(shown, Shown::Image(_))) {
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
        for (name, shown) in &wanted {
            let name = &name.to_string();
            match shown {
                Shown::Image(staged) => {
                    let image = self.put_image(&store, staged)?;
                    store.put(&image, Some(name));
                    self.put_layer(&image)?;
                }
                Shown::Only(config) if store.named(name).is_some_and(|entry| entry.config == *config) => {}
                Shown::Only(_) | Shown::Nothing => store.remove_name(name),
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
    fn concern_podman(&self, wanted: &BTreeMap<ImageName, Shown<'_>>) -> Result<bool, ConvertError> {
        for (name, shown) in wanted {
            if matches!(shown, Shown::Image(_)) || !places(self.head, name)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_lists(&mut self, store: &PodmanStore) -> Result<(), ConvertError> {
        let lists = [
            (store.write_images(), podman::images_list(), podman::images_lock()),
            (store.write_layers(), podman::layers_list(), podman::layers_lock()),
        ];
        for (json, list, lock) in lists {
            if let Some(json) = json {
                let content = self.run.staging.put_changing_file(&json)?;
                self.edits.insert(list, Edit::File { size: json.len() as u64, content });
                self.add_file(lock, podman::lock_token(&json).as_bytes())?;
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
    fn put_image(&mut self, store: &PodmanStore, staged: &StagedImage) -> Result<StoreImage, ConvertError> {
        let (image, config) = (&staged.image, staged.outcome.config);
        let flat = layout::flat_root(config);
        let size = match staged.ready.trees.get(&flat) {
            Some(stored) => stored.totals.file_size().cast_unsigned(),
            None => podman::flat_size(self.head, config)?.unwrap_or(0),
        };
        let shown = staged.for_podman(size).expect("only an image that podman takes is listed");
        // A manifest that the image came with before stays the first one.
        let first = store.entry(config).and_then(|entry| entry.digest.as_ref());
        if first.is_none_or(|first| *first == image.manifest.digest.to_string()) {
            self.put_file(podman::document(config, "manifest"), Some(&image.manifest.bytes))?;
        }
        self.put_file(
            podman::document(config, &podman::manifest_key(image.manifest.digest)),
            Some(&image.manifest.bytes),
        )?;
        self.put_file(podman::document(config, &config.to_string()), Some(&image.config.bytes))?;
        Ok(shown)
    }

    /// Adds the directory of an image's topmost layer to the store.
    fn put_layer(&mut self, image: &StoreImage) -> Result<(), ConvertError> {
        let layer = image.top();
        let (diff, target) = (podman::layer_diff(layer), podman::diff_target(self.run.directory.name(), image.config));
        let is_there = |entry: CatalogEntry| entry.is_symlink() && entry.symlink == target.as_bytes();
        if !self.head.get(&diff)?.is_some_and(is_there) {
            self.edits.insert(diff, Edit::VariantLink(target.into_bytes()));
        }
        let link = self.link_of(layer);
        self.put_file(podman::layer_link(layer), Some(link.as_bytes()))?;
        self.add_link(podman::short_link(&link), podman::short_link_target(layer).as_bytes())
    }

    /// Returns the short name of a layer. One that another program gave it stays, unless it is lost: containers know it.
    fn link_of(&self, layer: Digest) -> String {
        let before = self.head.read(&podman::layer_link(layer), podman::LONGEST_DOCUMENT as u64);
        let before = before.unwrap_or_else(|error| {
            tracing::warn!("repairing podman's store: {}", causes(&error));
            None
        });
        let before = before.and_then(|name| String::from_utf8(name).ok()).filter(|name| is_link_id(name));
        before.unwrap_or_else(|| podman::link_id(layer))
    }

    /// Brings a store that another program wrote last into a form that podman takes, and tells what was wrong with it.
    ///
    /// An image that podman would stumble over is listed anew over its root file system. Where that or the documents are
    /// missing, it leaves the list; its files stay.
    fn take_over(&mut self, published: &mut PublishedStore) -> Result<(), ConvertError> {
        published.flaws.iter().for_each(|flaw| tracing::warn!("repairing podman's store: {flaw}"));
        let store = &mut published.store;
        store.write_anew();
        if published.has_lost_images {
            self.list_all_anew(store)?;
        }
        let images: Vec<Digest> = store.entries().map(|entry| entry.config).collect();
        for config in images {
            let entry = store.entry(config).expect("it was listed just now");
            let Audit { flaws, documents } = match podman::audit_image(self.head, store, entry) {
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
    fn list_all_anew(&mut self, store: &mut PodmanStore) -> Result<(), ConvertError> {
        for name in directories(self.head, &podman::images())? {
            let config = String::from_utf8(name).ok().and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            let Some(config) = config else { continue };
            let documents = match podman::read_documents(self.head, config) {
                Err(RepositoryError::Content { path, source }) if source.is_damage() => {
                    tracing::warn!("repairing podman's store: cannot read {path}: {}", causes(&source));
                    continue;
                }
                documents => documents?,
            };
            let (Ok((manifest, bytes)), Some(size)) = (documents, podman::flat_size(self.head, config)?) else {
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
                None => kept_manifest(self.head, &listed.place)?.map(|(config, _)| config),
            };
            if let (Some(config), Some(name)) = (config, store_name(&listed.place.name.to_string())) {
                store.add_name(config, &name);
            }
        }
        Ok(())
    }

    /// Makes the manifest of an image a file, where it is a link to what may become another image's.
    fn keep_manifest(&mut self, config: Digest, manifest: &[u8]) -> Result<(), ConvertError> {
        let path = podman::document(config, "manifest");
        if self.head.get(&path)?.is_some_and(|entry| entry.is_symlink()) {
            self.add_file(path, manifest)?;
        }
        Ok(())
    }

    /// Lists an image anew over its root file system; tells whether that is possible.
    fn list_anew(&mut self, store: &mut PodmanStore, manifest: &[u8], config: &[u8]) -> Result<bool, ConvertError> {
        let size = podman::flat_size(self.head, Digest::of(config))?;
        let Some(image) = size.and_then(|size| StoreImage::new(manifest, config, size).ok()) else { return Ok(false) };
        store.replace(&image);
        self.keep_manifest(image.config, manifest)?;
        if let Some(digest) = image.manifest {
            self.put_file(podman::document(image.config, &podman::manifest_key(digest)), Some(manifest))?;
        }
        self.put_layer(&image)?;
        Ok(true)
    }

    /// Returns the configs of the images whose root file systems are removed.
    fn root_file_systems_that_go(&self) -> Vec<Digest> {
        let removed = self.edits.iter().filter(|(_, edit)| matches!(edit, Edit::Remove));
        removed.filter_map(|(path, _)| layout::config_of_flat(path)).collect()
    }

    /// Takes an image out of the store, together with its root file system.
    fn remove_image(&mut self, store: &mut PodmanStore, config: Digest) -> Result<(), ConvertError> {
        let Some(entry) = store.entry(config) else { return Ok(()) };
        let layer = store.own_layer(entry);
        if let Some(layer) = layer {
            let link = podman::short_link(&self.link_of(layer));
            self.edits.extend([(podman::layer_directory(layer), Edit::Remove), (link, Edit::Remove)]);
        }
        self.edits.insert(podman::image_directory(config), Edit::Remove);
        store.remove(config, layer);
        Ok(())
    }
}

/// Tells whether podman finds under a name what it is to find there.
fn is_as_wanted(store: &PodmanStore, name: &str, shown: &Shown<'_>) -> bool {
    let there = store.named(name);
    match shown {
        Shown::Image(staged) => {
            let is_same =
                |entry: &Entry| entry.config == staged.outcome.config && entry.has_manifest(staged.outcome.manifest);
            !staged.options.force && there.is_some_and(is_same)
        }
        Shown::Only(config) => there.is_none_or(|entry| entry.config == *config),
        Shown::Nothing => there.is_none(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_sees_the_platform_that_clients_get_by_default() {
        let shown = |platforms: &[&str]| {
            let name: ImageName = "h.org/a:1".parse().unwrap();
            let place = |text: &&str| ImagePlace { name: name.clone(), platform: text.parse().ok() };
            shown_platform(platforms.iter().map(place).collect::<Vec<_>>().iter())
        };
        assert_eq!(shown(&["linux/arm64", "linux/amd64", "linux/arm/v7"]), Some(1));
        assert_eq!(shown(&["linux/arm64", "linux/arm/v7"]), Some(1));
        assert_eq!(shown(&["linux/arm/v7", "linux/arm64"]), Some(0));
        assert_eq!(shown(&[""]), Some(0));
        // A variant above that which the architecture means by itself is never what the plain name leads to.
        assert_eq!(shown(&["linux/amd64/v3", "linux/amd64/v2", "linux/arm64"]), Some(2));
        assert_eq!(shown(&["linux/arm/v8", "linux/arm/v6"]), Some(1));
        assert_eq!(shown(&["linux/amd64/v3", "linux/amd64/v2"]), None);
    }

    #[test]
    fn architectures_without_an_image_for_all_their_machines_are_found() {
        let places = |platforms: &[&str]| -> Vec<ImagePlace> {
            let name: ImageName = "h.org/a:1".parse().unwrap();
            let place = |text: &&str| ImagePlace { name: name.clone(), platform: text.parse().ok() };
            platforms.iter().map(place).collect()
        };
        let found = |platforms: &[&str]| -> Vec<(String, usize)> {
            let places = places(platforms);
            high_variants(places.iter()).into_iter().map(|(plain, of)| (plain.to_string(), of.len())).collect()
        };
        assert_eq!(found(&["linux/amd64/v2", "linux/amd64/v3"]), [("linux/amd64".to_owned(), 2)]);
        assert_eq!(found(&["linux/arm64", "linux/amd64/v3"]), [("linux/amd64".to_owned(), 1)]);
        assert_eq!(found(&["linux/amd64/v3", "linux/amd64", "linux/arm64/v8", "linux/arm/v7", "linux/386"]), []);
        assert_eq!(found(&["linux/arm/v8"]), [("linux/arm".to_owned(), 1)]);
        assert_eq!(found(&[""]), []);
    }
}
