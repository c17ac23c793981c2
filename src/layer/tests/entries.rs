use super::*;

#[test]
fn every_kind_of_node_keeps_its_metadata() {
    let device = |type_flag| Head::new(type_flag, "a").number(329, 8, 0o7777).number(337, 8, 0o3_777_777);
    let number = DeviceNumber { major: 4095, minor: 1_048_575 };
    for (head, expected) in [
        (Head::new(b'5', "a/"), NodeKind::Directory),
        (Head::new(b'2', "a").link("../b//c/"), NodeKind::Symlink(b"../b//c/"[..].into())),
        (device(b'3'), NodeKind::CharacterDevice(number)),
        (device(b'4'), NodeKind::BlockDevice(number)),
        (Head::new(b'4', "a"), NodeKind::BlockDevice(DeviceNumber { major: 0, minor: 0 })),
        (Head::new(b'6', "a"), NodeKind::Fifo),
        (Head::file("a"), NodeKind::File { size: 0, content: () }),
    ] {
        let head = head.number(100, 8, 0o107_755).number(108, 8, 12).number(116, 8, 34).number(136, 12, 56);
        let (entry, content) = entry(Tar::default().head(head));
        assert_eq!(node(&entry), &expected);
        let metadata = metadata(&entry);
        assert_eq!((metadata.mode, metadata.uid, metadata.gid, metadata.mtime.seconds), (0o7755, 12, 34, 56));
        assert!(content.is_empty());
    }
}

#[test]
fn hard_link_names_a_path_of_the_image() {
    let tar = Tar::default().head(Head::new(b'1', "./a").link("/usr//./b").bytes(108, "no number"));
    let expected = LayerEntry { path: path("a"), kind: EntryKind::HardLink(path("usr/b")) };
    assert_eq!(entry(tar), (expected, vec![]));
    let no_target = Tar::default().head(Head::new(b'1', "a"));
    assert_eq!(problem(no_target), ("a".to_owned(), EntryError::NoTarget));
    let cleaned = Tar::default().head(Head::new(b'1', "a").link("../c/../b"));
    assert_eq!(entry(cleaned).0.kind, EntryKind::HardLink(path("b")));
}

#[test]
fn whiteout_may_have_any_type_and_content() {
    for type_flag in [0, b'0', b'1', b'2', b'3', b'5', b'6', b'9'] {
        let head = Head::new(type_flag, "dir/.wh.a").link("b").bytes(108, "no number");
        let whiteout = LayerEntry { path: path("dir/a"), kind: EntryKind::Whiteout };
        assert_eq!(entry(Tar::default().head(head)), (whiteout, vec![]));
    }
    let entries = entries(Tar::default().file(".wh.a", "content").file("dir/.wh..wh..opq", "content"));
    let opaque = LayerEntry { path: path("dir"), kind: EntryKind::Opaque };
    assert_eq!(entries[1], (opaque, vec![]));
    assert_eq!(entries[0].1, b"");
}

#[test]
fn internal_files_of_aufs_are_returned_for_hard_links_to_them() {
    let tar = Tar::default()
        .head(Head::new(b'5', "./.wh..wh.plnk/"))
        .file("./.wh..wh.plnk/1.2", "content")
        .head(Head::new(b'3', ".wh..wh.orph/null"))
        .file("a", "a");
    let (entries, summary) = read(&tar.end()).unwrap();
    let paths: Vec<_> = entries.iter().map(|(entry, content)| (&entry.path, content.as_slice())).collect();
    assert_eq!(paths, [(&path(".wh..wh.plnk/1.2"), &b"content"[..]), (&path("a"), b"a")]);
    assert!(summary.losses.is_empty());
}

