//! Reads the pages of an SQLite file without SQLite.
//!
//! A check reads every row of every catalog, and SQLite would take several times as long as the rest of the check. This reader
//! accepts only files that are completely intact: each page has exactly one use, each byte of a page has at most one use, keys
//! ascend, and records have their stated length. For any deviation from the format (<https://www.sqlite.org/fileformat2.html>) it returns `None`,
//! and SQLite then reads the file and reports the damage.

use std::borrow::Cow;

/// A value of a record.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'p> {
    Null,
    Integer(i64),
    Real,
    Text(&'p [u8]),
    Blob(&'p [u8]),
}

/// The two kinds of B-trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TreeKind {
    /// A table: records ordered by rowid.
    Table,
    /// An index: records ordered by their values.
    Index,
}

/// A file, with a mark for each page that was read.
pub(super) struct Pages<'b> {
    bytes: &'b [u8],
    size: usize,
    /// By page number minus 1.
    seen: Vec<bool>,
    /// Used ranges (start, end) of the current page.
    parts: Vec<(u32, u32)>,
}

/// A cell of a B-tree page.
struct Cell<'b> {
    /// The child page with smaller keys, in an interior page.
    child: Option<u32>,
    /// The rowid, in a table.
    number: i64,
    /// The part of the record that is stored in the page, and the length of the whole record.
    local: &'b [u8],
    length: usize,
    /// The first overflow page with the rest of the record.
    overflow: Option<u32>,
    /// Size of the cell in the page in bytes.
    size: usize,
}

/// Maximum depth of a B-tree, as in SQLite (`BTCURSOR_MAX_DEPTH`).
const MAX_DEPTH: u32 = 20;

/// Size in bytes of the file header at the beginning of the first page.
const HEADER: usize = 100;

/// Receives the rowid and the record of an entry. In an index the rowid is 0.
pub(super) type Visit<'v> = dyn FnMut(i64, &[u8]) -> Option<()> + 'v;

impl<'b> Pages<'b> {
    /// Opens a file with the usual settings: rollback journal, UTF-8, no auto-vacuum. Returns `None` for any other file.
    pub(super) fn open(bytes: &'b [u8]) -> Option<Self> {
        let size = match u16_at(bytes, 16)? {
            1 => 1 << 16,
            size => usize::from(size),
        };
        let is_usual = bytes.starts_with(b"SQLite format 3\0")
            && size.is_power_of_two()
            && size >= 512
            && bytes.get(18..24)? == [1, 1, 0, 64, 32, 32]
            && u32_at(bytes, 44)? == 4
            && [52, 64].into_iter().all(|vacuum| u32_at(bytes, vacuum) == Some(0))
            && u32_at(bytes, 56)? == 1;
        let count = u32_at(bytes, 28)? as usize;
        // The page count is valid only if the change counter equals "version-valid-for" (fileformat2, "In-header database size"):
        // SQLite before 3.7.0 does not update the count.
        let is_counted = bytes.get(24..28)? == bytes.get(92..96)? && count.checked_mul(size)? == bytes.len();
        // A file above 1 GiB has a lock-byte page, which is not read here (fileformat2, "The Lock-Byte Page").
        let is_small = bytes.len() < 1 << 30;
        (is_usual && is_counted && is_small && count > 0).then(|| Self {
            bytes,
            size,
            seen: vec![false; count],
            parts: Vec::new(),
        })
    }

    /// Calls `visit` for each record of a B-tree, in order.
    pub(super) fn visit(&mut self, root: u32, kind: TreeKind, visit: &mut Visit<'_>) -> Option<()> {
        let mut last = None;
        self.visit_page(root, kind, 0, &mut last, visit).map(drop)
    }

    /// Reads the list of free pages, and returns `None` if a page is neither used nor free.
    pub(super) fn are_all_seen(&mut self) -> Option<()> {
        self.visit_free_pages()?;
        self.seen.iter().all(|&seen| seen).then_some(())
    }

