//! Sparse files: parses the map of the data segments that the archive stores.
//!
//! GNU tar has written four formats over the years. The oldest has its map in the header block and in blocks after it
//! (`header`), PAX 0.0 and 0.1 have it in the extended header, and PAX 1.0 at the start of the content.

use super::MemberError;
use super::pax::{decimal, some_unless_empty};
use super::stream::BLOCK_SIZE;

/// A data segment of a file that the archive stores. A file without holes is one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Location of a sparse file's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MapLocation {
    /// In records of the extended header (PAX 0.0 and 0.1).
    Records,
    /// At the start of the content (PAX 1.0).
    Content,
}

/// The `GNU.sparse.` records of a PAX header.
#[derive(Debug, Clone, Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) map: Vec<Segment>,
    version: [Option<u64>; 2],
    has_map: bool,
    offset: Option<u64>,
}

impl SparseRecords {
    /// Applies one record. `key` is the key without the prefix `GNU.sparse.`.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), MemberError> {
        let number = || decimal(value).ok_or(MemberError::Number("GNU.sparse record"));
        match key {
            b"major" => self.version[0] = Some(number()?),
            b"minor" => self.version[1] = Some(number()?),
            // The header of versions 0.1 and 1.0 has a made-up path (`GNUSparseFile.<pid>/…`), for readers that know no
            // sparse files.
            b"name" => self.name = some_unless_empty(value),
            // Versions 0.0 and 0.1 call it `size`, version 1.0 `realsize` (GNU tar manual, "Storing Sparse Files").
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                // Version 0.0 repeats this pair for each segment, against POSIX, where a later record replaces an earlier
                // one.
                let offset = self.offset.take().ok_or(MemberError::Sparse("its map has a length without an offset"))?;
                self.map.push(Segment { offset, length: number()? });
                self.has_map = true;
            }
            b"map" => {
                self.map = map_in_one_record(value)?;
                self.has_map = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns the location of the map, or `None` if the file is not sparse.
    pub(super) fn map_location(&self) -> Result<Option<MapLocation>, MemberError> {
        match self.version {
            [Some(1), Some(0)] => Ok(Some(MapLocation::Content)),
            [Some(0), Some(0 | 1)] => Ok(Some(MapLocation::Records)),
            // Version 0.0 has no version records.
            [None, None] => Ok((self.has_map || self.size.is_some()).then_some(MapLocation::Records)),
            // Without its map, the stored bytes would be published as if they were the whole file.
            _ => Err(MemberError::Sparse("its version is unknown")),
        }
    }

    /// Returns the size of the file in bytes, including holes.
    pub(super) fn file_size(&self) -> Result<u64, MemberError> {
        self.size.ok_or(MemberError::Sparse("its size is missing"))
    }
}

fn map_in_one_record(value: &[u8]) -> Result<Vec<Segment>, MemberError> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let wrong = MemberError::Sparse("its map is not pairs of numbers");
    let numbers: Option<Vec<u64>> = value.split(|&b| b == b',').map(decimal).collect();
    let numbers = numbers.ok_or(wrong.clone())?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong);
    }
    Ok(pairs.iter().map(|&[offset, length]| Segment { offset, length }).collect())
}

/// Parses the map of PAX 1.0, block by block. Each line of the map has one number: first the number of segments, then offset
/// and length of each segment.
#[derive(Default)]
pub(super) struct MapReader {
    line: Option<u64>,
    count: Option<u64>,
    offset: Option<u64>,
    map: Vec<Segment>,
}

impl MapReader {
    /// Parses the next block of the map, and returns whether the map is complete.
    pub(super) fn read(&mut self, block: &[u8; BLOCK_SIZE], max_segments: u64) -> Result<bool, MemberError> {
        let wrong = MemberError::Sparse("its map is not lines of numbers");
        for &b in block {
            match b {
                b'0'..=b'9' => {
                    let before = self.line.unwrap_or(0).checked_mul(10);
                    self.line = Some(before.and_then(|n| n.checked_add(u64::from(b - b'0'))).ok_or(wrong.clone())?);
                }
                b'\n' => {
                    let number = self.line.take().ok_or(wrong.clone())?;
                    self.take_number(number, max_segments)?;
                    if self.is_complete() {
                        return Ok(true);
                    }
                }
                _ => return Err(wrong),
            }
        }
        Ok(false)
    }

