//! Compares two revisions of a repository.
//!
//! Directories whose catalog is the same object in both revisions are not read, so the cost depends on the size of the change. Only the
//! count of new bytes needs every catalog of the older revision: an object is new only if no path of the older revision
//! refers to it.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::num::NonZero;
use std::thread;

use rayon::prelude::*;

use crate::catalog::CatalogEntry;
use crate::object::{ObjectHash, ObjectKind};
use crate::path::EntryPath;
use crate::repository::{CatalogLocation, LocatedDirectory, NamedRow, Repository, RepositoryError, Row};
use crate::threads;

/// How a path changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// The path exists only in the newer revision.
    Added,
    /// The path exists only in the older revision.
    Removed,
    /// The path exists in both revisions, with different attributes.
    Changed(Vec<ChangedAttribute>),
}

/// An attribute of an entry that can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangedAttribute {
    /// The type: file, directory, symbolic link, device…
    Type,
    /// Permission bits.
    Mode,
    /// User or group id.
    Owner,
    /// Modification time.
    Time,
    /// Content of a file, or device number.
    Content,
    /// Target of a symbolic link.
    Target,
    /// Extended attributes.
    Xattrs,
    /// Link count.
    Links,
}

impl fmt::Display for ChangedAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type => "type",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Content => "content",
            Self::Target => "target",
            Self::Xattrs => "xattrs",
            Self::Links => "links",
        })
    }
}

/// A path that differs. An added or removed directory is one change: the entries below it are only counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathChange {
    /// The path.
    pub path: EntryPath,
    /// How the path changed.
    pub kind: ChangeKind,
    /// Number of added or removed entries, including the path itself; 1 for a changed entry.
    pub entries: u64,
    /// Size of the files among these entries, in bytes.
    pub bytes: u64,
}

/// Number and stored size of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct ObjectCount {
    /// Number of objects.
    pub objects: u64,
    /// Their stored size in bytes.
    pub bytes: u64,
}

/// The differences between two revisions.
#[derive(Debug, Clone, Default)]
pub struct RevisionDiff {
    /// The changed paths, each directory before its entries.
    pub changes: Vec<PathChange>,
    /// Objects of added and changed paths that the older revision does not contain, and new catalogs.
    pub new: ObjectCount,
    /// Objects of added and changed paths that the older revision contains, too.
    pub shared: ObjectCount,
}

/// Compares two revisions of one repository.
pub fn diff(old: &Repository, new: &Repository) -> Result<RevisionDiff, RepositoryError> {
    let [before, after] = [old, new].map(|repository| repository.row(&EntryPath::ROOT));
    diff_rows(old, new, before?.as_ref(), after?.as_ref())
}

/// Compares an entry of `old` with an entry of `new`; their paths may differ. Changes are reported with the paths in `new`.
/// Without an old entry, each direct child of the new entry counts as added.
pub fn diff_rows(
    old: &Repository,
    new: &Repository,
    before: Option<&Row>,
    after: Option<&Row>,
) -> Result<RevisionDiff, RepositoryError> {
    let mut walk = DiffWalk { old, new, changes: Vec::new(), objects: HashSet::new() };
    match (before, after, after.and_then(|row| row.directory.as_ref())) {
        (Some(before), Some(after), directory) => {
            let path = directory.map_or(EntryPath::ROOT, |directory| directory.path.clone());
            walk.compare(&path, before, after)?;
        }
        (None, Some(_), Some(directory)) => {
            walk.add_catalog(directory);
            for NamedRow { name, row } in listed(new, directory)? {
                walk.add_subtree(&directory.path.join(&name), &row, ChangeKind::Added)?;
            }
        }
        _ => {}
    }
    let DiffWalk { changes, objects, .. } = walk;
    // Only the search for known objects needs all catalogs of the older revision.
    let known = if objects.is_empty() {
        HashSet::new()
    } else {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        threads::pool(threads, new.store().reporter())?.install(|| contained_objects(old, &objects))?
    };
    let (mut fresh, mut shared) = (ObjectCount::default(), ObjectCount::default());
    for (hash, kind) in objects {
        let count = if known.contains(&(hash, kind)) { &mut shared } else { &mut fresh };
        count.objects += 1;
        count.bytes += new.store().object_size(hash, kind).map_err(RepositoryError::from)?;
    }
    Ok(RevisionDiff { changes, new: fresh, shared })
}

type ObjectId = (ObjectHash, ObjectKind);

struct DiffWalk<'r> {
    old: &'r Repository,
    new: &'r Repository,
    changes: Vec<PathChange>,
    /// Objects to which added and changed paths refer.
    objects: HashSet<ObjectId>,
}

