//! Content of files: which bytes of a file the archive stores.
//!
//! The map of a sparse file has four forms. That of GNU tar's old format is in the header and in blocks after it, PAX 0.0
//! and 0.1 have it in records, and PAX 1.0 has it at the start of the content (GNU tar manual, "Storing Sparse Files"). The
//! `tar` crate knows the first of them, and requires there that all segments but the last fill their blocks.

use std::io::BufRead;

use super::blocks::{BLOCK_SIZE, Blocks, Problem};
use super::error::EntryProblem;
use super::header::{self, Header};
use super::numbers::decimal;
use super::within;
use crate::layer::{Limit, Limits};

/// The bytes that an archive stores for a member.
#[derive(Default)]
pub(super) struct Content {
    /// Size of the file in bytes with its holes; 0 if the member is not a file.
    pub(super) size: u64,
    /// Number of bytes in the archive that were not read yet.
    pub(super) stored: u64,
    /// The parts of the file that the stored bytes are.
    pub(super) map: Vec<Segment>,
}

/// A range of bytes of a file.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The `GNU.sparse.` records of a member.
#[derive(Default)]
pub(super) struct SparseRecords {
    /// Path of the file. The path in the header is made up, for readers that know no sparse files.
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    map: Option<Vec<Segment>>,
    major: Option<u64>,
    minor: Option<u64>,
}

impl SparseRecords {
    /// Interprets the records, whose keys are passed without the prefix.
    pub(super) fn of<'r>(records: impl Iterator<Item = (&'r [u8], &'r [u8])>) -> Result<Self, EntryProblem> {
        let mut sparse = Self::default();
        let mut offset = None;
        for (key, value) in records {
            let number = || decimal(value).ok_or(EntryProblem::Number("GNU.sparse record"));
            match key {
                b"name" => sparse.name = Some(value.to_vec()),
                b"major" => sparse.major = Some(number()?),
                b"minor" => sparse.minor = Some(number()?),
                b"size" | b"realsize" => sparse.size = Some(number()?),
                b"map" => sparse.map = Some(pairs(value)?),
                // PAX 0.0 has a pair of these records for each segment.
                b"offset" => offset = Some(number()?),
                b"numbytes" => {
                    let offset = offset.take().ok_or(EntryProblem::Sparse("its map has a length without an offset"))?;
                    sparse.map.get_or_insert_default().push(Segment { offset, length: number()? });
                }
                _ => {}
            }
        }
        Ok(sparse)
    }
}

