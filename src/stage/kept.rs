//! Layers that were read to their ends, kept until the image that they belong to is stored.
//!
//! The trees of an image can only be built when all of its layers are read. So that a run which is killed before need not
//! have its layers fetched again, what each says is written down as soon as its content is durable. Like all state, it is
//! believed only when every object that it names is seen in the store.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;

use super::StageError;
use crate::image::Digest;
use crate::ingest::IngestedLayer;
use crate::layer::{EntryKind, LayerEntry, LayerSummary, NodeKind};
use crate::message::causes;
use crate::object::{Content, ContentObjects, ObjectKind};
use crate::source::ImageLayer;
use crate::store::Staging;

/// Nobody comes back for a layer after this time.
const LONGEST: Duration = Duration::from_secs(14 * 24 * 3600);

/// Fast, and paths pack well.
const ZSTD_LEVEL: i32 = 1;

/// The layers of one repository that wait for the others of their images.
pub(super) struct KeptLayers {
    directory: PathBuf,
    /// What the files begin with: everything that their content depends on.
    form: String,
    staging: Arc<Staging>,
    sender: Option<Sender<(Digest, Wish)>>,
    thread: Option<JoinHandle<()>>,
}

/// What is to become of a layer.
enum Wish {
    Keep(Vec<u8>),
    Forget,
}

impl KeptLayers {
    /// Opens the layers in `directory` that were written down in this `form`, and starts the thread that writes.
    pub(super) fn open(directory: PathBuf, form: &str, staging: &Arc<Staging>) -> Self {
        delete_old(&directory);
        let form = format!("layer 2 {} {form}\n", env!("CARGO_PKG_VERSION"));
        let (sender, receiver) = mpsc::channel();
        let (place, store) = (directory.clone(), Arc::clone(staging));
        let thread = thread::Builder::new().spawn(move || write(&place, &store, &receiver)).ok();
        Self {
            directory,
            form,
            staging: Arc::clone(staging),
            sender: Some(sender).filter(|_| thread.is_some()),
            thread,
        }
    }

    /// Writes a layer down once all of its content is durable, and before that returns.
    pub(super) fn keep(&self, digest: Digest, layer: &IngestedLayer) {
        let parts = (&layer.entries, &layer.summary);
        let packed = postcard::to_allocvec(&parts).map_err(|error| error.to_string()).and_then(|plain| {
            let packed = zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(|error| error.to_string())?;
            Ok([self.form.as_bytes(), &(plain.len() as u64).to_le_bytes(), &packed].concat())
        });
        match packed {
            Ok(bytes) => self.ask(digest, Wish::Keep(bytes)),
            Err(error) => self.staging.store().reporter().debug(format_args!("layer {digest} is not kept: {error}")),
        }
    }

    /// Deletes what is kept of a layer.
    pub(super) fn forget(&self, digest: Digest) {
        self.ask(digest, Wish::Forget);
    }

    fn ask(&self, digest: Digest, wish: Wish) {
        if let Some(sender) = &self.sender {
            // Where the thread is gone nothing is kept, which costs time and nothing else.
            sender.send((digest, wish)).ok();
        }
    }

    /// Returns a layer that was kept, if all of its content is still there.
    pub(super) fn recall(&self, layer: &ImageLayer) -> Result<Option<IngestedLayer>, StageError> {
        let Ok(bytes) = fs::read(path(&self.directory, layer.digest)) else { return Ok(None) };
        let Some(kept) = self.parse(&bytes) else { return Ok(None) };
        if kept.summary.diff_id != layer.diff_id || kept.summary.blob_size != layer.size {
            return Ok(None);
        }
        let is_missing = |content: &&Content| self.has(content).map_or(true, |is_there| !is_there);
        let content = kept.entries.par_iter().filter_map(|entry| match &entry.kind {
            EntryKind::Node(_, NodeKind::File { content, .. }) => Some(content),
            _ => None,
        });
        let missing = content.find_any(is_missing).cloned();
        // An object that cannot be looked at is an error.
        let is_whole = missing.map_or(Ok(true), |content| self.has(&content))?;
        Ok(is_whole.then_some(kept))
    }

    fn parse(&self, bytes: &[u8]) -> Option<IngestedLayer> {
        let (size, packed) = bytes.strip_prefix(self.form.as_bytes())?.split_first_chunk()?;
        let plain = zstd::bulk::decompress(packed, usize::try_from(u64::from_le_bytes(*size)).ok()?).ok()?;
        let (entries, summary): (Vec<LayerEntry<Content>>, LayerSummary) = postcard::from_bytes(&plain).ok()?;
        Some(IngestedLayer { entries, summary })
    }

