//! The repository that a command reads: a directory, or a URL.

use std::time::Duration;

use strata::check::{CheckError, CheckedRepository};
use strata::directory::RepositoryDirectory;
use strata::manifest::{RepositoryName, Urgency, Whitelist};
use strata::metadata::Timestamp;
use strata::registry::Registries;
use strata::remote::RemoteRepository;
use strata::repository::Repository;
use strata::settings::Modes;
use strata::verify::VerifiedRepository;

use super::progress::reporter;

/// A repository that a command reads.
pub enum Target {
    /// The directory of a repository on this machine.
    Directory(RepositoryDirectory),
    /// The URL of a repository.
    Remote(RemoteRepository),
}

impl Target {
    /// Returns the name of the repository.
    pub fn name(&self) -> &RepositoryName {
        match self {
            Self::Directory(directory) => directory.name(),
            Self::Remote(remote) => remote.name(),
        }
    }

    /// Opens the head of the repository.
    pub fn head(&self) -> anyhow::Result<Repository> {
        Ok(match self {
            Self::Directory(directory) => Repository::open(directory.store()?, directory.name())?,
            Self::Remote(remote) => remote.open()?,
        })
    }

    /// Returns what a check needs.
    pub fn checked(&self) -> Result<CheckedRepository, CheckError> {
        match self {
            Self::Directory(directory) => CheckedRepository::of_directory(directory),
            Self::Remote(remote) => Ok(remote.checked()),
        }
    }

    /// Returns the client of registries.
    pub fn registries(&self) -> anyhow::Result<Registries> {
        Ok(match self {
            Self::Directory(directory) => directory.registries()?.clone(),
            Self::Remote(_) => Registries::from_environment()?.with_reporter(&reporter()),
        })
    }

    /// Opens the repository whose images are verified.
    pub fn verified<'a>(&self, registries: &'a Registries) -> anyhow::Result<VerifiedRepository<'a>> {
        // A repository that is read by its URL does not state its settings.
        let modes = self.directory().map_or(Modes::default(), |directory| directory.settings().modes);
        Ok(VerifiedRepository { head: self.head()?, registries, modes })
    }

    /// Reads the whitelist without verifying its signature; `None` if it does not exist.
    pub fn whitelist(&self) -> anyhow::Result<Option<Whitelist>> {
        Ok(match self {
            Self::Directory(directory) => directory.whitelist()?,
            Self::Remote(remote) => remote.whitelist()?,
        })
    }

    /// Returns a warning if the whitelist expires soon or has expired.
    pub fn whitelist_warning(&self, now: Timestamp) -> Option<String> {
        match self {
            Self::Directory(directory) => directory.whitelist_warning(now),
            Self::Remote(remote) => {
                let list = remote.whitelist().ok()??;
                let expires = Timestamp { seconds: list.expires(), nanoseconds: 0 };
                match list.urgency(now) {
                    Urgency::None => None,
                    _ => Some(format!("the whitelist expires at {expires}: then clients refuse {}", remote.name())),
                }
            }
        }
    }

    /// Returns the interval between two checks for a new head.
    pub fn head_check_interval(&self) -> Duration {
        match self {
            Self::Directory(_) => Duration::from_secs(1),
            // Clients check less often, but one small file four times a minute is no load for a server.
            Self::Remote(_) => Duration::from_secs(15),
        }
    }

    /// Returns the directory, unless the repository is read by its URL.
    pub fn directory(&self) -> Option<&RepositoryDirectory> {
        match self {
            Self::Directory(directory) => Some(directory),
            Self::Remote(_) => None,
        }
    }
}
