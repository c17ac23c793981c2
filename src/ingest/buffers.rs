//! Buffers that are used again: to have the kernel clear new memory for each costs as much as to hash what goes into them.

use std::sync::Mutex;

/// Buffers that nobody uses at the moment.
#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A buffer up to this many times as large as is asked for will do.
const MAX_SIZE_FACTOR: usize = 4;

impl Buffers {
    /// Returns an empty buffer with room for so many bytes.
    pub(super) fn take(&self, room: usize) -> Vec<u8> {
        let mut free = self.0.lock().expect("no thread panics while it takes a buffer");
        let fits = |buffer: &Vec<u8>| (room..=room * MAX_SIZE_FACTOR).contains(&buffer.capacity());
        match free.iter().rposition(fits) {
            Some(position) => free.remove(position),
            None => Vec::with_capacity(room),
        }
    }

    /// Keeps a buffer, if all that are kept have not more than `most` bytes then.
    pub(super) fn put_back(&self, mut buffer: Vec<u8>, most: u64) {
        buffer.clear();
        let mut free = self.0.lock().expect("no thread panics while it gives a buffer back");
        let kept: usize = free.iter().map(Vec::capacity).sum();
        if buffer.capacity() > 0 && (kept + buffer.capacity()) as u64 <= most {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_where_they_fit() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(1000);
        buffer.extend([7; 1000]);
        let (place, room) = (buffer.as_ptr(), buffer.capacity());
        buffers.put_back(buffer, room as u64);
        let others = [buffers.take(room + 1), buffers.take(room / 8)];
        assert!(others.iter().all(|other| other.as_ptr() != place), "one is too small, and one too large");
        let again = buffers.take(room / 2);
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (place, 0, room));
        buffers.put_back(again, room as u64 - 1);
        assert!(buffers.0.lock().unwrap().is_empty(), "more than shall be kept");
    }
}
