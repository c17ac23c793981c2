//! Tests of the store with podman and runc, from mounts of strata and of the CVMFS client.

use std::time::Instant;

use serde_json::json;

use crate::support::client::reload_client;
use crate::support::fuse::wait_until;
use crate::support::{NAME, Podman, TestImage, TestLayer, TestRepository, busybox};

/// Time limit for podman to list 500 images. It needs 0.9 s, or 38 s if it reads the lists again for each image.
const LISTING_LIMIT: f64 = 5.0;

/// Mounts a repository and configures podman above its store. `None` where that is not possible.
type Over = fn(&TestRepository) -> Option<Podman>;

/// An image, the arguments that it is run with, and the expected output.
type Case<'c> = (&'c str, TestImage, &'c [&'c str], &'c str);

/// Images with every combination of entry point and command.
fn cases<'c>(base: &TestImage) -> Vec<Case<'c>> {
    let image = || base.clone();
    let words =
        ["sh", "-c", "for word; do echo \"<$word>\"; done", "sh", "", "a  b", "line\nbreak", "$HOME `id`", "é'\""];
    vec![
        ("h.org/t/cmd:1", image().cmd(["echo", "a  b"]), &[], "a  b"),
        ("h.org/t/cmd-replaced:1", image().cmd(["echo", "a"]), &["echo", "b"], "b"),
        ("h.org/t/entry:1", image().entrypoint(["echo", "entry"]), &[], "entry"),
        ("h.org/t/entry-and-word:1", image().entrypoint(["echo", "entry"]), &["x"], "entry x"),
        ("h.org/t/both:1", image().entrypoint(["echo", "entry"]).cmd(["cmd"]), &[], "entry cmd"),
        ("h.org/t/neither:1", image(), &["echo", "given"], "given"),
        (
            "h.org/t/shell:1",
            image().cmd(["/bin/sh", "-c", "echo \"$A\""]).env("A", "ö \"$B\" 'c'"),
            &[],
            "ö \"$B\" 'c'",
        ),
        ("h.org/t/words:1", image().cmd(words), &[], "<>\n<a  b>\n<line\nbreak>\n<$HOME `id`>\n<é'\">"),
        ("h.org/t/directory:1", image().cmd(["pwd"]).setting("WorkingDir", json!("/not/there")), &[], "/not/there"),
        ("h.org/t/user:1", image().cmd(["id", "-u"]).setting("User", json!("me")), &[], "1234"),
        ("h.org/t/user-and-group:1", image().cmd(["id", "-g"]).setting("User", json!("7:staff")), &[], "50"),
        (
            "h.org/t/layers:1",
            image()
                .layer(|layer| layer.file("data/old", "old").file("data/stays", "").file("gone", ""))
                .layer(|layer| layer.whiteout("gone").whiteout("data/old").file("data/new", "new"))
                .cmd(["sh", "-c", "echo $(ls /data); cat /data/new; ls /gone 2>/dev/null || echo gone"]),
            &[],
            "new stays\nnewgone",
        ),
    ]
}

fn base(busybox: impl Fn(TestLayer) -> TestLayer) -> TestImage {
    TestImage::new().layer(busybox).env("PATH", "/bin")
}

#[test]
fn images_run_with_every_kind_of_entry_point_and_are_found_by_every_name() {
    run_images(Podman::over);
}

#[test]
fn images_run_with_every_kind_of_entry_point_and_are_found_by_every_name_over_the_cvmfs_client() {
    run_images(Podman::over_client);
}

