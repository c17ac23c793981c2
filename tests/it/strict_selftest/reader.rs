//! The strict reader lists what clients see.

use super::forge::{FQRN, Forge};
use crate::strict::{Content, Entry, Reader};

#[test]
fn reader_lists_what_clients_see() {
    let repository = Forge::new().build();
    let reader = Reader::open(repository.path());
    let entries = reader.walk("");
    let entry = |path: &str| -> &Entry { &entries[path.as_bytes()] };

    assert_eq!(reader.list("/"), ["big", "etc", "link", "nested", "null", "pipe", "raw"]);
    assert_eq!(reader.list("nested"), ["deep"]);
    assert_eq!(reader.list("nested/deep"), ["\\xff"]);
    let passwd = entry("etc/passwd");
    assert_eq!((passwd.mode, passwd.uid, passwd.gid, passwd.mtime), (0o100644, 4_000_000_000, 5, (1_600_000_000, 5)));
    assert_eq!((passwd.size, &passwd.content), (5, &Some(Content::of(b"root\n"))));
    let xattrs = [(b"user.a".to_vec(), b"b".to_vec()), (b"user.c".to_vec(), Vec::new())];
    assert_eq!(passwd.xattrs, xattrs.into());
    assert_eq!(entry("big").content, Some(Content::of(b"0123456789")));
    assert_eq!(entry("raw").content, Some(Content::of(b"raw")));
    assert_eq!((entry("link").target.as_deref(), entry("link").size), (Some(&b"x$(FOO)y"[..]), 8));
    assert_eq!((entry("null").rdev, entry("null").size), (Some(0x103), 0));
    assert_eq!((entry("etc/a").linkcount, &entry("etc/a").link_group), (2, &Some((b"/etc".to_vec(), 1))));
    assert_eq!((entry("").linkcount, entry("nested").uid), (4, 7));
    assert!(entry("nested/.cvmfscatalog").hidden && !entry("nested/deep").hidden);
    assert_eq!(entries.len(), 15);
}

#[test]
fn reader_lists_below_a_path_and_at_a_tag() {
    let repository = Forge::new().build();
    let reader = Reader::open(repository.path());
    let below: Vec<Vec<u8>> = reader.walk("/nested/deep/").into_keys().collect();
    assert_eq!(below, [b"".to_vec(), b"\xff".to_vec()]);
    assert!(reader.walk_without_content("etc").values().all(|entry| entry.content.is_none()));
    assert_eq!(reader.read("/big"), b"0123456789");
    assert_eq!((reader.chunks("big"), reader.chunks("raw")), (vec![(0, 6), (6, 4)], vec![]));
    assert_eq!(reader.catalogs(), [(String::new(), 12), ("/nested".to_owned(), 4)]);
    assert_eq!(reader.counters()["self_file_size"], 28);
    assert_eq!((reader.revision(), reader.field('N')), (2, Some(FQRN)));
    let former = Reader::open_tag(repository.path(), "trunk-previous");
    assert_eq!((former.root_hash(), former.walk("").len()), (reader.tags()["trunk-previous"].as_str(), 1));
}
