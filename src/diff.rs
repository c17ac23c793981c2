//! What differs between two revisions of a repository.
//!
//! Directories whose catalogs are the same object are not looked into, so the walk costs what changed. Only what became of the
//! bytes is told by every catalog of the older revision: an object that any of its paths has is none that is new.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::num::NonZero;
use std::thread;

use rayon::prelude::*;

use crate::catalog::CatalogEntry;
use crate::object::{ObjectHash, ObjectKind};
use crate::path::EntryPath;
use crate::repository::{CatalogPlace, NamedRow, PlacedDirectory, Repository, RepositoryError, Row};
use crate::threads;

/// What became of a path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It was not there.
    Added,
    /// It is there no more.
    Removed,
    /// It is something else.
    Changed(Vec<Attribute>),
}

/// What of a path changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribute {
    /// File, directory, link, device…
    Type,
    /// Permissions.
    Mode,
    /// User or group.
    Owner,
    /// Modification time.
    Time,
    /// Bytes of a file, or the number of a device.
    Content,
    /// Where a link leads.
    Target,
    /// Extended attributes.
    Xattrs,
    /// Names of the inode; of a directory, how many lie in it.
    Links,
}

impl fmt::Display for Attribute {
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

/// A path that differs. Of a directory that was added or removed, what lies in it is counted and not named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: EntryPath,
    /// What became of it.
    pub kind: Kind,
    /// Entries that were added or removed with it, itself included; 1 for what changed.
    pub entries: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
}

/// Objects, and their bytes as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Objects {
    /// How many.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What differs between two revisions.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    /// The paths, each directory before what lies in it.
    pub changes: Vec<Change>,
    /// Objects at added and changed paths that the older revision has nowhere, and catalogs that it has not.
    pub new: Objects,
    /// Objects at added and changed paths that the older revision has, too.
    pub shared: Objects,
}

/// Compares two revisions of one repository.
pub fn diff(old: &Repository, new: &Repository) -> Result<Difference, RepositoryError> {
    let [before, after] = [old, new].map(|repository| repository.row(&EntryPath::ROOT));
    diff_rows(old, new, before?.as_ref(), after?.as_ref())
}

/// Compares what is at one path of `old` with what is at one path of `new`, which may be another; changes are named by the
/// paths of the new one. Where there was nothing, everything right below the new one was added.
pub fn diff_rows(
    old: &Repository,
    new: &Repository,
    before: Option<&Row>,
    after: Option<&Row>,
) -> Result<Difference, RepositoryError> {
    let mut walk = Walk { old, new, changes: Vec::new(), objects: HashSet::new() };
    match (before, after, after.and_then(|row| row.directory.as_ref())) {
        (Some(before), Some(after), directory) => {
            let path = directory.map_or(EntryPath::ROOT, |directory| directory.path.clone());
            walk.compare(&path, before, after)?;
        }
        (None, Some(_), Some(directory)) => {
            walk.add_catalog(directory);
            for NamedRow { name, row } in listed(new, directory)? {
                walk.whole(&directory.path.join(&name), &row, Kind::Added)?;
            }
        }
        _ => {}
    }
    let Walk { changes, objects, .. } = walk;
    let known = if objects.is_empty() {
        HashSet::new()
    } else {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        threads::pool(threads)?.install(|| those_of(old, &objects))?
    };
    let (mut fresh, mut shared) = (Objects::default(), Objects::default());
    for (hash, kind) in objects {
        let count = if known.contains(&(hash, kind)) { &mut shared } else { &mut fresh };
        count.objects += 1;
        count.bytes += new.store().size(hash, kind).map_err(RepositoryError::from)?;
    }
    Ok(Difference { changes, new: fresh, shared })
}

type Object = (ObjectHash, ObjectKind);

struct Walk<'r> {
    old: &'r Repository,
    new: &'r Repository,
    changes: Vec<Change>,
    /// What added and changed paths refer to.
    objects: HashSet<Object>,
}

