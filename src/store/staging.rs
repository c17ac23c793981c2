//! Keeps account of the new objects of a run: which ones the store has, which ones are written, and which ones got lost.
//!
//! How objects are written and made durable is the task of the store (see [`StoreRun`]). An object gets its name in the store only
//! after its bytes are durable, so that a crash never leaves a name without content. This is done in batches.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, Scope};

use rayon::prelude::*;

use super::{
    ContentError, ContentObject, NewFile, ObjectName, ObjectsVersion, SharedWritableStore, StoreError, StoreRun,
};
use crate::object::{Compression, Content, ContentObjects, Encoder, HashAlgorithm, ObjectHash, ObjectKind, SizeLimit};
use crate::span::span;

/// Bytes that are collected before a batch is made durable and gets its names.
const BATCH_BYTES: u64 = 256 << 20;

/// Number of objects that are looked up in the store before they are written, at the start of a run.
const INITIAL_LOOKUPS: u64 = 256;

/// Number of additional lookups after each lookup that finds an object.
const LOOKUPS_PER_HIT: u64 = 64;

/// The new objects of one run, and those of the store that it relies on.
///
/// Several threads may add objects at the same time. Objects that were not flushed are deleted when the value is dropped.
#[derive(Debug)]
pub struct Staging {
    store: SharedWritableStore,
    run: Box<dyn StoreRun>,
    /// The hash algorithm of the names of new objects.
    algorithm: HashAlgorithm,
    state: Mutex<StagingState>,
    /// Notified when an object was written, or could not be written.
    written: Condvar,
    /// Notified when a batch is full, or the thread that moves batches must stop.
    full: Condvar,
    /// Locked while a batch is moved to its names.
    moving: Mutex<()>,
    /// Whether the bytes of objects that exist already are compared with their names.
    compares_bytes: AtomicBool,
}

#[derive(Debug, Default)]
struct StagingState {
    /// Every object that this run wrote, or found in the store with the expected length or bytes.
    known: HashSet<ObjectName>,
    /// Objects that a thread is writing. No other thread may rely on them yet.
    writing: HashSet<ObjectName>,
    /// Objects that were written but could not be moved. References to them are dangling.
    lost: HashSet<ObjectName>,
    /// Objects that wait to be moved.
    waiting: Vec<ObjectName>,
    waiting_bytes: u64,
    /// The number of the thread that moves batches, if one is running.
    mover: Option<u64>,
    /// Number of threads for moving batches that were started so far.
    movers: u64,
    /// Whether the thread that moves batches must move all waiting objects, even if they are not a full batch.
    moves_partial_batch: bool,
    /// The error of the thread that moves batches, until the error is reported.
    failure: Option<StoreError>,
    /// Objects that existed in the store before and that this run refers to.
    relied_on: HashSet<ObjectName>,
    /// Number of objects that are still looked up in the store before they are written. The content index contains most
    /// objects of the store, so a lookup seldom finds one. Other existing objects are found when they are moved, at the cost
    /// of one superfluous write each.
    lookups_left: u64,
    written: WrittenObjects,
}

/// A thread that moves full batches, until this value is dropped.
#[derive(Debug)]
pub struct BatchMover<'s>(Option<(&'s Staging, u64)>);

impl BatchMover<'_> {
    /// Starts moving all objects that were added so far. Call this before a step that takes long.
    pub fn move_now(&self) {
        if let Some((staging, _)) = self.0 {
            staging.state().moves_partial_batch = true;
            staging.full.notify_all();
        }
    }
}

impl Drop for BatchMover<'_> {
    fn drop(&mut self) {
        if let Some((staging, number)) = self.0 {
            staging.state().mover.take_if(|mover| *mover == number);
            staging.full.notify_all();
        }
    }
}

/// Number and size of the objects that a run added to its store. Objects that wait to be moved count, although some of them
/// may exist already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WrittenObjects {
    /// Number of objects that did not exist before.
    pub objects: u64,
    /// Their stored size in bytes.
    pub bytes: u64,
}

impl StagingState {
    /// Returns whether to look up an object in the store before it is written, and counts the lookup.
    fn take_lookup(&mut self) -> bool {
        let is_left = self.lookups_left > 0;
        self.lookups_left = self.lookups_left.saturating_sub(1);
        is_left
    }

    /// Records an object that the store contained already.
    fn record_hit(&mut self, hash: ObjectHash, kind: ObjectKind) {
        self.relied_on.insert((hash, kind));
        self.lookups_left = self.lookups_left.saturating_add(LOOKUPS_PER_HIT);
    }
}

