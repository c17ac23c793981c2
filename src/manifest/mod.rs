//! The signed files of a repository: manifest, whitelist and certificate, and the keys that sign them.
//!
//! A client has only the master public key. The master key signs the *whitelist*, which lists the certificates that may sign for the
//! repository. The key of the certificate, the repository key, signs the *manifest*, which names the root catalog. Manifest and
//! whitelist have a similar format, but their signatures are padded differently: see [`letter`].
//!
//! No function here reads the clock or the system's random numbers: both are passed in.

pub mod certificate;
pub mod front_page;
pub mod keys;
pub mod letter;
mod meta_info;
mod name;
mod repository_manifest;
pub mod whitelist;

#[cfg(test)]
pub(crate) mod fixtures;

pub use certificate::{Certificate, Fingerprint};
pub use front_page::{FrontPage, FrontPageError};
pub use keys::{KeyError, Keys, NewKeys};
pub use meta_info::MetaInfo;
pub use name::{RepositoryName, RepositoryNameError};
pub use repository_manifest::{ManifestError, RepositoryManifest, SignedManifest};
pub use whitelist::{SignedWhitelist, Urgency, Whitelist, WhitelistError};