#[test]
fn link_to_an_internal_file_of_aufs_that_cannot_be_published_is_a_loss() {
    let tar = Tar::default()
        .head(Head::new(b'3', ".wh..wh.plnk/1"))
        .head(Head::new(b'1', ".wh..wh.plnk/2").link(".wh..wh.plnk/1"))
        .head(Head::new(b'1', "a").link(".wh..wh.plnk/2"))
        .head(Head::new(b'6', ".wh..wh.plnk/3"))
        .head(Head::new(b'1', "b").link(".wh..wh.plnk/3"));
    let (entries, summary) = read(&tar.end()).unwrap();
    let kinds: Vec<_> = entries.iter().map(|(entry, _)| (entry.path.to_string(), &entry.kind)).collect();
    assert_eq!(kinds[0], ("/a".to_owned(), &EntryKind::Unpublished));
    assert!(matches!(kinds[1].1, EntryKind::Node(_, NodeKind::Fifo)));
    assert_eq!(kinds[2], ("/b".to_owned(), &EntryKind::HardLink(path(".wh..wh.plnk/3"))));
    let losses: Vec<_> = summary.losses.kinds().collect();
    assert_eq!(losses, [(LossKind::OverlayDevice, 1, &[path("a")][..])]);
}

#[test]
fn invalid_path_is_refused() {
    assert_eq!(problem(Tar::default().file("a/.wh.", "")), ("a/.wh.".to_owned(), EntryError::BadWhiteout));
    let nul = Tar::default().pax(&[("path", "a\0b")]).file("a", "");
    assert!(matches!(problem(nul).1, EntryError::Path(PathError::Nul(_))));
    for (length, is_accepted) in [(254, true), (255, true), (256, false)] {
        let outcome = read(&Tar::default().pax(&[("path", &"n".repeat(length))]).file("a", "").end());
        assert_eq!(outcome.is_ok(), is_accepted, "{length}");
    }
}

#[test]
fn symlink_target_has_1_to_4095_bytes() {
    for (length, expected) in [
        (0, Err(EntryError::NoTarget)),
        (1, Ok(())),
        (4094, Ok(())),
        (4095, Ok(())),
        (4096, Err(EntryError::TargetTooLong)),
    ] {
        let target = "t".repeat(length);
        for tar in [Tar::default().pax(&[("linkpath", &target)]), Tar::default().long(b'K', &target)] {
            let outcome = read(&tar.head(Head::new(b'2', "a")).end());
            match &expected {
                Ok(()) => {
                    assert_eq!(node(&outcome.unwrap().0[0].0), &NodeKind::Symlink(target.clone().into_bytes().into()));
                }
                Err(expected) => assert_eq!(&problem_of(outcome).1, expected),
            }
        }
    }
    let nul = Tar::default().pax(&[("linkpath", "a\0b")]).head(Head::new(b'2', "a"));
    assert_eq!(problem(nul).1, EntryError::TargetWithNul);
}

#[test]
fn ids_have_32_bits() {
    for (text, expected) in [
        ("4294967293", Ok(4_294_967_293)),
        ("4294967294", Ok(4_294_967_294)),
        // Linux uses this number for "no ID".
        ("4294967295", Err(4_294_967_295)),
        ("4294967296", Err(4_294_967_296)),
        ("-1", Err(-1)),
    ] {
        for field in ["uid", "gid"] {
            let outcome = read(&Tar::default().pax(&[(field, text)]).file("a", "").end());
            match expected {
                Ok(value) => {
                    let entry = &outcome.unwrap().0[0].0;
                    let metadata = metadata(entry);
                    assert_eq!(if field == "uid" { metadata.uid } else { metadata.gid }, value);
                }
                Err(value) => assert_eq!(problem_of(outcome).1, EntryError::Id { field, value }),
            }
        }
    }
}

#[test]
fn hard_link_to_an_entry_that_cannot_be_published_is_a_loss() {
    let link = |path: &str| Head::new(b'1', path).link("s");
    let tar = Tar::default().entry(Head::new(b's', "s"), "").head(link("a")).file("s", "").head(link("b"));
    let (entries, summary) = read(&tar.end()).unwrap();
    assert_eq!(entries[1].0.kind, EntryKind::Unpublished);
    assert_eq!(entries[3].0.kind, EntryKind::HardLink(path("s")));
    assert_eq!(summary.losses.count(LossKind::UnknownType), 2);
}