impl Staging {
    /// Starts a run in `store`.
    pub fn start(store: impl Into<SharedWritableStore>) -> Result<Self, StoreError> {
        let store = store.into();
        let state = Mutex::new(StagingState { lookups_left: INITIAL_LOOKUPS, ..StagingState::default() });
        let (written, full, moving, compares_bytes) = Default::default();
        let (run, algorithm) = (store.start_run()?, HashAlgorithm::default());
        Ok(Self { store, run, algorithm, state, written, full, moving, compares_bytes })
    }

    /// Returns the same run, which names new objects by `algorithm`. Without this, it names them by SHA-1.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: HashAlgorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Returns the hash algorithm of the names of new objects.
    pub fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// From now on, compares the bytes of every object that is found in the store with its name. A damaged object counts as
    /// missing, and is replaced when it is added.
    pub fn compare_bytes(&self) {
        self.compares_bytes.store(true, Ordering::Relaxed);
    }

    /// Returns whether the bytes of objects that are found in the store are compared with their names.
    pub fn compares_bytes(&self) -> bool {
        self.compares_bytes.load(Ordering::Relaxed)
    }

    /// Returns the version of the store's objects: at the start of this run, or after its last change.
    pub fn objects_version(&self) -> ObjectsVersion {
        self.run.objects_version()
    }

    /// Returns the version of the store's objects, or `None` if an object may have been deleted during the run. Any later deletion
    /// yields another version.
    pub fn final_objects_version(&self) -> Option<ObjectsVersion> {
        let _moving = self.moving();
        self.run.final_objects_version()
    }

    /// Starts a thread that moves batches as they become full, so that threads which add objects do not wait for the disk.
    /// There is at most one such thread. If the system refuses a thread, the other threads move the batches.
    pub fn start_mover<'s>(&'s self, scope: &'s Scope<'s, '_>) -> BatchMover<'s> {
        let number = {
            let mut state = self.state();
            if state.mover.is_some() {
                return BatchMover(None);
            }
            state.movers += 1;
            let number = state.movers;
            state.mover = Some(number);
            number
        };
        let mover = BatchMover(Some((self, number)));
        match thread::Builder::new().spawn_scoped(scope, move || self.move_full_batches(number)) {
            Ok(_) => mover,
            Err(_) => BatchMover(None),
        }
    }

    /// Runs in the thread with this number: moves batches until [`StagingState::mover`] is another number or `None`.
    fn move_full_batches(&self, number: u64) {
        loop {
            let is_idle = |state: &mut StagingState| {
                state.mover == Some(number) && !state.moves_partial_batch && state.waiting_bytes < BATCH_BYTES
            };
            let state = self.full.wait_while(self.state(), is_idle);
            let mut state = state.expect("no thread panics while it holds the list of objects");
            if state.mover != Some(number) {
                return;
            }
            state.moves_partial_batch = false;
            drop(state);
            let moving = self.moving();
            if let Err(error) = self.move_waiting(&moving) {
                // Noted before another thread can flush and find that nothing waits.
                self.state().failure = Some(error);
            }
        }
    }

    /// Returns the store that receives the objects.
    pub fn store(&self) -> &SharedWritableStore {
        &self.store
    }

    /// Adds an object, unless the store or this run already has it. An equal object in the store may be detected only when the
    /// new object is moved.
    pub fn put(&self, hash: ObjectHash, kind: ObjectKind, stored: &[u8]) -> Result<(), StoreError> {
        {
            let is_being_written = |state: &mut StagingState| state.writing.contains(&(hash, kind));
            let state = self.written.wait_while(self.state(), is_being_written);
            let mut state = state.expect("no thread panics while it holds the list of objects");
            if state.known.contains(&(hash, kind)) {
                return Ok(());
            }
            state.writing.insert((hash, kind));
        }
        let added = self.add(hash, kind, stored);
        let mut state = self.state();
        state.writing.remove(&(hash, kind));
        if added.is_ok() {
            state.known.insert((hash, kind));
            state.lost.remove(&(hash, kind));
        }
        // The thread that moves batches has no caller, so its error is reported to the next thread that adds an object.
        let failure = state.failure.take();
        // If the thread that moves batches falls behind, the threads that add objects must wait for it.
        let is_full = state.waiting_bytes >= if state.mover.is_some() { 2 * BATCH_BYTES } else { BATCH_BYTES };
        if state.waiting_bytes >= BATCH_BYTES {
            self.full.notify_all();
        }
        drop(state);
        self.written.notify_all();
        added?;
        match failure {
            Some(failure) => Err(failure),
            None if is_full => self.flush(),
            None => Ok(()),
        }
    }

