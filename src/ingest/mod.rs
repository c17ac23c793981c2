//! Streams the content of layers into the store, with several threads and bounded memory.
//!
//! Threads have no fixed roles. Each thread stores content that was read; if no content is queued, the thread reads a part
//! of a layer. Therefore all cores are busy with one large layer and with many small layers, a single thread can do all the
//! work, and threads cannot deadlock.

mod block_list;
mod buffers;
mod file_cutter;
mod large_file;
mod layer_task;
mod object_writer;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::layer::{ExpectedLayer, LayerEntry, LayerError, LayerReader, LayerSummary, Limits};
use crate::object::{ChunkSizes, Compression, Content};
use crate::source::{LayerBlob, SourceError};
use crate::span::span;
use crate::state::{ContentIndex, IndexError};
use crate::store::{Staging, StoreError};

use buffers::Buffers;
use file_cutter::ReadProgress;
use layer_task::{LayerTask, ReadLayer};
use object_writer::{Job, ObjectWriter};

/// Reads the entries of a layer from its blob.
type BlobReader = LayerReader<Box<dyn Read + Send>>;

/// A layer to read.
pub struct LayerToRead<'a> {
    /// Opens the blob shortly before it is read. Returns `None` if the blob cannot be opened yet; then the function is
    /// called again later.
    pub open: Box<dyn FnMut() -> Result<Option<LayerBlob>, SourceError> + Send + 'a>,
    /// Whether the blob comes over a network. Such a blob is opened long before it is read.
    pub is_remote: bool,
    /// Whether the layer is only verified. Then nothing is stored and no entries are returned.
    pub is_verified_only: bool,
    /// Expected size and digests.
    pub expected: ExpectedLayer,
}

/// Called as soon as a layer is verified and its content is stored, with the index of the layer in the list of layers to
/// read, and the layer.
pub type LayerCallback<'a> = &'a (dyn Fn(usize, &IngestedLayer) + Sync);

/// Errors from reading and storing a layer.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The layer cannot be read, or is not the expected one.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The layer cannot be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An object cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content index cannot be read or written.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Another layer of the same run failed.
    #[error("reading of this layer was stopped because another layer failed")]
    GivenUp,
}

/// A layer whose content is in the store.
#[derive(Debug)]
pub struct IngestedLayer {
    /// The entries, in the order of the archive.
    pub entries: Vec<LayerEntry<Content>>,
    /// Sizes, diff ID, and what was left out.
    pub summary: LayerSummary,
}

/// Destination and settings of the content.
#[derive(Clone, Copy)]
pub struct Ingest<'a> {
    /// Destination of new objects.
    pub staging: &'a Staging,
    /// Index of content that was stored before and need not be compressed again.
    pub index: &'a ContentIndex,
    /// Compression of content.
    pub compression: Compression,
    /// Sizes of the chunks of large files.
    pub chunk_sizes: ChunkSizes,
    /// Number of threads, including the calling one.
    pub threads: usize,
    /// Maximum size in bytes of content in memory that was read, but is not stored yet.
    pub memory: u64,
    /// Limits on layers.
    pub limits: Limits,
}

/// Total size in bytes at which the content of several small files becomes a job.
const BATCH_BYTES: u64 = 1 << 20;

/// If at least this number of jobs is queued, threads store content instead of reading. A longer queue would only fill
/// memory and push content out of the processor's caches before it is hashed and compressed.
const MAX_QUEUED_JOBS: usize = 1;

/// Minimum number of threads at which each layer has a second thread that unpacks ahead. There must also be two threads for
/// each layer. Under these conditions, the whole run takes as long as reading the largest layer, which is sequential.
const MIN_THREADS_TO_UNPACK_AHEAD: usize = 8;

/// Two layers whose remaining sizes differ by less than this number of bytes count as equal, so that a thread continues with the
/// layer that is in its caches.
const SIZE_TOLERANCE: u64 = 16 << 20;

/// Maximum number of open layers beyond the number of threads. The number is limited because each open layer has buffers.
const EXTRA_OPEN_LAYERS: usize = 4;

/// Maximum number of simultaneous downloads: enough to hide pauses of single downloads.
const MAX_DOWNLOADS: usize = 6;

/// Pause between two checks whether bytes have arrived.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// State and settings that all threads share.
struct Shared<'a> {
    state: Mutex<IngestState<'a>>,
    changed: Condvar,
    /// Maximum of [`IngestState::in_flight`] in bytes.
    memory: u64,
    /// Maximum number of bytes of content that one call of [`LayerTask::read_some`] returns.
    max_read: u64,
    /// Whether content is stored uncompressed.
    raw: bool,
    buffers: Buffers,
    results: Mutex<Vec<Result<IngestedLayer, IngestError>>>,
    on_layer: LayerCallback<'a>,
}

