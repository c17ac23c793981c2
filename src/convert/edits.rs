//! What changes in the head for the images that were staged.

use std::collections::{BTreeMap, BTreeSet};

use super::foreign::foreign_trees;
use super::podman::Shown;
use super::run::Run;
use super::stage::StagedImage;
use super::{Chains, ConvertError, PodmanListing};
use crate::catalog::StoredTree;
use crate::image::ImageName;
use crate::inventory::{intact_record, places};
use crate::layout::{self, ALIASES, ImagePlace, ImageRecord, PLATFORMS, Stamp, WishedNames};
use crate::path::EntryPath;
use crate::publish::Edit;
use crate::repository::Repository;
use crate::unused::candidates;

/// No file of strata's own is read that is longer.
const FILE_LIMIT: u64 = 64 << 20;

/// What is to become of the head.
#[derive(Default)]
pub(crate) struct Changes<'a> {
    /// Images that were staged.
    pub(crate) images: &'a [StagedImage],
    /// Names that go.
    pub(crate) removed: &'a [ImageName],
    /// A wishlist, and the names that it holds now.
    pub(crate) wished: Option<(&'a str, &'a BTreeSet<ImageName>)>,
}

impl Run {
    /// Returns the edits that bring `head` to what is wanted; none where that is so already.
    pub(super) fn edits<'a>(
        &'a self,
        head: &'a Repository,
        changes: &'a Changes<'_>,
    ) -> Result<Vec<(EntryPath, Edit)>, ConvertError> {
        let mut edits = Edits::new(self, head);
        for platforms in changes.images.chunk_by(|a, b| a.outcome.place.name == b.outcome.place.name) {
            for image in platforms {
                let is_other = |other: &StagedImage| other.outcome.place != image.outcome.place && other.is_listed();
                edits.add_image(image, platforms.iter().any(is_other))?;
            }
            edits.add_name(platforms)?;
        }
        let held = edits.wished_by_others(changes)?;
        for name in changes.removed.iter().filter(|name| !held.contains(name)) {
            edits.remove_name(name)?;
        }
        edits.add_aliases()?;
        if let Some((wishlist, names)) = changes.wished {
            edits.note_wishes(wishlist, names)?;
        }
        edits.finish()
    }
}

pub(super) struct Edits<'a> {
    pub(super) run: &'a Run,
    pub(super) head: &'a Repository,
    /// By path, so that directories come before what lies in them.
    pub(super) edits: BTreeMap<EntryPath, Edit>,
    /// What podman is to find under each name.
    pub(super) podman: BTreeMap<ImageName, Shown<'a>>,
    /// Trees that a tag no longer names, with the image.
    left: BTreeMap<EntryPath, String>,
    kept: BTreeSet<EntryPath>,
}

impl<'a> Edits<'a> {
    fn new(run: &'a Run, head: &'a Repository) -> Self {
        let (edits, podman) = (BTreeMap::new(), BTreeMap::new());
        Self { run, head, edits, podman, left: BTreeMap::new(), kept: BTreeSet::new() }
    }

    /// Adds an image. Whether podman sees that for another platform under its name is given.
    fn add_image(&mut self, staged: &StagedImage, another_is_listed: bool) -> Result<(), ConvertError> {
        if staged.is_foreign {
            return Ok(());
        }
        for (digest, (stored, record)) in &staged.ready.layers {
            let (root, record_path) = (layout::layer_root(*digest), layout::layer_record(*digest));
            // A layer never changes once it is published, whoever published it, unless a part of it is lost.
            if !self.head.has(&root)? {
                self.add_tree(root, stored);
                self.add_file(record_path, &record.write())?;
            } else if staged.ready.replaced.contains(&root) {
                self.replace_tree(root, stored)?;
                self.put_file(record_path, Some(&record.write()))?;
            }
        }
        for (path, stored) in &staged.ready.trees {
            if staged.ready.replaced.contains(path) {
                self.replace_tree(path.clone(), stored)?;
            } else if staged.options.force || Run::our_tree(self.head, path)?.is_none() {
                self.add_tree(path.clone(), stored);
            }
        }
        if !staged.options.skip_flat {
            let place = &staged.outcome.place;
            self.add_link(place.link(), &place.link_target(staged.outcome.config))?;
        }
        self.add_metadata(staged, another_is_listed)
    }