fn run_images(over: Over) {
    let Some(busybox) = busybox() else { return };
    let base = base(busybox);
    let cases = cases(&base);
    let repository = TestRepository::new();
    let images: Vec<(&str, &TestImage)> = cases.iter().map(|(name, image, ..)| (*name, image)).collect();
    repository.convert_together(&images, &[]).expect_code(0);
    let (both, digest) = ("h.org/t/both:1", cases[4].1.manifest_digest());
    repository.convert(&cases[4].1, "localhost:5000/other:2", &[]).expect_code(0);
    repository.convert(&cases[4].1, &format!("h.org/t/by@{digest}"), &[]).expect_code(0);
    // With such images in the store, podman would list no image at all.
    let text_for_words = base.clone().cmd(["x"]).setting("Cmd", json!("echo text"));
    repository.convert(&text_for_words, "h.org/bad/config:1", &[]).expect_code(0);
    repository.convert(&base, "h_x.org/bad/host:1", &[]).expect_code(0);
    repository.convert(&base, "h.org/bad/na..me:1", &[]).expect_code(0);
    let archive = repository.beside("archive.tar");
    base.clone().cmd(["echo", "archive"]).write_docker_archive(&archive, "h.org/t/archive:1");
    repository.run(["convert", &format!("docker-archive:{}", archive.display())]).expect_code(0);

    let Some(podman) = over(&repository) else { return };
    let names = podman.names();
    let mut expected: Vec<&str> = images.iter().map(|(name, _)| *name).collect();
    expected.extend(["h.org/t/archive:1", "localhost:5000/other:2"]);
    expected.sort_unstable();
    assert_eq!(names, expected);
    for (name, _, words, printed) in &cases {
        assert_eq!(podman.run(name, words), *printed, "{name}");
    }
    assert_eq!(podman.run("h.org/t/archive:1", &[]), "archive");

    let id = cases[4].1.config_digest().replace("sha256:", "");
    let by_digest = [format!("h.org/t/both@{digest}"), format!("h.org/t/by@{digest}"), format!("sha256:{id}")];
    for name in [both, "localhost:5000/other:2", &id, &id[..12]].into_iter().chain(by_digest.iter().map(String::as_str))
    {
        assert_eq!(podman.id(name), id, "{name}");
    }
    assert_eq!(podman.run(&by_digest[0], &[]), "entry cmd");
    assert_eq!(podman.run(&id[..12], &["x"]), "entry x");
}

#[test]
fn images_are_built_and_committed_from_images_of_one_layer_and_of_many() {
    build_and_commit(Podman::over);
}

#[test]
fn images_are_built_and_committed_from_images_of_one_layer_and_of_many_over_the_cvmfs_client() {
    build_and_commit(Podman::over_client);
}

fn build_and_commit(over: Over) {
    let Some(busybox) = busybox() else { return };
    let one = base(busybox);
    let many = one.clone().layer(|layer| layer.file("etc/two", "2")).layer(|layer| layer.file("etc/three", "3"));
    let repository = TestRepository::new();
    repository.convert_together(&[("h.org/one:1", &one), ("h.org/many:1", &many)], &[]).expect_code(0);
    let Some(podman) = over(&repository) else { return };
    for name in ["h.org/one:1", "h.org/many:1"] {
        let built = podman.build(&format!("FROM {name}\nRUN echo built > /etc/built\nCMD [\"cat\", \"/etc/built\"]\n"));
        assert_eq!(podman.run(&built, &[]), "built", "{name}");
        let container = podman.create(name, &["sh", "-c", "echo changed > /etc/changed; rm /etc/group"]);
        podman.output(["start", "--attach", &container]);
        let committed = podman.output(["commit", "--quiet", &container]);
        assert_eq!(podman.run(&committed, &["cat", "/etc/changed"]), "changed", "{name}");
        assert_eq!(podman.run(&committed, &["sh", "-c", "ls /etc/group 2>/dev/null || echo gone"]), "gone", "{name}");
        let changes = podman.output(["diff", &container]);
        assert!(changes.contains("A /etc/changed") && changes.contains("D /etc/group"), "{changes}");
    }
}

#[test]
fn users_run_images_with_fuse_overlayfs() {
    run_as_user(Podman::over);
}

