//! New objects on their way into a store.
//!
//! An object gets its name in `data/` only when its bytes are on disk, so that a crash never leaves a name without them.
//! To spare an `fsync` per file, objects gather in a folder of the run and move in batches, each behind one `syncfs`. What
//! replaces files beside the objects is made in that folder, too, so that a killed run leaves nothing anywhere else.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, Scope};

use rayon::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::runs::{delete_leftovers, make_run_folder, runs};
use super::{DirectoryStore, StoreError};
use crate::object::{Compression, Content, Encoder, ObjectHash, ObjectKind, Pieces};
use crate::stage::stage;

/// Bytes that gather before they are synced and moved to their names.
const BATCH_BYTES: u64 = 256 << 20;

/// So many objects are looked for in the store before they are written, at first.
const FIRST_LOOKS: u64 = 256;

/// For each object that was found there, so many more are looked for.
const LOOKS_FOR_A_FIND: u64 = 64;

/// The new objects of one run, in `data/txn/strata-<process>-<number>/` until they are durable.
///
/// Threads add objects side by side. What was not flushed when the value is dropped is deleted; a run that was killed
/// leaves its folder, which the next run deletes.
#[derive(Debug)]
pub struct Staging {
    store: DirectoryStore,
    folder: PathBuf,
    /// Held locked, which tells other runs that this one lives.
    _alive: File,
    state: Mutex<State>,
    /// Told when an object was written, or could not be.
    written: Condvar,
    /// Told when a batch is full, or nobody shall wait for one any more.
    full: Condvar,
    /// Held while a batch moves.
    moving: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Every object that this run wrote or saw in the store.
    known: HashSet<(ObjectHash, ObjectKind)>,
    /// Those that some thread is writing. Nobody counts on them before they are there.
    writing: HashSet<(ObjectHash, ObjectKind)>,
    /// Those that were written and could not be moved, so that whoever counted on them is wrong.
    lost: HashSet<(ObjectHash, ObjectKind)>,
    /// Those that wait to be moved.
    waiting: Vec<(ObjectHash, ObjectKind)>,
    waiting_bytes: u64,
    /// The thread that moves batches, if there is one, by its number.
    mover: Option<u64>,
    /// How many such threads there were.
    movers: u64,
    /// Whether it is to move what there is, even if that is no full batch.
    is_hurried: bool,
    /// Why such a thread could not move one.
    failure: Option<StoreError>,
    /// Objects that were in the store already and that this run counts on.
    relied_on: HashSet<(ObjectHash, ObjectKind)>,
    /// How many more objects are looked for in the store before they are written. The content index knows most of what is
    /// there, so that looking seldom pays; others are found when they are moved, at the price of writing them.
    looks: u64,
    written: Written,
}

/// Lets a thread of its own move full batches, until it is dropped.
#[derive(Debug)]
pub struct Mover<'s>(Option<(&'s Staging, u64)>);

impl Mover<'_> {
    /// Has what was added so far moved, as what comes next takes long.
    pub fn hurry(&self) {
        if let Some((staging, _)) = self.0 {
            staging.state().is_hurried = true;
            staging.full.notify_all();
        }
    }
}

impl Drop for Mover<'_> {
    fn drop(&mut self) {
        if let Some((staging, own)) = self.0 {
            staging.state().mover.take_if(|mover| *mover == own);
            staging.full.notify_all();
        }
    }
}

/// How much a run added to its store. What waits to be moved counts, and may turn out to be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Objects that were not there before.
    pub objects: u64,
    /// Their bytes, as stored.
    pub bytes: u64,
}

impl State {
    /// Tells whether to look for an object in the store before it is written.
    fn take_look(&mut self) -> bool {
        let is_left = self.looks > 0;
        self.looks = self.looks.saturating_sub(1);
        is_left
    }

    /// Notes an object that the store had already.
    fn find(&mut self, hash: ObjectHash, kind: ObjectKind) {
        self.relied_on.insert((hash, kind));
        self.looks = self.looks.saturating_add(LOOKS_FOR_A_FIND);
    }
}

impl Staging {
    /// Starts a run: deletes what dead ones left in `data/txn` and makes a folder of its own.
    pub fn start(store: &DirectoryStore) -> Result<Self, StoreError> {
        let transactions = store.root().join("data/txn");
        delete_leftovers(&transactions)?;
        // Whoever abandons the runs of this process either comes before the folder is made, or finds it in the list.
        let mut runs = runs();
        let (folder, alive) = make_run_folder(&transactions)?;
        runs.start(&folder);
        drop(runs);
        // Threads that make files in one folder wait for one another.
        for digit in 0..16 {
            let path = folder.join(format!("{digit:x}"));
            fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
        }
        // What a store below has is not in the way when an object is moved.
        let looks = if store.is_layered() { u64::MAX } else { FIRST_LOOKS };
        let state = Mutex::new(State { looks, ..State::default() });
        let (written, full, moving) = Default::default();
        Ok(Self { store: store.clone(), folder, _alive: alive, state, written, full, moving })
    }

