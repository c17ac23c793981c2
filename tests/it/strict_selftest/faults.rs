//! Faults to plant, and the words that a finding about each must contain.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::forge::Forged;

/// A change of a database by SQL, and the words.
pub type SqlFault = (&'static str, &'static [&'static str]);

/// A replacement in the text of the manifest (old, new), and the words.
pub type TextFault = (&'static str, &'static str, &'static [&'static str]);

/// A change of finished files, and the words.
pub type FileFault = (fn(&Forged), &'static [&'static str]);

/// In the rows of the root catalog.
pub const ROOT_ROWS: &[SqlFault] = &[
    ("UPDATE catalog SET parent_1 = 1 WHERE name = 'raw'", &["only rows that the root entry leads to", "'raw'"]),
    ("UPDATE catalog SET parent_1 = 1 WHERE name = ''", &["/ (", "parent hash"]),
    ("UPDATE catalog SET name = NULL WHERE name = 'raw'", &["row 8 of data/", "name as a text", "Null"]),
    ("UPDATE catalog SET symlink = NULL WHERE name = 'raw'", &["row 8 of data/", "symlink as a text"]),
    ("UPDATE catalog SET rowid = 99 WHERE name = 'null'", &["row ids 1 to 12 without gaps"]),
    (
        "UPDATE catalog SET rowid = 99 WHERE name = ''; UPDATE catalog SET rowid = 1 WHERE name = 'raw';
         UPDATE catalog SET rowid = 8 WHERE name = ''",
        &["root entry with row id", "Some(1)", "Some(8)"],
    ),
    ("UPDATE catalog SET mode = 16877 WHERE name = 'raw'", &["/raw", "flags"]),
    ("UPDATE catalog SET mode = 420 WHERE name = 'raw'", &["/raw", "known file type"]),
    ("UPDATE catalog SET flags = 5 WHERE name = 'passwd'", &["/etc/passwd", "flags 4", "found 5"]),
    ("UPDATE catalog SET flags = 8 WHERE name = 'link'", &["/link", "flags 12"]),
    ("UPDATE catalog SET flags = 4 WHERE name = 'pipe'", &["/pipe", "flags 20"]),
    ("UPDATE catalog SET flags = 2 WHERE name = 'nested'", &["/nested", "flags 3"]),
    ("UPDATE catalog SET flags = 1 WHERE name = 'nested'", &["/nested", "flags 3"]),
    ("UPDATE catalog SET flags = 260 WHERE name = 'passwd'", &["/etc/passwd", "object data", "-rmd160"]),
    ("UPDATE catalog SET flags = 772 WHERE name = 'passwd'", &["/etc/passwd", "a known hash algorithm"]),
    ("UPDATE catalog SET flags = 4 WHERE name = 'big'", &["/big", "flags 68"]),
    ("UPDATE catalog SET flags = 68 WHERE name = 'passwd'", &["/etc/passwd", "flags 4"]),
    ("UPDATE catalog SET hash = NULL WHERE name = 'empty'", &["/etc/empty", "the hash of a regular file", "NULL"]),
    ("UPDATE catalog SET hash = hex(hash) WHERE name = 'passwd'", &["row 3 of data/", "hash as a blob"]),
    ("UPDATE catalog SET hash = zeroblob(20) WHERE name = 'passwd'", &["/etc/passwd", "a hash of 20 bytes"]),
    ("UPDATE catalog SET hash = randomblob(20) WHERE name = 'passwd'", &["/etc/passwd", "object data/", "none"]),
    ("UPDATE catalog SET hash = randomblob(20) WHERE name = 'etc'", &["/etc", "no hash"]),
    ("UPDATE catalog SET size = 4 WHERE name = 'passwd'", &["/etc/passwd", "length of the content", "Some(5)"]),
    ("UPDATE catalog SET size = 8 WHERE name = 'link'", &["/link", "size of the link target 13", "found 8"]),
    ("UPDATE catalog SET size = 1 WHERE name = 'pipe'", &["/pipe", "size 0"]),
    ("UPDATE catalog SET size = 1 << 40 WHERE name = 'null'", &["/null", "device number of 32 bits"]),
    ("UPDATE catalog SET hardlinks = 3 WHERE name = 'etc'", &["/etc (", "link count 2", "found 3"]),
    ("UPDATE catalog SET hardlinks = 0 WHERE name = 'raw'", &["/raw", "link count 0"]),
    ("UPDATE catalog SET hardlinks = 2 WHERE name = 'a'", &["/etc/a", "link count 2 in group 0"]),
    (
        "UPDATE catalog SET hardlinks = (1 << 32) | 3 WHERE name IN ('a', 'b')",
        &["/etc (", "link count in group 1 2", "found 3"],
    ),
    ("UPDATE catalog SET mtime = 1 WHERE name = 'b'", &["/etc (", "differ only in name", "'b'"]),
    ("UPDATE catalog SET uid = 1 WHERE name = 'b'", &["/etc (", "differ only in name"]),
    ("UPDATE catalog SET hardlinks = (1 << 32) | 2 WHERE name = 'raw'", &["group 1 in one directory"]),
    ("UPDATE catalog SET mtimens = 1000000000 WHERE name = 'raw'", &["/raw", "mtimens"]),
    ("UPDATE catalog SET uid = -1 WHERE name = 'raw'", &["/raw", "uid of 32 bits"]),
    ("UPDATE catalog SET xattr = x'0100' WHERE name = 'raw'", &["/raw", "well-formed xattr", "the head"]),
    ("UPDATE catalog SET xattr = x'01010000' WHERE name = 'raw'", &["/raw", "well-formed xattr", "key of 0"]),
    ("UPDATE catalog SET xattr = x'0101010161' WHERE name = 'raw'", &["/raw", "well-formed xattr"]),
    ("UPDATE catalog SET xattr = x'010101006161' WHERE name = 'raw'", &["/raw", "after the last attribute"]),
    ("UPDATE catalog SET xattr = x'0102010062010061' WHERE name = 'raw'", &["/raw", "out of order"]),
    ("UPDATE catalog SET symlink = 'x' WHERE name = 'raw'", &["/raw", "link target"]),
];

