//! Decides whether a catalog may be changed for the next revision.
//!
//! A catalog is changed in place and signed as a whole, so the signature also covers rows that the change does not touch. Therefore
//! all rows are checked before the first change, by the rules of `strata check`. A catalog with a severe finding is not signed again.

use std::cell::RefCell;
use std::fmt::Display;

use super::{Catalog, CatalogError, catalog_path, key_of};
use crate::catalog::audit::{
    AuditedCatalog, AuditedChunk, AuditedReference, AuditedRow, Fault, RowVisitor, Severity, Walk,
};
use crate::message::show;

/// Refuses a catalog that is damaged, or that has values which no catalog writer writes.
pub(super) fn require_sound(catalog: &Catalog) -> Result<(), CatalogError> {
    let audited = AuditedCatalog::read_open(&mut catalog.database());
    match audited
        .map_or_else(|fault| Some(describe(&fault)), |audited| first_fault(&audited, &catalog_path(&catalog.root)))
    {
        Some(fault) => {
            let hint =
                "the catalog is not changed, so that no damaged content is signed; 'strata check' lists all findings";
            Err(catalog.invalid(format!("{fault}; {hint}")))
        }
        None => Ok(()),
    }
}

fn describe(Fault { expected, found, .. }: &Fault) -> String {
    format!("expected {expected}, found {found}")
}

/// Returns the first fault in the catalog of the directory `root` that makes it unsound.
fn first_fault(catalog: &AuditedCatalog, root: &[u8]) -> Option<String> {
    if let Some(fault) = catalog.faults.iter().find(|fault| fault.row.is_none()) {
        return Some(describe(fault));
    }
    if let Some((name, value)) = catalog.statistics.iter().find(|(_, value)| **value < 0) {
        return Some(format!("expected counter {name} of at least 0, found {value}"));
    }
    let root_key = key_of(root);
    let Some(root_row) = catalog.rows.iter().position(|row| row.key == root_key) else {
        return Some("the row of its own directory is missing".to_owned());
    };
    let first = FirstFault::default();
    let own = Walk { catalog, mountpoint: root, visitor: &first }.run(root_row);
    let wrong_counter = || {
        let stated = |name: &str| catalog.statistics.get(&format!("self_{name}")).copied();
        let (name, count) = own.named().find(|&(name, count)| stated(name) != Some(count))?;
        Some(format!("expected counter self_{name} {count}, found {}", stated(name).unwrap_or_default()))
    };
    first.0.into_inner().or_else(wrong_counter)
}

/// Keeps the first finding of severity [`Severity::Unsound`].
#[derive(Default)]
struct FirstFault(RefCell<Option<String>>);

impl RowVisitor for FirstFault {
    fn note(&self, path: Option<&[u8]>, severity: Severity, expected: &dyn Display, found: &dyn Display) {
        if severity == Severity::Unsound {
            let place = path.map_or_else(String::new, |path| format!("{}: ", show(path)));
            self.0.borrow_mut().get_or_insert_with(|| format!("{place}expected {expected}, found {found}"));
        }
    }

    fn visit(&self, _: &[u8], _: &AuditedRow, _: &[AuditedChunk], _: Option<&AuditedReference>) {}
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::catalog::database::{Draft, WritableCatalog};
    use crate::catalog::entry::{CatalogEntry, Nesting};
    use crate::metadata::Metadata;
    use crate::object::{Chunk, Content, ContentObjects, ObjectHash};
    use crate::path::EntryPath;

    fn path(text: &str) -> EntryPath {
        EntryPath::normalise(text.as_bytes()).unwrap()
    }

    /// Returns a catalog of `/a` that was changed by SQL.
    fn changed(sql: &str) -> Vec<u8> {
        let metadata = Metadata::of_implied_directory();
        let mut draft = Draft::new(path("a"));
        let chunk = Chunk { offset: 0, size: 5, hash: ObjectHash::of(b"x") };
        let content = Content { raw: false, objects: ContentObjects::Chunks([chunk].into()) };
        draft.push(path("a"), CatalogEntry::of_directory(&metadata, 1).with_nesting(Nesting::Root));
        draft.push(path("a/d"), CatalogEntry::of_directory(&metadata, 0));
        draft.push(path("a/d/f"), CatalogEntry::of_file(&metadata, 5, &content));
        draft.push(path("a/l"), CatalogEntry::of_symlink(&metadata, b"target"));
        let mut connection = Connection::open_in_memory().unwrap();
        let bytes = draft.write().unwrap();
        connection.deserialize_read_exact("main", bytes.as_slice(), bytes.len(), false).unwrap();
        connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        connection.execute_batch(sql).unwrap();
        connection.serialize("main").unwrap().to_vec()
    }