#[test]
fn device_numbers_have_12_and_20_bits() {
    let device = |major, minor| Tar::default().head(Head::new(b'3', "a").number(329, 8, major).number(337, 8, minor));
    assert_eq!(entries(device(4095, 1_048_575)).len(), 1);
    assert_eq!(problem(device(4096, 0)).1, EntryError::Device { major: 4096, minor: 0 });
    assert_eq!(problem(device(0, 1_048_576)).1, EntryError::Device { major: 0, minor: 1_048_576 });
    let extended = [("SCHILY.devmajor", "8"), ("SCHILY.devminor", "500000")];
    let tar = Tar::default().pax(&extended).head(Head::new(b'4', "a"));
    assert_eq!(node(&entry(tar).0), &NodeKind::BlockDevice(DeviceNumber { major: 8, minor: 500_000 }));
}

#[test]
fn attributes_are_kept_with_any_bytes() {
    let tar = Tar::default()
        .pax(&[("SCHILY.xattr.security.capability", "\u{1}\0\0\n="), ("SCHILY.xattr.user.zero", "\0")])
        .file("a", "")
        .pax(&[("SCHILY.xattr.user.zero", "\0"), ("SCHILY.xattr.security.capability", "\u{1}\0\0\n=")])
        .file("b", "");
    let entries = entries(tar);
    let xattrs = |n: usize| metadata(&entries[n].0).xattrs.clone().unwrap();
    assert_eq!(xattrs(0)[&b"security.capability"[..]][..], b"\x01\0\0\n="[..]);
    assert_eq!(xattrs(0)[&b"user.zero"[..]][..], b"\0"[..]);
    assert!(std::sync::Arc::ptr_eq(&xattrs(0), &xattrs(1)), "equal attributes are not shared");
}

#[test]
fn entries_and_attributes_that_cvmfs_cannot_represent_are_listed_as_losses() {
    let long = "v".repeat(256);
    let tar = Tar::default()
        .pax(&[("SCHILY.xattr.user.hash", "x"), ("SCHILY.xattr.user.long", &long), ("SCHILY.xattr.user.tag", "x")])
        .file("a", "")
        .pax(&[("SCHILY.acl.access", "user::rwx,user:7:r--"), ("SCHILY.acl.default", "user::rwx")])
        .head(Head::new(b'5', "acl/"))
        .head(Head::new(b'3', "device"))
        .entry(Head::new(b's', "socket"), "content")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", "y")])
        .head(Head::new(b'5', "opaque/"));
    let (entries, summary) = read(&tar.end()).unwrap();
    let paths: Vec<_> = entries.iter().map(|(entry, _)| entry.path.to_string()).collect();
    assert_eq!(paths, ["/a", "/acl", "/device", "/socket", "/opaque"]);
    let (unpublished, published): (Vec<_>, Vec<_>) =
        entries.iter().map(|(entry, _)| entry).partition(|entry| entry.kind == EntryKind::Unpublished);
    assert_eq!(unpublished.len(), 2);
    assert!(published.iter().all(|entry| metadata(entry).xattrs.is_none()));
    let losses: Vec<_> = summary.losses.kinds().map(|(kind, count, paths)| (kind, count, paths[0].clone())).collect();
    let expected = [
        (LossKind::XattrValueTooLong, "a"),
        (LossKind::MagicXattr, "a"),
        (LossKind::Acl, "acl"),
        (LossKind::OverlayXattr, "opaque"),
        (LossKind::OverlayDevice, "device"),
        (LossKind::UnknownType, "socket"),
    ];
    assert_eq!(losses, expected.map(|(kind, raw)| (kind, 1, path(raw))));
}