    /// Writes an object that this run has not added before.
    fn add(&self, hash: ObjectHash, kind: ObjectKind, stored: &[u8]) -> Result<(), StoreError> {
        let is_looked_up = {
            let mut state = self.state();
            // The length of an object in `relied_on` may be unverified, so such an object is always looked up again.
            state.take_lookup()
                || state.relied_on.contains(&(hash, kind))
                || self.compares_bytes()
                || self.run.overwrites_unnoticed()
        };
        if is_looked_up && self.is_right(hash, kind, Some(stored.len() as u64))? {
            self.state().record_hit(hash, kind);
            return Ok(());
        }
        let _writing = span!("write", stored.len());
        self.run.write((hash, kind), stored)?;
        let mut state = self.state();
        state.waiting.push((hash, kind));
        state.waiting_bytes += stored.len() as u64;
        state.written.objects += 1;
        state.written.bytes += stored.len() as u64;
        Ok(())
    }

    /// Adds an object whose stored bytes are given, and returns its name.
    pub fn put_stored(&self, kind: ObjectKind, stored: &[u8]) -> Result<ObjectHash, StoreError> {
        let hash = {
            let _hashing = span!("object hash", stored.len());
            self.algorithm.hash(stored)
        };
        self.put(hash, kind, stored)?;
        Ok(hash)
    }

    /// Adds the content of a small file, and returns the object that holds it.
    pub fn put_file(&self, compression: Compression, plain: &[u8]) -> Result<Content, StoreError> {
        let hash = self.put_stored(ObjectKind::File, Encoder::new(compression).encode(plain))?;
        Ok(Content { raw: compression == Compression::None, objects: ContentObjects::Whole(hash) })
    }

    /// Adds a small file that strata generates and that changes with nearly every revision. Such a file is always compressed with
    /// the fast setting for databases.
    pub fn put_changing_file(&self, plain: &[u8]) -> Result<Content, StoreError> {
        let hash = self.put_stored(ObjectKind::File, Encoder::of_databases().encode(plain))?;
        Ok(Content { raw: false, objects: ContentObjects::Whole(hash) })
    }

    /// Adds a database, certificate or meta info object, which is always a zlib stream, independent of the setting for file
    /// content.
    ///
    /// Replicas do not copy certificates and meta info: they compress them again with the original zlib, and expect the same
    /// object name.
    pub fn put_database(&self, kind: ObjectKind, plain: &[u8]) -> Result<ObjectHash, StoreError> {
        let mut encoder = match kind {
            ObjectKind::Certificate | ObjectKind::MetaInfo => Encoder::new(Compression::Exact),
            _ => Encoder::of_databases(),
        };
        let stored = {
            let _compressing = span!("compress", plain.len());
            encoder.encode(plain)
        };
        self.put_stored(kind, stored)
    }

    /// Returns whether an object is in the store or waits to be moved there. If it is in the store, its modification time is
    /// renewed.
    pub fn has(&self, hash: ObjectHash, kind: ObjectKind) -> Result<bool, StoreError> {
        self.has_of_length(hash, kind, None)
    }

    /// Returns whether an object exists, like [`Self::has`]. If `length` is given, an object of another length counts as
    /// missing, and is replaced when it is added.
    pub fn has_of_length(&self, hash: ObjectHash, kind: ObjectKind, length: Option<u64>) -> Result<bool, StoreError> {
        {
            let state = self.state();
            let is_known = state.known.contains(&(hash, kind));
            if is_known || length.is_none() && state.relied_on.contains(&(hash, kind)) {
                return Ok(true);
            }
        }
        let is_right = self.is_right(hash, kind, length)?;
        if is_right {
            let mut state = self.state();
            state.relied_on.insert((hash, kind));
            if length.is_some() || self.compares_bytes() {
                state.known.insert((hash, kind));
            }
        }
        Ok(is_right)
    }

    /// Returns whether the store has a valid object, and renews its modification time. The object must have the given length, if
    /// any. If bytes are compared, they must match the name of the object.
    fn is_right(&self, hash: ObjectHash, kind: ObjectKind, length: Option<u64>) -> Result<bool, StoreError> {
        let Some(actual) = self.store.renew(hash, kind)? else { return Ok(false) };
        let is_as_long = length.is_none_or(|length| length == actual);
        // Clients refuse every revision with a damaged certificate, and a check fails if the meta info is damaged. Both are
        // small, so their bytes are always compared.
        let is_always_compared = matches!(kind, ObjectKind::Certificate | ObjectKind::MetaInfo);
        Ok(is_as_long && (!self.compares_bytes() && !is_always_compared || self.store.is_intact(hash, kind)))
    }

