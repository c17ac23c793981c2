//! Detects that objects were deleted from a store, by a garbage collection of any program, or by hand.
//!
//! The kernel updates inode data of the directories `data/00` to `data/ff` whenever an object is added or removed. As long
//! as all 256 directories are in the state in which the last run left them, every object that existed then exists now. Other
//! signs are not reliable: `cvmfs_server gc` reports its runs in `.cvmfs_status.json`, but only where `jq` is installed, and
//! not when it is killed, and other programs that delete objects report nothing.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::time::{ClockId, clock_gettime};

use crate::store::ObjectsVersion;

/// State of one object directory: inode, size, and change time in seconds and nanoseconds.
type DirectoryState = [i64; 4];

/// The states of all 256 object directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectDirectoryStates(Vec<DirectoryState>);

/// Maximum interval between two ticks of a file system's clock.
// Linux stamps inodes with its coarse clock, which ticks at least 100 times a second.
const MAX_TICK: Duration = Duration::from_millis(20);

impl ObjectDirectoryStates {
    /// Reads the states of the object directories below `root`, a storage directory.
    pub(super) fn read(root: &Path) -> Self {
        Self((0..=255).map(|byte| state(root, byte)).collect())
    }

    /// Reads the states of the given object directories again.
    pub(super) fn reread(&mut self, root: &Path, directories: impl Iterator<Item = u8>) {
        directories.for_each(|byte| self.0[usize::from(byte)] = state(root, byte));
    }

    /// Waits until the clock of the file system has passed the recorded times, so that a later change gets a different time.
    pub(super) fn wait_for_tick(&self) {
        let start = Instant::now();
        let last = self.0.iter().map(|&[_, _, seconds, nanoseconds]| (seconds, nanoseconds)).max().unwrap_or_default();
        let now = || {
            // Linux stamps inodes with this clock.
            let now = clock_gettime(ClockId::RealtimeCoarse);
            (now.tv_sec, now.tv_nsec)
        };
        while last >= now() && start.elapsed() < MAX_TICK {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns the version of the objects in these directories.
    pub(super) fn version(&self) -> ObjectsVersion {
        ObjectsVersion(self.0.iter().flatten().flat_map(|number| number.to_le_bytes()).collect())
    }
}

fn state(root: &Path, byte: u8) -> DirectoryState {
    let path = root.join(format!("data/{byte:02x}"));
    // On a network file system, a change by another machine is visible at once only if `statx` asks the server.
    match statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
        Ok(found) => {
            let changed = found.stx_ctime;
            [found.stx_ino.cast_signed(), found.stx_size.cast_signed(), changed.tv_sec, changed.tv_nsec.into()]
        }
        // A directory that cannot be read counts as changed at every call.
        Err(_) => {
            // A time that never repeats differs from every recorded state.
            let now = clock_gettime(ClockId::Monotonic);
            [0, 0, now.tv_sec, now.tv_nsec]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn added_and_removed_objects_are_detected() {
        let directory = tempfile::tempdir().unwrap();
        let objects = directory.path().join("data/ab");
        (0..=255).for_each(|byte| fs::create_dir_all(directory.path().join(format!("data/{byte:02x}"))).unwrap());
        let empty = ObjectDirectoryStates::read(directory.path());
        empty.wait_for_tick();
        fs::write(objects.join("c"), "").unwrap();
        let one = ObjectDirectoryStates::read(directory.path());
        assert_ne!(one.version(), empty.version());
        assert_eq!(ObjectDirectoryStates::read(directory.path()), one);
        one.wait_for_tick();
        fs::remove_file(objects.join("c")).unwrap();
        assert_ne!(ObjectDirectoryStates::read(directory.path()), one);
        let mut known = one.clone();
        known.reread(directory.path(), [0xaa].into_iter());
        assert_eq!(known, one);
        known.reread(directory.path(), [0xab].into_iter());
        assert_eq!(known, ObjectDirectoryStates::read(directory.path()));
    }

    #[test]
    fn directory_that_cannot_be_read_counts_as_changed() {
        let directory = tempfile::tempdir().unwrap();
        assert_ne!(ObjectDirectoryStates::read(directory.path()), ObjectDirectoryStates::read(directory.path()));
    }
}
