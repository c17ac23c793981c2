use super::*;
use crate::tar_archive::{HeaderError, MemberError};

const LONG: &str =
    "a-directory-with-a-long-name/another-directory-with-a-long-name/and-one-more-directory-with-a-long-name/file";

/// Reads an archive with a malformed entry, and returns that entry's path and error.
fn malformed(tar: Tar) -> (String, MemberError) {
    malformed_of(read(&tar.end()))
}

fn malformed_of<T>(outcome: Result<T, LayerError>) -> (String, MemberError) {
    match problem_of(outcome) {
        (path, EntryError::Malformed(problem)) => (path, problem),
        (_, other) => panic!("not malformed: {other}"),
    }
}

#[test]
fn path_comes_from_header_prefix_and_extensions() {
    let long = format!("{LONG}/{LONG}");
    for (tar, expected) in [
        (Tar::default().file("a/b", ""), "a/b"),
        (Tar::default().file(&LONG[..100.min(LONG.len())], ""), &LONG[..100.min(LONG.len())]),
        (Tar::default().head(Head::file("b").bytes(345, "a/directory")), "a/directory/b"),
        (Tar::default().head(Head::file("b").bytes(345, "a").bytes(476, "12345").bytes(508, "tar\0")), "a/b"),
        // GNU and V7 headers have other fields, or none, where ustar has its prefix.
        (Tar::default().head(Head::file("b").gnu().bytes(345, "12345670123\0")), "b"),
        (Tar::default().head(Head::file("b").v7().bytes(345, "a")), "b"),
        (Tar::default().long(b'L', &long).head(Head::file("cut").gnu()), &long),
        (Tar::default().pax(&[("path", &long)]).file("cut", ""), &long),
        (Tar::default().long(b'L', &long).pax(&[("path", &long)]).file("cut", ""), &long),
    ] {
        assert_eq!(entry(tar).0.path, path(expected));
    }
}

#[test]
fn extension_applies_to_one_entry_only() {
    let tar = Tar::default().pax(&[("path", "b"), ("uid", "7")]).file("a", "").file("c", "");
    let entries = entries(tar);
    assert_eq!(entries[1].0.path, path("c"));
    assert_eq!(metadata(&entries[1].0).uid, 0);
}

#[test]
fn global_records_are_ignored() {
    let global = [
        ("uid", "7"),
        ("gid", "8"),
        ("mtime", "9.5"),
        ("path", "x"),
        ("linkpath", "x"),
        ("size", "0"),
        ("GNU.sparse.size", "9"),
        ("SCHILY.xattr.user.a", "v"),
        ("SCHILY.acl.access", "user::rwx"),
        ("comment", "0123456789abcdef"),
    ];
    let tar = || Tar::default().file("a", "content").pax(&[("uid", "70")]).file("b", "").file("c", "");
    let with_global = Tar::default().extended(b'g', &global).file("a", "content");
    let with_global = with_global.pax(&[("uid", "70")]).file("b", "").extended(b'g', &global).file("c", "");
    assert_eq!(entries(with_global), entries(tar()));
}

#[test]
fn global_header_discards_earlier_extensions_of_the_next_entry() {
    let tar = Tar::default().pax(&[("path", "x")]).extended(b'g', &[("comment", "a")]).file("a", "");
    assert_eq!(entries(tar)[0].0.path, path("a"), "as Go reads it");
    let global = Tar::default().entry(Head::new(b'g', "PaxHeaders/0"), "9 patha\n\n").file("a", "");
    assert_eq!(malformed(global).1, MemberError::Record);
}

#[test]
fn large_and_negative_numbers_are_read_correctly() {
    let tar = Tar::default()
        .head(Head::file("a").base_256(108, 8, 4_000_000_000).base_256(116, 8, 3_000_000_000).base_256(136, 12, -5))
        .pax(&[("uid", "4294967294"), ("gid", "4294967293"), ("mtime", "-1.25")])
        .file("b", "");
    let entries = entries(tar);
    let (a, b) = (metadata(&entries[0].0), metadata(&entries[1].0));
    assert_eq!((a.uid, a.gid, a.mtime.seconds, a.mtime.nanoseconds), (4_000_000_000, 3_000_000_000, -5, 0));
    assert_eq!((b.uid, b.gid), (u32::MAX - 1, u32::MAX - 2));
    assert_eq!((b.mtime.seconds, b.mtime.nanoseconds), (-2, 750_000_000));
}

#[test]
fn size_of_the_pax_header_applies_where_the_header_has_none() {
    for header in [0, 5, 0o77_777_777_777] {
        let tar = Tar::default().pax(&[("size", "5")]).head(Head::file("a").size(header)).content("12345");
        assert_eq!(entry(tar).1, b"12345");
    }
    let tar = Tar::default().head(Head::file("a").base_256(124, 12, 5)).content("12345");
    assert_eq!(entry(tar).1, b"12345");
}

