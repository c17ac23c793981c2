//! Buffers that are used again: to have the kernel clear new memory for each costs as much as to hash what goes into them.

use std::sync::Mutex;

/// Buffers that nobody uses at the moment.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer up to this many times as large as is asked for will do.
const TOO_LARGE: usize = 4;

impl Buffers {
    /// Returns an empty buffer with room for so many bytes.
    pub(super) fn take(&self, room: usize) -> Vec<u8> {
        let mut free = self.0.lock().expect("no thread panics while it takes a buffer");
        let fits = |buffer: &Vec<u8>| (room..=room * TOO_LARGE).contains(&buffer.capacity());
        match free.iter().rposition(fits) {
            Some(position) => free.remove(position),
            None => Vec::with_capacity(room),
        }
    }

    /// Keeps a buffer, if all that are kept have not more than `most` bytes then.
    pub(super) fn give_back(&self, mut buffer: Vec<u8>, most: u64) {
        buffer.clear();
        let mut free = self.0.lock().expect("no thread panics while it gives a buffer back");
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if buffer.capacity() > 0 && (kept + buffer.capacity()) as u64 <= most {
            free.push(buffer);
        }
    }
}
