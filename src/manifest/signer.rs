//! The keys of a repository, together with the source of random numbers that signing needs.

use std::sync::{Mutex, MutexGuard};

use rsa::rand_core::CryptoRng;

use super::letter::SignError;
use super::{KeyError, Keys, RepositoryManifest, Whitelist};

/// Signs the files of one repository.
pub struct Signer {
    keys: Keys,
    rng: Mutex<Box<dyn CryptoRng + Send>>,
}

impl Signer {
    /// Creates a signer with `keys`. Signing is blinded with random numbers from `rng`.
    pub fn new(keys: Keys, rng: impl CryptoRng + Send + 'static) -> Self {
        Self { keys, rng: Mutex::new(Box::new(rng)) }
    }

    /// Returns the keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Returns the whole `.cvmfspublished`, signed with the repository key.
    pub fn sign_manifest(&self, manifest: &RepositoryManifest) -> Result<Vec<u8>, SignError> {
        self.keys.sign_manifest(manifest, &mut *self.rng())
    }

    /// Returns the whole `.cvmfswhitelist`, signed with the master key, which is read only for this call.
    pub fn sign_whitelist(&self, whitelist: &Whitelist) -> Result<Vec<u8>, KeyError> {
        self.keys.sign_whitelist(whitelist, &mut *self.rng())
    }

    fn rng(&self) -> MutexGuard<'_, Box<dyn CryptoRng + Send>> {
        self.rng.lock().expect("no thread panics while it signs")
    }
}
