//! What a wishlist held and holds no longer.

use std::collections::BTreeSet;

use crate::image::ImageName;
use crate::layout::{self, WishedNames};
use crate::repository::{Repository, RepositoryError};

/// No list of names is read that is longer.
const LIST_LIMIT: u64 = 64 << 20;

/// What a wishlist holds now, and held before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The wishlist.
    pub(super) wishlist: String,
    names: BTreeSet<ImageName>,
    former: BTreeSet<ImageName>,
    /// Names that go.
    pub(super) removed: Vec<ImageName>,
    prune: bool,
}

impl Wishes {
    /// Compares the names that a wishlist holds with those that it held before; with `prune`, the difference goes.
    pub(super) fn new(
        head: &Repository,
        wishlist: &str,
        names: BTreeSet<ImageName>,
        prune: bool,
    ) -> Result<Self, RepositoryError> {
        let json = head.read(&layout::wished_names(), LIST_LIMIT)?;
        let noted = WishedNames::parse(json.as_deref().unwrap_or_default());
        let (former, others) = (noted.of(wishlist), noted.of_others(wishlist));
        let goes = |name: &&ImageName| prune && !others.contains(*name);
        let removed = former.difference(&names).filter(goes).cloned().collect();
        Ok(Self { wishlist: wishlist.to_owned(), names, former, removed, prune })
    }

    /// Returns the names that the wishlist is noted to hold: those that are `published` for it, and those that it held before.
    /// What somebody else may have published, as this wish for it always failed, is not noted.
    ///
    /// What it holds no longer stays noted until it is removed.
    pub(super) fn noted(&self, published: &BTreeSet<ImageName>) -> BTreeSet<ImageName> {
        let stays = |name: &&ImageName| !self.prune || self.names.contains(*name);
        self.names.intersection(published).chain(self.former.iter().filter(stays)).cloned().collect()
    }
}
