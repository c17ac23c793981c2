//! Extended attributes that catalogs cannot store, or that clients would not return.

use std::collections::BTreeSet;

use crate::layer::LossKind;
use crate::metadata::Xattrs;

/// Catalogs have one byte for each length and for the number of attributes.
const MAX: usize = u8::MAX as usize;

/// Names below `user.` that a client answers itself: `MagicXattrManager` and `RegisterMagicXattrs` in CVMFS 2.12.
const MAGIC: &str = "catalog_counters external_host external_timeout fqrn host host_list ncleanup24 nclg ndiropen \
    ndownload nioerr nopen hitrate logbuffer proxy proxy_list proxy_list_external pubkeys repo_counters repo_metainfo \
    revision root_hash rx speed tag timeout timeout_direct timestamp_last_ioerr usedfd useddirp version hash lhash \
    chunk_list chunks compression direct_io external_file rawlink authz external_url \
    expires inode_max pid maxfd uptime";

/// Splits attributes into those that can be published, and the reasons why others cannot.
pub(super) fn split(all: &Xattrs) -> (Xattrs, BTreeSet<LossKind>) {
    let mut losses = BTreeSet::new();
    let mut kept = Xattrs::new();
    for (name, value) in all {
        match loss(name, value) {
            Some(loss) => drop(losses.insert(loss)),
            None if kept.len() == MAX => drop(losses.insert(LossKind::TooManyXattrs)),
            None => drop(kept.insert(name.clone(), value.clone())),
        }
    }
    (kept, losses)
}

fn loss(name: &[u8], value: &[u8]) -> Option<LossKind> {
    if name.is_empty() || name.len() > MAX || name.contains(&0) {
        Some(LossKind::XattrName)
    } else if is_of_overlay(name) {
        Some(LossKind::OverlayXattr)
    } else if is_magic(name) {
        Some(LossKind::MagicXattr)
    } else if value.len() > MAX {
        Some(LossKind::XattrValueTooLong)
    } else {
        None
    }
}

/// Returns whether an overlay mount obeys the attribute, in whichever namespace.
fn is_of_overlay(name: &[u8]) -> bool {
    let mut parts = name.splitn(3, |&b| b == b'.').skip(1);
    match (parts.next(), parts.next()) {
        (Some(b"overlay" | b"fuseoverlayfs"), Some(_)) => true,
        (Some(b"containers"), Some(rest)) => rest == b"override_stat",
        _ => false,
    }
}

/// Returns whether the client answers for this name. `@` and `~` ask for one page of a long answer.
fn is_magic(name: &[u8]) -> bool {
    let is_listed = |name: &[u8]| MAGIC.split_whitespace().any(|magic| magic.as_bytes() == name);
    name.contains(&b'@')
        || name.contains(&b'~')
        || name == b"xfsroot.rawlink"
        || name.strip_prefix(b"user.").is_some_and(is_listed)
}
