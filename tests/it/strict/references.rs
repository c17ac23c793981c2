//! Everything that the manifest refers to besides the head: tags, the log of references, the certificate, the description.

use std::collections::BTreeMap;

use super::catalog::Catalog;
use super::database::{Cells, Database, Table};
use super::hash::{hash, suffix};
use super::letter::{Manifest, check_certificate, check_whitelist};
use super::store::{Store, object_path};
use super::tree::{Subtree, TreeCheck};
use super::{Finding, Findings, is_hash, show};

const HISTORY_TABLES: &[Table] = &[
    ("branches", &["branch TEXT 1", "parent TEXT", "initial_revision INTEGER"]),
    (
        "tags",
        &[
            "name TEXT 1",
            "hash TEXT",
            "revision INTEGER",
            "timestamp INTEGER",
            "channel INTEGER",
            "description TEXT",
            "size INTEGER",
            "branch TEXT",
        ],
    ),
    ("recycle_bin", &["hash TEXT 1", "flags INTEGER"]),
    ("properties", &["key TEXT 1", "value TEXT"]),
];

const REFLOG_TABLES: &[Table] =
    &[("refs", &["hash TEXT 1", "type INTEGER", "timestamp INTEGER"]), ("properties", &["key TEXT 1", "value TEXT"])];

/// A row of the table `tags`.
struct Tag {
    name: String,
    hash: String,
    revision: i64,
    timestamp: i64,
    channel: i64,
    size: i64,
    branch: String,
}

/// Checks the head and everything else that the manifest refers to.
pub fn check(store: &Store, manifest: &Manifest, fqrn: &str, tree: &mut TreeCheck<'_>) {
    let root = manifest.field('C').unwrap_or_default();
    let mut references = vec![(root.to_owned(), 0)];
    if let Some(head) = tree.check(root, b"") {
        check_head(manifest, &head, tree);
    }
    let certificate = manifest.hash('X').and_then(|hash| {
        tree.refer(".cvmfspublished", hash, "X")?;
        references.push((hash.to_owned(), 1));
        check_certificate(store, hash, tree.findings)
    });
    check_whitelist(store, fqrn, certificate.as_deref(), tree.findings);
    if let Some(hash) = manifest.hash('H') {
        references.push((hash.to_owned(), 2));
        for tag in check_history(store, hash, fqrn, tree) {
            check_tag(&tag, manifest, tree);
            references.push((tag.hash, 0));
        }
    }
    if let Some(hash) = manifest.hash('M') {
        references.push((hash.to_owned(), 3));
        tree.refer(".cvmfspublished", hash, "M");
        let text = tree.findings.keep(store.read(hash, "M")).unwrap_or_default();
        if !text.trim_ascii().starts_with(b"{") || !text.trim_ascii().ends_with(b"}") {
            tree.findings.note(object_path(hash, "M"), "a JSON object", "something else");
        }
    }
    check_reflog(store, manifest, fqrn, &references, tree);
}

fn check_head(manifest: &Manifest, head: &Subtree, tree: &mut TreeCheck<'_>) {
    let place = ".cvmfspublished";
    tree.findings.require(place, "size of the root catalog in B", head.size as u64, manifest.number('B'));
    tree.findings.require(place, "revision of the root catalog in S", head.revision.as_deref(), manifest.field('S'));
    // Replication of a repository without garbage collection fails where a former root catalog is missing.
    let previous = head.previous_revision.as_deref().filter(|hash| is_hash(hash) && hash.contains(|c| c != '0'));
    if let Some(previous) = previous.filter(|_| manifest.field('G') != Some("yes")) {
        tree.refer("previous_revision of the root catalog", previous, "C");
    }
}

/// Checks the tag database and returns its tags.
fn check_history(store: &Store, hash: &str, fqrn: &str, tree: &mut TreeCheck<'_>) -> Vec<Tag> {
    let place = object_path(hash, "H");
    if tree.refer(".cvmfspublished", hash, "H").is_none() {
        return Vec::new();
    }
    let findings = &mut *tree.findings;
    let bytes = findings.keep(store.read(hash, "H")).unwrap_or_default();
    let Some(database) = Database::open(place.clone(), &bytes, findings) else {
        return Vec::new();
    };
    database.check_tables(HISTORY_TABLES, findings);
    let properties = database.properties(findings);
    check_properties(&place, &properties, &[("schema", "1.0"), ("schema_revision", "3"), ("fqrn", fqrn)], findings);
    let previous = properties.get("previous_revision").map(|value| String::from_utf8_lossy(value).into_owned());
    if !previous.as_deref().is_some_and(is_hash) {
        findings.note(&place, "a hash in property previous_revision", format_args!("{previous:?}"));
    }
    let branches = database.query("SELECT branch, parent, initial_revision FROM branches", |row| {
        Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<i64>>(2)?))
    });
    let branches = findings.keep(branches).unwrap_or_default();
    findings.require(&place, "branches", vec![(Some(String::new()), None, Some(0))], branches);
    let bin = database.query("SELECT count(*) FROM recycle_bin", |row| row.get(0));
    let bin: Vec<i64> = findings.keep(bin).unwrap_or_default();
    findings.require(&place, "rows in recycle_bin", vec![0], bin);
    let tags = read_tags(&database, findings);
    let tags = findings.keep(tags).unwrap_or_default();
    if !tags.iter().any(|tag| tag.name == "trunk") {
        findings.note(&place, "a tag 'trunk'", "none");
    }
    tags
}

