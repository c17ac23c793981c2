//! How much of the repository is checked: everything, or what lies below a path.

use std::collections::VecDeque;

use super::name::ObjectName;
use super::{Check, CheckError};
use crate::catalog::{Catalog, CatalogEntry, CatalogReference};
use crate::file::read_regular_up_to;
use crate::image::ImageName;
use crate::object::{ObjectKind, SizeLimit, decode};
use crate::path::EntryPath;
use crate::repository::client_variable;

/// No more links are followed in one path: what has more goes round in circles, as for Linux.
const MAXIMUM_LINKS: usize = 40;

/// What is checked.
pub(super) struct Scope {
    /// Paths as catalogs spell them; nothing for everything.
    targets: Option<Vec<Vec<u8>>>,
}

impl Scope {
    pub(super) fn everything() -> Self {
        Self { targets: None }
    }

    pub(super) fn is_everything(&self) -> bool {
        self.targets.is_none()
    }

    /// Tells whether a path is part of what is checked.
    pub(super) fn holds(&self, path: &[u8]) -> bool {
        self.targets.as_ref().is_none_or(|targets| targets.iter().any(|target| lies_in(path, target)))
    }

    /// Tells whether the catalog of a directory is to be read, since what is checked lies in it, or the directory itself is.
    pub(super) fn leads_through(&self, directory: &[u8]) -> bool {
        let is_on_the_way = |target: &Vec<u8>| lies_in(target, directory);
        self.holds(directory) || self.targets.as_ref().is_some_and(|targets| targets.iter().any(is_on_the_way))
    }
}

fn lies_in(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// What a look at a path may end with.
enum Looked {
    Entry(Box<CatalogEntry>),
    Nothing,
    /// A catalog on the way cannot be read, which the check itself then tells.
    Stuck,
}

impl Check<'_> {
    /// Finds what a user names: a path, or an image. Links are followed, and are part of what is checked.
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
            match self.look(&path, root) {
                Looked::Nothing => return Ok(None),
                Looked::Entry(entry) if entry.is_symlink() => {
                    targets.push(spelt(&path));
                    let target = entry.expanded_target(client_variable);
                    let target = match target.strip_prefix(format!("/cvmfs/{}", self.name).as_bytes()) {
                        Some(below) if below.is_empty() || below[0] == b'/' => {
                            at = EntryPath::ROOT;
                            below
                        }
                        _ if target.starts_with(b"/") => return Err(elsewhere()),
                        _ => &target,
                    };
                    components(target).rev().for_each(|name| ahead.push_front(name));
                    if targets.len() > MAXIMUM_LINKS {
                        return Err(elsewhere());
                    }
                }
                Looked::Entry(_) => at = path,
                Looked::Stuck => {
                    at = path;
                    break;
                }
            }
        }
        targets.push(spelt(&at));
        Ok(Some(Scope { targets: Some(targets) }))
    }

    fn look(&self, path: &EntryPath, root: CatalogReference) -> Looked {
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
        look().map_or(Looked::Stuck, |entry| entry.map_or(Looked::Nothing, |entry| Looked::Entry(Box::new(entry))))
    }

    fn open_catalog(&self, reference: CatalogReference, path: &EntryPath) -> Option<Catalog> {
        let bytes = self.store.read_decoded(reference.hash, ObjectKind::Catalog, reference.limit()).ok()?;
        Catalog::parse_owned(bytes, path).ok()
    }

    /// Returns the content of a catalog of `size` bytes that was read before; `None` if it is gone since.
    pub(super) fn reread_catalog(&self, name: ObjectName, size: u64) -> Option<Vec<u8>> {
        let limit = SizeLimit::of(size);
        let stored = read_regular_up_to(limit.stored(), &self.store.root().join(name.to_string())).ok()??;
        decode(&stored, limit).ok()
    }
}

/// Returns the components of a path, `..` among them.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec)
}

fn spelt(path: &EntryPath) -> Vec<u8> {
    if path.is_root() { Vec::new() } else { [b"/", path.as_bytes()].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_holds_what_lies_below_and_leads_through_what_lies_above() {
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
