//! Streams the content of layers into the store, on all threads, in bounded memory.
//!
//! Every thread does whatever is next: it compresses what was read, or, where nothing waits for that, it reads on in a layer. So
//! one slow layer, many small ones, and a single thread all keep every core busy, and no thread ever waits for one that
//! waits for it.

mod block_list;
mod buffers;
mod layer_task;
mod object_writer;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use crate::layer::{ExpectedLayer, LayerEntry, LayerError, LayerSummary, Limits};
use crate::object::{ChunkSizes, Compression, Content};
use crate::source::{LayerBlob, SourceError};
use crate::span::span;
use crate::state::{ContentIndex, IndexError};
use crate::store::{Staging, StoreError};

use buffers::Buffers;
use layer_task::{BATCH_BYTES, LayerTask, ReadLayer, ReadProgress};
use object_writer::{Job, ObjectWriter};

/// A layer to be read.
pub struct LayerToRead<'a> {
    /// Opens its blob when its turn has come; nothing where that cannot be done yet.
    pub open: Box<dyn FnMut() -> Result<Option<LayerBlob>, SourceError> + Send + 'a>,
    /// Whether the blob comes over a network, so that it pays to open it long before its turn to be read.
    pub is_remote: bool,
    /// Whether it is only verified: then nothing is stored, and no entries are returned.
    pub is_verified_only: bool,
    /// What it should be.
    pub expected: ExpectedLayer,
}

/// Learns of each layer that was read, verified and stored, by its place among those given, as soon as that is so.
pub type LayerCallback<'a> = &'a (dyn Fn(usize, &IngestedLayer) + Sync);

/// Why a layer could not be brought into the store.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The layer is not what it should be.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The layer cannot be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Another layer of the same run failed.
    #[error("given up because another layer failed")]
    GivenUp,
}

/// A layer whose content is in the store.
#[derive(Debug)]
pub struct IngestedLayer {
    /// What the layer says, in the order of its archive.
    pub entries: Vec<LayerEntry<Content>>,
    /// What was measured and left out.
    pub summary: LayerSummary,
}

/// Where content goes, and at what cost.
#[derive(Clone, Copy)]
pub struct Ingest<'a> {
    /// Where new objects go.
    pub staging: &'a Staging,
    /// What was compressed before.
    pub index: &'a ContentIndex,
    /// How content is compressed.
    pub compression: Compression,
    /// How large files are cut.
    pub chunk_sizes: ChunkSizes,
    /// How many threads work.
    pub threads: usize,
    /// Bytes of content that may be in flight at any time.
    pub memory: u64,
    /// What hostile layers may not exceed.
    pub limits: Limits,
}

/// So much content waits to be stored before threads store rather than read on. More would only fill memory, and push what is to
/// be hashed and compressed next out of the processor's caches.
const MAX_QUEUED_JOBS: usize = 1;

/// From so many threads on, and where there are two for each layer, a layer is unpacked on a thread of its own: then what takes
/// longest is to read the largest layer, whose bytes come one after the other.
const MIN_THREADS_TO_UNPACK_AHEAD: usize = 8;

/// As long as less than so many bytes of blobs make the difference, a thread goes on in the layer that it has in its caches.
const SIZE_TOLERANCE: u64 = 16 << 20;

/// So many more layers are open than there are threads, at most: each has buffers.
const EXTRA_OPEN_LAYERS: usize = 4;

/// So many blobs come over the network at a time: enough to hide the pauses between them.
const MAX_DOWNLOADS: usize = 6;

/// How long to wait before looking again whether bytes have arrived.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// What the threads share.
struct Shared<'a> {
    state: Mutex<IngestState<'a>>,
    changed: Condvar,
    /// Bytes that may be in flight.
    memory: u64,
    /// Bytes that one step of reading may bring.
    max_read: u64,
    /// Whether content is stored as it is.
    raw: bool,
    buffers: Buffers,
    results: Mutex<Vec<Result<IngestedLayer, IngestError>>>,
    on_layer: LayerCallback<'a>,
}

struct IngestState<'a> {
    /// Layers that nobody is reading at the moment, by their place.
    idle: VecDeque<Box<LayerTask<'a>>>,
    /// Layers that some thread is reading.
    reading: usize,
    /// Layers whose blobs are open.
    open: usize,
    /// So many may be, where they are not fetched.
    max_open: usize,
    /// By layer: content that waits to be stored or is being stored.
    unstored: Vec<usize>,
    /// Layers that were read to their ends, while content of theirs is still to be stored.
    read: Vec<ReadLayer>,
    /// Content that waits to be stored.
    jobs: VecDeque<Job>,
    /// Bytes in jobs that wait or are being worked on, and those that steps under way may bring.
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
    /// Reads the layers to their ends and stores their content; returns them in the order given.
    ///
    /// After the first error nothing more is read. Content that was stored by then stays, and harms nobody.
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
            // A machine that has no more threads to give is slower for it, but this one goes on.
            let spawn = |_| thread::Builder::new().spawn_scoped(scope, || shared.work(&writer));
            let _helpers: Vec<_> = (1..self.threads).map_while(|number| spawn(number).ok()).collect();
            shared.work(&writer);
        });
        let state = shared.state.into_inner().expect("no thread panics while it holds the state");
        let mut results = shared.results.into_inner().expect("no thread panics while it adds a result");
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
                return NextAction::Exit;
            }
            let has_room = state.in_flight == 0
                || state.in_flight + self.max_read <= self.memory && state.jobs.len() < MAX_QUEUED_JOBS;
            // Nobody waits for the network while there is content to store, or another layer to read.
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
            // Nobody tells when bytes arrive.
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
            // The end is verified before anybody learns of it, and outside of the lock: there may be much left to read.
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
        let unused = self.memory.saturating_sub(state.in_flight);
        drop(state);
        self.buffers.put_back(job.buffer, unused);
        self.changed.notify_all();
        self.complete(complete, writer);
    }

    /// Hands out a layer all of which is stored.
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
    /// Takes the layer to read on in: that of which most is left, among those that will not have to wait. Downloads are begun
    /// before that, as many as may run.
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

    /// Layers of which most is left come first. So all come to their ends at about the same time, and no thread is left alone
    /// with one.
    fn put_back(&mut self, task: Box<LayerTask<'a>>) {
        let place = |task: &LayerTask<'a>| (Reverse(task.left() / SIZE_TOLERANCE), task.index);
        let position = self.idle.partition_point(|other| place(other) < place(&task));
        self.idle.insert(position, task);
    }

    fn take_complete(&mut self, layer: usize) -> Option<ReadLayer> {
        let position = self.read.iter().position(|read| read.index == layer)?;
        (self.unstored[layer] == 0 && self.errors.is_empty()).then(|| self.read.swap_remove(position))
    }
}
