//! What the tests share: running the program, asking for outside programs, and images made to order.

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
mod registry;
mod repository;

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::{env, fs};

pub use edits::{Foreign, publish_edits, publish_foreign};
pub use http::{Delivery, Reply, Request};
pub use image::{Damage, TestImage, write_oci_index};
pub use layer::{Compression, DeviceKind, TestLayer};
pub use mount::{MountNamespace, TestMount};
pub use podman::{Podman, busybox};
pub use proxy::{FaultProxy, challenge};
pub use registry::{PASSWORD, TestRegistry, USER, run};
pub use repository::{FQRN, NAME, Run, TestRepository, Tree, chain_path, flat_path, layer_path, losses_of};

/// Runs strata and waits for it. Settings of whoever runs the tests do not reach it.
pub fn strata<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Output {
    strata_command(arguments).output().expect("strata was built with its tests")
}

/// Prepares to run strata. Settings of whoever runs the tests do not reach it.
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

/// Tells whether `program` is installed, and prints why the test skips if it is not.
///
/// With `STRATA_TEST_ALL=1`, a missing program fails the test instead.
#[track_caller]
pub fn need(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_installed = env::split_paths(&path).map(|directory| directory.join(program)).any(|file| {
        fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    });
    if !is_installed {
        skip(&format!("{program} is not installed"));
    }
    is_installed
}

/// Tells whether file systems can be mounted here, and prints why the test skips if they cannot.
///
/// With `STRATA_TEST_ALL=1`, that fails the test instead.
#[track_caller]
pub fn need_fuse() -> bool {
    let can_open = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !can_open {
        skip("/dev/fuse cannot be opened");
    }
    can_open && need("fusermount3")
}

/// Prints why the test skips, even where the output of tests is not shown: for what no package registry has.
pub fn skip_loudly(reason: &str) {
    // Unlike what is printed, this is not captured.
    writeln!(std::io::stderr(), "\nSKIPPED: {reason}").expect("stderr can be written to");
}

/// Returns the program of this name, from `variable` or `PATH`.
pub fn find_program(name: &str, variable: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = env::split_paths(&path).map(|directory| directory.join(name)).find(|program| program.is_file());
    env::var_os(variable).map(PathBuf::from).or(there)
}

/// Prints why the test skips. With `STRATA_TEST_ALL=1`, that fails it.
#[track_caller]
pub fn skip(reason: &str) {
    let must_run = env::var_os("STRATA_TEST_ALL").is_some_and(|value| value == "1");
    assert!(!must_run, "{reason}, and STRATA_TEST_ALL=1 makes that a failure");
    println!("skipped: {reason}");
}
