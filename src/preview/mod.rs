//! Mounts an image in the form in which it would be published: its layers, its chains, and its root file system.
//!
//! Each layer is read once, sequentially, and verified. Its entries become trees in memory, and its content is written to
//! unlinked files. A tree appears in the mount as soon as its layer and all lower layers are read.

mod layer_packer;
mod pack;
mod reusable_repository;
mod tree_view;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crate::catalog::{layer_without_stray_markers, without_stray_markers};
use crate::consumer::apptainer::flat_tree;
use crate::directory::{DirectoryError, RepositoryDirectory};
use crate::image::{Digest, Platform};
use crate::layer::{LayerEntry, LayerError, Limits};
use crate::metadata::Metadata;
use crate::mount::{Mount, MountError, MountOptions, TreeReplacer, TreeTotals, cache_directory};
use crate::object::Content;
use crate::observer::Reporter;
use crate::progress::Progress;
use crate::registry::Registries;
use crate::repository::RepositoryError;
use crate::settings::Modes;
use crate::source::{self, Image, ImageArgument, ImageLayer, PlatformRequest, Source, SourceError};
use crate::threads;
use crate::tree::{ApplyError, Directory, LayerForm, Leaf, LeafKind, Node, apply, layer_entries};
use layer_packer::LayerPacker;
use pack::{PackWriter, Packs};
use reusable_repository::ReusableRepository;
use tree_view::TreeView;

/// Errors that end a preview.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// The image cannot be found or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A layer cannot be read, or does not match its digest, size or diff ID.
    #[error("cannot read layer {digest}")]
    Layer {
        /// The layer's digest.
        digest: Digest,
        /// The error of the layer reader.
        source: LayerError,
    },
    /// A layer cannot be applied to the lower layers.
    #[error("cannot apply layer {digest}")]
    Apply {
        /// The layer's digest.
        digest: Digest,
        /// The entry that cannot be applied.
        source: ApplyError,
    },
    /// The content of the image cannot be written to a temporary file.
    #[error("cannot store content of the image in the temporary directory '{}'", directory.display())]
    TemporaryFile {
        /// The directory of the temporary file.
        directory: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The repository directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The preview cannot be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The system refuses to start threads.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
}

/// Options of a preview.
#[derive(Debug, Clone)]
pub struct PreviewOptions {
    /// The requested platform. Without it, the platform of this machine is preferred.
    pub platform: Option<Platform>,
    /// Limits on the size of the image.
    pub limits: Limits,
    /// Number of layers that are read in parallel.
    pub threads: usize,
    /// Options of the mount.
    pub mount: MountOptions,
}

impl Default for PreviewOptions {
    /// Returns the options of a preview for this machine's platform that reads one layer for each core at the same time.
    fn default() -> Self {
        let (limits, mount) = (Limits::default(), MountOptions::default());
        Self { platform: None, limits, threads: threads::available(), mount }
    }
}

/// A mounted image whose layers are still to be read.
pub struct Preview {
    image: Image,
    source: Box<dyn Source>,
    repository: Option<ReusableRepository>,
    options: PreviewOptions,
    directory: PathBuf,
    packs: Arc<Packs>,
    replacer: TreeReplacer<TreeView>,
    reporter: Reporter,
}

/// The entries of a layer, and its published form if it is published already.
struct LayerContent {
    entries: Vec<LayerEntry<Content>>,
    form: Option<LayerForm>,
}

/// The index of a layer in the image, with its content or the error from reading it.
type ReadLayer = (usize, Result<LayerContent, PreviewError>);

/// The trees that are complete.
#[derive(Default)]
struct Trees {
    layers: Vec<Arc<Directory>>,
    chains: Vec<Arc<Directory>>,
    flat: Option<Arc<Directory>>,
}

impl Preview {
    /// Resolves an image and mounts an empty preview of it. Published layers and small files are taken from `repository`,
    /// which is only read.
    pub fn start(
        argument: &ImageArgument,
        repository: Option<&RepositoryDirectory>,
        mountpoint: &Path,
        options: PreviewOptions,
        reporter: &Reporter,
    ) -> Result<(Self, Mount), PreviewError> {
        let registries = match repository {
            Some(directory) => directory.registries()?.clone(),
            None => Registries::from_environment().map_err(SourceError::from)?.with_reporter(reporter),
        };
        let source = source::open(argument, &registries)?;
        let image = source.resolve(&PlatformRequest::new(options.platform.clone()))?;
        let directory = cache_directory(&options.mount)?;
        let repository = repository.map(ReusableRepository::open).transpose()?;
        let reader = repository.as_ref().map(|repository| repository.content_reader(directory.clone()));
        // One pack file for each layer, and one for the files that Apptainer needs.
        let packs = Arc::new(Packs::new(image.layers.len() + 1, &directory, reader));
        let nothing = TreeView(mount_root(&image, &Trees::default()));
        let (name, content) = (argument.to_string(), Arc::clone(&packs));
        let (mount, replacer) =
            Mount::start_changing(nothing, content, TreeTotals::default(), name, mountpoint, &options.mount, reporter)?;
        let reporter = reporter.clone();
        Ok((Self { image, source, repository, options, directory, packs, replacer, reporter }, mount))
    }

