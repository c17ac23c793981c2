//! Finds unused trees: layers, chains and flat trees that no image uses.
//!
//! A publication records the trees that an image no longer uses as *candidates*. It does not check whether other images use them,
//! because it must not read all images. The search in this module reads all of them. Anything that cannot be read is an error:
//! otherwise a tree could count as unused because the record of the image that uses it is damaged.

use std::collections::BTreeSet;

use crate::image::Digest;
use crate::inventory::{self, InventoryError, ListedImage, foreign_trees};
use crate::layout::{self, CandidateTrees, LastUse, PLATFORM_DIRECTORY, PODMAN_STORE};
use crate::path::EntryPath;
use crate::repository::{Repository, RepositoryError};

/// Errors from the search for unused trees.
#[derive(Debug, thiserror::Error)]
pub enum UnusedError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The images cannot be listed.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The trees of an image are unknown.
    #[error("cannot determine unused trees: no file in '{directory}' lists the trees that the image uses")]
    UnknownTrees {
        /// The directory of the image's record.
        directory: EntryPath,
    },
}

/// A tree that no image uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedTree {
    /// Its path in the repository.
    pub path: EntryPath,
    /// When and by which image it was last used, if a publication recorded that.
    pub last_use: Option<LastUse>,
}

/// Returns the unused trees in the order of their paths.
pub fn unused_trees(repository: &Repository) -> Result<Vec<UnusedTree>, UnusedError> {
    let mut used = BTreeSet::new();
    for image in inventory::list(repository)? {
        used.extend(trees_of(repository, &image)?);
    }
    add_linked(repository, &mut used)?;
    let candidates = candidates(repository)?;
    let unused = all_trees(repository)?.into_iter().filter(|tree| !used.contains(tree));
    Ok(unused.map(|path| UnusedTree { last_use: candidates.get(&path).cloned(), path }).collect())
}

/// Returns the list of candidates of a revision, under its name or its former name.
pub(crate) fn candidates(head: &Repository) -> Result<CandidateTrees, RepositoryError> {
    // A missing or damaged list counts as empty: its trees then count as unused only from now on.
    let read = |path: EntryPath| head.read_if_intact(&path, layout::MAX_LIST_SIZE);
    let mut candidates = CandidateTrees::parse(&read(layout::candidate_trees())?.unwrap_or_default());
    if let Some(former) = read(layout::former_candidate_trees())? {
        candidates.merge(CandidateTrees::parse_former(&former));
    }
    Ok(candidates)
}

/// Returns the trees of an image that strata or DUCC published.
fn trees_of(repository: &Repository, image: &ListedImage) -> Result<BTreeSet<EntryPath>, UnusedError> {
    if let Some(record) = &image.record {
        return Ok(record.trees());
    }
    let trees = foreign_trees(repository, &image.place)?;
    // Every image has at least a flat tree. Without one, the manifest is damaged or has an unknown format.
    let unknown = || UnusedError::UnknownTrees { directory: image.place.metadata() };
    if trees.is_empty() { Err(unknown()) } else { Ok(trees) }
}

/// Adds the trees to which links in public directories point: another program may publish images without files below `.metadata`.
/// Hidden directories are not searched, except that of the platforms.
fn add_linked(repository: &Repository, used: &mut BTreeSet<EntryPath>) -> Result<(), RepositoryError> {
    let is_public = |name: &[u8]| {
        name == PLATFORM_DIRECTORY.as_bytes() || !name.starts_with(b".") && name != PODMAN_STORE.as_bytes()
    };
    let mut waiting = vec![EntryPath::ROOT];
    while let Some(directory) = waiting.pop() {
        for (name, entry) in repository.list(&directory)? {
            let path = directory.join(&name);
            if directory.is_root() && !is_public(&name) {
                continue;
            }
            if entry.is_directory() {
                waiting.push(path);
            } else if entry.is_symlink() {
                used.extend(target(repository, &directory, &entry.target()).as_ref().and_then(layout::tree_of));
            }
        }
    }
    Ok(())
}

/// Returns the path to which a link in `directory` points, without following other links; `None` if it is outside the repository.
fn target(repository: &Repository, directory: &EntryPath, target: &[u8]) -> Option<EntryPath> {
    let mut path = directory.clone();
    let mut relative = target;
    if target.starts_with(b"/") {
        let root = repository.client_mountpoint();
        relative = target.strip_prefix(root.as_os_str().as_encoded_bytes())?.strip_prefix(b"/")?;
        path = EntryPath::ROOT;
    }
    for name in relative.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        path = if name == b".." { path.split()?.0 } else { path.join(name) };
    }
    Some(path)
}

/// Returns the paths of all layers, chains and flat trees.
fn all_trees(repository: &Repository) -> Result<BTreeSet<EntryPath>, RepositoryError> {
    let mut trees = BTreeSet::new();
    for top in layout::tree_directories() {
        for directory in inventory::directories(repository, &top)? {
            let directory = top.join(&directory);
            let names = inventory::directories(repository, &directory)?.into_iter().filter(|name| is_hex_digest(name));
            trees.extend(names.map(|name| directory.join(&name)));
        }
    }
    Ok(trees)
}

fn is_hex_digest(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|name| format!("sha256:{name}").parse::<Digest>().is_ok())
}