#[test]
fn different_sizes_in_header_and_pax_header_are_refused() {
    // A reader that ignores one of the two sizes would find a hidden entry in the content.
    let hidden = Tar::default().file("hidden", "").0;
    let tar = Tar::default().pax(&[("size", "512")]).head(Head::file("a").size(1024)).content(&hidden).content(&hidden);
    assert_eq!(malformed(tar), ("a".to_owned(), MemberError::TwoSizes { header: 1024, extended: 512 }));
}

#[test]
fn gnu_long_name_overrides_that_of_the_pax_header() {
    let of_pax = |tar: Tar| tar.pax(&[("path", "c"), ("linkpath", "d")]);
    let long = |tar: Tar| tar.long(b'L', "long").long(b'K', "target");
    for tar in [of_pax(long(Tar::default())), long(of_pax(Tar::default()))] {
        let (entry, _) = entry(tar.head(Head::new(b'1', "a").link("b")));
        assert_eq!(entry, LayerEntry { path: path("long"), kind: EntryKind::HardLink(path("target")) });
    }
    let (entry, _) = entry(of_pax(Tar::default().long(b'L', "")).head(Head::new(b'1', "a").link("b")));
    assert_eq!(entry.path, path("c"), "an empty long name does not count");
}

#[test]
fn last_of_two_extensions_of_one_kind_counts() {
    let tar = Tar::default().pax(&[("uid", "no number"), ("path", "c")]).pax(&[("gid", "2")]);
    let (entry, _) = entry(tar.long(b'L', "b").long(b'L', "long").file("a", ""));
    let EntryKind::Node(metadata, _) = &entry.kind else { panic!("{entry:?}") };
    assert_eq!((&entry.path, metadata.gid), (&path("long"), 2));
    let tar = Tar::default().pax(&[("path", "c")]).pax(&[("gid", "2")]).file("a", "");
    assert_eq!(self::entry(tar).0.path, path("a"), "a PAX header replaces the one before as a whole");
}

#[test]
fn size_in_a_pax_header_does_not_apply_to_a_long_name_header() {
    let tar = Tar::default()
        .pax(&[("size", "3")])
        .long(b'L', "a-long-name")
        .head(Head::file("a").gnu())
        .content("abc")
        .file("b", "");
    let entries = entries(tar);
    assert_eq!((&entries[0].0.path, &entries[0].1[..]), (&path("a-long-name"), &b"abc"[..]));
    assert_eq!(entries.len(), 2);
}

#[test]
fn links_directories_and_devices_have_no_content() {
    for type_flag in b'1'..=b'6' {
        let tar = Tar::default().head(Head::new(type_flag, "a").link("b").size(512)).file("b", "content");
        assert_eq!(entries(tar).last().unwrap().1, b"content", "type {type_flag}");
    }
}

#[test]
fn several_type_flags_mean_a_regular_file() {
    for type_flag in [0, b'0', b'7'] {
        let file = entry(Tar::default().entry(Head::new(type_flag, "a"), "abc"));
        assert_eq!((node(&file.0), &file.1[..]), (&NodeKind::File { size: 3, content: () }, &b"abc"[..]));
    }
    let file = entry(Tar::default().entry(Head::new(0, "a").v7(), "abc"));
    assert_eq!(file.1, b"abc");
}

#[test]
fn empty_file_with_a_slash_at_the_end_is_a_directory() {
    for head in [Head::new(0, "a/").v7(), Head::new(0, "a/"), Head::file("a/")] {
        assert_eq!(node(&entry(Tar::default().head(head)).0), &NodeKind::Directory);
    }
    let file = entry(Tar::default().file("a/", "content"));
    assert_eq!((node(&file.0), &file.1[..]), (&NodeKind::File { size: 7, content: () }, &b"content"[..]));
}

#[test]
fn end_marker_may_be_short_or_missing() {
    let tar = Tar::default().file("a", "content");
    for zeros in [0, 512, 1024, 10_240] {
        let blob = tar.clone().raw(vec![0; zeros]).0;
        assert_eq!(read(&blob).unwrap().0.len(), 1, "{zeros}");
    }
    // Some programs leave out the padding of the last entry.
    assert_eq!(read(&tar.0[..512 + 7]).unwrap().0[0].1, b"content");
    let beyond = [&tar.clone().end()[..], &Tar::default().file("b", "").0].concat();
    assert_eq!(read(&beyond).unwrap().0.len(), 1);
}