    /// Returns the number of layers of the image.
    pub fn layers(&self) -> usize {
        self.image.layers.len()
    }

    /// Reads all layers, several in parallel, and mounts each tree as soon as it is complete.
    pub fn read(&self, progress: &Arc<Progress>) -> Result<(), PreviewError> {
        let _reported = self.reporter.start("preview".to_owned(), progress);
        let bytes = self.image.layers.iter().map(|layer| layer.size).sum();
        progress.expected.fetch_add(bytes, Ordering::Relaxed);
        progress.set_activity("reading layers".to_owned());
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            let applied = threads::spawn_in(scope, || self.apply(receiver)).map_err(PreviewError::Threads)?;
            let threads = self.options.threads.clamp(1, self.layers().max(1));
            let spawned = threads::spawn_workers(scope, threads, &self.reporter, || {
                let (next, sender) = (&next, sender.clone());
                move || self.read_layers(next, &sender, progress)
            });
            // The other thread ends when all senders are gone.
            drop(sender);
            let result = applied.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            spawned.map_err(PreviewError::Threads)?;
            // After an error, no further layer is needed.
            next.store(self.layers(), Ordering::Relaxed);
            result
        })
    }

    /// Reads one layer after the other until no layer remains, or a layer cannot be read.
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

    /// Applies layers from the lowest to the highest. They arrive in any order.
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
                    // A published layer is mounted in its published form.
                    Some(form) => form.tree,
                    None => layer_without_stray_markers(&applied.form.tree, &tree).0,
                };
                trees.layers.push(layer);
                tree = without_stray_markers(&applied.tree).0;
                trees.chains.push(Arc::clone(&tree));
                self.mount_trees(&trees)?;
            }
        }
        trees.flat = Some(self.flat(&tree)?);
        self.mount_trees(&trees)
    }

    fn flat(&self, chain: &Arc<Directory>) -> Result<Arc<Directory>, PreviewError> {
        let number = u32::try_from(self.layers()).expect("an image has thousands of layers at most");
        let mut pack = PackWriter::start(number, &self.directory)?;
        let modes = self.repository.as_ref().map_or(Modes::default(), |repository| repository.modes());
        let flat = flat_tree(chain, &self.image.parsed_config.config, modes, |bytes: &[u8]| {
            let content = pack.next();
            pack.append(bytes).map(|()| content)
        })?;
        self.packs.add(number, pack.finish()?);
        Ok(flat)
    }

    fn mount_trees(&self, trees: &Trees) -> Result<(), PreviewError> {
        Ok(self.replacer.replace(&TreeView(mount_root(&self.image, trees)))?)
    }

    fn read_layer(&self, index: usize, layer: &ImageLayer, progress: &Progress) -> Result<LayerContent, PreviewError> {
        if let Some(repository) = &self.repository
            && let Some(form) = repository.layer(layer)?
        {
            progress.read.fetch_add(layer.size, Ordering::Relaxed);
            return Ok(LayerContent { entries: layer_entries(&form), form: Some(form) });
        }
        let blob = progress.counted(self.source.open_layer(layer)?);
        let number = u32::try_from(index).expect("an image has thousands of layers at most");
        let pack = PackWriter::start(number, &self.directory)?;
        let packer = LayerPacker::start(blob, layer, self.options.limits, self.repository.as_ref(), pack)?;
        let (entries, file) = packer.pack()?;
        self.packs.add(number, file);
        Ok(LayerContent { entries, form: None })
    }
}

/// Returns the root directory of the mount: the trees by number, and links to them by digest.
fn mount_root(image: &Image, trees: &Trees) -> Arc<Directory> {
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
    let mut root = Directory::new(Metadata::of_implied_directory());
    root.children.insert((*b"chains").into(), numbered(&trees.chains, chains));
    root.children.insert((*b"layers").into(), numbered(&trees.layers, layers));
    if let Some(flat) = &trees.flat {
        root.children.insert(image.config.digest.to_string().into_bytes().into(), link("flat"));
        root.children.insert((*b"flat").into(), Node::Directory(Arc::clone(flat)));
    }
    Arc::new(root)
}

fn link(target: &str) -> Node {
    let metadata = Metadata { mode: 0o777, ..Metadata::of_implied_directory() };
    Node::Leaf(Arc::new(Leaf { metadata, kind: LeafKind::Symlink(target.as_bytes().into()) }))
}