/// In the other tables of the root catalog.
pub const ROOT_TABLES: &[SqlFault] = &[
    ("UPDATE chunks SET offset = 7 WHERE offset = 6", &["/big", "chunk at offset 6", "found 7"]),
    ("DELETE FROM chunks WHERE offset = 6", &["/big", "chunks up to the file's end at 10", "found 6"]),
    ("UPDATE chunks SET hash = randomblob(20) WHERE offset = 6", &["/big", "object data/", "P, found none"]),
    ("UPDATE chunks SET size = 5 WHERE offset = 6", &["/big", "length of the content in data/", "Some(5)"]),
    ("INSERT INTO chunks VALUES (1, 2, 0, 1, zeroblob(20))", &["chunks of chunked files only"]),
    ("UPDATE statistics SET value = 7 WHERE counter = 'self_regular'", &["counter self_regular Some(6)", "Some(7)"]),
    ("UPDATE statistics SET value = 4 WHERE counter = 'subtree_dir'", &["counter subtree_dir Some(2)", "Some(4)"]),
    ("DELETE FROM statistics WHERE counter = 'self_external'", &["counter self_external Some(0)", "None"]),
    ("INSERT INTO statistics VALUES ('self_other', 0)", &["24 counters", "self_other"]),
    ("UPDATE properties SET value = '2.4' WHERE key = 'schema'", &["property schema with 2.5", "2.4"]),
    ("DELETE FROM properties WHERE key = 'schema_revision'", &["property schema_revision with 7"]),
    ("UPDATE properties SET value = '3' WHERE key = 'revision'", &[".cvmfspublished", "in S", "3"]),
    ("INSERT INTO properties VALUES ('root_prefix', '')", &["property root_prefix", "nothing in a root catalog"]),
    ("INSERT INTO properties VALUES ('voms_authz', 'x')", &["voms_authz"]),
    ("UPDATE properties SET value = 'x' WHERE key = 'previous_revision'", &["property previous_revision"]),
    ("DROP INDEX idx_catalog_parent", &["columns of idx_catalog_parent"]),
    ("ALTER TABLE catalog RENAME COLUMN mtimens TO mtime_ns", &["columns of catalog"]),
    ("DROP TABLE bind_mountpoints", &["tables", "bind_mountpoints"]),
    ("CREATE TABLE more (a)", &["tables", "more"]),
    ("UPDATE nested_catalogs SET size = size + 1", &["/nested", "size of the nested catalog"]),
    ("UPDATE nested_catalogs SET sha1 = sha1 || 'C'", &["/nested in nested_catalogs", "a hash"]),
    ("DELETE FROM nested_catalogs", &["/nested", "flags 1", "found 3"]),
    ("INSERT INTO nested_catalogs SELECT '/none', sha1, size FROM nested_catalogs", &["/none", "reference alone"]),
    ("INSERT INTO bind_mountpoints SELECT * FROM nested_catalogs", &["/nested", "in one of", "both"]),
    ("UPDATE catalog SET uid = 9 WHERE name = 'nested'", &["/nested", "like its transition point", "uid: 9"]),
    ("UPDATE catalog SET xattr = NULL WHERE name = 'nested'", &["/nested", "like its transition point"]),
    ("UPDATE catalog SET flags = 32771 WHERE name = 'nested'", &["/nested", "like its transition point"]),
];

