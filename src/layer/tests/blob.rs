use std::io;

use super::*;

fn tar() -> Vec<u8> {
    Tar::default().file("a", b"content of a").file("b", vec![7; 3_000_000]).end()
}

fn check(blob: &[u8], compression: BlobCompression) {
    let (entries, summary) = read(blob).unwrap();
    let paths: Vec<_> = entries.iter().map(|(entry, content)| (entry.path.to_string(), content.len())).collect();
    assert_eq!(paths, [("/a".to_owned(), 12), ("/b".to_owned(), 3_000_000)]);
    assert_eq!(summary.diff_id, DiffId(Digest::of(&tar())));
    assert_eq!((summary.blob_size, summary.unpacked_size), (blob.len() as u64, tar().len() as u64));
    assert_eq!(summary.compression, compression);
}

#[test]
fn compression_is_detected_from_the_content() {
    check(&tar(), BlobCompression::None);
    check(&gzip(&tar()), BlobCompression::Gzip);
    check(&zstd(&tar()), BlobCompression::Zstd);
}

#[test]
fn blob_may_consist_of_several_streams() {
    let tar = tar();
    let (start, end) = tar.split_at(700_001);
    let skipped = [0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    check(&[gzip(start), gzip(b""), gzip(end)].concat(), BlobCompression::Gzip);
    check(&[&skipped[..], &zstd(start), &skipped, &zstd(b""), &zstd(end), &skipped].concat(), BlobCompression::Zstd);
}

#[test]
fn gzip_header_may_have_every_field() {
    let plain = gzip(&tar());
    let mut fields = vec![0x1f, 0x8b, 8, 2 | 4 | 8 | 16, 0, 0, 0, 0, 0, 3];
    fields.extend(b"\x03\0xyzname\0comment\0cc");
    check(&[&fields[..], &plain[10..]].concat(), BlobCompression::Gzip);
    for end in 2..fields.len() {
        assert!(matches!(read(&fields[..end]), Err(LayerError::Truncated { .. })), "{end}");
    }
}

#[test]
fn gzip_may_be_padded_with_zeros_and_nothing_else() {
    let blob = gzip(&tar());
    for zeros in [1, 2, 600_000] {
        check(&[&blob[..], &vec![0; zeros]].concat(), BlobCompression::Gzip);
    }
    for rest in [&b"x"[..], b"\0x", b"\x1f", b"\x1f\x8b\x08"] {
        assert!(read(&[&blob[..], rest].concat()).is_err(), "{}", rest.escape_ascii());
    }
    for rest in [&b"x"[..], b"\0\0\0\0\0\0\0\0", b"\x28"] {
        assert!(read(&[&zstd(&tar()), rest].concat()).is_err(), "{}", rest.escape_ascii());
    }
}

#[test]
fn empty_blob_is_an_empty_layer() {
    for blob in [vec![], gzip(b""), zstd(b"")] {
        let (entries, summary) = read(&blob).unwrap();
        assert!(entries.is_empty());
        assert_eq!(summary.diff_id, DiffId(Digest::of(b"")));
    }
}

#[test]
fn blob_that_is_not_an_archive_is_refused() {
    let error_page = b"<html>404 not found</html>".repeat(30);
    for blob in [&error_page[..], &error_page[..50], b"\x1f", b"BZh9"] {
        assert!(matches!(read(blob), Err(LayerError::NotAnArchive)));
        assert!(matches!(read(&gzip(blob)), Err(LayerError::NotAnArchive)));
    }
}

#[test]
fn digest_size_and_diff_id_are_verified_to_the_last_byte() {
    // The diff ID also covers the bytes after the end marker of the archive.
    let tar = [tar(), b"after the end".to_vec()].concat();
    let other = Digest::of(b"other");
    for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let right = ExpectedLayer { diff_id: Some(DiffId(Digest::of(&tar))), ..expected(&blob) };
        let outcome = |expected| read_as(&blob, expected, Limits::default());
        assert!(outcome(right).is_ok());
        let wrong = outcome(ExpectedLayer { digest: other, ..right }).unwrap_err();
        assert!(matches!(wrong, LayerError::WrongDigest { expected, .. } if expected == other), "{wrong}");
        let wrong = outcome(ExpectedLayer { diff_id: Some(DiffId(other)), ..right }).unwrap_err();
        assert!(matches!(wrong, LayerError::WrongDiffId { expected: DiffId(e), .. } if e == other), "{wrong}");
        let wrong = outcome(ExpectedLayer { size: right.size + 1, ..right }).unwrap_err();
        assert!(matches!(wrong, LayerError::WrongSize { actual, .. } if actual == right.size), "{wrong}");
        let wrong = outcome(ExpectedLayer { size: right.size - 1, ..right }).unwrap_err();
        assert!(matches!(wrong, LayerError::TooLarge { .. }), "{wrong}");
    }
}

