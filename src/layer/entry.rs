//! What one layer says about one path.

use serde::{Deserialize, Serialize};

use crate::metadata::Metadata;
use crate::path::EntryPath;

/// One statement of a layer about one path.
///
/// `C` is what stands for the content of a regular file: nothing while the archive is read, a list of objects later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerEntry<C = ()> {
    /// What the statement is about. For a whiteout the path that it hides, for an opaque marker the directory it stands in.
    pub path: EntryPath,
    /// What is to be there, or to go.
    pub kind: EntryKind<C>,
}

impl<C> LayerEntry<C> {
    /// Puts something else in the place of what stands for the content of a regular file.
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

/// What a layer says about a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind<C = ()> {
    /// Something of its own is at the path.
    Node(Metadata, NodeKind<C>),
    /// The path is another name for what is at the path held here. The archive's metadata of a link counts for nothing.
    HardLink(EntryPath),
    /// Something is at the path that CVMFS cannot hold. It hides and replaces what is there as any entry does, but nothing is
    /// published in its place.
    Unpublished,
    /// Hides the path of lower layers (`.wh.NAME`).
    Whiteout,
    /// Hides everything that lower layers have in the directory (`.wh..wh..opq`).
    Opaque,
}

/// What kind of thing is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeKind<C = ()> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes, holes counted.
        size: u64,
        /// What stands for the content.
        content: C,
    },
    /// A symbolic link, with its target as the archive has it.
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

/// The number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// Which driver: below 4,096, as CVMFS clients pass 12 bits on.
    pub major: u32,
    /// Which of its devices: below 1,048,576, as CVMFS clients pass 20 bits on.
    pub minor: u32,
}
