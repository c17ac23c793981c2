//! An image as it would be published, mounted before anything is: its layers, the chains that they give, and the root file
//! system.
//!
//! Every layer is read once, from its first byte to its last, and verified. What it says goes into trees in memory, its
//! content into files without a name. A tree appears as soon as the layers below it are read.

mod pack;
mod tree_view;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crate::catalog::{CatalogReference, layer_without_stray_markers, without_stray_markers};
use crate::consumer::apptainer::flat_tree;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::image::{Digest, Platform};
use crate::layer::{ContentPart, EntryKind, ExpectedLayer, LayerEntry, LayerError, LayerReader, Limits, NodeKind};
use crate::layout::LayerRecord;
use crate::metadata::Metadata;
use crate::mount::{ContentReader, Extent, Mount, MountError, MountOptions, Showing, unpacking_directory};
use crate::object::{ChunkSizes, Compression, Content, ContentObjects, ObjectKind};
use crate::progress::Progress;
use crate::registry::Registries;
use crate::repository::{Repository, RepositoryError};
use crate::settings::{Modes, Settings};
use crate::source::{self, Image, ImageArgument, ImageLayer, PlatformRequest, Source, SourceError};
use crate::stage::{published_layer, read_layer};
use crate::state::{ContentKey, StateDatabase};
use crate::threads;
use crate::tree::{ApplyError, Directory, LayerForm, Leaf, LeafKind, Node, apply, layer_entries};
use pack::{PackWriter, Packs};
use tree_view::TreeView;

