//! The part of the repository that is checked: everything, or everything below a path.

use std::collections::VecDeque;

use super::name::ObjectName;
use super::{Check, CheckError};
use crate::catalog::{Catalog, CatalogEntry, CatalogReference};
use crate::image::ImageName;
use crate::object::{ObjectKind, SizeLimit, decode};
use crate::path::EntryPath;
use crate::repository::client_variable;

/// Maximum number of symbolic links in one path. More links count as a loop, as in the Linux kernel.
const MAX_LINKS: usize = 40;

/// The checked part of the repository.
pub(super) struct Scope {
    /// Paths as catalogs use them: with a leading slash, or empty for the root. `None` means the whole repository.
    targets: Option<Vec<Vec<u8>>>,
}

impl Scope {
    pub(super) fn everything() -> Self {
        Self { targets: None }
    }

    pub(super) fn is_everything(&self) -> bool {
        self.targets.is_none()
    }

    /// Returns whether a path is part of the scope.
    pub(super) fn holds(&self, path: &[u8]) -> bool {
        self.targets.as_ref().is_none_or(|targets| targets.iter().any(|target| lies_in(path, target)))
    }

    /// Returns whether the catalog of a directory must be read, because the directory is part of the scope or above it.
    pub(super) fn leads_through(&self, directory: &[u8]) -> bool {
        let is_on_the_way = |target: &Vec<u8>| lies_in(target, directory);
        self.holds(directory) || self.targets.as_ref().is_some_and(|targets| targets.iter().any(is_on_the_way))
    }
}

fn lies_in(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The result of looking up a path.
enum LookupResult {
    Entry(Box<CatalogEntry>),
    Missing,
    /// A catalog that the lookup needs cannot be read. The check reads the same catalog, and reports the error.
    Unreadable,
}

impl Check<'_> {
    /// Finds the path or the image that the user names. Symbolic links in the path are followed, and are part of the scope.
    pub(super) fn resolve(&self, text: &str, root: CatalogReference) -> Result<Scope, CheckError> {
        if let Some(scope) = self.follow(text, root)? {
            return Ok(scope);
        }
        let image = text.parse::<ImageName>().ok().map(|name| name.public_path());
        match image.map(|path| self.follow(&path, root)).transpose()?.flatten() {
            Some(scope) => Ok(scope),
            None => Err(CheckError::NoSuchPath(text.to_owned())),
        }
    }

    fn follow(&self, text: &str, root: CatalogReference) -> Result<Option<Scope>, CheckError> {
        let elsewhere = || CheckError::Elsewhere(text.to_owned());
        let (mut targets, mut at) = (Vec::new(), EntryPath::ROOT);
        let mut ahead: VecDeque<Vec<u8>> = components(text.as_bytes()).collect();
        while let Some(name) = ahead.pop_front() {
            if name == b".." {
                at = at.split().ok_or_else(elsewhere)?.0;
                continue;
            }
            let path = at.join(&name);
            match self.look_up(&path, root) {
                LookupResult::Missing => return Ok(None),
                LookupResult::Entry(entry) if entry.is_symlink() => {
                    targets.push(catalog_path(&path));
                    let target = entry.expanded_target(client_variable);
                    let target = match target.strip_prefix(format!("/cvmfs/{}", self.repository.name).as_bytes()) {
                        // Clients mount this repository at `/cvmfs/<name>`, so an absolute target at or below it is a path of this repository.
                        Some(below) if below.is_empty() || below[0] == b'/' => {
                            at = EntryPath::ROOT;
                            below
                        }
                        _ if target.starts_with(b"/") => return Err(elsewhere()),
                        _ => &target,
                    };
                    components(target).rev().for_each(|name| ahead.push_front(name));
                    if targets.len() > MAX_LINKS {
                        return Err(elsewhere());
                    }
                }
                LookupResult::Entry(_) => at = path,
                LookupResult::Unreadable => {
                    at = path;
                    break;
                }
            }
        }
        targets.push(catalog_path(&at));
        Ok(Some(Scope { targets: Some(targets) }))
    }

    fn look_up(&self, path: &EntryPath, root: CatalogReference) -> LookupResult {
        let look = || -> Option<Option<CatalogEntry>> {
            let mut catalog = self.open_catalog(root, &EntryPath::ROOT)?;
            let mut at = EntryPath::ROOT;
            for name in path.components() {
                at = at.join(name);
                if let Some(nested) = catalog.nested(&at).ok()? {
                    catalog = self.open_catalog(nested, &at)?;
                }
            }
            catalog.get(path).ok()
        };
        look().map_or(LookupResult::Unreadable, |entry| {
            entry.map_or(LookupResult::Missing, |entry| LookupResult::Entry(Box::new(entry)))
        })
    }

    fn open_catalog(&self, reference: CatalogReference, path: &EntryPath) -> Option<Catalog> {
        let bytes = self.store.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit()).ok()?;
        Catalog::parse_owned(bytes, path).ok()
    }

    /// Reads a catalog of `size` bytes a second time. Returns `None` if the catalog cannot be read any more.
    pub(super) fn reread_catalog(&self, name: ObjectName, size: u64) -> Option<Vec<u8>> {
        let limit = SizeLimit::of(size);
        let stored = self.store.get(&name.to_string(), limit.stored()).ok()??;
        decode(&stored, limit).ok()
    }
}

/// Returns the components of a path, including `..`.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec)
}

fn catalog_path(path: &EntryPath) -> Vec<u8> {
    if path.is_root() { Vec::new() } else { [b"/", path.as_bytes()].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_holds_paths_below_its_target_and_leads_through_directories_above_it() {
        let scope = Scope { targets: Some(vec![b"/a/b".to_vec()]) };
        for (path, holds, leads) in [
            ("", false, true),
            ("/a", false, true),
            ("/a/b", true, true),
            ("/a/b/c", true, true),
            ("/a/bc", false, false),
        ] {
            assert_eq!((scope.holds(path.as_bytes()), scope.leads_through(path.as_bytes())), (holds, leads), "{path}");
        }
        assert!(Scope::everything().holds(b"/x") && Scope::everything().leads_through(b""));
    }
}