#[test]
fn archive_that_ends_inside_an_entry_or_header_is_refused() {
    let tar = Tar::default().file("dir/a", vec![b'x'; 1000]);
    for end in [512, 513, 1511] {
        assert_eq!(malformed_of(read(&tar.0[..end])), ("dir/a".to_owned(), MemberError::Truncated), "{end}");
    }
    for end in [1536 + 1, 1536 + 511] {
        let error = read(&tar.clone().end()[..end]).unwrap_err();
        assert!(
            matches!(&error, LayerError::Header(HeaderError { offset: 1536, after, .. }) if after == "dir/a"),
            "{error}"
        );
    }
    let extension_only = Tar::default().long(b'L', "b");
    assert_eq!(malformed(extension_only).1, MemberError::NothingExtended);
}

#[test]
fn error_about_a_header_names_the_previous_entry() {
    let mut blob = Tar::default().file("a", "").file("b", "").end();
    blob[512 + 100] ^= 1;
    let error = read(&blob).unwrap_err();
    assert!(matches!(&error, LayerError::Header(HeaderError { offset: 512, after, .. }) if after == "a"), "{error}");
    let lying = Tar::default().head(Head::file("a").size(1)).content("x").raw("not zero, and no header either").end();
    assert!(matches!(read(&lying), Err(LayerError::Header(HeaderError { offset: 1024, .. }))));
    let zero_inside = Tar::default().file("a", "").raw([0; 512]).file("b", "").end();
    assert!(matches!(read(&zero_inside), Err(LayerError::Header(HeaderError { offset: 512, .. }))));
}

#[test]
fn checksum_may_be_a_sum_of_signed_bytes() {
    let mut block = Head::file("b\u{f6}se").finish();
    let sum: i32 = block[..148].iter().chain(&block[156..]).map(|&b| i32::from(b as i8)).sum::<i32>() + 8 * 32;
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(entry(Tar::default().raw(block)).0.path, path("b\u{f6}se"));
}

#[test]
fn error_names_the_field_that_is_not_a_number() {
    for (offset, field) in [(100, "mode"), (108, "uid"), (116, "gid"), (124, "size"), (136, "mtime")] {
        let tar = Tar::default().head(Head::file("a").bytes(offset, "x"));
        assert_eq!(malformed(tar), ("a".to_owned(), MemberError::Number(field)));
    }
    let negative = Tar::default().head(Head::file("a").base_256(124, 12, -1));
    assert_eq!(malformed(negative).1, MemberError::Number("size"));
    let tar = Tar::default().pax(&[("size", "9223372036854775808")]).head(Head::file("a"));
    assert_eq!(malformed(tar).1, MemberError::Number("size"));
    assert_eq!(malformed(Tar::default().pax(&[("uid", "1x")]).file("a", "")).1, MemberError::Number("uid"));
    assert_eq!(malformed(Tar::default().entry(Head::new(b'x', "h"), "x")).1, MemberError::Record);
}

/// Header of a sparse file in old GNU format, with `pieces` as its map.
fn gnu_sparse(size: u64, pieces: &[(u64, u64)]) -> Head {
    let head = Head::new(b'S', "sparse").gnu().number(483, 12, size);
    pieces.iter().enumerate().fold(head, |head, (n, &(offset, length))| {
        head.number(386 + 24 * n, 12, offset).number(398 + 24 * n, 12, length)
    })
}

#[test]
fn old_gnu_map_is_in_the_header_and_the_blocks_after_it() {
    let tar = Tar::default().entry(gnu_sparse(10, &[(2, 2), (6, 1)]), "abc");
    assert_eq!(entry(tar).1, b"\0\0ab\0\0c\0\0\0");

    let pieces: Vec<(u64, u64)> = (0..30).map(|n| (n * 2, 1)).collect();
    let head = gnu_sparse(60, &pieces[..4]).bytes(482, [1]).size(30).finish();
    let more = |pieces: &[(u64, u64)], continues: u8| {
        let entries: String = pieces.iter().map(|(offset, length)| format!("{offset:011o}\0{length:011o}\0")).collect();
        let mut block = [0; 512];
        block[..entries.len()].copy_from_slice(entries.as_bytes());
        block[504] = continues;
        block
    };
    let tar = Tar::default().raw(head).raw(more(&pieces[4..25], 1)).raw(more(&pieces[25..], 0));
    let file = entry(tar.clone().content([b'x'; 30]));
    assert_eq!(file.1, b"x\0".repeat(30));
    assert_eq!(malformed_of(read(&tar.0[..1024])), ("sparse".to_owned(), MemberError::Truncated));
}

