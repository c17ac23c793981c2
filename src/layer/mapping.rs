//! Maps the members of an archive to entries of the layer.

use super::{DeviceNumber, EntryError, Limit, Limits, NodeKind};
use crate::metadata::{Metadata, Timestamp};
use crate::path::EntryPath;
use crate::tar_archive::{Member, MemberKind};

// image-spec, layer.md, "Whiteouts" and "Opaque Whiteout". The prefix `.wh..wh.` is that of AUFS's own files.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
const BOOKKEEPING_PREFIX: &[u8] = b".wh..wh.";
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Maximum length of a symbolic link's target in bytes: Linux reads it into a page of 4,096 bytes, with a final NUL.
const MAX_TARGET_LENGTH: usize = 4095;

/// Meaning of a member's path (image-spec, layer.md, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MemberPath {
    /// The member is a node at this path.
    Path(EntryPath),
    /// The member is a whiteout. It hides this path in lower layers.
    Whiteout(EntryPath),
    /// The member is an opaque marker. It hides all entries of lower layers in this directory.
    Opaque(EntryPath),
    /// An internal file of AUFS, on which old versions of Docker ran. It is never published, but hard links of the same layer
    /// may refer to it.
    Bookkeeping(EntryPath),
}

impl MemberPath {
    /// Interprets the path of a member. Only the last component decides whether the member is a whiteout; the member's type and
    /// the names of its parent directories do not matter, as in umoci.
    ///
    /// The limits of names and paths apply to the hidden path, not to the name of the marker.
    pub(super) fn of(raw: &[u8], limits: &Limits) -> Result<Self, EntryError> {
        let path = EntryPath::clean(raw);
        let subject = match path.split() {
            Some(_) if is_bookkeeping(&path) => Self::Bookkeeping(path.checked()?),
            None => Self::Path(path),
            Some((_, name)) if !name.starts_with(WHITEOUT_PREFIX) => Self::Path(path.checked()?),
            Some((directory, OPAQUE_MARKER)) => Self::Opaque(directory.checked()?),
            Some((directory, name)) => match &name[WHITEOUT_PREFIX.len()..] {
                // Appended to a directory, these names would mean the directory itself or its parent (compare anchore/stereoscope #647).
                b"" | b"." | b".." => return Err(EntryError::BadWhiteout),
                hidden => Self::Whiteout(directory.join(hidden).checked()?),
            },
        };
        let (Self::Path(path) | Self::Whiteout(path) | Self::Opaque(path) | Self::Bookkeeping(path)) = &subject;
        Limit::PathLength.check(path.as_bytes().len() as u64, limits.path_length)?;
        Limit::PathDepth.check(path.components().count() as u64, limits.path_depth)?;
        Ok(subject)
    }
}

/// Returns whether a path is an internal file of AUFS or below an internal directory (`.wh..wh.aufs`, `.wh..wh.plnk`, …).
pub(crate) fn is_bookkeeping(path: &EntryPath) -> bool {
    path.components().any(|name| name.starts_with(BOOKKEEPING_PREFIX) && name != OPAQUE_MARKER)
}

/// Returns the type of inode that the member adds, or `None` if neither CVMFS nor images have such a type. Must not be
/// called for hard links.
pub(super) fn node_kind(member: &Member) -> Result<Option<NodeKind>, EntryError> {
    Ok(Some(match member.kind {
        MemberKind::File => NodeKind::File { size: member.size, content: () },
        MemberKind::Directory => NodeKind::Directory,
        MemberKind::Symlink => NodeKind::Symlink(symlink_target(member)?.into()),
        MemberKind::CharacterDevice => NodeKind::CharacterDevice(device(member)?),
        MemberKind::BlockDevice => NodeKind::BlockDevice(device(member)?),
        MemberKind::Fifo => NodeKind::Fifo,
        MemberKind::HardLink | MemberKind::Unknown => return Ok(None),
    }))
}

/// Returns the target path of a hard link.
pub(super) fn hard_link_target(member: &Member) -> Result<EntryPath, EntryError> {
    let target = member.link_target();
    if target.is_empty() {
        return Err(EntryError::NoTarget);
    }
    Ok(EntryPath::normalise(target)?)
}

/// Returns the metadata of a member without its extended attributes.
pub(super) fn metadata(member: &Member) -> Result<Metadata, EntryError> {
    let (header, extended) = (&member.header, &member.extended);
    Ok(Metadata {
        // Set-user-ID, set-group-ID and sticky bits stay, as in `sudo` and `/tmp`. The type flag alone states the file
        // type.
        mode: (header.mode()? & 0o7777) as u16,
        // Only numeric IDs count: user names would be looked up on this machine instead of in the image.
        uid: id("uid", extended.uid.map_or_else(|| header.uid(), Ok)?)?,
        gid: id("gid", extended.gid.map_or_else(|| header.gid(), Ok)?)?,
        mtime: match extended.mtime {
            Some(mtime) => mtime,
            // The header has whole seconds. Archives with more precise times have PAX records.
            None => Timestamp { seconds: header.mtime()?, nanoseconds: 0 },
        },
        xattrs: None,
    })
}

fn id(field: &'static str, value: i64) -> Result<u32, EntryError> {
    // 0xffffffff is not a valid ID: `chown` interprets it as "leave unchanged", and Linux shows the overflow ID instead.
    u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or(EntryError::Id { field, value })
}

fn symlink_target(member: &Member) -> Result<&[u8], EntryError> {
    let target = member.link_target();
    // Linux refuses a symbolic link with an empty target (ENOENT, symlink(2)).
    if target.is_empty() {
        Err(EntryError::NoTarget)
    } else if target.len() > MAX_TARGET_LENGTH {
        Err(EntryError::TargetTooLong)
    // Only a PAX record can contain a NUL. Linux would end the target there.
    } else if target.contains(&0) {
        Err(EntryError::TargetWithNul)
    } else {
        Ok(target)
    }
}

