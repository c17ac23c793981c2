//! Digests of file content, so that the content of layers and objects is never in memory as a whole.

use std::fmt;

/// Size in bytes of the blocks into which content is divided.
const BLOCK_SIZE: usize = 64 << 10;

static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// Digest of the content of a file of known size: the BLAKE3 hash of all blocks that are not zeros, each with its offset.
///
/// Blocks of zeros are skipped, so that a hole of any size in a sparse file costs nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// Returns the digest of bytes in memory.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::new();
        hasher.data(bytes);
        hasher.finish()
    }
}

impl fmt::Display for ContentDigest {
    /// Writes the first 8 bytes of the digest, which are enough to distinguish two digests.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Computes a [`ContentDigest`] of content that is appended in order.
pub(super) struct ContentHasher {
    hasher: blake3::Hasher,
    /// The last block, which is not full yet, and its offset in the file.
    block: Vec<u8>,
    offset: u64,
}

impl ContentHasher {
    /// Starts with empty content.
    pub(super) fn new() -> Self {
        Self { hasher: blake3::Hasher::new(), block: Vec::new(), offset: 0 }
    }

    /// Appends bytes.
    pub(super) fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_SIZE - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK_SIZE {
                self.end_block();
            }
        }
    }

    /// Appends `length` zero bytes.
    pub(super) fn zeros(&mut self, mut length: u64) {
        while length > 0 {
            if self.block.is_empty() && length >= BLOCK_SIZE as u64 {
                self.offset += length / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
                length %= BLOCK_SIZE as u64;
            } else {
                let now = length.min((BLOCK_SIZE - self.block.len()) as u64);
                self.data(&ZEROS[..now as usize]);
                length -= now;
            }
        }
    }

    /// Returns the digest of all appended content.
    pub(super) fn finish(mut self) -> ContentDigest {
        self.end_block();
        ContentDigest(*self.hasher.finalize().as_bytes())
    }

    fn end_block(&mut self) {
        if self.block != ZEROS[..self.block.len()] {
            self.hasher.update(&self.offset.to_le_bytes()).update(&self.block);
        }
        self.offset += self.block.len() as u64;
        self.block.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_does_not_depend_on_how_content_is_split() {
        let mut bytes = vec![0; 5 * BLOCK_SIZE + 7];
        (bytes[3], bytes[BLOCK_SIZE], bytes[5 * BLOCK_SIZE + 6]) = (1, 2, 3);
        let expected = ContentDigest::of(&bytes);
        for step in [1000, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1] {
            let mut hasher = ContentHasher::new();
            bytes.chunks(step).for_each(|part| hasher.data(part));
            assert_eq!(hasher.finish(), expected);
        }
        let mut hasher = ContentHasher::new();
        hasher.data(&bytes[..=BLOCK_SIZE]);
        hasher.zeros(4 * BLOCK_SIZE as u64 + 5);
        hasher.data(&[3]);
        assert_eq!(hasher.finish(), expected);
    }

    #[test]
    fn digest_depends_on_every_byte_and_its_offset() {
        let mut bytes = vec![0; 3 * BLOCK_SIZE];
        bytes[10] = 1;
        let digest = ContentDigest::of(&bytes);
        for place in [9, 11, BLOCK_SIZE + 10, 3 * BLOCK_SIZE - 1] {
            let mut other = vec![0; 3 * BLOCK_SIZE];
            other[place] = 1;
            assert_ne!(ContentDigest::of(&other), digest, "{place}");
        }
        let mut hasher = ContentHasher::new();
        hasher.zeros(1 << 60);
        hasher.data(b"x");
        assert_ne!(hasher.finish(), digest);
    }
}