impl DiffWalk<'_> {
    fn compare(&mut self, path: &EntryPath, before: &Row, after: &Row) -> Result<(), RepositoryError> {
        let attributes = differing(&before.entry, &after.entry);
        if attributes.contains(&ChangedAttribute::Type) && (before.directory.is_some() || after.directory.is_some()) {
            self.add_subtree(path, before, ChangeKind::Removed)?;
            return self.add_subtree(path, after, ChangeKind::Added);
        }
        if attributes.contains(&ChangedAttribute::Content) {
            self.objects.extend(after.entry.objects());
        }
        if !attributes.is_empty() {
            let bytes = size(&after.entry);
            self.changes.push(PathChange {
                path: path.clone(),
                kind: ChangeKind::Changed(attributes),
                entries: 1,
                bytes,
            });
        }
        match (&before.directory, &after.directory) {
            (Some(before), Some(after)) if before.location != after.location => self.compare_directories(before, after),
            _ => Ok(()),
        }
    }

    fn compare_directories(
        &mut self,
        before: &LocatedDirectory,
        after: &LocatedDirectory,
    ) -> Result<(), RepositoryError> {
        self.add_catalog(after);
        let mut old = listed(self.old, before)?.into_iter().peekable();
        let mut new = listed(self.new, after)?.into_iter().peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some(old), Some(new)) => old.name.cmp(&new.name),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return Ok(()),
            };
            let was = if order.is_le() { old.next() } else { None };
            let is = if order.is_ge() { new.next() } else { None };
            match (was, is) {
                (Some(was), Some(is)) => self.compare(&after.path.join(&is.name), &was.row, &is.row)?,
                (Some(was), None) => self.add_subtree(&before.path.join(&was.name), &was.row, ChangeKind::Removed)?,
                (None, Some(is)) => self.add_subtree(&after.path.join(&is.name), &is.row, ChangeKind::Added)?,
                (None, None) => {}
            }
        }
    }

    /// Counts the catalog of a directory that is the root of a catalog.
    fn add_catalog(&mut self, directory: &LocatedDirectory) {
        if directory.location.root == directory.path {
            self.objects.insert((directory.location.reference.hash, ObjectKind::Catalog));
        }
    }

    /// Adds a path that was added or removed together with everything below it.
    fn add_subtree(&mut self, path: &EntryPath, row: &Row, kind: ChangeKind) -> Result<(), RepositoryError> {
        let is_added = kind == ChangeKind::Added;
        let (mut entries, mut bytes) = (0, 0);
        let mut waiting = vec![row.clone()];
        while let Some(row) = waiting.pop() {
            entries += 1;
            bytes += size(&row.entry);
            if is_added {
                self.objects.extend(row.entry.objects());
            }
            let Some(directory) = row.directory else { continue };
            let repository = if is_added { self.new } else { self.old };
            if is_added {
                self.add_catalog(&directory);
            }
            waiting.extend(listed(repository, &directory)?.into_iter().map(|named| named.row));
        }
        self.changes.push(PathChange { path: path.clone(), kind, entries, bytes });
        Ok(())
    }
}

/// Returns the entries of a directory that clients list, that is, all but hidden entries.
fn listed(repository: &Repository, directory: &LocatedDirectory) -> Result<Vec<NamedRow>, RepositoryError> {
    let mut rows = repository.rows(directory)?;
    rows.retain(|row| !row.row.entry.is_hidden());
    Ok(rows)
}

fn size(entry: &CatalogEntry) -> u64 {
    if entry.is_regular() { entry.size.max(0).cast_unsigned() } else { 0 }
}

/// Returns those of the objects to which at least one path of the revision refers.
fn contained_objects(
    repository: &Repository,
    objects: &HashSet<ObjectId>,
) -> Result<HashSet<ObjectId>, RepositoryError> {
    let mut found = HashSet::new();
    let mut places: Vec<CatalogLocation> = vec![repository.root_location()];
    while !places.is_empty() {
        found.extend(places.iter().map(|place| (place.reference.hash, ObjectKind::Catalog)));
        let read: Vec<(Vec<ObjectId>, Vec<CatalogLocation>)> = places
            .par_iter()
            .map(|place| {
                let catalog = repository.open_catalog(place)?;
                let nested = catalog.all_nested()?.into_iter();
                let below = nested.map(|(root, reference)| CatalogLocation { root, reference }).collect();
                Ok((catalog.objects()?.into_iter().filter(|object| objects.contains(object)).collect(), below))
            })
            .collect::<Result<_, RepositoryError>>()?;
        places.clear();
        for (objects, below) in read {
            found.extend(objects);
            places.extend(below);
        }
    }
    Ok(found)
}

/// Returns the attributes in which two entries differ, apart from the entries below them.
fn differing(before: &CatalogEntry, after: &CatalogEntry) -> Vec<ChangedAttribute> {
    let is_file = after.is_regular();
    let content = |entry: &CatalogEntry| (entry.content.clone(), entry.size, entry.is_external());
    let found = [
        (ChangedAttribute::Type, (before.mode ^ after.mode) & 0o170_000 != 0),
        (ChangedAttribute::Mode, (before.mode ^ after.mode) & 0o7777 != 0),
        (ChangedAttribute::Owner, (before.uid, before.gid) != (after.uid, after.gid)),
        (ChangedAttribute::Time, before.metadata().mtime != after.metadata().mtime),
        (ChangedAttribute::Content, (is_file || after.is_special()) && content(before) != content(after)),
        (ChangedAttribute::Target, before.symlink != after.symlink),
        (ChangedAttribute::Xattrs, before.xattr != after.xattr),
        (ChangedAttribute::Links, before.link_count != after.link_count),
    ];
    found.into_iter().filter_map(|(attribute, differs)| differs.then_some(attribute)).collect()
}
