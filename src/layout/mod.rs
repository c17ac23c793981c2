//! What is published where.
//!
//! Paths are byte for byte those of the converter that sites have used so far, so that every consumer that works with its
//! repositories works with ours.

mod place;
mod record;

use crate::image::{ChainId, Digest, ImageName};
use crate::path::EntryPath;

pub use place::{ALIASES, ImagePlace, PLATFORMS, platform_of_directory, variant_link_target};
pub use record::{CandidateTrees, ImageRecord, LayerRecord, Left, LossList, Stamp, TreeFacts, WishedNames};

/// The directory of the image store that podman reads.
pub const PODMAN_STORE: &str = "podmanStore";

/// Tells whether a path is that of a file that a conversion writes for the images it belongs to, and writes again if it is lost.
pub(crate) fn is_written_for_images(path: &EntryPath) -> bool {
    let is_list = [wished_names(), candidate_trees(), former_candidate_trees()].contains(path);
    let first = path.components().next().unwrap_or_default();
    let is_ours =
        matches!(first, b".metadata" | b".layers" | b".chains" | b".flat") || first == PODMAN_STORE.as_bytes();
    is_ours && !is_list
}

/// Parses a path that strata itself composes.
fn path(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).expect("digests, image names and fixed words make valid paths")
}

/// Returns the directory of a layer, which holds `layerfs` and `.metadata`.
pub fn layer_directory(digest: Digest) -> EntryPath {
    below(".layers", digest)
}

/// Returns the root of a layer by itself, in the form that overlay mounts take.
pub fn layer_root(digest: Digest) -> EntryPath {
    layer_directory(digest).join(b"layerfs")
}

/// Returns the file that says about a layer what its root cannot say.
pub fn layer_record(digest: Digest) -> EntryPath {
    layer_directory(digest).join(b".metadata").join(b"strata.json")
}

/// Returns the root of a chain.
pub fn chain_root(chain: ChainId) -> EntryPath {
    below(".chains", chain.0)
}

/// Returns the root file system of the image with this config.
pub fn flat_root(config: Digest) -> EntryPath {
    below(".flat", config)
}

/// Returns the config of the image whose root file system is at `path`, if one is to be there.
pub fn config_of_flat(path: &EntryPath) -> Option<Digest> {
    let config: Digest = format!("sha256:{}", std::str::from_utf8(path.name()).ok()?).parse().ok()?;
    (flat_root(config) == *path).then_some(config)
}

fn below(top: &str, digest: Digest) -> EntryPath {
    let hex = digest.hex();
    path(&format!("{top}/{}/{hex}", &hex[..2]))
}

/// Tells whether `path` is the root of a layer, chain or root file system, or lies in one.
pub fn is_in_tree(path: &EntryPath) -> bool {
    let depth = path.components().count();
    match path.components().next() {
        Some(b".layers") => depth >= 4 && path.components().nth(3) == Some(b"layerfs"),
        Some(b".chains" | b".flat") => depth >= 3,
        _ => false,
    }
}

/// Returns the public link of an image.
pub fn public_link(name: &ImageName) -> EntryPath {
    path(&name.public_path())
}

/// Returns the list of trees that names left.
pub fn candidate_trees() -> EntryPath {
    path(".metadata/candidates.json")
}

/// Returns where the list of trees that names left was once.
pub fn former_candidate_trees() -> EntryPath {
    path(".metadata/unused.json")
}

/// Returns the directories that hold trees: layers, chains and root file systems.
pub fn tree_directories() -> [EntryPath; 3] {
    [".layers", ".chains", ".flat"].map(path)
}

/// Returns the tree that a path lies in or leads to: the first three components of one below a directory of trees.
pub fn tree_of(path: &EntryPath) -> Option<EntryPath> {
    let mut components = path.components();
    let top = EntryPath::ROOT.join(components.next()?);
    let is_top = tree_directories().contains(&top);
    let tree = top.join(components.next()?).join(components.next()?);
    is_top.then_some(tree)
}

/// Returns the list of names that wishlists hold.
pub fn wished_names() -> EntryPath {
    path(".metadata/wishlists.json")
}

/// Returns the directories above `path` that are nested catalogs, from the root down.
///
/// They are the first directory of a path and, below podman's store and the directories with a dot, the second.
pub fn catalogs_above(path: &EntryPath) -> Vec<EntryPath> {
    let is_own = path.as_bytes().starts_with(b".") || path.components().next() == Some(PODMAN_STORE.as_bytes());
    let depth = if is_own { 2 } else { 1 };
    let mut catalogs = Vec::new();
    let mut at = EntryPath::ROOT;
    let above = path.components().count().saturating_sub(1);
    for name in path.components().take(depth.min(above)) {
        at = at.join(name);
        catalogs.push(at.clone());
    }
    catalogs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_that_consumers_know() {
        let digest = Digest::of(b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(layer_root(digest).to_string(), format!("/.layers/e3/{hex}/layerfs"));
        assert_eq!(chain_root(ChainId(digest)).to_string(), format!("/.chains/e3/{hex}"));
        let name: ImageName = "registry.hub.docker.com/library/ubuntu:latest".parse().unwrap();
        assert_eq!(public_link(&name).to_string(), "/registry.hub.docker.com/library/ubuntu:latest");
    }

    #[test]
    fn nested_catalogs_stand_where_the_design_says() {
        let catalogs = |text: &str| catalogs_above(&path(text)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(catalogs(".layers/e3/e3b0/layerfs"), ["/.layers", "/.layers/e3"]);
        assert_eq!(catalogs(".metadata/host/name:tag/manifest.json"), ["/.metadata", "/.metadata/host"]);
        assert_eq!(catalogs(".metadata/candidates.json"), ["/.metadata"]);
        assert_eq!(catalogs("host/a/b:tag"), ["/host"]);
        let overlay = ["/podmanStore", "/podmanStore/overlay"];
        assert_eq!(catalogs("podmanStore/overlay/l/A"), overlay);
    }

    #[test]
    fn trees_are_told_from_what_holds_them() {
        for inside in
            [".layers/e3/e3b0/layerfs", ".layers/e3/e3b0/layerfs/a", ".chains/e3/e3b0", ".flat/e3/e3b0/usr/lib"]
        {
            assert!(is_in_tree(&path(inside)), "{inside}");
        }
        for outside in [".layers", ".layers/e3/e3b0/.metadata/strata.json", ".chains/e3", "host/a:1", ".metadata/host"]
        {
            assert!(!is_in_tree(&path(outside)), "{outside}");
        }
        assert!(!is_in_tree(&EntryPath::ROOT));
    }

    #[test]
    fn tree_is_found_by_any_path_in_it() {
        let tree = |text: &str| tree_of(&path(text)).map(|tree| tree.to_string());
        assert_eq!(tree(".flat/ab/abc"), Some("/.flat/ab/abc".to_owned()));
        assert_eq!(tree(".layers/ab/abc/layerfs/etc"), Some("/.layers/ab/abc".to_owned()));
        for outside in [".flat/ab", "host/a/b", ".metadata/a/b"] {
            assert_eq!(tree(outside), None, "{outside}");
        }
    }

    #[test]
    fn root_file_systems_are_recognised_by_their_paths() {
        let config = Digest::of(b"");
        assert_eq!(config_of_flat(&flat_root(config)), Some(config));
        assert_eq!(config_of_flat(&chain_root(ChainId(config))), None);
        assert_eq!(config_of_flat(&flat_root(config).join(b"etc")), None);
        assert_eq!(config_of_flat(&EntryPath::ROOT), None);
    }
}
