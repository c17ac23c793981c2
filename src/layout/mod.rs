//! Paths of everything that is published.
//!
//! Paths are byte-identical to those of DUCC, the converter that sites have used so far, so that every consumer that works with its
//! repositories also works with ours.

mod chains;
mod place;
mod record;

use crate::image::{ChainId, Digest, ImageName};
use crate::path::EntryPath;

pub use chains::ChainSelection;
pub use place::{ARCHITECTURE_ALIASES, ImagePlace, PLATFORM_DIRECTORY, platform_of_directory, variant_link_target};
pub use record::{CandidateTrees, ImageRecord, LastUse, LayerRecord, LossList, Stamp, TreeFacts, WishedNames};
pub(crate) use record::{MAX_IMAGE_RECORD_SIZE, MAX_LAYER_RECORD_SIZE, MAX_LIST_SIZE, MAX_LOSSES_SIZE};

/// Directory of the image store for podman.
pub const PODMAN_STORE: &str = "podmanStore";

/// Returns whether a conversion of an image writes the file at this path, so that another conversion restores it if it is lost.
pub(crate) fn is_written_for_images(path: &EntryPath) -> bool {
    let is_list = [wished_names(), candidate_trees(), former_candidate_trees()].contains(path);
    let first = path.components().next().unwrap_or_default();
    let is_ours =
        matches!(first, b".metadata" | b".layers" | b".chains" | b".flat") || first == PODMAN_STORE.as_bytes();
    is_ours && !is_list
}

/// Parses a path that strata composes from valid parts.
fn path(text: &str) -> EntryPath {
    EntryPath::normalise(text.as_bytes()).expect("digests, image names and fixed words make valid paths")
}

/// Returns the directory of a layer, which contains `layerfs` and `.metadata`.
pub fn layer_directory(digest: Digest) -> EntryPath {
    // Named by the digest of the compressed blob, as the snapshotter for containerd requests layers.
    below(".layers", digest)
}

/// Returns the root of a layer in overlay form, ready for an overlay mount.
pub fn layer_root(digest: Digest) -> EntryPath {
    layer_directory(digest).join(b"layerfs")
}

/// Returns the path of the [`LayerRecord`] of a layer.
pub fn layer_record(digest: Digest) -> EntryPath {
    layer_directory(digest).join(b".metadata").join(b"strata.json")
}

/// Returns the root of a chain.
pub fn chain_root(chain: ChainId) -> EntryPath {
    // Named by the OCI chain ID. Chains of DUCC have other IDs, from the digests of compressed layers.
    below(".chains", chain.0)
}

/// Returns the flat tree (root file system) of the image with this config.
pub fn flat_root(config: Digest) -> EntryPath {
    // As in DUCC, images with the same config share one tree.
    below(".flat", config)
}

/// Returns the config digest of the image whose flat tree has this path; `None` if the path is not that of a flat tree.
pub fn config_of_flat(path: &EntryPath) -> Option<Digest> {
    let config: Digest = format!("sha256:{}", std::str::from_utf8(path.name()).ok()?).parse().ok()?;
    (flat_root(config) == *path).then_some(config)
}

fn below(top: &str, digest: Digest) -> EntryPath {
    let hex = digest.hex();
    path(&format!("{top}/{}/{hex}", &hex[..2]))
}

/// Returns whether `path` is the root of a layer, chain or flat tree, or is below one.
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

/// Returns the path of [`CandidateTrees`].
pub fn candidate_trees() -> EntryPath {
    path(".metadata/candidates.json")
}

/// Returns the path at which earlier versions stored [`CandidateTrees`].
pub fn former_candidate_trees() -> EntryPath {
    path(".metadata/unused.json")
}

/// Returns the directories of layers, chains and flat trees.
pub fn tree_directories() -> [EntryPath; 3] {
    [".layers", ".chains", ".flat"].map(path)
}

/// Returns the tree that contains a path: the first three components of a path below a directory of trees.
pub fn tree_of(path: &EntryPath) -> Option<EntryPath> {
    let mut components = path.components();
    let top = EntryPath::ROOT.join(components.next()?);
    let is_top = tree_directories().contains(&top);
    let tree = top.join(components.next()?).join(components.next()?);
    is_top.then_some(tree)
}

/// Returns the path of [`WishedNames`].
pub fn wished_names() -> EntryPath {
    path(".metadata/wishlists.json")
}

/// Returns the directories above `path` that are nested catalogs, outermost first.
///
/// These are the first component of a path and, below podman's store and directories that begin with a dot, the second one.
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
    fn paths_are_those_that_consumers_expect() {
        let digest = Digest::of(b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(layer_root(digest).to_string(), format!("/.layers/e3/{hex}/layerfs"));
        assert_eq!(chain_root(ChainId(digest)).to_string(), format!("/.chains/e3/{hex}"));
        let name: ImageName = "registry.hub.docker.com/library/ubuntu:latest".parse().unwrap();
        assert_eq!(public_link(&name).to_string(), "/registry.hub.docker.com/library/ubuntu:latest");
    }

    #[test]
    fn nested_catalogs_are_the_first_one_or_two_directories() {
        let catalogs = |text: &str| catalogs_above(&path(text)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(catalogs(".layers/e3/e3b0/layerfs"), ["/.layers", "/.layers/e3"]);
        assert_eq!(catalogs(".metadata/host/name:tag/manifest.json"), ["/.metadata", "/.metadata/host"]);
        assert_eq!(catalogs(".metadata/candidates.json"), ["/.metadata"]);
        assert_eq!(catalogs("host/a/b:tag"), ["/host"]);
        let overlay = ["/podmanStore", "/podmanStore/overlay"];
        assert_eq!(catalogs("podmanStore/overlay/l/A"), overlay);
    }

    #[test]
    fn paths_in_trees_are_distinguished_from_paths_above_them() {
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
