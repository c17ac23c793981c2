use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn exceeded<T>(outcome: Result<T, LayerError>) -> Option<Limit> {
    match outcome {
        Ok(_) => None,
        Err(LayerError::Limit(exceeded) | LayerError::Entry { problem: EntryError::Limit(exceeded), .. }) => {
            Some(exceeded.limit)
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn each_limit_allows_its_exact_value_and_no_more() {
    let two_files = || Tar::default().pax(&[("path", "a/b/c")]).file("a", "1234").file("b", "1").end();
    let size = two_files().len() as u64;
    let limits = Limits::default();
    for (limits, limit, is_within) in [
        (Limits { headers: 3, ..limits }, Limit::Headers, true),
        (Limits { headers: 2, ..limits }, Limit::Headers, false),
        (Limits { content_size: 5, ..limits }, Limit::ContentSize, true),
        (Limits { content_size: 4, ..limits }, Limit::ContentSize, false),
        (Limits { extended_header_size: 14, ..limits }, Limit::ExtendedHeaderSize, true),
        (Limits { extended_header_size: 13, ..limits }, Limit::ExtendedHeaderSize, false),
        (Limits { path_length: 5, ..limits }, Limit::PathLength, true),
        (Limits { path_length: 4, ..limits }, Limit::PathLength, false),
        (Limits { path_depth: 3, ..limits }, Limit::PathDepth, true),
        (Limits { path_depth: 2, ..limits }, Limit::PathDepth, false),
        (Limits { unpacked_size: size, ..limits }, Limit::UnpackedSize, true),
        (Limits { unpacked_size: size - 1, ..limits }, Limit::UnpackedSize, false),
    ] {
        assert_eq!(exceeded(read_within(&two_files(), limits)), (!is_within).then_some(limit), "{limit:?}");
    }
}

#[test]
fn number_of_sparse_segments_is_limited_in_every_format() {
    let gnu = Head::new(b'S', "a").gnu().number(483, 12, 9).number(386, 12, 0).number(398, 12, 1);
    let gnu = gnu.number(410, 12, 2).number(422, 12, 1);
    let size = ("GNU.sparse.size", "9");
    let v10 = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), size];
    let map = Tar::default().content("2\n0\n1\n2\n1\n").raw("ab").0;
    for tar in [
        Tar::default().entry(gnu, "ab"),
        Tar::default().pax(&[size, ("GNU.sparse.map", "0,1,2,1")]).file("a", "ab"),
        Tar::default().pax(&v10).file("a", std::str::from_utf8(&map).unwrap()),
    ] {
        for (segments, limit) in [(2, None), (1, Some(Limit::SparseSegments))] {
            let limits = Limits { sparse_segments: segments, ..Limits::default() };
            assert_eq!(exceeded(read_within(&tar.clone().end(), limits)), limit);
        }
    }
}

#[test]
fn size_of_filled_holes_is_limited() {
    let tar = Tar::default().file("a", "").end();
    let limits = Limits { filled_holes: 5, ..Limits::default() };
    let mut reader = LayerReader::new(tar.as_slice(), expected(&tar), limits).unwrap();
    reader.next_entry().unwrap();
    reader.count_filled_hole(3).unwrap();
    reader.count_filled_hole(2).unwrap();
    assert_eq!(exceeded(reader.count_filled_hole(1)), Some(Limit::FilledHoles));
}

#[test]
fn gzip_of_zeros_passes_the_ratio_limit_and_a_zstd_bomb_does_not() {
    let tar = Tar::default().file("a", vec![0; 8 << 20]).end();
    let limits = Limits { ratio_applies_above: 1 << 20, ..Limits::default() };
    assert_eq!(exceeded(read_within(&gzip(&tar), limits)), None);
    assert_eq!(exceeded(read_within(&zstd(&tar), limits)), Some(Limit::Ratio));
    assert_eq!(exceeded(read(&zstd(&tar))), None);
}

/// An archive with every kind of header and entry.
fn rich() -> Vec<u8> {
    Tar::default()
        .extended(b'g', &[("mtime", "1.5")])
        .head(Head::new(b'5', "dir/"))
        .file("dir/file", "content")
        .pax(&[("path", "dir/long"), ("size", "3"), ("uid", "70000"), ("SCHILY.xattr.user.a", "v")])
        .head(Head::file("x"))
        .content("abc")
        .long(b'L', "dir/longer")
        .long(b'K', "target")
        .head(Head::new(b'2', "x").gnu())
        .pax(&[("GNU.sparse.size", "10"), ("GNU.sparse.map", "2,2,6,1")])
        .file("sparse", "abc")
        .pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")])
        .head(Head::file("sparse").size(512))
        .content("0\n")
        .entry(Head::new(b'S', "s").gnu().number(483, 12, 5).number(386, 12, 1).number(398, 12, 2), "ab")
        .head(Head::new(b'1', "link").link("dir/file"))
        .head(Head::new(b'3', "device").number(329, 8, 5).number(337, 8, 1))
        .file("dir/.wh.gone", "")
        .file("dir/.wh..wh..opq", "")
        .end()
}

/// Corrects the checksum of every block that looks like a header, so that damage is not detected by the checksum alone.
fn with_checksums(mut tar: Vec<u8>) -> Vec<u8> {
    for block in tar.as_chunks_mut::<512>().0 {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    tar
}

fn flipped(mut bytes: Vec<u8>, flips: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    for (index, bit) in flips {
        let position = index.index(bytes.len());
        bytes[position] ^= 1 << (bit % 8);
    }
    bytes
}

/// Reads a blob and discards its content, because damage can make the content as large as the limits allow.
fn read_and_discard(blob: &[u8]) {
    let Ok(mut reader) = LayerReader::new(blob, expected(blob), Limits::default()) else {
        return;
    };
    while let Ok(Some(_)) = reader.next_entry() {
        while let Ok(Some(_)) = reader.next_part() {}
    }
    let _ = reader.finish();
}

#[test]
fn rich_archive_is_valid() {
    assert_eq!(read(&rich()).unwrap().0.len(), 11);
    assert_eq!(with_checksums(rich()), rich());
}

proptest! {
    #[test]
    fn damaged_archive_causes_no_panic(
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        bytes in vec((any::<prop::sample::Index>(), prop::sample::select(b"\0 -0179\x80\xff\n=Sx".to_vec())), 0..4),
        end in any::<prop::sample::Index>(),
    ) {
        let mut tar = flipped(rich(), &flips);
        for (index, byte) in &bytes {
            let position = index.index(tar.len());
            tar[position] = *byte;
        }
        read_and_discard(&tar);
        read_and_discard(&with_checksums(tar.clone()));
        read_and_discard(&with_checksums(tar)[..end.index(rich().len())]);
    }

    #[test]
    fn damaged_stream_is_never_accepted_as_the_layer(
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
        compress in prop::sample::select(vec![gzip as fn(&[u8]) -> Vec<u8>, zstd, <[u8]>::to_vec]),
    ) {
        let blob = compress(&rich());
        let damaged = flipped(blob.clone(), &flips);
        prop_assert_eq!(read_as(&damaged, expected(&blob), Limits::default()).is_ok(), damaged == blob);
        prop_assert!(read_as(&blob[..end.index(blob.len())], expected(&blob), Limits::default()).is_err());
        read_and_discard(&damaged);
    }

    #[test]
    fn archive_of_another_writer_is_read_back(
        files in vec(("[ab/.]{1,300}", 0_u64..0x1_0000_0000, vec(any::<u8>(), 0..2000)), 0..8),
        is_gnu in any::<bool>(),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut expected = Vec::new();
        for (raw, id, content) in &files {
            let Ok(path) = EntryPath::normalise(raw.as_bytes()) else { continue };
            if path.is_root() || raw.ends_with(['/', '.']) || raw.starts_with('/') {
                continue;
            }
            let mut header = if is_gnu { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
            header.set_size(content.len() as u64);
            header.set_mode(0o640);
            header.set_uid(*id);
            header.set_gid(0);
            header.set_mtime(1);
            // The path may be too long for a ustar header.
            if builder.append_data(&mut header, raw, &content[..]).is_ok() {
                expected.push((path, *id, content.clone()));
            }
        }
        let read = read(&builder.into_inner().unwrap()).unwrap().0;
        let read: Vec<_> = read
            .into_iter()
            .map(|(entry, content)| (entry.path.clone(), u64::from(metadata(&entry).uid), content))
            .collect();
        prop_assert_eq!(read, expected);
    }
}