#[test]
fn users_run_images_with_fuse_overlayfs_over_the_cvmfs_client() {
    run_as_user(Podman::over_client);
}

fn run_as_user(over: Over) {
    let Some(busybox) = busybox() else { return };
    let many = base(busybox).layer(|layer| layer.file("etc/two", "2").owner(7, 7)).cmd(["cat", "/etc/two"]);
    let repository = TestRepository::publish(&many);
    let Some(podman) = over(&repository) else { return };
    let programs = ["fuse-overlayfs", "newuidmap", "setpriv", "unshare"];
    if !programs.iter().all(|program| crate::support::need(program)) {
        return;
    }
    let printed = podman.as_user(&format!(
        "$RUN {NAME}\n$RUN {NAME} sh -c \"echo written > /etc/two; cat /etc/two; chown 0:0 /etc/passwd; rm /etc/group; id -u\""
    ));
    assert_eq!(printed, "2written\n0");
}

#[test]
fn listing_five_hundred_images_takes_seconds() {
    let repository = TestRepository::new();
    let image = |number: usize| {
        let base = TestImage::new().layer(|layer| layer.file("etc/a", "a")).layer(|layer| layer.file("etc/b", "b"));
        base.env("NUMBER", &number.to_string())
    };
    let images: Vec<(String, TestImage)> =
        (0..500).map(|number| (format!("h.org/g{}/image:{number}", number % 7), image(number))).collect();
    let named: Vec<(&str, &TestImage)> = images.iter().map(|(name, image)| (name.as_str(), image)).collect();
    repository.convert_together(&named, &[]).expect_code(0);
    let Some(podman) = Podman::over(&repository) else { return };
    let listing = || {
        let start = Instant::now();
        assert_eq!(podman.names().len(), 500);
        start.elapsed().as_secs_f64()
    };
    let (first, seconds) = (listing(), listing());
    println!("podman lists 500 images in {seconds:.2} s, the first time in {first:.2} s");
    assert!(seconds < LISTING_LIMIT, "{seconds} s");
}

#[test]
fn service_sees_a_moved_tag_and_older_containers_still_start() {
    serve_while_a_tag_moves(Podman::over, |_| ());
}

#[test]
fn service_sees_a_moved_tag_and_older_containers_still_start_over_the_cvmfs_client() {
    serve_while_a_tag_moves(Podman::over_client, reload_client);
}

fn serve_while_a_tag_moves(over: Over, reload_client: fn(&TestRepository)) {
    let Some(busybox) = busybox() else { return };
    let base = base(busybox);
    let image = |word: &str| base.clone().layer(|layer| layer.file("word", word)).cmd(["cat", "/word"]);
    let (old, new) = (image("old"), image("new"));
    let id = |image: &TestImage| image.config_digest().replace("sha256:", "");
    let repository = TestRepository::publish(&old);
    let Some(mut podman) = over(&repository) else { return };
    podman.serve();
    assert_eq!(podman.ask_id(NAME), id(&old));
    let (stopped, never_started) = (podman.create(NAME, &[]), podman.create(NAME, &[]));
    assert_eq!(podman.output(["start", "--attach", &stopped]), "old");

    repository.convert(&new, NAME, &[]).expect_code(0);
    reload_client(&repository);
    wait_until("the service sees the new image", || podman.ask_id(NAME) == id(&new));
    assert_eq!(podman.id(NAME), id(&new));
    assert_eq!(podman.run(NAME, &[]), "new");
    for container in [stopped, never_started] {
        assert_eq!(podman.output(["start", "--attach", &container]), "old");
    }
    assert_eq!(podman.run(&id(&old), &[]), "old");
    assert_eq!(podman.names(), ["<none>:<none>", NAME]);

    repository.convert(&old, NAME, &[]).expect_code(0);
    reload_client(&repository);
    wait_until("the service sees the old image again", || podman.ask_id(NAME) == id(&old));
    assert_eq!(podman.run(NAME, &[]), "old");
}
