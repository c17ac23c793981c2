//! Hash algorithms of object names, as stored in rows and references.

use crate::image::unhex;

/// The hash algorithm of an object name. All three yield 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Algorithm {
    Sha1,
    Ripemd160,
    Shake128,
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Sha1, Self::Ripemd160, Self::Shake128];

    /// Returns the suffix that follows the hexadecimal digits of a hash.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Sha1 => "",
            Self::Ripemd160 => "-rmd160",
            Self::Shake128 => "-shake128",
        }
    }

    /// Reads the algorithm from bits 8 to 10 of a row's flags. Returns `None` for an unknown one.
    pub(crate) fn of_flags(flags: u32) -> Option<Self> {
        Self::ALL.get((flags >> 8 & 7) as usize).copied()
    }
}

/// Splits the text of a hash into its digits and the algorithm of its suffix.
pub(crate) fn split_hash(text: &str) -> Option<(&str, Algorithm)> {
    let foreign = [Algorithm::Ripemd160, Algorithm::Shake128];
    let found = foreign.into_iter().find_map(|algorithm| Some((text.strip_suffix(algorithm.suffix())?, algorithm)));
    found.or(Some((text, Algorithm::Sha1)))
}

/// Returns whether a text is a valid hash: 40 hexadecimal digits and an optional algorithm suffix.
pub(super) fn is_hash(text: &str) -> bool {
    split_hash(text).is_some_and(|(digits, _)| unhex::<20>(digits.as_bytes()).is_some())
}
