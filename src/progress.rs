//! How far a long command is, for whoever shows it.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What is going on, for whoever wants to show it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that there are to read, as far as that is known.
    pub expected: AtomicU64,
    /// Bytes that were read.
    pub read: Arc<AtomicU64>,
    activity: Mutex<String>,
}

impl Progress {
    /// Says in a few words what is being done.
    pub fn set_activity(&self, activity: String) {
        *self.activity.lock().expect("no thread panics while it sets the activity") = activity;
    }

    /// Returns in a few words what is being done.
    pub fn activity(&self) -> String {
        self.activity.lock().expect("no thread panics while it sets the activity").clone()
    }

    /// Returns the bytes that were read and those that there are.
    pub fn bytes(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.expected.load(Ordering::Relaxed))
    }

    /// Returns a blob that counts here what is read of it.
    pub fn counted<R: Read>(&self, blob: R) -> CountingReader<R> {
        CountingReader { blob, read: Arc::clone(&self.read) }
    }
}

/// A blob that counts what is read of it.
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
