//! The content of a file as a sequence of data and holes.

use super::sparse::Segment;
use super::stream::BLOCK_SIZE;

/// A part of a file's content: data or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentPart<'a> {
    /// The next bytes of the file, at least one.
    Data(&'a [u8]),
    /// Number of zero bytes, at least one, that the archive does not store.
    Hole(u64),
}

/// Read position in the content of the current member.
#[derive(Default)]
pub(super) struct Content {
    /// The data segments of the file that the archive stores, sorted by offset.
    pub(super) segments: Vec<Segment>,
    /// Index of the first segment that is not read completely.
    segment: usize,
    /// Read position in the file in bytes, including holes.
    pub(super) position: u64,
    /// Size of the file in bytes, including holes.
    pub(super) size: u64,
    /// Number of stored bytes of this member that were not read yet, without the padding.
    pub(super) stored: u64,
    /// Padding bytes between the stored bytes and the next header.
    pub(super) padding: u64,
    /// Whether the next block continues the map in the header of a sparse file (old GNU format). Such blocks precede the stored
    /// bytes and do not count as these.
    pub(super) map_continues: bool,
}

/// The next part of a file's content, with its length in bytes.
pub(super) enum NextPart {
    Stored(u64),
    Hole(u64),
    End,
}

impl Content {
    /// Prepares to read a member with `stored` bytes in the archive. The content is empty until segments are added.
    pub(super) fn start(&mut self, stored: u64) {
        // The vector is used again, so that a member needs no allocation.
        self.segments.clear();
        // POSIX (ustar): content occupies whole blocks, and the rest of the last one is padding.
        let padding = stored.wrapping_neg() % BLOCK_SIZE as u64;
        *self = Self { segments: std::mem::take(&mut self.segments), stored, padding, ..Self::default() };
    }

    // `stored` and `padding` stay: the bytes are in the stream and must be skipped to reach the next header.
    pub(super) fn hide(&mut self) {
        self.segments.clear();
        self.size = 0;
    }

    pub(super) fn next_part(&mut self) -> NextPart {
        while let Some(segment) = self.segments.get(self.segment) {
            if self.position < segment.offset {
                return self.hole_up_to(segment.offset);
            }
            let remaining = segment.offset + segment.length - self.position;
            if remaining > 0 {
                return NextPart::Stored(remaining);
            }
            // A segment may be empty: GNU tar ends the map of a file with a trailing hole with one of length 0.
            self.segment += 1;
        }
        if self.position < self.size { self.hole_up_to(self.size) } else { NextPart::End }
    }

    fn hole_up_to(&mut self, end: u64) -> NextPart {
        let hole = end - self.position;
        self.position = end;
        NextPart::Hole(hole)
    }
}
