//! A list that grows without being copied, and that gives its memory back while it is read.

/// Values in the order in which they were added.
#[derive(Debug)]
pub(super) struct Segments<T> {
    segments: Vec<Vec<T>>,
    length: usize,
}

/// Values of a segment, so that it takes more than the 1 MiB from which on freed memory goes back to the system.
const SEGMENT: usize = 16 << 10;

impl<T> Default for Segments<T> {
    fn default() -> Self {
        Self { segments: Vec::new(), length: 0 }
    }
}

impl<T> Segments<T> {
    pub(super) fn push(&mut self, value: T) {
        match self.segments.last_mut() {
            Some(last) if last.len() < SEGMENT => last.push(value),
            _ => {
                // Most layers are short, and the first segment grows as they do.
                let mut next = Vec::with_capacity(if self.segments.is_empty() { 0 } else { SEGMENT });
                next.push(value);
                self.segments.push(next);
            }
        }
        self.length += 1;
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut T> {
        self.segments.last_mut()?.last_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Returns the values. Each segment is freed behind its last one.
    pub(super) fn into_iter(self) -> impl Iterator<Item = T> {
        self.segments.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_in_their_order() {
        for count in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT] {
            let mut segments = Segments::default();
            for value in 0..count {
                segments.push(value);
                assert_eq!(segments.last_mut(), Some(&mut value.clone()));
            }
            assert_eq!(segments.len(), count);
            assert!(segments.into_iter().eq(0..count));
        }
    }
}
