//! The flat tree, which Apptainer runs: the final chain of an image and the additions for Apptainer.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Addition, ReplaceRule, additions};
use crate::image::ExecutionConfig;
use crate::metadata::{Metadata, Timestamp};
use crate::object::Content;
use crate::settings::Modes;
use crate::tree::{Directory, Leaf, LeafKind, Node, find_directory};

/// Returns the flat tree of an image whose final chain is `chain`; `store` stores the content of small files.
///
/// An addition whose parent is not a directory is omitted.
pub fn flat_tree<E>(
    chain: &Arc<Directory>,
    config: &ExecutionConfig,
    modes: Modes,
    mut store: impl FnMut(&[u8]) -> Result<Content, E>,
) -> Result<Arc<Directory>, E> {
    let mut tree = match modes {
        Modes::Exact => Arc::clone(chain),
        Modes::Widened => widened(chain, &mut HashMap::new()),
    };
    for addition in additions(config) {
        let (parent, name) = addition.path().split().expect("no addition has the path of the root");
        let Some(parent) = find_directory(&tree, &parent) else { continue };
        let there = tree.directory(parent.components()).and_then(|directory| directory.children.get(name));
        if let Some(node) = node(&addition, there, &mut store)? {
            let directory = Arc::make_mut(&mut tree).directory_mut(parent.components());
            directory.expect("the directory was found just now").children.insert(name.into(), node);
        }
    }
    Ok(tree)
}

/// Returns the node for an addition, or `None` if the existing node `there` is kept.
fn node<E>(
    addition: &Addition,
    there: Option<&Node>,
    store: &mut impl FnMut(&[u8]) -> Result<Content, E>,
) -> Result<Option<Node>, E> {
    let is_link = matches!(there, Some(Node::Leaf(leaf)) if matches!(leaf.kind, LeafKind::Symlink(_)));
    let gives_way = |rule: ReplaceRule| match rule {
        ReplaceRule::IfAbsent => there.is_none(),
        ReplaceRule::IfAbsentOrLink => there.is_none() || is_link,
        ReplaceRule::Replace => true,
    };
    let leaf = |mode, kind| Some(Node::Leaf(Arc::new(Leaf { metadata: metadata(mode), kind })));
    Ok(match addition {
        Addition::Directory { mode, .. } if there.is_none() => {
            Some(Node::Directory(Arc::new(Directory::new(metadata(*mode)))))
        }
        Addition::File { mode, content, rule, .. } if gives_way(*rule) => {
            leaf(*mode, LeafKind::File { size: content.len() as u64, content: store(content)? })
        }
        Addition::Symlink { target, rule, .. } if gives_way(*rule) => {
            leaf(0o777, LeafKind::Symlink(target.as_slice().into()))
        }
        _ => None,
    })
}

/// Returns the metadata of added entries: owned by root, with a time of 1970, so that equal images give equal trees.
fn metadata(mode: u16) -> Metadata {
    Metadata { mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: None }
}

/// Returns the tree with added permissions: the owner may read and write every file, and list, search and change every directory. Hard
/// links are preserved.
fn widened(directory: &Directory, leaves: &mut HashMap<*const Leaf, Arc<Leaf>>) -> Arc<Directory> {
    let mut wide = Directory::new(directory.metadata.clone());
    // DUCC adds these bits to directories, and 0600 to regular files.
    wide.metadata.mode |= 0o700;
    for (name, node) in &directory.children {
        let node = match node {
            Node::Directory(child) => Node::Directory(widened(child, leaves)),
            Node::Leaf(leaf) if matches!(leaf.kind, LeafKind::File { .. }) => {
                let wide = leaves.entry(Arc::as_ptr(leaf)).or_insert_with(|| {
                    let mut wide = Leaf::clone(leaf);
                    wide.metadata.mode |= 0o600;
                    Arc::new(wide)
                });
                Node::Leaf(Arc::clone(wide))
            }
            Node::Leaf(leaf) => Node::Leaf(Arc::clone(leaf)),
        };
        wide.children.insert(name.clone(), node);
    }
    Arc::new(wide)
}