    /// Starts a thread that moves batches as they become full, so that those who add objects need not wait for the disk. One
    /// such thread is enough for all; where no thread can be had, they wait.
    pub fn move_aside<'s>(&'s self, scope: &'s Scope<'s, '_>) -> Mover<'s> {
        let own = {
            let mut state = self.state();
            if state.mover.is_some() {
                return Mover(None);
            }
            state.movers += 1;
            let own = state.movers;
            state.mover = Some(own);
            own
        };
        let mover = Mover(Some((self, own)));
        match thread::Builder::new().spawn_scoped(scope, move || self.move_full_batches(own)) {
            Ok(_) => mover,
            Err(_) => Mover(None),
        }
    }

    /// Moves batches until this thread, which has a number of its own, is no longer the one to do so.
    fn move_full_batches(&self, own: u64) {
        loop {
            let is_idle =
                |state: &mut State| state.mover == Some(own) && !state.is_hurried && state.waiting_bytes < BATCH_BYTES;
            let state = self.full.wait_while(self.state(), is_idle);
            let mut state = state.expect("no thread panics while it holds the list of objects");
            if state.mover != Some(own) {
                return;
            }
            state.is_hurried = false;
            drop(state);
            let moving = self.moving();
            if let Err(error) = self.move_waiting(&moving) {
                self.state().failure = Some(error);
            }
        }
    }

    /// Returns the store that the objects go to.
    pub fn store(&self) -> &DirectoryStore {
        &self.store
    }

