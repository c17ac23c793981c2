//! Directories on all kinds of file systems satisfy the contract of stores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use strata::store::{
    ContentError, ContentObject, DirectoryStore, NewFile, ObjectName, SharedWritableStore, Staging, Store, StoreError,
};

use crate::support::faulty::{Fate, FaultyMount};
use crate::support::{MountNamespace, need, skip, skip_uncaptured};

/// The contract is the same as in the unit tests of the stores. It finds the names above in this module.
#[path = "../../src/store/contract.rs"]
mod contract;

/// Asserts the contract of directories in `directory`.
fn assert_contract(directory: &Path) {
    let store = DirectoryStore::create(&directory.join("read")).unwrap();
    contract::files().iter().for_each(|(name, bytes)| fs::write(store.path(name), bytes).unwrap());
    contract::assert_reads(&store);
    contract::assert_writes(&DirectoryStore::create(&directory.join("written")).unwrap().into());
}

/// Returns the type of the file system of a directory, as `stat` names it.
fn type_of(directory: &Path) -> String {
    let stat = Command::new("stat").args(["-f", "-c", "%T"]).arg(directory).output().unwrap();
    String::from_utf8(stat.stdout).unwrap().trim().to_owned()
}

/// Runs commands in a new mount namespace, with and without a user namespace, until they succeed. The commands find the path
/// `point` in `$1`. Returns the namespace, and the path at which the test finds `point`.
fn mounted(point: &Path, commands: &str) -> Option<(MountNamespace, PathBuf)> {
    ["-m", "-rm"].into_iter().find_map(|kinds| {
        let mut namespace = MountNamespace::new(kinds, None)?;
        namespace.run(&format!("set -- '{}'; {commands}", point.display())).ok()?;
        let path = namespace.path(point);
        Some((namespace, path))
    })
}

#[test]
fn directory_on_tmpfs_satisfies_the_contract_of_stores() {
    let home = tempfile::tempdir().unwrap();
    match mounted(home.path(), "mount -t tmpfs none $1") {
        Some((_namespace, path)) => {
            assert_eq!(type_of(&path), "tmpfs");
            assert_contract(&path);
        }
        None => skip("file systems cannot be mounted, not even in a namespace"),
    }
}

#[test]
fn directory_on_overlayfs_satisfies_the_contract_of_stores() {
    let home = tempfile::tempdir().unwrap();
    // The kernel refuses an upper directory on another overlay, as in containers.
    let mount = "mount -t tmpfs none $1 && cd $1 && mkdir lower upper work merged && \
                 mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none merged";
    match mounted(home.path(), mount) {
        Some((_namespace, path)) => {
            let merged = path.join("merged");
            assert_eq!(type_of(&merged), "overlayfs");
            assert_contract(&merged);
        }
        None => skip("overlayfs cannot be mounted, not even in a namespace"),
    }
}

/// How `stat` names ext4.
const EXT4: &str = "ext2/ext3";

#[test]
fn directory_on_ext4_satisfies_the_contract_of_stores() {
    if !need("mkfs.ext4") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let mount = "truncate -s 64M $1.ext4 && mkfs.ext4 -q $1.ext4 && mount -o loop $1.ext4 $1";
    match mounted(&home.path().join("point"), &format!("mkdir -p $1 && {mount}")) {
        Some((_namespace, path)) => {
            assert_eq!(type_of(&path), EXT4);
            assert_contract(&path);
        }
        None if type_of(home.path()) == EXT4 => assert_contract(home.path()),
        // Containers have no loop devices.
        None => skip_uncaptured("an ext4 file system cannot be mounted"),
    }
}

#[test]
fn directory_on_fuse_satisfies_the_contract_of_stores() {
    let home = tempfile::tempdir().unwrap();
    let (below, point) = (home.path().join("below"), home.path().join("point"));
    fs::create_dir(&below).unwrap();
    if let Some(mount) = FaultyMount::start(&below, point, |_| Fate::Done) {
        assert!(type_of(&mount.path).starts_with("fuse"));
        assert_contract(&mount.path);
    }
}
