//! Whether a catalog may be the base of the next revision.
//!
//! A catalog is changed in place and signed as a whole, so rows that nobody looked at are vouched for as well. Therefore
//! every row is looked at before the first one changes: its types, its mode, and whether it lies where its key says.

use rusqlite::Row;

use super::{Catalog, CatalogError, PathKey, StoredRow, is_component, key_of, read_row, spelt};
use crate::catalog::entry::CatalogEntry;

/// Rows of the tables beside `catalog` hold what these conditions say.
const CONDITIONS: [(&str, &str); 3] = [
    (
        "chunks",
        "typeof(md5path_1) = 'integer' AND typeof(md5path_2) = 'integer' AND typeof(offset) = 'integer' \
         AND typeof(size) = 'integer' AND offset >= 0 AND size >= 0 AND typeof(hash) = 'blob' AND length(hash) = 20",
    ),
    ("nested_catalogs", REFERENCE),
    ("statistics", "typeof(counter) = 'text' AND typeof(value) = 'integer'"),
];

/// What a reference to another catalog holds. Old catalogs do not say its size.
const REFERENCE: &str = "typeof(path) = 'text' AND path LIKE '/_%' AND typeof(sha1) = 'text' AND length(sha1) >= 40 \
     AND (size IS NULL OR typeof(size) = 'integer' AND size >= 0)";

/// What the walk needs of a row.
struct Link {
    parent: PathKey,
    key: PathKey,
    name: Vec<u8>,
    is_directory: bool,
}

/// Refuses a catalog that holds rows of wrong types, with impossible modes, or outside of the tree below its root.
pub(super) fn require_sound(catalog: &Catalog) -> Result<(), CatalogError> {
    let read = || {
        let database = catalog.database();
        database.require_whole()?;
        for (table, condition) in CONDITIONS {
            database.require_rows(table, condition)?;
        }
        if !database.schema()?.columns("bind_mountpoints").is_empty() {
            database.require_rows("bind_mountpoints", REFERENCE)?;
        }
        let sql = format!("SELECT {}, parent_1, parent_2 FROM catalog", catalog.columns());
        database.rows(&sql, [], read_link)
    };
    let links = read().map_err(|source| catalog.database_error(source))?;
    require_tree(catalog, links)
}

fn read_link(row: &Row<'_>) -> rusqlite::Result<Link> {
    let StoredRow { key, name, entry } = read_row(row)?;
    let parent = (row.get::<_, Option<i64>>(14)?.unwrap_or(0), row.get::<_, Option<i64>>(15)?.unwrap_or(0));
    Ok(Link { parent, key, name, is_directory: CatalogEntry::is_directory(&entry) })
}

/// Refuses rows that the root does not lead to, such as those that lie in themselves.
fn require_tree(catalog: &Catalog, mut links: Vec<Link>) -> Result<(), CatalogError> {
    links.sort_unstable_by_key(|link| link.parent);
    let root = spelt(&catalog.root);
    let root_key = key_of(&root);
    if !links.iter().any(|link| link.key == root_key && link.is_directory) {
        return Err(catalog.invalid("it has no row for its own folder".to_owned()));
    }
    let (mut ahead, mut reached) = (vec![(root, root_key)], 1);
    while let Some((folder, key)) = ahead.pop() {
        let start = links.partition_point(|link| link.parent < key);
        for link in links[start..].iter().take_while(|link| link.parent == key) {
            let path = [&folder, &b"/"[..], &link.name].concat();
            if !is_component(&link.name) || link.key != key_of(&path) {
                return Err(catalog.invalid(format!("it has a row that cannot be that of '{}'", path.escape_ascii())));
            }
            reached += 1;
            if link.is_directory {
                ahead.push((path, link.key));
            }
        }
        // Only an index that does not match its table lets a key appear twice.
        if reached > links.len() {
            break;
        }
    }
    match links.len() == reached {
        true => Ok(()),
        false => Err(catalog.invalid("it has rows that its own folder does not lead to".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::catalog::database::{Draft, WritableCatalog};
    use crate::catalog::entry::Nesting;
    use crate::layer::EntryPath;
    use crate::metadata::Metadata;
    use crate::object::{Chunk, Content, ObjectHash, Pieces};

    fn path(text: &str) -> EntryPath {
        EntryPath::normalise(text.as_bytes()).unwrap()
    }

    /// Returns a catalog of `/a` that was changed by SQL.
    fn changed(sql: &str) -> Vec<u8> {
        let metadata = Metadata::of_implied_folder();
        let mut draft = Draft::new(path("a"));
        let chunk = Chunk { offset: 0, size: 5, hash: ObjectHash::of(b"x") };
        let content = Content { raw: false, pieces: Pieces::Chunks([chunk].into()) };
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
    }

    #[test]
    fn catalog_with_any_row_of_a_wrong_type_is_never_changed() {
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
    fn catalog_with_an_impossible_mode_or_size_is_never_changed() {
        for set in ["mode = 420", "mode = 0", "mode = 33188 | 65536", "mode = 61440", "mode = -1", "size = -1"] {
            assert!(open(&format!("UPDATE catalog SET {set} WHERE name = 'f'")).is_err(), "{set}");
        }
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
