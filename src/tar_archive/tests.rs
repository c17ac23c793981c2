//! Tests of [`Archive`] on a stream that skips without reading. Whole archives, also malformed ones, are tested through `layer`.

use std::ops::Range;

use super::testing::{Head, Tar};
use super::*;

/// An archive in memory.
struct Bytes {
    bytes: Vec<u8>,
    position: usize,
    /// Number of bytes that were taken, without those that were skipped.
    taken: usize,
}

impl Bytes {
    fn advance(&mut self, max: u64) -> Range<usize> {
        let start = self.position;
        let remaining = self.bytes.len() - start;
        self.position += usize::try_from(max).map_or(remaining, |max| max.min(remaining));
        start..self.position
    }
}

impl BlockStream for Bytes {
    type Error = TarError;

    fn take(&mut self, max: u64) -> Result<Range<usize>, TarError> {
        let range = self.advance(max.min(BLOCK_SIZE as u64));
        self.taken += range.len();
        Ok(range)
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    fn offset(&self) -> u64 {
        self.position as u64
    }

    fn skip(&mut self, count: u64) -> Result<u64, TarError> {
        Ok(self.advance(count).len() as u64)
    }
}

fn open(tar: Tar) -> Archive<Bytes> {
    let limits = HeaderLimits { headers: 10, extended_header_size: 100 };
    Archive::new(Bytes { bytes: tar.0, position: 0, taken: 0 }, limits)
}

fn read(archive: &mut Archive<Bytes>) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(part) = archive.next_part().unwrap() {
        match part {
            ContentPart::Data(bytes) => content.extend_from_slice(bytes),
            ContentPart::Hole(length) => content.resize(content.len() + length as usize, b'.'),
        }
    }
    content
}

/// Returns an archive with a sparse file in GNU's old format, whose map continues in two more blocks, and a plain file.
fn sparse_and_plain() -> Tar {
    let head = Head::new(b'S', "sparse").gnu().size(3).number(483, 12, 9);
    let head = head.number(386, 12, 1).number(398, 12, 1).bytes(482, [1]);
    let map_block = |offset: u64, continues: u8| {
        let mut block = format!("{offset:011o}\0{:011o}\0", 1).into_bytes();
        block.resize(BLOCK_SIZE, 0);
        block[504] = continues;
        block
    };
    Tar::default().head(head).raw(map_block(3, 1)).raw(map_block(5, 0)).content("abc").file("plain", "content")
}

#[test]
fn sparse_file_is_skipped_without_reading_its_map() {
    let mut archive = open(sparse_and_plain());
    let member = archive.next_member().unwrap().unwrap();
    assert!(member.is_sparse());
    assert_eq!((member.size, read(&mut archive)), (0, Vec::new()));
    let member = archive.next_member().unwrap().unwrap();
    assert_eq!((&member.path[..], member.is_sparse(), member.size), (&b"plain"[..], false, 7));
    assert_eq!(read(&mut archive), b"content");

    for end in [BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 3 * BLOCK_SIZE + 2] {
        let mut archive = open(Tar(sparse_and_plain().0[..end].to_vec()));
        archive.next_member().unwrap();
        let error = archive.next_member().err().unwrap();
        assert_eq!(error, TarError::Member { path: "sparse".to_owned(), problem: MemberError::Truncated }, "{end}");
    }
}

#[test]
fn map_of_a_sparse_file_states_its_size() {
    let mut archive = open(sparse_and_plain());
    let mut member = archive.next_member().unwrap().unwrap();
    archive.read_map(&mut member, 3).unwrap();
    assert_eq!((member.size, read(&mut archive)), (9, b".a.b.c...".to_vec()));
    let mut member = archive.next_member().unwrap().unwrap();
    archive.read_map(&mut member, 0).unwrap();
    assert_eq!((member.size, read(&mut archive)), (7, b"content".to_vec()));

    let mut archive = open(sparse_and_plain());
    let mut member = archive.next_member().unwrap().unwrap();
    let problem = MemberError::TooManySegments { allowed: 2 };
    assert_eq!(archive.read_map(&mut member, 2), Err(TarError::Member { path: "sparse".to_owned(), problem }));
}

#[test]
fn unread_content_is_skipped_and_not_taken() {
    let tar = Tar::default().file("a", [b'x'; 100_000]).head(Head::new(b'5', "b").size(512)).file("c", [b'x'; 1000]);
    let size = tar.0.len() as u64;
    let mut archive = open(tar);
    let mut paths = Vec::new();
    while let Some(member) = archive.next_member().unwrap() {
        paths.push(member.path);
    }
    assert_eq!(paths, [b"a", b"b", b"c"]);
    assert_eq!((archive.stream().offset(), archive.stream().taken), (size, 3 * BLOCK_SIZE));
}

#[test]
fn number_and_size_of_headers_are_limited() {
    let mut archive = open((0..11).fold(Tar::default(), |tar, _| tar.file("a", "")));
    (0..10).for_each(|_| assert!(archive.next_member().unwrap().is_some()));
    assert_eq!(archive.next_member().err(), Some(TarError::TooManyHeaders { allowed: 10 }));

    let with_name = |length| open(Tar::default().long(b'L', &"n".repeat(length)).file("a", ""));
    assert_eq!(with_name(99).next_member().unwrap().unwrap().path.len(), 99, "with its NUL, the name has 100 bytes");
    let problem = MemberError::ExtendedHeaderTooLarge { allowed: 100 };
    let expected = TarError::Member { path: "././@LongLink".to_owned(), problem };
    assert_eq!(with_name(100).next_member().err(), Some(expected));
}