/// Why an image cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The image cannot be found or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A layer cannot be read, or is not what it should be.
    #[error("cannot read layer {digest}")]
    Layer {
        /// The layer's digest.
        digest: Digest,
        /// Why.
        source: LayerError,
    },
    /// A layer cannot be laid over those below it.
    #[error("cannot apply layer {digest}")]
    Apply {
        /// The layer's digest.
        digest: Digest,
        /// Why.
        source: ApplyError,
    },
    /// The content cannot be kept.
    #[error("cannot keep content of the image in '{}'", directory.display())]
    Keep {
        /// Where it was to be kept.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The repository's directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// Nothing can be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The machine refuses to start threads.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// How to show an image.
#[derive(Debug, Clone)]
pub struct PreviewOptions {
    /// The platform that is asked for; this machine's is preferred without.
    pub platform: Option<Platform>,
    /// What an image may have.
    pub limits: Limits,
    /// How many layers are read at a time.
    pub threads: usize,
    /// How to mount.
    pub mount: MountOptions,
}

/// An image that is mounted, and whose layers are still to be read.
pub struct Preview {
    image: Image,
    source: Box<dyn Source>,
    known: Option<Known>,
    options: PreviewOptions,
    directory: PathBuf,
    packs: Arc<Packs>,
    showing: Showing<TreeView>,
}

/// A repository, of which a preview takes what it has.
struct Known {
    head: Repository,
    state: StateDatabase,
    settings: Settings,
}

/// What a layer says, and the layer as it would be published if that is known.
struct LayerContent {
    entries: Vec<LayerEntry<Content>>,
    form: Option<LayerForm>,
}

/// A layer by its place in the image, or why it cannot be read.
type ReadLayer = (usize, Result<LayerContent, PreviewError>);

/// The trees that are ready.
#[derive(Default)]
struct Trees {
    layers: Vec<Arc<Directory>>,
    chains: Vec<Arc<Directory>>,
    flat: Option<Arc<Directory>>,
}

impl Preview {
    /// Resolves an image and mounts what there is of it so far: nothing. Known layers and small files are taken from
    /// `repository`, which is only read.
    pub fn start(
        argument: &ImageArgument,
        repository: Option<&RepositoryDirectory>,
        mountpoint: &Path,
        options: PreviewOptions,
    ) -> Result<(Self, Mount), PreviewError> {
        let registries = match repository {
            Some(directory) => directory.registries()?.clone(),
            None => Registries::from_environment().map_err(SourceError::from)?,
        };
        let source = source::open(argument, &registries)?;
        let image = source.resolve(&PlatformRequest::new(options.platform.clone()))?;
        let directory = unpacking_directory(&options.mount)?;
        let known = repository.map(Known::open).transpose()?;
        let reader = known.as_ref().map(|known| ContentReader::new(known.head.store().clone(), directory.clone()));
        // One pack for each layer, and one for the files of Apptainer.
        let packs = Arc::new(Packs::new(image.layers.len() + 1, &directory, reader));
        let nothing = TreeView(top(&image, &Trees::default()));
        let (name, content) = (argument.to_string(), Arc::clone(&packs));
        let (mount, showing) =
            Mount::start_changing(nothing, content, Extent::default(), name, mountpoint, &options.mount)?;
        Ok((Self { image, source, known, options, directory, packs, showing }, mount))
    }

    /// Returns how many layers the image has.
    pub fn layers(&self) -> usize {
        self.image.layers.len()
    }

    /// Reads all layers, several at a time, and shows each tree as soon as it is there.
    pub fn read(&self, progress: &Progress) -> Result<(), PreviewError> {
        let bytes = self.image.layers.iter().map(|layer| layer.size).sum();
        progress.expected.fetch_add(bytes, Ordering::Relaxed);
        progress.set_activity("reading layers".to_owned());
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let applied = threads::spawn_in(scope, || self.apply(receiver)).map_err(PreviewError::Threads)?;
            let spawned = threads::spawn_workers(scope, self.options.threads.clamp(1, self.layers().max(1)), || {
                let (next, sender) = (&next, sender.clone());
                move || self.read_layers(next, &sender, progress)
            });
            // Without any sender that is left, the other thread is at its end.
            drop(sender);
            let result = applied.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            spawned.map_err(PreviewError::Threads)?;
            // Nobody needs what is not begun.
            next.store(self.layers(), Ordering::Relaxed);
            result
        })
    }

    /// Reads layer after layer until none is left, or one cannot be read.
    fn read_layers(&self, next: &AtomicUsize, sender: &mpsc::Sender<ReadLayer>, progress: &Progress) {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = self.image.layers.get(index) else { return };
            let read = self.read_layer(index, layer, progress);
            let failed = read.is_err();
            if sender.send((index, read)).is_err() || failed {
                return;
            }
        }
    }

    /// Applies layers from the lowest up, in whatever order they come.
    fn apply(&self, layers: mpsc::Receiver<ReadLayer>) -> Result<(), PreviewError> {
        let mut read: Vec<Option<LayerContent>> = (0..self.layers()).map(|_| None).collect();
        let (mut trees, mut tree) = (Trees::default(), Directory::empty_root());
        for (index, content) in layers {
            read[index] = Some(content?);
            while let Some(content) = read.get_mut(trees.chains.len()).and_then(Option::take) {
                let layer = &self.image.layers[trees.chains.len()];
                let failed = |source| PreviewError::Apply { digest: layer.digest, source };
                let applied = apply(&tree, &content.entries).map_err(failed)?;
                let layer = match content.form {
                    // A layer that is published is shown as it is.
                    Some(form) => form.tree,
                    None => layer_without_stray_markers(&applied.form.tree, &tree).0,
                };
                trees.layers.push(layer);
                tree = without_stray_markers(&applied.tree).0;
                trees.chains.push(Arc::clone(&tree));
                self.show(&trees)?;
            }
        }
        trees.flat = Some(self.flat(&tree)?);
        self.show(&trees)
    }

    fn flat(&self, chain: &Arc<Directory>) -> Result<Arc<Directory>, PreviewError> {
        let number = u32::try_from(self.layers()).expect("an image has thousands of layers at most");
        let kept = |source| PreviewError::Keep { directory: self.directory.clone(), source };
        let mut pack = PackWriter::start(number, &self.directory).map_err(kept)?;
        let modes = self.known.as_ref().map_or(Modes::default(), |known| known.settings.modes);
        let flat = flat_tree(chain, &self.image.parsed_config.config, modes, |bytes: &[u8]| {
            let content = pack.next();
            pack.append(bytes).map(|()| content)
        });
        let flat = flat.map_err(kept)?;
        self.packs.add(number, pack.finish().map_err(kept)?);
        Ok(flat)
    }

    fn show(&self, trees: &Trees) -> Result<(), PreviewError> {
        Ok(self.showing.show(&TreeView(top(&self.image, trees)))?)
    }

    fn read_layer(&self, index: usize, layer: &ImageLayer, progress: &Progress) -> Result<LayerContent, PreviewError> {
        if let Some(known) = self.recall_layer(layer)? {
            progress.read.fetch_add(layer.size, Ordering::Relaxed);
            return Ok(known);
        }
        let failed = |source| PreviewError::Layer { digest: layer.digest, source };
        let kept = |source| PreviewError::Keep { directory: self.directory.clone(), source };
        let blob = progress.counted(self.source.open_layer(layer)?);
        let expected = ExpectedLayer { digest: layer.digest, size: layer.size, diff_id: Some(layer.diff_id) };
        let mut reader = LayerReader::ahead(blob, expected, self.options.limits).map_err(failed)?;
        let number = u32::try_from(index).expect("an image has thousands of layers at most");
        let mut pack = PackWriter::start(number, &self.directory).map_err(kept)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry().map_err(failed)? {
            let mut content = pack.next();
            if let EntryKind::Node(_, NodeKind::File { size, .. }) = entry.kind {
                // What may be known is gathered first.
                let mut small = self.known.is_some() && size <= ChunkSizes::default().minimum;
                let mut gathered = Vec::new();
                while let Some(part) = reader.next_part().map_err(failed)? {
                    let appended = match part {
                        ContentPart::Data(data) if small => {
                            gathered.extend_from_slice(data);
                            Ok(())
                        }
                        ContentPart::Data(data) => pack.append(data),
                        ContentPart::Hole(length) => {
                            // Zeros are cheap where they are.
                            small = false;
                            pack.append(&std::mem::take(&mut gathered)).and_then(|()| pack.append_hole(length))
                        }
                    };
                    appended.map_err(kept)?;
                }
                match self.known.as_ref().filter(|_| small).map(|known| known.find(&gathered)).transpose()?.flatten() {
                    Some(known) => content = known,
                    None => pack.append(&gathered).map_err(kept)?,
                }
            }
            entries.push(entry.map_content(|()| content));
        }
        reader.finish().map_err(failed)?;
        self.packs.add(number, pack.finish().map_err(kept)?);
        Ok(LayerContent { entries, form: None })
    }

    /// Returns a layer as it is published, if that says all that there is to say.
    fn recall_layer(&self, layer: &ImageLayer) -> Result<Option<LayerContent>, PreviewError> {
        let Some(Known { head, .. }) = &self.known else { return Ok(None) };
        let known = published_layer(head, layer.digest)?;
        let is_right = |record: &LayerRecord| record.diff_id == layer.diff_id && record.blob_size == layer.size;
        let known = known.filter(|known| known.record.is_complete && is_right(&known.record));
        let Some(known) = known else { return Ok(None) };
        let read = |reference: CatalogReference| {
            head.store().read_decoded(reference.hash, ObjectKind::Catalog, reference.limit())
        };
        let form = read_layer(&read, layer.digest, &known)?;
        Ok(Some(LayerContent { entries: layer_entries(&form), form: Some(form) }))
    }
}

