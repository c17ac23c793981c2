//! New objects on their way into a store.
//!
//! An object gets its name in `data/` only when its bytes are on disk, so that a crash never leaves a name without them.
//! To spare an `fsync` per file, objects gather in a directory of the run and move in batches, each behind one `syncfs`. What
//! replaces files beside the objects is made in that directory, too, so that a killed run leaves nothing anywhere else.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread::{self, Scope};

use rayon::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::file_system::{is_synced_as_a_whole, probe, sync_each};
use super::marks::Marks;
use super::runs::{delete_leftovers, make_run_directory, runs, syncing};
use super::{DirectoryStore, StoreError};
use crate::file::read_regular_up_to;
use crate::object::{Compression, Content, ContentObjects, Encoder, ObjectHash, ObjectKind, SizeLimit};
use crate::span::span;

/// Bytes that gather before they are synced and moved to their names.
const BATCH_BYTES: u64 = 256 << 20;

/// So many objects are looked for in the store before they are written, at first.
const FIRST_LOOKS: u64 = 256;

/// For each object that was found there, so many more are looked for.
const LOOKS_FOR_A_FIND: u64 = 64;

/// The new objects of one run, in `data/txn/strata-<process>-<number>/` until they are durable.
///
/// Threads add objects side by side. What was not flushed when the value is dropped is deleted; a run that was killed
/// leaves its directory, which the next run deletes.
#[derive(Debug)]
pub struct Staging {
    store: DirectoryStore,
    directory: PathBuf,
    /// Held locked, which tells other runs that this one lives.
    _alive: File,
    state: Mutex<State>,
    /// Told when an object was written, or could not be.
    written: Condvar,
    /// Told when a batch is full, or nobody shall wait for one any more.
    full: Condvar,
    /// Held while a batch moves.
    moving: Mutex<Moving>,
    /// Whether objects that are there already are read and compared with their names.
    compares_bytes: AtomicBool,
    /// Whether one call makes all durable.
    is_synced_as_a_whole: bool,
}