/// In the nested catalog.
pub const NESTED: &[SqlFault] = &[
    ("UPDATE properties SET value = '/other' WHERE key = 'root_prefix'", &["root_prefix", "/nested", "/other"]),
    ("INSERT INTO properties VALUES ('TTL', '9')", &["no property TTL in a nested catalog"]),
    ("UPDATE catalog SET flags = 1 WHERE name = 'nested'", &["/nested (", "flags 33"]),
    ("UPDATE catalog SET parent_1 = 0, parent_2 = 0 WHERE name = 'nested'", &["/nested (", "parent hash"]),
    ("UPDATE catalog SET name = 'other' WHERE name = 'nested'", &["/nested (", "name", "other"]),
    ("UPDATE catalog SET hardlinks = 2 WHERE name = 'nested'", &["/nested (", "link count 3"]),
    ("UPDATE catalog SET gid = 9 WHERE name = 'nested'", &["/nested", "like its transition point", "gid: 9"]),
    ("DELETE FROM catalog WHERE name = '.cvmfscatalog'", &["/nested (", ".cvmfscatalog", "found none"]),
    (
        "UPDATE catalog SET parent_1 = d.md5path_1, parent_2 = d.md5path_2 FROM catalog d
         WHERE d.name = 'deep' AND catalog.name = '.cvmfscatalog'",
        &["/nested/deep (", ".cvmfscatalog", "one elsewhere"],
    ),
    ("UPDATE catalog SET name = 'a/b' WHERE name = 'deep'", &["one path component", "a/b"]),
];

/// In the tag database.
pub const HISTORY: &[SqlFault] = &[
    ("DELETE FROM tags", &["a tag 'trunk'"]),
    ("UPDATE tags SET hash = lower(hex(randomblob(20))) WHERE name = 'trunk'", &["'trunk'", "head"]),
    ("UPDATE tags SET hash = lower(hex(randomblob(20))) WHERE name = 'trunk-previous'", &["-previous'", "object"]),
    ("UPDATE tags SET size = 1 WHERE name = 'trunk'", &["tag 'trunk'", "size of the catalog"]),
    ("UPDATE tags SET revision = 9 WHERE name = 'trunk'", &["tag 'trunk'", "revision of the catalog"]),
    ("UPDATE tags SET timestamp = 9 WHERE name = 'trunk'", &["tag 'trunk'", "last_modified"]),
    ("UPDATE tags SET description = NULL", &["description as a text"]),
    ("UPDATE tags SET name = 'a b' WHERE name = 'trunk-previous'", &["tag 'a b'", "without blanks"]),
    ("UPDATE tags SET branch = 'x'", &["tag 'trunk'", "branch"]),
    ("INSERT INTO branches VALUES ('x', '', 0)", &["branches"]),
    ("UPDATE properties SET value = 'other' WHERE key = 'fqrn'", &["property fqrn", "other"]),
    ("DELETE FROM properties WHERE key = 'previous_revision'", &["previous_revision"]),
    ("DROP TABLE recycle_bin", &["tables", "recycle_bin"]),
];

