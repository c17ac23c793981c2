//! Determines the edits of the head for staged images, removed names and changed wishlists.
//!
//! This needs only the head, the store and the staged images. No layer is read.

mod unused;
mod wishlist_change;

use std::collections::{BTreeMap, BTreeSet};

use crate::consumer::podman::PodmanListing;
use crate::consumer::{self, ConsumerChanges, PublishedName};
use crate::image::ImageName;
use crate::inventory::{foreign_trees, intact_record, our_tree, places};
use crate::layout::{self, ARCHITECTURE_ALIASES, ImagePlace, ImageRecord, PLATFORM_DIRECTORY, Stamp, WishedNames};
use crate::metadata::Timestamp;
use crate::path::EntryPath;
use crate::publish::{Edit, EditError, EditList};
use crate::repository::Repository;
use crate::settings::Settings;
use crate::stage::StagedImage;
use crate::store::Staging;

pub use unused::{UnusedError, UnusedTree, unused_trees};
pub(crate) use wishlist_change::WishlistChange;
pub use wishlist_change::{Prune, WishlistLoss};

use unused::candidates;

/// Requested changes of the head.
#[derive(Default)]
pub(crate) struct Changes<'a> {
    /// Images to publish. The platforms of one name are adjacent.
    pub(crate) images: &'a [StagedImage],
    /// Names to remove.
    pub(crate) removed: &'a [ImageName],
    /// The name of a wishlist, and the image names that it contains now.
    pub(crate) wished: Option<(&'a str, &'a BTreeSet<ImageName>)>,
}

/// Returns the edits for the requested changes, in the order in which they must be applied. Returns no edits if `head` needs none.
///
/// Small files are stored in `staging`. `now` is the time in records and lists.
pub(crate) fn edits(
    head: &Repository,
    staging: &Staging,
    settings: &Settings,
    now: Timestamp,
    changes: &Changes<'_>,
) -> Result<Vec<(EntryPath, Edit)>, EditError> {
    let mut builder = RevisionBuilder {
        head,
        now,
        edits: EditList::new(head, staging, settings.compression),
        published: Vec::new(),
        removed: Vec::new(),
        released_trees: BTreeMap::new(),
        used_trees: BTreeSet::new(),
    };
    for platforms in changes.images.chunk_by(|a, b| a.outcome.place.name == b.outcome.place.name) {
        for image in platforms {
            let is_other = |other: &StagedImage| other.outcome.place != image.outcome.place && other.is_listed();
            builder.add_image(image, platforms.iter().any(is_other))?;
        }
        builder.add_name(platforms)?;
    }
    // Another run may have published a wishlist with these names since they were selected for removal.
    let wished = builder.wished_by_others(changes)?;
    for name in changes.removed.iter().filter(|name| !wished.contains(name)) {
        builder.remove_name(name)?;
    }
    builder.add_aliases()?;
    if let Some((wishlist, names)) = changes.wished {
        builder.record_wishes(wishlist, names)?;
    }
    builder.finish()
}

/// Collects the edits of the next revision.
struct RevisionBuilder<'a> {
    head: &'a Repository,
    now: Timestamp,
    edits: EditList<'a>,
    /// The names for which images are published, for the consumers.
    published: Vec<PublishedName<'a>>,
    /// The names that are removed.
    removed: Vec<ImageName>,
    /// Trees that an image used until now, with the name of the image.
    released_trees: BTreeMap<EntryPath, String>,
    /// Trees that the published images use.
    used_trees: BTreeSet<EntryPath>,
}

impl<'a> RevisionBuilder<'a> {
    /// Adds an image. `another_is_listed` states whether podman's store lists its name with the image of another platform.
    fn add_image(&mut self, staged: &StagedImage, another_is_listed: bool) -> Result<(), EditError> {
        if staged.is_foreign {
            return Ok(());
        }
        for (digest, (stored, record)) in &staged.stored.layers {
            let (root, record_path) = (layout::layer_root(*digest), layout::layer_record(*digest));
            // A published layer never changes, because overlay mounts may use it. Only a layer with missing objects is replaced.
            if !self.head.has(&root)? {
                self.edits.add_tree(root, stored);
                self.edits.add_file(record_path, &record.write())?;
            } else if staged.stored.replaced.contains(&root) {
                self.edits.replace_tree(root, stored)?;
                self.edits.put_file(record_path, Some(&record.write()))?;
            }
        }
        for (path, stored) in &staged.stored.trees {
            if staged.stored.replaced.contains(path) {
                self.edits.replace_tree(path.clone(), stored)?;
            } else if staged.options.force || our_tree(self.head, path)?.is_none() {
                self.edits.add_tree(path.clone(), stored);
            }
        }
        if !staged.options.skip_flat {
            let place = &staged.outcome.place;
            self.edits.add_link(place.link(), &place.link_target(staged.outcome.config))?;
        }
        self.add_metadata(staged, another_is_listed)
    }

