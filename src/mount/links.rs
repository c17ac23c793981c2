//! The targets of symbolic links in a mounted tree.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::catalog::CatalogEntry;
use crate::manifest::RepositoryName;
use crate::path::EntryPath;
use crate::repository::{MOUNT_VARIABLE, below_mount, client_variable};

/// Computes the targets of links.
#[derive(Debug)]
pub(super) struct LinkTargets {
    mounted: Option<MountedDirectory>,
}

/// The mounted repository, and its mount point.
#[derive(Debug)]
struct MountedDirectory {
    repository: RepositoryName,
    /// The mounted directory of the repository.
    directory: EntryPath,
    point: PathBuf,
}

impl LinkTargets {
    /// Creates the link targets for a tree that does not belong to a repository.
    pub(super) fn of_no_repository() -> Self {
        Self { mounted: None }
    }

    /// Creates the link targets for a directory of a repository.
    pub(super) fn of(repository: RepositoryName, directory: EntryPath, point: PathBuf) -> Self {
        Self { mounted: Some(MountedDirectory { repository, directory, point }) }
    }

    /// Returns the target of a link. Variables are replaced by the values that the CVMFS client on this machine uses. A
    /// target below the CVMFS mount point of the repository becomes the same path below this mount point.
    ///
    /// If only a directory of the repository is mounted, only targets in that directory change in this way. Other targets
    /// exist only where a client mounts the whole repository.
    pub(super) fn target(&self, link: &CatalogEntry) -> Vec<u8> {
        let here = self.mounted.as_ref().and_then(|mounted| mounted.target(link));
        here.unwrap_or_else(|| link.expanded_target(client_variable))
    }
}

impl MountedDirectory {
    fn target(&self, link: &CatalogEntry) -> Option<Vec<u8>> {
        // This test comes first because it is cheap and excludes most links.
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
        let links = LinkTargets::of("a.example.org".parse().unwrap(), directory, "/mnt/here".into());
        let link = CatalogEntry::of_variant_link(&Metadata::of_implied_directory(), symlink.as_bytes());
        String::from_utf8(links.target(&link)).unwrap()
    }

    #[test]
    fn target_below_the_cvmfs_mount_point_becomes_a_path_below_this_mount_point() {
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
    fn only_targets_in_the_mounted_directory_become_paths_below_the_mount_point() {
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
