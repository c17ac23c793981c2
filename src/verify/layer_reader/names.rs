//! What the name of a member means (image-spec, layer.md, "Whiteouts").

use super::error::EntryProblem;
use super::within;
use crate::layer::{Limit, Limits};
use crate::path::EntryPath;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const BOOKKEEPING: &[u8] = b".wh..wh.";

/// Meaning of a member's path. The paths are valid on Linux and within the limits.
pub(super) enum Meaning {
    /// Something to add at this path.
    Addition(EntryPath),
    /// Hides this path in lower layers.
    Whiteout(EntryPath),
    /// Hides all entries of this directory in lower layers.
    Opaque(EntryPath),
    /// An internal file of AUFS, see [`is_bookkeeping`].
    Bookkeeping(EntryPath),
}

/// Interprets the path of a member. Only the last component makes it a whiteout.
pub(super) fn meaning(raw: &[u8], limits: &Limits) -> Result<Meaning, EntryProblem> {
    let path = EntryPath::clean(raw);
    let parent = || path.split().map_or(EntryPath::ROOT, |(parent, _)| parent);
    let (meaning, path): (fn(EntryPath) -> Meaning, EntryPath) = match path.name().strip_prefix(WHITEOUT) {
        _ if is_bookkeeping(&path) => (Meaning::Bookkeeping, path),
        None => (Meaning::Addition, path),
        Some(_) if path.name() == OPAQUE => (Meaning::Opaque, parent()),
        // The directory itself and its parent cannot be hidden in this way.
        Some(b"" | b"." | b"..") => return Err(EntryProblem::BadWhiteout),
        Some(hidden) => (Meaning::Whiteout, parent().join(hidden)),
    };
    let path = path.checked()?;
    within(Limit::PathLength, path.as_bytes().len() as u64, limits.path_length)?;
    within(Limit::PathDepth, path.components().count() as u64, limits.path_depth)?;
    Ok(meaning(path))
}

/// Returns whether a path is, or is below, an internal file of AUFS. Old versions of Docker wrote these into layers. They are not
/// published, but hard links to them are.
pub(in crate::verify) fn is_bookkeeping(path: &EntryPath) -> bool {
    path.components().any(|name| name != OPAQUE && name.starts_with(BOOKKEEPING))
}
