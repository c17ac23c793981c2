//! Hash algorithms of object names.

use std::fmt;
use std::str::FromStr;

use ripemd::Ripemd160;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use shake::{ExtendableOutput as _, Shake128};

use super::hash::ObjectHash;

/// A hash algorithm for object names. A repository may contain objects of several algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// SHA-1, the default of `cvmfs_server`.
    #[default]
    Sha1,
    /// RIPEMD-160.
    #[serde(rename = "rmd160")]
    Ripemd160,
    /// SHAKE-128 with 160 bits of output.
    Shake128,
}

impl HashAlgorithm {
    /// All algorithms, each at the index that is its number.
    pub const ALL: [Self; 3] = [Self::Sha1, Self::Ripemd160, Self::Shake128];

    /// Returns the number of the algorithm in catalogs.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Returns the algorithm with this number in catalogs, or `None` if there is no such algorithm.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Returns the text that follows the digits of a hash.
    // SHA-1 has none, because names from before there were other algorithms must remain valid (`cvmfs/crypto/hash.h`).
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Sha1 => "",
            Self::Ripemd160 => "-rmd160",
            Self::Shake128 => "-shake128",
        }
    }

    /// Returns the name of the object with these stored bytes.
    pub fn hash(self, bytes: &[u8]) -> ObjectHash {
        let digest = match self {
            Self::Sha1 => Sha1::digest(bytes).into(),
            Self::Ripemd160 => Ripemd160::digest(bytes).into(),
            Self::Shake128 => {
                let mut digest = [0; 20];
                Shake128::digest_xof(bytes, &mut digest);
                digest
            }
        };
        ObjectHash::new(self, digest)
    }

    /// Returns a hasher for the stored bytes of one object.
    pub fn hasher(self) -> ObjectHasher {
        ObjectHasher(match self {
            Self::Sha1 => HasherState::Sha1(Sha1::new()),
            Self::Ripemd160 => HasherState::Ripemd160(Ripemd160::new()),
            Self::Shake128 => HasherState::Shake128(Box::default()),
        })
    }
}

/// Writes the name that `strata init --hash` and `CVMFS_HASH_ALGORITHM` use.
impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha1 => "sha1",
            Self::Ripemd160 => "rmd160",
            Self::Shake128 => "shake128",
        })
    }
}

/// A text is not the name of a hash algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a hash algorithm: use sha1, rmd160 or shake128")]
pub struct ParseAlgorithmError(String);

impl FromStr for HashAlgorithm {
    type Err = ParseAlgorithmError;

    fn from_str(text: &str) -> Result<Self, ParseAlgorithmError> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.to_string() == text);
        found.ok_or_else(|| ParseAlgorithmError(text.to_owned()))
    }
}

/// Computes the name of an object whose stored bytes are not in memory as a whole.
#[derive(Debug, Clone)]
pub struct ObjectHasher(HasherState);

#[derive(Debug, Clone)]
enum HasherState {
    Sha1(Sha1),
    Ripemd160(Ripemd160),
    // Its state is several times larger than the others.
    Shake128(Box<Shake128>),
}

impl ObjectHasher {
    /// Adds the next stored bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            HasherState::Sha1(state) => state.update(bytes),
            HasherState::Ripemd160(state) => state.update(bytes),
            HasherState::Shake128(state) => shake::Update::update(&mut **state, bytes),
        }
    }

    /// Returns the name of the object.
    pub fn finish(self) -> ObjectHash {
        match self.0 {
            HasherState::Sha1(state) => ObjectHash::new(HashAlgorithm::Sha1, state.finalize().into()),
            HasherState::Ripemd160(state) => ObjectHash::new(HashAlgorithm::Ripemd160, state.finalize().into()),
            HasherState::Shake128(state) => {
                let mut digest = [0; 20];
                state.finalize_xof_into(&mut digest);
                ObjectHash::new(HashAlgorithm::Shake128, digest)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Output of `openssl dgst -sha1`, `-rmd160` and `-shake128 -xoflen 20` for no bytes, `abc`, and 1000 times `a`.
    const KNOWN: [(HashAlgorithm, [&str; 3]); 3] = [
        (
            HashAlgorithm::Sha1,
            [
                "da39a3ee5e6b4b0d3255bfef95601890afd80709",
                "a9993e364706816aba3e25717850c26c9cd0d89d",
                "291e9a6c66994949b57ba5e650361e98fc36b1ba",
            ],
        ),
        (
            HashAlgorithm::Ripemd160,
            [
                "9c1185a5c5e9fc54612808977ee8f548b2258d31",
                "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc",
                "aa69deee9a8922e92f8105e007f76110f381e9cf",
            ],
        ),
        (
            HashAlgorithm::Shake128,
            [
                "7f9c2ba4e88f827d616045507605853ed73b8093",
                "5881092dd818bf5cf8a3ddb793fbcba74097d5c5",
                "c340a5d49d81d4dcf3e6fa3387202b9b67e8ab78",
            ],
        ),
    ];

    #[test]
    fn hashes_equal_those_of_openssl_in_one_piece_and_in_several() {
        for (algorithm, hashes) in KNOWN {
            for (plain, digits) in [vec![], b"abc".to_vec(), vec![b'a'; 1000]].into_iter().zip(hashes) {
                let expected = format!("{digits}{}", algorithm.suffix());
                assert_eq!(algorithm.hash(&plain).to_string(), expected);
                for length in [1, 63, 168, 1000] {
                    let mut hasher = algorithm.hasher();
                    plain.chunks(length).for_each(|part| hasher.update(part));
                    assert_eq!(hasher.finish().to_string(), expected, "in parts of {length} bytes");
                }
            }
        }
    }

    #[test]
    fn algorithm_has_one_text_form_and_the_number_of_catalogs() {
        for (number, name) in ["sha1", "rmd160", "shake128"].into_iter().enumerate() {
            let algorithm: HashAlgorithm = name.parse().unwrap();
            assert_eq!(algorithm.to_string(), name);
            assert_eq!(serde_json::to_string(&algorithm).unwrap(), format!("\"{name}\""));
            assert_eq!((usize::from(algorithm.number()), number), (number, number));
            assert_eq!(HashAlgorithm::from_number(number as u32), Some(algorithm));
        }
        assert_eq!(HashAlgorithm::from_number(3), None);
        assert!("md5".parse::<HashAlgorithm>().is_err() && "SHA1".parse::<HashAlgorithm>().is_err());
    }
}
