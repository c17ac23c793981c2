//! Resolves the paths of an archive in a tree. Symbolic links are followed, and never lead out of the root.

use super::node::{Directory, LeafKind, Node};
use crate::path::EntryPath;

/// A path after symbolic links were followed: names from the root down, none of which is a symbolic link.
pub(super) type ResolvedPath = Vec<Box<[u8]>>;

/// Maximum number of symbolic links that are followed for one path, as in umoci (`filepath-securejoin`).
pub(super) const MAX_SYMLINKS: usize = 255;

/// A path leads through more than [`MAX_SYMLINKS`] symbolic links.
#[derive(Debug)]
pub(super) struct TooManyLinks;

/// Resolves `path`, following every symbolic link, including one at the last component.
///
/// The resolved path need not exist. A name that is missing or not a directory is kept, and a `..` after the name removes
/// it. umoci resolves paths in the same way and then creates the missing directories.
pub(super) fn resolve(tree: &Directory, path: &EntryPath) -> Result<ResolvedPath, TooManyLinks> {
    let mut steps: Vec<Box<[u8]>> = path.components().rev().map(Into::into).collect();
    let (mut at, mut links) = (ResolvedPath::new(), 0);
    // The directories along the resolved path, as far as they exist.
    let mut directories = vec![tree];
    while let Some(name) = steps.pop() {
        match &*name {
            b"" | b"." => continue,
            b".." => {
                // `..` of the root is the root: nothing is removed from an empty path.
                at.pop();
                directories.truncate(at.len() + 1);
                continue;
            }
            _ => {}
        }
        // After a missing component there is no directory in which the next one could be a link.
        let parent = directories.last().filter(|_| directories.len() == at.len() + 1);
        match parent.and_then(|parent| parent.children.get(&name)) {
            Some(Node::Directory(child)) => directories.push(child),
            Some(Node::Leaf(leaf)) => {
                if let LeafKind::Symlink(target) = &leaf.kind {
                    links += 1;
                    // A cycle of links would never end otherwise.
                    if links > MAX_SYMLINKS {
                        return Err(TooManyLinks);
                    }
                    // An absolute target starts at the root of the image, as for a process in a container.
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

/// Returns the resolved path of the directory at `path`, or `None` if there is no such directory.
pub fn find_directory(tree: &Directory, path: &EntryPath) -> Option<EntryPath> {
    let real_path = resolve(tree, path).ok()?;
    tree.directory(names(&real_path)).map(|_| path_of(&real_path))
}

/// Returns the node at `path` with its real path. Symbolic links are followed, except at the last component.
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