#[test]
fn pax_maps_are_in_records_or_in_the_content() {
    let content = b"\0\0ab\0\0c\0\0\0";
    let size = ("GNU.sparse.size", "10");
    let v00 = [
        size,
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "2"),
        ("GNU.sparse.numbytes", "2"),
        ("GNU.sparse.offset", "6"),
        ("GNU.sparse.numbytes", "1"),
    ];
    let file = entry(Tar::default().pax(&v00).file("s", "abc"));
    assert_eq!((&file.0.path, &file.1[..]), (&path("s"), &content[..]));

    let name = ("GNU.sparse.name", "dir/s");
    let v01 = [size, name, ("GNU.sparse.numblocks", "2"), ("GNU.sparse.map", "2,2,6,1")];
    let file = entry(Tar::default().pax(&v01).file("GNUSparseFile.0/s", "abc"));
    assert_eq!((&file.0.path, &file.1[..]), (&path("dir/s"), &content[..]));

    let v10 = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), name, ("GNU.sparse.realsize", "10")];
    let map = Tar::default().content("2\n2\n2\n6\n1\n").0;
    let file = entry(Tar::default().pax(&v10).entry(Head::file("GNUSparseFile.0/s"), [&map[..], b"abc"].concat()));
    assert_eq!((&file.0.path, &file.1[..]), (&path("dir/s"), &content[..]));
    assert_eq!(node(&file.0), &NodeKind::File { size: 10, content: () });

    let tar = Tar::default().pax(&v10).file("GNUSparseFile.0/s", "2\n2\n");
    assert_eq!(malformed(tar), ("dir/s".to_owned(), MemberError::Sparse("its map does not end")));
}

#[test]
fn malformed_sparse_files_are_refused() {
    let sparse = |records: &[(&str, &str)]| Tar::default().pax(records).file("a", "abc");
    for tar in [
        sparse(&[("GNU.sparse.map", "0,3")]),
        sparse(&[("GNU.sparse.size", "3"), ("GNU.sparse.map", "0,3,4")]),
        sparse(&[("GNU.sparse.size", "3"), ("GNU.sparse.map", "0,x")]),
        sparse(&[("GNU.sparse.size", "3"), ("GNU.sparse.map", "0,2")]),
        sparse(&[("GNU.sparse.size", "3"), ("GNU.sparse.map", "1,3")]),
        sparse(&[("GNU.sparse.size", "3"), ("GNU.sparse.numbytes", "3")]),
        sparse(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]),
        Tar::default().entry(Head::new(b'S', "a"), "abc"),
        Tar::default().entry(gnu_sparse(10, &[(2, 2), (3, 1)]), "abc"),
    ] {
        assert!(matches!(malformed(tar).1, MemberError::Sparse(_)));
    }
    let wrong = gnu_sparse(10, &[(2, 2)]).bytes(386, "x");
    assert!(matches!(malformed(Tar::default().entry(wrong, "ab")).1, MemberError::Number(_)));
}

#[test]
fn huge_hole_is_returned_as_one_part() {
    let size = 1_u64 << 40;
    let sparse = Tar::default().pax(&[("GNU.sparse.size", &size.to_string()), ("GNU.sparse.map", "4096,3")]);
    let blob = gzip(&sparse.file("a", "abc").end());
    let mut reader = LayerReader::new(&blob[..], expected(&blob), Limits::default()).unwrap();
    let entry = reader.next_entry().unwrap().unwrap();
    assert_eq!(node(&entry), &NodeKind::File { size, content: () });
    assert_eq!(reader.next_part().unwrap(), Some(ContentPart::Hole(4096)));
    assert_eq!(reader.next_part().unwrap(), Some(ContentPart::Data(b"abc")));
    assert_eq!(reader.next_part().unwrap(), Some(ContentPart::Hole(size - 4099)));
    assert_eq!(reader.next_part().unwrap(), None);
    assert_eq!(reader.next_part().unwrap(), None);
}

#[test]
fn large_file_is_read_in_large_parts() {
    let blob = gzip(&Tar::default().file("a", vec![1; 10 << 20]).end());
    let mut reader = LayerReader::new(&blob[..], expected(&blob), Limits::default()).unwrap();
    reader.next_entry().unwrap();
    let mut parts = 0;
    while reader.next_part().unwrap().is_some() {
        parts += 1;
    }
    assert!(parts <= 41, "{parts}");
}

#[test]
fn content_may_be_skipped_or_read_in_part() {
    let tar = Tar::default().file("a", vec![1; 700_000]).file("b", vec![2; 700_000]).file("c", "c").end();
    let mut reader = LayerReader::new(&tar[..], expected(&tar), Limits::default()).unwrap();
    reader.next_entry().unwrap();
    reader.next_entry().unwrap();
    assert!(matches!(reader.next_part().unwrap(), Some(ContentPart::Data([2, ..]))));
    assert_eq!(reader.next_entry().unwrap().unwrap().path, path("c"));
    assert_eq!(reader.next_part().unwrap(), Some(ContentPart::Data(b"c")));
    assert_eq!(reader.finish().unwrap().diff_id, DiffId(Digest::of(&tar)));
}
