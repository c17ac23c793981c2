//! Cuts large files where their content says so, at the same places as CVMFS's own tools.
//!
//! The cut positions depend on the 32 bytes before them, so an insertion moves only the cuts near it. Readers accept any
//! positions; equal ones are what makes chunks deduplicate against those that `cvmfs_server` stored.

/// How large chunks are, in bytes of plain content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    /// A file of more than this is cut; every chunk but a file's last has at least this.
    pub minimum: u64,
    /// What chunks of random content have on average.
    pub average: u64,
    /// No chunk has more.
    pub maximum: u64,
}

impl Default for ChunkSizes {
    /// Returns what `cvmfs_server` uses where nothing else is set: 4, 8 and 16 MiB.
    fn default() -> Self {
        Self { minimum: 4 << 20, average: 8 << 20, maximum: 16 << 20 }
    }
}

/// Bytes that the running value depends on: each shifts out of its 32 bits after as many more.
const WINDOW: u64 = 32;

/// So many bytes are looked at together, in so many parts.
const BLOCK: usize = 4096;
const PARTS: usize = 4;

/// Finds the cuts of one file, buffer by buffer (CVMFS's `Xor32Detector`).
#[derive(Debug, Clone)]
pub struct Chunker {
    sizes: ChunkSizes,
    threshold: i32,
    /// Bytes of the current chunk so far.
    position: u64,
    value: u32,
}

impl Chunker {
    /// Starts a file.
    pub fn new(sizes: ChunkSizes) -> Self {
        let threshold =
            i32::try_from(u64::from(u32::MAX) / sizes.average).expect("average chunks are larger than 2 bytes");
        Self { sizes, threshold, position: 0, value: 0 }
    }

    /// Returns how many bytes of `data`, which follow what was seen before, end the current chunk; `None` when all of
    /// them belong to it.
    ///
    /// After a cut the next call takes the rest of `data`. Whether the file ends at a cut, which then is none, is the
    /// caller's to know.
    pub fn cut(&mut self, data: &[u8]) -> Option<usize> {
        let mut next = 0;
        let warm_up = self.sizes.minimum - WINDOW;
        if self.position < warm_up {
            next = usize::try_from(warm_up - self.position).unwrap_or(usize::MAX).min(data.len());
            self.position += next as u64;
        }
        while next < data.len() && self.position < self.sizes.minimum {
            self.feed(data[next]);
            next += 1;
            self.position += 1;
        }
        let room = usize::try_from(self.sizes.maximum - self.position).unwrap_or(usize::MAX);
        let end = data.len().min(next.saturating_add(room));
        if let Some(offset) = self.find_end(&data[next..end]) {
            self.start_chunk();
            return Some(next + offset);
        }
        self.position += (end - next) as u64;
        if end < data.len() {
            self.start_chunk();
            return Some(end);
        }
        None
    }

    /// Takes bytes up to the first that a chunk may end before, and returns its place.
    fn find_end(&mut self, data: &[u8]) -> Option<usize> {
        let (blocks, rest) = data.as_chunks::<BLOCK>();
        for (number, block) in blocks.iter().enumerate() {
            if self.has_end(block) {
                return self.find_end_bytewise(block).map(|offset| number * BLOCK + offset);
            }
            self.value = value_after(block);
        }
        self.find_end_bytewise(rest).map(|offset| blocks.len() * BLOCK + offset)
    }

    fn find_end_bytewise(&mut self, data: &[u8]) -> Option<usize> {
        data.iter().position(|&byte| {
            self.feed(byte);
            is_end(self.value, self.threshold)
        })
    }

    /// Tells whether a chunk may end in a block. Looks at its parts side by side, as each byte has to wait for the one before.
    fn has_end(&self, block: &[u8; BLOCK]) -> bool {
        let (parts, _) = block.as_chunks::<{ BLOCK / PARTS }>();
        let mut values = [self.value; PARTS];
        (1..PARTS).for_each(|part| values[part] = value_after(&parts[part - 1]));
        let mut has_end = false;
        for index in 0..BLOCK / PARTS {
            for (value, part) in values.iter_mut().zip(parts) {
                *value = (*value << 1) ^ u32::from(part[index]);
                has_end |= is_end(*value, self.threshold);
            }
        }
        has_end
    }

