//! Properties of entries are kept: names, attributes, times, devices, and sparse content.

use std::collections::BTreeMap;

use tar::{EntryType, Header};

use super::{BLOCK_DEVICE, CHARACTER_DEVICE, DIRECTORY, FIFO, FILE, TYPE, published, tree_of};
use crate::strict::Content;
use crate::support::{DeviceKind, NAME, TestImage, TestLayer, TestRepository};

#[test]
fn all_permission_bits_are_kept() {
    let modes = [0o4755, 0o2755, 0o1777, 0o7777, 0, 0o444, 0o111, 0o6711];
    let image = TestImage::new().layer(|layer| {
        modes.iter().fold(layer, |layer, &mode| {
            layer.file(format!("f{mode:o}"), "x").mode(mode).dir(format!("d{mode:o}")).mode(mode)
        })
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        for mode in modes {
            assert_eq!(tree.get(format!("f{mode:o}")).mode, FILE | mode);
            assert_eq!(tree.get(format!("d{mode:o}")).mode, DIRECTORY | mode);
        }
    }
}

#[test]
fn widened_modes_add_owner_permissions_in_the_root_file_system_only() {
    let image = TestImage::new().layer(|layer| layer.file("f", "").mode(0o4000).dir("d").mode(0o1005));
    let repository = TestRepository::with_settings("modes = \"widened\"");
    repository.convert(&image, NAME, &[]).expect_code(0);
    let (flat, layer) = (repository.flat(&image), repository.layer(&image, 0));
    assert_eq!((flat.get("f").mode, flat.get("d").mode), (FILE | 0o4600, DIRECTORY | 0o1705));
    assert_eq!((layer.get("f").mode, layer.get("d").mode), (FILE | 0o4000, DIRECTORY | 0o1005));
}

#[test]
fn owners_of_everything_are_kept() {
    let (uid, gid) = (4_000_000_000, 3_999_999_999);
    let image = TestImage::new().layer(|layer| {
        let layer = layer.file("f", "").owner(uid, gid).dir("d").owner(uid, gid).symlink("l", "f").owner(uid, gid);
        layer.fifo("p").owner(uid, gid).device("c", DeviceKind::Character, 1, 3).owner(uid, gid).hardlink("h", "f")
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        for path in ["f", "d", "l", "p", "c", "h"] {
            assert_eq!((tree.get(path).uid, tree.get(path).gid), (uid, gid), "{path}");
        }
    }
}

#[test]
fn extended_attributes_are_kept_in_both_spellings() {
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let image = TestImage::new().layer(|layer| {
        let layer = layer.file("ping", "").xattr("security.capability", capability).dir("d").xattr("user.d", "of d");
        // `LIBARCHIVE.xattr` holds names in URL encoding and values in base64.
        let layer = layer.file("bsd", "").record("LIBARCHIVE.xattr.user.na%20me", "dmFsdWUA");
        layer.file("edge", "").xattr("user.full", [0xff; 255]).xattr("user.empty", "")
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        let value = |path: &str, name: &str| tree.get(path).xattrs.get(name.as_bytes()).cloned();
        assert_eq!(value("ping", "security.capability"), Some(capability.to_vec()));
        assert_eq!(value("d", "user.d"), Some(b"of d".to_vec()));
        assert_eq!(value("bsd", "user.na me"), Some(b"value\0".to_vec()));
        // Go's tar reader, and so every container engine, treats an empty value as a missing one.
        assert_eq!((value("edge", "user.full"), value("edge", "user.empty")), (Some(vec![0xff; 255]), None));
    }
    assert_eq!(repository.losses(), BTreeMap::new());
}

#[test]
fn entries_that_cvmfs_cannot_hold_are_left_out_and_reported() {
    let mut socket = Header::new_ustar();
    socket.set_path("odd").unwrap();
    socket.set_entry_type(EntryType::new(b'Z'));
    socket.set_size(0);
    socket.set_cksum();
    let image = TestImage::new().layer(|layer| {
        let layer = layer.file("long", "").xattr("user.long", [b'v'; 256]).xattr("user.short", "v");
        let layer = (0..256).fold(layer.file("many", ""), |layer, n| layer.xattr(format!("user.{n:03}"), "v"));
        let layer = layer.file("magic", "").xattr("user.hash", "v");
        let layer = layer.file("acl", "").record("SCHILY.acl.access", "user::rwx");
        let layer = layer.dir("overlay").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.redirect", "/x");
        let layer = ["user.fuseoverlayfs.opaque", "security.fuseoverlayfs.redirect", "user.containers.override_stat"]
            .iter()
            .fold(layer, |layer, name| layer.xattr(name, "0:0:0755"));
        let layer = layer.file("name", "").xattr("n".repeat(256), "v");
        layer.device("fake", DeviceKind::Character, 0, 0).raw_entry(socket, "").file("a/x", "").hardlink("b/x", "a/x")
    });
    let (repository, tree) = published(&image);
    assert!(!tree.has("fake") && !tree.has("odd"));
    assert_eq!(tree.get("long").xattrs.keys().collect::<Vec<_>>(), [b"user.short"]);
    assert_eq!((tree.get("many").xattrs.len(), tree.get("magic").xattrs.len()), (255, 0));
    assert_eq!((tree.get("overlay").xattrs.len(), tree.get("name").xattrs.len()), (0, 0));
    let at = |path: &str| (1, vec![path.to_owned()]);
    let expected = [
        ("acl", at("acl")),
        ("link-across-folders", at("b/x")),
        ("magic-xattr", at("magic")),
        ("overlay-device", at("fake")),
        ("overlay-xattr", at("overlay")),
        ("too-many-xattrs", at("many")),
        ("unknown-type", at("odd")),
        ("xattr-name", at("name")),
        ("xattr-value-too-long", at("long")),
    ];
    assert_eq!(repository.losses(), expected.map(|(kind, loss)| (kind.to_owned(), loss)).into());
}

#[test]
fn devices_and_pipes_are_kept() {
    let image = TestImage::new().layer(|layer| {
        let layer = layer.device("dev/null", DeviceKind::Character, 1, 3).mode(0o666).device(
            "dev/sda",
            DeviceKind::Block,
            8,
            17,
        );
        layer.device("dev/big", DeviceKind::Block, 4095, 1_048_575).fifo("dev/pipe").mode(0o622)
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        assert_eq!((tree.get("dev/null").mode, tree.get("dev/null").rdev), (CHARACTER_DEVICE | 0o666, Some(0x103)));
        assert_eq!((tree.get("dev/sda").mode & TYPE, tree.get("dev/sda").rdev), (BLOCK_DEVICE, Some(0x811)));
        // The kernel's encoding of devices: low byte of the minor number, twelve bits of the major, the rest of the minor.
        let big = 0xff | 0xfff << 8 | 0xfff << 20;
        assert_eq!(tree.get("dev/big").rdev, Some(big));
        assert_eq!(tree.get("dev/pipe").mode, FIFO | 0o622);
    }
}

#[test]
fn odd_names_are_kept() {
    let long = [b'n'; 255];
    let names: [&[u8]; 9] = [&long, b"\xff\xfe", b"new\nline", b" ", b"-rf", b"\\", b"\"'$(x)", b"\xc3\xa9", b"..."];
    let image = TestImage::new().layer(|layer| {
        names.iter().fold(layer, |layer, name| {
            layer.file(name, name).file([b"d/", *name, b"/f"].concat(), "").symlink([b"l", &name[1..]].concat(), name)
        })
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        for name in names {
            assert_eq!(tree.get(name).content, Some(Content::of(name)));
            assert!(tree.has([b"d/", name, b"/f"].concat()));
        }
        assert_eq!(tree.get([&b"l"[..], &long[1..]].concat()).target.as_deref(), Some(&long[..]));
    }
}

#[test]
fn deep_paths_are_kept() {
    let path = vec!["d".repeat(39); 100].join("/");
    let image = TestImage::new().layer(|layer| layer.file(&path, "deep"));
    assert_eq!(tree_of(&image).text(&path), "deep");
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let times = [(0, 0), (-1, 0), (-1, 500_000_000), (-62_135_596_800, 1), (1, 999_999_999), (1 << 40, 0)];
    let image = TestImage::new().layer(|layer| {
        times.iter().enumerate().fold(layer, |layer, (n, &(seconds, nanoseconds))| {
            let layer = layer.file(format!("f{n}"), "").mtime(seconds, nanoseconds);
            layer
                .symlink(format!("l{n}"), "x")
                .mtime(seconds, nanoseconds)
                .dir(format!("d{n}"))
                .mtime(seconds, nanoseconds)
        })
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        for (n, time) in times.into_iter().enumerate() {
            for kind in ["f", "l", "d"] {
                assert_eq!(tree.get(format!("{kind}{n}")).mtime, time, "{kind}{n}");
            }
        }
    }
}

#[test]
fn time_of_a_directory_does_not_depend_on_the_order_of_entries() {
    let image = TestImage::new()
        .layer(|layer| {
            layer.dir("before").mtime(5, 6).file("before/a", "").file("after/a", "").dir("after").mtime(7, 8)
        })
        .layer(|layer| layer.file("before/b", "").file("after/b", ""));
    let tree = tree_of(&image);
    assert_eq!((tree.get("before").mtime, tree.get("after").mtime), ((5, 6), (7, 8)));
}

#[test]
fn clients_show_link_targets_unchanged() {
    let long = "t".repeat(4095);
    let targets = ["$(CVMFS_ARCH)", "a/$(HOME:-x)/$(", "$$((", "/abs", "../up", "$(:-$()", long.as_str()];
    let image = TestImage::new().layer(|layer| {
        targets.iter().enumerate().fold(layer, |layer, (n, target)| layer.symlink(format!("l{n}"), target))
    });
    let (repository, tree) = published(&image);
    for tree in [tree, repository.layer(&image, 0)] {
        for (n, target) in targets.into_iter().enumerate() {
            assert_eq!(tree.target(format!("l{n}")), target);
        }
    }
    assert_eq!(repository.losses(), BTreeMap::new());
}

#[test]
fn long_names_of_gnu_tar_are_read() {
    let long_name = |kind: EntryType, text: &str| {
        let mut header = Header::new_gnu();
        header.set_path("././@LongLink").unwrap();
        header.set_entry_type(kind);
        header.set_size(text.len() as u64 + 1);
        header.set_cksum();
        (header, [text.as_bytes(), b"\0"].concat())
    };
    let (name, target) = (format!("d/{}", "n".repeat(200)), "t".repeat(300));
    let (name_header, name_data) = long_name(EntryType::GNULongName, &name);
    let (target_header, target_data) = long_name(EntryType::GNULongLink, &target);
    let image = TestImage::new().layer(|layer| {
        layer.raw_entry(name_header, name_data).raw_entry(target_header, target_data).symlink("cut", "cut")
    });
    assert_eq!(tree_of(&image).target(name), target);
}

#[test]
fn global_headers_are_not_entries_and_do_not_affect_others() {
    let mut global = Header::new_ustar();
    global.set_path("pax_global_header").unwrap();
    global.set_entry_type(EntryType::XGlobalHeader);
    let record = b"14 mtime=42.5\n8 uid=7\n8 gid=8\n25 SCHILY.xattr.user.a=v\n";
    global.set_size(record.len() as u64);
    global.set_cksum();
    let image = TestImage::new().layer(|layer| layer.raw_entry(global, record).file("a", ""));
    let tree = tree_of(&image);
    assert_eq!(tree.paths(), ["", "a"]);
    let plain = tree_of(&TestImage::new().layer(|layer| layer.file("a", "")));
    assert_eq!(tree.get("a"), plain.get("a"));
}

#[test]
fn holes_of_sparse_files_are_zeros() {
    // PAX format 1.0: the map is in front of the data, as decimal lines, padded to a block.
    let mut stored = b"2\n5\n3\n1000\n2\n".to_vec();
    stored.resize(512, 0);
    stored.extend_from_slice(b"abcyz");
    let sparse = |layer: TestLayer| {
        layer
            .file("GNUSparseFile.0/f", &stored)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", "f")
            .record("GNU.sparse.realsize", "2000")
    };
    let mut expected = vec![0; 2000];
    expected[5..8].copy_from_slice(b"abc");
    expected[1000..1002].copy_from_slice(b"yz");
    let tree = tree_of(&TestImage::new().layer(sparse));
    assert_eq!(tree.paths(), ["", "f"]);
    assert_eq!((tree.get("f").size, &tree.get("f").content), (2000, &Some(Content::of(&expected))));
}
