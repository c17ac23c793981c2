//! Compares a wishlist with its recorded names, and selects the images to remove.

use std::collections::BTreeSet;
use std::fmt;

use crate::image::ImageName;
use crate::layout::{self, WishedNames};
use crate::repository::{Repository, RepositoryError};

/// Maximum number of images that any wishlist may lose without being suspicious, even if that is more than a quarter of its
/// images.
const MAX_UNSUSPICIOUS_LOSS: usize = 4;

/// Which images are removed that a wishlist no longer contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prune {
    /// None.
    Nothing,
    /// All, unless the wishlist lost so many images that it is probably a mistake.
    Usual,
    /// All.
    All,
}

/// Numbers of images that a wishlist lost and contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WishlistLoss {
    /// Number of images that it no longer contains.
    pub lost: usize,
    /// Number of images that it contained before.
    pub before: usize,
    /// Number of images that it contains now.
    pub now: usize,
}

impl WishlistLoss {
    /// Returns whether the wishlist became empty, or lost more than a quarter and more than four of its images. Probable causes are a
    /// failed template and a truncated file.
    fn is_suspicious(self) -> bool {
        self.lost > 0 && (self.now == 0 || self.lost > MAX_UNSUSPICIOUS_LOSS && 4 * self.lost > self.before)
    }
}

impl fmt::Display for WishlistLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, before, now } = self;
        match now {
            0 => write!(f, "the wishlist became empty, and contained {before} images before"),
            _ => write!(f, "the wishlist no longer contains {lost} of its {before} images"),
        }
    }
}

/// The names that a wishlist contains now, compared with its recorded names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WishlistChange {
    /// The name of the wishlist.
    pub(crate) wishlist: String,
    names: BTreeSet<ImageName>,
    former: BTreeSet<ImageName>,
    /// Names that the wishlist contained before, and that no wishlist contains now.
    pub(crate) prunable: Vec<ImageName>,
    prune: bool,
    /// The number of images that the wishlist lost, if it lost so many that this is probably a mistake. Then only [`Prune::All`]
    /// removes images.
    pub(crate) suspicion: Option<WishlistLoss>,
}

impl WishlistChange {
    /// Compares the names that a wishlist contains now with the names that are recorded for it. `names` receives the recorded
    /// names, and returns the current ones.
    pub(crate) fn new(
        head: &Repository,
        wishlist: &str,
        names: impl FnOnce(&BTreeSet<ImageName>) -> BTreeSet<ImageName>,
        prune: Prune,
    ) -> Result<Self, RepositoryError> {
        let json = head.read(&layout::wished_names(), layout::MAX_LIST_SIZE)?;
        let recorded = WishedNames::parse(json.as_deref().unwrap_or_default());
        let (former, others) = (recorded.of(wishlist), recorded.of_others(wishlist));
        Ok(Self::compare(wishlist, names(&former), former, &others, prune))
    }

    fn compare(
        wishlist: &str,
        names: BTreeSet<ImageName>,
        former: BTreeSet<ImageName>,
        others: &BTreeSet<ImageName>,
        prune: Prune,
    ) -> Self {
        let lost: Vec<&ImageName> = former.difference(&names).collect();
        let prunable: Vec<ImageName> = lost.iter().filter(|name| !others.contains(**name)).copied().cloned().collect();
        let loss = WishlistLoss { lost: lost.len(), before: former.len(), now: names.len() };
        let suspicion = (!prunable.is_empty() && loss.is_suspicious()).then_some(loss);
        let prune = match prune {
            Prune::Nothing => false,
            Prune::Usual => suspicion.is_none(),
            Prune::All => true,
        };
        Self { wishlist: wishlist.to_owned(), names, former, prunable, prune, suspicion }
    }

    /// Returns the names to remove.
    pub(crate) fn removed(&self) -> &[ImageName] {
        if self.prune { &self.prunable } else { &[] }
    }

    /// Returns the names to record for the wishlist: its current names that are in `published`, and its former names, except
    /// those that are removed.
    ///
    /// A name whose conversion always failed is not recorded, because another publisher may have published an image under it. A
    /// name that the wishlist no longer contains stays recorded until the image is removed.
    pub(crate) fn recorded_names(&self, published: &BTreeSet<ImageName>) -> BTreeSet<ImageName> {
        let stays = |name: &&ImageName| !self.prune || self.names.contains(*name);
        self.names.intersection(published).chain(self.former.iter().filter(stays)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(numbers: std::ops::Range<usize>) -> BTreeSet<ImageName> {
        numbers.map(|number| format!("h.org/a:{number}").parse().unwrap()).collect()
    }

    fn removed(before: usize, after: usize, prune: Prune) -> usize {
        let change = WishlistChange::compare("list", names(0..after), names(0..before), &BTreeSet::new(), prune);
        assert_eq!(change.prunable.len(), before - after);
        change.removed().len()
    }

    #[test]
    fn wishlist_that_lost_more_than_a_quarter_and_more_than_four_prunes_nothing() {
        for (before, after, expected) in
            [(16, 12, 4), (16, 11, 0), (20, 15, 5), (20, 14, 0), (21, 16, 5), (5, 1, 4), (6, 1, 0), (1000, 900, 100)]
        {
            assert_eq!(removed(before, after, Prune::Usual), expected, "{after} left of {before}");
            assert_eq!(removed(before, after, Prune::All), before - after);
            assert_eq!(removed(before, after, Prune::Nothing), 0);
        }
    }

    #[test]
    fn empty_wishlist_prunes_nothing() {
        for before in [1, 4, 100] {
            assert_eq!(removed(before, 0, Prune::Usual), 0);
            assert_eq!(removed(before, 0, Prune::All), before);
        }
        assert_eq!(removed(0, 0, Prune::Usual), 0);
    }

    #[test]
    fn wishlist_without_prunable_names_is_not_suspicious() {
        let change = WishlistChange::compare("list", names(0..0), names(0..9), &names(0..9), Prune::Usual);
        assert_eq!((change.suspicion, change.prunable.len()), (None, 0), "another wishlist contains all of them");
    }

    #[test]
    fn names_stay_recorded_until_they_are_removed() {
        let recorded = |prune| {
            let change = WishlistChange::compare("list", names(0..1), names(0..9), &BTreeSet::new(), prune);
            change.recorded_names(&names(0..1)).len()
        };
        assert_eq!([Prune::Nothing, Prune::Usual, Prune::All].map(recorded), [9, 9, 1]);
    }
}