impl Walk<'_> {
    fn compare(&mut self, path: &EntryPath, before: &Row, after: &Row) -> Result<(), RepositoryError> {
        let attributes = differing(&before.entry, &after.entry);
        if attributes.contains(&Attribute::Type) && (before.directory.is_some() || after.directory.is_some()) {
            self.whole(path, before, Kind::Removed)?;
            return self.whole(path, after, Kind::Added);
        }
        if attributes.contains(&Attribute::Content) {
            self.objects.extend(after.entry.objects());
        }
        if !attributes.is_empty() {
            let bytes = size(&after.entry);
            self.changes.push(Change { path: path.clone(), kind: Kind::Changed(attributes), entries: 1, bytes });
        }
        match (&before.directory, &after.directory) {
            (Some(before), Some(after)) if before.place != after.place => self.compare_directories(before, after),
            _ => Ok(()),
        }
    }

    fn compare_directories(
        &mut self,
        before: &PlacedDirectory,
        after: &PlacedDirectory,
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
                (Some(was), None) => self.whole(&before.path.join(&was.name), &was.row, Kind::Removed)?,
                (None, Some(is)) => self.whole(&after.path.join(&is.name), &is.row, Kind::Added)?,
                (None, None) => {}
            }
        }
    }

    /// Counts the catalog of a directory that is at the top of one.
    fn add_catalog(&mut self, directory: &PlacedDirectory) {
        if directory.place.root == directory.path {
            self.objects.insert((directory.place.reference.hash, ObjectKind::Catalog));
        }
    }

    /// Notes a path that was added or removed with everything in it.
    fn whole(&mut self, path: &EntryPath, row: &Row, kind: Kind) -> Result<(), RepositoryError> {
        let is_added = kind == Kind::Added;
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
        self.changes.push(Change { path: path.clone(), kind, entries, bytes });
        Ok(())
    }
}

/// Returns what clients list in a directory.
fn listed(repository: &Repository, directory: &PlacedDirectory) -> Result<Vec<NamedRow>, RepositoryError> {
    let mut rows = repository.rows(directory)?;
    rows.retain(|row| !row.row.entry.is_hidden());
    Ok(rows)
}

fn size(entry: &CatalogEntry) -> u64 {
    if entry.is_regular() { entry.size.max(0).cast_unsigned() } else { 0 }
}

/// Returns which of the objects a revision has anywhere.
fn those_of(repository: &Repository, objects: &HashSet<Object>) -> Result<HashSet<Object>, RepositoryError> {
    let mut found = HashSet::new();
    let mut places: Vec<CatalogPlace> = vec![repository.root_place()];
    while !places.is_empty() {
        found.extend(places.iter().map(|place| (place.reference.hash, ObjectKind::Catalog)));
        let read: Vec<(Vec<Object>, Vec<CatalogPlace>)> = places
            .par_iter()
            .map(|place| {
                let catalog = repository.open_catalog(place)?;
                let nested = catalog.all_nested()?.into_iter();
                let below = nested.map(|(root, reference)| CatalogPlace { root, reference }).collect();
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

/// Returns what of a path differs, apart from what lies in it.
fn differing(before: &CatalogEntry, after: &CatalogEntry) -> Vec<Attribute> {
    let is_file = after.is_regular();
    let content = |entry: &CatalogEntry| (entry.content.clone(), entry.size, entry.is_external());
    let found = [
        (Attribute::Type, (before.mode ^ after.mode) & 0o170_000 != 0),
        (Attribute::Mode, (before.mode ^ after.mode) & 0o7777 != 0),
        (Attribute::Owner, (before.uid, before.gid) != (after.uid, after.gid)),
        (Attribute::Time, before.metadata().mtime != after.metadata().mtime),
        (Attribute::Content, (is_file || after.is_special()) && content(before) != content(after)),
        (Attribute::Target, before.symlink != after.symlink),
        (Attribute::Xattrs, before.xattr != after.xattr),
        (Attribute::Links, before.link_count != after.link_count),
    ];
    found.into_iter().filter_map(|(attribute, differs)| differs.then_some(attribute)).collect()
}