    /// Marks a page as used and returns it. Returns `None` if the page is already in use.
    fn take(&mut self, number: u32) -> Option<&'b [u8]> {
        let index = (number as usize).checked_sub(1)?;
        let seen = self.seen.get_mut(index)?;
        if std::mem::replace(seen, true) {
            return None;
        }
        self.bytes.get(index * self.size..(index + 1) * self.size)
    }

    /// Visits a page and the pages below it. Returns the height of the page above the leaves.
    fn visit_page(
        &mut self,
        number: u32,
        kind: TreeKind,
        depth: u32,
        last: &mut Option<i64>,
        visit: &mut Visit<'_>,
    ) -> Option<u32> {
        let page = self.take(number)?;
        let head = if number == 1 { HEADER } else { 0 };
        let is_leaf = match (*page.get(head)?, kind) {
            (13, TreeKind::Table) | (10, TreeKind::Index) => true,
            (5, TreeKind::Table) | (2, TreeKind::Index) => false,
            _ => return None,
        };
        let count = usize::from(u16_at(page, head + 3)?);
        // Only the root page of an empty tree has no cells.
        if depth > MAX_DEPTH || count == 0 && (depth > 0 || !is_leaf) {
            return None;
        }
        let pointers = head + if is_leaf { 8 } else { 12 };
        let content = match u16_at(page, head + 5)? {
            0 => 1 << 16,
            content => usize::from(content),
        };
        if content < pointers + 2 * count || content > page.len() {
            return None;
        }
        self.parts.clear();
        if is_leaf {
            for index in 0..count {
                let cell = self.cell(page, pointers + 2 * index, content, kind, true)?;
                self.visit_cell(&cell, kind, last, visit)?;
            }
            self.check_parts(page, head, content)?;
            return Some(0);
        }
        let cells: Vec<Cell<'b>> = (0..count)
            .map(|index| self.cell(page, pointers + 2 * index, content, kind, false))
            .collect::<Option<_>>()?;
        self.check_parts(page, head, content)?;
        let mut height = None;
        for cell in &cells {
            let below = self.visit_page(cell.child?, kind, depth + 1, last, visit)?;
            if height.replace(below).is_some_and(|height| height != below) {
                return None;
            }
            match kind {
                TreeKind::Index => self.visit_cell(cell, kind, last, visit)?,
                // The rowid in an interior cell is the largest in its child page.
                TreeKind::Table if last.is_none_or(|last| last <= cell.number) => *last = Some(cell.number),
                TreeKind::Table => return None,
            }
        }
        let below = self.visit_page(u32_at(page, head + 8)?, kind, depth + 1, last, visit)?;
        (height == Some(below)).then_some(below + 1)
    }

    /// Reads the cell to which the cell pointer at offset `pointer` refers.
    fn cell(
        &mut self,
        page: &'b [u8],
        pointer: usize,
        content: usize,
        kind: TreeKind,
        is_leaf: bool,
    ) -> Option<Cell<'b>> {
        let start = usize::from(u16_at(page, pointer)?);
        let mut at = start;
        let child = if is_leaf { None } else { Some(u32_at(page, start)?) };
        at += if is_leaf { 0 } else { 4 };
        let mut cell = Cell { child, number: 0, local: &[], length: 0, overflow: None, size: 0 };
        if is_leaf || kind == TreeKind::Index {
            let (length, width) = varint(page.get(at..)?)?;
            at += width;
            cell.length = usize::try_from(length).ok().filter(|&length| length <= self.bytes.len())?;
        }
        if kind == TreeKind::Table {
            let (number, width) = varint(page.get(at..)?)?;
            at += width;
            cell.number = number.cast_signed();
        }
        let local = local_length(cell.length, page.len(), kind);
        cell.local = page.get(at..at + local)?;
        at += local;
        if local < cell.length {
            cell.overflow = Some(u32_at(page, at)?);
            at += 4;
        }
        cell.size = (at - start).max(4);
        if start < content || start + cell.size > page.len() {
            return None;
        }
        self.parts.push((start as u32, (start + cell.size) as u32));
        Some(cell)
    }

    fn visit_cell(
        &mut self,
        cell: &Cell<'b>,
        kind: TreeKind,
        last: &mut Option<i64>,
        visit: &mut Visit<'_>,
    ) -> Option<()> {
        if kind == TreeKind::Table {
            if last.is_some_and(|last| last >= cell.number) {
                return None;
            }
            *last = Some(cell.number);
        }
        let record = match cell.overflow {
            None => Cow::Borrowed(cell.local),
            Some(page) => Cow::Owned(self.whole_record(cell, page)?),
        };
        visit(cell.number, &record)
    }

    /// Reads a whole record: the part in the page, and the rest from the overflow pages.
    fn whole_record(&mut self, cell: &Cell<'b>, mut next: u32) -> Option<Vec<u8>> {
        let mut record = cell.local.to_vec();
        while record.len() < cell.length {
            let page = self.take(next)?;
            next = u32_at(page, 0)?;
            let length = (cell.length - record.len()).min(page.len() - 4);
            record.extend_from_slice(&page[4..4 + length]);
        }
        (next == 0).then_some(record)
    }

    /// Checks that the cells and free blocks of a page do not overlap, and that its header states the number of fragmented free bytes.
    fn check_parts(&mut self, page: &[u8], head: usize, content: usize) -> Option<()> {
        let mut block = usize::from(u16_at(page, head + 1)?);
        while block != 0 {
            let (next, size) = (usize::from(u16_at(page, block)?), usize::from(u16_at(page, block + 2)?));
            if block < content || size < 4 || block + size > page.len() || next != 0 && next <= block + size + 3 {
                return None;
            }
            self.parts.push((block as u32, (block + size) as u32));
            block = next;
        }
        self.parts.sort_unstable();
        let (mut end, mut unused) = (content as u32, 0);
        for &(start, next) in &self.parts {
            unused += start.checked_sub(end)?;
            end = next;
        }
        unused += page.len() as u32 - end;
        (unused == u32::from(*page.get(head + 7)?)).then_some(())
    }

    fn visit_free_pages(&mut self) -> Option<()> {
        let (mut next, mut count) = (u32_at(self.bytes, 32)?, 0);
        while next != 0 {
            let page = self.take(next)?;
            let pages = u32_at(page, 4)? as usize;
            // SQLite does not use the last six entries of a trunk page, because versions before 3.6.0 report them as damage
            // (fileformat2, "The Freelist").
            if pages > page.len() / 4 - 8 {
                return None;
            }
            for index in 0..pages {
                self.take(u32_at(page, 8 + 4 * index)?)?;
            }
            count += 1 + pages;
            next = u32_at(page, 0)?;
        }
        (count == u32_at(self.bytes, 36)? as usize).then_some(())
    }
}

