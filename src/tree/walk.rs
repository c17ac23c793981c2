//! Where a path of an archive really lies in a tree: symbolic links are followed inside the root.

use super::node::{Directory, LeafKind, Node};
use crate::path::EntryPath;

/// A place in a tree: names from the root down, none of which is a symbolic link.
pub(super) type ResolvedPath = Vec<Box<[u8]>>;

/// Maximum number of symbolic links that are followed for one path, as in umoci (`filepath-securejoin`).
pub(super) const MAX_SYMLINKS: usize = 255;

/// A path leads through more than [`MAX_SYMLINKS`] symbolic links.
#[derive(Debug)]
pub(super) struct TooManyLinks;

/// Returns the place that `path` leads to when every link on the way is followed, the last component's, too.
///
/// The place need not exist. A name that is missing or no directory is taken as it stands, and a `..` after it removes it again:
/// so umoci resolves paths, in whose result directories are created afterwards.
pub(super) fn resolve(tree: &Directory, path: &EntryPath) -> Result<ResolvedPath, TooManyLinks> {
    let mut steps: Vec<Box<[u8]>> = path.components().rev().map(Into::into).collect();
    let (mut at, mut links) = (ResolvedPath::new(), 0);
    // The directories of the place that exist: all of it, or the first ones.
    let mut directories = vec![tree];
    while let Some(name) = steps.pop() {
        match &*name {
            b"" | b"." => continue,
            b".." => {
                at.pop();
                directories.truncate(at.len() + 1);
                continue;
            }
            _ => {}
        }
        let parent = directories.last().filter(|_| directories.len() == at.len() + 1);
        match parent.and_then(|parent| parent.children.get(&name)) {
            Some(Node::Directory(child)) => directories.push(child),
            Some(Node::Leaf(leaf)) => {
                if let LeafKind::Symlink(target) = &leaf.kind {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(TooManyLinks);
                    }
                    if target.first() == Some(&b'/') {
                        at.clear();
                        directories.truncate(1);
                    }
                    steps.extend(target.split(|&b| b == b'/').rev().map(Into::into));
                    continue;
                }
            }
            None => {}
        }
        at.push(name);
    }
    Ok(at)
}

/// Returns where the directory at `path` really lies; `None` where there is none.
pub fn find_directory(tree: &Directory, path: &EntryPath) -> Option<EntryPath> {
    let real_path = resolve(tree, path).ok()?;
    tree.directory(names(&real_path)).map(|_| path_of(&real_path))
}

/// Returns the place of the entry at `path` and what is there, following links up to the last component, but not there.
pub(super) fn look_up<'t>(
    tree: &'t Directory,
    path: &EntryPath,
) -> Result<Option<(EntryPath, &'t Node)>, TooManyLinks> {
    let Some((parent, name)) = path.split() else { return Ok(None) };
    if let Some(directory) = tree.directory(parent.components()) {
        return Ok(directory.children.get(name).map(|node| (path.clone(), node)));
    }
    let parent = resolve(tree, &parent)?;
    let node = tree.directory(names(&parent)).and_then(|directory| directory.children.get(name));
    Ok(node.map(|node| (path_of(&parent).join(name), node)))
}

pub(super) fn names(real_path: &ResolvedPath) -> impl Iterator<Item = &[u8]> {
    real_path.iter().map(|name| &**name)
}

pub(super) fn path_of(real_path: &ResolvedPath) -> EntryPath {
    names(real_path).fold(EntryPath::ROOT, |path, name| path.join(name))
}