fn read_tags(database: &Database, findings: &mut Findings) -> Result<Vec<Tag>, Finding> {
    let place = format!("tags of {}", database.name());
    database.query("SELECT * FROM tags ORDER BY name", |row| {
        let mut cells = Cells { row, place: &place, findings };
        cells.text("description");
        Ok(Tag {
            name: cells.string("name"),
            hash: cells.string("hash"),
            revision: cells.integer("revision"),
            timestamp: cells.integer("timestamp"),
            channel: cells.integer("channel"),
            size: cells.integer("size"),
            branch: cells.string("branch"),
        })
    })
}

/// Checks a tag, and the whole tree that it refers to.
fn check_tag(tag: &Tag, manifest: &Manifest, tree: &mut TreeCheck<'_>) {
    let place = format!("tag '{}'", tag.name);
    let findings = &mut *tree.findings;
    if tag.name.is_empty() || tag.name.contains(char::is_whitespace) {
        findings.note(&place, "a name without blanks", "another");
    }
    findings.require(&place, "channel", 0, tag.channel);
    findings.require(&place, "branch", "", tag.branch.as_str());
    if tag.name == "trunk" {
        findings.require(&place, "root catalog of the head", manifest.field('C'), Some(tag.hash.as_str()));
    }
    if !is_hash(&tag.hash) {
        findings.note(&place, "a hash", &tag.hash);
        return;
    }
    if tree.refer(&place, &tag.hash, "C").is_none() {
        return;
    }
    let Some(root) = tree.check(&tag.hash, b"") else { return };
    let findings = &mut *tree.findings;
    findings.require(&place, "size of the catalog", root.size, tag.size);
    findings.require(&place, "revision of the catalog", root.revision.clone(), Some(tag.revision.to_string()));
    findings.require(
        &place,
        "last_modified of the catalog",
        root.last_modified.clone(),
        Some(tag.timestamp.to_string()),
    );
}

/// Checks that the log of references is the one in the manifest, and lists everything that the manifest and tags refer to.
fn check_reflog(
    store: &Store,
    manifest: &Manifest,
    fqrn: &str,
    references: &[(String, i64)],
    tree: &mut TreeCheck<'_>,
) {
    let place = ".cvmfsreflog";
    let findings = &mut *tree.findings;
    let Ok(bytes) = store.read_raw(place) else { return };
    findings.require(
        place,
        "hash in field Y of the manifest",
        manifest.field('Y'),
        Some(hash(&bytes, suffix(manifest.field('Y').unwrap_or_default())).as_str()),
    );
    let Some(database) = Database::open(place.to_owned(), &bytes, findings) else {
        return;
    };
    database.check_tables(REFLOG_TABLES, findings);
    let properties = database.properties(findings);
    check_properties(place, &properties, &[("schema", "1.0"), ("schema_revision", "0"), ("fqrn", fqrn)], findings);
    let rows = database.query("SELECT * FROM refs ORDER BY hash", |row| {
        let mut cells = Cells { row, place, findings };
        Ok((cells.string("hash"), cells.integer("type"), cells.integer("timestamp")))
    });
    let rows = findings.keep(rows).unwrap_or_default();
    for (hash, kind) in references {
        if !rows.iter().any(|(logged, logged_kind, _)| (logged, logged_kind) == (hash, kind)) {
            findings.note(place, format_args!("a row for {hash} of type {kind}"), "none");
        }
    }
    for (hash, kind, timestamp) in rows {
        let suffix = usize::try_from(kind).ok().and_then(|kind| ["C", "X", "H", "M"].get(kind));
        match suffix {
            Some(suffix) if is_hash(&hash) && timestamp > 0 => check_logged(store, &hash, suffix, tree),
            _ => tree.findings.note(
                place,
                "a hash, a type up to 3 and a time",
                format_args!("{hash}, {kind}, {timestamp}"),
            ),
        }
    }
}

/// Checks that a logged object exists, and is a root catalog if it is a catalog.
fn check_logged(store: &Store, hash: &str, suffix: &str, tree: &mut TreeCheck<'_>) {
    if !tree.has(hash, suffix) {
        tree.findings.note(".cvmfsreflog", format_args!("object {}", object_path(hash, suffix)), "none");
    } else if suffix == "C"
        && let Ok(catalog) = Catalog::load(store, hash, b"", &mut Findings::default())
        && let Some(prefix) = catalog.properties.get("root_prefix")
    {
        let found = format!("{} of {}", object_path(hash, suffix), show(prefix));
        tree.findings.note(".cvmfsreflog", "only root catalogs", found);
    }
}

fn check_properties(
    place: &str,
    properties: &BTreeMap<String, Vec<u8>>,
    expected: &[(&str, &str)],
    findings: &mut Findings,
) {
    for (key, value) in expected {
        let found = properties.get(*key).map(|found| String::from_utf8_lossy(found));
        findings.require(place, &format!("property {key} with"), Some(*value), found.as_deref());
    }
}
