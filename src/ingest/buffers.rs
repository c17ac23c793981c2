//! Reuses buffers. The kernel clears new memory, which would take as long for each buffer as hashing its content.

use std::sync::Mutex;

/// Buffers that are not in use.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer is reused if its capacity is at most this many times the requested one.
// A small job must not occupy a buffer of 16 MiB that a large job needs.
const MAX_SIZE_FACTOR: usize = 4;

impl Buffers {
    /// Returns an empty buffer with a capacity of at least `room` bytes.
    pub(super) fn take(&self, room: usize) -> Vec<u8> {
        let mut free = self.0.lock().expect("no thread panics while it takes a buffer");
        let fits = |buffer: &Vec<u8>| (room..=room * MAX_SIZE_FACTOR).contains(&buffer.capacity());
        match free.iter().rposition(fits) {
            Some(position) => free.remove(position),
            None => Vec::with_capacity(room),
        }
    }

    /// Keeps a buffer for reuse, unless all kept buffers together would exceed `max_kept` bytes.
    pub(super) fn put_back(&self, mut buffer: Vec<u8>, max_kept: u64) {
        buffer.clear();
        let mut free = self.0.lock().expect("no thread panics while it puts a buffer back");
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if buffer.capacity() > 0 && (kept + buffer.capacity()) as u64 <= max_kept {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_suitable_size_are_reused() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(1000);
        buffer.extend([7; 1000]);
        let (address, room) = (buffer.as_ptr(), buffer.capacity());
        buffers.put_back(buffer, room as u64);
        let others = [buffers.take(room + 1), buffers.take(room / 8)];
        assert!(others.iter().all(|other| other.as_ptr() != address), "one is too small, and one too large");
        let again = buffers.take(room / 2);
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (address, 0, room));
        buffers.put_back(again, room as u64 - 1);
        assert!(buffers.0.lock().unwrap().is_empty(), "the limit was exceeded");
    }
}