    /// Assigns a name to these images: one image, or one for each platform. Other images of the name are removed.
    fn add_name(&mut self, images: &'a [StagedImage]) -> Result<(), EditError> {
        if images.iter().any(|image| image.is_foreign) {
            return Ok(());
        }
        let wanted: Vec<&ImagePlace> = images.iter().map(|image| &image.outcome.place).collect();
        let name = &wanted[0].name;
        if wanted[0].platform.is_some() && !images[0].options.skip_flat {
            let (link, target) = (layout::public_link(name), layout::variant_link_target(name));
            self.edits.add_variant_link(link, target)?;
        }
        for place in places(self.head, name)?.iter().filter(|place| !wanted.contains(place)) {
            self.remove_place(place)?;
        }
        let images = images.iter().map(StagedImage::for_consumers).collect();
        self.published.push(PublishedName { name, images });
        Ok(())
    }

    /// Removes everything that is published for one image, except its trees.
    fn remove_place(&mut self, place: &ImagePlace) -> Result<(), EditError> {
        let trees = match intact_record(self.head, place)? {
            Some(record) => record.trees(),
            None => foreign_trees(self.head, place)?,
        };
        let name = place.to_string();
        self.released_trees.extend(trees.into_iter().map(|tree| (tree, name.clone())));
        self.edits.insert(place.metadata(), Edit::Remove);
        let link = place.link();
        // If the name gets images for several platforms, its link has just been edited and must stay.
        if !self.edits.edits().contains_key(&link) && self.head.get(&link)?.is_some_and(|entry| entry.is_symlink()) {
            self.edits.insert(link, Edit::Remove);
        }
        Ok(())
    }

    /// Returns the names that other wishlists contain according to the current head.
    fn wished_by_others(&self, changes: &Changes<'_>) -> Result<BTreeSet<ImageName>, EditError> {
        let Some((wishlist, _)) = changes.wished.filter(|_| !changes.removed.is_empty()) else {
            return Ok(BTreeSet::new());
        };
        let json = self.head.read(&layout::wished_names(), layout::MAX_LIST_SIZE)?;
        Ok(WishedNames::parse(json.as_deref().unwrap_or_default()).of_others(wishlist))
    }

    /// Removes a name with all of its platforms.
    fn remove_name(&mut self, name: &ImageName) -> Result<(), EditError> {
        for place in places(self.head, name)? {
            self.remove_place(&place)?;
        }
        let link = layout::public_link(name);
        if self.head.get(&link)?.is_some_and(|entry| entry.is_symlink()) {
            self.edits.insert(link, Edit::Remove);
        }
        self.removed.push(name.clone());
        Ok(())
    }