struct IngestState<'a> {
    /// Layers that no thread is reading at the moment, in the order in which they should be read.
    idle: VecDeque<Box<LayerTask<'a>>>,
    /// Number of layers that threads are reading.
    reading: usize,
    /// Number of layers whose blobs are open.
    open: usize,
    /// Maximum number of local layers open at once.
    max_open: usize,
    /// For each layer, the number of jobs that are queued or being stored.
    unstored: Vec<usize>,
    /// Layers that were read to their ends and have unfinished jobs.
    read: Vec<ReadLayer>,
    /// Queue of jobs.
    jobs: VecDeque<Job>,
    /// Size in bytes of the jobs that are queued or being stored, plus the maximum size that running reads may add.
    in_flight: u64,
    errors: Vec<(usize, IngestError)>,
}

/// What a thread does next.
enum NextAction<'a> {
    Read(Box<LayerTask<'a>>),
    Store(Job),
    Exit,
}

impl Ingest<'_> {
    /// Reads and stores all layers; returns results in the order of `layers`.
    ///
    /// Reading stops after the first error. Content that was stored until then stays in the store, where it does no harm.
    pub fn run(
        &self,
        layers: Vec<LayerToRead<'_>>,
        on_layer: LayerCallback<'_>,
    ) -> Vec<Result<IngestedLayer, IngestError>> {
        let count = layers.len();
        let unpack_ahead = self.threads >= MIN_THREADS_TO_UNPACK_AHEAD && self.threads >= 2 * count;
        let task = |(index, layer)| Box::new(LayerTask::new(index, layer, self.chunk_sizes, self.limits, unpack_ahead));
        let mut state = IngestState {
            idle: VecDeque::with_capacity(count),
            reading: 0,
            open: 0,
            max_open: self.threads + EXTRA_OPEN_LAYERS,
            unstored: vec![0; count],
            read: Vec::new(),
            jobs: VecDeque::new(),
            in_flight: 0,
            errors: Vec::new(),
        };
        layers.into_iter().enumerate().map(task).for_each(|task| state.put_back(task));
        let writer = ObjectWriter::new(self, count);
        let shared = Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            memory: self.memory,
            max_read: self.chunk_sizes.maximum + BATCH_BYTES,
            raw: self.compression == Compression::None,
            buffers: Buffers::default(),
            results: Mutex::new((0..count).map(|_| Err(IngestError::GivenUp)).collect()),
            on_layer,
        };
        thread::scope(|scope| {
            // If the machine cannot start another thread, the work goes on with fewer threads.
            let spawn = |_| thread::Builder::new().spawn_scoped(scope, || shared.work(&writer));
            let _helpers: Vec<_> = (1..self.threads).map_while(|number| spawn(number).ok()).collect();
            shared.work(&writer);
        });
        let state = shared.state.into_inner().expect("no thread panics while it holds the state");
        let mut results = shared.results.into_inner().expect("no thread panics while it adds a result");
        // In reverse order, so that of several errors of one layer the first one remains.
        for (index, error) in state.errors.into_iter().rev() {
            results[index] = Err(error);
        }
        results
    }
}

impl<'a> Shared<'a> {
    fn work(&self, writer: &ObjectWriter<'_>) {
        let mut encoder = writer.encoder();
        loop {
            match self.next_action() {
                NextAction::Read(mut task) => {
                    let step = task.read_some(&self.buffers);
                    self.done_reading(task, step, writer);
                }
                NextAction::Store(job) => {
                    let result = writer.store(&job, &mut encoder);
                    self.done_storing(job, result, writer);
                }
                NextAction::Exit => return,
            }
        }
    }