    pub(super) fn add_link(&mut self, link: EntryPath, target: &[u8]) -> Result<(), ConvertError> {
        let is_there = self.head.get(&link)?.is_some_and(|entry| entry.is_symlink() && entry.target() == target);
        if !is_there {
            self.edits.insert(link, Edit::Symlink(target.to_vec()));
        }
        Ok(())
    }

    /// Makes a name stand for these images and no others: for one image, or for platforms side by side.
    fn add_name(&mut self, images: &'a [StagedImage]) -> Result<(), ConvertError> {
        if images.iter().any(|image| image.is_foreign) {
            return Ok(());
        }
        let wanted: Vec<&ImagePlace> = images.iter().map(|image| &image.outcome.place).collect();
        let name = &wanted[0].name;
        if wanted[0].platform.is_some() && !images[0].options.skip_flat {
            let (link, target) = (layout::public_link(name), layout::variant_link_target(name));
            let is_there = self.head.get(&link)?.is_some_and(|entry| entry.is_symlink() && entry.symlink == target);
            if !is_there {
                self.edits.insert(link, Edit::VariantLink(target));
            }
        }
        for place in places(self.head, name)?.iter().filter(|place| !wanted.contains(place)) {
            self.remove_place(place)?;
        }
        self.show_to_podman(images);
        Ok(())
    }

    /// Takes away what is published for one image, but for the trees.
    fn remove_place(&mut self, place: &ImagePlace) -> Result<(), ConvertError> {
        let trees = match intact_record(self.head, place)? {
            Some(record) => record.trees(),
            None => foreign_trees(self.head, place)?,
        };
        let name = place.to_string();
        self.left.extend(trees.into_iter().map(|tree| (tree, name.clone())));
        self.edits.insert(place.metadata(), Edit::Remove);
        let link = place.link();
        // The link of a name stays when the name comes to stand for several platforms.
        if !self.edits.contains_key(&link) && self.head.get(&link)?.is_some_and(|entry| entry.is_symlink()) {
            self.edits.insert(link, Edit::Remove);
        }
        Ok(())
    }

    /// Returns the names that other wishlists hold by now.
    fn wished_by_others(&self, changes: &Changes<'_>) -> Result<BTreeSet<ImageName>, ConvertError> {
        let Some((wishlist, _)) = changes.wished.filter(|_| !changes.removed.is_empty()) else {
            return Ok(BTreeSet::new());
        };
        let json = self.head.read(&layout::wished_names(), FILE_LIMIT)?;
        Ok(WishedNames::parse(json.as_deref().unwrap_or_default()).of_others(wishlist))
    }

    /// Takes a name away, with all its platforms.
    fn remove_name(&mut self, name: &ImageName) -> Result<(), ConvertError> {
        for place in places(self.head, name)? {
            self.remove_place(&place)?;
        }
        let link = layout::public_link(name);
        if self.head.get(&link)?.is_some_and(|entry| entry.is_symlink()) {
            self.edits.insert(link, Edit::Remove);
        }
        self.podman.insert(name.clone(), Shown::Nothing);
        Ok(())
    }