    /// Returns the parsed map.
    pub(super) fn into_map(self) -> Vec<Segment> {
        self.map
    }

    fn take_number(&mut self, number: u64, max_segments: u64) -> Result<(), MemberError> {
        match (self.count, self.offset.take()) {
            (None, _) => {
                check_count(number, max_segments)?;
                self.count = Some(number);
            }
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.map.push(Segment { offset, length: number }),
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.count == Some(self.map.len() as u64)
    }
}

/// Returns an error if a map has too many segments.
pub(super) fn check_count(segments: u64, max_segments: u64) -> Result<(), MemberError> {
    if segments > max_segments { Err(MemberError::TooManySegments { allowed: max_segments }) } else { Ok(()) }
}

/// Returns an error if segments overlap, are out of order, exceed the file, or do not add up to the `stored` bytes.
pub(super) fn check_map(map: &[Segment], file_size: u64, stored: u64) -> Result<(), MemberError> {
    let mut end = 0;
    let mut total = 0_u64;
    for segment in map {
        // Go's reader refuses overlaps, too (`validateSparseEntries`).
        if segment.offset < end {
            return Err(MemberError::Sparse("segments of its map overlap or are out of order"));
        }
        end = segment.offset.checked_add(segment.length).ok_or(MemberError::Sparse("its map exceeds the file"))?;
        // The sum cannot overflow: the segments do not overlap, so the sum is at most the end of the last segment.
        total += segment.length;
    }
    if end > file_size {
        return Err(MemberError::Sparse("its map exceeds the file"));
    }
    // A difference would shift all following headers, or publish bytes that are not of this file.
    if total != stored {
        return Err(MemberError::Sparse("its map does not match the data in the archive"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn piece(offset: u64, length: u64) -> Segment {
        Segment { offset, length }
    }

    fn block(text: &[u8]) -> [u8; BLOCK_SIZE] {
        let mut block = [0; BLOCK_SIZE];
        block[..text.len()].copy_from_slice(text);
        block
    }

    #[test]
    fn map_must_be_ordered_within_the_file_and_match_the_data() {
        assert_eq!(check_map(&[], 10, 0), Ok(()));
        assert_eq!(check_map(&[piece(0, 4), piece(4, 0), piece(9, 1)], 10, 5), Ok(()));
        for (map, stored) in [
            (&[piece(0, 4), piece(3, 1)][..], 5),
            (&[piece(5, 1), piece(0, 1)], 2),
            (&[piece(9, 2)], 2),
            (&[piece(11, 0)], 0),
            (&[piece(u64::MAX, 2)], 2),
            (&[piece(0, 4)], 5),
            (&[piece(0, 4)], 3),
        ] {
            assert!(check_map(map, 10, stored).is_err(), "{map:?} was accepted");
        }
    }

    #[test]
    fn map_in_content_may_span_blocks() {
        let lines: String = (0..100).map(|n| format!("{}\n1\n", n * 1000)).collect();
        let text = format!("100\n{lines}");
        let mut reader = MapReader::default();
        let complete: Vec<bool> =
            text.as_bytes().chunks(BLOCK_SIZE).map(|part| reader.read(&block(part), 100).unwrap()).collect();
        assert_eq!(complete, [false, true]);
        assert_eq!(reader.into_map()[99], piece(99_000, 1));
        let mut empty = MapReader::default();
        assert_eq!(empty.read(&block(b"0\n"), 0), Ok(true));
    }

    #[test]
    fn garbage_and_too_many_segments_in_a_map_are_refused() {
        for wrong in [&b"x\n"[..], b"\n", b"-1\n", b"1\n0\n", b"99999999999999999999\n", b""] {
            assert!(MapReader::default().read(&block(wrong), 2).is_err(), "{}", wrong.escape_ascii());
        }
        assert_eq!(MapReader::default().read(&block(b"2\n0\n1\n5\n1\n"), 2), Ok(true));
        let expected = MemberError::TooManySegments { allowed: 2 };
        assert_eq!(MapReader::default().read(&block(b"3\n0\n1\n5\n1\n8\n1\n"), 2), Err(expected));
    }
}