/// What those who move batches tell one another.
#[derive(Debug)]
struct Moving {
    /// The directories of objects as this run found them, or left them.
    marks: Marks,
    /// Whether another program has changed one of them since the run began.
    is_disturbed: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Every object that this run wrote, or saw in the store with the length or bytes that it must have.
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
    /// Starts a run: deletes what dead ones left in `data/txn` and makes a directory of its own.
    pub fn start(store: &DirectoryStore) -> Result<Self, StoreError> {
        let transactions = store.root().join("data/txn");
        delete_leftovers(&transactions)?;
        // Whoever abandons the runs of this process either comes before the directory is made, or finds it in the list.
        let mut runs = runs();
        let (directory, alive) = make_run_directory(&transactions)?;
        runs.start(&directory);
        drop(runs);
        if let Err(error) = probe(&directory) {
            fs::remove_dir_all(&directory).ok();
            super::runs::runs().end(&directory);
            return Err(error);
        }
        let is_synced_as_a_whole = is_synced_as_a_whole(&directory)?;
        // Threads that make files in one directory wait for one another.
        for digit in 0..16 {
            let path = directory.join(format!("{digit:x}"));
            fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
        }
        // What a store below has is not in the way when an object is moved.
        let looks = if store.is_layered() { u64::MAX } else { FIRST_LOOKS };
        let state = Mutex::new(State { looks, ..State::default() });
        let moving = Mutex::new(Moving { marks: store.marks(), is_disturbed: false });
        let (written, full, compares_bytes) = Default::default();
        Ok(Self {
            store: store.clone(),
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

    /// Has every object that is found in the store read and compared with its name from now on. A damaged one counts as
    /// missing, and is replaced when it is added.
    pub fn compare_bytes(&self) {
        self.compares_bytes.store(true, Ordering::Relaxed);
    }

    /// Tells whether objects that are found in the store are read and compared with their names.
    pub fn compares_bytes(&self) -> bool {
        self.compares_bytes.load(Ordering::Relaxed)
    }

    /// Returns the states of the directories of objects as this run found them or left them.
    pub fn marks(&self) -> Marks {
        self.moving().marks.clone()
    }

    /// Returns the same, or `None` where another program has changed one of them meanwhile. The next change that follows
    /// will show.
    pub fn final_marks(&self) -> Option<Marks> {
        let moving = self.moving();
        let is_as_left = !moving.is_disturbed && self.store.marks() == moving.marks;
        is_as_left.then(|| {
            moving.marks.wait_for_tick();
            moving.marks.clone()
        })
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
            let mut moving = self.moving();
            if let Err(error) = self.move_waiting(&mut moving) {
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
        let looks = {
            let mut state = self.state();
            // Of what was seen there, only the length is not known to be right.
            state.take_look() || state.relied_on.contains(&(hash, kind)) || self.compares_bytes()
        };
        if looks && self.is_right(hash, kind, Some(stored.len() as u64))? {
            self.state().find(hash, kind);
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

    /// Adds an object of bytes that are stored as they are and returns its name.
    pub fn put_stored(&self, kind: ObjectKind, stored: &[u8]) -> Result<ObjectHash, StoreError> {
        let hash = {
            let _hashing = span!("object hash", stored.len());
            ObjectHash::of(stored)
        };
        self.put(hash, kind, stored)?;
        Ok(hash)
    }

    /// Adds the content of a small file and returns where it lies.
    pub fn put_file(&self, compression: Compression, plain: &[u8]) -> Result<Content, StoreError> {
        let hash = self.put_stored(ObjectKind::File, Encoder::new(compression).encode(plain))?;
        Ok(Content { raw: compression == Compression::None, objects: ContentObjects::Whole(hash) })
    }

    /// Adds a file of strata's own that changes with nearly every revision: it is packed fast, whatever file content is.
    pub fn put_changing_file(&self, plain: &[u8]) -> Result<Content, StoreError> {
        let hash = self.put_stored(ObjectKind::File, Encoder::of_databases().encode(plain))?;
        Ok(Content { raw: false, objects: ContentObjects::Whole(hash) })
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
            let _compressing = span!("compress", plain.len());
            encoder.encode(plain)
        };
        self.put_stored(kind, stored)
    }

    /// Tells whether an object is in the store or on its way there; where it is in the store, its time is renewed.
    pub fn has(&self, hash: ObjectHash, kind: ObjectKind) -> Result<bool, StoreError> {
        self.has_of_length(hash, kind, None)
    }

    /// Does the same for an object whose length may be known: an object of another length counts as missing, and is replaced
    /// when it is added.
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

    /// Tells whether the store has an object, as far as that is to be looked at; its time is renewed.
    fn is_right(&self, hash: ObjectHash, kind: ObjectKind, length: Option<u64>) -> Result<bool, StoreError> {
        let Some(actual) = self.store.renew(hash, kind)? else { return Ok(false) };
        let is_as_long = length.is_none_or(|length| length == actual);
        // Without these small ones clients refuse every revision, or a check does.
        let is_vital = matches!(kind, ObjectKind::Certificate | ObjectKind::MetaInfo);
        Ok(is_as_long && (!self.compares_bytes() && !is_vital || self.store.is_intact(hash, kind)))
    }

    /// Returns an object that was in the store when this run found it there, or that this run wrote, and that now is not.
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

    /// Returns the content of an object that is a zlib stream, in the store or on its way there.
    pub fn read_decoded(&self, hash: ObjectHash, kind: ObjectKind, limit: SizeLimit) -> Result<Vec<u8>, StoreError> {
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
    /// The new names themselves are durable after the next [`DirectoryStore::sync`], or already, where that does nothing.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.try_flush()?;
        self.state().failure.take().map_or(Ok(()), Err)
    }

    /// Does the same, and leaves it to the next [`Self::flush`] to tell what failed before.
    pub fn try_flush(&self) -> Result<(), StoreError> {
        self.move_waiting(&mut self.moving())
    }

    fn moving(&self) -> MutexGuard<'_, Moving> {
        self.moving.lock().expect("no thread panics while it moves a batch")
    }

    fn move_waiting(&self, moving: &mut Moving) -> Result<(), StoreError> {
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

    fn move_batch(&self, batch: &[(ObjectHash, ObjectKind)], moving: &mut Moving) -> Result<(), StoreError> {
        {
            let _syncing = span!("sync");
            match self.is_synced_as_a_whole {
                true => self.store.sync()?,
                false => {
                    let paths: Vec<PathBuf> = batch.iter().map(|&(hash, kind)| self.staged_path(hash, kind)).collect();
                    sync_each(&paths)?;
                }
            }
        }
        let _naming = span!("rename");
        let directories: BTreeSet<u8> = batch.iter().map(|(hash, _)| hash.as_bytes()[0]).collect();
        let mut found = moving.marks.clone();
        found.read_again(self.store.root(), directories.iter().copied());
        moving.is_disturbed |= found != moving.marks;
        let moved = batch.iter().try_for_each(|&(hash, kind)| self.move_object(hash, kind));
        moving.marks.read_again(self.store.root(), directories.iter().copied());
        moved?;
        if !self.is_synced_as_a_whole {
            let path = |byte| self.store.root().join(format!("data/{byte:02x}"));
            sync_each(&directories.into_iter().map(path).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Gives an object its name, or leaves it to the one that has it already, if that can be the same.
    fn move_object(&self, hash: ObjectHash, kind: ObjectKind) -> Result<(), StoreError> {
        let (staged, path) = (self.staged_path(hash, kind), self.store.object_path(hash, kind));
        match renameat_with(CWD, &staged, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {
                let size = fs::metadata(&staged).map_err(StoreError::io("read", &staged))?.len();
                if self.is_right(hash, kind, Some(size))? {
                    fs::remove_file(&staged).map_err(StoreError::io("delete", &staged))?;
                    let mut state = self.state();
                    state.find(hash, kind);
                    state.written.objects -= 1;
                    state.written.bytes -= size;
                    return Ok(());
                }
                tracing::warn!("'{}' is damaged, and is replaced", path.display());
            }
            // Many file systems of networks can only replace, so that nobody learns what was there.
            Err(_) => self.state().looks = u64::MAX,
        }
        fs::rename(&staged, &path).map_err(StoreError::io("create", &path))
    }

    /// Replaces files beside the objects, such as `.cvmfspublished`, each in one step and in the order given.
    ///
    /// All are written and on disk before the first is replaced, so that after an error, too, each file has its old content
    /// or its new, and a crash can only fall between two renames. With the last file clients see the `revision`, unless the
    /// whole store is still out of their sight. What fails from then on is no error: it is returned.
    pub fn replace_files(&self, files: &[(&str, &[u8])], revision: Option<u64>) -> Result<Vec<StoreError>, StoreError> {
        for (name, bytes) in files {
            let path = self.directory.join(name);
            let written = write_new(&path, bytes)?;
            syncing(|| written.sync_all()).map_err(StoreError::io("sync", &path))?;
        }
        let root = self.store.root();
        // Before the first rename: a process may have no file left to open.
        let directory = File::open(root).map_err(StoreError::io("open", root))?;
        let mut late = Vec::new();
        {
            let mut runs = runs();
            for (number, (name, bytes)) in files.iter().enumerate() {
                let path = root.join(name);
                if let Err(error) = fs::rename(self.directory.join(name), &path) {
                    let is_last = number + 1 == files.len();
                    late = despite_failure(&path, bytes, error, is_last)?;
                }
            }
            revision.into_iter().for_each(|revision| runs.publish(revision));
        }
        late.extend(syncing(|| directory.sync_all()).map_err(StoreError::io("sync", root)).err());
        Ok(late)
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
        self.directory.join(&name[..1]).join(format!("{name}{}", kind.suffix()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // An interruption does not wait for this, which may take long: it deletes what is left.
        let removed = fs::remove_dir_all(&self.directory);
        runs().end(&self.directory);
        if let Err(error) = removed {
            tracing::warn!("cannot delete '{}': {error}", self.directory.display());
        }
    }
}

/// Finds out whether a file was replaced although the system reported an error, as file systems of networks may do when an
/// answer is lost. Returns what to tell if the file has its new content, or may have it.
///
/// For a file that is not the last one it makes no difference: the last one is not touched.
fn despite_failure(path: &Path, bytes: &[u8], error: io::Error, is_last: bool) -> Result<Vec<StoreError>, StoreError> {
    let error = StoreError::io("replace", path)(error);
    match read_regular_up_to(bytes.len() as u64, path) {
        Ok(Some(content)) if is_last && content == bytes => Ok(vec![error]),
        Err(source) if is_last && source.kind() != io::ErrorKind::NotFound => {
            Ok(vec![error, StoreError::Unknown { path: path.to_owned(), source }])
        }
        _ => Err(error),
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