    fn next_action(&self) -> NextAction<'a> {
        let mut state = self.lock();
        loop {
            if !state.errors.is_empty() {
                // After an error the image cannot be published, so content that was read is not stored any more.
                return NextAction::Exit;
            }
            // With nothing in flight, one read is always allowed: otherwise a limit below the size of a chunk would stop
            // all threads.
            let has_room = state.in_flight == 0
                || state.in_flight + self.max_read <= self.memory && state.jobs.len() < MAX_QUEUED_JOBS;
            // A thread waits for the network only if there is neither content to store nor another layer to read.
            if has_room && let Some(task) = state.next_to_read() {
                state.reading += 1;
                state.in_flight += self.max_read;
                return NextAction::Read(task);
            }
            if let Some(job) = state.jobs.pop_front() {
                return NextAction::Store(job);
            }
            if state.idle.is_empty() && state.reading == 0 {
                return NextAction::Exit;
            }
            // No notification is sent when bytes arrive, so the thread checks again after a pause.
            let _idle = span!("idle");
            let waited = self.changed.wait_timeout(state, POLL_INTERVAL);
            state = waited.expect("no thread panics while it holds the state").0;
        }
    }

    fn done_reading(
        &self,
        task: Box<LayerTask<'a>>,
        step: Result<ReadProgress, IngestError>,
        writer: &ObjectWriter<'_>,
    ) {
        let layer = task.index;
        let (job, task) = match step {
            Ok(ReadProgress::NoContent) => (None, Ok(task)),
            Ok(ReadProgress::Job(job)) => (Some(job), Ok(task)),
            // Verify the layer before it is reported, and without holding the lock, because many bytes may remain to be
            // read.
            Ok(ReadProgress::End(job)) => {
                let _parsing = span!("parse");
                (Some(job), Err(task.finish()))
            }
            Err(error) => (None, Err(Err(error))),
        };
        let mut state = self.lock();
        state.reading -= 1;
        state.in_flight -= self.max_read;
        if let Some(job) = job {
            state.in_flight += job.bytes();
            state.unstored[layer] += 1;
            state.jobs.push_back(job);
        }
        match task {
            Ok(task) => {
                state.open -= usize::from(!task.is_open());
                state.put_back(task);
            }
            Err(Ok(read)) => {
                state.open -= 1;
                state.read.push(read);
            }
            Err(Err(error)) => state.errors.push((layer, error)),
        }
        let complete = state.take_complete(layer);
        drop(state);
        self.changed.notify_all();
        self.complete(complete, writer);
    }

    fn done_storing(&self, job: Job, result: Result<(), IngestError>, writer: &ObjectWriter<'_>) {
        let layer = job.layer;
        let mut state = self.lock();
        state.in_flight -= job.bytes();
        state.unstored[layer] -= 1;
        if let Err(error) = result {
            state.errors.push((layer, error));
        }
        let complete = state.take_complete(layer);
        // Kept buffers need memory, too, so they may use only the part of the limit that content does not use.
        let unused = self.memory.saturating_sub(state.in_flight);
        drop(state);
        self.buffers.put_back(job.buffer, unused);
        self.changed.notify_all();
        self.complete(complete, writer);
    }

    /// Reports a layer whose content is stored completely.
    fn complete(&self, read: Option<ReadLayer>, writer: &ObjectWriter<'_>) {
        let Some(read) = read else { return };
        let index = read.index;
        let _completing = span!("trees");
        let layer = read.with_content(writer, self.raw);
        (self.on_layer)(index, &layer);
        self.results.lock().expect("no thread panics while it adds a result")[index] = Ok(layer);
    }

    fn lock(&self) -> MutexGuard<'_, IngestState<'a>> {
        self.state.lock().expect("no thread panics while it holds the state")
    }
}

impl<'a> IngestState<'a> {
    /// Removes and returns the next layer to read. This is a download to start, if the maximum number of downloads is not
    /// reached. Otherwise it is the layer with the most unread bytes among those that can be read without waiting.
    fn next_to_read(&mut self) -> Option<Box<LayerTask<'a>>> {
        let now = Instant::now();
        let to_download = |task: &LayerTask<'a>| task.is_remote && !task.is_open() && task.not_before <= now;
        let may_open = self.open < self.max_open;
        let is_ready =
            |task: &LayerTask<'a>| if task.is_open() { task.is_ready() } else { !task.is_remote && may_open };
        let download = self.idle.iter().position(|task| to_download(task)).filter(|_| self.open < MAX_DOWNLOADS);
        let ready = || self.idle.iter().position(|task| is_ready(task));
        let position = download.or_else(ready)?;
        let task = self.idle.remove(position)?;
        self.open += usize::from(!task.is_open());
        Some(task)
    }

    /// Inserts a layer in the order of unread bytes, largest number first. All layers then end at about the same time, and
    /// no single thread has to read a large layer alone at the end.
    fn put_back(&mut self, task: Box<LayerTask<'a>>) {
        let order = |task: &LayerTask<'a>| (Reverse(task.unread_bytes() / SIZE_TOLERANCE), task.index);
        let position = self.idle.partition_point(|other| order(other) < order(&task));
        self.idle.insert(position, task);
    }

    /// Takes a layer that was read to its end, if all its jobs are stored.
    fn take_complete(&mut self, layer: usize) -> Option<ReadLayer> {
        let position = self.read.iter().position(|read| read.index == layer)?;
        (self.unstored[layer] == 0 && self.errors.is_empty()).then(|| self.read.swap_remove(position))
    }
}
