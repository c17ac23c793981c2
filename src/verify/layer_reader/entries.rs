//! Turns the members of an archive into entries of the layer, and collects the losses.

use std::collections::HashMap;
use std::sync::Arc;

use ::tar::EntryType;

use super::archive::Member;
use super::error::EntryProblem;
use super::names::{Meaning, meaning};
use super::{within, xattrs};
use crate::layer::{DeviceNumber, EntryKind, LayerEntry, Limit, Limits, Loss, LossKind, Losses, NodeKind};
use crate::metadata::{Metadata, Timestamp, Xattrs};
use crate::path::EntryPath;

/// Longest target of a symbolic link on Linux in bytes: `PATH_MAX` without the NUL.
const MAX_TARGET: usize = 4095;

/// State of turning members into entries.
pub(super) struct Entries {
    limits: Limits,
    /// Size of all paths, targets and attributes so far, in bytes.
    metadata_size: u64,
    pub(super) losses: Losses,
    /// Paths whose last entry cannot be published, and why.
    unpublished: HashMap<EntryPath, LossKind>,
    /// Attributes of the last entry that had any. Many entries of an image have equal ones.
    last_xattrs: Option<Arc<Xattrs>>,
}

impl Entries {
    pub(super) fn new(limits: Limits) -> Self {
        let (metadata_size, losses, unpublished) = Default::default();
        Self { limits, metadata_size, losses, unpublished, last_xattrs: None }
    }

    /// Returns the entry of a member, or `None` for a member without any effect.
    pub(super) fn entry(&mut self, member: &Member) -> Result<Option<LayerEntry>, EntryProblem> {
        let entry = match meaning(&member.path, &self.limits)? {
            Meaning::Whiteout(path) => Some(LayerEntry { path, kind: EntryKind::Whiteout }),
            Meaning::Opaque(path) => Some(LayerEntry { path, kind: EntryKind::Opaque }),
            Meaning::Addition(path) => Some(self.addition(path, member, false)?),
            // Needed only as the target of hard links, so a directory is not needed.
            Meaning::Bookkeeping(_) if member.kind == EntryType::Directory => None,
            Meaning::Bookkeeping(path) => {
                let entry = self.addition(path, member, true)?;
                (entry.kind != EntryKind::Unpublished).then_some(entry)
            }
        };
        self.metadata_size += entry.as_ref().map_or(0, metadata_size);
        within(Limit::MetadataSize, self.metadata_size, self.limits.metadata_size)?;
        Ok(entry)
    }

    /// Returns the entry of a member that adds something. What is left out of the `bookkeeping` of AUFS is not a loss.
    fn addition(&mut self, path: EntryPath, member: &Member, is_bookkeeping: bool) -> Result<LayerEntry, EntryProblem> {
        let kind = match self.kind(&path, member)? {
            Ok(kind) => {
                self.unpublished.remove(&path);
                kind
            }
            Err(loss) => {
                self.unpublished.insert(path.clone(), loss);
                if !is_bookkeeping {
                    self.lose(&path, loss);
                }
                EntryKind::Unpublished
            }
        };
        Ok(LayerEntry { path, kind })
    }

    /// Returns what a member adds, or why it cannot be published.
    fn kind(&mut self, path: &EntryPath, member: &Member) -> Result<Result<EntryKind, LossKind>, EntryProblem> {
        if member.kind == EntryType::Link {
            if member.link.is_empty() {
                return Err(EntryProblem::Target);
            }
            let target = EntryPath::normalise(&member.link)?;
            let loss = self.unpublished.get(&target).copied();
            return Ok(loss.map_or(Ok(EntryKind::HardLink(target)), Err));
        }
        let node = match member.kind {
            EntryType::Regular => NodeKind::File { size: member.content.size, content: () },
            EntryType::Directory => NodeKind::Directory,
            EntryType::Symlink => NodeKind::Symlink(checked_target(&member.link)?.into()),
            EntryType::Char => NodeKind::CharacterDevice(device(member)?),
            EntryType::Block => NodeKind::BlockDevice(device(member)?),
            EntryType::Fifo => NodeKind::Fifo,
            _ => return Ok(Err(LossKind::UnknownType)),
        };
        // In overlay mounts, this device is a whiteout.
        if node == NodeKind::CharacterDevice(DeviceNumber { major: 0, minor: 0 }) {
            return Ok(Err(LossKind::OverlayDevice));
        }
        let metadata = Metadata { xattrs: None, ..metadata(member)? };
        Ok(Ok(EntryKind::Node(Metadata { xattrs: self.xattrs(path, member), ..metadata }, node)))
    }

