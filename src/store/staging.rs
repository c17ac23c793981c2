//! Writes new objects into a store.
//!
//! An object gets its name in `data/` only after its bytes are on disk, so that a crash never leaves a name without content. To
//! avoid one `fsync` per file, objects are collected in a directory of the run and moved in batches, each after one `syncfs`. New
//! versions of the files beside the objects are also written in that directory, so that all files which a killed run leaves are
//! in one place.

mod replace;

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, Scope};

use rayon::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::directory_states::ObjectDirectoryStates;
use super::file_system::{is_synced_as_a_whole, probe, sync_each};
use super::runs::{create_run_directory, delete_dead_runs};
use super::{DirectoryStore, Store as _, StoreError};
use crate::object::{Compression, Content, ContentObjects, Encoder, HashAlgorithm, ObjectHash, ObjectKind, SizeLimit};
use crate::span::span;

/// Bytes that are collected before a batch is synced and moved.
const BATCH_BYTES: u64 = 256 << 20;

/// Number of objects that are looked up in the store before they are written, at the start of a run.
const INITIAL_LOOKUPS: u64 = 256;

/// Number of additional lookups after each lookup that finds an object.
const LOOKUPS_PER_HIT: u64 = 64;

/// The new objects of one run, in `data/txn/strata-<process>-<number>/` until they are durable.
///
/// Several threads may add objects at the same time. Objects that were not flushed are deleted when the value is dropped. A
/// killed run leaves its directory, which the next run deletes.
#[derive(Debug)]
pub struct Staging {
    store: DirectoryStore,
    /// The hash algorithm of the names of new objects.
    algorithm: HashAlgorithm,
    directory: PathBuf,
    /// The run directory, kept locked so that other runs see that this one is alive.
    _alive: File,
    state: Mutex<StagingState>,
    /// Notified when an object was written, or could not be written.
    written: Condvar,
    /// Notified when a batch is full, or the thread that moves batches must stop.
    full: Condvar,
    /// Locked while a batch is moved.
    moving: Mutex<MoveState>,
    /// Whether the bytes of objects that exist already are compared with their names.
    compares_bytes: AtomicBool,
    /// Whether one `syncfs` makes all files durable.
    is_synced_as_a_whole: bool,
}

/// State that is shared by the threads that move batches.
#[derive(Debug)]
struct MoveState {
    /// The states of the object directories at the start of this run, or after its last change of a directory.
    states: ObjectDirectoryStates,
    /// Whether another program has changed an object directory since the run began.
    is_disturbed: bool,
}

