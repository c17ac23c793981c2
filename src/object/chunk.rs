//! Cuts large files into chunks at content-defined positions, the same ones as CVMFS's own tools.
//!
//! Cut positions depend on the 32 bytes before them and on the minimum and maximum size, so an insertion moves only the cuts
//! near it. Readers accept any positions, but only equal positions let chunks deduplicate against those that `cvmfs_server`
//! stored.

/// Sizes of chunks in bytes of uncompressed content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    /// Minimum size of every chunk except the last one of a file. Only larger files are cut.
    pub minimum: u64,
    /// Average size of the chunks of random content.
    pub average: u64,
    /// Maximum size of a chunk.
    pub maximum: u64,
}

impl Default for ChunkSizes {
    /// Returns the defaults of `cvmfs_server`: 4, 8 and 16 MiB.
    fn default() -> Self {
        Self { minimum: 4 << 20, average: 8 << 20, maximum: 16 << 20 }
    }
}

/// Number of bytes that the rolling checksum depends on: it has 32 bits, and each byte shifts the earlier ones out by one bit.
const WINDOW: u64 = 32;

/// Number of bytes that are searched at once, in [`PARTS`] parts side by side.
const BLOCK: usize = 4096;
const PARTS: usize = 4;

/// Finds the cuts of one file, one buffer at a time (CVMFS's `Xor32Detector`).
#[derive(Debug, Clone)]
pub struct Chunker {
    sizes: ChunkSizes,
    threshold: i32,
    /// Size of the current chunk so far.
    position: u64,
    value: u32,
}

impl Chunker {
    /// Starts a file.
    pub fn new(sizes: ChunkSizes) -> Self {
        // As in CVMFS (`Xor32Detector`), where the division rounds down.
        let threshold =
            i32::try_from(u64::from(u32::MAX) / sizes.average).expect("average chunks are larger than 2 bytes");
        Self { sizes, threshold, position: 0, value: 0 }
    }

    /// Returns the number of bytes of `data` up to the end of the current chunk, or `None` if all of `data` belong to the
    /// chunk. `data` must follow the data of the previous call.
    ///
    /// After a cut, the next call must pass the rest of `data`. A cut is returned only after the first byte of the next
    /// chunk was read, so no cut is returned at the end of a file.
    pub fn cut(&mut self, data: &[u8]) -> Option<usize> {
        let mut next = 0;
        // Earlier bytes cannot affect the checksum at the first possible cut. CVMFS does not read them either.
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

    /// Reads bytes up to the first byte that may start a new chunk, and returns the index of that byte.
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

    /// Returns whether a chunk may end in a block. Searches the parts of the block side by side, because within a part each
    /// step depends on the previous step.
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

    /// Returns whether the next byte is the first of a chunk.
    ///
    /// Zeros never cause a cut, so a hole that starts here is cut only at the maximum size, and its bytes need not be read.
    pub fn is_at_chunk_start(&self) -> bool {
        self.position == 0
    }

    fn feed(&mut self, byte: u8) {
        self.value = (self.value << 1) ^ u32::from(byte);
    }

    fn start_chunk(&mut self) {
        self.position = 0;
        // CVMFS resets the checksum at each cut, although the byte after the cut was already read.
        self.value = 0;
    }
}

/// Returns the rolling checksum after `data`, which has at least [`WINDOW`] bytes.
fn value_after(data: &[u8]) -> u32 {
    data[data.len() - WINDOW as usize..].iter().fold(0, |value, &byte| (value << 1) ^ u32::from(byte))
}

fn is_end(value: u32, threshold: i32) -> bool {
    // CVMFS computes `abs(int32(value) - INT32_MAX) < threshold`, with `-fwrapv`. There, `abs(INT32_MIN)` stays negative,
    // so that value is a cut, too.
    (value as i32).wrapping_sub(i32::MAX).wrapping_abs() < threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: ChunkSizes = ChunkSizes { minimum: 64, average: 128, maximum: 256 };

    /// The algorithm of CVMFS's `Xor32Detector` in its simplest form, byte by byte over the whole file.
    fn simple_cuts(data: &[u8], sizes: ChunkSizes) -> Vec<usize> {
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
        for (index, mut rest) in data.chunks(buffer).enumerate() {
            let mut offset = index * buffer;
            while let Some(cut) = chunker.cut(rest) {
                offset += cut;
                rest = &rest[cut..];
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
        let expected = simple_cuts(&data, SMALL);
        assert!(expected.len() > 50 && expected.windows(2).any(|pair| pair[1] - pair[0] < 256));
        for buffer in [1, 7, 31, 32, 33, 64, 255, 256, 257, 20_000] {
            assert_eq!(cuts_in_buffers(&data, SMALL, buffer), expected, "in buffers of {buffer}");
        }
    }

    #[test]
    fn cuts_in_blocks_equal_those_of_the_simple_algorithm() {
        // Chunks larger than a block, so that cuts fall into each of its parts.
        let sizes = ChunkSizes { minimum: 1000, average: 30_000, maximum: 100_000 };
        let data = noise(4_000_000);
        let expected = simple_cuts(&data, sizes);
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
    fn default_sizes_have_the_threshold_of_cvmfs() {
        assert_eq!(Chunker::new(ChunkSizes::default()).threshold, 511);
    }
}