    /// Adds links from other names of an architecture, for example `x86_64`, to the directory of the platform.
    fn add_aliases(&mut self) -> Result<(), EditError> {
        let root = EntryPath::ROOT.join(PLATFORM_DIRECTORY.as_bytes());
        let directories: BTreeSet<Vec<u8>> =
            self.edits.edits().keys().filter_map(|path| second_of(path, PLATFORM_DIRECTORY)).collect();
        if directories.is_empty() {
            return Ok(());
        }
        for (alias, candidates) in ARCHITECTURE_ALIASES {
            let link = root.join(alias.as_bytes());
            let before = self.head.get(&link)?;
            // As in DUCC, a link never replaces a real directory.
            if directories.contains(alias.as_bytes()) || before.as_ref().is_some_and(|entry| entry.is_directory()) {
                continue;
            }
            for candidate in candidates {
                let is_there = directories.contains(candidate.as_bytes())
                    || self.head.get(&root.join(candidate.as_bytes()))?.is_some_and(|entry| entry.is_directory());
                if is_there {
                    self.edits.add_link(link, candidate.as_bytes())?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Records the names that a wishlist contains.
    fn record_wishes(&mut self, wishlist: &str, names: &BTreeSet<ImageName>) -> Result<(), EditError> {
        let path = layout::wished_names();
        let before = self.head.read(&path, layout::MAX_LIST_SIZE)?;
        let mut wished = WishedNames::parse(before.as_deref().unwrap_or_default());
        if wished.replace(wishlist, names) {
            self.edits.put_file(path, Some(&wished.write()))?;
        }
        Ok(())
    }

    /// Adds the record and documents of an image, if one of them or one of the image's trees is new.
    fn add_metadata(&mut self, staged: &StagedImage, another_is_listed: bool) -> Result<(), EditError> {
        let directory = staged.outcome.place.metadata();
        let (record_path, losses_path) = (directory.join(b"strata.json"), directory.join(b"losses.json"));
        let before = intact_record(self.head, &staged.outcome.place)?;
        let mut record = self.record(staged);
        if let Some(before) = before.as_ref().filter(|before| before.manifest == record.manifest) {
            // Trees that an earlier run published for the same image stay in its record, even if the options of this run skip
            // such trees.
            record.keep_trees_of(before);
            // podman lists only one image for each name.
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
        is_new |= self.edits.put_file(directory.join(b"manifest.json"), Some(&staged.image.manifest.bytes))?;
        is_new |= self.edits.put_file(directory.join(b"config.json"), Some(&staged.image.config.bytes))?;
        is_new |= self.edits.put_file(directory.join(b"index.json"), index)?;
        let losses = &staged.outcome.losses;
        is_new |= self.edits.put_file(losses_path, (!losses.is_empty()).then(|| losses.write()).as_deref())?;
        let trees = record.trees();
        if is_new {
            self.edits.add_file(record_path, &record.write())?;
            let name = staged.outcome.place.to_string();
            let former = match before {
                Some(before) => before.trees(),
                None => foreign_trees(self.head, &staged.outcome.place)?,
            };
            self.released_trees.extend(former.difference(&trees).map(|tree| (tree.clone(), name.clone())));
        }
        self.used_trees.extend(trees);
        Ok(())
    }

    fn record(&self, staged: &StagedImage) -> ImageRecord {
        let (image, options) = (&staged.image, &staged.options);
        let mut chains = image.chains();
        chains = chains.drain(options.chains.indexes(chains.len())).collect();
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
            published: self.now.seconds,
            revision: self.head.manifest().revision + 1,
        }
    }

    /// Updates the list of trees that are possibly unused. If there is a list under the former name, merges the two lists.
    fn record_candidates(&mut self) -> Result<(), EditError> {
        let (path, former) = (layout::candidate_trees(), layout::former_candidate_trees());
        let mut candidates = candidates(self.head)?;
        for (tree, image) in &self.released_trees {
            candidates.leave([tree.clone()], image, self.now.seconds);
        }
        candidates.keep(&self.used_trees);
        if !candidates.is_empty() || self.head.get(&path)?.is_some() {
            self.edits.put_file(path, Some(&candidates.write()))?;
        }
        self.edits.put_file(former, None).map(drop)
    }

    /// Adds the edits of consumers, the list of possibly unused trees, and the nested catalogs above all edits.
    fn finish(mut self) -> Result<Vec<(EntryPath, Edit)>, EditError> {
        let changes = ConsumerChanges { published: &self.published, removed: &self.removed };
        for consumer in consumer::ALL {
            consumer.revise(&mut self.edits, &changes)?;
        }
        if self.edits.is_empty() {
            return Ok(Vec::new());
        }
        self.record_candidates()?;
        let catalogs: BTreeSet<EntryPath> = self.edits.edits().keys().flat_map(layout::catalogs_above).collect();
        Ok(self.edits.finish(catalogs))
    }
}

/// Returns the second component of a path, if its first component is `first`.
fn second_of(path: &EntryPath, first: &str) -> Option<Vec<u8>> {
    let mut components = path.components();
    components.next().filter(|component| *component == first.as_bytes())?;
    components.next().map(<[u8]>::to_vec)
}