    /// Adds an object unless the store or this run has it. That the store has it may be found out only when it is moved.
    pub fn put(&self, hash: ObjectHash, kind: ObjectKind, stored: &[u8]) -> Result<(), StoreError> {
        {
            let is_being_written = |state: &mut State| state.writing.contains(&(hash, kind));
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
        let failure = state.failure.take();
        // A thread that moves batches and does not keep up with those who add objects slows them down.
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
        let looks = self.state().take_look();
        if looks && self.store.renew(hash, kind)? {
            self.state().find(hash, kind);
            return Ok(());
        }
        let path = self.staged_path(hash, kind);
        let _writing = stage!("write", stored.len());
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

    /// Adds an object of bytes that are stored as they are and returns its name.
    pub fn put_stored(&self, kind: ObjectKind, stored: &[u8]) -> Result<ObjectHash, StoreError> {
        let hash = {
            let _hashing = stage!("object hash", stored.len());
            ObjectHash::of(stored)
        };
        self.put(hash, kind, stored)?;
        Ok(hash)
    }

    /// Adds the content of a small file and returns where it lies.
    pub fn put_file(&self, compression: Compression, plain: &[u8]) -> Result<Content, StoreError> {
        let hash = self.put_stored(ObjectKind::File, Encoder::new(compression).encode(plain))?;
        Ok(Content { raw: compression == Compression::None, pieces: Pieces::Whole(hash) })
    }

    /// Adds a file of strata's own that changes with nearly every revision: it is packed fast, whatever file content is.
    pub fn put_changing_file(&self, plain: &[u8]) -> Result<Content, StoreError> {
        let hash = self.put_stored(ObjectKind::File, Encoder::of_databases().encode(plain))?;
        Ok(Content { raw: false, pieces: Pieces::Whole(hash) })
    }

    /// Adds a database, certificate or description, which is a zlib stream whatever file content is.
    ///
    /// Replicas do not copy certificates and descriptions: they compress them anew, as stock zlib does, and expect that to
    /// give the same object.
    pub fn put_database(&self, kind: ObjectKind, plain: &[u8]) -> Result<ObjectHash, StoreError> {
        let mut encoder = match kind {
            ObjectKind::Certificate | ObjectKind::MetaInfo => Encoder::new(Compression::Exact),
            _ => Encoder::of_databases(),
        };
        let stored = {
            let _compressing = stage!("compress", plain.len());
            encoder.encode(plain)
        };
        self.put_stored(kind, stored)
    }

    /// Tells whether an object is in the store or on its way there; where it is in the store, its time is renewed.
    pub fn has(&self, hash: ObjectHash, kind: ObjectKind) -> Result<bool, StoreError> {
        if self.state().known.contains(&(hash, kind)) {
            return Ok(true);
        }
        let is_there = self.store.renew(hash, kind)?;
        if is_there {
            let mut state = self.state();
            state.known.insert((hash, kind));
            state.relied_on.insert((hash, kind));
        }
        Ok(is_there)
    }

    /// Returns an object that was in the store when this run found it there, or that this run wrote, and that now is not.
    pub fn first_vanished(&self) -> Result<Option<ObjectHash>, StoreError> {
        if let Some((hash, _)) = self.state().lost.iter().next() {
            return Ok(Some(*hash));
        }
        let relied_on: Vec<_> = self.state().relied_on.iter().copied().collect();
        let vanished = |&(hash, kind): &(ObjectHash, ObjectKind)| match self.store.renew(hash, kind) {
            Ok(true) => None,
            Ok(false) => Some(Ok(hash)),
            Err(error) => Some(Err(error)),
        };
        relied_on.par_iter().find_map_any(vanished).transpose()
    }

    /// Returns the content of an object that is a zlib stream, in the store or on its way there.
    pub fn read_decoded(&self, hash: ObjectHash, kind: ObjectKind, limit: u64) -> Result<Vec<u8>, StoreError> {
        let (is_waiting, is_ours) = {
            let state = self.state();
            (state.waiting.contains(&(hash, kind)), state.known.contains(&(hash, kind)))
        };
        if is_waiting {
            self.try_flush()?;
        } else if is_ours {
            // Another thread may be moving it right now.
            drop(self.moving());
        }
        self.store.read_decoded(hash, kind, limit)
    }

    /// Moves everything that was added before the call to its name; afterwards it is readable, and will stay.
    ///
    /// The new names themselves are durable after the next [`DirectoryStore::sync`].
    pub fn flush(&self) -> Result<(), StoreError> {
        self.try_flush()?;
        self.state().failure.take().map_or(Ok(()), Err)
    }

    /// Does the same, and leaves it to the next [`Self::flush`] to tell what failed before.
    pub fn try_flush(&self) -> Result<(), StoreError> {
        self.move_waiting(&self.moving())
    }

    fn moving(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().expect("no thread panics while it moves a batch")
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
        let moved = self.move_batch(&batch);
        if moved.is_err() {
            // What has its name by now is found in the store; the rest is to be written again.
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

    fn move_batch(&self, batch: &[(ObjectHash, ObjectKind)]) -> Result<(), StoreError> {
        {
            let _syncing = stage!("sync");
            self.store.sync()?;
        }
        let _naming = stage!("rename");
        batch.iter().try_for_each(|&(hash, kind)| self.move_object(hash, kind))
    }

    /// Gives an object its name, or leaves it to the one that has it already.
    fn move_object(&self, hash: ObjectHash, kind: ObjectKind) -> Result<(), StoreError> {
        let (staged, path) = (self.staged_path(hash, kind), self.store.object_path(hash, kind));
        match renameat_with(CWD, &staged, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) if self.store.renew(hash, kind)? => {
                let size = fs::metadata(&staged).map_err(StoreError::io("read", &staged))?.len();
                fs::remove_file(&staged).map_err(StoreError::io("delete", &staged))?;
                let mut state = self.state();
                state.find(hash, kind);
                state.written.objects -= 1;
                state.written.bytes -= size;
                return Ok(());
            }
            Err(Errno::EXIST) => {}
            // Many file systems of networks can only replace, so that nobody learns what was there.
            Err(_) => self.state().looks = u64::MAX,
        }
        fs::rename(&staged, &path).map_err(StoreError::io("create", &path))
    }

    /// Replaces files beside the objects, such as `.cvmfspublished`, each in one step and in the order given.
    ///
    /// All are written and on disk before the first is replaced, so that after an error, too, each file has its old content
    /// or its new, and a crash can only fall between two renames.
    pub fn replace_files(&self, files: &[(&str, &[u8])]) -> Result<(), StoreError> {
        for (name, bytes) in files {
            let path = self.folder.join(name);
            let written = write_new(&path, bytes)?;
            written.sync_all().map_err(StoreError::io("sync", &path))?;
        }
        let root = self.store.root();
        let mut runs = runs();
        for (name, _) in files {
            let path = root.join(name);
            fs::rename(self.folder.join(name), &path).map_err(StoreError::io("replace", &path))?;
        }
        runs.publish();
        let folder = File::open(root).map_err(StoreError::io("open", root))?;
        folder.sync_all().map_err(StoreError::io("sync", root))
    }

    /// Returns how much this run has added so far.
    pub fn written(&self) -> Written {
        self.state().written
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the list of objects")
    }

    fn staged_path(&self, hash: ObjectHash, kind: ObjectKind) -> PathBuf {
        let name = hash.to_string();
        self.folder.join(&name[..1]).join(format!("{name}{}", kind.suffix()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let mut runs = runs();
        let removed = fs::remove_dir_all(&self.folder);
        runs.end(&self.folder);
        drop(runs);
        if let Err(error) = removed {
            tracing::warn!("cannot delete '{}': {error}", self.folder.display());
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
