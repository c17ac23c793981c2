//! Random numbers for generated tests. The same seed gives the same series in every run, as long as `Cargo.lock` names the same
//! versions of proptest and its dependencies.

use proptest::prelude::{Rng as _, RngExt as _};
use proptest::test_runner::{RngAlgorithm, TestRng};

/// A seeded generator of random numbers (ChaCha20).
pub struct Random(TestRng);

impl Random {
    /// Creates a generator whose series depends only on `seed`.
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    /// Returns a number that is less than `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// Returns one of several choices.
    pub fn one_of<'t, T: ?Sized>(&mut self, choices: &[&'t T]) -> &'t T {
        choices[self.below(choices.len())]
    }

    /// Returns a number from 0 (included) to 1 (excluded).
    pub fn fraction(&mut self) -> f64 {
        self.0.random()
    }
}

/// Returns incompressible bytes.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Random::new(seed).0.fill_bytes(&mut bytes);
    bytes
}
