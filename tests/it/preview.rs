//! `strata preview` mounts an image as it would be published, and publishes nothing.

use std::fs;
use std::process::Command;

use rustix::process::Signal;

use crate::support::fuse::{Mount, assert_same, is_mounted, motley_image, wait_until, walk};
use crate::support::{NAME, Run, TestImage, TestRepository, blob_file, need_fuse, strata_command};

/// Returns a command for a preview on its own mount point, with its own directory for temporary files.
fn preview(repository: &TestRepository, image: &str, options: &[&str]) -> Command {
    let directory = repository.beside("preview");
    fs::create_dir_all(&directory).unwrap();
    fs::create_dir_all(repository.beside("temporary")).unwrap();
    let mut command = strata_command(["preview", image, directory.to_str().unwrap()]);
    command.env("TMPDIR", repository.beside("temporary")).args(options);
    command
}

fn mount_preview(repository: &TestRepository, image: &str, options: &[&str]) -> Mount {
    let command = preview(repository, image, options);
    let mount = Mount::of(command, repository.beside("preview"), repository.beside("preview.log"));
    wait_until("the preview is complete", || mount.log().contains("/flat"));
    mount
}

#[test]
fn preview_has_exactly_the_content_that_would_be_published() {
    if !need_fuse() {
        return;
    }
    let image = motley_image().layer(|layer| layer.whiteout("empty").opaque("bin").file("bin/new", "new"));
    let repository = TestRepository::new();
    let source = repository.source(&image);
    let mount = mount_preview(&repository, &source, &[]);
    assert!(!repository.has(NAME));
    repository.convert(&image, NAME, &["--chains", "all"]).expect_code(0);
    assert_same(&walk(&mount.directory.join("flat")), repository.flat(&image).entries());
    for number in 1..=3 {
        let layer = mount.directory.join("layers").join(number.to_string());
        assert_same(&walk(&layer), repository.layer(&image, number - 1).entries());
    }
    assert_same(&walk(&mount.directory.join("chains/3")), repository.chain(&image).entries());
    let links: Vec<_> = ["", "chains", "layers"].iter().flat_map(|directory| mount.names(directory)).collect();
    assert_eq!(links.iter().filter(|name| name.starts_with("sha256:")).count(), 7, "{links:?}");
    let by_digest = mount.names("layers").into_iter().filter(|name| name.starts_with("sha256:"));
    for name in by_digest {
        assert!(fs::metadata(mount.directory.join("layers").join(name)).unwrap().is_dir());
    }
}

#[test]
fn preview_runs_a_command_and_returns_its_exit_code() {
    if !need_fuse() {
        return;
    }
    let image = TestImage::new().layer(|layer| layer.file("word", "hello"));
    let repository = TestRepository::new();
    let source = repository.source(&image);
    let script = "cat \"$STRATA_PREVIEW/flat/word\" && exit 7";
    let run = Run::of(&mut preview(&repository, &source, &["--command", script])).expect_code(7);
    assert_eq!(run.stdout(), "hello");
    assert!(!is_mounted(&repository.beside("preview")));
}

#[test]
fn published_layers_are_read_from_the_repository_which_stays_unchanged() {
    if !need_fuse() {
        return;
    }
    let base = TestImage::new().layer(|layer| layer.file("base", "from below").hardlink("same", "base"));
    let image = base.clone().layer(|layer| layer.file("top", "from above"));
    let repository = TestRepository::publish(&base);
    let before = repository.storage_files();
    let source = repository.source(&image);
    let digest = image.layer_digests()[0].clone();
    fs::remove_file(blob_file(&source, &digest)).unwrap();
    let missing = Run::of(&mut preview(&repository, &source, &["--command", "true"])).expect_code(1);
    assert!(missing.stderr().contains(&digest), "{}", missing.stderr());
    let directory = repository.directory();
    let script = "cd \"$STRATA_PREVIEW/flat\" && cat base same top && test same -ef base";
    let options = ["--repo", directory.to_str().unwrap(), "--command", script];
    let run = Run::of(&mut preview(&repository, &source, &options)).expect_code(0);
    assert_eq!(run.stdout(), "from belowfrom belowfrom above");
    repository.assert_unchanged(&before);
}

#[test]
fn known_content_of_new_layers_is_read_from_the_repository() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::publish(&TestImage::new().layer(|layer| layer.file("a", "known content")));
    let image = TestImage::new().layer(|layer| layer.file("b", "known content").file("c", "new"));
    let (source, directory) = (repository.source(&image), repository.directory());
    let mount = mount_preview(&repository, &source, &["--repo", directory.to_str().unwrap()]);
    assert_eq!(fs::read(mount.directory.join("flat/c")).unwrap(), b"new");
    // Damage shows that the content is read from the repository.
    let objects = repository.objects().into_keys().map(|path| repository.storage().join(path));
    let mut saved = Vec::new();
    for path in objects.filter(|path| !path.to_str().unwrap().ends_with(['C', 'H', 'X', 'M'])) {
        saved.push((path.clone(), fs::read(&path).unwrap()));
        fs::write(&path, "damaged").unwrap();
    }
    assert!(fs::read(mount.directory.join("flat/b")).is_err());
    saved.into_iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    assert_eq!(fs::read(mount.directory.join("flat/b")).unwrap(), b"known content");
}

#[test]
fn converting_a_kept_preview_only_publishes_it() {
    if !need_fuse() {
        return;
    }
    let image = motley_image();
    let repository = TestRepository::new();
    let source = repository.source(&image);
    let directory = repository.directory();
    let options = ["--keep", "--repo", directory.to_str().unwrap(), "--command", "true"];
    Run::of(&mut preview(&repository, &source, &options)).expect_code(0);
    assert_eq!(repository.reader().revision(), 1);
    let json = repository.convert(&image, NAME, &["--json"]).expect_code(0).json();
    assert_eq!(json["images"][0]["layers-read"], 0, "{json}");
    assert!(repository.has(NAME));
    let without = Run::of(&mut preview(&repository, &source, &["--keep"])).expect_code(2);
    assert!(without.stderr().contains("--repo"), "{}", without.stderr());
}

#[test]
fn damaged_layer_ends_the_preview_with_one_line() {
    if !need_fuse() {
        return;
    }
    let image = TestImage::new().layer(|layer| layer.file("a", vec![7; 100_000]));
    let repository = TestRepository::new();
    let source = repository.source(&image);
    let digest = image.layer_digests()[0].clone();
    let blob = blob_file(&source, &digest);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let run = Run::of(&mut preview(&repository, &source, &["-q", "--command", "echo no"])).expect_code(1);
    assert!(run.stdout().is_empty() && run.stderr().contains(&digest), "{}", run.stderr());
    assert_eq!(run.stderr().lines().count(), 1, "{}", run.stderr());
    assert!(!is_mounted(&repository.beside("preview")));
}

#[test]
fn killed_preview_leaves_nothing() {
    if !need_fuse() {
        return;
    }
    let repository = TestRepository::new();
    let source = repository.source(&motley_image());
    let mut mount = mount_preview(&repository, &source, &[]);
    mount.signal(Signal::KILL);
    mount.wait();
    wait_until("the file system is unmounted", || !is_mounted(&mount.directory));
    assert_eq!(fs::read_dir(repository.beside("temporary")).unwrap().count(), 0);
    let mut mount = mount_preview(&repository, &source, &[]);
    mount.signal(Signal::INT);
    assert_eq!(mount.wait(), Some(0), "{}", mount.log());
}