/// Parses `OFFSET,LENGTH,OFFSET,LENGTH,…`.
fn pairs(value: &[u8]) -> Result<Vec<Segment>, EntryProblem> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Option<Vec<u64>> = value.split(|&b| b == b',').map(decimal).collect();
    let numbers = numbers.filter(|numbers| numbers.len() % 2 == 0);
    let numbers = numbers.ok_or(EntryProblem::Sparse("its map is not pairs of numbers"))?;
    Ok(numbers.chunks(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
}

impl Content {
    /// Returns the content of a regular file with `stored` bytes in the archive. Reads its map, if it is a sparse file.
    pub(super) fn of_file<R: BufRead>(
        stored: u64,
        header: &Header,
        records: &SparseRecords,
        blocks: &mut Blocks<R>,
        limits: &Limits,
    ) -> Result<Self, Problem> {
        let mut content = Self { size: stored, stored, map: vec![Segment { offset: 0, length: stored }] };
        if header.type_flag() == b'S' {
            content.read_old_map(header, blocks, limits)?;
        } else {
            content.map = match (records.major, records.minor) {
                (None, None) if records.map.is_none() && records.size.is_none() => return Ok(content),
                (None, None) | (Some(0), Some(0 | 1)) => records.map.clone().unwrap_or_default(),
                (Some(1), Some(0)) => {
                    MapText { stored: &mut content.stored, blocks, block: Vec::new() }.read(limits)?
                }
                _ => return Err(EntryProblem::Sparse("its version is unknown").into()),
            };
            content.size = records.size.ok_or(EntryProblem::Sparse("its size is missing"))?;
        }
        within(Limit::SparseSegments, content.map.len() as u64, limits.sparse_segments)?;
        content.check()?;
        Ok(content)
    }

    /// Reads a map in old GNU format. The blocks that continue the map do not count as stored bytes.
    fn read_old_map<R: BufRead>(
        &mut self,
        header: &Header,
        blocks: &mut Blocks<R>,
        limits: &Limits,
    ) -> Result<(), Problem> {
        let gnu = header.gnu().ok_or(EntryProblem::Sparse("its header is not in GNU format"))?;
        self.size = header::size(&gnu.realsize, "size of the sparse file")?;
        self.map.clear();
        self.append_rows(&gnu.sparse)?;
        let mut continues = gnu.isextended[0] != 0;
        while continues {
            let mut more = ::tar::GnuExtSparseHeader::new();
            *more.as_mut_bytes() = blocks.whole_block()?;
            self.append_rows(more.sparse())?;
            within(Limit::SparseSegments, self.map.len() as u64, limits.sparse_segments)?;
            continues = more.isextended[0] != 0;
        }
        Ok(())
    }

    /// Appends the rows of a table up to the first one without an offset.
    fn append_rows(&mut self, rows: &[::tar::GnuSparseHeader]) -> Result<(), EntryProblem> {
        for row in rows.iter().take_while(|row| row.offset[0] != 0) {
            let offset = header::size(&row.offset, "offset in the map of the sparse file")?;
            let length = header::size(&row.numbytes, "length in the map of the sparse file")?;
            self.map.push(Segment { offset, length });
        }
        Ok(())
    }

    /// Returns an error unless the segments are in order and in the file, and are together as long as the stored bytes.
    fn check(&self) -> Result<(), EntryProblem> {
        let (mut end, mut total) = (0, 0);
        for segment in &self.map {
            if segment.offset < end {
                return Err(EntryProblem::Sparse("segments of its map overlap or are out of order"));
            }
            let next = segment.offset.checked_add(segment.length).filter(|&next| next <= self.size);
            end = next.ok_or(EntryProblem::Sparse("its map exceeds the file"))?;
            total += segment.length;
        }
        let is_complete = total == self.stored;
        is_complete.then_some(()).ok_or(EntryProblem::Sparse("its map does not match the data in the archive"))
    }
}

/// The map of PAX 1.0: lines with one number each, in as many blocks of the content as they need.
struct MapText<'a, R> {
    /// Number of bytes of the content that were not read yet.
    stored: &'a mut u64,
    blocks: &'a mut Blocks<R>,
    /// The rest of the current block, last byte first.
    block: Vec<u8>,
}

impl<R: BufRead> MapText<'_, R> {
    fn read(mut self, limits: &Limits) -> Result<Vec<Segment>, Problem> {
        let count = self.number()?;
        within(Limit::SparseSegments, count, limits.sparse_segments)?;
        (0..count).map(|_| Ok(Segment { offset: self.number()?, length: self.number()? })).collect()
    }

    fn number(&mut self) -> Result<u64, Problem> {
        let wrong = || EntryProblem::Sparse("its map is not lines of numbers");
        let mut number = None;
        loop {
            match self.byte()? {
                b'\n' => return Ok(number.ok_or_else(wrong)?),
                digit @ b'0'..=b'9' => {
                    let longer = number.unwrap_or(0_u64).checked_mul(10);
                    number = Some(longer.and_then(|n| n.checked_add((digit - b'0').into())).ok_or_else(wrong)?);
                }
                _ => return Err(wrong().into()),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        if self.block.is_empty() {
            let unread = self.stored.checked_sub(BLOCK_SIZE as u64);
            *self.stored = unread.ok_or(EntryProblem::Sparse("its map does not end"))?;
            self.block.extend(self.blocks.whole_block()?.iter().rev());
        }
        Ok(self.block.pop().expect("a block was read"))
    }
}