    fn open(sql: &str) -> Result<(), CatalogError> {
        Catalog::parse(&changed(sql), &path("a")).and_then(WritableCatalog::of).map(drop)
    }

    #[test]
    fn sound_catalogs_may_be_changed() {
        for sql in ["", "UPDATE catalog SET mtimens = NULL", "INSERT INTO properties VALUES ('x', 7)"] {
            open(sql).unwrap();
        }
        for bit in 17..32 {
            open(&format!("UPDATE catalog SET flags = flags | {}", 1_u32 << bit)).unwrap();
        }
        for compression in 1..8 {
            open(&format!("UPDATE catalog SET flags = flags | {} WHERE name = 'f'", compression << 11)).unwrap();
        }
    }

    #[test]
    fn catalog_with_any_value_of_a_wrong_type_is_never_changed() {
        let columns = ["md5path_1", "md5path_2", "parent_1", "hardlinks", "size", "mode", "mtime", "mtimens", "flags"];
        let set = columns.into_iter().chain(["uid", "gid"]).map(|column| format!("{column} = 'text'"));
        let others = ["name = x'66'", "symlink = x'07'", "hash = 'text'", "hash = x'00'", "xattr = 'x'", "size = 0.5"];
        let nulls = ["mode = NULL", "name = NULL", "size = NULL", "symlink = NULL", "uid = -1", "mode = 1 << 40"];
        for set in set.chain(others.into_iter().chain(nulls).map(str::to_owned)) {
            assert!(open(&format!("UPDATE catalog SET {set} WHERE name = 'f'")).is_err(), "{set}");
        }
        for sql in [
            "UPDATE chunks SET offset = 'x'",
            "UPDATE chunks SET hash = x'00'",
            "INSERT INTO nested_catalogs VALUES (x'2f61', 7, 0)",
            "INSERT INTO nested_catalogs VALUES ('/a/d', '0123456789012345678901234567890123456789', 'large')",
            "INSERT INTO bind_mountpoints VALUES ('/a/d', NULL, 0)",
            "UPDATE statistics SET value = 'many' WHERE counter = 'self_dir'",
            "INSERT INTO statistics VALUES ('other', 'x')",
            "INSERT INTO properties VALUES (x'00', 'x')",
        ] {
            assert!(open(sql).is_err(), "{sql}");
        }
    }

    #[test]
    fn catalog_with_an_impossible_row_is_never_changed_and_the_row_is_named() {
        let of_each = [
            "mode = 420",
            "mode = 0",
            "mode = 33188 | 65536",
            "mode = 61440",
            "mode = -1",
            "size = -1",
            "flags = 0",
            "flags = flags | 2",
            "flags = flags | 32",
            "flags = flags | 1 << 32",
            "uid = 4294967295",
            "gid = 4294967295",
            "mtimens = -1",
            "mtimens = 1000000000",
            "hardlinks = 0",
            "hardlinks = -1",
            "xattr = x''",
            "xattr = x'01ffffff'",
            "xattr = zeroblob(70000)",
            "hash = zeroblob(20)",
        ];
        let of_one = [
            ("f", "hardlinks = 2"),
            ("l", "hardlinks = 2"),
            ("f", "mode = 41471"),
            ("f", "mode = 16877"),
            ("f", "flags = flags & ~64"),
            ("f", "symlink = 'x'"),
            ("f", "symlink = printf('%.100000c', 'n')"),
            ("f", "size = 6"),
            ("f", "size = 9223372036854775807"),
            ("d", "mode = 41471"),
            ("d", "mode = 33188"),
            ("d", "flags = 4"),
            ("d", "flags = flags | 0x1000"),
            ("d", "flags = flags | 0x4000"),
            ("d", "symlink = 'x'"),
            ("d", "size = 9223372036854775807"),
            ("d", "hardlinks = 1"),
            ("l", "mode = 33188"),
            ("l", "mode = 16877"),
            ("l", "flags = 4"),
            ("l", "flags = flags | 128"),
            ("l", "flags = flags | 64"),
            ("l", "flags = flags | 0x1000"),
            ("l", "symlink = ''"),
            ("l", "size = 5"),
            ("l", "size = 100000, symlink = printf('%.100000c', 'n')"),
        ];
        let of_each = ["f", "d", "l"].into_iter().flat_map(|name| of_each.map(|set| (name, set)));
        for (name, set) in of_each.chain(of_one) {
            let error = open(&format!("UPDATE catalog SET {set} WHERE name = '{name}'")).unwrap_err();
            let text = crate::message::causes(&error);
            assert!(text.contains(" /a") && text.len() < 500, "{name} {set}: {text}");
        }
    }

