//! The example programs do what they say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Run, need_fuse, skip};

const NAME: &str = "registry.example.org/hello:1";
const IMAGE: &str = "oci:examples/hello";

/// Returns the path of an example, which `cargo test` builds unless only some of the tests are built.
#[track_caller]
fn example(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_strata")).parent().unwrap().join("examples").join(name);
    if !path.exists() {
        skip("the examples are not built");
        return None;
    }
    Some(path)
}

#[test]
fn examples_convert_an_image_and_check_and_read_the_repository() {
    let [Some(convert), Some(check), Some(read)] = ["convert", "check", "read_file"].map(example) else { return };
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("demo.example.org");
    let run = |program: &Path, arguments: &[&str]| Run::of(Command::new(program).arg(&directory).args(arguments));
    assert!(run(&convert, &[IMAGE, NAME]).expect_code(0).stdout().contains("published revision 2"));
    assert!(run(&convert, &[IMAGE, NAME]).expect_code(0).stdout().contains("nothing is new"));
    assert!(run(&check, &[]).expect_code(0).stdout().contains(" catalogs, "));
    let content = run(&read, &[&format!("{NAME}/etc/motd")]).expect_code(0).stdout();
    assert_eq!(content, "This file comes from the upper layer.\n");
    run(&read, &["missing"]).expect_code(1);
    fs::remove_dir_all(directory.join("storage/data/00")).unwrap();
    assert!(run(&check, &[]).expect_code(1).stdout().contains("data/00"));
}

#[test]
fn example_previews_an_image() {
    let Some(preview) = example("preview").filter(|_| need_fuse()) else { return };
    let home = tempfile::tempdir().unwrap();
    let listed = Run::of(Command::new(preview).arg(IMAGE).arg(home.path())).expect_code(0).stdout();
    assert!(listed.lines().any(|line| line == ".singularity.d"), "{listed}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "it is unmounted");
}
