//! A list that grows without copying its values, and that frees its memory while it is consumed.

/// A list of values in the order in which they were added, stored in blocks.
#[derive(Debug)]
pub(super) struct BlockList<T> {
    blocks: Vec<Vec<T>>,
    length: usize,
}

/// Number of values in a block. A block is then larger than 1 MiB, the size from which on the allocator returns freed memory to
/// the system.
const BLOCK_LENGTH: usize = 16 << 10;

impl<T> Default for BlockList<T> {
    fn default() -> Self {
        Self { blocks: Vec::new(), length: 0 }
    }
}

impl<T> BlockList<T> {
    pub(super) fn push(&mut self, value: T) {
        match self.blocks.last_mut() {
            Some(last) if last.len() < BLOCK_LENGTH => last.push(value),
            _ => {
                // Most layers have few entries, so the first block grows on demand.
                let mut next = Vec::with_capacity(if self.blocks.is_empty() { 0 } else { BLOCK_LENGTH });
                next.push(value);
                self.blocks.push(next);
            }
        }
        self.length += 1;
    }

    pub(super) fn last_mut(&mut self) -> Option<&mut T> {
        self.blocks.last_mut()?.last_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Returns the values. Each block is freed after its last value.
    pub(super) fn into_iter(self) -> impl Iterator<Item = T> {
        self.blocks.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_in_their_order() {
        for count in [0, 1, BLOCK_LENGTH - 1, BLOCK_LENGTH, BLOCK_LENGTH + 1, 3 * BLOCK_LENGTH] {
            let mut list = BlockList::default();
            for value in 0..count {
                list.push(value);
                assert_eq!(list.last_mut(), Some(&mut value.clone()));
            }
            assert_eq!(list.len(), count);
            assert!(list.into_iter().eq(0..count));
        }
    }
}