    #[test]
    fn catalog_with_references_without_a_row_or_with_wrong_counters_is_never_changed() {
        const HASH: &str = "0123456789012345678901234567890123456789";
        let refer = |table: &str, path: &str| format!("INSERT INTO {table} VALUES ('{path}', '{HASH}', 4096)");
        let transition = "UPDATE catalog SET flags = flags | 2 WHERE name = 'd'; DELETE FROM catalog WHERE name = 'f';
             DELETE FROM chunks; UPDATE statistics SET value = 0 WHERE counter IN ('self_regular', 'self_chunked',
             'self_chunks', 'self_file_size', 'self_chunked_size');
             UPDATE statistics SET value = 1 WHERE counter = 'self_nested';";
        open(&format!("{transition}{}", refer("nested_catalogs", "/a/d"))).unwrap();
        for sql in [
            transition.to_owned(),
            format!("{transition}{}", refer("nested_catalogs", "/a/../d")),
            format!("{transition}{}", refer("nested_catalogs", "/d")),
            format!("{transition}{}", refer("nested_catalogs", "/a/d").replace(HASH, &HASH.replace('0', "g"))),
            refer("nested_catalogs", "/a/x"),
            refer("nested_catalogs", "/a/d"),
            refer("bind_mountpoints", "/a/x"),
            refer("bind_mountpoints", "/etc"),
            "UPDATE statistics SET value = -1 WHERE counter = 'subtree_dir'".to_owned(),
            "UPDATE statistics SET value = value + 1 WHERE counter = 'self_dir'".to_owned(),
            "INSERT INTO chunks VALUES (1, 2, 0, 5, zeroblob(20))".to_owned(),
        ] {
            assert!(open(&sql).is_err(), "{sql}");
        }
    }

    #[test]
    fn wrong_link_counts_of_directories_are_accepted() {
        open("UPDATE catalog SET hardlinks = 7 WHERE name = 'd'").unwrap();
    }

    #[test]
    fn catalog_with_rows_outside_of_its_tree_is_never_changed() {
        let of = |name: &str, other: &str| {
            format!(
                "UPDATE catalog SET parent_1 = o.md5path_1, parent_2 = o.md5path_2 FROM catalog o
                 WHERE catalog.name = '{name}' AND o.name = '{other}';"
            )
        };
        for sql in [
            of("d", "d"),
            of("d", "d") + &of("f", "f"),
            of("d", "f"),
            of("a", "a"),
            of("a", "d"),
            "UPDATE catalog SET parent_1 = 1 WHERE name = 'd'".to_owned(),
            "UPDATE catalog SET md5path_1 = 1 WHERE name = 'l'".to_owned(),
            "UPDATE catalog SET name = '' WHERE name = 'l'".to_owned(),
            "UPDATE catalog SET name = 'x/l' WHERE name = 'l'".to_owned(),
            "UPDATE catalog SET name = '..' WHERE name = 'd'".to_owned(),
            "DELETE FROM catalog WHERE name = 'a'".to_owned(),
        ] {
            assert!(open(&sql).is_err(), "{sql}");
        }
    }

    #[test]
    fn damaged_catalog_is_never_changed() {
        let good = changed("");
        let mut refused = 0;
        for page in 1..good.len() / 4096 {
            let mut bytes = good.clone();
            bytes[page * 4096..page * 4096 + 64].fill(0x5a);
            refused += usize::from(Catalog::parse(&bytes, &path("a")).and_then(WritableCatalog::of).is_err());
        }
        assert_eq!(refused, good.len() / 4096 - 1);
    }
}