    fn has(&self, content: &Content) -> Result<bool, StageError> {
        match &content.objects {
            ContentObjects::Whole(hash) => Ok(self.staging.has(*hash, ObjectKind::File)?),
            ContentObjects::Chunks(chunks) => {
                for chunk in chunks.iter() {
                    if !self.staging.has(chunk.hash, ObjectKind::Chunk)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }
}

impl Drop for KeptLayers {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A thread that failed kept nothing.
            thread.join().ok();
        }
    }
}

/// Does what is asked for, until nobody asks any more. What has gathered meanwhile shares one flush.
fn write(directory: &Path, staging: &Staging, wishes: &Receiver<(Digest, Wish)>) {
    while let Ok(first) = wishes.recv() {
        // Of several wishes for one layer the last one counts.
        let gathered: BTreeMap<Digest, Wish> = std::iter::once(first).chain(wishes.try_iter()).collect();
        let is_durable = gathered.values().all(|wish| matches!(wish, Wish::Forget)) || staging.try_flush().is_ok();
        for (digest, wish) in gathered {
            let path = path(directory, digest);
            match wish {
                Wish::Keep(bytes) if is_durable => {
                    // A temporary file must not stay behind.
                    let store = staging.store();
                    let write = || write_file(directory, &path, &bytes);
                    if let Err(error) = store.cancellation().uninterrupted(write) {
                        store.reporter().debug(format_args!("layer {digest} is not kept: {}", causes(&error)));
                    }
                }
                Wish::Keep(_) => {}
                Wish::Forget => drop(fs::remove_file(path)),
            }
        }
    }
}

/// Writes a file, all of it or nothing.
fn write_file(directory: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

fn path(directory: &Path, digest: Digest) -> PathBuf {
    directory.join(digest.hex())
}

/// Deletes what nobody came back for.
fn delete_old(directory: &Path) {
    for file in fs::read_dir(directory).into_iter().flatten().flatten() {
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
        if age.is_some_and(|age| age > LONGEST) {
            fs::remove_file(file.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::DiffId;
    use crate::layer::{BlobCompression, Losses};
    use crate::metadata::Metadata;
    use crate::path::EntryPath;
    use crate::store::DirectoryStore;

    fn layer(staging: &Staging) -> IngestedLayer {
        let content = staging.put_file(crate::object::Compression::Fast, b"content").unwrap();
        let mut metadata = Metadata::of_implied_directory();
        metadata.xattrs = Some(Arc::new([(b"user.\xff"[..].into(), b"\0"[..].into())].into()));
        let path = EntryPath::normalise(b"a/\xfe").unwrap();
        let entry = |kind| LayerEntry { path: path.clone(), kind };
        let entries = vec![
            entry(EntryKind::Node(metadata.clone(), NodeKind::File { size: 7, content })),
            entry(EntryKind::Node(metadata, NodeKind::Symlink(b"\xfd"[..].into()))),
            entry(EntryKind::HardLink(EntryPath::normalise(b"b").unwrap())),
            entry(EntryKind::Whiteout),
        ];
        let (diff_id, losses) = (DiffId(Digest::of(b"diff")), Losses::default());
        let compression = BlobCompression::Zstd;
        IngestedLayer {
            entries,
            summary: LayerSummary { blob_size: 3, compression, unpacked_size: 9, diff_id, losses },
        }
    }

    fn image_layer() -> ImageLayer {
        ImageLayer {
            digest: Digest::of(b"blob"),
            size: 3,
            diff_id: DiffId(Digest::of(b"diff")),
            media_type: String::new(),
            urls: Vec::new(),
        }
    }

    #[test]
    fn layer_is_kept_for_the_next_run_as_long_as_its_objects_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::create(&directory.path().join("storage")).unwrap();
        let (place, image_layer) = (directory.path().join("layers"), image_layer());
        let staging = Arc::new(Staging::start(&store).unwrap());
        let layer = layer(&staging);
        KeptLayers::open(place.clone(), "fast", &staging).keep(image_layer.digest, &layer);
        drop(staging);
        let recall = |form: &str, wanted: &ImageLayer| {
            let staging = Arc::new(Staging::start(&store).unwrap());
            KeptLayers::open(place.clone(), form, &staging).recall(wanted).unwrap()
        };
        let recalled = recall("fast", &image_layer).unwrap();
        assert_eq!((recalled.entries, &recalled.summary), (layer.entries, &layer.summary));
        assert!(recall("exact", &image_layer).is_none());
        assert!(recall("fast", &ImageLayer { diff_id: DiffId(Digest::of(b"other")), ..image_layer.clone() }).is_none());
        assert!(recall("fast", &ImageLayer { size: 4, ..image_layer.clone() }).is_none());
        for objects in fs::read_dir(directory.path().join("storage/data")).unwrap() {
            let objects = objects.unwrap().path();
            fs::remove_dir_all(&objects).unwrap();
            fs::create_dir(&objects).unwrap();
        }
        assert!(recall("fast", &image_layer).is_none());
    }

    #[test]
    fn layer_that_is_forgotten_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let store = DirectoryStore::create(&directory.path().join("storage")).unwrap();
        let (place, image_layer) = (directory.path().join("layers"), image_layer());
        let staging = Arc::new(Staging::start(&store).unwrap());
        let kept = KeptLayers::open(place.clone(), "fast", &staging);
        kept.keep(image_layer.digest, &layer(&staging));
        kept.forget(image_layer.digest);
        drop(kept);
        assert!(fs::read_dir(place).into_iter().flatten().next().is_none());
    }
}
