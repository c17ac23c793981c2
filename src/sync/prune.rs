//! What a wishlist held and holds no longer.

use std::collections::BTreeSet;

use crate::image::ImageName;
use crate::layout::{self, WishedNames};
use crate::repository::{Repository, RepositoryError};

/// No list of names is read that is longer.
const LIST_LIMIT: u64 = 64 << 20;

/// What is to be noted for a wishlist, and what is to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The names that the wishlist is noted to hold.
    pub(super) names: BTreeSet<ImageName>,
    /// Names that go.
    pub(super) removed: Vec<ImageName>,
}

/// Compares the names that a wishlist holds with those that it held before.
///
/// Unless `prune`, what it holds no longer stays noted, so that it can still be removed later. What another wishlist holds,
/// too, is never removed.
pub(super) fn wishes(
    head: &Repository,
    wishlist: &str,
    names: BTreeSet<ImageName>,
    prune: bool,
) -> Result<Wishes, RepositoryError> {
    let json = head.read(&layout::wished_names(), LIST_LIMIT)?;
    let noted = WishedNames::parse(json.as_deref().unwrap_or_default());
    let former = noted.of(wishlist);
    if !prune {
        return Ok(Wishes { names: names.union(&former).cloned().collect(), removed: Vec::new() });
    }
    let others = noted.of_others(wishlist);
    let removed = former.difference(&names).filter(|name| !others.contains(name)).cloned().collect();
    Ok(Wishes { names, removed })
}
