//! The repository's signed front page: manifest, whitelist, certificate, and the keys that sign them.
//!
//! A client knows only the master public key. That key signs the *whitelist*, which lists the certificates that may
//! sign for the repository; the certificate's key, the repository key, signs the *manifest*, which names the root
//! catalog. Manifest and whitelist look alike, but their two signatures are padded differently: see [`letter`].
//!
//! Nothing here asks the clock or the system for randomness: both are passed in.

pub mod certificate;
pub mod front_page;
pub mod keys;
pub mod letter;
mod meta_info;
mod name;
mod repository_manifest;
mod signer;
pub mod whitelist;

#[cfg(test)]
mod fixtures;

pub use certificate::{Certificate, Fingerprint};
pub use front_page::{FrontPage, FrontPageError};
pub use keys::{KeyError, Keys, NewKeys};
pub use meta_info::MetaInfo;
pub use name::{RepositoryName, RepositoryNameError};
pub use repository_manifest::{ManifestError, RepositoryManifest, SignedManifest};
pub use signer::Signer;
pub use whitelist::{SignedWhitelist, Urgency, Whitelist, WhitelistError};
