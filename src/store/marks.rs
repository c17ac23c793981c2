//! Whether anything was taken out of a store: by a garbage collection of any program, or by hand.
//!
//! The directories `data/00` to `data/ff` change whenever an object comes or goes, and the kernel notes when that was. As long
//! as all 256 are as the last run left them, every object that was there then is there now. So that is the marker of a
//! collection: `cvmfs_server gc` need not say that it ran (it does so in `.cvmfs_status.json`, but only where `jq` is
//! installed, and not when it is killed half way), and neither need anything else that deletes objects.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::time::{ClockId, clock_gettime};

/// What a directory of objects is known by: inode, length, and when it changed last, in seconds and nanoseconds.
type Mark = [i64; 4];

/// The states of all directories of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks(Vec<Mark>);

/// Clocks of file systems tick at least this often.
const LONGEST_TICK: Duration = Duration::from_millis(20);

impl Marks {
    /// Reads the states of the directories of objects in `root`, the directory of a store.
    pub fn read(root: &Path) -> Self {
        Self((0..=255).map(|byte| mark(root, byte)).collect())
    }

    /// Reads the states anew of those directories whose numbers are given.
    pub(super) fn read_again(&mut self, root: &Path, directories: impl Iterator<Item = u8>) {
        directories.for_each(|byte| self.0[usize::from(byte)] = mark(root, byte));
    }

    /// Waits until a change that follows gets another time than those that were noted.
    pub(super) fn wait_for_tick(&self) {
        let start = Instant::now();
        let last = self.0.iter().map(|&[_, _, seconds, nanoseconds]| (seconds, nanoseconds)).max().unwrap_or_default();
        let now = || {
            let now = clock_gettime(ClockId::RealtimeCoarse);
            (now.tv_sec, now.tv_nsec)
        };
        while last >= now() && start.elapsed() < LONGEST_TICK {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns the states in a form that can be stored and compared.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flatten().flat_map(|number| number.to_le_bytes()).collect()
    }
}

fn mark(root: &Path, byte: u8) -> Mark {
    let path = root.join(format!("data/{byte:02x}"));
    // What another machine does shows at once only where the file system is told to ask its server.
    match statx(CWD, &path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS) {
        Ok(found) => {
            let changed = found.stx_ctime;
            [found.stx_ino.cast_signed(), found.stx_size.cast_signed(), changed.tv_sec, changed.tv_nsec.into()]
        }
        // A directory that cannot be looked at is as good as changed, each time.
        Err(_) => {
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
    fn object_that_goes_or_comes_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let objects = directory.path().join("data/ab");
        (0..=255).for_each(|byte| fs::create_dir_all(directory.path().join(format!("data/{byte:02x}"))).unwrap());
        let empty = Marks::read(directory.path());
        empty.wait_for_tick();
        fs::write(objects.join("c"), "").unwrap();
        let one = Marks::read(directory.path());
        assert_ne!(one.to_bytes(), empty.to_bytes());
        assert_eq!(Marks::read(directory.path()), one);
        one.wait_for_tick();
        fs::remove_file(objects.join("c")).unwrap();
        assert_ne!(Marks::read(directory.path()), one);
        let mut known = one.clone();
        known.read_again(directory.path(), [0xaa].into_iter());
        assert_eq!(known, one);
        known.read_again(directory.path(), [0xab].into_iter());
        assert_eq!(known, Marks::read(directory.path()));
    }

    #[test]
    fn directory_that_cannot_be_looked_at_is_never_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        assert_ne!(Marks::read(directory.path()), Marks::read(directory.path()));
    }
}