fn device(member: &Member) -> Result<DeviceNumber, EntryError> {
    let (major, minor) = member.header.device()?;
    let (major, minor) = (member.extended.device_major.unwrap_or(major), member.extended.device_minor.unwrap_or(minor));
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major @ ..0x1000), Ok(minor @ ..0x10_0000)) => Ok(DeviceNumber { major, minor }),
        _ => Err(EntryError::Device { major, minor }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::PathError;

    fn subject(raw: &str) -> Result<MemberPath, EntryError> {
        MemberPath::of(raw.as_bytes(), &Limits::default())
    }

    fn path(raw: &str) -> EntryPath {
        EntryPath::normalise(raw.as_bytes()).unwrap()
    }

    #[test]
    fn whiteouts_are_recognised_by_their_names() {
        for (raw, expected) in [
            ("./a/b/", MemberPath::Path(path("a/b"))),
            ("./", MemberPath::Path(EntryPath::ROOT)),
            ("a/.whx", MemberPath::Path(path("a/.whx"))),
            ("a.wh.b", MemberPath::Path(path("a.wh.b"))),
            ("a/.wh.b", MemberPath::Whiteout(path("a/b"))),
            ("/.wh.b", MemberPath::Whiteout(path("b"))),
            (".wh.b/", MemberPath::Whiteout(path("b"))),
            (".wh..b", MemberPath::Whiteout(path(".b"))),
            (".wh....", MemberPath::Whiteout(path("..."))),
            ("a/.wh..wh..opq", MemberPath::Opaque(path("a"))),
            (".wh..wh..opq", MemberPath::Opaque(EntryPath::ROOT)),
            ("a/../.wh.b", MemberPath::Whiteout(path("b"))),
            (".wh.a/../b", MemberPath::Path(path("b"))),
            (".wh..wh.aufs", MemberPath::Bookkeeping(path(".wh..wh.aufs"))),
            (".wh..wh.plnk/1.2", MemberPath::Bookkeeping(path(".wh..wh.plnk/1.2"))),
            ("a/.wh..wh.orph/.wh.b", MemberPath::Bookkeeping(path("a/.wh..wh.orph/.wh.b"))),
        ] {
            assert_eq!(subject(raw), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn whiteout_needs_a_name() {
        for raw in [".wh.", "a/.wh.", ".wh..", "a/.wh..."] {
            assert_eq!(subject(raw), Err(EntryError::BadWhiteout), "{raw}");
        }
    }

    #[test]
    fn parent_directory_of_a_member_may_have_the_name_of_a_whiteout() {
        for (raw, expected) in [
            ("a/.wh.b/c", MemberPath::Path(path("a/.wh.b/c"))),
            (".wh./a", MemberPath::Path(path(".wh./a"))),
            (".wh.b/.wh.c", MemberPath::Whiteout(path(".wh.b/c"))),
            (".wh.b/.wh..wh..opq", MemberPath::Opaque(path(".wh.b"))),
            (".wh..wh..opq/a", MemberPath::Path(path(".wh..wh..opq/a"))),
        ] {
            assert_eq!(subject(raw), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn limits_of_names_apply_to_the_hidden_path() {
        let name = |length: usize| "n".repeat(length);
        assert_eq!(
            subject(&format!("a/.wh.{}", name(255))),
            Ok(MemberPath::Whiteout(path(&format!("a/{}", name(255)))))
        );
        assert!(matches!(subject(&format!("a/.wh.{}", name(256))), Err(EntryError::Path(PathError::NameTooLong(_)))));
        assert!(matches!(subject(&format!("{}/.wh.a", name(256))), Err(EntryError::Path(PathError::NameTooLong(_)))));
        let limits = Limits { path_length: 3, path_depth: 2, ..Limits::default() };
        for raw in ["abc", "a/.wh.b", "a/b/.wh..wh..opq", ".wh.abc"] {
            assert!(MemberPath::of(raw.as_bytes(), &limits).is_ok(), "{raw}");
        }
        for raw in ["abcd", "a/.wh.bc", "a/b/c/.wh..wh..opq", ".wh.abcd"] {
            assert!(MemberPath::of(raw.as_bytes(), &limits).is_err(), "{raw}");
        }
    }

    #[test]
    fn largest_32_bit_id_is_refused() {
        assert_eq!(id("uid", 4_294_967_294), Ok(4_294_967_294));
        for value in [4_294_967_295, 4_294_967_296, -1] {
            assert_eq!(id("gid", value), Err(EntryError::Id { field: "gid", value }));
        }
    }

    #[test]
    fn length_and_depth_of_a_path_are_limited() {
        let limits = Limits { path_length: 5, path_depth: 3, ..Limits::default() };
        for (raw, exceeded) in [
            ("abcd", None),
            ("./abcde", None),
            ("a/b/c", None),
            ("abcdef", Some(Limit::PathLength)),
            ("a/b/c/d", Some(Limit::PathLength)),
        ] {
            let limit = MemberPath::of(raw.as_bytes(), &limits).err();
            let expected = exceeded.map(|limit| EntryError::Limit(limit.check(6, 5).unwrap_err()));
            assert_eq!(limit, expected, "{raw}");
        }
        let limits = Limits { path_depth: 3, ..Limits::default() };
        assert!(MemberPath::of(b"a/b/c", &limits).is_ok());
        assert!(MemberPath::of(b"a/b/c/d", &limits).is_err());
    }
}