    /// Adds links from the names that machines give their architecture to the directories of platforms.
    fn add_aliases(&mut self) -> Result<(), ConvertError> {
        let root = EntryPath::ROOT.join(PLATFORMS.as_bytes());
        let directories: BTreeSet<Vec<u8>> = self.edits.keys().filter_map(|path| second_of(path, PLATFORMS)).collect();
        if directories.is_empty() {
            return Ok(());
        }
        for (alias, candidates) in ALIASES {
            let link = root.join(alias.as_bytes());
            let before = self.head.get(&link)?;
            if directories.contains(alias.as_bytes()) || before.as_ref().is_some_and(|entry| entry.is_directory()) {
                continue;
            }
            for candidate in candidates {
                let is_there = directories.contains(candidate.as_bytes())
                    || self.head.get(&root.join(candidate.as_bytes()))?.is_some_and(|entry| entry.is_directory());
                if is_there {
                    self.add_link(link, candidate.as_bytes())?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Notes which names a wishlist holds.
    fn note_wishes(&mut self, wishlist: &str, names: &BTreeSet<ImageName>) -> Result<(), ConvertError> {
        let path = layout::wished_names();
        let before = self.head.read(&path, FILE_LIMIT)?;
        let mut wished = WishedNames::parse(before.as_deref().unwrap_or_default());
        if wished.replace(wishlist, names) {
            self.put_file(path, Some(&wished.write()))?;
        }
        Ok(())
    }

    /// Adds what is known about an image, if any of it or any of the image's trees is new.
    fn add_metadata(&mut self, staged: &StagedImage, another_is_listed: bool) -> Result<(), ConvertError> {
        let directory = staged.outcome.place.metadata();
        let (record_path, losses_path) = (directory.join(b"strata.json"), directory.join(b"losses.json"));
        let before = intact_record(self.head, &staged.outcome.place)?;
        let mut record = self.record(staged);
        if let Some(before) = before.as_ref().filter(|before| before.manifest == record.manifest) {
            // What an earlier run published for the same image and this one was not asked for stays the image's.
            record.keep_trees_of(before);
            // Podman knows one image by each name.
            record.podman &= !another_is_listed;
        }
        let index = staged.image.index.as_ref().map(|index| index.bytes.as_slice());
        let is_as_before = |before: &ImageRecord| {
            before.trees() == record.trees()
                && before.podman == record.podman
                && before.digest == record.digest
                && before.listed_platform == record.listed_platform
        };
        let mut is_new = !before.as_ref().is_some_and(is_as_before);
        is_new |= self.put_file(directory.join(b"manifest.json"), Some(&staged.image.manifest.bytes))?;
        is_new |= self.put_file(directory.join(b"config.json"), Some(&staged.image.config.bytes))?;
        is_new |= self.put_file(directory.join(b"index.json"), index)?;
        let losses = &staged.outcome.losses;
        is_new |= self.put_file(losses_path, (!losses.is_empty()).then(|| losses.write()).as_deref())?;
        let trees = record.trees();
        if is_new {
            self.add_file(record_path, &record.write())?;
            let name = staged.outcome.place.to_string();
            let former = match before {
                Some(before) => before.trees(),
                None => foreign_trees(self.head, &staged.outcome.place)?,
            };
            self.left.extend(former.difference(&trees).map(|tree| (tree.clone(), name.clone())));
        }
        self.kept.extend(trees);
        Ok(())
    }

    fn record(&self, staged: &StagedImage) -> ImageRecord {
        let (image, options) = (&staged.image, &staged.options);
        let mut chains = image.chains();
        match options.chains {
            Chains::All => {}
            Chains::Final => drop(chains.drain(..chains.len().saturating_sub(1))),
            Chains::None => chains.clear(),
        }
        let layers = image.layers.iter().map(|layer| layer.digest);
        let stands_alone = image.index.is_none() && staged.outcome.place.platform.is_none();
        let listed = image
            .platform
            .as_ref()
            .filter(|platform| stands_alone && Some(*platform) != image.parsed_config.platform().as_ref());
        ImageRecord {
            stamp: Stamp::default(),
            source: staged.source.clone(),
            platform: options.platforms.asked(),
            listed_platform: listed.map(ToString::to_string),
            digest: staged.digest,
            index: image.index.as_ref().map(|index| index.digest),
            manifest: image.manifest.digest,
            manifest_is_made: image.manifest_is_made,
            config: image.config.digest,
            layers: layers.filter(|_| !options.skip_layers).collect(),
            chains,
            flat: !options.skip_flat,
            podman: staged.outcome.podman == PodmanListing::Listed,
            published: self.run.options.now.seconds,
            revision: self.head.manifest().revision + 1,
        }
    }

    /// Adds a file if the head has another one there, or takes it away; tells whether anything changes.
    ///
    /// The files are compared by their objects, so that a large one need not be read.
    pub(super) fn put_file(&mut self, path: EntryPath, bytes: Option<&[u8]>) -> Result<bool, ConvertError> {
        let before = self.head.get(&path)?;
        let Some(bytes) = bytes else {
            if before.is_some() {
                self.edits.insert(path, Edit::Remove);
            }
            return Ok(before.is_some());
        };
        let content = self.run.staging.put_file(self.run.directory.settings().compression, bytes)?;
        if let Some(before) = before {
            let is_same_size = before.size == bytes.len() as i64;
            // Other objects may hold the same content, if the setting of compression has changed since.
            if before.file_content().as_ref() == Some(&content)
                || is_same_size && self.head.read_if_intact(&path, bytes.len() as u64)?.as_deref() == Some(bytes)
            {
                return Ok(false);
            }
        }
        self.edits.insert(path, Edit::File { size: bytes.len() as u64, content });
        Ok(true)
    }

    pub(super) fn add_file(&mut self, path: EntryPath, bytes: &[u8]) -> Result<(), ConvertError> {
        let content = self.run.staging.put_file(self.run.directory.settings().compression, bytes)?;
        self.edits.insert(path, Edit::File { size: bytes.len() as u64, content });
        Ok(())
    }

    fn add_tree(&mut self, path: EntryPath, stored: &StoredTree) {
        self.edits.insert(path, Edit::Tree(Box::new(stored.clone())));
    }

    /// Puts a tree in the place of one that lacks something, unless storing the tree anew has brought that back.
    fn replace_tree(&mut self, path: EntryPath, stored: &StoredTree) -> Result<(), ConvertError> {
        if self.head.nested_catalog(&path)? != Some(stored.reference) {
            self.add_tree(path, stored);
        }
        Ok(())
    }

    /// Adds the list of trees that names left. A list under the former name is taken over.
    fn note_candidates(&mut self) -> Result<(), ConvertError> {
        let (path, former) = (layout::candidate_trees(), layout::former_candidate_trees());
        let mut candidates = candidates(self.head)?;
        for (tree, image) in &self.left {
            candidates.leave([tree.clone()], image, self.run.options.now.seconds);
        }
        candidates.keep(&self.kept);
        if !candidates.is_empty() || self.head.get(&path)?.is_some() {
            self.put_file(path, Some(&candidates.write()))?;
        }
        self.put_file(former, None).map(drop)
    }

    /// Adds the list of trees that names left, and the catalogs that everything lies in.
    fn finish(mut self) -> Result<Vec<(EntryPath, Edit)>, ConvertError> {
        self.update_podman_store()?;
        if self.edits.is_empty() {
            return Ok(Vec::new());
        }
        self.note_candidates()?;
        let catalogs: BTreeSet<EntryPath> = self.edits.keys().flat_map(layout::catalogs_above).collect();
        let catalogs = catalogs.into_iter().map(|path| (path, Edit::Catalog));
        Ok(catalogs.chain(self.edits).collect())
    }
}

/// Returns the second component of a path whose first is `first`.
fn second_of(path: &EntryPath, first: &str) -> Option<Vec<u8>> {
    let mut components = path.components();
    components.next().filter(|component| *component == first.as_bytes())?;
    components.next().map(<[u8]>::to_vec)
}
