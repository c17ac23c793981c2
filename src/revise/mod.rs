//! Determines what changes in the head: images that were staged, names that go, and what wishlists ask for.
//!
//! Nothing here reads an image: it needs the head, the store, and what was staged.

mod unused;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};

use crate::consumer::podman::PodmanListing;
use crate::consumer::{self, ConsumerChanges, ConsumerError, PublishedName};
use crate::image::ImageName;
use crate::inventory::{InventoryError, foreign_trees, intact_record, our_tree, places};
use crate::layout::{self, ARCHITECTURE_ALIASES, ImagePlace, ImageRecord, PLATFORM_DIRECTORY, Stamp, WishedNames};
use crate::metadata::Timestamp;
use crate::path::EntryPath;
use crate::publish::{Edit, EditError, EditList};
use crate::repository::{Repository, RepositoryError};
use crate::settings::Settings;
use crate::stage::{Chains, StagedImage};
use crate::store::{Staging, StoreError};

pub use unused::{UnusedError, UnusedTree, unused_trees};
pub(crate) use wishes::Wishes;
pub use wishes::{Loss, Prune};

use unused::candidates;

/// Maximum size in bytes of a list below `.metadata` that is read.
const LIST_LIMIT: u64 = 64 << 20;

/// Why the changes of the head cannot be determined.
#[derive(Debug, thiserror::Error)]
pub enum ReviseError {
    /// The head cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The images in the head cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A small file cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ConsumerError> for ReviseError {
    fn from(error: ConsumerError) -> Self {
        match error {
            ConsumerError::Repository(error) => error.into(),
            ConsumerError::Inventory(error) => error.into(),
            ConsumerError::Store(error) => error.into(),
        }
    }
}

impl From<EditError> for ReviseError {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Repository(error) => error.into(),
            EditError::Store(error) => error.into(),
        }
    }
}

/// What is to change in the head.
#[derive(Default)]
pub(crate) struct Changes<'a> {
    /// Images to publish. The platforms of one name follow one another.
    pub(crate) images: &'a [StagedImage],
    /// Names to remove.
    pub(crate) removed: &'a [ImageName],
    /// A wishlist, and the names that it holds now.
    pub(crate) wished: Option<(&'a str, &'a BTreeSet<ImageName>)>,
}

/// Returns the edits that change `head` as wanted, in their order; none if the head is so already.
///
/// Small files are stored in `staging`. `now` is the time that records and lists get.
pub(crate) fn edits(
    head: &Repository,
    staging: &Staging,
    settings: &Settings,
    now: Timestamp,
    changes: &Changes<'_>,
) -> Result<Vec<(EntryPath, Edit)>, ReviseError> {
    let mut revision = Revision {
        head,
        now,
        edits: EditList::new(head, staging, settings.compression),
        published: Vec::new(),
        removed: Vec::new(),
        left: BTreeMap::new(),
        kept: BTreeSet::new(),
    };
    for platforms in changes.images.chunk_by(|a, b| a.outcome.place.name == b.outcome.place.name) {
        for image in platforms {
            let is_other = |other: &StagedImage| other.outcome.place != image.outcome.place && other.is_listed();
            revision.add_image(image, platforms.iter().any(is_other))?;
        }
        revision.add_name(platforms)?;
    }
    let held = revision.wished_by_others(changes)?;
    for name in changes.removed.iter().filter(|name| !held.contains(name)) {
        revision.remove_name(name)?;
    }
    revision.add_aliases()?;
    if let Some((wishlist, names)) = changes.wished {
        revision.note_wishes(wishlist, names)?;
    }
    revision.finish()
}

/// The next revision, as it is being composed.
struct Revision<'a> {
    head: &'a Repository,
    now: Timestamp,
    edits: EditList<'a>,
    /// The names that get images, for the consumers.
    published: Vec<PublishedName<'a>>,
    /// The names that are removed.
    removed: Vec<ImageName>,
    /// Trees that a name no longer uses, with the image that used them.
    left: BTreeMap<EntryPath, String>,
    /// Trees that images of this revision use.
    kept: BTreeSet<EntryPath>,
}