/// Returns the number of bytes of a record that are stored in its page (fileformat2, "B-tree Pages").
fn local_length(length: usize, page: usize, kind: TreeKind) -> usize {
    let most = match kind {
        TreeKind::Table => page - 35,
        TreeKind::Index => (page - 12) * 64 / 255 - 23,
    };
    if length <= most {
        return length;
    }
    let least = (page - 12) * 32 / 255 - 23;
    let fitting = least + (length - least) % (page - 4);
    if fitting <= most { fitting } else { least }
}

/// Reads the values of a record in order.
#[derive(Debug, Clone)]
pub(super) struct Record<'p> {
    types: &'p [u8],
    values: &'p [u8],
}

impl<'p> Record<'p> {
    pub(super) fn of(record: &'p [u8]) -> Option<Self> {
        let (length, width) = varint(record)?;
        let length = usize::try_from(length).ok()?;
        Some(Self { types: record.get(width..length)?, values: record.get(length..)? })
    }

    /// Returns the next value.
    pub(super) fn value(&mut self) -> Option<Value<'p>> {
        let (kind, width) = varint(self.types)?;
        self.types = &self.types[width..];
        Some(match kind {
            0 => Value::Null,
            1..=4 => self.integer(kind as usize)?,
            5 => self.integer(6)?,
            6 => self.integer(8)?,
            7 => {
                self.bytes(8)?;
                Value::Real
            }
            8 | 9 => Value::Integer(kind.cast_signed() - 8),
            10 | 11 => return None,
            _ => {
                let length = usize::try_from((kind - 12) / 2).ok()?;
                let bytes = self.bytes(length)?;
                if kind % 2 == 0 { Value::Blob(bytes) } else { Value::Text(bytes) }
            }
        })
    }

    /// Returns `None` if the record has more values.
    pub(super) fn end(&self) -> Option<()> {
        (self.types.is_empty() && self.values.is_empty()).then_some(())
    }

    fn bytes(&mut self, length: usize) -> Option<&'p [u8]> {
        let (bytes, rest) = self.values.split_at_checked(length)?;
        self.values = rest;
        Some(bytes)
    }

    fn integer(&mut self, width: usize) -> Option<Value<'p>> {
        let bytes = self.bytes(width)?;
        let mut wide = [if bytes[0] & 0x80 == 0 { 0 } else { 0xff }; 8];
        wide[8 - width..].copy_from_slice(bytes);
        Some(Value::Integer(i64::from_be_bytes(wide)))
    }

    /// Returns the next value if it is an integer.
    pub(super) fn required_integer(&mut self) -> Option<i64> {
        match self.value()? {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    /// Returns the next value if it is an integer or NULL.
    pub(super) fn optional_integer(&mut self) -> Option<Option<i64>> {
        match self.value()? {
            Value::Integer(number) => Some(Some(number)),
            Value::Null => Some(None),
            _ => None,
        }
    }

    /// Returns the next value if it is a text.
    pub(super) fn required_text(&mut self) -> Option<&'p [u8]> {
        match self.value()? {
            Value::Text(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Returns the next value if it is a blob or NULL.
    pub(super) fn optional_blob(&mut self) -> Option<Option<&'p [u8]>> {
        match self.value()? {
            Value::Blob(bytes) => Some(Some(bytes)),
            Value::Null => Some(None),
            _ => None,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a variable-length integer of one to nine bytes. Returns the integer and its length in bytes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((first.into(), 1));
    }
    let mut number = 0;
    for (index, &byte) in bytes.iter().enumerate().take(8) {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            return Some((number, index + 1));
        }
    }
    Some((number << 8 | u64::from(*bytes.get(8)?), 9))
}
