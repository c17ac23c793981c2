//! Progress of a long command.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Progress of one image or command. Any thread may read it while others update it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Number of bytes to read, as far as known.
    pub expected: AtomicU64,
    /// Number of bytes read so far.
    pub read: Arc<AtomicU64>,
    activity: Mutex<String>,
}

impl Progress {
    /// Sets the current activity, described in a few words.
    pub fn set_activity(&self, activity: String) {
        *self.activity.lock().expect("no thread panics while it sets the activity") = activity;
    }

    /// Returns the current activity, described in a few words.
    pub fn activity(&self) -> String {
        self.activity.lock().expect("no thread panics while it sets the activity").clone()
    }

    /// Returns the number of bytes read so far and the number of bytes to read.
    pub fn bytes(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.expected.load(Ordering::Relaxed))
    }

    /// Returns a reader of `blob` that adds the bytes read to this progress.
    pub fn counted<R: Read>(&self, blob: R) -> CountingReader<R> {
        CountingReader { blob, read: Arc::clone(&self.read) }
    }
}

/// A reader that counts the bytes read.
pub struct CountingReader<R> {
    blob: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.blob.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}
