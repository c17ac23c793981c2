//! Streams the content of layers into the store, on all threads, in bounded memory.
//!
//! Every thread does whatever is next: it reads on in a layer, or it compresses what was read. Reading has precedence as
//! long as there is room, because within one layer nothing else can go on without it. So one slow layer, many small ones,
//! and a single thread all keep every core busy, and no thread ever waits for one that waits for it.

mod layer_task;
mod pieces;

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

use crate::index::{ContentIndex, IndexError};
use crate::layer::{LayerEntry, LayerError, LayerReader, LayerSummary};
use crate::object::{ChunkSizes, Compression, Content};
use crate::source::SourceError;
use crate::store::{Staging, StoreError};

use layer_task::{BATCH_BYTES, LayerTask, ReadLayer, Step};
use pieces::{Job, PieceStore};

/// The bytes of a layer's blob.
pub type BlobReader = Box<dyn Read + Send>;

/// Opens a layer when its turn has come.
pub type OpenLayer<'a> = Box<dyn FnOnce() -> Result<LayerReader<BlobReader>, IngestError> + Send + 'a>;

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
#[derive(Debug, Clone, Copy)]
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
}

/// What the threads share.
struct Shared<'a> {
    state: Mutex<State<'a>>,
    changed: Condvar,
    /// Bytes that may be in flight.
    memory: u64,
    /// Bytes that one step of reading may bring.
    step: u64,
}

struct State<'a> {
    /// Layers that nobody is reading at the moment.
    idle: VecDeque<Box<LayerTask<'a>>>,
    /// Layers that some thread is reading.
    reading: usize,
    /// Content that waits to be stored.
    jobs: VecDeque<Job>,
    /// Bytes in jobs that wait or are being worked on, and those that steps under way may bring.
    in_flight: u64,
    finished: Vec<(usize, Result<ReadLayer, IngestError>)>,
    failed: bool,
}

/// What a thread does next.
enum Turn<'a> {
    Read(Box<LayerTask<'a>>),
    Store(Job),
    Leave,
}

impl Ingest<'_> {
    /// Reads the layers to their ends and stores their content; returns them in the order given.
    ///
    /// After the first error nothing more is read. Content that was stored by then stays, and harms nobody.
    pub fn run(&self, layers: Vec<OpenLayer<'_>>) -> Vec<Result<IngestedLayer, IngestError>> {
        let count = layers.len();
        let task = |(index, open)| Box::new(LayerTask::new(index, open, self.chunk_sizes));
        let state = State {
            idle: layers.into_iter().enumerate().map(task).collect(),
            reading: 0,
            jobs: VecDeque::new(),
            in_flight: 0,
            finished: Vec::new(),
            failed: false,
        };
        let step = self.chunk_sizes.maximum + BATCH_BYTES;
        let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), memory: self.memory, step };
        let pieces = PieceStore::new(self, count);
        thread::scope(|scope| {
            // A machine that has no more threads to give is slower for it, but this one goes on.
            let spawn = |_| thread::Builder::new().spawn_scoped(scope, || shared.work(&pieces));
            let _helpers: Vec<_> = (1..self.threads).map_while(|number| spawn(number).ok()).collect();
            shared.work(&pieces);
        });
        let state = shared.state.into_inner().expect("no thread panics while it holds the state");
        let mut results: Vec<_> = (0..count).map(|_| Err(IngestError::GivenUp)).collect();
        for (index, read) in state.finished {
            results[index] = match read {
                Ok(_) if state.failed => Err(IngestError::GivenUp),
                read => read.map(|read| read.with_content(&pieces, self.compression == Compression::None)),
            };
        }
        results
    }
}

impl<'a> Shared<'a> {
    fn work(&self, pieces: &PieceStore<'_>) {
        let mut encoder = pieces.encoder();
        loop {
            match self.next_turn() {
                Turn::Read(mut task) => {
                    let step = task.step();
                    self.done_reading(task, step);
                }
                Turn::Store(job) => {
                    let (layer, bytes) = (job.layer, job.bytes());
                    let result = pieces.store(job, &mut encoder);
                    self.done_storing(layer, bytes, result);
                }
                Turn::Leave => return,
            }
        }
    }

    fn next_turn(&self) -> Turn<'a> {
        let mut state = self.lock();
        loop {
            if state.failed {
                return Turn::Leave;
            }
            let has_room = state.in_flight == 0 || state.in_flight + self.step <= self.memory;
            if has_room && let Some(task) = state.idle.pop_front() {
                state.reading += 1;
                state.in_flight += self.step;
                return Turn::Read(task);
            }
            if let Some(job) = state.jobs.pop_front() {
                return Turn::Store(job);
            }
            if state.idle.is_empty() && state.reading == 0 {
                return Turn::Leave;
            }
            state = self.changed.wait(state).expect("no thread panics while it holds the state");
        }
    }

    fn done_reading(&self, task: Box<LayerTask<'a>>, step: Result<Step, IngestError>) {
        let (job, task) = match step {
            Ok(Step::Job(job)) => (Some(job), Ok(task)),
            // The end is verified before anybody learns of it, and outside of the lock: there may be much left to read.
            Ok(Step::End(job)) => (Some(job), Err((task.index, task.finish()))),
            Err(error) => (None, Err((task.index, Err(error)))),
        };
        let mut state = self.lock();
        state.reading -= 1;
        state.in_flight -= self.step;
        if let Some(job) = job {
            state.in_flight += job.bytes();
            state.jobs.push_back(job);
        }
        match task {
            // The layer that was begun first goes on first: the others wait for it anyway.
            Ok(task) => state.idle.push_front(task),
            Err((index, Ok(read))) => state.finished.push((index, Ok(read))),
            Err((index, Err(error))) => state.fail(index, error),
        }
        drop(state);
        self.changed.notify_all();
    }

    fn done_storing(&self, layer: usize, bytes: u64, result: Result<(), IngestError>) {
        let mut state = self.lock();
        state.in_flight -= bytes;
        if let Err(error) = result {
            state.fail(layer, error);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().expect("no thread panics while it holds the state")
    }
}

impl State<'_> {
    fn fail(&mut self, layer: usize, error: IngestError) {
        self.failed = true;
        self.finished.retain(|(index, _)| *index != layer);
        self.finished.push((layer, Err(error)));
    }
}
