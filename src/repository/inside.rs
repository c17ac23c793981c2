//! Resolves paths inside a root file system in the repository, as for a process with this root.

use super::{MAX_LINKS, Repository, RepositoryError, client_variable};
use crate::catalog::CatalogEntry;
use crate::path::EntryPath;

impl Repository {
    /// Resolves a path in the root file system at `root` and follows all links. Returns the resolved path, relative to `root`,
    /// and its entry. No link leads out of the root file system: absolute links start at its root, and `..` of its root is the
    /// root itself.
    pub fn follow_inside(
        &self,
        root: &EntryPath,
        path: &[u8],
    ) -> Result<Option<(EntryPath, CatalogEntry)>, RepositoryError> {
        let whole = |at: &EntryPath| at.components().fold(root.clone(), |path, name| path.join(name));
        let Some(top) = self.get(root)? else { return Ok(None) };
        let mut waiting = names_backwards(path);
        // The resolved directories so far, each with its row.
        let mut at = vec![(EntryPath::ROOT, top)];
        let mut links = 0;
        while let Some(name) = waiting.pop() {
            let (directory, entry) = at.last().expect("the root is never removed from the list");
            if !entry.is_directory() || name.contains(&0) {
                return Ok(None);
            }
            if name == b".." {
                at.truncate((at.len() - 1).max(1));
                continue;
            }
            let next = directory.join(&name);
            let Some(entry) = self.get(&whole(&next))? else { return Ok(None) };
            if !entry.is_symlink() {
                at.push((next, entry));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Ok(None);
            }
            let target = entry.expanded_target(client_variable);
            // For a process in the container, an absolute target starts at the container's root.
            if target.starts_with(b"/") {
                at.truncate(1);
            }
            waiting.append(&mut names_backwards(&target));
        }
        Ok(at.pop())
    }
}

fn names_backwards(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(<[u8]>::to_vec).collect()
}