    fn xattrs(&mut self, path: &EntryPath, member: &Member) -> Option<Arc<Xattrs>> {
        if member.pax.has_acl {
            self.lose(path, LossKind::Acl);
        }
        let (xattrs, losses) = xattrs::split(&member.pax.xattrs);
        for loss in losses {
            self.lose(path, loss);
        }
        if xattrs.is_empty() {
            return None;
        }
        if self.last_xattrs.as_deref() != Some(&xattrs) {
            self.last_xattrs = Some(Arc::new(xattrs));
        }
        self.last_xattrs.clone()
    }

    fn lose(&mut self, path: &EntryPath, kind: LossKind) {
        self.losses.add(Loss { path: path.clone(), kind });
    }
}

/// Returns the metadata of a member without its extended attributes.
fn metadata(member: &Member) -> Result<Metadata, EntryProblem> {
    let (header, pax) = (&member.header, &member.pax);
    let mode = (header.mode()? & 0o7777) as u16;
    let uid = id("uid", pax.uid.map_or_else(|| header.uid(), Ok)?)?;
    let gid = id("gid", pax.gid.map_or_else(|| header.gid(), Ok)?)?;
    let mtime = match pax.mtime {
        Some(mtime) => mtime,
        None => Timestamp { seconds: header.mtime()?, nanoseconds: 0 },
    };
    Ok(Metadata { mode, uid, gid, mtime, xattrs: None })
}

/// Returns a user or group ID. The largest 32-bit number is not one: `chown` interprets it as "leave unchanged".
fn id(field: &'static str, value: i64) -> Result<u32, EntryProblem> {
    match u32::try_from(value) {
        Ok(id) if id < u32::MAX => Ok(id),
        _ => Err(EntryProblem::Number(field)),
    }
}

fn checked_target(target: &[u8]) -> Result<&[u8], EntryProblem> {
    match target {
        [] => Err(EntryProblem::Target),
        _ if target.len() > MAX_TARGET => Err(EntryProblem::Target),
        _ if target.contains(&0) => Err(EntryProblem::Target),
        _ => Ok(target),
    }
}

/// Returns a device number. Clients pass on 12 bits of the major and 20 bits of the minor number.
fn device(member: &Member) -> Result<DeviceNumber, EntryProblem> {
    let (major, minor) = member.header.device()?;
    let (major, minor) = (member.pax.device_major.unwrap_or(major), member.pax.device_minor.unwrap_or(minor));
    let number = |value: i64, bits: u32| u32::try_from(value).ok().filter(|&value| value >> bits == 0);
    match (number(major, 12), number(minor, 20)) {
        (Some(major), Some(minor)) => Ok(DeviceNumber { major, minor }),
        _ => Err(EntryProblem::Number("device number")),
    }
}

/// Returns the size in bytes of an entry's path, target and attributes.
fn metadata_size(entry: &LayerEntry) -> u64 {
    let of_xattrs = |xattrs: &Xattrs| xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    let more: usize = match &entry.kind {
        EntryKind::HardLink(target) => target.as_bytes().len(),
        EntryKind::Node(metadata, kind) => {
            let target = if let NodeKind::Symlink(target) = kind { target.len() } else { 0 };
            target + metadata.xattrs.as_deref().map_or(0, of_xattrs)
        }
        EntryKind::Unpublished | EntryKind::Whiteout | EntryKind::Opaque => 0,
    };
    (entry.path.as_bytes().len() + more) as u64
}
