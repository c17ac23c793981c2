//! The selection of the chains of an image that are published.

use std::ops::Range;

/// The chains of an image that are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChainSelection {
    /// Only the final chain, from which the conversion of a later image can start.
    #[default]
    Final,
    /// One for each layer.
    All,
    /// None.
    None,
}

impl ChainSelection {
    /// Returns the selection with a name from the command line or a wishlist: `final`, `all` or `none`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "final" => Some(Self::Final),
            "all" => Some(Self::All),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    /// Returns the indexes of the selected chains of an image with this number of layers. A chain has the index of its highest layer.
    pub(crate) fn indexes(self, layers: usize) -> Range<usize> {
        match self {
            Self::None => 0..0,
            Self::Final => layers.saturating_sub(1)..layers,
            Self::All => 0..layers,
        }
    }
}