impl Known {
    fn open(directory: &RepositoryDirectory) -> Result<Self, PreviewError> {
        let head = Repository::open(&directory.store()?, directory.name())?;
        Ok(Self { head, state: directory.state_unchanged()?, settings: directory.settings().clone() })
    }

    /// Returns where the content of a small file lies in the repository, if it is known there.
    fn find(&self, plain: &[u8]) -> Result<Option<Content>, PreviewError> {
        let compression = self.settings.compression;
        let key = ContentKey {
            blake3: *blake3::hash(plain).as_bytes(),
            size: plain.len() as u64,
            is_chunk: false,
            encoder: compression.encoder_id().0,
        };
        let found = self.state.objects(&[key]).map_err(DirectoryError::from)?;
        let Some(found) = found[0] else { return Ok(None) };
        let actual = self.head.store().look(found.hash, ObjectKind::File).map_err(DirectoryError::from)?;
        let is_there = actual.is_some_and(|actual| found.length().is_none_or(|length| length == actual));
        let hash = found.hash;
        Ok(is_there.then(|| Content { raw: compression == Compression::None, objects: ContentObjects::Whole(hash) }))
    }
}

/// Returns what is mounted: the trees by number, and links to them by digest.
fn top(image: &Image, trees: &Trees) -> Arc<Directory> {
    let numbered = |trees: &[Arc<Directory>], names: Vec<String>| {
        let mut directory = Directory::new(Metadata::of_implied_directory());
        for (index, (tree, name)) in trees.iter().zip(names).enumerate() {
            let number = (index + 1).to_string();
            directory.children.insert(name.into_bytes().into(), link(&number));
            directory.children.insert(number.into_bytes().into(), Node::Directory(Arc::clone(tree)));
        }
        Node::Directory(Arc::new(directory))
    };
    let chains = image.chains().iter().map(ToString::to_string).collect();
    let layers = image.layers.iter().map(|layer| layer.digest.to_string()).collect();
    let mut top = Directory::new(Metadata::of_implied_directory());
    top.children.insert((*b"chains").into(), numbered(&trees.chains, chains));
    top.children.insert((*b"layers").into(), numbered(&trees.layers, layers));
    if let Some(flat) = &trees.flat {
        top.children.insert(image.config.digest.to_string().into_bytes().into(), link("flat"));
        top.children.insert((*b"flat").into(), Node::Directory(Arc::clone(flat)));
    }
    Arc::new(top)
}

fn link(target: &str) -> Node {
    let metadata = Metadata { mode: 0o777, ..Metadata::of_implied_directory() };
    Node::Leaf(Arc::new(Leaf { metadata, kind: LeafKind::Symlink(target.as_bytes().into()) }))
}