#[derive(Debug, Default)]
struct StagingState {
    /// Every object that this run wrote, or found in the store with the expected length or bytes.
    known: HashSet<(ObjectHash, ObjectKind)>,
    /// Objects that a thread is writing. No other thread may rely on them yet.
    writing: HashSet<(ObjectHash, ObjectKind)>,
    /// Objects that were written but could not be moved. References to them are dangling.
    lost: HashSet<(ObjectHash, ObjectKind)>,
    /// Objects that wait to be moved.
    waiting: Vec<(ObjectHash, ObjectKind)>,
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
    relied_on: HashSet<(ObjectHash, ObjectKind)>,
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
    /// Starts a run: deletes the directories of dead runs in `data/txn`, and creates a new one.
    pub fn start(store: &DirectoryStore) -> Result<Self, StoreError> {
        let transactions = store.root().join("data/txn");
        delete_dead_runs(&transactions, store.reporter())?;
        // The directory is created and recorded under one lock, so that an interruption sees either both or neither.
        let mut temporary = store.cancellation().temporary_files();
        let (directory, alive) = create_run_directory(&transactions)?;
        temporary.start(&directory);
        drop(temporary);
        if let Err(error) = probe(&directory, store.reporter()) {
            fs::remove_dir_all(&directory).ok();
            store.cancellation().temporary_files().end(&directory);
            return Err(error);
        }
        let is_synced_as_a_whole = is_synced_as_a_whole(&directory)?;
        // Threads that create files in the same directory block each other. Therefore there are 16.
        for digit in 0..16 {
            let path = directory.join(format!("{digit:x}"));
            fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
        }
        // In a layered store, objects of the lower store do not block a rename, so every object must be looked up.
        let lookups_left = if store.is_layered() { u64::MAX } else { INITIAL_LOOKUPS };
        let state = Mutex::new(StagingState { lookups_left, ..StagingState::default() });
        let moving = Mutex::new(MoveState { states: store.directory_states(), is_disturbed: false });
        let (written, full, compares_bytes) = Default::default();
        Ok(Self {
            store: store.clone(),
            algorithm: HashAlgorithm::default(),
            directory,
            _alive: alive,
            state,
            written,
            full,
            moving,
            compares_bytes,
            is_synced_as_a_whole,
        })
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

    /// Returns the states of the object directories: at the start of this run, or after its last change of a directory.
    pub fn directory_states(&self) -> ObjectDirectoryStates {
        self.moving().states.clone()
    }

    /// Returns the states of the object directories, or `None` if another program has changed one of them during the run.
    /// Any later change yields different states.
    pub fn final_directory_states(&self) -> Option<ObjectDirectoryStates> {
        let moving = self.moving();
        let is_as_left = !moving.is_disturbed && self.store.directory_states() == moving.states;
        is_as_left.then(|| {
            moving.states.wait_for_tick();
            moving.states.clone()
        })
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
            let mut moving = self.moving();
            if let Err(error) = self.move_waiting(&mut moving) {
                self.state().failure = Some(error);
            }
        }
    }

