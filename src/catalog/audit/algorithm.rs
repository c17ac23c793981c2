//! Hash algorithms, as rows and references name them.

use crate::image::unhex;

/// How the 20 bytes of a name came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Algorithm {
    Sha1,
    Ripemd160,
    Shake128,
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Sha1, Self::Ripemd160, Self::Shake128];

    /// Returns what follows the digits, which also is what options call it.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Sha1 => "",
            Self::Ripemd160 => "-rmd160",
            Self::Shake128 => "-shake128",
        }
    }

    /// Reads bits 8 to 10 of a row's flags.
    pub(crate) fn of_flags(flags: u32) -> Option<Self> {
        Self::ALL.get((flags >> 8 & 7) as usize).copied()
    }
}

/// Splits the text of a hash into its digits and the algorithm that its suffix names.
pub(crate) fn split_hash(text: &str) -> Option<(&str, Algorithm)> {
    let foreign = [Algorithm::Ripemd160, Algorithm::Shake128];
    let found = foreign.into_iter().find_map(|algorithm| Some((text.strip_suffix(algorithm.suffix())?, algorithm)));
    found.or(Some((text, Algorithm::Sha1)))
}

/// Tells whether a text is a hash as references to catalogs have it.
pub(super) fn is_hash(text: &str) -> bool {
    split_hash(text).is_some_and(|(digits, _)| unhex::<20>(digits.as_bytes()).is_some())
}