#[test]
fn endless_blob_is_read_only_up_to_its_expected_size() {
    let tar = Tar::default().head(Head::file("a").size(1 << 30)).0;
    let endless = io::Read::chain(&tar[..], io::repeat(0));
    let expected = ExpectedLayer { size: 1 << 20, ..expected(&tar) };
    let reader = LayerReader::new(endless, expected, Limits::default()).unwrap();
    assert!(matches!(reader.finish(), Err(LayerError::TooLarge { expected: 0x10_0000 })));
}

#[test]
fn truncated_stream_is_an_error() {
    let tar = Tar::default().file("a", b"content of a").end();
    for blob in [gzip(&tar), zstd(&tar)] {
        for end in 4..blob.len() {
            let error = read(&blob[..end]).unwrap_err();
            assert!(matches!(error, LayerError::Truncated { actual, .. } if actual == end as u64), "{end}: {error}");
        }
    }
}

#[test]
fn damaged_stream_is_an_error() {
    let mut blob = gzip(&tar());
    let last = blob.len() - 1;
    for position in [last, last - 4] {
        blob[position] ^= 1;
        assert!(matches!(read(&blob), Err(LayerError::Damaged { compression: BlobCompression::Gzip, .. })));
        blob[position] ^= 1;
    }
    let mut blob = zstd(&tar());
    blob[4] ^= 0x08;
    assert!(matches!(read(&blob), Err(LayerError::Damaged { compression: BlobCompression::Zstd, .. })));
}

#[test]
fn blob_cut_between_gzip_members_has_the_wrong_size() {
    let tar = tar();
    let blob = [gzip(&tar[..1024]), gzip(&tar[1024..])].concat();
    let cut = &blob[..gzip(&tar[..1024]).len()];
    let error = read_as(cut, expected(&blob), Limits::default()).unwrap_err();
    assert!(matches!(error, LayerError::WrongSize { .. }), "{error}");
}

#[test]
fn error_of_the_source_is_passed_on() {
    struct Broken;
    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("connection lost"))
        }
    }
    let tar = tar();
    let reader = LayerReader::new(io::Read::chain(&tar[..5000], Broken), expected(&tar), Limits::default()).unwrap();
    assert!(matches!(reader.finish(), Err(LayerError::Read(_))));
}

#[test]
fn blob_may_arrive_byte_by_byte() {
    struct Slow<'a>(&'a [u8]);
    impl io::Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = out.len().min(1).min(self.0.len());
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    let tar = Tar::default().file("a", vec![1; 2000]).end();
    for blob in [tar.clone(), gzip(&tar), [gzip(&tar[..9]), gzip(&tar[9..])].concat(), zstd(&tar)] {
        let reader = LayerReader::new(Slow(&blob), expected(&blob), Limits::default()).unwrap();
        assert_eq!(reader.finish().unwrap().diff_id, DiffId(Digest::of(&tar)));
    }
}