/// In the log of references.
pub const REFLOG: &[SqlFault] = &[
    ("DELETE FROM refs WHERE type = 0", &[".cvmfsreflog", "of type 0"]),
    ("DELETE FROM refs WHERE type = 1", &[".cvmfsreflog", "of type 1"]),
    ("DELETE FROM refs WHERE type = 2", &[".cvmfsreflog", "of type 2"]),
    ("UPDATE refs SET type = 1 WHERE type = 3", &[".cvmfsreflog", "of type 3"]),
    ("INSERT INTO refs VALUES (lower(hex(randomblob(20))), 0, 1)", &[".cvmfsreflog", "object data/"]),
    ("UPDATE refs SET timestamp = 0", &[".cvmfsreflog", "a time"]),
    ("UPDATE properties SET value = '1' WHERE key = 'schema_revision'", &[".cvmfsreflog", "schema_revision"]),
];

/// In the manifest.
pub const MANIFEST: &[TextFault] = &[
    ("\nB", "\nB1", &["size of the root catalog in B"]),
    ("\nS2", "\nS3", &["revision of the root catalog in S"]),
    ("\nS2", "\nSx", &["field S with a number"]),
    ("\nRd", "\nRe", &["field R"]),
    ("\nN", "\nNo.", &["field N"]),
    ("\nT1700000001", "", &["field T"]),
    ("\nGyes", "\nGmaybe", &["field G"]),
    ("\nAno", "\nAno\nAno", &["field A once"]),
    ("\nAno", "\nAyes", &[".cvmfsalt-", "C: expected a link"]),
    ("\nAno", "\nQx", &["only fields that are in use", "'Q'"]),
    ("\nY", "\nYx", &["field Y"]),
    ("\nX", "\nXx", &["field X"]),
];

/// In files.
pub const FILES: &[FileFault] = &[
    (|r| fs::remove_file(r.object("root\n", "")).unwrap(), &["/etc/passwd", "object data/", "none"]),
    (|r| fs::remove_file(r.object("6789", "P")).unwrap(), &["/big", "object data/", "none"]),
    (|r| fs::write(r.object("root\n", ""), b"x").unwrap(), &["data/", "stored bytes with hash"]),
    (
        |r| {
            let bytes = fs::read(r.object("root\n", "")).unwrap();
            fs::write(r.object("root\n", ""), &bytes[..bytes.len() - 2]).unwrap();
        },
        &["/etc/passwd", "length of the content", "None"],
    ),
    (|r| fs::write(r.path().join("data/00/tmp"), b"x").unwrap(), &["data/00/tmp", "named by a hash"]),
    (|r| fs::write(r.path().join("data/x"), b"x").unwrap(), &["data/x", "stray"]),
    (|r| fs::write(r.path().join("data/txn/x"), b"x").unwrap(), &["data/txn/x", "leftover"]),
    (|r| fs::write(r.path().join("lock"), b"x").unwrap(), &["lock", "stray"]),
    (|r| fs::remove_dir(r.path().join("data/txn")).unwrap(), &["data/txn", "a directory"]),
    (
        |r| fs::set_permissions(r.object("root\n", ""), PermissionsExt::from_mode(0o600)).unwrap(),
        &["data/", "whom all may read", "mode 600"],
    ),
    (|r| fs::remove_file(r.path().join(".cvmfsreflog")).unwrap(), &[".cvmfsreflog", "a file"]),
    (|r| fs::remove_file(r.path().join(".cvmfspublished")).unwrap(), &[".cvmfspublished", "a file"]),
    (
        |r| {
            replace(&r.path().join(".cvmfspublished"), b"D240", b"D241");
        },
        &[".cvmfspublished", "hash line"],
    ),
    (
        |r| {
            replace(&r.path().join(".cvmfswhitelist"), b" # ours", b"00");
        },
        &[".cvmfswhitelist", "the certificate's fingerprint"],
    ),
    (
        |r| {
            let path = r.path().join(".cvmfsreflog");
            let mut bytes = fs::read(&path).unwrap();
            bytes.extend([0; 4096]);
            fs::write(path, bytes).unwrap();
        },
        &[".cvmfsreflog", "field Y of the manifest"],
    ),
];

fn replace(path: &Path, old: &[u8], new: &[u8]) {
    let bytes = fs::read(path).unwrap();
    let at = bytes.windows(old.len()).position(|window| window == old).unwrap();
    fs::write(path, [&bytes[..at], new, &bytes[at + old.len()..]].concat()).unwrap();
}
