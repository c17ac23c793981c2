//! One entry of a layer: a node to add at a path, or a mark that hides nodes of lower layers.

use serde::{Deserialize, Serialize};

use crate::metadata::Metadata;
use crate::path::EntryPath;

/// One entry of a layer: what the layer adds at one path, or hides there.
///
/// `C` represents the content of a regular file: `()` while the archive is read, later the list of objects that store it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerEntry<C = ()> {
    /// Path of the entry. For a whiteout the path that is hidden; for an opaque marker the directory that contains the marker.
    pub path: EntryPath,
    /// What is added or hidden.
    pub kind: EntryKind<C>,
}

impl<C> LayerEntry<C> {
    /// Returns the size of a regular file in bytes, including holes, or `None` for all other entries.
    pub fn file_size(&self) -> Option<u64> {
        match self.kind {
            EntryKind::Node(_, NodeKind::File { size, .. }) => Some(size),
            _ => None,
        }
    }

    /// Replaces the representation of a regular file's content.
    pub fn map_content<D>(self, content: impl FnOnce(C) -> D) -> LayerEntry<D> {
        let kind = match self.kind {
            EntryKind::Node(metadata, kind) => EntryKind::Node(metadata, kind.map_content(content)),
            EntryKind::HardLink(target) => EntryKind::HardLink(target),
            EntryKind::Unpublished => EntryKind::Unpublished,
            EntryKind::Whiteout => EntryKind::Whiteout,
            EntryKind::Opaque => EntryKind::Opaque,
        };
        LayerEntry { path: self.path, kind }
    }
}

/// What a layer adds at a path, or hides there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind<C = ()> {
    /// A new inode.
    Node(Metadata, NodeKind<C>),
    /// A hard link: another name of the inode at this target path. The link's own metadata in the archive is ignored.
    HardLink(EntryPath),
    /// A node that CVMFS cannot represent. Like any entry, it hides and replaces an existing node, but nothing is published
    /// at the path.
    Unpublished,
    /// Hides the path of lower layers (`.wh.NAME`).
    Whiteout,
    /// Hides all entries of lower layers in the directory (`.wh..wh..opq`).
    Opaque,
}

/// Type of an inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind<C = ()> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Size in bytes, including holes.
        size: u64,
        /// Representation of the content.
        content: C,
    },
    /// A symbolic link, with its target exactly as in the archive.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

impl<C> NodeKind<C> {
    fn map_content<D>(self, map: impl FnOnce(C) -> D) -> NodeKind<D> {
        match self {
            Self::Directory => NodeKind::Directory,
            Self::File { size, content } => NodeKind::File { size, content: map(content) },
            Self::Symlink(target) => NodeKind::Symlink(target),
            Self::CharacterDevice(number) => NodeKind::CharacterDevice(number),
            Self::BlockDevice(number) => NodeKind::BlockDevice(number),
            Self::Fifo => NodeKind::Fifo,
        }
    }
}

/// Device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Major number, below 4,096, because CVMFS clients pass on 12 bits.
    pub major: u32,
    /// Minor number, below 1,048,576, because CVMFS clients pass on 20 bits.
    pub minor: u32,
}
