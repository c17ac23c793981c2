//! Helpers for all tests: running the program, looking for other programs, and building images.

pub mod client;
pub mod containerd;
mod edits;
pub mod faulty;
pub mod fuse;
mod grpc;
mod http;
mod image;
mod layer;
mod mount;
mod podman;
mod proxy;
pub mod random;
mod registry;
mod repository;
mod served;
pub mod server;

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

pub use edits::{Foreign, publish_edits, publish_foreign};
pub use http::{Delivery, Reply, Request};
pub use image::{Damage, TestImage, blob_file, image_of, write_oci_index};
pub use layer::{Compression, DeviceKind, TestLayer};
pub use mount::{MountNamespace, TestMount};
pub use podman::{Podman, busybox};
pub use proxy::{FaultProxy, challenge};
pub use registry::{PASSWORD, TestRegistry, USER, run};
pub use repository::{FQRN, NAME, Run, TestRepository, Tree, chain_path, command_on, flat_path, layer_path, losses_of};
pub use served::{Access, Served};

/// Runs strata and waits until it ends. Environment variables of the test run that would configure strata are removed.
pub fn strata<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    strata_command(arguments).output().expect("strata was built with its tests")
}

/// Returns a command that runs strata. Environment variables of the test run that would configure strata are removed.
pub fn strata_command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        if text.starts_with("STRATA_") || text.starts_with("DUCC_") || text.ends_with("_PROXY") {
            command.env_remove(name);
        }
    }
    for name in
        ["SOURCE_DATE_EPOCH", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "HOME"]
    {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

/// Returns whether `program` is installed. If it is not, prints that the test is skipped.
///
/// With `STRATA_TEST_ALL=1`, a missing program fails the test instead.
#[track_caller]
pub fn need(program: &str) -> bool {
    let is_installed = find_in_path(program).is_some();
    if !is_installed {
        skip(&format!("{program} is not installed"));
    }
    is_installed
}

/// Returns whether FUSE file systems can be mounted on this machine. If they cannot, prints that the test is skipped.
///
/// With `STRATA_TEST_ALL=1`, the test fails instead.
#[track_caller]
pub fn need_fuse() -> bool {
    let can_open = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can_open {
        skip("/dev/fuse cannot be opened");
    }
    can_open && need("fusermount3")
}

/// Prints why the test is skipped, even if the test harness captures output. For programs that no package registry has:
/// `STRATA_TEST_ALL=1` does not demand them.
pub fn skip_uncaptured(reason: &str) {
    // The test harness captures `println!`, but not direct writes to stderr.
    writeln!(std::io::stderr(), "\nSKIPPED: {reason}").expect("stderr can be written to");
}

/// Returns the program that the environment variable `variable` names, or else the one in `PATH`.
pub fn find_program(name: &str, variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).or_else(|| find_in_path(name))
}

/// Returns the executable file of this name in `PATH`.
pub fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| {
        fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

/// Returns the names in a directory, sorted.
pub fn names_in(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Prints why the test is skipped. With `STRATA_TEST_ALL=1`, the test fails instead.
#[track_caller]
pub fn skip(reason: &str) {
    let must_run = env::var_os("STRATA_TEST_ALL").is_some_and(|value| value == "1");
    assert!(!must_run, "{reason}, and STRATA_TEST_ALL=1 makes that a failure");
    println!("skipped: {reason}");
}
