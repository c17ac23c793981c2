//! What an image has and CVMFS cannot hold, although the image is usable without it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::path::EntryPath;

/// What was left out at a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// Where.
    pub path: EntryPath,
    /// What.
    pub kind: LossKind,
}

/// What kind of thing was left out. The text form, also in JSON, is the name in kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// An extended attribute with a value of more than 255 bytes.
    XattrValueTooLong,
    /// Extended attributes beyond the first 255, in the order of their names' bytes.
    TooManyXattrs,
    /// An extended attribute whose name CVMFS clients answer themselves.
    MagicXattr,
    /// An extended attribute whose name is empty, longer than 255 bytes or has a NUL in it.
    XattrName,
    /// An access control list.
    Acl,
    /// An extended attribute that overlay file systems would obey.
    OverlayXattr,
    /// A character device 0:0, which overlay file systems would take for a whiteout.
    OverlayDevice,
    /// An entry of a type that has no meaning in an image, such as a socket.
    UnknownType,
    /// A hard link to another directory, which becomes an entry of its own with the same objects.
    #[serde(rename = "link-across-folders")]
    LinkAcrossDirectories,
    /// A hard link into lower layers, where the published layer shows what it is above another image's.
    LinkIntoOtherParents,
    /// A directory that a layer does not name, or something that it hides, where the published layer is as it is above
    /// another image's.
    LayerOfOtherParents,
    /// A symbolic link to a directory that a layer puts entries below without an entry of its own for it. In the published layer
    /// a directory is in its place, as containerd and podman unpack it too, so that the link is hidden in containers that mount
    /// the layers over each other.
    MaskedLink,
    /// Something named `.cvmfscatalog` that cannot mark a nested catalog, or one too many that could.
    StrayMarker,
}

impl fmt::Display for LossKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What was left out of a layer: every loss is counted, and the first ones of each kind are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Losses(BTreeMap<LossKind, KindLosses>);

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct KindLosses {
    count: u64,
    paths: Vec<EntryPath>,
}

impl Losses {
    /// So many paths of each kind are listed; more are only counted.
    pub const MAX_LISTED: usize = 10_000;

    /// Notes one more loss.
    pub fn add(&mut self, loss: Loss) {
        let of_kind = self.0.entry(loss.kind).or_default();
        of_kind.count += 1;
        if of_kind.paths.len() < Self::MAX_LISTED {
            of_kind.paths.push(loss.path);
        }
    }

    /// Tells whether nothing was left out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many losses of a kind there are.
    pub fn count(&self, kind: LossKind) -> u64 {
        self.0.get(&kind).map_or(0, |of_kind| of_kind.count)
    }

    /// Returns each kind that there is, how many losses are of it, and the first paths in the order of the archive.
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
