//! The edits of a tree that layers need, and their errors.

use std::sync::Arc;

use super::node::{Directory, Leaf, LeafKind, Node};
use super::walk::{MAX_SYMLINKS, ResolvedPath, TooManyLinks, resolve};
use crate::layer::NodeKind;
use crate::metadata::Metadata;
use crate::object::Content;
use crate::path::EntryPath;

/// Maximum depth of a path after symbolic links were followed. Equal to the default limit for paths in an archive.
const MAX_DEPTH: usize = 1_000;

/// Errors from applying a layer to the tree of its lower layers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The target of a hard link is a directory, which POSIX does not allow.
    #[error("cannot create hard link {}: the target {} is a directory", path.shown(), target.shown())]
    HardLinkToDirectory {
        /// Path of the link.
        path: EntryPath,
        /// Target of the link.
        target: EntryPath,
    },
    /// The target of a hard link is neither in the layer nor in a lower layer.
    #[error("cannot create hard link {}: the target {} exists neither in its layer nor in a lower layer", path.shown(), target.shown())]
    MissingHardLinkTarget {
        /// Path of the link.
        path: EntryPath,
        /// Target of the link.
        target: EntryPath,
    },
    /// The path of an entry, or of the target of a hard link, leads through too many symbolic links, or through a cycle of
    /// symbolic links.
    #[error("path {} leads through more than {MAX_SYMLINKS} symbolic links", .0.shown())]
    TooManyLinks(EntryPath),
    /// A path has more components than are allowed after its symbolic links were resolved.
    #[error("path {} is deeper than {MAX_DEPTH} directories after its symbolic links are resolved", .0.shown())]
    TooDeep(EntryPath),
    /// The target of a symbolic link has a component that cannot be the name of a directory.
    #[error("path {} leads through a symbolic link to a name that is longer than 255 bytes or contains a NUL", .0.shown())]
    UnusableName(EntryPath),
    /// An entry would replace the root directory.
    #[error("the layer has an entry for the root that is not a directory")]
    RootIsNoDirectory,
}

/// What an added entry replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaced {
    Nothing,
    Leaf,
    Directory,
}

/// Adds a directory, or sets the metadata of an existing one.
pub(super) fn put_directory(parent: &mut Directory, name: &[u8], metadata: &Metadata) -> Replaced {
    match parent.children.get_mut(name) {
        Some(Node::Directory(there)) => {
            // image-spec, layer.md: a directory over a directory changes the attributes and keeps the entries.
            Arc::make_mut(there).metadata = metadata.clone();
            Replaced::Directory
        }
        _ => {
            let new = Node::Directory(Arc::new(Directory::new(metadata.clone())));
            // image-spec, layer.md: in all other cases the existing node is removed first.
            if parent.children.insert(name.into(), new).is_some() { Replaced::Leaf } else { Replaced::Nothing }
        }
    }
}

pub(super) fn put_leaf(parent: &mut Directory, name: &[u8], leaf: Arc<Leaf>) -> Replaced {
    match parent.children.insert(name.into(), Node::Leaf(leaf)) {
        None => Replaced::Nothing,
        Some(Node::Leaf(_)) => Replaced::Leaf,
        Some(Node::Directory(_)) => Replaced::Directory,
    }
}

pub(super) fn leaf_kind(kind: &NodeKind<Content>) -> LeafKind {
    match kind {
        NodeKind::Directory => unreachable!("callers handle directories separately"),
        NodeKind::File { size, content } => LeafKind::File { size: *size, content: content.clone() },
        NodeKind::Symlink(target) => LeafKind::Symlink(target.clone()),
        NodeKind::CharacterDevice(number) => LeafKind::CharacterDevice(*number),
        NodeKind::BlockDevice(number) => LeafKind::BlockDevice(*number),
        NodeKind::Fifo => LeafKind::Fifo,
    }
}

/// Replaces the leaf `old` at a real path by `new`. Changes nothing if another node is at the path.
pub(super) fn replace_leaf(tree: &mut Arc<Directory>, path: &EntryPath, old: &Arc<Leaf>, new: &Arc<Leaf>) {
    if matches!(tree.get(path), Some(Node::Leaf(there)) if Arc::ptr_eq(there, old)) {
        let (parent, name) = path.split().expect("a leaf is not the root");
        directory_mut(tree, &parent).children.insert(name.into(), Node::Leaf(Arc::clone(new)));
    }
}

/// Returns an existing directory of `tree`.
pub(super) fn directory_mut<'t>(tree: &'t mut Arc<Directory>, path: &EntryPath) -> &'t mut Directory {
    Arc::make_mut(tree).directory_mut(path.components()).expect("the directory was found or created just now")
}

/// Creates the missing directories of `parent`, which is the parent of `path`, and returns the resolved path of `parent`. Calls `note` for
/// each created directory, with what it replaced.
///
/// A node on the resolved path that is not a directory is replaced.
pub(super) fn create_directories(
    tree: &mut Arc<Directory>,
    parent: &EntryPath,
    path: &EntryPath,
    mut note: impl FnMut(EntryPath, Replaced),
) -> Result<EntryPath, ApplyError> {
    if tree.directory(parent.components()).is_some() {
        return Ok(parent.clone());
    }
    let real_path: ResolvedPath =
        resolve(tree, parent).map_err(|TooManyLinks| ApplyError::TooManyLinks(path.clone()))?;
    // Each followed link may add directories, so the limit on paths in the archive is not enough.
    if real_path.len() > MAX_DEPTH {
        return Err(ApplyError::TooDeep(path.clone()));
    }
    if real_path.iter().any(|name| name.len() > 255 || name.contains(&0)) {
        return Err(ApplyError::UnusableName(path.clone()));
    }
    let (mut directory, mut at) = (Arc::make_mut(tree), EntryPath::ROOT);
    for name in &real_path {
        at = at.join(name);
        if !matches!(directory.children.get(name), Some(Node::Directory(_))) {
            note(at.clone(), put_directory(directory, name, &Metadata::of_implied_directory()));
        }
        let Some(Node::Directory(child)) = directory.children.get_mut(name) else {
            unreachable!("a directory was put there above")
        };
        directory = Arc::make_mut(child);
    }
    Ok(at)
}