    /// Returns an object that this run refers to and that does not exist: it could not be moved, or it was deleted from the
    /// store.
    pub fn first_vanished(&self) -> Result<Option<ObjectHash>, StoreError> {
        if let Some((hash, _)) = self.state().lost.iter().next() {
            return Ok(Some(*hash));
        }
        let relied_on: Vec<_> = self.state().relied_on.iter().copied().collect();
        let vanished = |&(hash, kind): &ObjectName| match self.store.renew(hash, kind) {
            Ok(Some(_)) => None,
            Ok(None) => Some(Ok(hash)),
            Err(error) => Some(Err(error)),
        };
        relied_on.par_iter().find_map_any(vanished).transpose()
    }

    /// Returns the decompressed content of an object in the store, or of one that waits to be moved there.
    pub fn read_decoded(&self, hash: ObjectHash, kind: ObjectKind, limit: SizeLimit) -> Result<Vec<u8>, StoreError> {
        self.make_readable(hash, kind)?;
        self.store.read_decoded(hash, kind, limit)
    }

    /// Returns the content of a file that fits in memory. Its object may wait to be moved to the store.
    pub fn read_content(&self, object: ContentObject) -> Result<Vec<u8>, ContentError> {
        self.make_readable(object.hash, object.kind)?;
        self.store.read_content(object, SizeLimit::of(object.size).stored())
    }

    /// Moves the object to the store if it waits for that.
    fn make_readable(&self, hash: ObjectHash, kind: ObjectKind) -> Result<(), StoreError> {
        let (is_waiting, is_ours) = {
            let state = self.state();
            (state.waiting.contains(&(hash, kind)), state.known.contains(&(hash, kind)))
        };
        if is_waiting {
            self.try_flush()?;
        } else if is_ours {
            // Another thread may be moving the object at this moment. Locking waits until that thread has finished.
            drop(self.moving());
        }
        Ok(())
    }

    /// Moves every object that was added before the call to its final name. After that the objects can be read, and remain in the
    /// store.
    ///
    /// The new names themselves are durable after the next [`WritableStore::sync`](super::WritableStore::sync).
    pub fn flush(&self) -> Result<(), StoreError> {
        self.try_flush()?;
        self.state().failure.take().map_or(Ok(()), Err)
    }

    /// Moves objects like [`Self::flush`], but does not return earlier errors; the next [`Self::flush`] returns them.
    pub fn try_flush(&self) -> Result<(), StoreError> {
        self.move_waiting(&self.moving())
    }

    fn move_waiting(&self, _moving: &MutexGuard<'_, ()>) -> Result<(), StoreError> {
        let batch = {
            let mut state = self.state();
            state.waiting_bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        if batch.is_empty() {
            return Ok(());
        }
        let moved = self.run.name_objects(&batch, &|object, size| self.keeps_existing(object, size));
        if moved.is_err() {
            // Objects that were moved before the error are found in the store again. The others must be written again.
            let mut state = self.state();
            for object in &batch {
                state.known.remove(object);
                state.lost.insert(*object);
            }
            drop(state);
            self.run.discard(&batch);
        }
        moved
    }

    /// Returns whether an object that exists under the name of a new one stays, and counts it as found instead of written.
    fn keeps_existing(&self, (hash, kind): ObjectName, size: u64) -> Result<bool, StoreError> {
        if self.is_right(hash, kind, Some(size))? {
            let mut state = self.state();
            state.record_hit(hash, kind);
            state.written.objects -= 1;
            state.written.bytes -= size;
            return Ok(true);
        }
        let address = self.store.address(&hash.path(kind));
        self.store.reporter().warn(format_args!("object '{address}' is damaged; it is replaced"));
        Ok(false)
    }

    fn moving(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().expect("no thread panics while it moves a batch")
    }

    /// Replaces files beside the objects, see [`StoreRun::replace_files`].
    pub fn replace_files(&self, files: &[NewFile<'_>], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError> {
        self.run.replace_files(files, revision)
    }

    /// Returns the number and size of the objects that this run has added so far.
    pub fn written(&self) -> WrittenObjects {
        self.state().written
    }

    fn state(&self) -> MutexGuard<'_, StagingState> {
        self.state.lock().expect("no thread panics while it holds the list of objects")
    }
}

#[cfg(test)]
mod tests;