    /// Returns the store that receives the objects.
    pub fn store(&self) -> &DirectoryStore {
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
            state.take_lookup() || state.relied_on.contains(&(hash, kind)) || self.compares_bytes()
        };
        if is_looked_up && self.is_right(hash, kind, Some(stored.len() as u64))? {
            self.state().record_hit(hash, kind);
            return Ok(());
        }
        let path = self.staged_path(hash, kind);
        let _writing = span!("write", stored.len());
        if let Err(error) = write_new(&path, stored) {
            fs::remove_file(&path).ok();
            return Err(error);
        }
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
        let vanished = |&(hash, kind): &(ObjectHash, ObjectKind)| match self.store.renew(hash, kind) {
            Ok(Some(_)) => None,
            Ok(None) => Some(Ok(hash)),
            Err(error) => Some(Err(error)),
        };
        relied_on.par_iter().find_map_any(vanished).transpose()
    }

    /// Returns the decompressed content of an object in the store, or of one that waits to be moved there.
    pub fn read_decoded(&self, hash: ObjectHash, kind: ObjectKind, limit: SizeLimit) -> Result<Vec<u8>, StoreError> {
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
        self.store.read_decoded(hash, kind, limit)
    }

    /// Moves every object that was added before the call to its final name. After that the objects can be read, and remain in the
    /// store.
    ///
    /// The new names themselves are durable after the next [`DirectoryStore::sync`], or at once on a file system where
    /// `syncfs` has no effect.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.try_flush()?;
        self.state().failure.take().map_or(Ok(()), Err)
    }

    /// Moves objects like [`Self::flush`], but does not return earlier errors; the next [`Self::flush`] returns them.
    pub fn try_flush(&self) -> Result<(), StoreError> {
        self.move_waiting(&mut self.moving())
    }

    fn moving(&self) -> MutexGuard<'_, MoveState> {
        self.moving.lock().expect("no thread panics while it moves a batch")
    }

    fn move_waiting(&self, moving: &mut MoveState) -> Result<(), StoreError> {
        let batch = {
            let mut state = self.state();
            state.waiting_bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        if batch.is_empty() {
            return Ok(());
        }
        let moved = self.move_batch(&batch, moving);
        if moved.is_err() {
            // Objects that were moved before the error are found in the store again. The others must be written again.
            let mut state = self.state();
            for object in &batch {
                state.known.remove(object);
                state.lost.insert(*object);
            }
            drop(state);
            batch.iter().for_each(|&(hash, kind)| drop(fs::remove_file(self.staged_path(hash, kind))));
        }
        moved
    }

    fn move_batch(&self, batch: &[(ObjectHash, ObjectKind)], moving: &mut MoveState) -> Result<(), StoreError> {
        {
            let _syncing = span!("sync");
            match self.is_synced_as_a_whole {
                // One `syncfs` for the whole batch: at 3,300 `fsync`s a second (ext4), an image of 150,000 files would take
                // 45 s longer.
                true => self.store.sync()?,
                false => {
                    let paths: Vec<PathBuf> = batch.iter().map(|&(hash, kind)| self.staged_path(hash, kind)).collect();
                    sync_each(&paths, self.store.cancellation())?;
                }
            }
        }
        let _naming = span!("rename");
        let directories: BTreeSet<u8> = batch.iter().map(|(hash, _)| hash.as_bytes()[0]).collect();
        let mut found = moving.states.clone();
        found.reread(self.store.root(), directories.iter().copied());
        // Read before the first rename, which changes the states itself.
        moving.is_disturbed |= found != moving.states;
        let moved = batch.iter().try_for_each(|&(hash, kind)| self.move_object(hash, kind));
        moving.states.reread(self.store.root(), directories.iter().copied());
        moved?;
        // The new names are durable only with their directories, which no later `syncfs` makes durable on this file system.
        if !self.is_synced_as_a_whole {
            let path = |byte| self.store.root().join(format!("data/{byte:02x}"));
            sync_each(&directories.into_iter().map(path).collect::<Vec<_>>(), self.store.cancellation())?;
        }
        Ok(())
    }

    /// Moves an object to its final name, unless an object of that name and the same length exists.
    fn move_object(&self, hash: ObjectHash, kind: ObjectKind) -> Result<(), StoreError> {
        let (staged, path) = (self.staged_path(hash, kind), self.store.object_path(hash, kind));
        // One call tests for an existing object and renames. A lookup before each write took a fifth of the time of writing.
        match renameat_with(CWD, &staged, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {
                let size = fs::metadata(&staged).map_err(StoreError::io("read", &staged))?.len();
                if self.is_right(hash, kind, Some(size))? {
                    fs::remove_file(&staged).map_err(StoreError::io("delete", &staged))?;
                    let mut state = self.state();
                    state.record_hit(hash, kind);
                    state.written.objects -= 1;
                    state.written.bytes -= size;
                    return Ok(());
                }
                self.store.reporter().warn(format_args!("object '{}' is damaged; it is replaced", path.display()));
            }
            // Many network file systems do not support `RENAME_NOREPLACE`. There, existing objects must be found before they
            // are written.
            Err(_) => self.state().lookups_left = u64::MAX,
        }
        fs::rename(&staged, &path).map_err(StoreError::io("create", &path))
    }

    /// Returns the number and size of the objects that this run has added so far.
    pub fn written(&self) -> WrittenObjects {
        self.state().written
    }

    fn state(&self) -> MutexGuard<'_, StagingState> {
        self.state.lock().expect("no thread panics while it holds the list of objects")
    }

    fn staged_path(&self, hash: ObjectHash, kind: ObjectKind) -> PathBuf {
        let name = hash.to_string();
        self.directory.join(&name[..1]).join(format!("{name}{}", kind.suffix()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The deletion may take long, so an interruption does not wait for it, and deletes the remaining files itself.
        let removed = fs::remove_dir_all(&self.directory);
        self.store.cancellation().temporary_files().end(&self.directory);
        if let Err(error) = removed {
            self.store.reporter().warn(format_args!("cannot delete '{}': {error}", self.directory.display()));
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<File, StoreError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    let mut file = file.map_err(StoreError::io("create", path))?;
    file.write_all(bytes).map_err(StoreError::io("write", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests;
