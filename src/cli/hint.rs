//! Instructions for mounting the repository, as commands to be copied.

use std::path::Path;

use strata::directory::RepositoryDirectory;
use strata::message::shell_word;

/// Returns the commands that mount the repository on this machine.
pub fn how_to_mount(directory: &RepositoryDirectory) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string();
    let (name, storage) = (directory.name(), absolute(&directory.storage_path()));
    let (key, repository) = (absolute(&directory.public_key_path()), shell_word(&absolute(directory.path())));
    // `CVMFS_CLAIM_OWNERSHIP=no`: by default, the client shows all files as those of the user who mounts.
    format!(
        "To mount it here without the CVMFS client:\n\
         \x20 mkdir -p mnt && strata --repo {repository} mount mnt\n\
         To mount it here with the CVMFS client:\n\
         \x20 cat > client.conf <<'END'\n\
         \x20 CVMFS_SERVER_URL=file://{storage}\n\
         \x20 CVMFS_PUBLIC_KEY={key}\n\
         \x20 CVMFS_HTTP_PROXY=DIRECT\n\
         \x20 CVMFS_CACHE_BASE=/var/tmp/cvmfs-{name}\n\
         \x20 CVMFS_RELOAD_SOCKETS=/var/tmp\n\
         \x20 CVMFS_CLAIM_OWNERSHIP=no\n\
         \x20 END\n\
         \x20 mkdir -p mnt && cvmfs2 -o config=client.conf {name} \"$PWD/mnt\"\n\
         On other machines: serve {storage} over HTTP, and configure the clients with its URL and {name}.pub.\n"
    )
}