impl<'a> Revision<'a> {
    /// Adds an image. Whether podman sees that for another platform under its name is given.
    fn add_image(&mut self, staged: &StagedImage, another_is_listed: bool) -> Result<(), ReviseError> {
        if staged.is_foreign {
            return Ok(());
        }
        for (digest, (stored, record)) in &staged.ready.layers {
            let (root, record_path) = (layout::layer_root(*digest), layout::layer_record(*digest));
            // A layer never changes once it is published, whoever published it, unless a part of it is lost.
            if !self.head.has(&root)? {
                self.edits.add_tree(root, stored);
                self.edits.add_file(record_path, &record.write())?;
            } else if staged.ready.replaced.contains(&root) {
                self.edits.replace_tree(root, stored)?;
                self.edits.put_file(record_path, Some(&record.write()))?;
            }
        }
        for (path, stored) in &staged.ready.trees {
            if staged.ready.replaced.contains(path) {
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

    /// Makes a name stand for these images and no others: for one image, or for platforms side by side.
    fn add_name(&mut self, images: &'a [StagedImage]) -> Result<(), ReviseError> {
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

    /// Takes away what is published for one image, but for the trees.
    fn remove_place(&mut self, place: &ImagePlace) -> Result<(), ReviseError> {
        let trees = match intact_record(self.head, place)? {
            Some(record) => record.trees(),
            None => foreign_trees(self.head, place)?,
        };
        let name = place.to_string();
        self.left.extend(trees.into_iter().map(|tree| (tree, name.clone())));
        self.edits.insert(place.metadata(), Edit::Remove);
        let link = place.link();
        // The link of a name stays when the name comes to stand for several platforms.
        if !self.edits.edits().contains_key(&link) && self.head.get(&link)?.is_some_and(|entry| entry.is_symlink()) {
            self.edits.insert(link, Edit::Remove);
        }
        Ok(())
    }

    /// Returns the names that other wishlists hold by now.
    fn wished_by_others(&self, changes: &Changes<'_>) -> Result<BTreeSet<ImageName>, ReviseError> {
        let Some((wishlist, _)) = changes.wished.filter(|_| !changes.removed.is_empty()) else {
            return Ok(BTreeSet::new());
        };
        let json = self.head.read(&layout::wished_names(), LIST_LIMIT)?;
        Ok(WishedNames::parse(json.as_deref().unwrap_or_default()).of_others(wishlist))
    }

    /// Takes a name away, with all its platforms.
    fn remove_name(&mut self, name: &ImageName) -> Result<(), ReviseError> {
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

    /// Adds links from the names that machines give their architecture to the directories of platforms.
    fn add_aliases(&mut self) -> Result<(), ReviseError> {
        let root = EntryPath::ROOT.join(PLATFORM_DIRECTORY.as_bytes());
        let directories: BTreeSet<Vec<u8>> =
            self.edits.edits().keys().filter_map(|path| second_of(path, PLATFORM_DIRECTORY)).collect();
        if directories.is_empty() {
            return Ok(());
        }
        for (alias, candidates) in ARCHITECTURE_ALIASES {
            let link = root.join(alias.as_bytes());
            let before = self.head.get(&link)?;
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

    /// Notes which names a wishlist holds.
    fn note_wishes(&mut self, wishlist: &str, names: &BTreeSet<ImageName>) -> Result<(), ReviseError> {
        let path = layout::wished_names();
        let before = self.head.read(&path, LIST_LIMIT)?;
        let mut wished = WishedNames::parse(before.as_deref().unwrap_or_default());
        if wished.replace(wishlist, names) {
            self.edits.put_file(path, Some(&wished.write()))?;
        }
        Ok(())
    }

    /// Adds what is known about an image, if any of it or any of the image's trees is new.
    fn add_metadata(&mut self, staged: &StagedImage, another_is_listed: bool) -> Result<(), ReviseError> {
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
            published: self.now.seconds,
            revision: self.head.manifest().revision + 1,
        }
    }

    /// Adds the list of trees that names left. A list under the former name is taken over.
    fn note_candidates(&mut self) -> Result<(), ReviseError> {
        let (path, former) = (layout::candidate_trees(), layout::former_candidate_trees());
        let mut candidates = candidates(self.head)?;
        for (tree, image) in &self.left {
            candidates.leave([tree.clone()], image, self.now.seconds);
        }
        candidates.keep(&self.kept);
        if !candidates.is_empty() || self.head.get(&path)?.is_some() {
            self.edits.put_file(path, Some(&candidates.write()))?;
        }
        self.edits.put_file(former, None)?;
        Ok(())
    }

    /// Adds the list of trees that names left, and the catalogs that everything lies in.
    fn finish(mut self) -> Result<Vec<(EntryPath, Edit)>, ReviseError> {
        let changes = ConsumerChanges { published: &self.published, removed: &self.removed };
        for consumer in consumer::ALL {
            consumer.revise(&mut self.edits, &changes)?;
        }
        if self.edits.is_empty() {
            return Ok(Vec::new());
        }
        self.note_candidates()?;
        let catalogs: BTreeSet<EntryPath> = self.edits.edits().keys().flat_map(layout::catalogs_above).collect();
        Ok(self.edits.finish(catalogs))
    }
}

/// Returns the second component of a path whose first is `first`.
fn second_of(path: &EntryPath, first: &str) -> Option<Vec<u8>> {
    let mut components = path.components();
    components.next().filter(|component| *component == first.as_bytes())?;
    components.next().map(<[u8]>::to_vec)
}
