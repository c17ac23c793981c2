//! The targets of symbolic links, as they are where they are shown.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::catalog::CatalogEntry;
use crate::manifest::RepositoryName;
use crate::path::EntryPath;
use crate::repository::{MOUNT_VARIABLE, below_mount, client_variable};

/// What the targets of links depend on.
#[derive(Debug)]
pub(super) struct Links {
    mounted: Option<Mounted>,
}

/// What is mounted where.
#[derive(Debug)]
struct Mounted {
    repository: RepositoryName,
    /// The directory of the repository.
    directory: EntryPath,
    point: PathBuf,
}

impl Links {
    /// Makes the targets for what is part of no repository.
    pub(super) fn of_no_repository() -> Self {
        Self { mounted: None }
    }

    /// Makes the targets for a directory of a repository.
    pub(super) fn of(repository: RepositoryName, directory: EntryPath, point: PathBuf) -> Self {
        Self { mounted: Some(Mounted { repository, directory, point }) }
    }

    /// Returns a link's target. Variables have the values that CVMFS's client on this machine gives them, but what is to
    /// lie below the repository's mount point lies below this one.
    ///
    /// Of a mounted directory that goes for what lies in it. Everything else is there only where a client mounts the
    /// repository.
    pub(super) fn target(&self, link: &CatalogEntry) -> Vec<u8> {
        let here = self.mounted.as_ref().and_then(|mounted| mounted.target(link));
        here.unwrap_or_else(|| link.expanded_target(client_variable))
    }
}

impl Mounted {
    fn target(&self, link: &CatalogEntry) -> Option<Vec<u8>> {
        // Most links are of another kind, and this is asked for each.
        link.symlink.starts_with(format!("$({MOUNT_VARIABLE}").as_bytes()).then_some(())?;
        let path = below_mount(&self.repository, link)?;
        let below = match self.directory.is_root() {
            true => path,
            false => {
                let rest = path.strip_prefix(self.directory.as_bytes())?;
                rest.is_empty().then(Vec::new).or_else(|| rest.strip_prefix(b"/").map(<[u8]>::to_vec))?
            }
        };
        let point = self.point.as_os_str().as_bytes();
        let point = point.strip_suffix(b"/").unwrap_or(point);
        Some(if below.is_empty() { self.point.as_os_str().as_bytes().to_vec() } else { [point, &below].join(&b'/') })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Metadata;

    fn target(directory: &str, symlink: &str) -> String {
        let directory = EntryPath::normalise(directory.as_bytes()).unwrap();
        let links = Links::of("a.example.org".parse().unwrap(), directory, "/mnt/here".into());
        let link = CatalogEntry::of_variant_link(&Metadata::of_implied_directory(), symlink.as_bytes());
        String::from_utf8(links.target(&link)).unwrap()
    }

    #[test]
    fn what_lies_below_the_mount_point_of_the_repository_lies_below_this_one() {
        for (symlink, expected) in [
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.org/.flat/ab", "/mnt/here/.flat/ab"),
            ("$(CVMFS_MOUNT_DIR)/a.example.org", "/mnt/here"),
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.org/", "/mnt/here"),
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.organ/x", "/cvmfs/a.example.organ/x"),
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/b.example.org/x", "/cvmfs/b.example.org/x"),
            ("x/$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.org/x", "x//cvmfs/a.example.org/x"),
            ("/cvmfs/a.example.org/x", "/cvmfs/a.example.org/x"),
            ("$(NOT_SET_ANYWHERE:-y)/x", "y/x"),
        ] {
            assert_eq!(target("", symlink), expected, "{symlink}");
        }
    }

    #[test]
    fn of_a_mounted_directory_only_what_lies_in_it_is_here() {
        for (symlink, expected) in [
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.org/.flat/ab/c", "/mnt/here/c"),
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.org/.flat/ab", "/mnt/here"),
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.org/.flat/abc", "/cvmfs/a.example.org/.flat/abc"),
            ("$(CVMFS_MOUNT_DIR:-/cvmfs)/a.example.org/podmanStore", "/cvmfs/a.example.org/podmanStore"),
        ] {
            assert_eq!(target(".flat/ab", symlink), expected, "{symlink}");
        }
    }
}
