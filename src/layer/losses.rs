//! Losses: parts of an image that CVMFS cannot represent and without which the image is still usable.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::path::EntryPath;

/// Something that was left out at a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// Path of the entry.
    pub path: EntryPath,
    /// What was left out.
    pub kind: LossKind,
}

/// Kind of a loss. Its text form, also in JSON, is the name in kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// An extended attribute with a value longer than 255 bytes.
    XattrValueTooLong,
    /// Extended attributes after the first 255, in byte order of their names.
    TooManyXattrs,
    /// An extended attribute with a name that CVMFS clients answer themselves ("magic" attributes).
    MagicXattr,
    /// An extended attribute with a name that is empty, longer than 255 bytes, or contains a NUL.
    XattrName,
    /// An access control list.
    Acl,
    /// An extended attribute that overlay file systems would interpret.
    OverlayXattr,
    /// A character device 0:0, which overlay file systems interpret as a whiteout.
    OverlayDevice,
    /// An entry of a type that has no meaning in an image, such as a socket.
    UnknownType,
    /// A hard link across directories, which is published as an independent entry with the same objects.
    // This name is in `losses.json` files that are already published, so it must not change.
    #[serde(rename = "link-across-folders")]
    LinkAcrossDirectories,
    /// A hard link into lower layers. The layer was published on top of the lower layers of another image, and contains the
    /// target that those layers have.
    LinkIntoOtherParents,
    /// A whiteout, or a directory that the layer does not name. The layer was published on top of the lower layers of
    /// another image, and contains the whiteout or directory that fits those layers.
    LayerOfOtherParents,
    /// A symbolic link of lower layers. The layer has entries below the path of the link, and does not name a directory at
    /// that path. The published layer has a directory there, as containerd and podman unpack it, so the link is hidden in
    /// containers that mount the published layers as an overlay.
    MaskedLink,
    /// An entry named `.cvmfscatalog` that cannot mark a nested catalog, or that exceeds the maximum number of such marks.
    StrayMarker,
    /// A description of a file bundle (`.cvmfsbundle-NAME` beside a file NAME), by which CVMFS clients fetch other files when NAME is
    /// opened. It is published as any other file, but has no effect: its paths are those of a repository, and NAME is not marked as
    /// the trigger.
    FileBundle,
}

impl fmt::Display for LossKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// All losses of a layer. Each is counted; of each kind, the first paths are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Losses(BTreeMap<LossKind, KindLosses>);

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct KindLosses {
    count: u64,
    paths: Vec<EntryPath>,
}

impl Losses {
    /// Maximum number of paths that are listed of each kind. Further losses are only counted.
    pub const MAX_LISTED: usize = 10_000;

    /// Adds a loss.
    pub fn add(&mut self, loss: Loss) {
        let of_kind = self.0.entry(loss.kind).or_default();
        of_kind.count += 1;
        if of_kind.paths.len() < Self::MAX_LISTED {
            of_kind.paths.push(loss.path);
        }
    }

    /// Returns whether there are no losses.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of losses of a kind.
    pub fn count(&self, kind: LossKind) -> u64 {
        self.0.get(&kind).map_or(0, |of_kind| of_kind.count)
    }

    /// Returns each kind with losses, their number, and the first paths in the order of the archive.
    pub fn kinds(&self) -> impl Iterator<Item = (LossKind, u64, &[EntryPath])> {
        self.0.iter().map(|(&kind, of_kind)| (kind, of_kind.count, of_kind.paths.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_beyond_the_list_are_counted() {
        let path = EntryPath::normalise(b"a").unwrap();
        let mut losses = Losses::default();
        for _ in 0..=Losses::MAX_LISTED {
            losses.add(Loss { path: path.clone(), kind: LossKind::Acl });
        }
        assert_eq!(losses.count(LossKind::Acl), Losses::MAX_LISTED as u64 + 1);
        let listed: Vec<_> = losses.kinds().map(|(kind, _, paths)| (kind, paths.len())).collect();
        assert_eq!(listed, [(LossKind::Acl, Losses::MAX_LISTED)]);
    }

    #[test]
    fn kind_of_loss_is_written_in_kebab_case() {
        assert_eq!(LossKind::XattrValueTooLong.to_string(), "xattr-value-too-long");
        assert_eq!(LossKind::Acl.to_string(), "acl");
    }
}
