//! Mounts with the CVMFS client, if it is installed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::fuse::Mount;
use super::{FQRN, TestRepository, find_program, skip_uncaptured};

/// Mounts a repository with the program that `STRATA_TEST_CVMFS2` names, or `cvmfs2` in `PATH`. Requires root, because only root
/// may let other users access a FUSE mount (`allow_other`).
///
/// Returns `None`, after printing that the test is skipped, if the client is missing: no package registry has it.
pub fn mount_with_client(repository: &TestRepository) -> Option<Mount> {
    let program = find_program("cvmfs2", "STRATA_TEST_CVMFS2").filter(|_| rustix::process::geteuid().is_root());
    let Some(program) = program else {
        skip_uncaptured(
            "the CVMFS client is not tested: cvmfs2 is neither in STRATA_TEST_CVMFS2 nor in PATH, or the test does not run as root",
        );
        return None;
    };
    let [mounts, state] = ["client-mount", "client-state"].map(|name| repository.beside(name));
    let directory = mounts.join(FQRN);
    fs::create_dir_all(&directory).unwrap();
    ["cache", "sockets"].iter().for_each(|name| fs::create_dir_all(state.join(name)).unwrap());
    let settings = [
        ("SERVER_URL", format!("file://{}", repository.storage().display())),
        ("PUBLIC_KEY", repository.directory().join(format!("keys/{FQRN}.pub")).display().to_string()),
        ("HTTP_PROXY", "DIRECT".to_owned()),
        ("MOUNT_DIR", mounts.display().to_string()),
        ("CACHE_BASE", state.join("cache").display().to_string()),
        ("RELOAD_SOCKETS", state.join("sockets").display().to_string()),
        ("SHARED_CACHE", "no".to_owned()),
        ("CLAIM_OWNERSHIP", "no".to_owned()),
        ("CHECK_PERMISSIONS", "yes".to_owned()),
        ("USE_GEOAPI", "no".to_owned()),
        ("USYSLOG", state.join("log").display().to_string()),
    ];
    let settings: String = settings.iter().map(|(name, value)| format!("CVMFS_{name}={value}\n")).collect();
    fs::write(state.join("client.conf"), settings).unwrap();
    let mut command = Command::new(program);
    command.args(["-f", "-o", &format!("config={},allow_other", state.join("client.conf").display()), FQRN]);
    command.arg(&directory);
    Some(Mount::of(command, directory, state.join("output")))
}

/// Makes the client check for a new revision immediately.
pub fn reload_client(repository: &TestRepository) {
    let socket = repository.beside("client-state/cache").join(FQRN).join(format!("cvmfs_io.{FQRN}"));
    let mut client = UnixStream::connect(socket).unwrap();
    client.write_all(b"remount sync").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("OK") || answer.contains("up to date"), "{answer}");
}
