//! What changes in the head for the images that were staged.

use std::collections::{BTreeMap, BTreeSet};

use super::stage::StagedImage;
use super::{Chains, ConvertError, Run};
use crate::catalog::StoredTree;
use crate::layer::EntryPath;
use crate::layout::{self, ImageRecord, Stamp, UnusedTrees};
use crate::publish::Edit;
use crate::repository::Repository;

/// No file of strata's own is read that is longer.
const FILE_LIMIT: u64 = 64 << 20;

impl Run<'_> {
    /// Returns the edits that bring `head` to what the images want; none where it has all of them.
    pub(super) fn edits(
        &self,
        head: &Repository,
        images: &[StagedImage],
    ) -> Result<Vec<(EntryPath, Edit)>, ConvertError> {
        let mut edits = Edits { run: self, head, edits: BTreeMap::new(), left: BTreeMap::new(), kept: BTreeSet::new() };
        for image in images {
            edits.add_image(image)?;
        }
        edits.finish()
    }
}

struct Edits<'a> {
    run: &'a Run<'a>,
    head: &'a Repository,
    /// By path, so that folders come before what lies in them.
    edits: BTreeMap<EntryPath, Edit>,
    /// Trees that a tag no longer names, with the image.
    left: BTreeMap<EntryPath, String>,
    kept: BTreeSet<EntryPath>,
}

impl Edits<'_> {
    fn add_image(&mut self, staged: &StagedImage) -> Result<(), ConvertError> {
        for (digest, (stored, record)) in &staged.ready.layers {
            // A layer never changes once it is published, whoever published it.
            if self.head.get(&layout::layer_root(*digest))?.is_none() {
                self.add_tree(layout::layer_root(*digest), stored);
                self.add_file(layout::layer_record(*digest), &record.write())?;
            }
        }
        for (path, stored) in &staged.ready.trees {
            if self.run.options.force || self.head.get(path)?.is_none() {
                self.add_tree(path.clone(), stored);
            }
        }
        self.add_link(staged)?;
        self.add_metadata(staged)
    }

    fn add_link(&mut self, staged: &StagedImage) -> Result<(), ConvertError> {
        let name = &staged.outcome.name;
        let (link, target) = (layout::public_link(name), layout::public_link_target(name, staged.outcome.config));
        let is_there = self.head.get(&link)?.is_some_and(|entry| entry.is_symlink() && entry.target() == target);
        if !self.run.options.skip_flat && !is_there {
            self.edits.insert(link, Edit::Symlink(target));
        }
        Ok(())
    }

    /// Adds what is known about an image, if any of it or any of the image's trees is new.
    fn add_metadata(&mut self, staged: &StagedImage) -> Result<(), ConvertError> {
        let folder = layout::image_metadata(&staged.outcome.name);
        let (record_path, losses_path) = (folder.join(b"strata.json"), folder.join(b"losses.json"));
        let before = self.head.read(&record_path, FILE_LIMIT)?.and_then(|json| ImageRecord::parse(&json));
        let mut record = self.record(staged);
        if let Some(before) = before.as_ref().filter(|before| before.manifest == record.manifest) {
            // What an earlier run published for the same image and this one was not asked for stays the image's.
            record.keep_trees_of(before);
        }
        let index = staged.image.index.as_ref().map(|index| index.bytes.as_slice());
        let mut is_new = before.as_ref().is_none_or(|before| before.trees() != record.trees());
        is_new |= self.put_file(folder.join(b"manifest.json"), Some(&staged.image.manifest.bytes))?;
        is_new |= self.put_file(folder.join(b"config.json"), Some(&staged.image.config.bytes))?;
        is_new |= self.put_file(folder.join(b"index.json"), index)?;
        let losses = &staged.outcome.losses;
        is_new |= self.put_file(losses_path, (!losses.is_empty()).then(|| losses.write()).as_deref())?;
        let trees = record.trees();
        if is_new {
            self.add_file(record_path, &record.write())?;
            let name = staged.outcome.name.to_string();
            let former = before.map(|before| before.trees()).unwrap_or_default();
            self.left.extend(former.difference(&trees).map(|tree| (tree.clone(), name.clone())));
        }
        self.kept.extend(trees);
        Ok(())
    }

    fn record(&self, staged: &StagedImage) -> ImageRecord {
        let (image, options) = (&staged.image, self.run.options);
        let mut chains = image.chains();
        match options.chains {
            Chains::All => {}
            Chains::Final => drop(chains.drain(..chains.len().saturating_sub(1))),
            Chains::None => chains.clear(),
        }
        let layers = image.layers.iter().map(|layer| layer.digest);
        ImageRecord {
            stamp: Stamp::default(),
            source: staged.source.clone(),
            platform: options.platform.as_ref().map(ToString::to_string),
            index: image.index.as_ref().map(|index| index.digest),
            manifest: image.manifest.digest,
            manifest_is_made: image.manifest_is_made,
            config: image.config.digest,
            layers: layers.filter(|_| !options.skip_layers).collect(),
            chains,
            flat: !options.skip_flat,
            published: options.now.seconds,
            revision: self.head.manifest().revision + 1,
        }
    }

    /// Adds a file if the head has another one there, or takes it away; tells whether anything changes.
    ///
    /// The files are compared by their objects, so that a large one need not be read.
    fn put_file(&mut self, path: EntryPath, bytes: Option<&[u8]>) -> Result<bool, ConvertError> {
        let before = self.head.get(&path)?;
        let Some(bytes) = bytes else {
            if before.is_some() {
                self.edits.insert(path, Edit::Remove);
            }
            return Ok(before.is_some());
        };
        let content = self.run.staging.put_file(self.run.folder.settings().compression, bytes)?;
        if let Some(before) = before {
            let is_same_size = before.size == bytes.len() as i64;
            // Other objects may hold the same content, if the setting of compression has changed since.
            if before.file_content().as_ref() == Some(&content)
                || is_same_size && self.head.read(&path, bytes.len() as u64)?.as_deref() == Some(bytes)
            {
                return Ok(false);
            }
        }
        self.edits.insert(path, Edit::File { size: bytes.len() as u64, content });
        Ok(true)
    }

    fn add_file(&mut self, path: EntryPath, bytes: &[u8]) -> Result<(), ConvertError> {
        let content = self.run.staging.put_file(self.run.folder.settings().compression, bytes)?;
        self.edits.insert(path, Edit::File { size: bytes.len() as u64, content });
        Ok(())
    }

    fn add_tree(&mut self, path: EntryPath, stored: &StoredTree) {
        self.edits.insert(path, Edit::Tree(Box::new(stored.clone())));
    }

    /// Adds the list of trees that tags left, and the catalogs that everything lies in.
    fn finish(mut self) -> Result<Vec<(EntryPath, Edit)>, ConvertError> {
        if self.edits.is_empty() {
            return Ok(Vec::new());
        }
        let path = layout::unused_trees();
        let before = self.head.read(&path, FILE_LIMIT)?;
        let mut unused = UnusedTrees::parse(before.as_deref().unwrap_or_default());
        for (tree, image) in &self.left {
            unused.leave([tree.clone()], image, self.run.options.now.seconds);
        }
        unused.keep(&self.kept);
        if unused.paths().next().is_some() || before.is_some() {
            self.put_file(path, Some(&unused.write()))?;
        }
        let catalogs: BTreeSet<EntryPath> = self.edits.keys().flat_map(layout::catalogs_above).collect();
        let catalogs = catalogs.into_iter().map(|path| (path, Edit::Catalog));
        Ok(catalogs.chain(self.edits).collect())
    }
}