    /// Tells whether the next byte is the first of a chunk.
    ///
    /// Zeros never give a cut, so a hole that begins here is cut at the largest size only, without a look at its bytes.
    pub fn is_at_chunk_start(&self) -> bool {
        self.position == 0
    }

    fn feed(&mut self, byte: u8) {
        self.value = (self.value << 1) ^ u32::from(byte);
    }

    fn start_chunk(&mut self) {
        self.position = 0;
        self.value = 0;
    }
}

/// Returns the running value behind at least [`WINDOW`] bytes.
fn value_after(data: &[u8]) -> u32 {
    data[data.len() - WINDOW as usize..].iter().fold(0, |value, &byte| (value << 1) ^ u32::from(byte))
}

fn is_end(value: u32, threshold: i32) -> bool {
    (value as i32).wrapping_sub(i32::MAX).wrapping_abs() < threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: ChunkSizes = ChunkSizes { minimum: 64, average: 128, maximum: 256 };

    /// The algorithm as `cvmfs-format.md` 5 words it, byte by byte over the whole file.
    fn cuts_by_definition(data: &[u8], sizes: ChunkSizes) -> Vec<usize> {
        let threshold = (4_294_967_295_u64 / sizes.average) as i32;
        let (min, max) = (sizes.minimum as usize, sizes.maximum as usize);
        let (mut cuts, mut start) = (Vec::new(), 0);
        'chunks: while start < data.len() {
            let mut x = 0_u32;
            for p in start + min - 32..start + max {
                let Some(&byte) = data.get(p) else { break 'chunks };
                x = (x << 1) ^ u32::from(byte);
                if p >= start + min && (x as i32).wrapping_sub(i32::MAX).wrapping_abs() < threshold {
                    cuts.push(p);
                    start = p;
                    continue 'chunks;
                }
            }
            if start + max >= data.len() {
                break;
            }
            cuts.push(start + max);
            start += max;
        }
        cuts
    }

    fn cuts_in_buffers(data: &[u8], sizes: ChunkSizes, buffer: usize) -> Vec<usize> {
        let mut chunker = Chunker::new(sizes);
        let mut cuts = Vec::new();
        for (index, mut piece) in data.chunks(buffer).enumerate() {
            let mut offset = index * buffer;
            while let Some(cut) = chunker.cut(piece) {
                offset += cut;
                piece = &piece[cut..];
                cuts.push(offset);
            }
        }
        cuts
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn cuts_do_not_depend_on_buffers() {
        let data = noise(20_000);
        let expected = cuts_by_definition(&data, SMALL);
        assert!(expected.len() > 50 && expected.windows(2).any(|pair| pair[1] - pair[0] < 256));
        for buffer in [1, 7, 31, 32, 33, 64, 255, 256, 257, 20_000] {
            assert_eq!(cuts_in_buffers(&data, SMALL, buffer), expected, "in buffers of {buffer}");
        }
    }

    #[test]
    fn cuts_in_blocks_are_those_of_the_definition() {
        // Larger than a block, so that ends fall into each of its parts.
        let sizes = ChunkSizes { minimum: 1000, average: 30_000, maximum: 100_000 };
        let data = noise(4_000_000);
        let expected = cuts_by_definition(&data, sizes);
        let is_found = |cut: usize, last: usize| cut - last > 1000 + BLOCK && cut - last < 100_000;
        assert!(expected.windows(2).filter(|pair| is_found(pair[1], pair[0])).count() > 30);
        for buffer in [BLOCK - 1, BLOCK, 50_001, 262_144, 4_000_000] {
            assert_eq!(cuts_in_buffers(&data, sizes, buffer), expected, "in buffers of {buffer}");
        }
    }

    #[test]
    fn zeros_are_cut_at_the_maximum_only() {
        assert_eq!(cuts_in_buffers(&[0; 1000], SMALL, 1000), [256, 512, 768]);
        assert_eq!(cuts_in_buffers(&[0; 256], SMALL, 100), [0; 0]);
        assert_eq!(cuts_in_buffers(&[0; 257], SMALL, 100), [256]);
    }

    #[test]
    fn stock_sizes_give_the_threshold_of_the_stock_tools() {
        assert_eq!(Chunker::new(ChunkSizes::default()).threshold, 511);
    }
}
