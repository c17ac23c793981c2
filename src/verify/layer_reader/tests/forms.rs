//! Known archives: what each form means, independently of any other reader.

use super::archives::{Dialect, Extension, Member, Number, SparseForm, archive};
use super::read;
use crate::layer::{DeviceNumber, EntryKind, LayerEntry, LayerError, NodeKind};
use crate::metadata::{Metadata, Timestamp};
use crate::path::EntryPath;
use crate::verify::content::ContentDigest;
use crate::verify::layer_reader::{EntryProblem, ReadLayerError};

fn path(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).unwrap()
}

fn entries(members: &[Member]) -> Vec<LayerEntry<ContentDigest>> {
    read(&archive(members)).unwrap().entries
}

/// Reads an archive of one member.
fn entry(member: Member) -> LayerEntry<ContentDigest> {
    let mut entries = entries(&[member]);
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn node(member: Member) -> NodeKind<ContentDigest> {
    match entry(member).kind {
        EntryKind::Node(_, node) => node,
        other => panic!("{other:?} is no node"),
    }
}

fn metadata(member: Member) -> Metadata {
    match entry(member).kind {
        EntryKind::Node(metadata, _) => metadata,
        other => panic!("{other:?} is no node"),
    }
}

fn file(content: &[u8]) -> NodeKind<ContentDigest> {
    NodeKind::File { size: content.len() as u64, content: ContentDigest::of(content) }
}

fn problem(members: &[Member]) -> EntryProblem {
    match read(&archive(members)) {
        Err(ReadLayerError::Entry { problem, .. }) => problem,
        other => panic!("{other:?} is not about an entry"),
    }
}

#[test]
fn path_and_link_come_from_header_and_extensions() {
    let long = ["directory"; 30].join("/");
    let prefixed = |dialect| Member { prefix: b"a/b".to_vec(), ..Member::new(b'0', "c") }.dialect(dialect);
    let of_pax = || Member::new(b'0', "cut").pax(&[("path", &long)]);
    let of_gnu = |member: Member| member.extension(Extension::LongPath(b"gnu".to_vec()));
    for (member, expected) in [
        (Member::new(b'0', "./a//b"), "a/b"),
        (prefixed(Dialect::Ustar), "a/b/c"),
        (prefixed(Dialect::OldUstar), "a/b/c"),
        (prefixed(Dialect::Star), "a/b/c"),
        (prefixed(Dialect::Gnu), "c"),
        (prefixed(Dialect::V7), "c"),
        (of_pax(), &long),
        (of_gnu(of_pax()), "gnu"),
        (of_pax().pax(&[("uid", "1")]), "cut"),
    ] {
        assert_eq!(entry(member).path, path(expected));
    }
    let link = |flag| Member::new(flag, "a").link("cut").pax(&[("linkpath", "/x/../target")]);
    assert_eq!(entry(link(b'1')).kind, EntryKind::HardLink(path("target")));
    assert_eq!(node(link(b'2')), NodeKind::Symlink(b"/x/../target"[..].into()));
    let long_link = link(b'2').extension(Extension::LongLink(b"gnu".to_vec()));
    assert_eq!(node(long_link), NodeKind::Symlink(b"gnu"[..].into()));
    assert_eq!(problem(&[Member::new(b'1', "a")]), EntryProblem::Target);
}

#[test]
fn size_comes_from_the_header_or_the_pax_header() {
    for size in [None, Some(Number::Base256(5)), Some(Number::Octal(0)), Some(Number::Octal(0o77_777_777_777))] {
        let member = Member { size, ..Member::new(b'0', "a").content("12345") }.pax(&[("size", "5")]);
        assert_eq!(entries(&[member, Member::new(b'5', "b")]).len(), 2);
    }
    let member = Member::new(b'0', "a").content("12345").pax(&[("size", "4")]);
    assert_eq!(problem(&[member]), EntryProblem::TwoSizes);
    for flag in b'1'..=b'6' {
        let member = Member { size: Some(Number::Octal(512)), ..Member::new(flag, "a").link("b") };
        let entries = entries(&[member, Member::new(b'0', "b").content("x")]);
        assert!(matches!(&entries.last().unwrap().kind, EntryKind::Node(_, node) if *node == file(b"x")));
    }
    let directory = Member { size: Some(Number::Octal(512)), ..Member::new(0, "a/") }.dialect(Dialect::V7);
    assert_eq!(node(directory), NodeKind::Directory);
    assert_eq!(node(Member::new(b'0', "a/").content("x")), file(b"x"));
}

#[test]
fn holes_of_every_sparse_form_are_zeros() {
    use SparseForm::{OldGnu, Pax00, Pax01, Pax10};
    let expected = [&[0; 3][..], b"ab", &[0; 600], b"cdef", &[0; 7]].concat();
    for form in [OldGnu, Pax00, Pax01, Pax10] {
        let sparse = Member::new(b'0', "s").content("abcdef").sparse(form, &[(3, 2), (600, 4)], 7);
        assert_eq!(node(sparse), file(&expected), "{form:?}");
        let many: Vec<(u64, u64)> = vec![(1, 1); 60];
        let sparse = Member::new(b'0', "s").content("x").sparse(form, &many, 0);
        assert_eq!(node(sparse), file(&b"\0x".repeat(60)), "{form:?}");
        let hole = Member::new(b'0', "s").sparse(form, &[], 1 << 32);
        assert!(matches!(node(hole), NodeKind::File { size: 0x1_0000_0000, .. }));
    }
    let named = Member::new(b'0', "GNUSparseFile.1/s").content("x").pax(&[("GNU.sparse.name", "dir/s")]);
    assert_eq!(entry(named.sparse(Pax10, &[(1, 1)], 1)).path, path("dir/s"));
}

#[test]
fn block_with_a_map_must_be_whole() {
    let old = archive(&[Member::new(b'0', "s").sparse(SparseForm::OldGnu, &[(1, 0); 5], 0)]);
    let of_pax = archive(&[Member::new(b'0', "s").sparse(SparseForm::Pax10, &[], 0)]);
    for (whole, end) in [(&old, 1024), (&of_pax, 2048)] {
        assert!(read(&whole[..end]).is_ok());
        let cut = read(&whole[..end - 1]);
        assert!(matches!(cut, Err(ReadLayerError::Entry { problem: EntryProblem::Truncated, .. })));
    }
}

#[test]
fn sparse_file_with_a_wrong_map_is_refused() {
    let with = |records: &[(&str, &str)]| Member::new(b'0', "s").content("abc").pax(records);
    for member in [
        with(&[("GNU.sparse.size", "3"), ("GNU.sparse.map", "0,2")]),
        with(&[("GNU.sparse.size", "3"), ("GNU.sparse.map", "1,3")]),
        with(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "4,2,0,1")]),
        with(&[("GNU.sparse.size", "3"), ("GNU.sparse.map", "0,3,3")]),
        with(&[("GNU.sparse.map", "0,3")]),
        with(&[("GNU.sparse.size", "3"), ("GNU.sparse.numbytes", "3")]),
        with(&[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0"), ("GNU.sparse.size", "3")]),
        with(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.size", "3")]),
        Member::new(b'S', "s").content("abc"),
    ] {
        assert!(matches!(problem(&[member]), EntryProblem::Sparse(_)));
    }
}

#[test]
fn metadata_comes_from_the_header_or_the_pax_header() {
    let member = || Member {
        mode: Number::Octal(0o104_755),
        uid: Number::Base256(3_000_000_000),
        gid: Number::Spaces(7),
        mtime: Number::Base256(-5),
        ..Member::new(b'0', "a")
    };
    let mtime = Timestamp { seconds: -5, nanoseconds: 0 };
    let expected = Metadata { mode: 0o4755, uid: 3_000_000_000, gid: 7, mtime, xattrs: None };
    assert_eq!(metadata(member()), expected);
    let of_pax = metadata(member().pax(&[("uid", "4294967294"), ("gid", "8"), ("mtime", "-1.25"), ("gid", "")]));
    let mtime = Timestamp { seconds: -2, nanoseconds: 750_000_000 };
    assert_eq!(of_pax, Metadata { uid: u32::MAX - 1, mtime, ..expected });
    let after_global = Extension::Global(vec![(b"uid".to_vec(), b"9".to_vec())]);
    assert_eq!(metadata(Member::new(b'0', "a").pax(&[("gid", "5")]).extension(after_global)).gid, 0);
    assert_eq!(problem(&[Member::new(b'0', "a").pax(&[("uid", "4294967295")])]), EntryProblem::Number("uid"));
}

#[test]
fn attributes_are_decoded_and_filtered() {
    let records = [
        ("SCHILY.xattr.user.a", "line\nfeed"),
        ("LIBARCHIVE.xattr.user.a", "AA=="),
        ("LIBARCHIVE.xattr.user.b%3d%", "aGk"),
        ("SCHILY.xattr.user.empty", ""),
        ("SCHILY.xattr.user.hash", "x"),
    ];
    let xattrs = metadata(Member::new(b'0', "a").pax(&records)).xattrs.unwrap();
    let xattrs: Vec<_> = xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    assert_eq!(xattrs, [(&b"user.a"[..], &b"line\nfeed"[..]), (b"user.b=%", b"hi")]);
}

#[test]
fn devices_have_the_numbers_of_either_header() {
    let device = |dialect| {
        let device = [Number::Octal(259), Number::Octal(70_000)];
        Member { device, ..Member::new(b'4', "a") }.dialect(dialect)
    };
    let number = |major, minor| NodeKind::BlockDevice(DeviceNumber { major, minor });
    assert_eq!(node(device(Dialect::Ustar)), number(259, 70_000));
    assert_eq!(node(device(Dialect::Gnu)), number(259, 70_000));
    assert_eq!(node(device(Dialect::V7)), number(0, 0));
    assert_eq!(node(device(Dialect::Ustar).pax(&[("SCHILY.devmajor", "8")])), number(8, 70_000));
    assert_eq!(node(Member::new(b'6', "a")), NodeKind::Fifo);
}

#[test]
fn marks_of_a_layer_are_recognised_by_their_names() {
    let whiteout = entry(Member::new(b'1', "a/.wh.b").link("c").pax(&[("uid", "-1")]));
    assert_eq!(whiteout, LayerEntry { path: path("a/b"), kind: EntryKind::Whiteout });
    let opaque = entry(Member::new(b'0', "a/.wh..wh..opq").content("x"));
    assert_eq!(opaque, LayerEntry { path: path("a"), kind: EntryKind::Opaque });
    for raw in ["a/.wh.", "a/.wh..", "a/.wh..."] {
        assert_eq!(problem(&[Member::new(b'0', raw)]), EntryProblem::BadWhiteout, "{raw}");
    }
    let unpublished = entries(&[
        Member::new(b'3', "a"),
        Member::new(b'1', "b").link("a"),
        Member::new(b'3', ".wh..wh.plnk/1"),
        Member::new(b'1', "c").link(".wh..wh.plnk/1"),
        Member::new(b's', "d").content("x"),
    ]);
    let paths: Vec<String> = unpublished.iter().map(|entry| entry.path.to_string()).collect();
    assert_eq!(paths, ["/a", "/b", "/c", "/d"]);
    assert!(unpublished.iter().all(|entry| entry.kind == EntryKind::Unpublished));
}

#[test]
fn blob_must_be_an_archive_that_ends_as_expected() {
    let whole = archive(&[Member::new(b'0', "a").content("x")]);
    for length in [1024, 513, 1536] {
        assert_eq!(read(&whole[..length]).unwrap().entries.len(), 1, "{length}");
    }
    assert!(matches!(read(&whole[..512]), Err(ReadLayerError::Entry { problem: EntryProblem::Truncated, .. })));
    assert!(matches!(read(&whole[..1100]), Err(ReadLayerError::Header { offset: 1024, .. })));
    assert!(matches!(read(b"no archive"), Err(ReadLayerError::Blob(LayerError::NotAnArchive))));
    let single = [&whole[..1024], &[0; 512], &whole].concat();
    assert!(matches!(read(&single), Err(ReadLayerError::Header { offset: 1024, .. })));
    let extension = archive(&[Member::new(b'L', "x").content("long")]);
    assert!(matches!(read(&extension), Err(ReadLayerError::Entry { problem: EntryProblem::NothingExtended, .. })));
}
