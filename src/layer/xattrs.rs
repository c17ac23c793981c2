//! Decides which extended attributes CVMFS can store and return to programs.

use super::LossKind;
use crate::metadata::Xattrs;

/// Maximum number of attributes of one entry, and maximum length of a name or a value in bytes: catalogs store each of these
/// numbers in one byte.
// CVMFS's own code admits 256, which becomes 0 in the length byte and makes the value unreadable.
const MAX_XATTR: usize = 255;

/// Attributes that CVMFS 2.12 clients answer themselves (`cvmfs/magic_xattr.cc` and `cvmfs/cvmfs.cc`), sorted.
const MAGIC: &[&str] = &[
    "user.authz",
    "user.catalog_counters",
    "user.chunk_list",
    "user.chunks",
    "user.compression",
    "user.direct_io",
    "user.expires",
    "user.external_file",
    "user.external_host",
    "user.external_timeout",
    "user.external_url",
    "user.fqrn",
    "user.hash",
    "user.hitrate",
    "user.host",
    "user.host_list",
    "user.inode_max",
    "user.lhash",
    "user.logbuffer",
    "user.maxfd",
    "user.ncleanup24",
    "user.nclg",
    "user.ndiropen",
    "user.ndownload",
    "user.nioerr",
    "user.nopen",
    "user.pid",
    "user.proxy",
    "user.proxy_list",
    "user.proxy_list_external",
    "user.pubkeys",
    "user.rawlink",
    "user.repo_counters",
    "user.repo_metainfo",
    "user.revision",
    "user.root_hash",
    "user.rx",
    "user.speed",
    "user.tag",
    "user.timeout",
    "user.timeout_direct",
    "user.timestamp_last_ioerr",
    "user.uptime",
    "user.useddirp",
    "user.usedfd",
    "user.version",
    "xfsroot.rawlink",
];

/// Removes attributes that CVMFS cannot represent, and returns the reasons, each once.
pub(super) fn remove_unsupported(xattrs: &mut Xattrs) -> Vec<LossKind> {
    let mut losses = Vec::new();
    xattrs.retain(|name, value| {
        let reason = why_unsupported(name, value);
        losses.extend(reason);
        reason.is_none()
    });
    // The catalog has one byte for the number of attributes.
    if let Some(first_too_many) = xattrs.keys().nth(MAX_XATTR).cloned() {
        xattrs.split_off(&first_too_many);
        losses.push(LossKind::TooManyXattrs);
    }
    losses.sort_unstable();
    losses.dedup();
    losses
}

fn why_unsupported(name: &[u8], value: &[u8]) -> Option<LossKind> {
    // Names are C strings in the kernel's interface, so they cannot contain a NUL.
    if name.is_empty() || name.len() > MAX_XATTR || name.contains(&0) {
        Some(LossKind::XattrName)
    // A root mount obeys `trusted.overlay.redirect` of a lower directory: it then shows the content of another directory.
    } else if is_overlay_mark(name) {
        Some(LossKind::OverlayXattr)
    // A stored value would never be returned: the client's own answer hides it.
    } else if is_magic(name) {
        Some(LossKind::MagicXattr)
    } else if value.len() > MAX_XATTR {
        Some(LossKind::XattrValueTooLong)
    } else {
        None
    }
}

/// Returns whether an overlay file system would interpret this attribute of a lower directory instead of returning it to
/// programs. The kernel's overlayfs does so. fuse-overlayfs also does, for its attributes in several namespaces and for file
/// modes that podman stores.
fn is_overlay_mark(name: &[u8]) -> bool {
    let Some(dot) = name.iter().position(|&b| b == b'.') else { return false };
    let name = &name[dot + 1..];
    name.starts_with(b"overlay.") || name.starts_with(b"fuseoverlayfs.") || name == b"containers.override_stat"
}

/// Returns whether clients answer requests for this attribute themselves instead of reading the catalog. A name with `@` or
/// `~` requests one page of the value of such an attribute.
fn is_magic(name: &[u8]) -> bool {
    name.iter().any(|b| matches!(b, b'@' | b'~')) || MAGIC.binary_search_by(|magic| magic.as_bytes().cmp(name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattrs<N: AsRef<[u8]>, V: AsRef<[u8]>>(all: impl IntoIterator<Item = (N, V)>) -> Xattrs {
        all.into_iter().map(|(name, value)| (name.as_ref().into(), value.as_ref().into())).collect()
    }

    #[test]
    fn list_of_magic_names_is_sorted() {
        assert!(MAGIC.is_sorted());
        assert!(is_magic(b"user.hash") && is_magic(b"xfsroot.rawlink") && is_magic(b"user.authz"));
        assert!(!is_magic(b"user.hash2") && !is_magic(b"trusted.hash") && !is_magic(b"security.capability"));
    }

    #[test]
    fn attributes_that_cvmfs_cannot_represent_are_removed_and_reported() {
        let mut all = xattrs([
            ("user.hash", "x"),
            ("user.a~1", "x"),
            ("user.a@1", "x"),
            ("trusted.overlay.redirect", "/x"),
            ("user.overlay.opaque", "y"),
            ("", "x"),
            ("user.kept", ""),
        ]);
        assert_eq!(remove_unsupported(&mut all), [LossKind::MagicXattr, LossKind::XattrName, LossKind::OverlayXattr]);
        assert_eq!(all, xattrs([("user.kept", "")]));
    }

    #[test]
    fn marks_of_every_overlay_file_system_are_removed() {
        for name in [
            "trusted.overlay.opaque",
            "user.overlay.redirect",
            "trusted.overlay.overlay.opaque",
            "user.fuseoverlayfs.opaque",
            "user.fuseoverlayfs.origin",
            "trusted.fuseoverlayfs.redirect",
            "security.fuseoverlayfs.override_stat",
            "user.containers.override_stat",
            "security.containers.override_stat",
        ] {
            assert_eq!(remove_unsupported(&mut xattrs([(name, "y")])), [LossKind::OverlayXattr], "{name}");
        }
        for name in ["user.overlay", "user.overlayfs.a", "user.containers.other", "user.my.overlay.opaque", "overlay."]
        {
            assert_eq!(remove_unsupported(&mut xattrs([(name, "y")])), [], "{name}");
        }
    }

    #[test]
    fn name_and_value_may_have_255_bytes() {
        for (length, losses) in [(254, 0), (255, 0), (256, 1)] {
            assert_eq!(remove_unsupported(&mut xattrs([("user.a", "v".repeat(length))])).len(), losses);
            assert_eq!(remove_unsupported(&mut xattrs([("n".repeat(length), "v")])).len(), losses);
        }
    }

    #[test]
    fn first_255_attributes_are_kept() {
        for (count, losses) in [(254, 0), (255, 0), (256, 1)] {
            let mut all = xattrs((0..count).map(|n| (format!("user.{n:03}"), "v")));
            assert_eq!(remove_unsupported(&mut all).len(), losses);
            assert_eq!(all.len(), count.min(255));
            assert!(!all.contains_key(&b"user.255"[..]));
        }
    }
}
