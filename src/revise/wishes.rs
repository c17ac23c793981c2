//! What a wishlist held and holds no longer.

use std::collections::BTreeSet;
use std::fmt;

use super::LIST_LIMIT;
use crate::image::ImageName;
use crate::layout::{self, WishedNames};
use crate::repository::{Repository, RepositoryError};

/// A wishlist that loses more images than this, and more than a [quarter](Loss::is_suspicious), is taken for a mistake.
const MOST_LOST: usize = 4;

/// What is removed of what a wishlist held and holds no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prune {
    /// Nothing.
    Nothing,
    /// All of it, unless so much is gone that the wishlist looks like a mistake.
    Usual,
    /// All of it.
    All,
}

/// How many of its images a wishlist lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Images that it holds no longer.
    pub lost: usize,
    /// Images that it held before.
    pub of: usize,
    /// Images that it holds now.
    pub left: usize,
}

impl Loss {
    /// Tells whether the wishlist became empty, or lost more than a quarter and more than four of its images: a template that
    /// failed or a file that was cut off looks like that.
    fn is_suspicious(self) -> bool {
        self.lost > 0 && (self.left == 0 || self.lost > MOST_LOST && 4 * self.lost > self.of)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, of, left } = self;
        match left {
            0 => write!(f, "the wishlist became empty, and held {of} images before"),
            _ => write!(f, "the wishlist holds {lost} of its {of} images no longer"),
        }
    }
}

/// What a wishlist holds now, and held before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The wishlist.
    pub(crate) wishlist: String,
    names: BTreeSet<ImageName>,
    former: BTreeSet<ImageName>,
    /// Names that the wishlist held and no wishlist holds any longer.
    pub(crate) prunable: Vec<ImageName>,
    prune: bool,
    /// What makes the wishlist look like a mistake, so that nothing is removed but by [`Prune::All`].
    pub(crate) suspicion: Option<Loss>,
}

impl Wishes {
    /// Compares the names that a wishlist holds with those that it held before, from which `names` returns the former.
    pub(crate) fn new(
        head: &Repository,
        wishlist: &str,
        names: impl FnOnce(&BTreeSet<ImageName>) -> BTreeSet<ImageName>,
        prune: Prune,
    ) -> Result<Self, RepositoryError> {
        let json = head.read(&layout::wished_names(), LIST_LIMIT)?;
        let noted = WishedNames::parse(json.as_deref().unwrap_or_default());
        let (former, others) = (noted.of(wishlist), noted.of_others(wishlist));
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
        let loss = Loss { lost: lost.len(), of: former.len(), left: names.len() };
        let suspicion = (!prunable.is_empty() && loss.is_suspicious()).then_some(loss);
        let prune = match prune {
            Prune::Nothing => false,
            Prune::Usual => suspicion.is_none(),
            Prune::All => true,
        };
        Self { wishlist: wishlist.to_owned(), names, former, prunable, prune, suspicion }
    }

    /// Returns the names that go.
    pub(crate) fn removed(&self) -> &[ImageName] {
        if self.prune { &self.prunable } else { &[] }
    }

    /// Returns the names that the wishlist is noted to hold: those that are `published` for it, and those that it held before.
    /// What somebody else may have published, as this wish for it always failed, is not noted.
    ///
    /// What it holds no longer stays noted until it is removed.
    pub(crate) fn noted(&self, published: &BTreeSet<ImageName>) -> BTreeSet<ImageName> {
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
        let wishes = Wishes::compare("list", names(0..after), names(0..before), &BTreeSet::new(), prune);
        assert_eq!(wishes.prunable.len(), before - after);
        wishes.removed().len()
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
    fn wishlist_that_became_empty_prunes_nothing() {
        for before in [1, 4, 100] {
            assert_eq!(removed(before, 0, Prune::Usual), 0);
            assert_eq!(removed(before, 0, Prune::All), before);
        }
        assert_eq!(removed(0, 0, Prune::Usual), 0);
    }

    #[test]
    fn nothing_is_refused_where_nothing_would_go() {
        let wishes = Wishes::compare("list", names(0..0), names(0..9), &names(0..9), Prune::Usual);
        assert_eq!((wishes.suspicion, wishes.prunable.len()), (None, 0), "another wishlist holds them all");
    }

    #[test]
    fn what_was_not_removed_stays_noted() {
        let noted = |prune| {
            let wishes = Wishes::compare("list", names(0..1), names(0..9), &BTreeSet::new(), prune);
            wishes.noted(&names(0..1)).len()
        };
        assert_eq!([Prune::Nothing, Prune::Usual, Prune::All].map(noted), [9, 9, 1]);
    }
}
